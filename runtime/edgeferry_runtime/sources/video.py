"""Frames of a video file: as fast as they are asked for, or at its own rate."""

from __future__ import annotations

import os
import time

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import SourceError
from edgeferry_runtime.sources.avi import AviClip
from edgeferry_runtime.sources.base import Frame, FrameSource, Request
from edgeferry_runtime.sources.clip import Clip, InOrder, Looped, Paced
from edgeferry_runtime.sources.options import flag, read_options

__all__ = ["VideoClip", "open_video"]

_USUAL_RATE = 25.0  # for files that do not say theirs


def open_video(uri: str, request: Request) -> FrameSource:
    """Read a video file.

    MJPEG in .avi is handed over undecoded, so that the preprocessing decodes it as the bundle declares; all else
    is decoded by OpenCV.

    Args:
        uri: "FILE"; "FILE?realtime=1" plays it at its own rate, as a live source, "FILE?loop=1" starts over at its
            end.

    Raises:
        UsageError: an option is wrong.
        SourceError: it is no video OpenCV can decode.
        DependencyError: OpenCV is absent.
    """
    path, options = (uri, {}) if os.path.exists(uri) else read_options(uri, {"realtime": flag, "loop": flag})

    def open_clip() -> Clip:
        return AviClip.open(path) or VideoClip(path)

    clip = Looped(open_clip) if options.get("loop") else open_clip()
    if not options.get("realtime"):
        return InOrder(clip)
    clip.rate = clip.rate or _USUAL_RATE
    return Paced(clip)


class VideoClip(Clip):
    """A video decoded by OpenCV.

    Raises:
        SourceError: OpenCV cannot decode it.
    """

    def __init__(self, path: str) -> None:
        cv2 = opencv.load("reading video")
        self._path = path
        self._capture = cv2.VideoCapture(path)
        self._at = 0  # index of the next frame in the file
        self._given = 0
        if not self._capture.isOpened():
            raise SourceError(
                "{}: is no video that OpenCV can decode".format(path),
                "MJPEG in .avi always works: ffmpeg -i INPUT -c:v mjpeg -q:v 3 OUTPUT.avi",
            )
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate <= 1000 else 0.0

    def load(self, index: int) -> Frame | None:
        ok = self._capture.grab()
        while ok and self._at < index:
            self._at += 1
            ok = self._capture.grab()
        captured = time.monotonic_ns()
        if ok:
            ok, pixels = self._capture.retrieve()
        if not ok:
            if self._given == 0:
                raise SourceError("{}: holds no frame that can be decoded".format(self._path), "Record it again.")
            return None
        self._at += 1
        self._given += 1
        return Frame(pixels, "bgr", self._at - 1, captured)

    def close(self) -> None:
        self._capture.release()

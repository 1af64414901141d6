"""Frames of a video file, as fast as they are asked for."""

from __future__ import annotations

import time

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import SourceError
from edgeferry_runtime.sources.base import Frame, FrameSource

__all__ = ["VideoSource"]


class VideoSource(FrameSource):
    """Reads a file through OpenCV.

    Args:
        path: of the file.

    Raises:
        SourceError: it is no video OpenCV can decode.
    """

    def __init__(self, path: str) -> None:
        cv2 = opencv.load("reading video")
        self._path = path
        self._capture = cv2.VideoCapture(path)
        self._count = 0
        if not self._capture.isOpened():
            raise SourceError(
                "{}: is no video that OpenCV can decode".format(path),
                "MJPEG in .avi always works: ffmpeg -i INPUT -c:v mjpeg -q:v 3 OUTPUT.avi",
            )

    def read(self) -> Frame | None:
        ok = self._capture.grab()
        captured = time.monotonic_ns()
        if ok:
            ok, pixels = self._capture.retrieve()
        if not ok:
            if self._count == 0:
                raise SourceError("{}: holds no frame that can be decoded".format(self._path), "Record it again.")
            return None
        self._count += 1
        return Frame(pixels, "bgr", self._count - 1, captured)

    def close(self) -> None:
        self._capture.release()

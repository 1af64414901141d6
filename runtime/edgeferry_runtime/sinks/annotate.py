"""Frames with their answer drawn on them: numbered JPEG files, or a video; all of them, or one in N."""

from __future__ import annotations

import os
import shutil
from typing import Any

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.drawing import draw
from edgeferry_runtime.errors import DependencyError, FrameError, SinkError, UsageError
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks.base import Sink
from edgeferry_runtime.sinks.options import Option, read_options
from edgeferry_runtime.sources.base import Frame

__all__ = ["AnnotateSink"]

_OPTIONS = {"every": Option(int, 1, 1, 1e9)}
_VIDEO_OPTIONS = {"every": Option(int, 1, 1, 1e9), "fps": Option(float, 25.0, 0.01, 1000)}
_OTHER_VIDEOS = (".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg")
# An AVI file addresses 4 GB at most; one that is cut off is lost as a whole.
_VIDEO_BYTES = 1000000000


class AnnotateSink(Sink):
    """Writes FOLDER/frame-000000.jpg and so on, or FILE.avi.

    Args:
        uri: "annotate:FOLDER?every=30" for one frame in thirty (an SD card lasts longer so), or
            "annotate:FILE.avi?every=N&fps=F".

    Raises:
        UsageError: an option is unknown or wrong, or it is a video of another kind.
        SinkError: the folder cannot be made.
        DependencyError: OpenCV is absent.
    """

    wants_pixels = True

    def __init__(self, uri: str) -> None:
        sink, _, text = uri.partition("?")
        path = sink.partition(":")[2]
        ending = os.path.splitext(path)[1].lower()
        if ending in _OTHER_VIDEOS:
            raise UsageError("{}: {} cannot be written on every board".format(sink, ending), "Write .avi.")
        options = read_options(text, _VIDEO_OPTIONS if ending == ".avi" else _OPTIONS, sink)
        opencv.load("annotating frames")
        self._every = options["every"]
        self._next = 0
        self._output = _Video(path, options["fps"]) if ending == ".avi" else _Pictures(path)

    def write(self, frame: Frame, result: Result) -> None:
        if frame.number < self._next:
            return
        self._next = frame.number + self._every  # no multiples: a live source leaves numbers out
        try:
            picture = draw(frame, result)
        except (FrameError, DependencyError) as error:
            raise SinkError("frame {} cannot be drawn: {}".format(frame.number, error.message)) from None
        self._output.write(frame.number, picture)

    def close(self) -> None:
        self._output.close()


class _Pictures:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        _make_folder(folder)

    def write(self, number: int, picture: np.ndarray) -> None:
        path = os.path.join(self._folder, "frame-{:06d}.jpg".format(number))
        ok, data = opencv.load("annotating frames").imencode(".jpg", picture)
        try:
            if not ok:
                raise OSError("OpenCV cannot encode it")
            with open(path, "wb") as file:
                file.write(data.tobytes())
        except OSError as error:
            if os.path.isfile(path):
                os.remove(path)  # half a picture
            raise SinkError("{}: cannot be written: {}".format(path, error.strerror or error)) from None

    def close(self) -> None:
        """Every file is closed already."""


class _Video:
    """An MJPEG video; a file that exists is never written over: FILE-1.avi follows, and so on."""

    def __init__(self, path: str, fps: float) -> None:
        self._wanted = self._path = path
        self._fps = fps
        self._size = (0, 0)
        self._writer: Any = None
        _make_folder(os.path.dirname(path))

    def write(self, number: int, picture: np.ndarray) -> None:
        try:
            # OpenCV's writer does not tell when it fails: whether there is room is asked before.
            if shutil.disk_usage(os.path.dirname(self._path) or ".").free < 2 * picture.nbytes:
                raise OSError("No space left on device")
            if self._writer is not None and os.path.getsize(self._path) > _VIDEO_BYTES:
                self.close()
            if self._writer is None:
                self._begin(picture)
        except OSError as error:
            raise SinkError("{}: cannot be written: {}".format(self._path, error.strerror or error)) from None
        self._writer.write(_fit(picture, *self._size))

    def _begin(self, picture: np.ndarray) -> None:
        cv2 = opencv.load("annotating frames")
        stem, ending = os.path.splitext(self._wanted)
        number = 0
        while os.path.lexists(self._path):
            number += 1
            self._path = "{}-{}{}".format(stem, number, ending)
        self._size = (picture.shape[1], picture.shape[0])
        code = cv2.VideoWriter_fourcc(*"MJPG")
        writer = cv2.VideoWriter(self._path, cv2.CAP_OPENCV_MJPEG, code, self._fps, self._size)
        if not writer.isOpened():
            raise OSError("OpenCV cannot open it")
        self._writer = writer

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.release()


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder or ".", exist_ok=True)
    except OSError as error:
        raise SinkError(
            "{}: cannot be made: {}".format(folder, error.strerror), "Choose another folder."
        ) from None


def _fit(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """The picture in the middle of one of that size, black around it; uint8 [height, width, 3]."""
    if picture.shape[:2] == (height, width):
        return picture
    scale = min(width / picture.shape[1], height / picture.shape[0])
    inner = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    canvas = np.zeros((height, width, 3), np.uint8)
    x, y = (width - inner[0]) // 2, (height - inner[1]) // 2
    canvas[y : y + inner[1], x : x + inner[0]] = opencv.load("annotating frames").resize(picture, inner)
    return canvas

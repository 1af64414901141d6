"""Frames from standard input: raw pixels of one size, or JPEG files one after the other.

ffmpeg ... -f rawvideo -pix_fmt bgr24 - | edgeferry-run run --source stdin:640x480:bgr ...
ffmpeg ... -f mjpeg - | edgeferry-run run --source stdin:mjpeg ...
"""

from __future__ import annotations

import io
import os
import re
import time
from typing import Callable

import numpy as np

from edgeferry_runtime.errors import SourceError, UsageError
from edgeferry_runtime.fields import did_you_mean
from edgeferry_runtime.preprocessing import MAX_SIDE
from edgeferry_runtime.sources.base import WAITING, Frame, FrameSource, Request
from edgeferry_runtime.sources.damage import damage
from edgeferry_runtime.sources.device import Device, Grab
from edgeferry_runtime.sources.jpegs import JpegStream
from edgeferry_runtime.sources.live import LiveSource
from edgeferry_runtime.sources.options import flag, read_options

__all__ = ["JpegPipe", "PipeSource", "RawPipe", "open_stdin"]

_RAW = re.compile(r"stdin:(\d{1,5})x(\d{1,5}):([a-z0-9]+)\Z")
# Shape of a frame of height h and width w.
_SHAPES: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "bgr": lambda h, w: (h, w, 3),
    "rgb": lambda h, w: (h, w, 3),
    "gray": lambda h, w: (h, w),
    "i420": lambda h, w: (h * 3 // 2, w),
    "nv12": lambda h, w: (h * 3 // 2, w),
}
_REMEDY = "Write stdin:640x480:bgr (or {}), or stdin:mjpeg.".format(", ".join(list(_SHAPES)[1:]))


def open_stdin(uri: str, request: Request, descriptor: int = 0) -> FrameSource:
    """Frames from standard input: every one in order, its writer waits; with "?live=1" only the newest.

    Args:
        uri: "stdin:WIDTHxHEIGHT:FORMAT" or "stdin:mjpeg".
        descriptor: the file to read.

    Raises:
        UsageError: the uri is malformed.
    """
    what, options = read_options(uri, {"live": flag})
    pipe = _pipe(what, descriptor)
    if options.get("live"):
        return LiveSource("stdin", lambda: pipe, request.timeout_s, heals=False)
    return PipeSource(pipe)


def _pipe(what: str, descriptor: int) -> Pipe:
    if what == "stdin:mjpeg":
        return JpegPipe(descriptor)
    match = _RAW.match(what)
    if not match:
        raise UsageError("{!r} is no source of standard input".format(what), _REMEDY)
    width, height, color = int(match.group(1)), int(match.group(2)), match.group(3)
    if color not in _SHAPES:
        raise UsageError(
            "{!r}: {!r} is no raw format{}".format(what, color, did_you_mean(color, list(_SHAPES))), _REMEDY
        )
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise UsageError("{!r}: sides may be 1 to {} pixels long".format(what, MAX_SIDE), _REMEDY)
    shape = _SHAPES[color](height, width)
    if damage(np.broadcast_to(np.uint8(0), shape), color):
        raise UsageError("{!r}: {} has even sides only".format(what, color), "Scale it to even sides.")
    return RawPipe(descriptor, shape, color)


class Pipe(Device):
    """Frames out of a file descriptor, which stays open."""

    damaged = 0

    def __init__(self, descriptor: int) -> None:
        self._file = io.FileIO(descriptor, "rb", closefd=False)

    @property
    def pending(self) -> bool:
        """Whether a frame has begun to come."""
        return False

    def is_ready(self, timeout_s: float) -> bool:
        """Whether something comes within the time; on Windows, where nobody can tell, always."""
        if self.pending or os.name != "posix":
            return True
        import select

        return bool(select.select([self._file], [], [], timeout_s)[0])


class RawPipe(Pipe):
    """Raw frames of one shape."""

    def __init__(self, descriptor: int, shape: tuple[int, ...], color: str) -> None:
        super().__init__(descriptor)
        self._shape = shape
        self._color = color

    def grab(self) -> Grab | None:
        pixels = np.empty(self._shape, np.uint8)
        bytes_ = pixels.data.cast("B")
        have = 0
        while have < len(bytes_):
            count = self._file.readinto(bytes_[have:])
            if not count:
                break
            have += count
        if have == 0:
            return None
        if have < len(bytes_):
            raise SourceError(
                "standard input ends inside a frame: {} of {} bytes".format(have, len(bytes_)),
                "Check that size and format of --source are those of the writer.",
            )
        return Grab(pixels, self._color, time.monotonic_ns())


class JpegPipe(Pipe):
    """JPEG files one after the other."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self._jpegs = JpegStream(lambda count: self._file.read(count) or b"")

    @property
    def pending(self) -> bool:
        return self._jpegs.pending

    def grab(self) -> Grab | None:
        data = self._jpegs.read()
        self.damaged = self._jpegs.damaged
        return None if data is None else Grab(data, "jpeg", time.monotonic_ns())


class PipeSource(FrameSource):
    """Every frame of a pipe in order; gives ``WAITING``, too, while its writer is silent."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._count = 0

    def _read(self, timeout_s: float | None) -> Frame | None:
        if timeout_s is not None and not self._pipe.is_ready(timeout_s):
            return WAITING
        before = self._pipe.damaged
        grab = self._pipe.grab()
        self.skipped += self._pipe.damaged - before
        if grab is None:
            return None
        self._count += 1
        return Frame(grab.pixels, grab.color, self._count - 1, grab.captured_ns)

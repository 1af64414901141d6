"""Moving bars without a camera, for trying out and for measuring: the same pixels for the same frame number."""

from __future__ import annotations

import re
import time

import numpy as np

from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.preprocessing import MAX_SIDE
from edgeferry_runtime.sources.base import Frame, FrameSource

__all__ = ["SyntheticSource"]

_URI = re.compile(r"synthetic:(\d{1,5})x(\d{1,5})(?:@(\d+(?:\.\d+)?))?\Z")


class SyntheticSource(FrameSource):
    """Endless frames.

    Args:
        uri: "synthetic:640x480", or "synthetic:640x480@30" for 30 frames a second.

    Raises:
        UsageError: the uri is malformed.
    """

    def __init__(self, uri: str) -> None:
        match = _URI.match(uri)
        if not match:
            raise UsageError(
                "{!r} is no synthetic source".format(uri), "Write synthetic:640x480 or synthetic:640x480@30."
            )
        width, height, rate = int(match.group(1)), int(match.group(2)), float(match.group(3) or 0)
        if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            raise UsageError("{!r}: sides may be 1 to {} pixels long".format(uri, MAX_SIDE))
        self._period_ns = int(1e9 / rate) if rate else 0
        self._next_ns = time.monotonic_ns()
        self._count = 0
        y, x = np.mgrid[0:height, 0 : 2 * width]
        bars = np.stack([(x * 255 // max(1, 2 * width - 1)), (y * 255 // height), ((x // 16) % 2) * 255], axis=-1)
        self._bars = bars.astype(np.uint8)
        self._width = width

    def read(self) -> Frame | None:
        if self._period_ns:
            wait = self._next_ns - time.monotonic_ns()
            if wait > 0:
                time.sleep(wait / 1e9)
            self._next_ns = max(self._next_ns, time.monotonic_ns() - self._period_ns) + self._period_ns
        shift = self._count % self._width
        pixels = self._bars[:, shift : shift + self._width].copy()
        self._count += 1
        return Frame(pixels, "bgr", self._count - 1, time.monotonic_ns())

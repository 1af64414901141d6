"""Moving bars without a camera, for trying out and for measuring: the same pixels for the same frame number."""

from __future__ import annotations

import re
import time

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.pixels import FORMATS
from edgeferry_runtime.preprocessing import MAX_SIDE
from edgeferry_runtime.sources.base import Frame, FrameSource, Request
from edgeferry_runtime.sources.clip import Clip, InOrder, Paced

__all__ = ["open_synthetic"]

_URI = re.compile(r"synthetic:(\d{1,5})x(\d{1,5})(?::([a-z0-9]+))?(?:@(\d{1,6}(?:\.\d{1,6})?))?\Z")
_RING = 8  # frames of the formats that cannot be cut out of one wide picture


def open_synthetic(uri: str, request: Request) -> FrameSource:
    """Endless frames: as fast as they are asked for, or live at a rate.

    Args:
        uri: "synthetic:WIDTHxHEIGHT[:FORMAT][@FPS]"; FORMAT is "bgr" unless it is said.

    Raises:
        UsageError: the uri is malformed.
        DependencyError: the format needs OpenCV, which is absent.
    """
    match = _URI.match(uri)
    if not match:
        raise UsageError(
            "{!r} is no synthetic source".format(uri),
            "Write synthetic:640x480, synthetic:640x480@30 or synthetic:640x480:i420@30.",
        )
    width, height, color = int(match.group(1)), int(match.group(2)), match.group(3) or "bgr"
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise UsageError("{!r}: sides may be 1 to {} pixels long".format(uri, MAX_SIDE))
    if color not in FORMATS:
        raise UsageError(
            "{!r}: {!r} is no pixel format".format(uri, color), "Formats are {}.".format(", ".join(FORMATS))
        )
    if color in ("i420", "nv12") and (width % 2 or height % 2):
        raise UsageError("{!r}: {} has even sides only".format(uri, color), "Round them up.")
    clip = Bars(width, height, color)
    if match.group(4) is None:
        return InOrder(clip)
    clip.rate = float(match.group(4))
    if not clip.rate:
        raise UsageError("{!r}: a rate must be above 0".format(uri), "Write synthetic:640x480@30.")
    return Paced(clip)


class Bars(Clip):
    """Bars that move one column a frame; i420, nv12 and jpeg take eight steps for the whole width.

    Nothing is drawn or copied for a frame: its pixels are a read-only view of what was drawn at the start.
    """

    def __init__(self, width: int, height: int, color: str) -> None:
        self._color = color
        self._width = width
        wide = _draw(width, height)
        wide.flags.writeable = False  # so are all views of it
        if color in ("bgr", "rgb"):
            self._wide = wide
        elif color == "gray":
            self._wide = wide[..., 2]
        self._ring: list[np.ndarray] = []
        if color in ("i420", "nv12", "jpeg"):
            for step in range(_RING):
                shift = step * width // _RING
                pixels = _converted(wide[:, shift : shift + width], color)
                pixels.flags.writeable = False
                self._ring.append(pixels)

    def load(self, index: int) -> Frame | None:
        if self._ring:
            pixels = self._ring[index % _RING]
        else:
            shift = index % self._width
            pixels = self._wide[:, shift : shift + self._width]
        return Frame(pixels, self._color, index, time.monotonic_ns())


def _draw(width: int, height: int) -> np.ndarray:
    """Two pictures side by side, uint8 [height, 2 * width, 3]: every frame is a part of it."""
    bars = np.empty((height, 2 * width, 3), np.uint8)
    x = np.arange(2 * width)
    bars[..., 0] = x * 255 // max(1, 2 * width - 1)
    bars[..., 1] = (np.arange(height) * 255 // height)[:, None]
    bars[..., 2] = (x // 16 % 2) * 255
    return bars


def _converted(bgr: np.ndarray, color: str) -> np.ndarray:
    cv2 = opencv.load("synthetic frames of {}".format(color))
    if color == "jpeg":
        return cv2.imencode(".jpg", bgr)[1].reshape(-1)
    planes = cv2.cvtColor(bgr, cv2.COLOR_BGR2YUV_I420)
    if color == "nv12":
        height, width = bgr.shape[:2]
        chroma = planes[height:].reshape(2, -1)
        planes[height:] = chroma.T.reshape(-1, width)
    return planes

"""Frames that cannot be what the camera saw: cut off, misshapen, or black."""

from __future__ import annotations

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.pixels import jpeg_size

__all__ = ["MAX_PIXELS", "BlackWatch", "damage", "is_black", "is_whole_jpeg", "without_padding"]

MAX_PIXELS = 1 << 26  # of one frame: 8192 x 8192; more is a damaged header, or an attack on the memory
_BLACK = 20  # video black is 16, and sensors have noise


def damage(pixels: np.ndarray, color: str) -> str:
    """What is wrong with a frame, in words; "" when nothing is."""
    if pixels.dtype != np.uint8 or pixels.size == 0:
        return "an empty frame" if pixels.size == 0 else "a frame of {}".format(pixels.dtype)
    if color == "jpeg":
        return _jpeg_damage(pixels)
    colored = color in ("bgr", "rgb")
    good = pixels.ndim == (3 if colored else 2) and (not colored or pixels.shape[2] == 3)
    if good and color in ("i420", "nv12"):
        good = pixels.shape[0] % 3 == 0 and pixels.shape[1] % 2 == 0  # chroma: half the rows and columns
    if good and pixels.shape[0] * pixels.shape[1] > MAX_PIXELS * 3 // 2:
        return "a frame of {} pixels".format(pixels.shape[0] * pixels.shape[1])
    return "" if good else "a torn frame of shape {}".format(list(pixels.shape))


def _jpeg_damage(data: np.ndarray) -> str:
    if data.ndim != 1 or not is_whole_jpeg(data):
        return "a torn JPEG of {} bytes".format(data.size)
    try:
        width, height = jpeg_size(data)
    except FrameError as error:
        return str(error)
    return "" if width * height <= MAX_PIXELS else "a JPEG of {}x{} pixels".format(width, height)


def is_whole_jpeg(data: np.ndarray) -> bool:
    """Whether bytes begin and end as a JPEG does (ITU-T T.81, table B.1: SOI and EOI)."""
    ends = (0xFF, 0xD8, 0xFF, 0xD9)
    return len(data) > 4 and (data[0], data[1], data[-2], data[-1]) == ends


def without_padding(data: np.ndarray) -> np.ndarray:
    """Bytes without the zeros behind them: drivers and writers of .avi fill up buffers with them."""
    if len(data) and data[-1]:
        return data
    tail = data[-16:].tobytes().rstrip(b"\0")
    if tail:
        return data[: len(data) - min(16, len(data)) + len(tail)]
    return data[: len(data.tobytes().rstrip(b"\0"))]


def is_black(pixels: np.ndarray, color: str) -> bool:
    """Whether a frame that is not damaged shows nothing: a lens cap, or a dead sensor.  Looks at some pixels."""
    if color == "jpeg":
        cv2 = opencv.load("decoding frames")
        small = cv2.imdecode(pixels, cv2.IMREAD_REDUCED_GRAYSCALE_8)
        return small is not None and int(small.max()) <= _BLACK
    if color in ("i420", "nv12"):
        pixels = pixels[: pixels.shape[0] * 2 // 3]
    return int(pixels[::8, ::8].max()) <= _BLACK


class BlackWatch:
    """Notices when a camera has shown nothing for some time, and when it sees again.

    Args:
        after_s: how long it must be black to be worth a word.
        every_s: how often a frame is looked at.
    """

    def __init__(self, after_s: float = 5.0, every_s: float = 1.0) -> None:
        self._after_ns, self._every_ns = int(after_s * 1e9), int(every_s * 1e9)
        self._next_ns = self._light_ns = 0
        self._black = False

    def look(self, pixels: np.ndarray, color: str, now_ns: int) -> str:
        """ "black" or "light" when that begins, "" otherwise."""
        if now_ns < self._next_ns:
            return ""
        self._next_ns = now_ns + self._every_ns
        if not is_black(pixels, color):
            was, self._black, self._light_ns = self._black, False, now_ns
            return "light" if was else ""
        self._light_ns = self._light_ns or now_ns
        if self._black or now_ns - self._light_ns < self._after_ns:
            return ""
        self._black = True
        return "black"

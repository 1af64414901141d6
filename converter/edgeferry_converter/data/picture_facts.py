"""What the linter measures of one picture: a hash of its looks, a thumbnail, and what its file says of itself."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgeferry_runtime import opencv

__all__ = ["THUMB", "FileFacts", "PictureFacts", "exif_orientation", "file_facts", "picture_facts"]

THUMB = 16  # side of the thumbnails that near-duplicates are compared by
# A picture says nothing when its brightness, averaged over a 32nd of each side, hardly varies, or is black.
SMALL = 32
FLAT_DEVIATION = 2.0
BLACK_LEVEL = 16.0

_JPEG = b"\xff\xd8"
_ORIENTATION = 0x0112
_SHORT = 3
_MAX_ENTRIES = 512  # of an EXIF directory; real ones have some dozens


@dataclass(frozen=True)
class PictureFacts:
    """Of decoded pixels.

    Attributes:
        width, height: in pixels.
        black, flat: whether it is dark all over; whether it has one level all over (black ones do).
        gray: whether all three channels are equal.
        dhash: 64 bits, one for each pair of neighbours in a 9x8 picture that grows brighter to the right.
        thumb: float32 [16 * 16], brightness without its mean.
    """

    width: int
    height: int
    black: bool
    flat: bool
    gray: bool
    dhash: int
    thumb: np.ndarray


@dataclass(frozen=True)
class FileFacts:
    """Of a picture file: EXIF orientation (1 = as stored), an alpha channel, more than 8 bits a channel."""

    orientation: int = 1
    alpha: bool = False
    deep: bool = False


def picture_facts(pixels: np.ndarray) -> PictureFacts:
    """Measure a frame, uint8 [h, w, 3] BGR."""
    cv2 = opencv.load("linting images")
    luma = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    height, width = luma.shape
    size = (min(SMALL, width), min(SMALL, height))
    small = cv2.resize(luma, size, interpolation=cv2.INTER_AREA)  # the mean takes a sensor's noise away
    bright = float(np.percentile(small, 99))
    colors = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).reshape(-1, 3)
    ladder = cv2.resize(luma, (9, 8), interpolation=cv2.INTER_AREA)
    bits = np.packbits(ladder[:, 1:] > ladder[:, :-1])
    thumb = cv2.resize(luma, (THUMB, THUMB), interpolation=cv2.INTER_AREA).astype(np.float32).reshape(-1)
    return PictureFacts(
        width,
        height,
        bright < BLACK_LEVEL,
        bright < BLACK_LEVEL or float(colors.std(axis=0).max()) < FLAT_DEVIATION,
        _is_gray(pixels),
        int.from_bytes(bits.tobytes(), "big"),
        thumb - thumb.mean(),
    )


def file_facts(path: Path, data: bytes) -> FileFacts:
    """Measure a picture file from its bytes; what cannot be read is taken for ordinary."""
    if data.startswith(_JPEG):
        return FileFacts(orientation=exif_orientation(data))
    cv2 = opencv.load("linting images")
    try:
        stored: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        stored = None
    if stored is None:
        return FileFacts()
    alpha = stored.ndim == 3 and stored.shape[2] == 4
    return FileFacts(alpha=alpha, deep=stored.dtype.itemsize > 1)


def exif_orientation(data: bytes) -> int:
    """The orientation tag of a JPEG, 1 to 8; 1 where there is none or it is broken."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker in (0xDA, 0xD9):  # pixels begin, or the end: EXIF comes before
            break
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at + 4 : at + 2 + length]
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            return _tiff_orientation(segment[6:])
        at += 2 + max(length, 2)
    return 1


def _tiff_orientation(data: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return 1
    (begin,) = struct.unpack(f"{order}L", data[4:8])
    if begin + 2 > len(data):
        return 1
    (count,) = struct.unpack(f"{order}H", data[begin : begin + 2])
    for i in range(min(count, _MAX_ENTRIES)):
        entry = data[begin + 2 + 12 * i : begin + 14 + 12 * i]
        if len(entry) < 12:
            break
        tag, kind = struct.unpack(f"{order}HH", entry[:4])
        if tag == _ORIENTATION and kind == _SHORT:
            (value,) = struct.unpack(f"{order}H", entry[8:10])
            return value if 1 <= value <= 8 else 1
    return 1


def _is_gray(pixels: np.ndarray) -> bool:
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())

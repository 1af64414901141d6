"""The resize kernels in numpy: the definition OpenCV is held to, and what runs where OpenCV is absent.

``bilinear`` is OpenCV's INTER_LINEAR_EXACT: weights in 8 fractional bits, a horizontal pass kept at 16 bits,
a vertical pass kept at 32, rounded once.  Positions are computed in double precision and weights rounded half
to even, as its software floating point does, so every architecture gives the same bytes.
Source: opencv/opencv modules/imgproc/src/resize.cpp (resize_bitExact) and fixedpoint.inl.hpp.
"""

from __future__ import annotations

import numpy as np

__all__ = ["resize"]

_ONE = 256  # 1.0 with 8 fractional bits


def resize(pixels: np.ndarray, width: int, height: int, kernel: str) -> np.ndarray:
    """Resize a picture.

    Args:
        pixels: uint8 [h, w] or [h, w, channels].
        width, height: of the result, in pixels.
        kernel: "bilinear", "nearest", or "bilinear-fast", which here is the exact one (OpenCV's fast kernel is
            within one level of it).

    Returns:
        uint8 [height, width] or [height, width, channels].
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    if kernel == "nearest":
        rows = _nearest(pixels.shape[0], height)
        columns = _nearest(pixels.shape[1], width)
        return pixels[rows[:, None], columns]
    return _bilinear(pixels, width, height)


def _nearest(source: int, target: int) -> np.ndarray:
    step = 1.0 / (target / source)
    positions = np.floor(np.arange(target, dtype=np.float64) * step).astype(np.intp)
    return np.minimum(positions, source - 1)


def _bilinear(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    channels = (1,) * (pixels.ndim - 2)
    left, right, weight_x = _weights(pixels.shape[1], width)
    upper, lower, weight_y = _weights(pixels.shape[0], height)
    # Only the rows that the vertical pass reads are worth a horizontal one.
    rows, where = np.unique(np.concatenate([upper, lower]), return_inverse=True)
    picture = pixels[rows].astype(np.uint16)
    weight = weight_x.reshape((1, -1, *channels))
    wide = picture[:, left] * (_ONE - weight) + picture[:, right] * weight  # at most 255 * 256: 16 bits
    wide = wide.astype(np.uint32)
    weight = weight_y.astype(np.uint32).reshape((-1, 1, *channels))
    where = where.reshape(-1)
    tall = wide[where[:height]] * (_ONE - weight) + wide[where[height:]] * weight
    return ((tall + (1 << 15)) >> 16).astype(np.uint8)


def _weights(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each target position its two source positions and the second one's weight, of ``_ONE``."""
    step = 1.0 / (target / source)
    position = step * (np.arange(target, dtype=np.float64) + 0.5) - 0.5
    first = np.floor(position)
    weight = np.rint((position - first) * _ONE).astype(np.uint16)
    first = first.astype(np.intp)
    outside = (first < 0) | (first >= source - 1)
    weight[outside] = 0
    first = np.clip(first, 0, source - 1)
    return first, np.minimum(first + 1, source - 1), weight

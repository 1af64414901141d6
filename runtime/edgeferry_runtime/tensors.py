"""Numbers in and out of a tensor: affine quantisation, per tensor and per axis."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.manifest import Quantization, TensorSpec

__all__ = ["UNSIGNED", "Stored", "dequantize", "level_values", "quantize", "resolution"]

# How the bits of a level are read as an index, by bytes a level.
UNSIGNED: dict[int, Any] = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16)}


class Stored(NamedTuple):
    """A tensor's numbers as the interpreter holds them, and what they stand for.

    Attributes:
        array: of the spec's dtype, batch 1 first; may be a view of the interpreter's memory.
        spec: the tensor.
    """

    array: np.ndarray
    spec: TensorSpec

    def real(self) -> np.ndarray:
        """The numbers it stands for, float32, as :func:`dequantize` has them."""
        return dequantize(self.array, self.spec)


def quantize(real: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Real numbers as the tensor stores them: ``clip(round(real / scale) + zero_point)``.

    Computed in double precision and rounded half to even, so that every machine gets the same integers.

    Args:
        real: float array of the tensor's shape (the batch dimension may differ).
        spec: the tensor; without quantisation the numbers are only cast.

    Raises:
        FrameError: real holds NaN, which no integer stands for.
    """
    dtype = np.dtype(spec.dtype)
    if spec.quantization is None:
        return np.asarray(real).astype(dtype)
    if np.isnan(real).any():
        raise FrameError("NaN cannot be quantised for tensor {!r}".format(spec.name))
    scales, zero_points = _broadcast(spec.quantization, np.ndim(real))
    levels = np.rint(np.asarray(real, np.float64) / scales) + zero_points
    limits = np.iinfo(dtype)
    return np.clip(levels, limits.min, limits.max).astype(dtype)


def dequantize(stored: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Stored numbers as real ones: ``scale * (stored - zero_point)``, float32."""
    if spec.quantization is None:
        return np.asarray(stored, np.float32)
    scales, zero_points = _broadcast(spec.quantization, np.ndim(stored))
    return ((np.asarray(stored, np.float64) - zero_points) * scales).astype(np.float32)


def level_values(spec: TensorSpec) -> np.ndarray | None:
    """What every level of an 8 or 16 bit tensor stands for, the numbers of :func:`dequantize`.

    Returns:
        float32 [256 or 65536], indexed by the level's bits read as unsigned: ``values[stored.view("u1")]``
        dequantises.  A higher level stands for a greater number, so that levels can be compared in its place.
        None where that does not hold: for plain numbers, for scales that differ along an axis, and where float32
        is too short to tell two levels apart.
    """
    dtype = np.dtype(spec.dtype)
    quantization = spec.quantization
    if quantization is None or dtype.kind not in "iu" or dtype.itemsize not in UNSIGNED:
        return None
    if len(set(zip(quantization.scales, quantization.zero_points))) != 1:
        return None
    limits = np.iinfo(dtype)
    levels = np.arange(limits.min, limits.max + 1)
    with np.errstate(over="ignore"):  # refused below
        real = ((levels - float(quantization.zero_points[0])) * quantization.scales[0]).astype(np.float32)
    if not (np.isfinite(real).all() and (real[1:] > real[:-1]).all()):
        return None
    values = np.empty_like(real)
    values[levels.astype(dtype).view(UNSIGNED[dtype.itemsize])] = real
    return values


def resolution(spec: TensorSpec) -> float:
    """The coarsest step between two neighbouring real values of the tensor, 0 for float tensors."""
    return max(spec.quantization.scales) if spec.quantization else 0.0


def _broadcast(quantization: Quantization, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    shape = [1] * dimensions
    if quantization.axis is not None:
        shape[quantization.axis] = -1
    scales = np.array(quantization.scales, np.float64)
    zero_points = np.array(quantization.zero_points, np.float64)
    return scales.reshape(shape), zero_points.reshape(shape)

"""Numbers in and out of a tensor: affine quantisation, per tensor and per axis."""

from __future__ import annotations

import numpy as np

from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.manifest import Quantization, TensorSpec

__all__ = ["dequantize", "quantize", "resolution"]


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

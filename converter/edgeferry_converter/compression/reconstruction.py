"""After channels went: kernels fitted anew so that each layer computes what it did before, by least squares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeferry_converter.compression.channel_groups import IN, OUT, Tracing, Weight
from edgeferry_converter.compression.macs import nodes

__all__ = ["fitted", "reconstruct"]

RIDGE = 1e-3  # of the mean square of the inputs: keeps the fit near the kernel where the data says nothing
POSITIONS = 32  # of each image, at random: neighbours tell the same
FITTED = ("Conv2D", "Dense")


def reconstruct(tracing: Tracing, keeps: Mapping[str, Any], smaller: Any, images: np.ndarray) -> list[str]:
    """Change the kernels that read removed channels so that their outputs stay as near as they can.

    Layer by layer from the input, each on what the layers before it now compute, as in He et al. 2017
    (arXiv:1707.06168, section 3.2): no gradient, no label.

    Args:
        tracing: of the model before.
        keeps: what ``rebuild`` was given.
        smaller: what ``rebuild`` gave; its kernels and biases are changed in place.
        images: float32 [n, ...], what the model takes.

    Returns:
        names of the layers that were fitted; none where the model has several inputs.
    """
    if len(tracing.model.inputs) != 1:
        return []
    alive = tracing.alive(keeps)
    kernels = {weight.layer: weight for weight in tracing.weights if weight.name == "kernel"}
    found = []
    for node in nodes(tracing.model):
        name = node.operation.name
        if name in kernels and _is_cut(node.operation, kernels[name], alive):
            before, after = node.operation, smaller.get_layer(name)
            _fit(before, after, _kept(kernels[name], alive), _read(tracing.model, before, images),
                 _read(smaller, after, images))  # fmt: skip
            found.append(name)
    return found


def fitted(
    inputs: np.ndarray, wanted: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The kernel [k, m] and bias [m] that best give ``wanted`` [n, m] of ``inputs`` [n, k].

    Ridge regression towards ``kernel``; without a bias the fit has none either.
    """
    inputs, wanted = inputs.astype(np.float64), wanted.astype(np.float64)
    mean, target = (inputs.mean(axis=0), wanted.mean(axis=0)) if bias is not None else (0.0, 0.0)
    centred = inputs - mean
    gram = centred.T @ centred
    gram[np.diag_indices_from(gram)] += RIDGE * max(np.trace(gram) / len(gram), 1e-12)
    missing = wanted - target - centred @ kernel
    found = kernel + np.linalg.solve(gram, centred.T @ missing)
    return found, None if bias is None else target - mean @ found


def _is_cut(layer: Any, weight: Weight, alive: np.ndarray) -> bool:
    if type(layer).__name__ not in FITTED or getattr(layer, "groups", 1) != 1:
        return False
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return False
    return any(axis.role == IN and not alive[axis.slots].all() for axis in weight.axes)


def _kept(weight: Weight, alive: np.ndarray) -> np.ndarray:
    """Which of the layer's outputs are left."""
    made = [alive[axis.slots] for axis in weight.axes if axis.role == OUT]
    return np.asarray(made[0]) if made else np.ones(weight.shape[-1], bool)


def _read(model: Any, layer: Any, images: np.ndarray) -> np.ndarray:
    """What the layer takes."""
    import keras

    part = keras.Model(model.inputs[0], layer.input)
    parts = [np.asarray(part(images[i : i + 64], training=False)) for i in range(0, len(images), 64)]
    return np.concatenate(parts)


def _fit(before: Any, after: Any, kept: np.ndarray, old: np.ndarray, new: np.ndarray) -> None:
    old_rows, new_rows = _windows(before, old), _windows(after, new)
    kernel = np.asarray(before.kernel)
    wanted = old_rows @ kernel.reshape(-1, kernel.shape[-1])
    if before.use_bias:
        wanted = wanted + np.asarray(before.bias)
    smaller = np.asarray(after.kernel)
    bias = np.asarray(after.bias) if after.use_bias else None
    found, shift = fitted(new_rows, wanted[:, kept], smaller.reshape(-1, smaller.shape[-1]), bias)
    after.kernel.assign(found.reshape(smaller.shape))
    if shift is not None:
        after.bias.assign(shift)


def _windows(layer: Any, inputs: np.ndarray) -> np.ndarray:
    """What the kernel is laid upon, [rows, elements of a filter], at the same random places for the same size."""
    if type(layer).__name__ == "Dense":
        return inputs.reshape(-1, inputs.shape[-1])
    sizes = [(size - 1) * step + 1 for size, step in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
    counts, pads = [], [(0, 0)]
    for length, size, stride in zip(inputs.shape[1:3], sizes, layer.strides, strict=True):
        same = layer.padding == "same"
        counts.append(-(-length // stride) if same else (length - size) // stride + 1)
        lacking = max((counts[-1] - 1) * stride + size - length, 0) if same else 0
        pads.append((lacking // 2, lacking - lacking // 2))
    padded = np.pad(inputs, [*pads, (0, 0)])
    random = np.random.default_rng(0)
    # The same places in every image would always see the same part of it.
    top, left = (
        random.integers(0, count, (len(inputs), min(POSITIONS, counts[0] * counts[1]))) * stride
        for count, stride in zip(counts, layer.strides, strict=True)
    )
    rows = top[..., None, None] + (np.arange(layer.kernel_size[0]) * layer.dilation_rate[0])[:, None]
    columns = left[..., None, None] + np.arange(layer.kernel_size[1]) * layer.dilation_rate[1]
    found = padded[np.arange(len(inputs))[:, None, None, None], rows, columns]
    return found.reshape(-1, int(np.prod(layer.kernel_size)) * inputs.shape[-1])

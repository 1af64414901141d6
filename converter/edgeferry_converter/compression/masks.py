"""Masks of weight arrays: which weights stay, by magnitude, alone or in blocks that a kernel could use.

Blocks lie along the input axis, the one that a matrix product sums over: TensorFlow Lite's sparse FULLY_CONNECTED
kernel reads blocks of 1 output x 4 inputs, and 2:4 hardware chooses two of four consecutive inputs (Mishra et al.
2021, "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from edgeferry_converter.errors import OptionError

__all__ = ["STRUCTURES", "block_mask", "common_shares", "magnitude_mask", "two_of_four_mask"]

BLOCK = 4


def magnitude_mask(weights: np.ndarray, sparsity: float) -> np.ndarray:
    """Keep the largest weights.

    Args:
        weights: numbers of any shape.
        sparsity: share of weights to drop, 0 to 1; the number dropped is that share rounded to a whole one.

    Returns:
        bool of the same shape, True where a weight stays.  Of equal magnitudes the first ones go first.
    """
    return _keep_largest(np.abs(weights), sparsity)


def block_mask(weights: np.ndarray, sparsity: float, axis: int) -> np.ndarray:
    """Keep the blocks of 1x4 whose magnitudes sum up to most.

    Args:
        weights: numbers; the length of ``axis`` is a multiple of 4.
        sparsity: share of blocks to drop, rounded to a whole number of them.
        axis: the input axis.

    Raises:
        OptionError: the axis is no multiple of 4.
    """
    keep = _keep_largest(_block_sums(weights, axis), sparsity)
    return _unblocked(np.repeat(keep[..., None], BLOCK, axis=-1), axis)


def two_of_four_mask(weights: np.ndarray, sparsity: float, axis: int) -> np.ndarray:
    """Keep the two largest of every four consecutive inputs; below 50 % the groups that lose least go first.

    Args:
        weights: numbers; the length of ``axis`` is a multiple of 4.
        sparsity: 0 to 0.5; at 0.5 every group of four holds two zeros at least.
        axis: the input axis.

    Raises:
        OptionError: the axis is no multiple of 4, or the sparsity is above 0.5.
    """
    if sparsity > 0.5:
        raise OptionError(f"2:4 sparsity is 50 %, not {sparsity:.0%}", "Give 0.5, or take another structure.")
    magnitudes = np.abs(_blocks(weights, axis))
    order = np.argsort(magnitudes, axis=-1, kind="stable")
    pair = np.ones(magnitudes.shape, bool)
    np.put_along_axis(pair, order[..., :2], False, axis=-1)
    dense = _keep_largest(np.where(pair, 0, magnitudes).sum(axis=-1), 2 * sparsity)
    return _unblocked(pair | dense[..., None], axis)


# Name in recipes -> mask of (weights, sparsity, input axis); "unstructured" needs no axis.
STRUCTURES: Mapping[str, Callable[[np.ndarray, float, int], np.ndarray]] = MappingProxyType(
    {
        "unstructured": lambda weights, sparsity, axis: magnitude_mask(weights, sparsity),
        "1x4": block_mask,
        "2:4": two_of_four_mask,
    }
)


def common_shares(
    weights: Sequence[np.ndarray], axes: Sequence[int], structure: str, sparsity: float
) -> list[float]:
    """How sparse each of several arrays gets when their weights, or blocks, are ranked together.

    Args:
        weights: the arrays.
        axes: the input axis of each.
        structure: "unstructured" or "1x4"; 2:4 leaves no choice, and every array gets the same.
        sparsity: of all of them together.

    Returns:
        The sparsity for each array's own mask.
    """
    if structure == "2:4":
        return [sparsity] * len(weights)
    pairs = zip(weights, axes, strict=True)
    scores = [np.abs(w) if structure == "unstructured" else _block_sums(w, axis) for w, axis in pairs]
    keep = _keep_largest(np.concatenate([score.reshape(-1) for score in scores]), sparsity)
    parts = np.split(keep, np.cumsum([score.size for score in scores])[:-1])
    return [1 - np.count_nonzero(part) / part.size for part in parts]


def _block_sums(weights: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(np.abs(_blocks(weights, axis)).sum(axis=-1))


def _keep_largest(magnitudes: np.ndarray, sparsity: float) -> np.ndarray:
    flat = magnitudes.reshape(-1)
    drop = round(sparsity * flat.size)
    if drop == 0:
        return np.ones(magnitudes.shape, bool)
    threshold = np.partition(flat, drop - 1)[drop - 1]
    keep = flat > threshold
    tied = np.flatnonzero(flat == threshold)
    keep[tied[drop - np.count_nonzero(flat < threshold) :]] = True
    return keep.reshape(magnitudes.shape)


def _blocks(weights: np.ndarray, axis: int) -> np.ndarray:
    """[..., inputs] -> [..., inputs / 4, 4], the input axis last."""
    last = np.moveaxis(weights, axis, -1)
    if last.shape[-1] % BLOCK:
        raise OptionError(
            f"weights of shape {list(weights.shape)} have {last.shape[-1]} inputs, no multiple of {BLOCK}",
            "Exclude the layer, or prune it unstructured.",
        )
    return last.reshape(*last.shape[:-1], -1, BLOCK)


def _unblocked(mask: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(mask.reshape(*mask.shape[:-2], -1), -1, axis)

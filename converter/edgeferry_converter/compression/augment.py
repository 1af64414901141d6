"""Augmentation of image batches: mirrored and shifted, after the preprocessing, the same for the same seed."""

from __future__ import annotations

import numpy as np

__all__ = ["AUGMENTATIONS", "augmented"]

AUGMENTATIONS = ("none", "shift", "flip-shift")
SHIFT = 4  # pixels at most, either way; the customary one for CIFAR (He et al. 2015, arXiv:1512.03385, 4.2)


def augmented(batch: np.ndarray, kind: str, random: np.random.Generator) -> np.ndarray:
    """A batch in which every image is moved, and every other one mirrored left to right.

    What a shift uncovers is filled by reflection at the edge: that needs no pad value, which would have to differ
    with every preprocessing.

    Args:
        batch: [n, height, width, channels], any type.
        kind: one of ``AUGMENTATIONS``; "shift" for what has a left and a right, text for example.
        random: draws the shifts and the mirroring.

    Returns:
        The same shape and type; the batch itself for "none".
    """
    if kind == "none":
        return batch
    count, height, width = batch.shape[:3]
    reach = min(SHIFT, height - 1, width - 1)
    padded = np.pad(batch, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")
    top, left = random.integers(0, 2 * reach + 1, (2, count, 1))
    rows, columns = top + np.arange(height), left + np.arange(width)
    mirrored = random.random(count) < (0.5 if kind == "flip-shift" else 0)
    columns[mirrored] = columns[mirrored, ::-1]
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]

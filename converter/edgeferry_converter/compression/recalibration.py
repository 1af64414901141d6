"""BatchNormalization statistics recomputed over data, without labels and without gradients.

Whatever changes weights (pruning, quantisation) shifts the activations that the stored mean and variance describe.
The moments of every batch are collected and pooled, not averaged exponentially ("PreciseBN" in Wu & Johnson 2021,
"Rethinking Batch in BatchNorm", arXiv:2105.07576).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgeferry_converter.compression.checkpoint import TrainingError, values
from edgeferry_converter.compression.training import Data

__all__ = ["recalibrate"]

BATCH = 128
SAMPLES = 4096


def recalibrate(
    model: Any, data: Data, batch_size: int = BATCH, samples: int = SAMPLES, seed: int = 0
) -> list[str]:
    """Give every BatchNormalization the mean and variance that its input has on the data.

    A batch is normalised by its own moments on its way through, as in training; dropout is off.  The statistics of
    the first such layer are exactly the data's, those of deeper ones differ a little with the batch size.

    Args:
        model: a keras.Model, changed in place; no trainable weight changes.
        data: labels are not looked at, and nothing is augmented.
        batch_size: the larger, the nearer deeper layers come to the data's own moments.
        samples: how many at most.
        seed: which samples.

    Returns:
        Names of the layers; none where the model has no BatchNormalization.

    Raises:
        TrainingError: a layer's input is NaN or infinite.
    """
    import keras
    import tensorflow as tf

    layers = [one for one in _layers(model) if isinstance(one, keras.layers.BatchNormalization)]
    if not layers:
        return []
    moments = [_Moments() for _ in layers]
    before = [tuple(values([layer.moving_mean, layer.moving_variance])) for layer in layers]
    batches = data.batches(batch_size, seed, "none")
    with _collecting(model, layers):
        forward = tf.function(lambda x: model(x, training=True), autograph=False, reduce_retracing=True)
        for i in range(min(len(batches), -(-samples // batch_size))):
            x = batches[i][0]
            forward(x)
            count = len(x[0] if isinstance(x, tuple) else x)
            for layer, sums in zip(layers, moments, strict=True):
                sums.add(np.asarray(layer.moving_mean), np.asarray(layer.moving_variance), count)
    found = [sums.result() for sums in moments]
    bad = [layer.name for layer, pair in zip(layers, found, strict=True) if not np.isfinite(pair).all()]
    for layer, (mean, variance) in zip(layers, before if bad else found, strict=True):
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)
    if bad:
        raise TrainingError(
            f"the input of {', '.join(bad[:3])} is NaN or infinite on {data.description}; nothing was changed",
            "Look at the weights and the data.",
        )
    return [layer.name for layer in layers]


class _Moments:
    """Mean and variance of several batches together, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.first: Any = 0.0
        self.second: Any = 0.0

    def add(self, mean: np.ndarray, variance: np.ndarray, count: int) -> None:
        mean, variance = mean.astype(np.float64), variance.astype(np.float64)
        self.count += count
        self.first = self.first + count * mean
        self.second = self.second + count * (variance + mean**2)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        mean = self.first / self.count
        return mean, np.maximum(self.second / self.count - mean**2, 0)


@contextmanager
def _collecting(model: Any, layers: list[Any]) -> Iterator[None]:
    """In training mode the moving statistics are then the last batch's own, and nothing is dropped at random."""
    changes = [
        (layer, name, value) for layer in layers for name, value in (("momentum", 0.0), ("trainable", True))
    ]
    changes += [
        (layer, name, 0.0)
        for layer in _layers(model)
        for name in ("rate", "stddev")  # of dropout, of noise
        if isinstance(getattr(layer, name, None), float)
    ]
    kept = [(layer, name, getattr(layer, name)) for layer, name, _ in changes]
    try:
        for layer, name, value in changes:
            setattr(layer, name, value)
        yield
    finally:
        for layer, name, value in kept:
            setattr(layer, name, value)


def _layers(model: Any) -> list[Any]:
    # Keras has no public way to layers inside layers.
    return list(model._flatten_layers(include_self=False, recursive=True))

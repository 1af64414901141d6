"""How much each channel of a group matters: by its weights, by BatchNorm's scale, or by the loss on data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from edgeferry_converter.compression.channel_groups import IN, OUT, Tracing
from edgeferry_converter.compression.macs import KERNELS
from edgeferry_converter.errors import DataError

__all__ = ["IMPORTANCES", "batch_norm_scale", "l1", "taylor"]

IMPORTANCES = ("taylor", "l1", "bn")

Importances = dict[str, np.ndarray]


def l1(tracing: Tracing) -> Importances:
    """Sum of the absolute kernel weights that make a channel (Li et al. 2017, arXiv:1608.08710).

    Coupled channels add up over the layers that make them; groups are made comparable as in ``_comparable``.

    Returns:
        group name to float64 [size].
    """
    return _comparable(_by_group(tracing, _l1_by_class(tracing)))


def batch_norm_scale(tracing: Tracing) -> Importances:
    """|gamma| of the BatchNormalization on a channel (Liu et al. 2017, arXiv:1708.06519).

    A group without BatchNormalization, or with one that has no scale, is ranked by ``l1``; groups are made
    comparable as in ``_comparable``.

    Returns:
        group name to float64 [size].
    """
    scores = np.zeros(_classes(tracing))
    for weight in tracing.weights:
        if weight.name == "gamma":
            gamma = np.abs(np.asarray(_variable(tracing, weight.layer, weight.index), np.float64))
            _accumulate(scores, weight.axes[0].slots, gamma)
    fallback = _l1_by_class(tracing)
    for group in tracing.groups:
        if not scores[group.classes].any():
            scores[group.classes] = fallback[group.classes]
    return _comparable(_by_group(tracing, scores))


def taylor(tracing: Tracing, batches: Iterable[Any], loss: Callable[[Any, Any], Any] | None = None) -> Importances:
    """The squared change of the loss, to first order, when a channel is removed, averaged over the batches.

    Removing a channel zeroes the slices of the kernels that read it, so the first-order change is the sum of
    gradient times weight over exactly these slices: the gate of Molchanov et al. 2019 (arXiv:1906.10771, eq. 8)
    behind BatchNormalization and activation, over all readers of a coupled channel at once.  The model runs in
    inference mode.  Small batches tell more: gradients of different images cancel before they are squared.

    Args:
        batches: (images, labels) as ``loss`` takes them; without a loss images alone will do.
        loss: of (labels, predictions), a tensor of any shape; its mean is what counts.  Without one it is half the
            mean squared output: what the model's own answer loses, since the divergence between a model and itself
            has no gradient.

    Returns:
        group name to float64 [size]; comparable between groups.

    Raises:
        DataError: no batches, or the gradient is not finite.
    """
    readers = [
        (axis, weight)
        for weight in tracing.weights
        for axis in weight.axes
        if axis.role == IN and weight.name in KERNELS
    ]
    variables = [_variable(tracing, weight.layer, weight.index).value for _, weight in readers]
    changes = _changes(tracing.model, variables, [axis.axis for axis, _ in readers], loss)
    scores, count = np.zeros(_classes(tracing)), 0
    for batch in batches:
        images, labels = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)
        if labels is None and loss is not None:
            raise DataError(
                "the loss needs labels, and the data has none",
                "Give labelled images, or no loss: the channels are then ranked by the model's own output.",
            )
        by_class = np.zeros_like(scores)
        for (axis, _), change in zip(readers, changes(images, labels), strict=True):
            _accumulate(by_class, axis.slots, np.asarray(change, np.float64))
        scores += by_class**2
        count += 1
    if not count or not np.isfinite(scores).all():
        raise DataError(
            "no image to rank the channels by" if not count else "the gradient of the loss is not a finite number",
            "Give at least one batch of images." if not count else "Check the data and the loss for NaN.",
        )
    return _by_group(tracing, scores / count)


def _changes(model: Any, variables: list[Any], axes: list[int], loss: Any) -> Callable[[Any, Any], list[Any]]:
    """A function from a batch to gradient times weight, summed over all but the axis of the channels."""
    import tensorflow as tf

    def changes(images: Any, labels: Any) -> list[Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            value = _loss(model(images, training=False), labels, loss)
        products = []
        for variable, gradient, axis in zip(variables, tape.gradient(value, variables), axes, strict=True):
            others = [i for i in range(len(variable.shape)) if i != len(variable.shape) + axis]
            gradient = tf.zeros_like(variable) if gradient is None else gradient
            products.append(tf.reduce_sum(tf.cast(variable * gradient, tf.float32), others))
        return products

    compiled: Callable[[Any, Any], list[Any]] = tf.function(changes, reduce_retracing=True)
    return compiled


def _loss(outputs: Any, labels: Any, loss: Callable[[Any, Any], Any] | None) -> Any:
    import tensorflow as tf

    if loss is not None:
        return tf.reduce_mean(loss(labels, outputs))
    return tf.add_n([tf.reduce_mean(tf.cast(output, tf.float32) ** 2) / 2 for output in tf.nest.flatten(outputs)])


def _l1_by_class(tracing: Tracing) -> np.ndarray:
    scores = np.zeros(_classes(tracing))
    for weight in tracing.weights:
        for axis in weight.axes:
            if axis.role == OUT and weight.name in KERNELS:
                kernel = np.moveaxis(
                    np.asarray(_variable(tracing, weight.layer, weight.index), np.float64), axis.axis, 0
                )
                _accumulate(scores, axis.slots, np.abs(kernel).reshape(len(kernel), -1).sum(axis=1))
    return scores


def _accumulate(scores: np.ndarray, slots: np.ndarray, values: np.ndarray) -> None:
    free = slots >= 0
    np.add.at(scores, slots[free], values[free])


def _comparable(importances: Importances) -> Importances:
    """Squares over the sum of squares of what is at least as large (LAMP, Lee et al. 2021, arXiv:2010.07611).

    The order within a group stays.  Layers differ in scale and fan-in, which this removes; and the fewer channels
    are left, the dearer is the next one, so that no group is emptied before the others.
    """
    comparable = {}
    for name, values in importances.items():
        order = np.argsort(values, kind="stable")
        squares = values[order] ** 2
        left = np.cumsum(squares[::-1])[::-1]
        comparable[name] = np.zeros(len(values))
        comparable[name][order] = np.divide(squares, left, out=np.zeros(len(values)), where=left > 0)
    return comparable


def _classes(tracing: Tracing) -> int:
    return sum(group.size for group in tracing.groups)


def _by_group(tracing: Tracing, scores: np.ndarray) -> Importances:
    return {group.name: scores[group.classes] for group in tracing.groups}


def _variable(tracing: Tracing, layer: str, index: int) -> Any:
    return tracing.model.get_layer(layer).weights[index]

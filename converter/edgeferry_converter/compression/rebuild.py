"""A smaller model out of the channels that are kept: plain Keras layers with the names they had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeferry_converter.compression.channel_groups import Tracing
from edgeferry_converter.compression.unfolding import made_anew, remade

__all__ = ["rebuild"]


def rebuild(tracing: Tracing, keeps: Mapping[str, Sequence[int] | np.ndarray]) -> Any:
    """The traced model without the channels that are not kept.

    Its outputs are those of the traced model with the removed channels zeroed where kernels read them, which is
    after BatchNormalization and activation: a channel that is gone contributes nothing, not even its bias.

    Args:
        keeps: group name to the indices of the channels that stay; a group that is missing stays whole.

    Returns:
        a functional keras.Model with weights of its own, not compiled; Sequential and nested ones come flat.

    Raises:
        ModelError: a layer of the user's own cannot be made anew from its configuration.
        ValueError: an unknown group, or indices it does not have.
    """
    alive = tracing.alive(keeps)
    layers = {id(layer): _resized(layer, tracing, alive) for layer in tracing.model.layers}

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        return layers.get(id(operation), operation)(*args, **kwargs)

    smaller = remade(tracing.model, call)
    cuts: dict[tuple[str, int], list[tuple[int, np.ndarray]]] = {}
    for weight in tracing.weights:
        cuts[weight.layer, weight.index] = [(axis.axis, alive[axis.slots]) for axis in weight.axes]
    for layer in tracing.model.layers:
        values = [_cut(value, cuts.get((layer.name, i), [])) for i, value in enumerate(layer.get_weights())]
        smaller.get_layer(layer.name).set_weights(values)
    return smaller


def _cut(value: np.ndarray, axes: list[tuple[int, np.ndarray]]) -> np.ndarray:
    for axis, kept in axes:
        value = np.compress(kept, value, axis=axis)
    return value


def _resized(layer: Any, tracing: Tracing, alive: np.ndarray) -> Any:
    if layer.name not in tracing.sizes:
        return made_anew(layer, {})
    key, slots = tracing.sizes[layer.name]
    count = int(alive[slots].sum())
    return made_anew(layer, {key: (*layer.target_shape[:-1], count) if key == "target_shape" else count})

"""Baselines: how the usual advice runs a model on a workstation, to stand beside what was converted."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgeferry_converter.loading.source import SourceModel

__all__ = ["baselines"]


def baselines(source: SourceModel, inputs: Mapping[str, np.ndarray]) -> dict[str, Callable[[], object]]:
    """Ways of running the model on one sample, by name: ``predict`` of Keras, a SavedModel's signature.

    Args:
        source: the model; a .tflite has no baselines.
        inputs: one sample, float32 [1, ...] by name.
    """
    ways: dict[str, Callable[[], object]] = {}
    keras_model = getattr(source, "keras", None)
    if keras_model is not None:
        order = [inputs[tensor.name] for tensor in source.inputs]
        batch = order[0] if len(order) == 1 else order
        ways["Keras predict"] = lambda: keras_model.predict(batch, verbose=0)
    if source.tflite_path is None:
        ways["SavedModel signature"] = _signature(source, inputs)
    return ways


def _signature(source: SourceModel, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
    import tensorflow as tf

    with source.saved_model() as (folder, key):
        loaded = tf.saved_model.load(str(folder))
    function = loaded.signatures[key]
    tensors = {name: tf.constant(values) for name, values in inputs.items()}

    def run() -> object:
        assert loaded is not None  # noqa: S101 - the function holds its variables weakly
        return {name: value.numpy() for name, value in function(**tensors).items()}

    return run

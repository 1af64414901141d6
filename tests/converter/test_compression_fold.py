"""Folding BatchNormalization: the same outputs from fewer layers, and a reason for each that stays."""

from __future__ import annotations

import numpy as np
import pytest
from edgeferry_converter.compression.fold import fold_batch_norm, unfoldable
from edgeferry_converter.errors import ModelError
from hypothesis import given, settings
from hypothesis import strategies as st

BLOCKS = ("conv", "conv_bias", "depthwise", "depthwise2", "separable", "transpose", "residual", "bare_norm")


def spoil(model) -> None:
    """Weights and statistics no initialiser gives."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        if weight.dtype == "float32":
            low, high = (0.2, 2.0) if "variance" in weight.path else (-0.7, 0.9)
            weight.assign(random.uniform(low, high, weight.shape))


def block(keras, kind: str, x, norm):
    layers = keras.layers
    if kind == "residual":
        return layers.Add()([x, norm(layers.Conv2D(x.shape[-1], 3, padding="same", use_bias=False)(x))])
    if kind == "bare_norm":
        return norm(layers.ReLU()(x))
    layer = {
        "conv": lambda: layers.Conv2D(5, 3, use_bias=False, strides=2, padding="same"),
        "conv_bias": lambda: layers.Conv2D(4, 1),
        "depthwise": lambda: layers.DepthwiseConv2D(3, padding="same", use_bias=False),
        "depthwise2": lambda: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
        "separable": lambda: layers.SeparableConv2D(6, 3, padding="same", depth_multiplier=2, use_bias=False),
        "transpose": lambda: layers.Conv2DTranspose(3, 2, strides=2, use_bias=False),
    }[kind]()
    return layers.ReLU()(norm(layer(x)))


def largest_difference(model, other, shape) -> float:
    x = np.random.default_rng(1).uniform(-1, 1, (2, *shape)).astype(np.float32)
    wanted, got = np.asarray(model(x, training=False)), np.asarray(other(x, training=False))
    return float(np.abs(wanted - got).max() / max(1.0, np.abs(wanted).max()))


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_outputs_stay(keras, kinds, scale, center):
    inputs = x = keras.Input((8, 8, 3))
    for kind in kinds:
        x = block(keras, kind, x, lambda y: keras.layers.BatchNormalization(scale=scale, center=center)(y))
    x = keras.layers.Dense(4, use_bias=False, name="last")(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, keras.layers.BatchNormalization()(x), name="net")
    spoil(model)
    folded = fold_batch_norm(model)
    assert largest_difference(model, folded, (8, 8, 3)) < 1e-4
    left = [layer.name for layer in folded.layers if type(layer).__name__ == "BatchNormalization"]
    assert sorted(left) == sorted(unfoldable(model))
    assert len(left) == kinds.count("bare_norm")
    assert folded.name == "net"
    assert folded.get_layer("last").use_bias


def test_sequential_and_nested_models(keras):
    layers = keras.layers
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()], name="in")
    model = keras.Sequential([keras.Input((8, 8, 3)), inner, layers.Flatten(), layers.Dense(2)])
    spoil(model)
    folded = fold_batch_norm(model)
    assert [type(layer).__name__ for layer in folded.layers] == ["InputLayer", "Conv2D", "Flatten", "Dense"]
    assert largest_difference(model, folded, (8, 8, 3)) < 1e-4


def test_what_stays_is_named_with_its_reason(keras):
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(3, 3, padding="same", activation="relu", name="active")(inputs)
    x = layers.BatchNormalization(name="after_relu")(x)
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    norm = layers.BatchNormalization(name="after_shared")
    y = layers.Add(name="sum")([norm(shared(x)), shared(inputs)])
    fork = layers.Conv2D(3, 1, name="fork")(y)
    z = layers.Add()([layers.BatchNormalization(name="after_fork")(fork), fork])
    model = keras.Model(inputs, [layers.BatchNormalization(name="after_sum")(z), layers.Flatten()(z)])
    spoil(model)
    reasons = unfoldable(model)
    assert {name: reason.split()[-1] for name, reason in reasons.items()} == {
        "after_relu": "between", "after_shared": "times", "after_fork": "too", "after_sum": "kernel",
    }  # fmt: skip
    assert "active" in reasons["after_relu"]
    folded = fold_batch_norm(model)
    x = np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    for wanted, got in zip(model(x), folded(x), strict=True):
        np.testing.assert_allclose(wanted, got, atol=1e-4)


def test_the_model_itself_stays(keras):
    layers = keras.layers
    model = keras.Sequential([keras.Input((4, 4, 2)), layers.Conv2D(2, 1), layers.BatchNormalization()])
    spoil(model)
    before = model.get_weights()
    fold_batch_norm(model)
    assert all((one == two).all() for one, two in zip(before, model.get_weights(), strict=True))
    assert len(model.layers) == 2
    assert model.layers[0].output is not None  # called once, as it was


def test_a_subclass_is_refused(keras):
    class Mine(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ModelError, match="Mine"):
        fold_batch_norm(Mine())


def test_lambdas_are_copied_and_a_layer_that_cannot_be_is_named(keras):
    class Mine(keras.layers.Layer):
        def __init__(self, size, **kwargs):
            super().__init__(**kwargs)
            self.size = size

        def get_config(self):
            return {"name": self.name}

        def call(self, x):
            return x

    layers = keras.layers
    start = [keras.Input((8, 8, 3)), layers.Conv2D(2, 1), layers.BatchNormalization()]
    model = keras.Sequential([*start, layers.Lambda(lambda x: x * 2.0)])
    spoil(model)
    assert largest_difference(model, fold_batch_norm(model), (8, 8, 3)) < 1e-4
    with pytest.raises(ModelError, match="own: the layer"):
        fold_batch_norm(keras.Sequential([*start, Mine(3, name="own")]))

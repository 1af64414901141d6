"""Kernels fitted anew after channels went: what the kept channels can tell is told, nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from edgeferry_converter.compression.channel_graph import prunable
from edgeferry_converter.compression.channel_pruning import shrink
from edgeferry_converter.compression.importance import l1
from edgeferry_converter.compression.rebuild import rebuild
from edgeferry_converter.compression.reconstruction import fitted, reconstruct
from hypothesis import given, settings
from hypothesis import strategies as st


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 3), st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_linear_answer_is_found_again(seed, inputs, outputs, biased):
    random = np.random.default_rng(seed)
    rows = random.normal(size=(200, inputs)) + (3.0 if biased else 0.0)
    kernel, bias = random.normal(size=(inputs, outputs)), random.normal(size=outputs)
    wanted = rows @ kernel + (bias if biased else 0.0)
    found, shift = fitted(rows, wanted, np.zeros((inputs, outputs)), np.zeros(outputs) if biased else None)
    np.testing.assert_allclose(rows @ found + (shift if biased else 0.0), wanted, atol=0.1)
    assert (shift is None) != biased


def test_where_the_data_says_nothing_the_kernel_stays():
    kernel = np.array([[1.0], [2.0], [3.0]])
    rows = np.zeros((10, 3))
    rows[:, 0] = np.arange(10)
    found, _ = fitted(rows, rows @ np.array([[5.0], [0.0], [0.0]]), kernel, None)
    np.testing.assert_allclose(found[1:], kernel[1:])
    assert found[0, 0] == pytest.approx(5.0, abs=0.05)


def twins(keras, **how):
    """A network whose second layer's channels are pairs of equals, so that half of them tell everything."""
    layers = keras.layers
    keras.utils.set_random_seed(3)
    image = keras.Input((9, 9, 3), name="image")
    x = layers.Conv2D(16, 3, activation="relu", name="first")(image)
    x = layers.Conv2D(6, 3, activation="relu", name="second", **how)(x)
    model = keras.Model(image, layers.Dense(4, name="classes")(layers.GlobalAveragePooling2D()(x)))
    kernel, bias = model.get_layer("first").get_weights()
    kernel[..., 8:], bias[8:] = kernel[..., :8], bias[:8]
    model.get_layer("first").set_weights([kernel, bias])
    return model


@pytest.mark.parametrize(
    "how",
    [{}, {"strides": 2, "padding": "same"}, {"dilation_rate": 2, "use_bias": False}, {"strides": 3}],
    ids=["plain", "same", "dilated", "strided"],
)
def test_what_the_other_channels_know_is_kept(keras, how):
    model = twins(keras, **how)
    images = np.random.default_rng(0).random((128, 9, 9, 3), np.float32)
    expected = np.asarray(model(images))
    tracing = prunable(model)
    keeps = {"first": np.arange(8)}
    smaller = rebuild(tracing, keeps)
    lost = np.abs(np.asarray(smaller(images)) - expected).max()
    before = {layer.name: layer.get_weights() for layer in smaller.layers}
    assert reconstruct(tracing, keeps, smaller, images) == ["second"]
    assert np.abs(np.asarray(smaller(images)) - expected).max() < 0.05 * lost
    for name in ("first", "classes"):
        for left, right in zip(before[name], smaller.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(left, right)


def test_what_is_not_cut_is_not_fitted(keras):
    model = twins(keras)
    tracing = prunable(model)
    assert reconstruct(tracing, {}, rebuild(tracing, {}), np.zeros((2, 9, 9, 3), np.float32)) == []


def test_shrinking_restores_before_it_trains(keras):
    told = []
    shrink(
        twins(keras), 0.6, l1, 2, lambda smaller: told.append("train"),
        restore=lambda tracing, keeps, smaller: told.append(sorted(keeps)),
    )  # fmt: skip
    assert told[1::2] == ["train", "train"]
    assert all(isinstance(kept, list) for kept in told[::2])
    assert any(told[::2])

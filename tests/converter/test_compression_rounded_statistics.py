"""BatchNorm's statistics behind rounded kernels: measured there, and only they change."""

from __future__ import annotations

import numpy as np
import pytest
from edgeferry_converter.compression.qat import QatOptions, observe, prepare
from edgeferry_converter.compression.recalibration import recalibrate
from edgeferry_converter.compression.rounded_statistics import rounded_statistics


class Images:
    """Data without labels, as one batch."""

    task, classes, description = "", None, "images"

    def __init__(self, x):
        self.x, self.size = x, len(x)

    def batches(self, batch_size, seed=0, augment=None):
        return [(self.x,)]


@pytest.fixture
def images():
    return np.random.default_rng(1).random((64, 8, 8, 3), np.float32)


@pytest.fixture
def model(keras):
    keras.utils.set_random_seed(4)
    layers = keras.layers
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="first")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="later")(x))
    return keras.Model(image, layers.Dense(4, name="classes")(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("weights", ["per-channel", "per-tensor"])
def test_they_are_those_behind_the_rounded_kernel(keras, model, images, weights):
    import tensorflow as tf

    options = QatOptions(weights, 4)
    recalibrate(model, Images(images))
    prepared = {layer.name: layer for layer in prepare(model, options).layers}
    norm, first = model.get_layer("norm"), model.get_layer("first")
    scale = np.asarray(norm.gamma) / np.sqrt(np.asarray(norm.moving_variance) + norm.epsilon)
    rounded = prepared["first"].quantized_kernel() / scale
    assert len(np.unique(rounded[..., 0])) <= 15
    seen = tf.nn.conv2d(images, rounded, 1, "VALID").numpy() + np.asarray(first.bias)
    plain = np.asarray(norm.moving_variance).copy()
    assert rounded_statistics(model, Images(images), options) == ["norm", "later"]
    np.testing.assert_allclose(norm.moving_mean, seen.mean(axis=(0, 1, 2)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, seen.var(axis=(0, 1, 2)), rtol=1e-2)
    assert np.abs(np.asarray(norm.moving_variance) / plain - 1).max() > 0.01


def test_nothing_else_changes(model, images):
    before = {weight.path: np.asarray(weight).copy() for weight in model.weights}
    rounded_statistics(model, Images(images), QatOptions(bits=4))
    changed = {path for path, value in before.items() if not np.array_equal(value, _weight(model, path))}
    assert {path.split("/")[-1] for path in changed} == {"moving_mean", "moving_variance"}


def test_four_bits_come_nearer_to_the_float_model(keras, model, images):
    recalibrate(model, Images(images))
    expected = np.asarray(model(images))
    measured = keras.models.clone_model(model)
    measured.set_weights(model.get_weights())
    options = QatOptions(bits=4)
    rounded_statistics(measured, Images(images), options)
    errors = []
    for one in (model, measured):
        prepared = prepare(one, options)
        observe(prepared, [images])
        errors.append(float(np.abs(np.asarray(prepared(images)) - expected).mean()))
    assert errors[1] < 0.8 * errors[0]


def test_a_model_without_batch_norm_is_left_alone(keras, images):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
    assert rounded_statistics(model, Images(images), QatOptions()) == []


def _weight(model, path):
    return np.asarray(next(weight for weight in model.weights if weight.path == path))

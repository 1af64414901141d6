"""A recipe carried out on a tiny model: its trainings, their epochs, and what is fitted between them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edgeferry_converter.compression import flow
from edgeferry_converter.compression.flow import Measures, compress
from edgeferry_converter.recipe import Distill, Prune, Qat, Recipe, Train

CHANNELS = Prune("channels", target=0.7, align=2, start_epochs=2, rounds=2, round_epochs=1)


class Batches(list):
    """Batches that do not depend on the epoch."""

    epoch = 0


class Images:
    """Noise whose brightest channel is the class."""

    task, classes, description, size = "classify", 3, "noise", 48

    def __init__(self):
        random = np.random.default_rng(0)
        self.y = random.integers(0, 3, self.size).astype(np.int32)
        self.x = random.normal(0, 1, (self.size, 6, 6, 3)).astype(np.float32)
        self.x[np.arange(self.size), :, :, self.y] += 1.5

    def batches(self, batch_size, seed=0, augment=None):
        return Batches(
            (self.x[i : i + batch_size], self.y[i : i + batch_size]) for i in range(0, self.size, batch_size)
        )


@pytest.fixture
def model(keras):
    keras.utils.set_random_seed(3)
    layers = keras.layers
    inputs = keras.Input((6, 6, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, name="first")(inputs)))
    x = layers.ReLU()(layers.Conv2D(8, 3, name="second")(x))
    return keras.Model(inputs, layers.Dense(3, "softmax", name="classes")(layers.GlobalAveragePooling2D()(x)))


@pytest.fixture
def carried_out(model, tmp_path, monkeypatch):
    """Carries a recipe out; what was fitted and measured on the way is in ``.seen``."""
    seen = []
    for name in ("reconstruct", "rounded_statistics"):
        real = getattr(flow, name)
        monkeypatch.setattr(flow, name, lambda *a, real=real, name=name: seen.append(name) or real(*a))

    def run(**parts):
        recipe = Recipe("x", "x", Train(epochs=3, batch_size=16, augment=False), **parts)
        measures = Measures(bytes=lambda _: 1.0, latency=lambda _: 1.0)
        found = compress(model, recipe, Images(), model, measures, tmp_path, lambda *_: None)
        return [(history["name"], len(history["epochs"])) for history in found.figures["training"]]

    run.seen = seen
    return run


def test_channels_go_from_a_fitted_model_with_few_epochs_between_the_rounds(carried_out):
    assert carried_out(prune=CHANNELS) == [("before pruning", 2), ("round 1", 1), ("round 2", 3)]
    assert carried_out.seen == ["reconstruct", "reconstruct"]


def test_kernels_are_fitted_only_when_asked(carried_out):
    told = carried_out(prune=replace(CHANNELS, reconstruct=False, start_epochs=0, rounds=1))
    assert told == [("round 1", 3)]
    assert carried_out.seen == []


def test_the_teacher_is_trained_once_and_the_source_is_not(carried_out, model):
    before = model.get_weights()
    distill = Distill(teacher_epochs=4, allow_weak=True)
    told = carried_out(prune=CHANNELS, distill=distill)
    assert told == [("teacher", 4), ("before pruning", 2), ("round 1", 1), ("round 2", 3)]
    for left, right in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_qat_trains_in_float_first_but_not_after_pruning(carried_out):
    qat = Qat(float_epochs=2, epochs=1)
    assert carried_out(qat=qat) == [("before rounding", 2), ("without rounding", 1), ("with rounding", 1)]
    assert carried_out.seen == ["rounded_statistics"]


def test_qat_goes_on_from_what_pruning_trained(carried_out):
    told = carried_out(prune=replace(CHANNELS, start_epochs=0, rounds=1), qat=Qat(float_epochs=2, epochs=1))
    assert told == [("round 1", 3), ("without rounding", 1), ("with rounding", 1)]

"""Fine-tuning: the loss that suits, best weights, interrupted runs that go on as if nothing had been, NaN."""

from __future__ import annotations

import numpy as np
import pytest
from edgeferry_converter.compression.checkpoint import CHECKPOINT
from edgeferry_converter.compression.recalibration import recalibrate
from edgeferry_converter.compression.training import (
    TrainingError,
    TrainOptions,
    choose_loss,
    fine_tune,
    steps_per_epoch,
)
from edgeferry_converter.errors import OptionError

CLASSES = 3
OPTIONS = TrainOptions(epochs=3, batch_size=16, learning_rate=0.01, seed=5)


class Batches:
    """A few batches in memory."""

    def __init__(self, x, y, size, seed):
        self.epoch, self.x, self.y, self.size, self.seed = 0, x, y, size, seed

    def __len__(self):
        return len(self.x) // self.size

    def __getitem__(self, i):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.x))
        picks = order[i * self.size : (i + 1) * self.size]
        return (self.x[picks],) if self.y is None else (self.x[picks], self.y[picks])

    def __iter__(self):
        return (self[i] for i in range(len(self)))


class Arrays:
    """The smallest thing that is ``Data``."""

    def __init__(self, x, y=None, task="classify", classes=CLASSES):
        self.x, self.y, self.task, self.classes, self.description = x, y, task, classes, "arrays"

    @property
    def size(self):
        return len(self.x)

    def batches(self, batch_size, seed=0, augment=None):
        return Batches(self.x, self.y, min(batch_size, len(self.x)), seed)


@pytest.fixture(scope="module")
def data():
    """Noise whose channel of largest mean is the class."""
    random = np.random.default_rng(0)
    y = random.integers(0, CLASSES, 96).astype(np.int32)
    x = random.normal(0, 1, (96, 6, 6, CLASSES)).astype(np.float32)
    x[np.arange(96), :, :, y] += 1.5
    return Arrays(x, y)


@pytest.fixture
def build(keras):
    def build(activation="softmax", units=CLASSES, dropout=0.2):
        keras.utils.set_random_seed(3)
        layers = keras.layers
        inputs = keras.Input((6, 6, CLASSES))
        x = layers.Conv2D(8, 3, use_bias=False)(inputs)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Dropout(dropout)(layers.GlobalAveragePooling2D()(x))
        return keras.Model(inputs, layers.Dense(units, activation=activation)(x))

    return build


def right(model, data):
    return float((model.predict(data.x, verbose=0).argmax(axis=1) == data.y).mean())


@pytest.mark.parametrize("activation", ["softmax", None])
def test_training_helps_with_probabilities_and_with_logits(build, data, activation):
    model = build(activation)
    steps = []
    history = fine_tune(model, data, TrainOptions(8, 0.02, 16), progress=lambda *told: steps.append(told[:2]))
    assert right(model, data) > 0.9
    assert len(history.epochs) == 8 and history.epochs[-1]["loss"] < history.epochs[0]["loss"]
    assert history.epochs[-1]["accuracy"] > 0.7 and not history.stopped_early
    assert steps == [(i + 1, 48) for i in range(48)] and steps_per_epoch(data, TrainOptions(batch_size=16)) == 6


def test_every_epoch_has_batches_of_its_own(build, data):
    seen = []

    class Noting(Batches):
        def __getitem__(self, i):
            seen.append((self.epoch, i))
            return super().__getitem__(i)

    class Noted(Arrays):
        def batches(self, batch_size, seed=0, augment=None):
            return Noting(self.x, self.y, batch_size, seed)

    fine_tune(build(), Noted(data.x, data.y), TrainOptions(3, 0.01, 32))
    assert seen[-9:] == [(epoch, i) for epoch in range(3) for i in range(3)]


def test_the_same_seed_gives_the_same_weights(build, data):
    first, second = build(), build()
    fine_tune(first, data, OPTIONS)
    fine_tune(second, data, OPTIONS)
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(("optimizer", "patience"), [("adam", 0), ("sgd", 2)])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(build, data, tmp_path, optimizer, patience):
    options = TrainOptions(4, 0.01, 16, 5, patience, optimizer)
    whole = build()
    straight = fine_tune(whole, data, options)

    def interrupt(done, total, figures):
        if done == 2 * 6 + 3:  # in the middle of the third epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(build(), data, options, folder=tmp_path, progress=interrupt)
    resumed = build()
    history = fine_tune(resumed, data, options, folder=tmp_path)
    assert history.resumed_at == 2 and len(history.epochs) == len(straight.epochs)
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert history.epochs[-1]["loss"] == pytest.approx(straight.epochs[-1]["loss"], abs=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    again = build()
    assert fine_tune(again, data, options, folder=tmp_path).resumed_at == len(history.epochs)
    for one, other in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_checkpoint_of_another_run_is_refused_and_kept(keras, build, data, tmp_path):
    fine_tune(build(), data, TrainOptions(1, 0.01, 16), folder=tmp_path)
    kept = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(TrainingError, match=r"callbacks \[\] there, \['Callback'\] here"):
        fine_tune(build(), data, TrainOptions(1, 0.01, 16), [keras.callbacks.Callback()], tmp_path)
    with pytest.raises(TrainingError, match=r"learning_rate 0.01 there, 0.02 here"):
        fine_tune(build(), data, TrainOptions(1, 0.02, 16), folder=tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == kept
    (tmp_path / CHECKPOINT).write_bytes(kept[: len(kept) // 2])
    with pytest.raises(TrainingError, match="no readable checkpoint"):
        fine_tune(build(), data, TrainOptions(1, 0.01, 16), folder=tmp_path)


def test_nan_stops_and_the_last_good_epoch_is_kept(keras, build, data, tmp_path):
    class Poison(keras.callbacks.Callback):
        at = 1

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == self.at:
                self.model.layers[1].kernel.assign(np.full(self.model.layers[1].kernel.shape, np.nan))

    good = build()
    fine_tune(good, data, OPTIONS)
    model = build()
    with pytest.raises(TrainingError, match=r"diverged in epoch 2 .*the weights of epoch 1 are kept") as caught:
        fine_tune(model, data, OPTIONS, [Poison()], folder=tmp_path)
    assert "learning rate" in (caught.value.remedy or "")
    assert all(np.isfinite(array).all() for array in model.get_weights())
    assert caught.value.checkpoint == tmp_path / CHECKPOINT
    Poison.at = -1
    resumed = build()
    assert fine_tune(resumed, data, OPTIONS, [Poison()], tmp_path).resumed_at == 1
    for one, other in zip(good.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_patience_stops_and_takes_the_best_weights(keras, build, data):
    class Worsen(keras.callbacks.Callback):
        """Before the third epoch and each later one the weights are destroyed."""

        def on_epoch_end(self, epoch, logs=None):
            weights.append(self.model.get_weights())

        def on_epoch_begin(self, epoch, logs=None):
            kernel = self.model.layers[-1].kernel
            if epoch == 2:
                self.wrong = np.asarray(kernel) * -30
            if epoch >= 2:
                kernel.assign(self.wrong)

    weights: list = []
    model = build()
    options = TrainOptions(20, 0.01, 16, patience=2)
    history = fine_tune(model, data, options, [Worsen()], validation=data)
    assert history.stopped_early and history.best_epoch == 1 and len(history.epochs) == 4
    for one, other in zip(model.get_weights(), weights[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_best_epoch_is_none_before_a_callback_has_settled(keras, build, data):
    class Late(keras.callbacks.Callback):
        settled_step = 20  # in the fourth epoch of 6 steps

        def on_epoch_begin(self, epoch, logs=None):
            if epoch >= 2:
                self.model.layers[-1].kernel.assign(self.model.layers[-1].kernel * -30)

    history = fine_tune(build(), data, TrainOptions(7, 0.01, 16, patience=1), [Late()])
    assert history.best_epoch >= 3


def test_values_are_fitted_and_single_outputs_are_two_classes(build, data):
    values = Arrays(data.x, data.x.mean(axis=(1, 2)), "regress", None)
    model = build(None, dropout=0.0)
    history = fine_tune(model, values, TrainOptions(10, 0.02, 16))
    assert history.epochs[-1]["loss"] < 0.5 * history.epochs[0]["loss"]
    two = Arrays(data.x, (data.y == 0).astype(np.int32)[:, None], classes=2)
    for activation in ("sigmoid", None):
        history = fine_tune(build(activation, 1), two, TrainOptions(8, 0.02, 16))
        assert history.epochs[-1]["accuracy"] > 0.8


def test_what_has_no_known_loss_needs_a_compiled_model(build, data):
    odd = Arrays(data.x, data.y, task="")
    model = build()
    with pytest.raises(OptionError, match=r"no loss suits .*arrays"):
        fine_tune(model, odd, OPTIONS)
    with pytest.raises(OptionError, match="has no labels to train with"):
        fine_tune(model, Arrays(data.x), OPTIONS)
    model.compile("sgd", loss="sparse_categorical_crossentropy")
    assert choose_loss(model, odd, odd.batches(4)[0])[0] == "sparse_categorical_crossentropy"


@pytest.mark.parametrize(
    ("options", "rule"),
    [({"epochs": 0}, "epochs"), ({"learning_rate": 0}, "learning_rate"), ({"optimizer": "lion"}, "adam, sgd")],
)
def test_options_out_of_range(options, rule):
    with pytest.raises(OptionError, match=rule):
        TrainOptions(**options)


def test_recalibration_mends_spoiled_statistics_and_nothing_else(build, data):
    model = build()
    fine_tune(model, data, TrainOptions(8, 0.02, 16))
    before, norm = right(model, data), model.layers[2]
    trained = [np.asarray(weight).copy() for weight in model.trainable_weights]
    norm.moving_mean.assign(np.full(8, 5.0))
    norm.moving_variance.assign(np.full(8, 50.0))
    assert right(model, data) < before - 0.2
    momentum = norm.momentum
    assert recalibrate(model, Arrays(data.x), batch_size=32) == [norm.name]
    assert right(model, data) > before - 0.03
    for one, other in zip(trained, model.trainable_weights, strict=True):
        np.testing.assert_array_equal(one, np.asarray(other))
    assert (norm.momentum, norm.trainable, model.layers[5].rate) == (momentum, True, 0.2)


def test_recalibrated_moments_are_the_data_s(keras, data):
    model = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.BatchNormalization()])
    model.trainable = False
    recalibrate(model, Arrays(data.x), batch_size=24)
    np.testing.assert_allclose(model.layers[0].moving_mean, data.x.mean(axis=(0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(model.layers[0].moving_variance, data.x.var(axis=(0, 1, 2)), rtol=1e-5)
    assert not model.layers[0].trainable


def test_recalibration_refuses_infinite_activations(keras, data):
    model = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.BatchNormalization()])
    with pytest.raises(TrainingError, match="NaN or infinite on arrays; nothing was changed"):
        recalibrate(model, Arrays(np.full_like(data.x, np.inf)))
    assert np.asarray(model.layers[0].moving_variance).tolist() == [1, 1, 1]
    assert recalibrate(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), Arrays(data.x)) == []

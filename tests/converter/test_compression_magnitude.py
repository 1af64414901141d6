"""Magnitude pruning: the layers stay the source's, the zeros stay zeros, down into the .tflite."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from edgeferry_converter.compression.magnitude import MagnitudePruning, zero_share
from edgeferry_converter.compression.schedule import ConstantSparsity, PolynomialDecay
from edgeferry_converter.compression.training import TrainOptions, fine_tune
from edgeferry_converter.errors import OptionError
from edgeferry_converter.loading.chain import load_source
from edgeferry_converter.loading.source import LoadOptions
from edgeferry_converter.quantization import QuantizationScheme, quantize

CLASSES = 3
RANDOM = np.random.default_rng(0)


class Data:
    """Random pictures whose class is their brightest channel."""

    task, classes, description, size = "classify", CLASSES, "noise", 64

    def __init__(self):
        self.epoch = 0
        self.x = np.random.default_rng(1).normal(0, 1, (64, 8, 8, CLASSES)).astype(np.float32)
        self.y = self.x.mean(axis=(1, 2)).argmax(axis=1).astype(np.int32)

    def batches(self, batch_size, seed=0, augment=None):
        return self

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.x[i * 16 : i * 16 + 16], self.y[i * 16 : i * 16 + 16]


@pytest.fixture
def build(keras):
    def build():
        keras.utils.set_random_seed(3)
        layers = keras.layers
        inputs = keras.Input((8, 8, CLASSES), name="pixels")
        x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(inputs)
        x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
        x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
        x = layers.Add()([x, layers.Conv2D(8, 1, name="pointwise")(x)])
        x = layers.SeparableConv2D(12, 3, name="separable")(x)
        x = layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="classes")(x))

    return build


def pruned(model, *args, options=None, **named):
    pruning = MagnitudePruning(*args, **named)
    fine_tune(model, Data(), options or TrainOptions(3, 0.01, 16), [pruning])
    return pruning


def kernel(model, name):
    return np.asarray(model.get_layer(name).kernel)


def test_every_kernel_reaches_the_sparsity_and_nothing_else_is_touched(build):
    model = build()
    before = [(type(layer).__name__, layer.name) for layer in model.layers]
    pruning = pruned(model, PolynomialDecay(0, 0.75, 2, 10, frequency=3), scope="layer")
    shares = pruning.sparsity()
    assert len(shares) == 6 and shares == zero_share(model)
    for path, share in shares.items():
        size = next(w for w in model.weights if w.path == path).shape
        assert share == pytest.approx(0.75, abs=0.5 / np.prod(size)), path
    assert np.count_nonzero(np.asarray(model.get_layer("norm").gamma)) == 8
    assert [(type(layer).__name__, layer.name) for layer in model.layers] == before


def test_zeros_stay_zeros_after_every_step_although_momentum_pushes(keras, build):
    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            zeros.append(kernel(self.model, "first") == 0)

    zeros: list = []
    model = build()
    pruning = MagnitudePruning(PolynomialDecay(0.2, 0.6, 1, 9, frequency=4), scope="layer")
    fine_tune(model, Data(), TrainOptions(4, 0.05, 16, optimizer="sgd"), [pruning, Look()])
    assert [z.sum() for z in zeros[:9]] == [round(s * 216) for s in (0.2,) * 4 + (0.55,) * 4 + (0.6,)]
    for earlier, later in pairwise(zeros):
        assert (later | ~earlier).all()
    assert zeros[-1].sum() == round(0.6 * 216)


def test_weights_of_all_layers_are_ranked_together(build):
    model = build()
    before = np.concatenate([kernel(model, name).ravel() for name in ("first", "pointwise", "classes")])
    threshold = np.sort(np.abs(before))[len(before) // 2 - 1]
    options = TrainOptions(1, 1e-9, 64)  # as good as no training
    pruned(model, ConstantSparsity(0.5, 0), include=["first", "pointwise", "classes"], options=options)
    after = np.concatenate([kernel(model, name).ravel() for name in ("first", "pointwise", "classes")])
    assert ((after == 0) == (np.abs(before) <= threshold)).all()
    assert len(set(np.round(list(zero_share(model).values()), 2))) > 2


@pytest.mark.parametrize("structure", ["1x4", "2:4"])
def test_blocks_of_all_layers_are_ranked_together(build, structure):
    model = build()
    pruning = pruned(model, ConstantSparsity(0.5, 0), structure)
    zeros = sum(np.count_nonzero(np.asarray(k.variable) == 0) for k in pruning._kernels)
    assert abs(zeros - sum(np.asarray(k.variable).size for k in pruning._kernels) / 2) <= 2  # half a block


def test_layers_are_chosen_by_name(build):
    model = build()
    pruning = pruned(model, ConstantSparsity(0.5, 0), include=["*i*"], exclude=["first"])
    assert {path.split("/")[0] for path in pruning.sparsity()} == {"depthwise", "pointwise"}
    assert np.count_nonzero(kernel(model, "first")) == 216


@pytest.mark.parametrize(("structure", "groups"), [("1x4", {0, 4}), ("2:4", {2})])
def test_structures_lie_along_the_inputs(build, structure, groups):
    model = build()
    pruning = pruned(model, ConstantSparsity(0.5, 0), structure, "layer")
    zeros = (kernel(model, "pointwise") == 0).reshape(2, 4, 8).sum(axis=1)
    assert set(np.unique(zeros)) == groups and zeros.sum() == 32
    assert pruning.skipped["first"] == "has 3 inputs, no multiple of 4"
    assert "sums over positions" in pruning.skipped["depthwise"]
    assert np.count_nonzero(kernel(model, "first")) == 216


def test_an_interrupted_run_keeps_its_masks(build, tmp_path):
    schedule, options = PolynomialDecay(0, 0.7, 0, 9, frequency=2), TrainOptions(4, 0.02, 16)

    def interrupt(done, total, figures):
        if done == 7:
            raise KeyboardInterrupt

    whole, resumed = build(), build()
    fine_tune(whole, Data(), options, [MagnitudePruning(schedule)])
    with pytest.raises(KeyboardInterrupt):
        fine_tune(build(), Data(), options, [MagnitudePruning(schedule)], tmp_path, interrupt)
    history = fine_tune(resumed, Data(), options, [MagnitudePruning(schedule)], tmp_path)
    assert history.resumed_at == 1
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_best_weights_are_pruned_ones(build):
    model = build()
    pruned(model, PolynomialDecay(0, 0.9, 0, 30), scope="layer", options=TrainOptions(12, 0.05, 16, patience=1))
    assert np.count_nonzero(kernel(model, "first")) == 216 - round(0.9 * 216)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ConstantSparsity(0.5, 0), "3:4"), "no structure '3:4'"),
        ((ConstantSparsity(0.5, 0), "1x4", "all"), "no scope 'all'"),
        ((ConstantSparsity(0.7, 0), "2:4"), "2:4 sparsity is 50 %"),
        ((ConstantSparsity(0.5, 0), "unstructured", "global", ["conv*"]), r"no layer to prune \(include conv\*"),
        ((ConstantSparsity(0.5, 0), "1x4", "layer", ["first"]), "first: has 3 inputs"),
        ((PolynomialDecay(0, 0.5, 0, 13),), r"ends at step 13, the training after 12 \(3 epochs of 4"),
    ],
)
def test_what_cannot_be_pruned_is_refused(build, arguments, message):
    with pytest.raises(OptionError, match=message):
        pruned(build(), *arguments)


@pytest.mark.parametrize("scheme", ["float32", "int8"])
def test_the_file_has_the_source_s_layers_and_the_zeros(build, tmp_path, scheme):
    dense, model = build(), build()
    pruned(model, ConstantSparsity(0.75, 0, frequency=5), scope="layer")
    path = tmp_path / "pruned.keras"
    model.save(path)
    source = load_source(path, LoadOptions())
    kinds = [type(layer).__name__ for layer in dense.layers]
    assert [type(layer).__name__ for layer in source.keras.layers] == kinds
    samples = [{"pixels": RANDOM.normal(0, 1, (1, 8, 8, CLASSES)).astype(np.float32)} for _ in range(8)]
    with source.saved_model() as (folder, signature):
        made = quantize(folder, signature, QuantizationScheme(scheme), lambda: iter(samples))
    interpreter = Interpreter(model_content=made)
    found = {}
    for detail in interpreter.get_tensor_details():
        size = int(np.prod(detail["shape"]))
        if len(detail["shape"]) in (2, 4) and size in (216, 72, 64, 96, 36):
            try:
                values = interpreter.get_tensor(detail["index"])
            except ValueError:
                continue  # an activation: nothing is in it yet
            zero = detail["quantization_parameters"]["zero_points"]
            assert not zero.any()
            found.setdefault(size, []).append(np.count_nonzero(values == 0))
    for name, size in [("first", 216), ("depthwise", 72), ("pointwise", 64), ("classes", 36)]:
        expected = np.count_nonzero(kernel(model, name) == 0)
        assert any(count >= expected for count in found[size]), (name, found)
        assert expected == round(0.75 * size)

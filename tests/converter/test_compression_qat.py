"""Quantisation-aware training: the int8 model that comes out is the one that was trained."""

from __future__ import annotations

import numpy as np
import pytest
from edgeferry_converter.compression.qat import (
    QatOptions,
    computed_in_float,
    freeze,
    observe,
    prepare,
    strip,
)
from edgeferry_converter.compression.qat_plan import Rounding, plan
from edgeferry_converter.errors import ModelError, OptionError
from edgeferry_converter.quantization import QuantizationScheme
from edgeferry_converter.tflite_checks import operations_by_type, operator_versions
from edgeferry_converter.tflite_file import read_model
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPE = (12, 12, 3)


@pytest.fixture(scope="module")
def export(keras):
    from edgeferry_converter.compression.qat_export import export_int8

    return export_int8


def build(keras, body, seed=3):
    """A functional model of one input around ``body``; weights and BatchNormalization as after some training."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(SHAPE, name="pixels")
    model = keras.Model(inputs, body(keras.layers, inputs), name="net")
    random = np.random.default_rng(seed)
    for weight in model.weights:
        if "batch_norm" in weight.path:
            low, high = (0.5, 1.5) if "variance" in weight.path or "gamma" in weight.path else (-0.3, 0.3)
            weight.assign(random.uniform(low, high, weight.shape))
        elif "bias" in weight.path:
            weight.assign(random.uniform(-0.3, 0.3, weight.shape))
    return model


def unit(layers, x, filters, kernel=3, strides=1, activation="relu"):
    x = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(activation)(x) if activation else x


def plain(layers, x):
    x = layers.MaxPooling2D()(unit(layers, x, 8))
    return layers.Dense(5, activation="softmax", name="classes")(layers.Flatten()(unit(layers, x, 8)))


def residual(layers, x):
    x = unit(layers, x, 8)
    y = layers.Add()([x, unit(layers, unit(layers, x, 8), 8, activation=None)])
    x = layers.ReLU()(y)
    y = layers.Add()([unit(layers, x, 12, 1, 2, None), unit(layers, x, 12, 3, 2, None)])
    return layers.Dense(5)(layers.GlobalAveragePooling2D()(layers.Activation("relu")(y)))


def depthwise(layers, x):
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False)(unit(layers, x, 8))
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.SeparableConv2D(8, 3, padding="same", depth_multiplier=2)(layers.ZeroPadding2D()(x))
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    return layers.Dense(4, "sigmoid")(layers.Dropout(0.5)(layers.Flatten()(layers.AveragePooling2D(2)(x))))


def branches(layers, x):
    x = unit(layers, x, 8, activation="silu")
    y = layers.Concatenate()([unit(layers, x, 4, 1), unit(layers, x, 4, activation=None), x])
    gate = layers.Conv2D(16, 1, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(y))
    y = layers.UpSampling2D()(unit(layers, layers.Multiply()([y, gate]), 4, strides=2, activation="hard_swish"))
    y = layers.Conv2DTranspose(3, 3, padding="same", activation="relu")(y)
    return layers.Dense(4)(layers.GlobalMaxPooling2D()(layers.AveragePooling2D(2)(y)))


def dense(layers, x):
    x = layers.Dense(16, activation="relu6")(layers.Flatten()(x))
    return layers.Dense(3, activation="gelu")(x)


MODELS = {body.__name__: body for body in (plain, residual, depthwise, branches, dense)}


def pixels(count: int, seed: int = 0, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, *shape)).astype(np.float32)


def prepared_and_observed(model, options=QatOptions(), seed=0, scale=1.0):  # noqa: B008 - frozen
    ready = prepare(model, options)
    observe(ready, [scale * pixels(16, seed + i, model.inputs[0].shape[1:]) for i in range(4)])
    return ready


def differences(ready, data: bytes, samples: np.ndarray) -> np.ndarray:
    """How many steps the .tflite is away from the simulation, for every output value of every sample."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    (scale, zero), (out_scale, out_zero) = source["quantization"], target["quantization"]
    low, high = np.iinfo(source["dtype"]).min, np.iinfo(source["dtype"]).max
    found = []
    for sample in samples:
        stored = np.clip(np.round(sample[None] / scale) + zero, low, high).astype(source["dtype"])
        interpreter.set_tensor(source["index"], stored)
        interpreter.invoke()
        wanted = np.asarray(ready((stored.astype(np.float32) - zero) * np.float32(scale), training=False))
        levels = np.round(wanted / out_scale) + out_zero
        found.append(np.abs(levels - interpreter.get_tensor(target["index"]).astype(int)))
    return np.concatenate(found)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", MODELS)
def test_within_one_step_of_the_simulation(keras, export, name, bits):
    model = build(keras, MODELS[name])
    assert computed_in_float(model) == {}
    ready = prepared_and_observed(model, QatOptions(bits=bits))
    data = export(ready)
    found = differences(ready, data, pixels(30, 9))
    # The gate of a squeeze-excite block multiplies a whole channel by its own last step.
    assert found.max() <= (2 if name == "branches" else 1)
    assert (found > 1).mean() < 0.05
    operations = operations_by_type(read_model(data))
    assert not {"DEQUANTIZE", "BATCH_MATMUL"} & set(operations)


def weights_of(data: bytes):
    kernels = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    return [op.inputs[1] for op in read_model(data).operators if op.type in kernels]


@pytest.mark.parametrize("name", ["relu6", "silu", "hard_silu", "gelu", "sigmoid", "tanh", "leaky_relu", "elu"])
def test_activations(keras, export, name):
    """Equal but for rare ties; two kernels compute in 16 bits and are off a little more often."""
    ready = prepared_and_observed(build(keras, lambda layers, x: unit(layers, x, 8, activation=name)))
    found = differences(ready, export(ready), pixels(20, 9))
    assert (found > 1).mean() < 1e-3
    assert (found > 0).mean() < (0.05 if name in ("hard_silu", "leaky_relu") else 1e-3)


def test_per_tensor(keras, export):
    ready = prepared_and_observed(build(keras, residual), QatOptions(weights="per-tensor"))
    data = export(ready)
    assert differences(ready, data, pixels(20, 9)).max() <= 1
    assert {len(tensor.scales) for tensor in weights_of(data)} == {1}


def test_per_channel_but_for_dense(keras, export):
    data = export(prepared_and_observed(build(keras, plain)))
    assert sorted(len(tensor.scales) for tensor in weights_of(data)) == [1, 8, 8]
    assert operator_versions(read_model(data))["FULLY_CONNECTED"] <= 4


@pytest.mark.parametrize(("packed", "dtype"), [(False, "int8"), (True, "int4")])
def test_four_bits_are_fifteen_levels(keras, export, packed, dtype):
    ready = prepared_and_observed(build(keras, depthwise), QatOptions(bits=4))
    kernels = [layer.quantized_kernel() for layer in ready.layers if type(layer).__name__ == "QuantizedKernel"]
    data = export(ready, packed=packed)
    stored = weights_of(data)
    assert len(stored) == len(kernels) == 5
    assert {tensor.dtype for tensor in stored} == {dtype}
    if packed:
        assert len(data) < len(export(ready))
    else:
        assert all(np.abs(tensor.data.view(np.int8)).max() == 7 for tensor in stored)
    assert len(np.unique(kernels[-1])) <= 15  # Dense: one scale
    assert differences(ready, data, pixels(20, 9)).max() <= 1


def test_types_and_names_of_inputs_and_outputs(keras, export, tmp_path):
    ready = prepared_and_observed(build(keras, plain))
    path = tmp_path / "net.tflite"
    data = export(ready, path, QuantizationScheme("int8", "uint8", "float32"))
    assert path.read_bytes() == data
    model = read_model(data)
    assert [tensor.dtype for tensor in (*model.inputs, *model.outputs)] == ["uint8", "float32"]
    (signature,) = model.signatures
    assert (list(signature.inputs), list(signature.outputs)) == (["pixels"], ["classes"])


def test_channels_of_zeros(keras, export):
    """Pruning leaves zeros; they must not make scales of nothing."""
    model = build(keras, plain)
    for layer in model.layers:
        if type(layer).__name__ == "Conv2D":
            layer.kernel.assign(np.asarray(layer.kernel) * ~np.isin(np.arange(8), [2, 3, 4]))
    ready = prepared_and_observed(model)
    data = export(ready)
    assert differences(ready, data, pixels(20, 9)).max() <= 1
    assert sum(int((tensor.data == 0).sum()) for tensor in weights_of(data)) >= 3 * (27 + 72)


def test_what_a_plan_rounds(keras):
    def body(layers, x):
        x = layers.ReLU(name="relu")(layers.Conv2D(4, 1, name="conv")(x))
        y = layers.MaxPooling2D(2, 1, "same", name="max")(x)
        y = layers.AveragePooling2D(2, 1, "same", name="mean")(y)
        y = layers.Concatenate(name="both")([y, layers.Conv2D(4, 1, name="arm")(x)])
        return layers.Activation("elu", name="elu")(layers.Softmax(name="softmax")(y))

    model = build(keras, body)
    assert plan(model).roundings == {
        "conv": Rounding.LATER, "relu": Rounding.OWN, "max": Rounding.KEPT, "mean": Rounding.INPUT,
        "arm": Rounding.LATER, "both": Rounding.OWN, "softmax": Rounding.UNIT, "elu": Rounding.FLOAT,
    }  # fmt: skip
    ready = prepare(model)
    ranges = {layer.name for layer in ready.layers if type(layer).__name__ == "FakeQuant"}
    assert ranges == {"pixels_range", "relu_range", "both_range", "softmax_range", "elu_range"}
    assert list(computed_in_float(model)) == list(computed_in_float(ready)) == ["elu"]


def test_a_norm_that_stays_computes_in_float_and_is_named(keras, export):
    def body(layers, x):
        return layers.BatchNormalization(name="norm")(layers.Add()([unit(layers, x, 4), unit(layers, x, 4)]))

    ready = prepared_and_observed(build(keras, body))
    assert "no kernel" in computed_in_float(ready)["norm"]
    assert differences(ready, export(ready), pixels(20, 9)).max() <= 1


@settings(max_examples=40, deadline=None)
@given(
    limits=st.tuples(st.floats(-100, 100, width=32), st.floats(-100, 100, width=32)),
    values=st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=20),
)
def test_every_range_contains_zero(keras, limits, values):
    from edgeferry_converter.compression.fake_quant import FakeQuant

    layer = FakeQuant()
    layer.build((None,))
    layer.minimum.assign(min(limits))
    layer.maximum.assign(max(limits))
    bottom, top = (float(limit) for limit in layer.range())
    assert bottom <= 0 < top - bottom
    assert top >= 0
    rounded, step = (np.asarray(part) for part in layer(np.array([0.0, *values], np.float32)))
    assert rounded[0] == 0
    assert step == pytest.approx((top - bottom) / 255, rel=1e-5)
    np.testing.assert_allclose(rounded / step, np.round(rounded / step), atol=1e-3)
    error = np.abs(rounded[1:] - np.clip(np.float32(values), bottom, top))
    assert error.max() <= 0.501 * step


def test_ranges_follow_the_batches_until_they_are_frozen(keras):
    ready = prepare(build(keras, dense), QatOptions(momentum=0.5))
    layer = ready.get_layer("pixels_range")
    assert not layer.observed
    observe(ready, [pixels(4)])
    assert float(layer.maximum) == pytest.approx(pixels(4).max())
    observe(ready, [3 * pixels(4)])
    assert float(layer.maximum) == pytest.approx(2 * pixels(4).max(), rel=1e-5)  # half old, half new
    freeze(ready)
    before = ready.get_weights()
    observe(ready, [9 * pixels(4)])
    ready(9 * pixels(4), training=True)
    pairs = zip(ready.weights, before, strict=True)
    changed = {weight.name for weight, value in pairs if not np.array_equal(value, np.asarray(weight))}
    assert changed == {"steps"}


def bright_quarter(count: int = 256):
    """Four classes by where a picture is bright."""
    random = np.random.default_rng(0)
    y = random.integers(0, 4, count)
    x = random.uniform(-0.3, 0.3, (count, *SHAPE)).astype(np.float32)
    for picture, label in zip(x, y, strict=True):
        picture[6 * (label // 2) :, 6 * (label % 2) :][:6, :6] += 0.5
    return x, y


def trainable(keras):
    def body(layers, x):
        return layers.Dense(4, "softmax", name="quarter")(
            layers.Flatten()(layers.MaxPooling2D(3)(unit(layers, x, 8)))
        )

    return build(keras, body)


def fit(keras, ready, epochs: int = 3):
    ready.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    history = ready.fit(*bright_quarter(), batch_size=32, epochs=epochs, verbose=0, shuffle=False)
    return history.history["loss"]


@pytest.mark.parametrize(
    "options",
    [QatOptions(), QatOptions(bits=4, delay_steps=4), QatOptions(weights="per-tensor", ranges="learned")],
    ids=["int8", "int4 delayed", "learned ranges"],
)
def test_training_learns_and_what_was_trained_is_exported(keras, export, options):
    ready = prepare(trainable(keras), options)
    losses = fit(keras, ready)
    assert losses[-1] < 0.5 * losses[0]
    x, y = bright_quarter()
    assert np.mean(np.argmax(ready.predict(x, verbose=0), -1) == y) > 0.9
    assert differences(ready, export(ready), x[:20]).max() <= 1


def test_probabilities_are_rounded_only_when_training_is_over(keras):
    """Where 1/256 is the smallest step, an unlikely class would cost log(0) and have no gradient."""
    ready = prepare(trainable(keras))
    ready.get_layer("quarter").layer.bias.assign([20.0, 0, 0, 0])
    observe(ready, [pixels(4)])
    assert np.asarray(ready(pixels(4), training=False)).min() == 0
    assert np.asarray(ready(pixels(4), training=True)).min() > 0


def test_learned_ranges_move_by_gradient_until_they_are_frozen(keras):
    ready = prepare(trainable(keras), QatOptions(ranges="learned", delay_steps=2))
    layer = ready.get_layer("pixels_range")
    fit(keras, ready, epochs=1)
    observed = np.mean([bright_quarter()[0][:32].max(), bright_quarter()[0][32:64].max()])
    learned = float(layer.maximum)
    assert 1e-4 < abs(learned - observed) < 0.2
    freeze(ready)
    fit(keras, ready, epochs=1)
    assert float(layer.maximum) == learned


def test_a_prepared_model_is_saved_and_restored(keras, tmp_path):
    ready = prepare(trainable(keras), QatOptions(bits=4, momentum=0.9, delay_steps=3))
    fit(keras, ready, epochs=1)
    ready.save(tmp_path / "ready.keras")
    restored = keras.saving.load_model(tmp_path / "ready.keras")
    x, _ = bright_quarter()
    wanted = ready.predict(x, verbose=0)
    np.testing.assert_array_equal(restored.predict(x, verbose=0), wanted)
    assert restored.get_layer("pixels_range").get_config() == ready.get_layer("pixels_range").get_config()
    ready.save_weights(tmp_path / "ready.weights.h5")
    fit(keras, ready, epochs=1)
    ready.load_weights(tmp_path / "ready.weights.h5")
    np.testing.assert_array_equal(ready.predict(x, verbose=0), wanted)


@pytest.mark.parametrize("name", MODELS)
def test_stripping_gives_the_plain_model_back(keras, name):
    from edgeferry_converter.compression.fold import fold_batch_norm

    model = build(keras, MODELS[name])
    bare = strip(prepare(model))
    assert [(layer.name, type(layer)) for layer in bare.layers] == [
        (layer.name, type(layer)) for layer in fold_batch_norm(model).layers
    ]
    np.testing.assert_allclose(bare(pixels(4)), model(pixels(4)), atol=1e-4)


def test_bad_input(keras, export):
    model = build(keras, dense)
    ready = prepare(model)
    with pytest.raises(ModelError, match="prepared already"):
        prepare(ready)
    with pytest.raises(ModelError, match="never observed: pixels_range"):
        export(ready)
    with pytest.raises(ModelError, match="not prepared"):
        export(model)
    with pytest.raises(OptionError, match="float16"):
        export(ready, scheme=QuantizationScheme("float16"))
    with pytest.raises(ModelError, match="no layer"):
        prepare(build(keras, lambda layers, x: layers.Activation("elu")(x)))
    half = keras.layers.Conv2D(2, 1, dtype="mixed_float16", name="half")
    with pytest.raises(ModelError, match="half compute in 16 bits"):
        prepare(build(keras, lambda layers, x: half(x)))
    with pytest.raises(OptionError, match=r"weights = 'none'.*bits = 3"):
        QatOptions(weights="none", bits=3)


@pytest.mark.parametrize(("bits", "exact"), [(8, 0.9), (4, 1.0)])
def test_resnet8_answers_as_it_was_simulated(keras, export, real_data, bits, exact):
    """Before its softmax, where one step of 0.12 would become several of 1/256.

    A tie that a kernel's arithmetic turns the other way grows from layer to layer; with 4 bits, where scales are
    coarser, none does.
    """
    from edgeferry_converter.loading.keras_files import load_model

    model = load_model(real_data / "mlcommons_tiny" / "resnet8_cifar10_keras2.h5").keras
    model.layers[-1].activation = keras.activations.linear
    images = np.load(real_data / "cifar10" / "train10k.npz")["x"][:128].astype(np.float32)
    ready = prepare(model, QatOptions(bits=bits))
    observe(ready, [images[:32], images[32:64]])
    found = differences(ready, export(ready), images[64:])
    assert (found <= 1).mean() >= exact
    assert found.mean() < 0.5

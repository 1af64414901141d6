"""Channel pruning: a rebuilt model computes what the masked original computes, whatever the architecture."""

from __future__ import annotations

import numpy as np
import pytest
from edgeferry_converter.compression.channel_graph import prunable
from edgeferry_converter.compression.channel_groups import IN
from edgeferry_converter.compression.macs import cost_table, macs, parameters
from edgeferry_converter.compression.rebuild import rebuild
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# fmt: off
STEPS = (
    "conv", "conv_stride", "conv_tanh", "transposed", "depthwise", "depthwise_2", "separable", "bn", "relu",
    "prelu", "leaky", "swish", "dropout", "pad", "crop", "max_pool", "average_pool", "upsample", "residual",
    "projection", "concat", "concat_down", "se", "se_reshape", "gate", "scale", "halves", "op_relu",
)
# fmt: on
HEADS = ("gap", "gmp", "flatten", "reshape", "map", "two")


def randomize(model, seed):
    """Weights none of which is a neutral element: a bias, statistic or slope cut wrongly shows."""
    random = np.random.default_rng(seed)
    draw = {
        "gamma": lambda shape: random.uniform(0.6, 1.4, shape),
        "moving_variance": lambda shape: random.uniform(0.6, 1.4, shape),
        "alpha": lambda shape: random.uniform(0.1, 0.5, shape),
    }
    for layer in model.layers:
        for weight in layer.weights:
            shape = tuple(weight.shape)
            fan_in = max(1, int(np.prod(shape[:-1])))
            small = random.normal(0, 0.3 if len(shape) == 1 else 1.2 / np.sqrt(fan_in), shape)
            weight.assign(draw.get(weight.name, lambda _, small=small: small)(shape).astype("float32"))


def build(keras, steps, head, seed):
    layers, ops = keras.layers, keras.ops
    sizes = np.random.default_rng(seed)

    def width():
        return int(sizes.integers(2, 9))

    def excite(x, flat):
        count = x.shape[-1]
        squeezed = layers.GlobalAveragePooling2D(keepdims=not flat)(x)
        squeezed = layers.Reshape((1, 1, count))(squeezed) if flat else squeezed
        inner = layers.Conv2D(width(), 1, activation="relu")(squeezed)
        return layers.Multiply()([x, layers.Conv2D(count, 1, activation="sigmoid")(inner)])

    table = {
        "conv": lambda x: layers.Conv2D(width(), 3, padding="same", activation="relu")(x),
        "conv_stride": lambda x: layers.Conv2D(width(), 3, 2, padding="same", use_bias=False)(x),
        "conv_tanh": lambda x: layers.Conv2D(width(), (1, 2), padding="same", activation="tanh")(x),
        "transposed": lambda x: layers.Conv2DTranspose(width(), 3, padding="same")(x),
        "depthwise": lambda x: layers.DepthwiseConv2D(3, padding="same", activation="relu")(x),
        "depthwise_2": lambda x: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x),
        "separable": lambda x: layers.SeparableConv2D(width(), 3, padding="same", depth_multiplier=2)(x),
        "bn": lambda x: layers.BatchNormalization()(x),
        "relu": lambda x: layers.ReLU(6.0)(x),
        "prelu": lambda x: layers.PReLU(shared_axes=[1, 2])(x),
        "leaky": lambda x: layers.LeakyReLU()(x),
        "swish": lambda x: layers.Activation("swish")(x),
        "dropout": lambda x: layers.SpatialDropout2D(0.3)(x),
        "pad": lambda x: layers.ZeroPadding2D(1)(x),
        "crop": lambda x: layers.Cropping2D(1)(layers.ZeroPadding2D(2)(x)),
        "max_pool": lambda x: layers.MaxPooling2D(2, padding="same")(x),
        "average_pool": lambda x: layers.AveragePooling2D(2, 1, padding="same")(x),
        "upsample": lambda x: layers.UpSampling2D(2)(layers.MaxPooling2D(2, padding="same")(x)),
        "residual": lambda x: layers.Add()([x, layers.Conv2D(x.shape[-1], 3, padding="same")(x)]),
        "projection": lambda x: x + layers.Dense(x.shape[-1], activation="relu")(x),
        "concat": lambda x: layers.Concatenate()([layers.Conv2D(width(), 1)(x), x, layers.Conv2D(width(), 1)(x)]),
        "concat_down": lambda x: layers.Concatenate(axis=1)([x, layers.Conv2D(x.shape[-1], 1)(x)]),
        "se": lambda x: excite(x, flat=False),
        "se_reshape": lambda x: excite(x, flat=True),
        "gate": lambda x: layers.Multiply()([layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x), x]),
        "scale": lambda x: layers.Rescaling(0.5, 0.1)(x) * 1.5,
        # The halves of one convolution are coupled with two different branches.
        "halves": lambda x: _halves(layers, x, width(), width()),
        "op_relu": lambda x: ops.relu(x),
    }
    heads = {
        "gap": lambda x: layers.Dense(4)(layers.GlobalAveragePooling2D()(x)),
        "gmp": lambda x: layers.Dense(4)(
            layers.Dropout(0.2)(layers.Dense(6, "relu")(layers.GlobalMaxPooling2D()(x)))
        ),
        "flatten": lambda x: layers.Dense(4)(layers.Flatten()(x)),
        "reshape": lambda x: layers.Dense(4)(layers.Reshape((int(np.prod(x.shape[1:])),))(x)),
        "map": lambda x: layers.Conv2D(3, 1)(x),
        "two": lambda x: [layers.Dense(4)(layers.Flatten()(x)), layers.Conv2D(2, 3)(layers.ZeroPadding2D(1)(x))],
    }
    image = keras.Input((8, 6, 3), name="image")
    x = layers.Conv2D(width(), 3, padding="same", name="stem")(image)
    for step in steps:
        x = table[step](x)
    model = keras.Model(image, heads[head](x), name="generated")
    randomize(model, seed)
    return model


def _halves(layers, x, first, second):
    both = layers.Concatenate()([layers.Conv2D(first, 1)(x), layers.Conv2D(second, 3, padding="same")(x)])
    return layers.Add()([both, layers.Conv2D(first + second, 1, activation="relu")(x)])


def outputs(model, images):
    answers = model(images, training=False)
    return [np.asarray(answer) for answer in (answers if isinstance(answers, (list, tuple)) else [answers])]


def masked_outputs(tracing, keeps, images):
    """What the original says when no kernel sees the removed channels."""
    alive = tracing.alive(keeps)
    before = {}
    for weight in tracing.weights:
        variable = tracing.model.get_layer(weight.layer).weights[weight.index]
        for axis in weight.axes:
            if axis.role == IN:
                before[variable.path] = (variable, np.asarray(variable))
                mask = np.moveaxis(alive[axis.slots][(...,) + (None,) * (len(variable.shape) - 1)], 0, axis.axis)
                variable.assign(np.asarray(variable) * mask)
    answers = outputs(tracing.model, images)
    for variable, value in before.values():
        variable.assign(value)
    return answers


def random_keeps(tracing, seed):
    random = np.random.default_rng(seed)
    return {
        group.name: np.sort(random.choice(group.size, random.integers(1, group.size + 1), replace=False))
        for group in tracing.groups
    }


def check_rebuilt(model, seed, images):
    tracing = prunable(model)
    keeps = random_keeps(tracing, seed)
    whole = outputs(model, images)
    expected = masked_outputs(tracing, keeps, images)
    smaller = rebuild(tracing, keeps)
    for a, b in zip(expected, outputs(smaller, images), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-4 * max(1.0, np.abs(a).max()))
    for a, b in zip(whole, outputs(model, images), strict=True):
        np.testing.assert_array_equal(a, b, "the original was changed")
    kept = np.array([len(keeps[group.name]) for group in tracing.groups])
    for unit, count in (("macs", macs), ("parameters", parameters)):
        table = cost_table(tracing, unit)
        assert table.total(table.sizes) == count(model)
        assert table.total(kept) == count(smaller)
    return tracing, whole, expected


def check_generated(keras, steps, head, seed):
    keras.backend.clear_session()
    model = build(keras, steps, head, seed)
    images = np.random.default_rng(seed).random((2, 8, 6, 3), np.float32)
    tracing, _, _ = check_rebuilt(model, seed, images)
    assert tracing.groups
    ends = {tensor._keras_history.operation.name for tensor in model.outputs}
    single = {layer.name for layer in model.layers if getattr(layer, "filters", 0) == 1}
    assert set(tracing.untouched) == ends | single, "everything generated can be traced"


ARCHITECTURES = given(
    steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=8),
    head=st.sampled_from(HEADS),
    seed=st.integers(0, 2**16),
)
QUIET = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("head", HEADS)
def test_every_kind_of_layer_at_once(keras, head):
    check_generated(keras, STEPS[::-1] if head in ("gap", "map") else STEPS, head, 7)


@settings(QUIET, max_examples=12)
@ARCHITECTURES
def test_a_rebuilt_model_equals_the_masked_one(keras, steps, head, seed):
    check_generated(keras, steps, head, seed)


@pytest.mark.slow
@settings(QUIET, max_examples=80)
@ARCHITECTURES
def test_a_rebuilt_model_equals_the_masked_one_at_length(keras, steps, head, seed):
    check_generated(keras, [*steps, *steps[::-1]], head, seed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "groups"), [("MobileNetV2", 25), ("ResNet50", 37), ("EfficientNetB0", 40), ("MobileNetV3Small", None)]
)
def test_known_architectures(keras, name, groups):
    keras.utils.set_random_seed(3)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None
    )
    randomize_scales(model)
    images = np.random.default_rng(0).random((2, 64, 64, 3), np.float32) * 255
    tracing, whole, expected = check_rebuilt(model, 3, images)
    assert groups in (None, len(tracing.groups))
    assert len(tracing.untouched) == 1, tracing.untouched  # the classes
    assert np.abs(whole[0] - expected[0]).max() > 1e-2, "the mask does something"


def randomize_scales(model):
    """BatchNormalization that does something, with the initial kernels: deep nets must neither explode nor die."""
    random = np.random.default_rng(1)
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            for weight in layer.weights:
                middle = 1.0 if weight.name in ("gamma", "moving_variance") else 0.0
                weight.assign(middle + random.uniform(-0.3, 0.3, weight.shape))


def test_the_kept_slices_are_the_ones_cut_by_hand(keras):
    layers = keras.layers
    image = keras.Input((5, 5, 2))
    x = layers.Conv2D(4, 3, name="a")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Flatten(name="flat")(layers.ReLU()(x))
    model = keras.Model(image, layers.Dense(3, name="b")(x))
    randomize(model, 0)
    smaller = rebuild(prunable(model), {"a": [0, 3]})
    kernel, bias = model.get_layer("a").get_weights()
    np.testing.assert_array_equal(smaller.get_layer("a").get_weights()[0], kernel[..., [0, 3]])
    np.testing.assert_array_equal(smaller.get_layer("a").get_weights()[1], bias[[0, 3]])
    for before, after in zip(
        model.get_layer("norm").get_weights(), smaller.get_layer("norm").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(after, before[[0, 3]])
    rows = model.get_layer("b").get_weights()[0].reshape(9, 4, 3)
    np.testing.assert_array_equal(smaller.get_layer("b").get_weights()[0].reshape(9, 2, 3), rows[:, [0, 3]])
    assert smaller.get_layer("a").filters == 2
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in model.layers]


def test_signals_in_one_dimension(keras):
    layers = keras.layers
    signal = keras.Input((20, 2))
    x = layers.Conv1D(6, 5, strides=2, activation="relu")(signal)
    x = layers.Conv1D(8, 3)(layers.MaxPooling1D(2)(x))
    model = keras.Model(signal, layers.Dense(3)(layers.Flatten()(layers.BatchNormalization()(x))))
    randomize(model, 4)
    tracing, _, _ = check_rebuilt(model, 4, np.random.default_rng(0).random((3, 20, 2), np.float32))
    assert [group.size for group in tracing.groups] == [6, 8]


def test_keeping_what_is_not_there_is_refused(keras):
    image = keras.Input((5, 5, 2))
    x = keras.layers.Conv2D(4, 3, name="a")(image)
    tracing = prunable(keras.Model(image, keras.layers.Conv2D(3, 1)(x)))
    with pytest.raises(ValueError, match="there is no group of channels 'b'; there are a"):
        rebuild(tracing, {"b": [0]})
    for wrong in ([], [4], [-1]):
        with pytest.raises(ValueError, match="channels 0 to 3"):
            rebuild(tracing, {"a": wrong})

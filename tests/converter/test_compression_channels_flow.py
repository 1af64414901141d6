"""Channel pruning as it is used: what is traced and named, ranked, shrunk, saved and converted."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from edgeferry_converter.compression import channel_rules
from edgeferry_converter.compression.channel_choice import TargetError
from edgeferry_converter.compression.channel_graph import prunable
from edgeferry_converter.compression.channel_pruning import ChannelBudget, share_that_fits, shrink, shrink_once
from edgeferry_converter.compression.importance import batch_norm_scale, l1, taylor
from edgeferry_converter.compression.macs import cost_table, macs, parameters
from edgeferry_converter.compression.rebuild import rebuild
from edgeferry_converter.compression.unfolding import unfolded
from edgeferry_converter.errors import DataError, ModelError


def residual(keras, channels=16, classes=4):
    """Stem, one residual block with BatchNormalization, classes."""
    layers = keras.layers
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(channels, 3, padding="same", name="stem")(image)
    y = layers.Conv2D(2 * channels, 3, padding="same", use_bias=False, name="inner")(x)
    y = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(y))
    y = layers.Conv2D(channels, 3, padding="same", name="back")(y)
    x = layers.Add(name="sum")([x, y])
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    keras.utils.set_random_seed(2)
    model = keras.Model(image, layers.Dense(classes, activation="softmax", name="classes")(x), name="residual")
    random = np.random.default_rng(5)
    for weight in model.get_layer("norm").weights:
        weight.assign(random.uniform(0.3, 1.5, weight.shape))
    return model


def answers(model, images):
    return np.asarray(model(images, training=False))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((6, 8, 8, 3), np.float32)


def test_groups_name_who_makes_and_who_reads(keras):
    groups = {group.name: group for group in prunable(residual(keras)).groups}
    assert (groups["stem"].size, groups["inner"].size) == (16, 32)
    assert groups["stem"].producers == ("stem", "back")
    assert groups["stem"].consumers == ("inner", "classes")
    assert (groups["inner"].producers, groups["inner"].consumers) == (("inner",), ("back",))


def test_every_rule_names_something_that_keras_has(keras):
    from keras.src.ops import nn, numpy  # where Keras keeps the classes behind keras.ops

    for kind in channel_rules.RULES:
        name = kind.removeprefix("ops.")
        places = (nn, numpy) if kind.startswith("ops.") else (keras.layers,)
        assert any(hasattr(place, name) for place in places), kind
    assert all(hasattr(keras.activations, name) for name in channel_rules.ELEMENTWISE)


@pytest.mark.parametrize(
    "kind", ["Lambda", "LayerNormalization", "grouped", "shared", "softmax", "own", "permute"]
)
def test_what_cannot_be_traced_stays_whole_and_is_named(keras, images, kind):
    layers = keras.layers

    class Own(layers.Conv2D):
        """A subclass may do anything."""

    shared = layers.Conv2D(8, 1, name="strange")
    strange = {
        "Lambda": layers.Lambda(lambda x: x[..., ::-1], output_shape=lambda shape: shape, name="strange"),
        "LayerNormalization": layers.LayerNormalization(name="strange"),
        "grouped": layers.Conv2D(8, 1, groups=2, name="strange"),
        "shared": lambda x: shared(shared(x)),
        "softmax": layers.Softmax(name="strange"),
        "own": Own(8, 1, name="strange"),
        "permute": layers.Permute((2, 1, 3), name="strange"),
    }[kind]
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="free")(image)
    x = layers.Conv2D(8, 3, name="before")(x)
    x = strange(x)
    model = keras.Model(image, layers.Conv2D(2, 3, name="last")(x))
    tracing = prunable(model)
    assert [group.name for group in tracing.groups] == ["free"]
    assert set(tracing.untouched) == {"before", "strange", "last"}
    assert "strange" in tracing.untouched["before"]
    assert tracing.untouched["last"] == "its channels are the model's output"
    smaller = rebuild(tracing, {"free": range(8)})
    np.testing.assert_array_equal(answers(smaller, images), answers(model, images))
    assert macs(smaller) == macs(model) == cost_table(tracing).total(np.array([8]))


def test_a_subclassed_model_is_refused_with_what_still_works(keras):
    class Own(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.dense = keras.layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    own = Own()
    with pytest.raises(ModelError, match=r"own: .*subclass of keras\.Model \(Own\)") as caught:
        prunable(own)
    assert "magnitude" in str(caught.value.remedy)
    image = keras.Input((5,))
    with pytest.raises(ModelError, match=r"no channel can be removed .*own: Own"):
        shrink_once(keras.Model(image, own(image), name="around"), 0.5, l1)


def test_nested_models_are_unfolded(keras, images):
    layers = keras.layers
    inner_image = keras.Input((8, 8, 3))
    y = layers.Conv2D(8, 3, name="conv")(inner_image)
    y = layers.BatchNormalization(name="norm")(y)
    base = keras.Model(inner_image, layers.Conv2D(8, 3, name="last")(y), name="base")
    head = keras.Sequential([layers.Dense(16, "relu", name="conv"), layers.Dense(2, name="dense")], name="head")
    image = keras.Input((8, 8, 3), name="picture")
    x = base(layers.Rescaling(0.5)(image), training=False)
    model = keras.Model(image, head(layers.GlobalMaxPooling2D()(x)), name="outer")
    for outer in (model, keras.Sequential([keras.Input((8, 8, 3)), base, layers.GlobalMaxPooling2D(), head])):
        flat = unfolded(outer)
        assert [layer.name for layer in flat.layers if layer.name in ("base", "head")] == []
        assert {"conv", "head_conv", "norm", "last"} <= {layer.name for layer in flat.layers}
        np.testing.assert_allclose(answers(flat, images), answers(outer, images), atol=1e-6)
        assert [group.size for group in prunable(outer).groups] == [8, 8, 16]
        assert macs(outer) == macs(flat)
    assert unfolded(model).inputs[0].name == "picture"
    base.trainable = False
    trainable = {layer.name: layer.trainable for layer in unfolded(model).layers if layer.weights}
    assert trainable == {"conv": False, "norm": False, "last": False, "head_conv": True, "dense": True}


def test_a_model_called_twice_stays_whole(keras, images):
    tower = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, name="tower")])
    left, right = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    x = keras.layers.Concatenate()([tower(left), tower(right)])
    model = keras.Model([left, right], keras.layers.Dense(2)(keras.layers.Conv2D(8, 1, name="mix")(x)))
    tracing = prunable(model)
    assert [group.name for group in tracing.groups] == ["mix"]
    assert "several times" in tracing.untouched["tower"]
    assert macs(model) == 36 * (2 * 27 * 8 + 16 * 8 + 8 * 2)
    smaller = rebuild(tracing, {"mix": range(8)})
    np.testing.assert_allclose(answers(smaller, [images] * 2), answers(model, [images] * 2), atol=1e-6)


def test_macs_by_hand(keras):
    layers = keras.layers
    cases = [
        (layers.Conv2D(5, 3, strides=2, padding="same"), 4 * 4 * 9 * 3 * 5),
        (layers.Conv2D(6, (1, 3), groups=3), 8 * 6 * 3 * 1 * 6),
        (layers.Conv2DTranspose(5, 2, strides=2), 8 * 8 * 4 * 3 * 5),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), 6 * 6 * 9 * 3 * 2),
        (layers.SeparableConv2D(5, 3, strides=2), 3 * 3 * (9 * 3 + 3 * 5)),
        (layers.Dense(7), 8 * 8 * 3 * 7),
        (layers.BatchNormalization(), 0),
    ]
    for layer, count in cases:
        model = keras.Sequential([keras.Input((8, 8, 3)), layer])
        assert macs(model) == count, layer
        assert parameters(model) == sum(int(np.prod(w.shape)) for w in layer.weights)


def test_a_feature_map_of_unknown_size_can_be_pruned_but_not_counted(keras):
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(32, 3, name="a")(image)
    model = keras.Model(image, keras.layers.Conv2D(2, 3)(x))
    with pytest.raises(ModelError, match="a: the size of its feature map") as caught:
        shrink_once(model, 0.5, l1)
    assert "--input-shape" in str(caught.value.remedy)
    half = shrink_once(model, 0.5, l1, ChannelBudget("parameters"))
    assert half.counts == {"a": (8, 32)} or half.counts == {"a": (16, 32)}
    assert half.after == parameters(half.model) <= 0.5 * parameters(model)


def test_l1_and_the_scale_of_batch_norm_by_hand(keras):
    model = residual(keras)
    tracing = prunable(model)

    def lamp(values):
        return [v**2 / sum(w**2 for w in values if w >= v) for v in values]

    made = [np.abs(np.asarray(model.get_layer(name).kernel)).sum(axis=(0, 1, 2)) for name in ("stem", "back")]
    np.testing.assert_allclose(l1(tracing)["stem"], lamp(sum(made)), rtol=1e-5)
    scores = batch_norm_scale(tracing)
    gamma = model.get_layer("norm").gamma
    np.testing.assert_allclose(scores["inner"], lamp(np.abs(gamma)), rtol=1e-5)
    np.testing.assert_allclose(scores["stem"], lamp(sum(made)), rtol=1e-5)  # has no BatchNormalization
    gamma.assign(np.zeros(32))
    assert np.isfinite(batch_norm_scale(tracing)["inner"]).all()


@pytest.mark.parametrize("labelled", [True, False])
def test_taylor_is_the_slope_of_the_loss_when_a_channel_fades(keras, images, labelled):
    model = residual(keras, channels=4)
    labels = np.array([0, 1, 2, 3, 0, 1])
    loss = keras.losses.sparse_categorical_crossentropy if labelled else None
    batches = [(images[i : i + 3], labels[i : i + 3]) if labelled else images[i : i + 3] for i in (0, 3)]
    tracing = prunable(model)
    found = taylor(tracing, batches, loss)

    def value(pictures, truth):
        said = answers(model, pictures).astype(np.float64)
        return -np.log(said[np.arange(3), truth]).mean() if labelled else (said**2).mean() / 2

    def slope(group, channel, pictures, truth, step=1e-2):
        kernels = [model.get_layer(name).kernel for name in group.consumers]
        before = [np.asarray(kernel).copy() for kernel in kernels]
        sides = []
        for gate in (1 + step, 1 - step):
            for kernel, original in zip(kernels, before, strict=True):
                faded = original.copy()
                faded[..., channel, :] *= gate
                kernel.assign(faded)
            sides.append(value(pictures, truth))
        for kernel, original in zip(kernels, before, strict=True):
            kernel.assign(original)
        return (sides[0] - sides[1]) / (2 * step)

    for group in tracing.groups:
        expected = [
            np.mean([slope(group, c, images[i : i + 3], labels[i : i + 3]) ** 2 for i in (0, 3)])
            for c in range(group.size)
        ]
        assert max(expected) > 0
        np.testing.assert_allclose(found[group.name], expected, rtol=0.05, atol=0.01 * max(expected))


def test_taylor_tells_bad_data(keras, images):
    tracing = prunable(residual(keras))
    loss = keras.losses.sparse_categorical_crossentropy
    with pytest.raises(DataError, match="no image"):
        taylor(tracing, [])
    with pytest.raises(DataError, match="needs labels"):
        taylor(tracing, [images], loss)
    with pytest.raises(DataError, match="not a finite number"):
        taylor(tracing, [images * np.nan])


def test_taylor_keeps_the_channels_that_matter(keras, images):
    """Half of the inner channels are read with zero weights: they go, and the answers stay."""
    model = residual(keras)
    back = model.get_layer("back")
    kernel = np.asarray(back.kernel).copy()
    kernel[:, :, ::2] = 0
    back.kernel.assign(kernel)
    once = shrink_once(model, 0.55, lambda tracing: taylor(tracing, [images]))
    assert once.counts == {"stem": (16, 16), "inner": (16, 32)}
    np.testing.assert_allclose(answers(once.model, images), answers(model, images), atol=1e-5)


@pytest.mark.parametrize("unit", ["macs", "parameters"])
def test_shrinking_reaches_its_share_with_aligned_counts(keras, unit):
    model = residual(keras, channels=64)
    once = shrink_once(model, 0.4, l1, ChannelBudget(unit))
    count = {"macs": macs, "parameters": parameters}[unit]
    assert (once.before, once.after) == (count(model), count(once.model))
    assert 0.35 < once.share <= 0.4
    assert all(now % 8 == 0 and now < then for now, then in once.counts.values())
    assert list(once.untouched) == ["classes"]


def test_rounds_train_the_model_that_is_left(keras):
    model = residual(keras, channels=32)
    seen = []

    def train(smaller):
        kernel = smaller.get_layer("classes").kernel
        kernel.assign(np.asarray(kernel) + 1)
        seen.append(macs(smaller) / macs(model))

    result = shrink(model, 0.3, l1, rounds=3, train=train)
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == 3
    assert [a <= b for a, b in zip(seen, (0.3 ** (1 / 3), 0.3 ** (2 / 3), 0.3), strict=True)] == [True] * 3
    assert result.share == seen[-1]
    kept, _ = result.counts["stem"]
    trained = np.asarray(result.model.get_layer("classes").kernel) - 3
    rows = np.asarray(model.get_layer("classes").kernel)
    nearest = np.abs(trained[:, None] - rows[None]).max(axis=2).min(axis=1)
    assert trained.shape[0] == kept < 32
    assert nearest.max() < 1e-5, "what was trained is what went on"


def test_an_impossible_target_is_told_before_any_training(keras):
    def train(_):
        raise AssertionError("trained in vain")

    with pytest.raises(TargetError, match=r"1\.0% of the macs cannot be reached .* the least is \d") as caught:
        shrink(residual(keras), 0.01, l1, rounds=3, train=train)
    reachable = caught.value.reachable
    assert shrink_once(residual(keras), reachable, l1).share == pytest.approx(reachable)


def test_a_measured_target(keras):
    """Any figure that a built model has; here one that the multiply-accumulates do not tell."""
    model = residual(keras, channels=64)

    def measure(candidate):
        return float(np.sqrt(parameters(candidate)))

    limit = measure(model) * 0.7
    share = share_that_fits(model, measure, limit, l1)
    assert measure(shrink_once(model, share, l1).model) <= limit
    assert measure(shrink_once(model, min(1.0, share + 0.1), l1).model) > limit
    with pytest.raises(TargetError, match="missed"):
        share_that_fits(model, measure, 1.0, l1)


def test_prices_by_layer_steer_what_goes(keras):
    """Where a layer is slower than its multiply-accumulates say, its channels go first."""
    layers = keras.layers
    image = keras.Input((8, 8, 3))
    x = image
    for name in "abc":
        x = layers.Conv2D(32, 3, padding="same", name=name)(x)
    model = keras.Model(image, layers.Conv2D(2, 1, name="last")(x))
    tracing = prunable(model)
    priced = cost_table(tracing, "macs", {"last": 1000.0})
    assert priced.total(priced.sizes) == macs(model) + 999 * 64 * 32 * 2
    dear = shrink_once(model, 0.7, l1, ChannelBudget(per_layer={"last": 1000.0}))
    plain = shrink_once(model, 0.7, l1)
    assert dear.counts["c"][0] < 32 == plain.counts["c"][0]


def test_the_smaller_model_saves_loads_and_converts(keras, images, tmp_path):
    import tensorflow as tf

    smaller = shrink_once(residual(keras), 0.5, l1).model
    expected = answers(smaller, images)
    smaller.save(tmp_path / "smaller.keras")
    loaded = keras.models.load_model(tmp_path / "smaller.keras")
    np.testing.assert_allclose(answers(loaded, images), expected, atol=1e-6)
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in residual(keras).layers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smaller.export(tmp_path / "saved", verbose=False)
        tflite = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved")).convert()
        interpreter = tf.lite.Interpreter(model_content=tflite)
    interpreter.resize_tensor_input(0, images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
    interpreter.invoke()
    said = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(said, expected, atol=1e-5)


def test_the_source_is_not_changed_and_shares_nothing(keras, images):
    model = residual(keras)
    model.compile("sgd", "mse")
    before = answers(model, images)
    smaller = shrink_once(model, 1.0, l1).model
    for weight in smaller.weights:
        weight.assign(np.zeros(weight.shape))
    np.testing.assert_array_equal(answers(model, images), before)
    assert model.compiled
    assert not smaller.compiled

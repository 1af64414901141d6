"""Every format gives the answers of the model that was saved, and so does the .tflite that is made of it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from edgeferry_converter.errors import ConverterError, ModelError, OptionError
from edgeferry_converter.loading.describe import inspect_source, to_text
from edgeferry_converter.loading.source import TensorInfo

PHOTO = (TensorInfo("photo", (None, 8, 8, 3), "float32"),)
SCORES = (TensorInfo("scores", (None, 3), "float32"),)


def check_parity(source, runner, operations, x, y):
    """Source and .tflite agree with the reference, and every variable is frozen."""
    (name,), (answer,) = [t.name for t in source.inputs], [t.name for t in source.outputs]
    np.testing.assert_allclose(source.predict({name: x})[answer], y, atol=1e-5)
    for frame, expected in zip(x, y, strict=True):
        np.testing.assert_allclose(runner(**{name: frame[None]})[answer], expected[None], atol=1e-5)
    assert not operations & {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"}


@pytest.mark.parametrize(
    ("name", "kind"), [("model.h5", "h5"), ("model.keras", "keras"), ("saved_model", "saved_model")]
)
def test_keras_2(load, to_tflite, keras2, parity, name, kind):
    source = load(keras2 / name)
    assert (source.format, source.inputs, source.outputs) == (kind, PHOTO, SCORES)
    assert source.parameters == 169
    assert source.last_activation == {"scores": "softmax"}
    assert source.shapes() == {"photo": (1, 8, 8, 3)}
    assert source.attempts == ()
    _, runner, operations = to_tflite(source)
    check_parity(source, runner, operations, *parity)


@pytest.mark.parametrize(
    "name", ["model.weights.h5", "flat_weights.h5", "model.h5", "model.keras", "checkpoint", "checkpoint.index",
             "saved_model", "checkpoint.data-00000-of-00001"]
)  # fmt: skip
def test_keras_2_weights_with_a_builder(load, keras2, parity, builders, name):
    source = load(keras2 / name, builder=f"{builders}:original", strict=name not in ("saved_model", "checkpoint"))
    assert (source.inputs, source.outputs) == (PHOTO, SCORES)
    assert source.first_layers == ("Rescaling", "DepthwiseConv2D", "BatchNormalization", "Conv2DTranspose")
    np.testing.assert_allclose(source.predict({"photo": parity[0]})["scores"], parity[1], atol=1e-5)


@pytest.mark.parametrize("name", ["sequential.h5", "sequential.keras"])
def test_keras_2_sequential(load, keras2, name):
    source = load(keras2 / name)
    assert [t.shape for t in source.inputs + source.outputs] == [(None, 3), (None, 2)]
    assert list(source.last_activation.values()) == ["softmax"]
    (answer,) = source.predict({source.inputs[0].name: np.ones((2, 3))}).values()
    np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-6)


def test_keras_2_checkpoint_of_layers_in_layers(load, keras2, builders):
    source = load(keras2 / "nested", builder=f"{builders}:nested", strict=True)
    with np.load(keras2 / "nested.npz") as arrays:
        np.testing.assert_allclose(source.predict({"sequence": arrays["x"]})["out"], arrays["y"], atol=1e-5)


def test_keras_2_model_in_a_model(load, keras2):
    source = load(keras2 / "transfer.h5")
    assert source.first_layers == ("Conv2D", "GlobalMaxPooling2D")
    with np.load(keras2 / "transfer.npz") as arrays:
        np.testing.assert_allclose(source.predict({"photo": arrays["x"]})["top"], arrays["y"], atol=1e-5)


def test_words_of_the_first_keras_2(load, keras2, parity, tmp_path):
    """What Keras 2.2 and TensorFlow 1.x wrote: other class names, and no InputLayer in a Sequential."""
    import h5py

    path = shutil.copyfile(keras2 / "model.h5", tmp_path / "old.h5")
    with h5py.File(path, "r+") as file:
        text = file.attrs["model_config"]
        for new, old in (("Functional", "Model"), ("BatchNormalization", "BatchNormalizationV1")):
            assert f'"class_name": "{new}"' in text
            text = text.replace(f'"class_name": "{new}"', f'"class_name": "{old}"')
        file.attrs["model_config"] = text
    np.testing.assert_allclose(load(path).predict({"photo": parity[0]})["scores"], parity[1], atol=1e-5)

    path = shutil.copyfile(keras2 / "sequential.h5", tmp_path / "old.h5")
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        first = config["config"]["layers"].pop(0)
        config["config"]["layers"][0]["config"]["batch_input_shape"] = first["config"]["batch_input_shape"]
        assert "input_shape" not in config["config"]["layers"][0]["config"]
        config["config"] = config["config"]["layers"]  # a bare list of layers
        file.attrs["model_config"] = json.dumps(config)
    source = load(path)
    expected = load(keras2 / "sequential.h5")
    x = np.random.default_rng(0).normal(size=(2, 3))
    answers = [s.predict({s.inputs[0].name: x})[s.outputs[0].name] for s in (source, expected)]
    np.testing.assert_allclose(*answers)


@pytest.mark.parametrize("way", ["keras", "h5", "weights", "export", "checkpoint", "checkpoint root"])
def test_keras_3(load, to_tflite, original, builders, save_quietly, tmp_path, parity, way):
    import tensorflow as tf

    path, builder = tmp_path / "model.keras", None
    if way in ("keras", "h5"):
        path = tmp_path / f"model.{way}"
        save_quietly(original.save, path)
    elif way == "weights":
        path, builder = tmp_path / "model.weights.h5", f"{builders}:original"
        original.save_weights(path)
    elif way == "export":
        path = tmp_path / "exported"
        save_quietly(original.export, path, verbose=False)
    else:
        path, builder = tmp_path / "point", f"{builders}:original"
        checkpoint = tf.train.Checkpoint(net=original) if way == "checkpoint" else tf.train.Checkpoint(original)
        checkpoint.write(str(path))
    source = load(path, builder=builder)
    _, runner, operations = to_tflite(source)
    x = parity[0]
    assert [t.shape for t in source.inputs] == [(None, 8, 8, 3)]
    check_parity(source, runner, operations, x, np.asarray(original(x, training=False)))


def test_latest_checkpoint_of_a_folder(load, original, builders, tmp_path, parity):
    import tensorflow as tf

    keeper = tf.train.CheckpointManager(tf.train.Checkpoint(model=original), str(tmp_path / "c"), max_to_keep=2)
    keeper.save()
    keeper.save()
    source = load(tmp_path / "c", builder=f"{builders}:original", strict=True)
    assert source.format == "checkpoint"
    np.testing.assert_allclose(
        source.predict({"photo": parity[0]})["scores"], np.asarray(original(parity[0])), atol=1e-6
    )


@pytest.fixture
def two_by_two(keras, save_quietly, tmp_path):
    """Two inputs and two outputs of other sizes, so that a mistaken order fails."""
    left, right = keras.Input((4,), name="zebra"), keras.Input((6,), name="ant")
    both = keras.layers.Concatenate()([left, right])
    outputs = [
        keras.layers.Dense(3, activation="sigmoid", name="late")(both),
        keras.layers.Dense(2, name="early")(left),
    ]
    model = keras.Model([left, right], outputs)
    model.save(tmp_path / "two.keras")
    save_quietly(model.export, tmp_path / "two", verbose=False)
    return model


@pytest.mark.parametrize("name", ["two.keras", "two"])
def test_several_inputs_and_outputs_by_name(load, to_tflite, two_by_two, tmp_path, name):
    source = load(tmp_path / name)
    random = np.random.default_rng(0)
    inputs = {"ant": random.normal(size=(5, 6)), "zebra": random.normal(size=(5, 4))}
    late, early = (np.asarray(y) for y in two_by_two([inputs["zebra"], inputs["ant"]]))
    assert {t.name: t.shape for t in source.inputs} == {"zebra": (None, 4), "ant": (None, 6)}
    by_size = {t.shape[1]: t.name for t in source.outputs}
    answers = source.predict(inputs)
    np.testing.assert_allclose(answers[by_size[3]], late, atol=1e-5)
    np.testing.assert_allclose(answers[by_size[2]], early, atol=1e-5)
    assert source.last_activation[by_size[3]] == "sigmoid"
    assert source.last_activation[by_size[2]] in ("linear", "")
    path, runner, operations = to_tflite(source)
    assert set(runner.get_output_details()) == {t.name for t in source.outputs}
    again = load(path).predict(inputs)
    for key, answer in answers.items():
        np.testing.assert_allclose(again[key], answer, atol=1e-5)
    converted = runner(**{key: value[:1].astype(np.float32) for key, value in inputs.items()})
    np.testing.assert_allclose(converted[by_size[3]], late[:1], atol=1e-5)
    np.testing.assert_allclose(converted[by_size[2]], early[:1], atol=1e-5)
    assert not operations & {"VAR_HANDLE", "READ_VARIABLE"}
    with pytest.raises(ModelError, match="takes the inputs"):
        source.predict({"ant": inputs["ant"], "zebr": inputs["zebra"]})


def test_dicts_keep_their_keys(load, keras, save_model, tmp_path):
    inputs = {"b": keras.Input((2,), name="b"), "a": keras.Input((3,), name="a")}
    outputs = {"sum": keras.layers.Dense(1)(keras.layers.Concatenate()([inputs["b"], inputs["a"]]))}
    keras.Model(inputs, outputs).save(tmp_path / "dict.keras")
    source = load(tmp_path / "dict.keras")
    assert {t.name: t.shape for t in source.inputs} == {"a": (None, 3), "b": (None, 2)}
    assert source.predict({"a": np.ones((2, 3)), "b": np.ones((2, 2))})["sum"].shape == (2, 1)


@pytest.fixture
def plain_module(keras, tmp_path):
    """A tf.Module with two functions, odd names, and a variable."""
    import tensorflow as tf

    class Scale(tf.Module):
        def __init__(self):
            self.factor = tf.Variable(3.0)

        @tf.function(input_signature=[tf.TensorSpec([None, None, 2], tf.float32, "x")])
        def times(self, x):
            return {"product/of:it": x * self.factor}

        @tf.function(input_signature=[tf.TensorSpec([1, 4], tf.float32, "y")])
        def total(self, y):
            return {"sum": tf.reduce_sum(y, axis=1) + self.factor}

    module = Scale()
    signatures = {"times": module.times, "total": module.total}
    tf.saved_model.save(module, str(tmp_path / "module"), signatures=signatures)
    return tmp_path / "module"


def test_plain_module(load, to_tflite, plain_module):
    source = load(plain_module, signature="times", input_shapes=(("x", (5, 2)),))
    assert source.inputs == (TensorInfo("x", (None, None, 2), "float32"),)
    assert source.outputs[0].name == "product_of_it"
    assert source.shapes() == {"x": (1, 5, 2)}
    x = np.arange(20, dtype=np.float32).reshape(2, 5, 2)
    np.testing.assert_allclose(source.predict({"x": x})["product_of_it"], 3 * x)
    _, runner, operations = to_tflite(source)
    np.testing.assert_allclose(runner(x=x[:1])["product_of_it"], 3 * x[:1])
    assert "READ_VARIABLE" not in operations


def test_a_fixed_batch_is_run_again_and_again(load, plain_module):
    source = load(plain_module, signature="total")
    y = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(source.predict({"y": y})["sum"], y.sum(axis=1) + 3)


def test_several_signatures_are_listed(load, plain_module):
    with pytest.raises(OptionError, match="has several signatures") as caught:
        load(plain_module)
    assert "times: x float32[?, ?, 2] -> product_of_it float32[?, ?, 2]" in str(caught.value)
    assert "total: y float32[1, 4] -> sum float32[1]" in str(caught.value)
    with pytest.raises(OptionError, match="has no signature 'time'"):
        load(plain_module, signature="time")
    found = inspect_source(load(plain_module, listing=True))
    assert set(found["signatures"]) == {"times", "total"}
    assert found["inputs"] == []
    assert "--signature total" in to_text(found)


def test_free_dimensions(load, to_tflite, keras, save_model):
    path = save_model(lambda x: keras.layers.GlobalAveragePooling2D()(x), (None, None, 3))
    source = load(path)
    (info,) = source.inputs
    for ask in (source.shapes, lambda: source.saved_model().__enter__()):
        with pytest.raises(OptionError, match=r"leaves dimensions free: \w+ \[\?, \?, \?, 3\]") as caught:
            ask()
        assert f"--input-shape '{info.name}=1,?,?,3'" in caught.value.remedy
    sized = load(path, input_shapes=(("", (6, 8, 3)),))
    assert sized.shapes() == {info.name: (1, 6, 8, 3)}
    _, runner, _ = to_tflite(sized)
    assert list(runner.get_input_details()[info.name]["shape"]) == [1, 6, 8, 3]
    assert load(path, input_shapes=((info.name, (1, 6, 8, 3)),)).shapes() == sized.shapes()


def test_own_layers_and_subclassed_models(load, original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_layers.py").write_text(
        "import keras\n"
        "class Twice(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return 2 * x\n"
        "class Net(keras.Model):\n"
        "    def __init__(self, **options):\n"
        "        super().__init__(**options)\n"
        "        self.dense = keras.layers.Dense(2)\n"
        "    def call(self, x):\n"
        "        return self.dense(x)\n"
        "def functional():\n"
        "    inputs = keras.Input((3,), name='x')\n"
        "    return keras.Model(inputs, Twice(name='y')(inputs))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import own_layers

    own_layers.functional().save(tmp_path / "own.keras")
    with pytest.raises(ModelError, match="Twice") as caught:
        load(tmp_path / "own.keras")
    assert "--custom-objects" in caught.value.remedy
    source = load(tmp_path / "own.keras", custom_objects="own_layers")
    assert source.predict({"x": np.ones((1, 3))})["y"].tolist() == [[2, 2, 2]]

    net = own_layers.Net()
    x = np.ones((2, 3), np.float32)
    y = np.asarray(net(x))
    net.save(tmp_path / "net.keras")
    with pytest.raises(OptionError, match="does not say what it takes"):
        load(tmp_path / "net.keras", custom_objects="own_layers")
    source = load(tmp_path / "net.keras", custom_objects="own_layers", input_shapes=(("x", (3,)),))
    (answer,) = source.predict({"x": x}).values()
    np.testing.assert_allclose(answer, y, atol=1e-6)


def test_inspection_is_json_and_text(load, keras2):
    found = inspect_source(load(keras2 / "model.h5"))
    assert json.loads(json.dumps(found)) == found
    assert found["inputs"] == [{"name": "photo", "shape": [None, 8, 8, 3], "dtype": "float32"}]
    assert found["first_layers"][0] == "Rescaling"
    lines = to_text(found)
    assert "photo  float32 [?, 8, 8, 3]" in lines
    assert "scores  float32 [?, 3]  softmax" in lines
    assert "Rescaling" in lines


@pytest.mark.parametrize("name", ["model.h5", "model.keras", "model.weights.h5"])
def test_content_decides_not_the_name(load, keras2, builders, tmp_path, name):
    copy = shutil.copyfile(keras2 / name, tmp_path / "anything.bin")
    builder = f"{builders}:original" if "weights" in name else None
    assert load(copy, builder=builder).parameters == 169


def test_the_hash_follows_the_content(load, keras2, tmp_path):
    first = load(keras2 / "saved_model")
    copy = shutil.copytree(keras2 / "saved_model", tmp_path / "copy")
    assert load(copy).sha256 == first.sha256
    (copy / "assets.txt").write_text("x")
    assert load(copy).sha256 != first.sha256


def test_trained_models_of_keras_2(load, to_tflite, real_data):
    for name, size, classes in (("mobilenet_v1_025_vww", 96, 2), ("resnet8_cifar10", 32, 10)):
        source = load(real_data / "mlcommons_tiny" / f"{name}_keras2.h5")
        assert [t.shape for t in source.inputs + source.outputs] == [(None, size, size, 3), (None, classes)]
        x = np.random.default_rng(0).uniform(0, 1, (2, size, size, 3)).astype(np.float32)
        _, runner, operations = to_tflite(source)
        check_parity(
            source, runner, operations, x, source.predict({source.inputs[0].name: x})[source.outputs[0].name]
        )


def test_errors_are_known_ones(load, plain_module):
    source = load(plain_module, signature="times")
    with pytest.raises(ConverterError, match=r"input x takes \[\?, \?, 2\], got \[1, 2, 9\]"):
        source.predict({"x": np.ones((1, 2, 9))})

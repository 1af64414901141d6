"""What cannot be loaded: one known error that says what was tried and what to do, never a traceback."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from edgeferry_converter.errors import ConverterError, ModelError, ModelNotFoundError, OptionError
from edgeferry_converter.loading.source import NotLoadedError

SHARES = [0.0, 0.02, 0.3, 0.6, 0.9, 0.99]


def refused(kind, words, call, *args, **options):
    with pytest.raises(kind, match=words) as caught:
        call(*args, **options)
    assert isinstance(caught.value, ConverterError)
    assert caught.value.exit_code in (1, 2)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["model.h5", "model.keras", "model.weights.h5", "flat_weights.h5"])
def test_truncated_files(load, keras2, builders, truncated, name, share):
    builder = f"{builders}:original" if "weights" in name else None
    refused(
        ModelError,
        "damaged|cannot load|no Keras model|without",
        load,
        truncated(keras2 / name, share),
        builder=builder,
    )


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("part", ["checkpoint.index", "checkpoint.data-00000-of-00001"])
def test_truncated_checkpoint(load, keras2, builders, truncated, part, share):
    cut = truncated(keras2 / part, share)
    for other in ("checkpoint.index", "checkpoint.data-00000-of-00001"):
        if other != part:
            shutil.copyfile(keras2 / other, cut.parent / other)
    refused(ModelError, "damaged", load, cut.parent / "checkpoint.index", builder=f"{builders}:original")


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    "part", ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
def test_truncated_saved_model(load, keras2, tmp_path, part, share):
    copy = shutil.copytree(keras2 / "saved_model", tmp_path / "copy")
    data = (copy / part).read_bytes()
    (copy / part).write_bytes(data[: int(len(data) * share)])
    refused(ModelError, "damaged|cannot load|holds no graph", load, copy)


def test_missing_parts(load, keras2, builders, tmp_path):
    refused(ModelNotFoundError, "no such model", load, tmp_path / "no.keras")
    index = shutil.copyfile(keras2 / "checkpoint.index", tmp_path / "lonely.index")
    refused(ModelError, "damaged", load, index, builder=f"{builders}:original")
    data = shutil.copyfile(keras2 / "checkpoint.data-00000-of-00001", tmp_path / "half.data-00000-of-00001")
    refused(ModelError, "half of a checkpoint", load, data)
    copy = shutil.copytree(keras2 / "saved_model", tmp_path / "copy")
    shutil.rmtree(copy / "variables")
    refused(ModelError, "cannot load the SavedModel", load, copy)
    refused(ModelError, "is a folder, not a Keras model", load, tmp_path)


def test_every_attempt_is_in_the_error(load, keras2, tmp_path):
    error = refused(NotLoadedError, "cannot be loaded", load, keras2 / "model.weights.h5")
    assert [attempt.loader for attempt in error.attempts] == [
        "a Keras .h5 file",
        "weights for the builder's model",
    ]
    assert "as a Keras .h5 file: is an HDF5 file without a model's architecture" in str(error)
    assert "as weights for the builder's model: no --builder is given" in str(error)
    assert "--builder" in error.remedy
    (tmp_path / "x.keras").write_bytes(b"PK\x03\x04 and nothing")
    error = refused(NotLoadedError, "damaged", load, tmp_path / "x.keras")
    assert "tried as a .keras file" in str(error)


def test_hdf5_and_zip_that_are_no_model(load, builders, tmp_path):
    import h5py

    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = [1.0, 2.0]
    refused(ModelError, "without a model's architecture", load, tmp_path / "data.h5")
    error = refused(ModelError, "11 of 11|10 of 10", load, tmp_path / "data.h5", builder=f"{builders}:original")
    assert "1 of 1 arrays in the file fit no variable (x [2])" in str(error)
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    refused(ModelError, "holds no arrays", load, tmp_path / "empty.h5", builder=f"{builders}:original")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(ModelError, r"without config\.json", load, tmp_path / "x.zip")
    refused(ModelError, r"without model\.weights\.h5", load, tmp_path / "x.zip", builder=f"{builders}:original")


def test_saved_model_without_signatures(load, keras, tmp_path):
    import tensorflow as tf

    module = tf.Module()
    module.weight = tf.Variable(1.0)
    tf.saved_model.save(module, str(tmp_path / "bare"))
    error = refused(ModelError, "without signatures", load, tmp_path / "bare")
    assert "signatures=" in error.remedy


def test_a_folder_whose_saved_model_is_something_else(load, tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")  # a version and nothing more
    refused(ModelError, "holds no graph", load, tmp_path)


@pytest.mark.parametrize("builder", ["wider", "larger"])
@pytest.mark.parametrize("name", ["model.weights.h5", "flat_weights.h5", "model.keras", "checkpoint"])
def test_another_architecture(load, keras2, builders, name, builder):
    error = refused(ModelError, r"fit", load, keras2 / name, builder=f"{builders}:{builder}")
    assert "architecture" in error.remedy
    assert "[4, 3]" in str(error) or "[3, 3, 3, 1]" in str(error) or "[3]" in str(error)  # what is in the file
    assert "scores/kernel [4, 7]" in str(error) or "dense" in str(error) or "depthwise" in str(error)  # and wanted


@pytest.mark.parametrize("name", ["model.weights.h5", "checkpoint"])
def test_strict_refuses_what_is_left_over(load, keras2, builders, name):
    assert load(keras2 / name, builder=f"{builders}:headless").outputs[0].shape == (None, 4)
    refused(
        ModelError, "2 of 10 arrays in the file fit no variable", load, keras2 / name,
        builder=f"{builders}:headless", strict=True,
    )  # fmt: skip


def test_strict_sees_the_optimizer(load, keras, original, builders, tmp_path):
    model = keras.models.clone_model(original)
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    model.save_weights(tmp_path / "t.weights.h5")
    assert load(tmp_path / "t.weights.h5", builder=f"{builders}:original")
    refused(
        ModelError, "fit no variable.*optimizer", load, tmp_path / "t.weights.h5",
        builder=f"{builders}:original", strict=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("builder", "kind", "words"),
    [
        ("{}:raising", ModelError, r"raises KeyError: 'no such key' \(.*builders_.*\.py, line \d+\)"),
        ("{}:forgetful", ModelError, "returns builtins.NoneType"),
        ("{}:unbuilt", ModelError, "not built"),
        ("{}:no_such", OptionError, "has no function 'no_such'; it has original"),
        ("{}:not_callable", OptionError, "has no function"),
        ("{}", OptionError, "is not module:function"),
        ("{}:", OptionError, "is not module:function"),
        (":f", OptionError, "is not module:function"),
        ("no_module_here:f", OptionError, "there is no module 'no_module_here'"),
    ],
)
def test_builders_with_faults(load, keras2, builders, builder, kind, words):
    refused(kind, words, load, keras2 / "model.weights.h5", builder=builder.format(builders))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_dependency", "needs the module 'no_such_dependency'"),
        ("def f(:\n    pass", r"raises SyntaxError.*broken_\w+\.py, line 1"),
        ("x = 1\n1 / 0", r"raises ZeroDivisionError.*broken_\w+\.py, line 2"),
    ],
)
def test_modules_with_faults(load, keras2, builders, tmp_path, request, text, words):
    name = f"broken_{abs(hash(text)) % 10**6}"
    (tmp_path / f"{name}.py").write_text(text)
    refused(OptionError, words, load, keras2 / "model.weights.h5", builder=f"{name}:f")
    refused(OptionError, words, load, keras2 / "model.keras", custom_objects=name)


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_lambda_layers_need_trust(load, keras, save_model, ending):
    path = save_model(
        lambda x: keras.layers.Lambda(lambda t: t * 2, output_shape=(3,))(x), (3,), name=f"l.{ending}"
    )
    error = refused(ModelError, "has a Lambda layer, which carries code", load, path)
    assert "--allow-unsafe" in error.remedy
    source = load(path, allow_unsafe=True)
    (answer,) = source.predict({source.inputs[0].name: np.ones((1, 3))}).values()
    assert answer.tolist() == [[2, 2, 2]]


def test_lambda_functions_need_trust(load, keras, save_model):
    path = save_model(lambda x: keras.layers.Dense(2, activation=lambda t: t * 2)(x), (3,))
    refused(ModelError, "has a lambda function, which carries code", load, path)


class Trap:
    def __reduce__(self):
        import pathlib

        return pathlib.Path.touch, (pathlib.Path("sprung"),)


def test_pickles_need_trust(load, original, parity, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.pkl").write_bytes(pickle.dumps(Trap()))
    refused(ModelError, "is a pickle, which carries code", load, tmp_path / "trap.pkl")
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "good.pkl").write_bytes(pickle.dumps(original))
    source = load(tmp_path / "good.pkl", allow_unsafe=True)
    np.testing.assert_allclose(source.predict({"photo": parity[0]})["scores"], np.asarray(original(parity[0])))
    (tmp_path / "dict.pkl").write_bytes(pickle.dumps({"a": 1}))
    refused(ModelError, "holds a dict", load, tmp_path / "dict.pkl", allow_unsafe=True)
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps(original)[:500])
    refused(ModelError, "cannot be read", load, tmp_path / "cut.pkl", allow_unsafe=True)


def test_python_functions_in_a_saved_model(load, keras, tmp_path):
    import tensorflow as tf

    class Calls(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([1, 2], tf.float32, "x")])
        def run(self, x):
            return tf.reshape(tf.py_function(lambda t: t, [x], tf.float32), [1, 2])

    module = Calls()
    tf.saved_model.save(module, str(tmp_path / "calls"), signatures=module.run)
    error = refused(ModelError, "calls Python functions.*EagerPyFunc", load, tmp_path / "calls")
    assert "--allow-unsafe" in error.remedy
    assert load(tmp_path / "calls", allow_unsafe=True).inputs[0].name == "x"


def test_files_read_by_a_saved_model(load, keras, tmp_path):
    import tensorflow as tf

    class Reads(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], tf.string, "x")])
        def run(self, x):
            return tf.io.read_file(x)

    module = Reads()
    tf.saved_model.save(module, str(tmp_path / "reads"), signatures=module.run)
    refused(ModelError, "reads or writes other files.*ReadFile", load, tmp_path / "reads")


def test_operations_that_keras_3_cannot_load(load, keras2):
    error = refused(ModelError, r"cannot load: TFOpLambda \(math.multiply\)", load, keras2 / "operations.h5")
    assert "SavedModel" in error.remedy


def test_a_name_that_means_something_else_in_keras_3(load, keras2, tmp_path):
    import h5py

    path = shutil.copyfile(keras2 / "model.h5", tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace('"softmax"', '"hard_sigmoid"')
    refused(ModelError, "hard_sigmoid of Keras 2", load, path)


@pytest.mark.parametrize("way", ["keras", "h5", "weights", "checkpoint", "export"])
def test_nan_in_weights(load, keras, original, builders, save_quietly, tmp_path, way):
    import tensorflow as tf

    model = keras.models.clone_model(original)
    model.set_weights(original.get_weights())
    model.get_layer("scores").bias.assign([0, np.nan, 0])
    builder = f"{builders}:original" if way in ("weights", "checkpoint") else None
    path = tmp_path / {"weights": "w.weights.h5", "keras": "m.keras", "h5": "m.h5"}.get(way, way)
    if way == "weights":
        model.save_weights(path)
    elif way == "checkpoint":
        tf.train.Checkpoint(model=model).write(str(path))
    elif way == "export":
        save_quietly(model.export, path, verbose=False)
    else:
        save_quietly(model.save, path)
    refused(ModelError, "weights hold NaN or infinity: .+", load, path, builder=builder)


def test_damaged_configuration(load, keras2, tmp_path):
    for text, words in (("{", "configuration is damaged"), (json.dumps({"class_name": "Nope"}), "cannot load it")):
        path = tmp_path / "m.keras"
        with zipfile.ZipFile(keras2 / "model.keras") as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(name, text if name == "config.json" else old.read(name))
        refused(ModelError, words, load, path)


def test_nothing_is_left_behind(load, keras2, builders, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    load(keras2 / "model.keras")
    load(keras2 / "checkpoint", builder=f"{builders}:original")
    refused(ModelError, "fit no", load, keras2 / "model.weights.h5", builder=f"{builders}:wider")
    refused(ModelError, "TFOpLambda", load, keras2 / "operations.h5")
    with load(keras2 / "saved_model").saved_model() as (folder, _):
        assert folder.is_dir()
    # TensorFlow keeps the sources it generates until the process ends, and then removes them itself; Python may
    # compile them beside it.
    left = [p.name for p in scratch.iterdir() if not p.name.startswith("__autograph_generated")]
    assert set(left) <= {"__pycache__"}

"""Conversion: proven bundles, the same bytes twice, and what cannot be converted refused without a trace."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from edgeferry_converter.errors import ConverterError, DataError, ModelError, ModelNotFoundError, OptionError
from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.check import check_here
from edgeferry_runtime.errors import EdgeferryError
from edgeferry_runtime.model import Model


def test_a_model_becomes_a_proven_bundle(convert, color_model, image_folders):
    result = convert(color_model, image_folders)
    figures = result.figures
    assert figures["evaluation"]["keras_accuracy"] == 1.0
    assert figures["evaluation"]["frames"] == 48
    assert figures["data"]["calibration_images"] == 12
    int8 = figures["evaluation"]["variants"]["int8"]
    assert int8["accuracy"] == 1.0
    assert int8["agreement"] == 1.0
    assert int8["others"] == {"top-5": 1.0}
    assert int8["latency"]["ratio"] > 0
    assert figures["evaluation"]["variants"]["float32"]["latency"]["ratio"] == 1.0
    # Twelve images to calibrate with are few, and that is all there is to say.
    assert [finding["code"] for finding in figures["findings"]] == ["W102", "W103"]
    assert json.loads(result.report.read_text()) == json.loads(json.dumps(figures))
    assert sorted(p.name for p in convert.folder.iterdir()) == ["m.ferry", "m.report.html", "m.report.json"]

    report = check_here(str(result.bundle), None, None, None)
    assert report.ok
    assert report.frames >= 8
    with Bundle.open(result.bundle) as bundle, Model.open(bundle) as model:
        manifest = bundle.manifest
        assert manifest.version == result.version
        assert manifest.name == "m"
        assert manifest.profile["name"] == "host"
        assert [v.name for v in manifest.variants] == ["int8"]
        assert manifest.variants[0].inputs[0].name == "pixels"
        assert manifest.variants[0].inputs[0].dtype == "int8"
        assert manifest.provenance["gate"]["variants"]["int8"]["accuracy"] == 1.0
        red = cv2.imread(str(image_folders / "red" / "00.png"))
        assert model(red).classes[0].label == "red"
        assert model(red[..., ::-1].copy(), "rgb").classes[0].label == "red"


def test_the_same_inputs_give_the_same_bytes_anywhere(convert, color_model, image_folders, tmp_path):
    first = convert(color_model, image_folders)
    other = tmp_path / "elsewhere"
    other.mkdir()
    model = shutil.copy(color_model, other / "colors.keras")
    data = shutil.copytree(image_folders, other / "copied")
    second = convert(Path(model), data, output=other / "m.ferry")
    assert first.bundle.read_bytes() == second.bundle.read_bytes()


def test_another_process_gives_the_same_bytes(convert, color_model, image_folders, tmp_path):
    first = convert(color_model, image_folders)
    script = "import sys; from edgeferry_converter.cli import convert; import argparse\n"
    script += "p = argparse.ArgumentParser(); convert.configure(p); sys.exit(convert.run(p.parse_args()))"
    command = [sys.executable, "-c", script, str(color_model), "--profile", "host", "--data", str(image_folders)]
    command += ["--preprocess", "unit", "-o", str(tmp_path / "m.ferry"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == first.version  # nothing but JSON on standard output
    assert done.stderr == ""  # and none of TensorFlow's noise
    assert (tmp_path / "m.ferry").read_bytes() == first.bundle.read_bytes()


def test_nothing_timed_and_no_path_is_in_the_bundle(convert, color_model, image_folders):
    result = convert(color_model, image_folders)
    with Bundle.open(result.bundle) as bundle:
        text = bundle.manifest_bytes.decode()
    for word in ("latency", "_ms", "seconds", str(convert.folder), str(color_model.parent), str(image_folders)):
        assert word not in text


@pytest.mark.parametrize("scheme", ["float32", "float16"])
def test_float_schemes(convert, color_model, image_folders, scheme):
    result = convert(color_model, image_folders, quantize=scheme)
    with Bundle.open(result.bundle) as bundle:
        (variant,) = bundle.manifest.variants
    assert (variant.name, variant.scheme, variant.inputs[0].dtype) == (scheme, scheme, "float32")
    assert check_here(str(result.bundle), None, None, None).ok
    # Rounding is all that float variants may lose, and the tolerance says so.
    assert variant.tolerance["classes"].max_abs < 0.01


@pytest.mark.parametrize("schemes", [("int8", "float32"), ("float32", "int8")])
def test_the_scheme_named_first_is_preferred(convert, color_model, image_folders, schemes):
    with Bundle.open(convert(color_model, image_folders, schemes=schemes).bundle) as bundle:
        assert tuple(variant.name for variant in bundle.manifest.variants) == schemes


def test_uint8_and_float_input_by_profile(convert, color_model, image_folders, tmp_path, repository):
    text = (repository / "device_profiles" / "host.toml").read_text()
    text = text.replace('input_dtype = "int8"', 'input_dtype = "uint8"')
    text = text.replace('output_dtype = "int8"', 'output_dtype = "float32"').replace(
        'name = "host"', 'name = "mine"'
    )
    profile = tmp_path / "mine.toml"
    profile.write_text(text)
    result = convert(color_model, image_folders, profile=str(profile))
    with Bundle.open(result.bundle) as bundle:
        (variant,) = bundle.manifest.variants
    assert (variant.inputs[0].dtype, variant.outputs[0].dtype) == ("uint8", "float32")
    assert check_here(str(result.bundle), None, None, None).ok


@pytest.mark.parametrize(("activation", "kind"), [(None, "logits"), ("softmax", "probabilities")])
def test_what_the_scores_are(convert, keras, save_model, image_folders, activation, kind):
    dense = keras.layers.Dense(3, activation=activation)
    path = save_model(lambda x: dense(keras.layers.GlobalAveragePooling2D()(x)), (16, 16, 3))
    with Bundle.open(convert(path, image_folders).bundle) as bundle:
        assert bundle.manifest.postprocessing.scores == kind


def test_one_sigmoid_output_is_two_classes(convert, keras, save_model, image_folders, tmp_path):
    two = tmp_path / "two"
    for name in ("blue", "red"):
        shutil.copytree(image_folders / name, two / name)
    dense = keras.layers.Dense(1, activation="sigmoid")
    path = save_model(lambda x: dense(keras.layers.GlobalAveragePooling2D()(x)), (16, 16, 3), name="binary.h5")
    with Bundle.open(convert(path, two).bundle) as bundle, Model.open(bundle) as model:
        assert bundle.manifest.postprocessing.scores == "binary-probability"
        answer = model(np.zeros((9, 9, 3), np.uint8))
        assert {c.label for c in answer.classes} == {"blue", "red"}
        assert sum(c.score for c in answer.classes) == pytest.approx(1)


def test_labels_file_gives_the_order(convert, color_model, image_folders, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("Blau\nGrün\nRot\n", encoding="utf-8")
    with Bundle.open(convert(color_model, image_folders, labels=labels).bundle) as bundle:
        assert bundle.read("labels.txt").decode().split() == ["Blau", "Grün", "Rot"]
    labels.write_text("red\ngreen\nblue\n")  # the folders' own names in another order: by name, so judged wrong
    assert convert(color_model, image_folders, labels=labels).figures["evaluation"]["keras_accuracy"] < 0.5


def test_wrong_preprocessing_is_noticed(convert, color_model, image_folders, keras, save_model):
    figures = convert(color_model, image_folders, preprocess="caffe").figures
    assert figures["evaluation"]["keras_accuracy"] < 0.5
    assert any(finding["code"] == "W201" for finding in figures["findings"])


def test_a_model_without_a_size_takes_the_declared_one(convert, keras, save_model, image_folders, tmp_path):
    dense = keras.layers.Dense(3, activation="softmax")
    path = save_model(lambda x: dense(keras.layers.GlobalAveragePooling2D()(x)), (None, None, 3))
    with pytest.raises(OptionError, match="width: is missing") as caught:
        convert(path, image_folders)
    assert "height: is missing" in caught.value.message
    file = tmp_path / "pre.toml"
    file.write_text('preset = "unit"\nwidth = 20\nheight = 12\ngeometry = "letterbox"\n')
    with Bundle.open(convert(path, image_folders, preprocess=str(file)).bundle) as bundle:
        assert bundle.manifest.variants[0].inputs[0].shape == (1, 12, 20, 3)


def test_large_pictures_become_small_goldens(convert, color_model, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "big" / name).mkdir(parents=True)
        for i in range(5):
            pixels = np.random.default_rng(i).integers(0, 256, (300, 400, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / "big" / name / f"{i}.png"), pixels + np.uint8(ord(name)))
    with Bundle.open(convert(color_model, tmp_path / "big").bundle) as bundle:
        assert max(entry.size for entry in bundle.manifest.files.values()) < 32 * 24 * 3 + 4000
        assert len(bundle.manifest.golden.frames) >= 8


# What cannot be converted.


def refuse(convert, kind, words, *args, **options):
    """The conversion fails with this error, names the next step and changes nothing in the output folder."""
    old = convert.folder / "m.ferry"
    old.write_bytes(b"an older bundle")
    before = sorted(convert.folder.iterdir())
    with pytest.raises(kind, match=words) as caught:
        convert(*args, **options)
    assert isinstance(caught.value, EdgeferryError)
    assert caught.value.exit_code in (1, 2)
    assert caught.value.remedy
    assert sorted(convert.folder.iterdir()) == before
    assert old.read_bytes() == b"an older bundle"


def test_missing_model(convert, image_folders, tmp_path):
    refuse(convert, ModelNotFoundError, "no such model", tmp_path / "no.keras", image_folders)


def test_folder_that_is_no_model(convert, image_folders, tmp_path):
    refuse(convert, ModelError, "is a folder", tmp_path, image_folders)


@pytest.mark.parametrize("name", ["model.h5", "model.keras"])
def test_text_with_a_models_ending(convert, image_folders, tmp_path, name):
    (tmp_path / name).write_text("hello")
    refuse(convert, ModelError, "is no Keras model", tmp_path / name, image_folders)


def test_empty_file(convert, image_folders, tmp_path):
    (tmp_path / "model.keras").touch()
    refuse(convert, ModelError, "is no Keras model", tmp_path / "model.keras", image_folders)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_truncated_model(convert, save_model, keras, image_folders, tmp_path, ending, share):
    path = save_model(lambda x: keras.layers.Dense(3)(keras.layers.Flatten()(x)), (16, 16, 3), name=f"m.{ending}")
    cut = tmp_path / f"cut.{ending}"
    data = path.read_bytes()
    cut.write_bytes(data[: int(len(data) * share)])
    refuse(convert, ModelError, "damaged|cannot load|no Keras model|without", cut, image_folders)


def test_hdf5_without_a_model(convert, image_folders, tmp_path):
    import h5py

    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["x"] = [1, 2, 3]
    refuse(convert, ModelError, "without a model's architecture", tmp_path / "weights.h5", image_folders)


def test_zip_that_is_no_model(convert, image_folders, tmp_path):
    shutil.make_archive(str(tmp_path / "x"), "zip", image_folders / "red")
    (tmp_path / "x.zip").rename(tmp_path / "x.keras")
    refuse(convert, ModelError, r"without config\.json", tmp_path / "x.keras", image_folders)


def test_two_inputs(convert, keras, save_model, image_folders):
    def build(a, b):
        return keras.layers.Dense(3)(keras.layers.Flatten()(keras.layers.Add()([a, b])))

    path = save_model(build, (16, 16, 3), (16, 16, 3))
    refuse(convert, DataError, "does not take one image", path, image_folders)


def test_two_outputs(convert, keras, save_model, image_folders):
    def build(x):
        flat = keras.layers.Flatten()(x)
        return [keras.layers.Dense(3, name="a")(flat), keras.layers.Dense(3, name="b")(flat)]

    refuse(convert, OptionError, r"has 2 outputs \(a, b\)", save_model(build, (16, 16, 3)), image_folders)


def test_no_image_model(convert, keras, save_model, image_folders):
    refuse(
        convert,
        DataError,
        "does not take one image",
        save_model(lambda x: keras.layers.Dense(3)(x), (16,)),
        image_folders,
    )


def test_no_classifier(convert, keras, save_model, image_folders):
    path = save_model(lambda x: keras.layers.Conv2D(3, 1)(x), (16, 16, 3))
    refuse(convert, OptionError, r"is \[1, 16, 16, 3\], for --task classify it needs 2", path, image_folders)


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_lambda_layers_carry_code_and_are_refused(convert, keras, save_model, image_folders, ending):
    def build(x):
        x = keras.layers.Lambda(lambda t: t * 2, output_shape=(16, 16, 3))(x)
        return keras.layers.Dense(3)(keras.layers.Flatten()(x))

    path = save_model(build, (16, 16, 3), name=f"lambda.{ending}")
    refuse(convert, ModelError, "has a Lambda layer", path, image_folders)


def test_nan_in_weights(convert, keras, image_folders, tmp_path):
    model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(3, name="bad")])
    model.get_layer("bad").bias.assign([0, np.nan, 0])
    model.save(tmp_path / "nan.keras")
    refuse(convert, ModelError, "weights hold NaN.*bad/bias", tmp_path / "nan.keras", image_folders)


def copy_of(image_folders, tmp_path):
    return Path(shutil.copytree(image_folders, tmp_path / "data"))


def test_images_that_do_not_decode(convert, color_model, image_folders, tmp_path):
    data = copy_of(image_folders, tmp_path)
    for name in ("red", "green"):
        for path in (data / name).iterdir():
            path.write_bytes(path.name.encode())
    refuse(convert, DataError, r"0\d\.png|1\d\.png", color_model, data)
    refuse(convert, DataError, "cannot be decoded as an image", color_model, data)


def test_empty_class_folder(convert, color_model, image_folders, tmp_path):
    data = copy_of(image_folders, tmp_path)
    for path in (data / "green").iterdir():
        path.rename(path.with_suffix(".txt"))
    refuse(convert, DataError, "too few images in class 'green'", color_model, data)


def test_one_class(convert, color_model, image_folders, tmp_path):
    data = copy_of(image_folders, tmp_path)
    shutil.rmtree(data / "green")
    shutil.rmtree(data / "red")
    refuse(convert, DataError, r"has one class only \(blue\)", color_model, data)


def test_no_classes_at_all(convert, color_model, image_folders, tmp_path):
    refuse(convert, DataError, "no class folders", color_model, image_folders / "red")
    refuse(convert, DataError, "no such folder", color_model, tmp_path / "no")


def test_other_number_of_classes(convert, color_model, image_folders, tmp_path):
    data = copy_of(image_folders, tmp_path)
    shutil.copytree(data / "red", data / "yellow")
    refuse(convert, DataError, "4 class folders, the model tells 3 classes apart", color_model, data)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\nb\n", "has 2 lines, the model tells 3"),
        ("a\nb\nb\n", "names 'b' twice"),
        ("a\n\nb\n", "empty line"),
        ("", "empty line"),
        ("red\ngreen\nviolet\n", "folder 'blue' is no label"),
    ],
)
def test_labels_that_do_not_match(convert, color_model, image_folders, tmp_path, text, words):
    (tmp_path / "labels.txt").write_text(text)
    refuse(convert, DataError, words, color_model, image_folders, labels=tmp_path / "labels.txt")


def test_labels_that_are_no_text(convert, color_model, image_folders, tmp_path):
    refuse(convert, OptionError, "cannot be read", color_model, image_folders, labels=tmp_path / "no.txt")
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00")
    refuse(convert, DataError, "not UTF-8", color_model, image_folders, labels=tmp_path / "labels.txt")


def test_copies_of_one_image(convert, color_model, image_folders, tmp_path):
    data = copy_of(image_folders, tmp_path)
    for path in (data / "red").iterdir():
        shutil.copy(image_folders / "red" / "00.png", path)
    refuse(convert, DataError, "copies of one image", color_model, data)


def test_profile_that_does_not_exist(convert, color_model, image_folders):
    refuse(convert, ConverterError, "rpi44", color_model, image_folders, profile="rpi44")


@pytest.mark.parametrize(
    ("preprocess", "words"),
    [("uint", "did you mean 'unit'"), ("no/such.toml", "neither a preset nor a file")],
)
def test_preprocessing_that_does_not_exist(convert, color_model, image_folders, preprocess, words):
    refuse(convert, OptionError, words, color_model, image_folders, preprocess=preprocess)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("color = 'gray'", "'gray' has 1 channels, the model's input has 3"),
        ("width = 99", "width: is 99, the model's input is 16"),
        ("colour = 'rgb'", "colour: is unknown, did you mean 'color'"),
        ("preset = 'torsh'", "did you mean 'torch'"),
        ("mean = [1, 2]\nstd = [0]", "mean: has 2 values"),
        ("not toml", "cannot be read"),
    ],
)
def test_preprocessing_files_with_faults(convert, color_model, image_folders, tmp_path, text, words):
    (tmp_path / "pre.toml").write_text(text)
    refuse(convert, OptionError, words, color_model, image_folders, preprocess=str(tmp_path / "pre.toml"))


def test_output_that_cannot_be_written(convert, color_model, image_folders, tmp_path):
    refuse(
        convert, OptionError, "cannot be written", color_model, image_folders, output=tmp_path / "no" / "m.ferry"
    )


def test_an_operation_tflite_does_not_know(convert, keras, save_model, image_folders):
    class Weird(keras.layers.Layer):
        def call(self, x):
            import tensorflow as tf

            return tf.math.igamma(x + 1.5, x)

        def compute_output_shape(self, shape):
            return shape

    keras.saving.get_custom_objects()["Weird"] = Weird
    try:
        path = save_model(lambda x: keras.layers.Dense(3)(keras.layers.Flatten()(Weird()(x))), (16, 16, 3))
        refuse(convert, ConverterError, "cannot make a float32 model.*[Ii]gamma", path, image_folders)
    finally:
        del keras.saving.get_custom_objects()["Weird"]

"""Conversion beyond classifiers: tensors, several inputs and outputs, other tasks, other files, other schemes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from edgeferry_converter.errors import GateError, OptionError
from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.check import check_here
from edgeferry_runtime.model import Model


def edgeferry(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "edgeferry_deploy", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def vectors(tmp_path) -> Path:
    """160 vectors of 6 numbers, and what a linear map makes of them."""
    random = np.random.default_rng(0)
    x = random.normal(size=(160, 6)).astype(np.float32)
    weights = random.normal(size=(6, 2)).astype(np.float32)
    np.savez(tmp_path / "vectors.npz", features=x, labels=x @ weights)
    np.save(tmp_path / "weights.npy", weights)
    return tmp_path / "vectors.npz"


@pytest.fixture
def linear_model(keras, vectors, tmp_path) -> Path:
    inputs = keras.Input((6,), name="features")
    dense = keras.layers.Dense(2, name="answer")
    model = keras.Model(inputs, dense(inputs))
    dense.set_weights([np.load(vectors.parent / "weights.npy"), np.zeros(2, np.float32)])
    model.save(tmp_path / "linear.keras")
    return tmp_path / "linear.keras"


def test_a_model_of_vectors_is_judged_by_its_error(convert, linear_model, vectors):
    result = convert(linear_model, vectors, preprocess=None, max_drop=0)
    evaluation = result.figures["evaluation"]
    assert evaluation["metric"] == "MAE"
    assert evaluation["reference"] < 1e-5
    assert evaluation["variants"]["int8"]["metric"] < 0.3  # of answers that spread over some 10
    assert result.figures["preprocessing"] is None
    assert check_here(str(result.bundle), None, None, None).ok
    with Model.open(result.bundle) as model:
        model.set_inputs({"features": np.ones((1, 6), np.float32)})
        model.invoke()
        assert len(model.decode().to_json()["values"]) == 2


def test_several_inputs_and_outputs_go_by_name(convert, keras, save_model, tmp_path):
    keras.utils.set_random_seed(0)
    a, b = keras.Input((5,), name="left"), keras.Input((3,), name="right")
    outputs = {
        "sum": keras.layers.Dense(2, name="s")(keras.layers.Concatenate()([a, b])),
        "product": keras.layers.Dense(4, name="p")(a),
    }
    keras.Model([a, b], outputs).save(tmp_path / "two.keras")
    random = np.random.default_rng(1)
    arrays = {"right": random.normal(size=(60, 3)), "left": random.normal(size=(60, 5))}
    np.savez(tmp_path / "two.npz", **{name: values.astype(np.float32) for name, values in arrays.items()})
    result = convert(tmp_path / "two.keras", tmp_path / "two.npz", preprocess=None)
    with Bundle.open(result.bundle) as bundle:
        manifest = bundle.manifest
        assert manifest.postprocessing.task == "raw"
        assert {spec.name: spec.shape for spec in manifest.variants[0].inputs} == {"left": (1, 5), "right": (1, 3)}
        assert len(manifest.variants[0].outputs) == 2
    assert result.figures["evaluation"]["metric"] == "cosine similarity"
    assert result.figures["evaluation"]["variants"]["int8"]["agreement"] > 0.99
    assert check_here(str(result.bundle), None, None, None).ok


def test_segmentation_is_judged_by_iou(convert, keras, save_model, tmp_path):
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(40):
        mask = np.zeros((24, 24), np.uint8)
        x, y = random.integers(0, 14, 2)
        mask[y : y + 10, x : x + 10] = 1
        image = np.where(mask[..., None], 220, 30) + random.integers(-20, 20, (24, 24, 3))
        cv2.imwrite(str(tmp_path / "data" / "images" / f"{i}.png"), image.astype(np.uint8))
        cv2.imwrite(str(tmp_path / "data" / "masks" / f"{i}.png"), mask)
    inputs = keras.Input((24, 24, 3), name="image")
    layer = keras.layers.Conv2D(2, 1, activation="softmax", name="mask")
    model = keras.Model(inputs, layer(inputs))
    layer.set_weights([np.array([[-4.0, 4.0]] * 3, np.float32)[None, None], np.array([6.0, -6.0], np.float32)])
    model.save(tmp_path / "seg.keras")
    (tmp_path / "labels.txt").write_text("ground\nsquare\n")
    result = convert(tmp_path / "seg.keras", tmp_path / "data", labels=tmp_path / "labels.txt")
    evaluation = result.figures["evaluation"]
    assert evaluation["metric"] == "mean IoU"
    assert evaluation["reference"] > 0.95
    assert evaluation["variants"]["int8"]["metric"] > 0.95
    assert check_here(str(result.bundle), None, None, None).ok


def test_detection_is_judged_by_map(convert, keras, tmp_path):
    """A head of random weights: structure and parity count, not accuracy, so the gate is off."""
    for name in ("images", "labels"):
        (tmp_path / "data" / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(24):
        image = random.integers(0, 60, (48, 64, 3))
        image[10:30, 20:40] = 250
        cv2.imwrite(str(tmp_path / "data" / "images" / f"{i}.png"), image.astype(np.uint8))
        (tmp_path / "data" / "labels" / f"{i}.txt").write_text("0 0.46875 0.41667 0.3125 0.41667\n")
    (tmp_path / "labels.txt").write_text("square\nother\n")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3), name="image")
    x = keras.layers.Conv2D(8, 3, strides=4, padding="same", activation="relu")(inputs)
    boxes = keras.layers.Conv2D(4, 1, activation="sigmoid")(x)
    scores = keras.layers.Conv2D(2, 1, activation="sigmoid")(x)
    head = keras.layers.Reshape((64, 6), name="head")(keras.layers.Concatenate()([boxes, scores]))
    keras.Model(inputs, head).save(tmp_path / "yolo.keras")
    result = convert(tmp_path / "yolo.keras", tmp_path / "data", labels=tmp_path / "labels.txt", max_drop=0)
    post = result.figures["postprocessing"]
    assert (post["task"], post["decoder"], post["box_unit"]) == ("detect", "yolo-v8", "fraction")
    assert result.figures["evaluation"]["variants"]["int8"]["agreement"] > 0.99
    assert check_here(str(result.bundle), None, None, None).ok
    with Model.open(result.bundle) as model:
        found = model(np.zeros((48, 64, 3), np.uint8)).to_json()["boxes"]
        assert all(0 <= box["x"] <= 64 and 0 <= box["y"] <= 48 for box in found)


def test_a_unet_keeps_its_parity(convert, keras, tmp_path):
    """Random weights: skip connections, strides and transposed convolutions survive int8."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((32, 32, 3), name="image")
    down1 = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    down2 = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(down1)
    up = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu")(down2)
    joined = layers.BatchNormalization()(layers.Concatenate()([up, down1]))
    keras.Model(inputs, layers.Conv2D(3, 1, activation="softmax", name="mask")(joined)).save(
        tmp_path / "unet.keras"
    )
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    for i in range(24):
        small = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), cv2.resize(small, (40, 30)))
    result = convert(tmp_path / "unet.keras", tmp_path / "images", task="raw")
    assert result.figures["evaluation"]["variants"]["int8"]["agreement"] > 0.99
    assert result.figures["evaluation"]["variants"]["int8"]["not_int8"] == []
    assert check_here(str(result.bundle), None, None, None).ok


def test_several_variants_in_order(convert, color_model, image_folders):
    result = convert(color_model, image_folders, schemes=("int8", "dynamic", "float16", "int16x8"))
    with Bundle.open(result.bundle) as bundle:
        assert [v.name for v in bundle.manifest.variants] == ["int8", "dynamic", "float16", "int16x8"]
    for name in ("int8", "dynamic", "float16", "int16x8"):
        assert check_here(str(result.bundle), name, None, None).ok
    assert result.figures["evaluation"]["variants"]["int8"]["not_int8"] == []


def test_chosen_layers_stay_float(convert, color_model, image_folders):
    result = convert(color_model, image_folders, keep_float="classes")
    with Bundle.open(result.bundle) as bundle:
        (variant,) = bundle.manifest.variants
    assert (variant.name, variant.scheme) == ("int8-mixed", "int8-mixed")
    figures = result.figures["evaluation"]["variants"]["int8-mixed"]
    assert any("FULLY_CONNECTED" in operation for operation in figures["not_int8"])
    assert check_here(str(result.bundle), None, None, None).ok
    with pytest.raises(OptionError, match="matches no layer") as caught:
        convert(color_model, image_folders, keep_float="nothing-like-it")
    assert "classes" in caught.value.remedy
    with pytest.raises(OptionError, match="no regular expression"):
        convert(color_model, image_folders, keep_float="(")


def test_operations_left_float_are_named(repository):
    from edgeferry_converter.figures import left_float
    from edgeferry_converter.quantization import QuantizationScheme
    from edgeferry_converter.variants import ConvertedVariant

    def variant(scheme: QuantizationScheme, file: str) -> ConvertedVariant:
        return ConvertedVariant(scheme, repository / "tests" / "contract" / "data" / file, 0)

    (warning,) = left_float(variant(QuantizationScheme("int8"), "tiny_float32.tflite"))
    assert "int8: stays float" in warning
    assert "CONV_2D" in warning
    assert left_float(variant(QuantizationScheme("int8"), "tiny_int8.tflite")) == []
    assert left_float(variant(QuantizationScheme("float32"), "tiny_float32.tflite")) == []
    assert left_float(variant(QuantizationScheme("int8", keep_float=("x",)), "tiny_float32.tflite")) == []


@pytest.fixture
def fragile_model(keras, tmp_path) -> Path:
    """A classifier that int8 ruins: one huge channel takes the scale, the others tell the classes."""
    inputs = keras.Input((16, 16, 3), name="pixels")
    widen = keras.layers.Conv2D(4, 1, use_bias=False, name="widen")
    mean = keras.layers.GlobalAveragePooling2D(name="mean")
    dense = keras.layers.Dense(3, activation="softmax", name="classes")
    model = keras.Model(inputs, dense(mean(widen(inputs))))
    kernel = np.zeros((1, 1, 3, 4), np.float32)
    kernel[0, 0, :, :3] = np.eye(3) * 0.01
    kernel[0, 0, :, 3] = 100
    widen.set_weights([kernel])
    bgr = np.zeros((4, 3), np.float32)
    bgr[:3] = np.eye(3)[::-1] * 2000
    dense.set_weights([bgr, np.zeros(3, np.float32)])
    model.save(tmp_path / "fragile.keras")
    return tmp_path / "fragile.keras"


def test_the_gate_blocks_and_says_which_layers_lose(convert, fragile_model, image_folders):
    with pytest.raises(GateError, match="no bundle was written: int8: top-1 drops by") as caught:
        convert(fragile_model, image_folders)
    assert "the layers that lose most: " in caught.value.message
    assert caught.value.exit_code == 1
    assert sorted(p.name for p in convert.folder.iterdir()) == ["m.report.html", "m.report.json"]
    report = json.loads((convert.folder / "m.report.json").read_text())
    assert report["gate"]["int8"]["passed"] is False
    assert report["layers"][0]["steps"] > 0
    assert "more than the 0.01 allowed" in (convert.folder / "m.report.html").read_text()


def test_the_gate_can_be_turned_off_with_a_word(convert, fragile_model, image_folders):
    result = convert(fragile_model, image_folders, max_drop=0)
    assert "the gate is off" in result.figures["gate"]["int8"]["reason"]


def test_as_few_layers_as_needed_stay_float(convert, fragile_model, image_folders):
    result = convert(fragile_model, image_folders, auto_keep_float=True)
    figures = result.figures["evaluation"]["variants"]["int8-mixed"]
    assert figures["metric"] > 0.98
    assert figures["kept_float"]  # which are the fewest is for test_keep_float.py
    assert check_here(str(result.bundle), None, None, None).ok


def test_data_that_only_judges(convert, color_model, image_folders, tmp_path):
    import shutil

    judging = Path(shutil.copytree(image_folders, tmp_path / "judging"))
    for path in judging.glob("*/0*.png"):  # half of each class is shared with the calibration data
        image = cv2.imread(str(path))
        cv2.imwrite(str(path), cv2.add(image, 1))
    data = convert(color_model, image_folders, eval_data=str(judging)).figures["data"]
    assert data["evaluation_images"] == 60
    assert data["overlap_removed"] == 30
    assert data["calibration_images"] == 30


def test_saved_models_and_ready_files_convert_too(convert, keras, color_model, image_folders, tmp_path):
    model = keras.saving.load_model(color_model)
    model.export(str(tmp_path / "saved"), verbose=False)
    result = convert(tmp_path / "saved", image_folders)
    assert result.figures["evaluation"]["variants"]["int8"]["metric"] == 1.0
    with Bundle.open(convert(color_model, image_folders).bundle) as bundle:
        (tmp_path / "ready.tflite").write_bytes(bundle.read("model-int8.tflite"))
    packed = convert(tmp_path / "ready.tflite", image_folders)
    with Bundle.open(packed.bundle) as bundle:
        assert [v.name for v in bundle.manifest.variants] == ["int8"]
    assert check_here(str(packed.bundle), None, None, None).ok
    with pytest.raises(OptionError, match="is packed as it is"):
        convert(tmp_path / "ready.tflite", image_folders, schemes=("float16",))


def test_a_float_file_is_quantised_further(convert, color_model, image_folders, tmp_path):
    with Bundle.open(convert(color_model, image_folders, schemes=("float32",)).bundle) as bundle:
        (tmp_path / "float.tflite").write_bytes(bundle.read("model-float32.tflite"))
    result = convert(tmp_path / "float.tflite", image_folders, schemes=("int8", "float16"))
    variants = result.figures["evaluation"]["variants"]
    assert list(variants) == ["float32", "int8", "float16"]
    assert variants["int8"]["metric"] == 1.0
    assert variants["int8"]["not_int8"] == []
    for name in ("int8", "float16"):
        assert check_here(str(result.bundle), name, None, None).ok
    with pytest.raises(OptionError, match="cannot be made int16x8"):
        convert(tmp_path / "float.tflite", image_folders, schemes=("int16x8",))
    with pytest.raises(OptionError, match="--keep-float needs"):
        convert(tmp_path / "float.tflite", image_folders, schemes=("int8",), keep_float="x")


def test_the_packed_model_is_described_in_the_standard_form(convert, color_model, image_folders):
    from edgeferry_converter.metadata import read_metadata

    with Bundle.open(convert(color_model, image_folders).bundle) as bundle:
        metadata = read_metadata(bundle.read("model-int8.tflite"))
    assert metadata.labels == ("blue", "green", "red")
    assert metadata.std == pytest.approx((255.0,))


def test_an_edge_tpu_profile_says_what_is_missing(convert, color_model, image_folders, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    result = convert(color_model, image_folders, profile="coral-usb-rpi4")
    assert result.figures["edgetpu"]["compiled"] is False
    assert any("edgetpu_compiler -s -m 14" in warning for warning in result.figures["warnings"])


def test_a_compiled_model_goes_before_its_twin(convert, color_model, image_folders, monkeypatch):
    """What the compiler makes is a variant of its own, held to its twin's goldens, for boards that can run it."""
    from edgeferry_runtime.model import choose_variant

    made = (b"compiled", {"compiled": True, "mapped": {"CONV_2D": 1}, "on_cpu": {}, "unmapped": []})
    monkeypatch.setattr("edgeferry_converter.convert.compile_for", lambda profile, name, model: made)
    result = convert(color_model, image_folders, profile="coral-usb-rpi4")
    with Bundle.open(result.bundle) as bundle:
        manifest = bundle.manifest
        assert bundle.read("model-edgetpu.tflite") == b"compiled"
    assert [(v.name, v.delegate) for v in manifest.variants] == [("edgetpu", "edgetpu"), ("int8", "")]
    assert manifest.variants[0].golden == manifest.variants[1].golden
    assert choose_variant(manifest, ["ai-edge-litert"]).name == "int8"
    assert choose_variant(manifest, ["ai-edge-litert"], ["edgetpu"]).name == "edgetpu"
    assert "Edge TPU" in Path(result.figures["page"]).read_text()


def test_inspect_tells_models_and_bundles(convert, color_model, image_folders, tmp_path):
    done = edgeferry("inspect", color_model, "--json")
    found = json.loads(done.stdout)
    assert found["inputs"] == [{"name": "pixels", "shape": [None, 16, 16, 3], "dtype": "float32"}]
    assert found["outputs"][0]["name"] == "classes"
    result = convert(color_model, image_folders)
    done = edgeferry("inspect", result.bundle)
    assert "made for       host" in done.stdout
    assert "judged on 48 held-out samples" in done.stdout
    result.report.write_text("{")
    assert "cannot be read; convert again" in edgeferry("inspect", result.bundle).stdout
    done = edgeferry("inspect", tmp_path / "no.keras")
    assert done.returncode == 2
    assert "no such model" in done.stderr
    assert done.stdout == ""


def test_inspect_tells_where_an_edge_tpu_runs_the_operations(real_data):
    files = sorted((real_data / "coral").glob("*_edgetpu.tflite"))
    found = json.loads(edgeferry("inspect", *files, "--json").stdout)
    mapped = {Path(one["file"]).name: sum(one["edgetpu"]["mapped"].values()) for one in found}
    assert mapped == {
        "keras_lstm_mnist_ptq_edgetpu.tflite": 6,
        "mobilenet_v1_0.25_128_quant_edgetpu.tflite": 31,
        "split_concat_edgetpu.tflite": 3,
    }
    assert all(one["edgetpu"]["on_cpu"] == {} for one in found)


def test_lint_speaks_and_fails_when_strict(color_model, image_folders):
    command = ["lint", image_folders, "--for", color_model, "--preprocess", "unit"]
    done = edgeferry(*command)
    assert done.returncode == 0, done.stderr
    assert "W102" in done.stdout
    done = edgeferry(*command, "--strict", "--json")
    assert done.returncode == 1
    assert [finding["code"] for finding in json.loads(done.stdout)["findings"]] == ["W102", "W103"]


APPLICATIONS = {"MobileNetV2": "tf", "MobileNetV3Small": "raw", "EfficientNetB0": "raw", "ResNet50": "caffe"}


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_models_of_keras_applications(convert, keras, name, tmp_path):
    """Random weights: structure and parity, never accuracy."""
    keras.utils.set_random_seed(0)
    options = {"include_preprocessing": True} if name == "MobileNetV3Small" else {}
    model = getattr(keras.applications, name)(weights=None, input_shape=(96, 96, 3), classes=10, **options)
    model.save(tmp_path / "app.keras")
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(24):
        small = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), cv2.resize(small, (96, 96)))
    result = convert(tmp_path / "app.keras", tmp_path / "images", task="raw", preprocess=APPLICATIONS[name])
    assert result.figures["evaluation"]["variants"]["int8"]["agreement"] > 0.98
    assert check_here(str(result.bundle), None, None, None).ok

"""The linter: each fault planted is found, and found alone; clean data gives nothing."""

from __future__ import annotations

import itertools
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from edgeferry_converter.data.assignment import assign
from edgeferry_converter.data.finding import Finding, raise_for, to_text
from edgeferry_converter.data.folders import FolderDataset, list_images
from edgeferry_converter.data.lint import lint
from edgeferry_converter.data.lint_labels import lint_labels_order
from edgeferry_converter.data.lint_model import lint_presets, lint_twice_normalised
from edgeferry_converter.data.npz import NpzDataset
from edgeferry_converter.data.open import open_dataset
from edgeferry_converter.data.picture_facts import exif_orientation
from edgeferry_converter.data.split import split
from edgeferry_converter.errors import DataError
from edgeferry_converter.preprocess_option import read_preprocessing
from edgeferry_runtime.manifest import TensorSpec
from edgeferry_runtime.preprocessor import Preprocessor
from hypothesis import given, settings
from hypothesis import strategies as st

INPUTS = (("pixels", (16, 16, 3)),)
UNIT = read_preprocessing("unit", 16, 16, 3)


def scene(random: np.random.Generator, channel: int) -> np.ndarray:
    """A smooth picture, uint8 [40, 48, 3] BGR, in which one channel is stronger than the others."""
    coarse = random.integers(20, 140, (5, 6, 3)).astype(np.float32)
    coarse[..., channel] += 60
    noise = random.normal(0, 2, (40, 48, 3))
    smooth = cv2.resize(coarse, (48, 40), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """120 pictures, blue, green and red ones."""
    root = tmp_path_factory.mktemp("clean")
    random = np.random.default_rng(0)
    for channel, name in enumerate(["blue", "green", "red"]):
        (root / name).mkdir()
        for i in range(40):
            cv2.imwrite(str(root / name / f"{i:02d}.png"), scene(random, channel))
    return root


@pytest.fixture
def data(clean, tmp_path):
    return Path(shutil.copytree(clean, tmp_path / "data"))


def judge(declared, frames):
    """A net with the mechanics of a trained one: channel means 0 to 1 in RGB order, told apart; its first layer
    saturates beyond the range it was trained with, and small inputs vanish against its bias."""
    spec = TensorSpec("x", "x", (1, declared.height, declared.width, 3), "float32", "NHWC")
    preprocess = Preprocessor(declared, spec)
    means = np.concatenate([preprocess(f, "bgr").mean(axis=(1, 2)) for f in frames])
    logits = 30 * np.clip(means, -1, 1)[:, ::-1] + [0, 0.2, 0.4]
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


def codes(root, **options):
    dataset = options.pop("dataset", None) or FolderDataset(list_images(root, None, 3))
    values = {"declared": UNIT, "judge": judge, **options}
    return [f.code for f in lint(dataset, **values)]


def paths(root, every=1):
    return sorted(root.rglob("*.png"))[::every]


def test_clean_data_gives_nothing(clean):
    assert codes(clean) == []
    assert codes(clean, dataset=open_dataset(str(clean), INPUTS)) == []
    assert codes(clean, dataset=FolderDataset.flat(clean)) == []
    assert to_text([]) == ""
    raise_for([], strict=True)


def test_too_few(clean):
    dataset = FolderDataset(list_images(clean, None, 3))
    assert codes(clean, calibration=split(dataset).calibration) == ["W102", "W103"]
    assert codes(clean, calibration=range(110)) == []
    found = lint(dataset, UNIT, calibration=range(100))
    assert found == []
    assert [f.code for f in lint(dataset, UNIT, calibration=range(80))] == ["W102", "W103"]
    assert lint(dataset, UNIT, calibration=range(80))[1].examples == ("'red': 0",)
    assert "80 samples calibrate" in lint(dataset, UNIT, calibration=range(80))[0].message


def test_near_duplicates(data):
    for a, b in pairs(data):
        picture = cv2.imread(str(a)).astype(int)  # a video's next frame: a little brighter, other noise
        noise = np.random.default_rng(1).normal(4, 2, picture.shape)
        cv2.imwrite(str(b), np.clip(picture + noise, 0, 255).astype(np.uint8))
    found = lint(FolderDataset(list_images(data, None, 3)), UNIT, judge)
    assert [f.code for f in found] == ["W104"]
    assert "30 of 120 samples (25%)" in found[0].message
    assert "blue/00.png and blue/01.png" in found[0].examples


def pairs(root):
    found = paths(root)
    return [(found[i], found[i + 1]) for i in range(0, len(found), 8)]


def test_one_class(clean, tmp_path):
    images = np.stack([cv2.imread(str(p)) for p in paths(clean)])
    np.savez(tmp_path / "one.npz", pixels=images[..., ::-1], labels=np.zeros(len(images), int))
    dataset = NpzDataset(tmp_path / "one.npz", INPUTS, None, 3)
    assert codes(None, dataset=dataset) == ["E105"]


def test_black_and_constant(data):
    random = np.random.default_rng(0)
    for path in paths(data, 10):
        cv2.imwrite(str(path), random.integers(0, 12, (40, 48, 3), dtype=np.uint8))  # a covered lens, with noise
    found = lint(FolderDataset(list_images(data, None, 3)), UNIT)
    assert [(f.code, f.severity) for f in found] == [("W107", "warning")]
    assert "12 of 120 samples (10%)" in found[0].message
    for path in paths(data, 10)[1:]:
        cv2.imwrite(str(path), scene(random, 0))
    assert [f.code for f in lint(FolderDataset(list_images(data, None, 3)), UNIT)] == ["N107"]


def test_all_black_is_an_error(data):
    for i, path in enumerate(paths(data)):
        cv2.imwrite(str(path), np.full((40, 48, 3), i % 5, np.uint8))
    found = lint(FolderDataset(list_images(data, None, 3)), UNIT, judge)
    assert [f.code for f in found] == ["E106"]
    with pytest.raises(DataError, match=r"E106.*all 120 samples are black") as caught:
        raise_for(found)
    assert caught.value.remedy


def test_smaller_than_the_input(data):
    assert codes(data, declared=replace(UNIT, width=49)) == ["W108"]
    assert codes(data, declared=replace(UNIT, width=48, height=40)) == []
    cv2.imwrite(str(paths(data)[0]), cv2.resize(cv2.imread(str(paths(data)[0])), (12, 12)))
    assert codes(data) == ["N108"]


def with_exif(path, orientation, order="<"):
    entries = struct.pack(f"{order}HHHLHH", 1, 0x0112, 3, 1, orientation, 0)
    tiff = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", 8) + entries + bytes(4)
    data = path.read_bytes()
    body = b"Exif\0\0" + tiff
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:])


def test_exif_rotation(data):
    for path in paths(data, 4):
        other = path.with_suffix(".jpg")
        cv2.imwrite(str(other), cv2.imread(str(path)))
        with_exif(other, 1)
        path.unlink()
    assert codes(data) == []
    rotated = next(data.rglob("*.jpg"))
    cv2.imwrite(str(rotated), cv2.imread(str(rotated)))
    for order, turn in (("<", 6), (">", 8)):
        shape = cv2.imread(str(rotated)).shape
        with_exif(rotated, turn, order)
        assert exif_orientation(rotated.read_bytes()) == turn
        assert cv2.imread(str(rotated)).shape != shape  # OpenCV reads it alike
        assert codes(data) == ["W109"]
        rotated.write_bytes(next(p for p in data.rglob("*.jpg") if p != rotated).read_bytes())
        cv2.imwrite(str(rotated), cv2.imread(str(rotated)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 80))
def test_broken_exif_is_none(tail, cut):
    head = b"\xff\xd8\xff\xe1\x00\x40Exif\0\0II*\0\x08\0\0\0"
    assert 1 <= exif_orientation((head + tail)[:cut]) <= 8
    assert 1 <= exif_orientation(b"\xff\xd8" + tail) <= 8


def test_alpha_and_16_bit(data):
    first, second = paths(data)[:2]
    pixels = cv2.imread(str(first))
    cv2.imwrite(str(first), np.dstack([pixels, np.full(pixels.shape[:2], 128, np.uint8)]))
    assert codes(data) == ["W110"]
    cv2.imwrite(str(first), pixels)
    cv2.imwrite(str(second), cv2.imread(str(second)).astype(np.uint16) * 257)
    assert codes(data) == ["W111"]


def test_gray_among_colours(data):
    for path in paths(data, 5):
        gray = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(path), gray)
    dataset = FolderDataset(list_images(data, None, 3))
    assert [f.code for f in lint(dataset, UNIT)] == ["W112"]
    assert lint(dataset, read_preprocessing("unit", 16, 16, 1)) == []


def test_images_that_do_not_decode(data):
    paths(data)[7].write_bytes(b"hello")
    found = lint(FolderDataset(list_images(data, None, 3)), UNIT, judge)
    assert [(f.code, f.examples) for f in found] == [("E101", ("blue/07.png",))]


# With a model.


@pytest.mark.parametrize(("preset", "found"), [("raw", True), ("caffe", True), ("tf", False), ("torch", False)])
def test_presets(clean, preset, found):
    """Pixels to 255 saturate this net; what lies between -3 and 3 does it no harm, and is not suspected."""
    findings = lint(FolderDataset(list_images(clean, None, 3)), read_preprocessing(preset, 16, 16, 3), judge)
    assert [f.code for f in findings] == ["W201"] * found
    if found:
        assert "wrong range suspected: the model is right on 33% of 120 images" in findings[0].message
        assert "on 100% with unit" in findings[0].message


def test_presets_without_labels(clean):
    (found,) = lint(FolderDataset.flat(clean), read_preprocessing("raw", 16, 16, 3), judge)
    assert found.code == "W201"
    assert "wrong range suspected: the model's mean confidence is 0.40" in found.message


def test_wrong_colour_order(clean):
    (found,) = lint(FolderDataset(list_images(clean, None, 3)), replace(UNIT, color="bgr"), judge)
    assert found.code == "W201"
    assert "wrong colour order suspected" in found.message
    assert found.remedy.endswith("unit?")
    # Without labels nothing tells red from blue for a net like this one.
    assert lint(FolderDataset.flat(clean), replace(UNIT, color="bgr"), judge) == []


@pytest.mark.parametrize("bright", [1.0, 3.0, 10.0])
def test_a_right_preset_is_not_suspected_because_larger_inputs_are_surer(clean, bright):
    """A net without saturation is the surer the larger its inputs are, right or wrong."""

    def linear(declared, frames):
        spec = TensorSpec("x", "x", (1, declared.height, declared.width, 3), "float32", "NHWC")
        preprocess = Preprocessor(declared, spec)
        logits = bright * np.concatenate([preprocess(f, "bgr").mean(axis=(1, 2)) for f in frames])[:, ::-1]
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    assert lint(FolderDataset(list_images(clean, None, 3)), UNIT, linear) == []
    assert lint(FolderDataset.flat(clean), UNIT, linear) == []


def test_labels_in_the_wrong_order(clean):
    wrong = ["green", "red", "blue"]
    found = lint(FolderDataset(list_images(clean, wrong, 3)), UNIT, judge)
    assert [f.code for f in found] == ["W202"]
    assert "'green' is answered as 'red'" in found[0].message
    assert "blue, green, red" in found[0].remedy
    with pytest.raises(DataError, match="W202"):
        raise_for(found, strict=True)
    raise_for(found)


def one_hot(classes, count=3):
    return np.eye(count, dtype=np.float32)[classes]


def test_a_model_that_answers_one_class_or_guesses_moves_no_labels():
    truth = np.arange(120) % 3
    assert lint_labels_order(one_hot(np.zeros(120, int)), truth) == []
    assert lint_labels_order(one_hot(truth), truth) == []
    confused = np.where(truth == 2, 1, truth)  # one class taken for another is a weak model
    assert lint_labels_order(one_hot(confused), truth) == []
    for seed in range(50):
        guesses = np.random.default_rng(seed).integers(0, 10, 128)
        assert lint_labels_order(one_hot(guesses, 10), np.arange(128) % 10) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2), st.randoms(use_true_random=False))
def test_assignment_is_the_cheapest(rows, more, random):
    cost = np.array([[random.randint(-9, 9) for _ in range(rows + more)] for _ in range(rows)])
    found = assign(cost)
    assert len(set(found.tolist())) == rows
    best = min(
        sum(cost[i, c] for i, c in enumerate(columns))
        for columns in itertools.permutations(range(rows + more), rows)
    )
    assert cost[np.arange(rows), found].sum() == best


def test_normalised_twice(clean):
    assert [f.code for f in lint_twice_normalised(["InputLayer", "Rescaling", "Conv2D"], UNIT)] == ["W203"]
    assert lint_twice_normalised(["InputLayer", "Rescaling"], read_preprocessing("raw", 16, 16, 3)) == []
    assert lint_twice_normalised(["InputLayer", "Conv2D"], UNIT) == []
    dataset = FolderDataset(list_images(clean, None, 3))
    assert codes(clean, dataset=dataset, first_layers=["InputLayer", "Normalization"]) == ["W203"]


# Tensors.


def test_tensors(tmp_path):
    random = np.random.default_rng(0)
    inputs = (("x", (30,)),)

    def found(values, **labels):
        np.savez(tmp_path / "x.npz", x=values, **labels)
        return [f.code for f in lint(NpzDataset(tmp_path / "x.npz", inputs))]

    values = random.normal(0, 1, (200, 30)).astype(np.float32)
    assert found(values) == found(values, labels=np.arange(200) % 4) == []
    assert found(values[:50]) == ["W102"]
    assert found(values, labels=np.ones(200, int)) == ["E105"]
    assert found(np.zeros((200, 30))) == ["E106", "W104"]
    assert found(np.where(np.arange(200)[:, None] < 100, values[0], values)) == ["W104"]
    assert found(np.where(np.arange(200)[:, None] == 3, np.nan, values)) == ["E101"]


def test_text_names_the_worst_first():
    findings = [
        Finding("N107", "note", "a few", "look", ("x",)),
        Finding("E106", "error", "all black", "open the lens"),
    ]
    assert to_text(findings).splitlines() == [
        "E106 error: all black",
        "    open the lens",
        "N107 note: a few",
        "    for example x",
        "    look",
    ]


# A trained model on real images: raw RGB is right on 75 %, BGR on 61 %, divided by 255 on 10 %.


def test_real_model_and_images(keras, real_data):
    path = real_data / "mlcommons_tiny" / "resnet8_cifar10_keras2.h5"
    model = keras.models.load_model(path, compile=False)

    def resnet8(declared, frames):
        preprocess = Preprocessor(declared, TensorSpec("x", "x", (1, 32, 32, 3), "float32", "NHWC"))
        batch = np.concatenate([preprocess(f, "bgr").copy() for f in frames])
        return model.predict_on_batch([batch])

    folders = list_images(real_data / "cifar10" / "test", None, 10)
    labelled, bare = FolderDataset(folders), FolderDataset.flat(folders.root)
    raw = read_preprocessing("raw", 32, 32, 3)
    assert lint(labelled, raw, resnet8, calibration=split(labelled).calibration) == []
    assert lint(bare, raw, resnet8) == []
    for dataset in (labelled, bare):
        for declared, words in (
            (replace(raw, color="bgr"), "colour order"),
            (replace(raw, scale=1 / 255), "range"),
        ):
            (found,) = lint_presets(dataset, resnet8, declared)
            assert found.code == "W201"
            assert f"wrong {words} suspected" in found.message
            assert " raw" in found.remedy
    names = list(folders.labels)
    names[6], names[8] = names[8], names[6]
    (found,) = lint_presets(FolderDataset(list_images(folders.root, names, 10)), resnet8, raw)
    assert found.code == "W202"
    assert "'ship' is answered as 'frog'" in found.message
    assert "'frog' is answered as 'ship'" in found.message

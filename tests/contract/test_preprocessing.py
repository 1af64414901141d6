"""Preprocessing: numpy defines it, OpenCV gives the same bytes, the committed hashes hold on this machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from edgeferry_runtime import opencv
from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.fields import Fields
from edgeferry_runtime.levels import level_table
from edgeferry_runtime.manifest import Quantization, TensorSpec
from edgeferry_runtime.pixels import to_gray
from edgeferry_runtime.preprocessing import PRESETS, Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor
from edgeferry_runtime.tensors import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

INT8 = Quantization((1 / 255,), (-128,))


def spec_for(declared: Preprocessing, dtype: str, quantization: Quantization | None = None) -> TensorSpec:
    shape = (1, declared.height, declared.width, declared.channels)
    return TensorSpec("image", "image", shape, dtype, "NHWC", quantization)


def load_hashes():
    path = Path(__file__).with_name("preprocessing_hashes.py")
    spec = importlib.util.spec_from_file_location("preprocessing_hashes", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_hashes_hold_here():
    ways, count, differ = load_hashes().differences()
    assert ways == ["numpy", "OpenCV"]  # the development environment has both
    assert count == 216
    assert differ == []


def test_hash_table_would_notice_one_level(monkeypatch):
    hashes = load_hashes()
    _, declared, spec, size, color = next(iter(hashes.cases()))
    frame = hashes.make_frame(*size, color)
    before = Preprocessor(declared, spec)(frame, color).tobytes()
    frame[size[1] // 2, size[0] // 2] ^= 0xFF
    assert Preprocessor(declared, spec)(frame, color).tobytes() != before


sizes = st.integers(1, 90)


@st.composite
def declarations(draw):
    color = draw(st.sampled_from(["rgb", "bgr", "gray"]))
    channels = 1 if color == "gray" else 3
    numbers = st.floats(0.0078125, 300)
    return Preprocessing(
        width=draw(sizes),
        height=draw(sizes),
        color=color,
        resize=draw(st.sampled_from(["bilinear", "nearest"])),
        geometry=draw(st.sampled_from(["stretch", "letterbox", "center-crop"])),
        pad_value=draw(st.integers(0, 255)),
        scale=draw(st.sampled_from([1.0, 1 / 255, 1 / 127.5, 0.0173])),
        mean=tuple(draw(st.lists(numbers, min_size=channels, max_size=channels))),
        std=draw(st.sampled_from([(1.0,), (0.25,) * channels])),
    )


tensors = st.sampled_from(
    [
        ("float32", None),
        ("int8", INT8),
        ("int8", Quantization((1.0,), (-128,))),
        ("uint8", Quantization((0.01,), (33,))),
        ("uint8", Quantization((1.0,), (0,))),
    ]
)


@settings(max_examples=300, deadline=None)
@given(declarations(), tensors, sizes, sizes, st.sampled_from(["rgb", "bgr", "gray"]), st.integers(0, 2**32 - 1))
def test_opencv_equals_numpy_bit_by_bit(declared, tensor, width, height, color, seed):
    shape = (height, width) if color == "gray" else (height, width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    spec = spec_for(declared, *tensor)
    by_numpy = Preprocessor(declared, spec, use_opencv=False)(pixels, color)
    out = np.full(spec.shape, 77, spec.dtype)
    by_opencv = Preprocessor(declared, spec, use_opencv=True)(pixels, color, out=out)
    assert by_opencv is out
    assert by_numpy.dtype == np.dtype(spec.dtype)
    assert by_numpy.tobytes() == by_opencv.tobytes()


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, sizes, st.integers(0, 2**32 - 1))
def test_fast_kernel_is_within_one_level(width, height, target_width, target_height, seed):
    declared = Preprocessing(width=target_width, height=target_height, resize="bilinear-fast")
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    exact, fast = (
        Preprocessor(declared, spec_for(declared, "float32"), use_opencv=way)(pixels, "rgb")
        for way in (False, True)
    )
    assert np.abs(exact - fast).max() <= 1


def test_gray_equals_opencv_for_a_grid_of_all_colours():
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    blue, green, red = (axis.reshape(-1, 1) for axis in np.meshgrid(levels, levels, levels, indexing="ij"))
    bgr = np.concatenate([blue, green, red], axis=1)[None]
    cv2 = opencv.load("the test")
    np.testing.assert_array_equal(to_gray(bgr, "bgr"), cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY))


@pytest.mark.parametrize("preset", ["tf", "torch", "caffe"])
def test_presets_are_keras_modes(preset):
    """Formulas of keras.applications.imagenet_utils.preprocess_input, written out for RGB input."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    real = pixels.astype(np.float64)
    expected = {
        "tf": real / 127.5 - 1,
        "torch": (real / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
        "caffe": real[..., ::-1] - [103.939, 116.779, 123.68],
    }[preset]
    declared = Preprocessing(width=7, height=9, **PRESETS[preset])
    found = Preprocessor(declared, spec_for(declared, "float32"))(pixels, "rgb")[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("geometry", "frame", "crop", "size", "offset"),
    [
        ("stretch", (640, 480), (0, 0, 640, 480), (224, 224), (0, 0)),
        ("letterbox", (640, 480), (0, 0, 640, 480), (224, 168), (0, 28)),
        ("letterbox", (480, 640), (0, 0, 480, 640), (168, 224), (28, 0)),
        ("letterbox", (10000, 1), (0, 0, 10000, 1), (224, 1), (0, 111)),
        ("center-crop", (640, 480), (80, 0, 480, 480), (224, 224), (0, 0)),
        ("center-crop", (100, 101), (0, 0, 100, 100), (224, 224), (0, 0)),
    ],
)
def test_geometry(geometry, frame, crop, size, offset):
    placement = Preprocessing(width=224, height=224, geometry=geometry).placement(*frame)
    assert (placement.crop, placement.size, placement.offset) == (crop, size, offset)


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    sizes,
    sizes,
    st.sampled_from(["stretch", "letterbox", "center-crop"]),
)
def test_geometry_stays_inside(width, height, target_width, target_height, geometry):
    declared = Preprocessing(width=target_width, height=target_height, geometry=geometry)
    (x, y, crop_width, crop_height), (w, h), (left, top) = declared.placement(width, height)
    assert x >= 0 and y >= 0 and x + crop_width <= width and y + crop_height <= height
    assert crop_width >= 1 and crop_height >= 1 and w >= 1 and h >= 1
    assert left >= 0 and top >= 0 and left + w <= target_width and top + h <= target_height


def test_letterbox_padding_has_the_declared_level_and_survives_frames_of_other_sizes():
    declared = Preprocessing(width=20, height=20, geometry="letterbox", pad_value=9)
    preprocessor = Preprocessor(declared, spec_for(declared, "float32"))
    for shape in ((10, 20, 3), (20, 10, 3), (10, 20, 3)):
        tensor = preprocessor(np.full(shape, 200, np.uint8), "bgr")[0]
        assert sorted(np.unique(tensor)) == [9, 200]
        assert (tensor == 200).mean() == 0.5


@pytest.mark.parametrize(
    ("declared", "tensor", "way"),
    [
        (Preprocessing(4, 4), ("int8", Quantization((1.0,), (-128,))), "xor 0x80"),
        (Preprocessing(4, 4, scale=1 / 255), ("int8", INT8), "xor 0x80"),
        (Preprocessing(4, 4), ("uint8", Quantization((1.0,), (0,))), "copy"),
        (Preprocessing(4, 4, scale=1 / 255), ("float32", None), "multiply"),
        (Preprocessing(4, 4, scale=1 / 255), ("int8", Quantization((0.0078,), (-1,))), "table"),
    ],
)
def test_the_short_way_is_taken_only_where_it_gives_the_whole_table(declared, tensor, way):
    spec = spec_for(declared, *tensor)
    preprocessor = Preprocessor(declared, spec)
    assert preprocessor.path.endswith(way)
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    big = Preprocessing(16, 16, scale=declared.scale)
    found = Preprocessor(big, spec_for(big, *tensor))(levels, "rgb")[0].reshape(256, 3)
    np.testing.assert_array_equal(found, level_table(declared, spec))


def test_quantised_input_is_within_half_a_step_of_the_real_number():
    declared = Preprocessing(1, 1, scale=1 / 255, mean=(0.3,), std=(0.2,))
    spec = spec_for(declared, "int8", Quantization((0.03,), (-60,)))
    real = level_table(declared, spec_for(declared, "float32"))
    back = dequantize(level_table(declared, spec), spec)
    inside = (real > 0.03 * (-128 + 60)) & (real < 0.03 * (127 + 60))
    assert np.abs(back - real)[inside].max() <= 0.015 + 1e-6


@pytest.mark.parametrize(
    ("pixels", "color", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "bgr", "uint8"),
        (np.zeros((4, 4), np.uint8), "bgr", r"\[height, width, 3\]"),
        (np.zeros((4, 4, 4), np.uint8), "bgr", r"\[4, 4, 4\]"),
        (np.zeros((4, 4, 3), np.uint8), "gray", "gray frame"),
        (np.zeros((4, 4, 3), np.uint8), "yuv", "no pixel format"),
        (np.zeros((0, 4, 3), np.uint8), "bgr", "4x0"),
    ],
)
def test_what_is_no_frame_is_refused(pixels, color, words):
    declared = Preprocessing(8, 8)
    with pytest.raises(FrameError, match=words):
        Preprocessor(declared, spec_for(declared, "float32"))(pixels, color)


def test_input_tensor_of_another_shape_is_refused():
    with pytest.raises(FrameError, match=r"\[1, 8, 8, 3\]"):
        Preprocessor(Preprocessing(8, 8), spec_for(Preprocessing(9, 8), "float32"))


def test_problems_of_a_declaration_come_all_at_once():
    fields = Fields(
        {"width": 0, "height": "4", "color": "rbg", "mean": [1, 2], "std": [0], "scale": 0, "gemetry": "stretch"}
    )
    Preprocessing.read(fields)
    problems = "\n".join(fields.finish())
    expected = [
        "width: is 0",
        "height: must be an integer",
        "did you mean 'rgb'",
        "mean: has 2 values",
        "std: must be greater",
        "scale: is 0",
        "gemetry: is unknown, did you mean 'geometry'",
    ]
    assert [words for words in expected if words not in problems] == []

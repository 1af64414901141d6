"""Every pixel format through every geometry, kernel, colour and tensor: OpenCV gives the bytes numpy defines."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from edgeferry_runtime import opencv
from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.fields import Fields
from edgeferry_runtime.levels import level_table
from edgeferry_runtime.manifest import GOLDEN_COLORS, Quantization, TensorSpec
from edgeferry_runtime.pixels import FORMATS, LUMA_LEVELS, convert, frame_size, opencv_code, planes, to_bgr
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor
from edgeferry_runtime.resize import resize
from hypothesis import given, settings
from hypothesis import strategies as st

RAW = [color for color in FORMATS if color != "jpeg"]
TENSORS = [
    ("float32", None),
    ("int8", Quantization((1 / 255,), (-128,))),
    ("int8", Quantization((0.03,), (-17,))),
    ("uint8", Quantization((1 / 255,), (0,))),
]


def spec_for(
    declared: Preprocessing, dtype: str = "uint8", quantization: Quantization | None = None
) -> TensorSpec:
    shape = (1, declared.height, declared.width, declared.channels)
    return TensorSpec("image", "image", shape, dtype, "NHWC", quantization or Quantization((1.0,), (0,)))


def frame_of(color: str, width: int, height: int, seed: int = 0) -> np.ndarray:
    shape = {"gray": (height, width), "i420": (height * 3 // 2, width), "nv12": (height * 3 // 2, width)}
    return np.random.default_rng(seed).integers(0, 256, shape.get(color, (height, width, 3)), dtype=np.uint8)


sides = st.integers(1, 45).map(lambda n: 2 * n)


@st.composite
def declarations(draw):
    color = draw(st.sampled_from(["rgb", "bgr", "gray"]))
    channels = 1 if color == "gray" else 3
    return Preprocessing(
        width=draw(sides),
        height=draw(sides),
        color=color,
        resize=draw(st.sampled_from(["bilinear", "nearest"])),
        geometry=draw(st.sampled_from(["stretch", "letterbox", "center-crop"])),
        pad_value=draw(st.integers(0, 255)),
        scale=draw(st.sampled_from([1.0, 1 / 255, 0.0173])),
        mean=draw(st.sampled_from([(0.0,), (0.4,) * channels, tuple(range(channels))])),
        std=draw(st.sampled_from([(1.0,), tuple(range(1, channels + 1))])),
        planes=draw(st.sampled_from(["convert-first", "resize-first"])),
    )


def slowly(declared: Preprocessing, pixels: np.ndarray, color: str) -> np.ndarray:
    """The definition once more, without any of the short ways: levels [h, w, c] of a frame."""
    wide, high = frame_size(pixels, color)
    (x, y, w, h), size, (left, top) = declared.placement(wide, high)
    wanted = declared.color
    if color in ("i420", "nv12") and declared.planes == "resize-first":
        if color == "nv12":
            luma, both = planes(pixels, color)
            parts = [luma, both[..., 0], both[..., 1]]
        else:
            parts = list(planes(pixels, color))
        small = [resize(parts[0][y : y + h, x : x + w], *size, declared.resize)]
        for part in parts[1:]:
            cut = part[y // 2 : (y + h) // 2, x // 2 : (x + w) // 2]
            small.append(resize(cut, size[0] // 2, size[1] // 2, declared.resize))
        if wanted == "gray":
            picture = LUMA_LEVELS[small[0]]
        else:
            flat = np.concatenate([part.ravel() for part in small])
            picture = convert(flat.reshape(size[1] * 3 // 2, size[0]), "i420", wanted)
    else:
        if color in ("i420", "nv12"):
            pixels, color = convert(pixels, color, "rgb"), "rgb"
        picture = convert(resize(pixels[y : y + h, x : x + w], *size, declared.resize), color, wanted)
    picture = picture.reshape(size[1], size[0], declared.channels)
    levels = np.full((declared.height, declared.width, declared.channels), declared.pad_value, np.uint8)
    levels[top : top + size[1], left : left + size[0]] = picture
    return levels


@settings(max_examples=500, deadline=None)
@given(
    declarations(),
    st.sampled_from(TENSORS),
    st.sampled_from(RAW),
    sides,
    sides,
    st.booleans(),
    st.integers(0, 999),
)
def test_every_way_gives_the_defined_bytes(declared, tensor, color, width, height, same_size, seed):
    if same_size:
        width, height = declared.width, declared.height
    pixels = frame_of(color, width, height, seed)
    spec = spec_for(declared, *tensor) if tensor[1] else TensorSpec(
        "image", "image", (1, declared.height, declared.width, declared.channels), "float32"
    )  # fmt: skip
    table = level_table(declared, spec)
    levels = slowly(declared, pixels, color)
    expected = np.stack([table[:, c][levels[..., c]] for c in range(declared.channels)], axis=-1)[None]
    out = np.full(spec.shape, 77, spec.dtype)
    by_opencv = Preprocessor(declared, spec, use_opencv=True)
    for found in (Preprocessor(declared, spec, use_opencv=False)(pixels, color), by_opencv(pixels, color, out)):
        assert found.dtype == np.dtype(spec.dtype)
        np.testing.assert_array_equal(found, expected)
    assert by_opencv.frame_size == (width, height)
    assert by_opencv.placement == declared.placement(width, height)
    assert by_opencv.decoded_ns == 0


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(RAW), st.integers(0, 999))
def test_fast_kernel_is_within_one_level_of_the_exact_one(color, seed):
    pixels = frame_of(color, 60, 44, seed)
    ways = [Preprocessing(32, 26, geometry="letterbox", resize=kernel) for kernel in ("bilinear", "bilinear-fast")]
    exact, fast = (Preprocessor(d, spec_for(d), use_opencv=True)(pixels, color).astype(int) for d in ways)
    assert np.abs(exact - fast).max() <= 1


def test_one_preprocessor_takes_formats_sizes_and_memory_in_any_order():
    declared = Preprocessing(32, 24, geometry="letterbox", scale=1 / 255)
    spec = spec_for(declared, *TENSORS[1])
    one = Preprocessor(declared, spec)
    memory = [None, np.zeros(spec.shape, np.int8), np.zeros(spec.shape, np.int8)]
    order = list(itertools.product(RAW, [(64, 48), (20, 64), (32, 24)], memory))
    for i in np.random.default_rng(1).permutation(len(order) * 2) % len(order):
        color, size, out = order[i]
        pixels = frame_of(color, *size, seed=int(i))
        if out is not None:
            out[:] = 55  # the interpreter may have used its memory for something else
        fresh = Preprocessor(declared, spec, use_opencv=False)(pixels, color)
        np.testing.assert_array_equal(one(pixels, color, out), fresh)


def test_placement_is_told_again_after_it_was_forgotten():
    declared = Preprocessing(32, 24)
    preprocess = Preprocessor(declared, spec_for(declared))
    pixels = frame_of("bgr", 64, 48)
    preprocess(pixels, "bgr")
    preprocess.placement = None
    preprocess(pixels, "bgr")
    assert preprocess.placement == declared.placement(64, 48)


@pytest.mark.parametrize("color", RAW)
def test_views_of_larger_pictures_are_frames(color):
    declared = Preprocessing(16, 12, planes="resize-first")
    large = frame_of(color, 80, 60)
    view = large[6:42, 10:50]
    spec = spec_for(declared)
    expected = Preprocessor(declared, spec, use_opencv=False)(np.ascontiguousarray(view), color)
    for way in (True, False):
        np.testing.assert_array_equal(Preprocessor(declared, spec, use_opencv=way)(view, color), expected)
    if color == "bgr":  # a picture mirrored by a negative stride
        turned = Preprocessor(declared, spec, use_opencv=True)(view[:, ::-1], color)
        np.testing.assert_array_equal(
            turned, Preprocessor(declared, spec, use_opencv=False)(view[:, ::-1].copy(), color)
        )


@pytest.mark.parametrize("wanted", ["bgr", "rgb"])
@pytest.mark.parametrize("color", ["i420", "nv12"])
def test_yuv_equals_opencv_for_all_values(color, wanted):
    cv2 = opencv.load("the test")
    code = opencv_code(cv2, color, wanted)
    levels = np.arange(256, dtype=np.uint8)
    for y in range(256):  # one picture holds all 65,536 pairs of U and V; with 256 levels of Y: all of them
        frame = np.full((768, 512), y, np.uint8)
        u, v = np.meshgrid(levels, levels)
        frame[512:] = (
            np.stack([u, v], axis=-1).reshape(256, 512)
            if color == "nv12"
            else np.concatenate([u, v]).reshape(256, 512)
        )
        assert np.array_equal(convert(frame, color, wanted), cv2.cvtColor(frame, code)), y


def test_luma_levels_are_what_colours_with_neutral_chroma_are():
    frame = np.full((6, 4), 128, np.uint8)
    for y in range(256):
        frame[:4] = y
        assert (convert(frame, "i420", "rgb") == LUMA_LEVELS[y]).all()
    assert (LUMA_LEVELS[16], LUMA_LEVELS[235], LUMA_LEVELS[255]) == (0, 255, 255)


@pytest.mark.parametrize("color", RAW)
def test_to_bgr_is_the_same_without_opencv(color, monkeypatch):
    pixels = frame_of(color, 10, 8)
    with_opencv = to_bgr(pixels, color)
    monkeypatch.setattr(opencv, "available", lambda: False)
    np.testing.assert_array_equal(with_opencv, to_bgr(pixels, color))


def test_a_golden_frame_may_have_every_format():
    assert tuple(FORMATS) == GOLDEN_COLORS


@pytest.mark.parametrize("geometry", ["stretch", "letterbox", "center-crop"])
@settings(max_examples=200)
@given(st.integers(1, 3000), st.integers(1, 3000), sides, sides)
def test_placements_for_planes_are_even_and_inside(geometry, width, height, target_width, target_height):
    declared = Preprocessing(target_width, target_height, geometry=geometry, planes="resize-first")
    (x, y, w, h), size, offset = declared.placement(width, height)
    assert not any(n % 2 for n in (x, y, *size, *offset))
    assert x + w <= width and y + h <= height and w >= 1 and h >= 1
    assert offset[0] + size[0] <= target_width and offset[1] + size[1] <= target_height and min(size) >= 2
    if width > 1 and height > 1:
        assert not (w % 2 or h % 2)


def test_planes_first_is_another_picture_than_colours_first():
    """Or the choice would be none."""
    pixels = frame_of("i420", 64, 48)
    first, last = (
        Preprocessor(d, spec_for(d))(pixels, "i420")
        for d in (Preprocessing(32, 24), Preprocessing(32, 24, planes="resize-first"))
    )
    assert (first != last).any()


@pytest.mark.parametrize(
    ("declared", "color", "path"),
    [
        (Preprocessing(32, 24), "bgr", "OpenCV bilinear stretch, rgb, bgr frames, resize, bgr to rgb, table"),
        (
            Preprocessing(32, 24, scale=1 / 255),
            "rgb",
            "OpenCV bilinear stretch, rgb, rgb frames, resize, xor 0x80",
        ),
        (
            Preprocessing(32, 32, geometry="center-crop", planes="resize-first"),
            "nv12",
            "OpenCV bilinear center-crop, rgb, nv12 frames, resize planes, nv12 to rgb, table",
        ),
        (
            Preprocessing(32, 32, planes="resize-first"),
            "bgr",
            "OpenCV bilinear stretch, rgb, bgr frames (no planes to resize first), resize, bgr to rgb, table",
        ),
    ],
)
def test_the_path_is_told(declared, color, path):
    preprocess = Preprocessor(declared, spec_for(declared, *TENSORS[1]))
    preprocess(frame_of(color, 64, 48), color)
    assert preprocess.path == path


@pytest.mark.parametrize(
    ("shape", "color", "words"),
    [
        ((9, 4), "i420", "even sides"),  # six rows of luma, but no whole chroma rows: 9 is 3/2 of 6
        ((7, 4), "nv12", "even sides"),
        ((6, 5), "i420", "even sides"),
        ((6, 4, 3), "nv12", r"\[height \* 3/2, width\]"),
        ((6, 4, 3), "jpeg", r"\[bytes\]"),
        ((6, 4), "i42", "did you mean 'i420'"),
    ],
)
def test_what_is_no_frame_of_its_format_is_refused(shape, color, words):
    declared = Preprocessing(8, 8)
    if shape == (9, 4):
        assert frame_size(np.zeros(shape, np.uint8), color) == (4, 6)
        shape = (10, 4)
    with pytest.raises(FrameError, match=words):
        Preprocessor(declared, spec_for(declared))(np.zeros(shape, np.uint8), color)


def test_levels_of_another_type_are_refused_though_the_shape_is_known():
    declared = Preprocessing(8, 8)
    preprocess = Preprocessor(declared, spec_for(declared))
    preprocess(np.zeros((4, 4, 3), np.uint8), "bgr")
    with pytest.raises(FrameError, match="uint8"):
        preprocess(np.zeros((4, 4, 3), np.float32), "bgr")


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((1, 8, 9, 3), np.uint8),
        np.zeros((1, 8, 8, 3), np.int8),
        np.zeros((1, 8, 16, 3), np.uint8)[:, :, ::2],
    ],
)
def test_memory_that_is_not_the_tensors_is_refused(out):
    declared = Preprocessing(8, 8)
    with pytest.raises(FrameError, match="contiguous uint8"):
        Preprocessor(declared, spec_for(declared))(np.zeros((4, 4, 3), np.uint8), "bgr", out)


def test_problems_of_declared_shortcuts_are_told():
    fields = Fields({"width": 7, "height": 8, "planes": "resize-first", "decode": "reduced"})
    Preprocessing.read(fields)
    assert fields.finish() == [
        "width: is 7, must be even where planes are resized first",
        'planes: "resize-first" and decode "reduced" exclude each other',
    ]
    fields = Fields({"width": 8, "height": 8, "planes": "resize-frist", "decode": "half"})
    Preprocessing.read(fields)
    problems = "\n".join(fields.finish())
    assert "did you mean 'resize-first'" in problems and "decode" in problems

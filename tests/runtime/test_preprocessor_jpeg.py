"""JPEG frames: decoded whole or, where it is declared, reduced; turned as their EXIF orientation says."""

from __future__ import annotations

import time

import numpy as np
import pytest
from edgeferry_runtime import opencv
from edgeferry_runtime.errors import DependencyError, FrameError
from edgeferry_runtime.manifest import Quantization, TensorSpec
from edgeferry_runtime.pixels import decode_jpeg, jpeg_size, to_bgr
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor
from hypothesis import given, settings
from hypothesis import strategies as st

cv2 = opencv.load("the tests")


def spec_for(declared: Preprocessing) -> TensorSpec:
    shape = (1, declared.height, declared.width, declared.channels)
    return TensorSpec("image", "image", shape, "uint8", "NHWC", Quantization((1.0,), (0,)))


def picture(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9) + np.cos(y / 7), np.sin((x + y) / 11), np.cos(x / 5) - np.sin(y / 13)]
    return (np.stack(waves, axis=-1) * 50 + 128).astype(np.uint8)


def jpeg(pixels: np.ndarray, orientation: int | None = None, order: str = "big") -> np.ndarray:
    """A JPEG file; with an APP1 segment that says how it is turned, as cameras write it."""
    data = cv2.imencode(".jpg", pixels)[1].tobytes()
    if orientation is not None:
        mark = b"MM" if order == "big" else b"II"

        def number(value: int, size: int) -> bytes:
            return value.to_bytes(size, order)

        # One other entry (ImageWidth) stands before the orientation.
        entries = number(0x0100, 2) + number(3, 2) + number(1, 4) + number(9, 2) + bytes(2)
        entries += number(0x0112, 2) + number(3, 2) + number(1, 4) + number(orientation, 2) + bytes(2)
        tiff = mark + number(42, 2) + number(8, 4) + number(2, 2) + entries + bytes(4)
        segment = b"Exif\0\0" + tiff
        data = data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]
    return np.frombuffer(data, np.uint8)


@pytest.mark.parametrize(
    ("geometry", "frame", "by"),
    [
        ("stretch", (1280, 720), 2),  # 720 / 4 is less than 224
        ("letterbox", (1280, 720), 4),  # to 224x126
        ("center-crop", (1280, 720), 2),  # 720x720 is used
        ("letterbox", (1791, 1791), 4),
        ("letterbox", (1792, 1792), 8),
        ("letterbox", (9000, 9000), 8),
        ("stretch", (448, 447), 1),
        ("letterbox", (100, 100), 1),
    ],
)
def test_the_largest_reduction_that_leaves_enough_pixels(geometry, frame, by):
    assert Preprocessing(224, 224, geometry=geometry, decode="reduced").reduction(*frame) == by
    assert Preprocessing(224, 224, geometry=geometry).reduction(*frame) == 1


@given(
    st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 300), st.integers(1, 300),
    st.sampled_from(["stretch", "letterbox", "center-crop"]),
)  # fmt: skip
def test_a_reduction_never_leaves_less_than_the_model_takes(width, height, target_width, target_height, geometry):
    declared = Preprocessing(target_width, target_height, geometry=geometry, decode="reduced")
    by = declared.reduction(width, height)
    placement = declared.placement(width, height)
    if by > 1:
        assert placement.crop[2] // by >= placement.size[0] and placement.crop[3] // by >= placement.size[1]
    if by < 8:
        assert (
            placement.crop[2] // (2 * by) < placement.size[0] or placement.crop[3] // (2 * by) < placement.size[1]
        )


@pytest.mark.parametrize("geometry", ["stretch", "letterbox", "center-crop"])
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_a_full_jpeg_is_the_picture_it_decodes_to(color, geometry):
    declared = Preprocessing(40, 30, color=color, geometry=geometry)
    data = jpeg(picture(333, 201))
    preprocess = Preprocessor(declared, spec_for(declared))
    found = preprocess(data, "jpeg").copy()
    assert preprocess.path.startswith(f"OpenCV bilinear {geometry}, {color}, jpeg frames, ")
    assert preprocess.frame_size == (333, 201)
    np.testing.assert_array_equal(found, preprocess(cv2.imdecode(data, cv2.IMREAD_COLOR), "bgr"))
    assert preprocess.decoded_ns == 0


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 400), st.integers(1, 400), st.sampled_from(["stretch", "letterbox", "center-crop"]),
    st.sampled_from(["rgb", "bgr", "gray"]),
)  # fmt: skip
def test_a_reduced_jpeg_is_placed_as_the_full_frame_is(width, height, geometry, color):
    declared = Preprocessing(24, 20, color=color, geometry=geometry, decode="reduced")
    data = jpeg(picture(width, height))
    preprocess = Preprocessor(declared, spec_for(declared))
    before = time.monotonic_ns()
    found = preprocess(data, "jpeg")
    assert before <= preprocess.decoded_ns <= time.monotonic_ns()
    placement = declared.placement(width, height)
    assert (preprocess.placement, preprocess.frame_size) == (placement, (width, height))
    # Written out: decode, cut what the crop is in the small picture, resize, pad.
    by = declared.reduction(width, height)
    flag = "IMREAD_" + ("" if by == 1 else "REDUCED_")
    flag += ("GRAYSCALE" if color == "gray" else "COLOR") + ("" if by == 1 else f"_{by}")
    small = cv2.imdecode(data, getattr(cv2, flag))
    x, y, w, h = (n // by for n in placement.crop)
    small = cv2.resize(small[y : y + h, x : x + w], placement.size, interpolation=cv2.INTER_LINEAR_EXACT)
    small = (small[..., ::-1] if color == "rgb" else small).reshape(placement.size[1], placement.size[0], -1)
    expected = np.full(found.shape, declared.pad_value, np.uint8)
    (left, top), size = placement.offset, placement.size
    expected[0, top : top + size[1], left : left + size[0]] = small
    np.testing.assert_array_equal(found, expected)
    by_numpy = Preprocessor(declared, spec_for(declared), use_opencv=False)
    np.testing.assert_array_equal(found, by_numpy(data, "jpeg"))


def test_reduced_and_full_differ_but_little():
    full, reduced = (Preprocessing(64, 48, decode=decode) for decode in ("full", "reduced"))
    data = jpeg(picture(640, 480))
    one = Preprocessor(full, spec_for(full))(data, "jpeg").astype(int)
    preprocess = Preprocessor(reduced, spec_for(reduced))
    other = preprocess(data, "jpeg").astype(int)
    assert "jpeg frames decoded at 1/8, resize" in preprocess.path
    assert 0 < np.abs(one - other).mean() < 20


@pytest.mark.parametrize("order", ["big", "little"])
@pytest.mark.parametrize("orientation", range(9))
def test_size_is_that_of_the_turned_picture(orientation, order):
    data = jpeg(picture(64, 40), orientation, order)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert jpeg_size(data) == decoded.shape[1::-1]
    assert jpeg_size(data) == ((40, 64) if orientation >= 5 else (64, 40))


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_turned_pictures_are_reduced_by_the_sides_they_have_when_turned(color, orientation):
    declared = Preprocessing(20, 40, color=color, geometry="center-crop", decode="reduced")
    y, x = np.mgrid[0:162, 0:318]  # levels that rise from corner to corner: smooth, and told apart when turned
    data = jpeg(np.stack([x // 2, y, (x + y) // 4], axis=-1).astype(np.uint8), orientation)
    preprocess = Preprocessor(declared, spec_for(declared))
    found = preprocess(data, "jpeg")
    size = (162, 318) if orientation == 6 else (318, 162)
    assert preprocess.frame_size == size
    assert preprocess.placement == declared.placement(*size)
    whole = Preprocessor(Preprocessing(20, 40, color=color, geometry="center-crop"), spec_for(declared))
    assert np.abs(found.astype(int) - whole(data, "jpeg")).mean() < 5


def test_an_exif_segment_that_is_cut_or_lies_is_passed_over():
    sound = bytes(jpeg(picture(64, 40), 6))
    start = sound.index(b"Exif")
    for cut in range(6, 44):  # the segment keeps its length, its end is zeros
        data = bytearray(sound)
        data[start + cut : start + 44] = bytes(44 - cut)
        assert jpeg_size(np.frombuffer(bytes(data), np.uint8)) in ((64, 40), (40, 64))
    far = bytearray(sound)
    far[start + 10 : start + 14] = b"\xff\xff\xff\xf0"  # the directory's place
    assert jpeg_size(np.frombuffer(bytes(far), np.uint8)) == (64, 40)


def test_raw_frames_under_a_reduced_declaration_are_taken_as_they_are():
    declared = Preprocessing(24, 20, decode="reduced")
    preprocess = Preprocessor(declared, spec_for(declared))
    pixels = picture(240, 200)
    plain = Preprocessing(24, 20)
    expected = Preprocessor(plain, spec_for(plain))(pixels, "bgr")
    np.testing.assert_array_equal(preprocess(pixels, "bgr"), expected)
    assert preprocess.decoded_ns == 0 and preprocess.path.startswith("OpenCV bilinear stretch, rgb, bgr frames, ")


@pytest.mark.parametrize("decode", ["full", "reduced"])
@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xd8", b"no picture at all", bytes(100), cv2.imencode(".jpg", picture(64, 40))[1].tobytes()[:90]],
)
def test_bytes_that_are_no_jpeg_are_refused_and_the_next_frame_is_not(decode, data):
    declared = Preprocessing(24, 20, decode=decode)
    preprocess = Preprocessor(declared, spec_for(declared))
    sound = jpeg(picture(64, 40))
    expected = preprocess(sound, "jpeg").copy()
    with pytest.raises(FrameError, match=r"no .*JPEG picture"):
        preprocess(np.frombuffer(data, np.uint8), "jpeg")
    np.testing.assert_array_equal(preprocess(sound, "jpeg"), expected)


def test_a_picture_that_comes_out_in_another_size_is_refused(monkeypatch):
    declared = Preprocessing(24, 20, decode="reduced")
    monkeypatch.setattr("edgeferry_runtime.preprocessor.jpeg_size", lambda data: (400, 640))
    with pytest.raises(FrameError, match="came out as 80x50"):
        Preprocessor(declared, spec_for(declared))(jpeg(picture(640, 400)), "jpeg")


def test_without_opencv_a_jpeg_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(opencv, "available", lambda: False)
    declared = Preprocessing(24, 20)
    preprocess = Preprocessor(declared, spec_for(declared))
    assert preprocess(picture(40, 30), "bgr").shape == (1, 20, 24, 3)
    for use in (lambda data: preprocess(data, "jpeg"), decode_jpeg, lambda data: to_bgr(data, "jpeg")):
        with pytest.raises(DependencyError, match="decoding JPEG frames needs OpenCV"):
            use(jpeg(picture(64, 40)))

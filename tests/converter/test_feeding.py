"""Feeding: pictures become what a camera delivers where a declared shortcut needs it; --preprocess takes keys."""

from __future__ import annotations

import numpy as np
import pytest
from edgeferry_converter.data.dataset import FRAME, Sample
from edgeferry_converter.errors import DataError, OptionError
from edgeferry_converter.feeding import JPEG, FrameFeed, as_delivered
from edgeferry_converter.goldens import choose_goldens
from edgeferry_converter.preprocess_option import read_preprocessing
from edgeferry_runtime import opencv
from edgeferry_runtime.errors import DependencyError
from edgeferry_runtime.manifest import Quantization, TensorSpec
from edgeferry_runtime.preprocessing import PRESETS, Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor

cv2 = opencv.load("the tests")
PLAIN = Preprocessing(16, 12)
REDUCED = Preprocessing(16, 12, decode="reduced")
PLANES = Preprocessing(16, 12, planes="resize-first")


def picture(width: int = 130, height: int = 97) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8)


def test_without_a_shortcut_a_frame_is_its_pixels():
    pixels = picture()
    fed, color = as_delivered(PLAIN, pixels, np.zeros(9, np.uint8))
    assert fed is pixels and color == "bgr"


def test_a_jpeg_keeps_its_own_bytes_and_another_picture_is_encoded():
    pixels = picture()
    own = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 60])[1].reshape(-1)
    fed, color = as_delivered(REDUCED, pixels, own)
    assert color == "jpeg"
    np.testing.assert_array_equal(fed, own)
    encoded, _ = as_delivered(REDUCED, pixels)
    assert encoded.ndim == 1 and encoded.size > own.size
    assert np.abs(cv2.imdecode(encoded, cv2.IMREAD_COLOR).astype(int) - pixels).mean() < 6


def test_the_model_is_calibrated_with_what_the_board_sees():
    """Both shortcuts give other numbers than the plain way, and just those of the runtime's own preprocessor."""
    sample = Sample({FRAME: picture()})
    plain = FrameFeed(PLAIN, "x").real(sample)["x"]
    for declared in (REDUCED, PLANES):
        found = FrameFeed(declared, "x").real(sample)["x"]
        spec = TensorSpec("x", "x", (1, 12, 16, 3), "float32")
        expected = Preprocessor(declared, spec)(*as_delivered(declared, sample.frame))
        np.testing.assert_array_equal(found, expected)
        assert (found != plain).any() and np.abs(found - plain).mean() < 20


def test_a_sample_is_prepared_once_for_all_who_ask():
    feed = FrameFeed(REDUCED, "x")
    one, other = Sample({FRAME: picture()}), Sample({FRAME: picture(40, 30)})
    first = feed.delivered(one)
    assert feed.delivered(one) is first
    assert feed.delivered(other) is not first
    np.testing.assert_array_equal(feed.delivered(one)[0], first[0])


def test_boxes_are_placed_in_the_whole_frame():
    sample = Sample({FRAME: picture(131, 97), JPEG: cv2.imencode(".jpg", picture(131, 97))[1]})
    assert FrameFeed(REDUCED, "x").place(sample) == (REDUCED.placement(131, 97), (131, 97))
    assert FrameFeed(PLANES, "x").place(sample) == (PLANES.placement(130, 96), (130, 96))
    for declared in (REDUCED, PLANES):
        feed = FrameFeed(declared, "x")
        feed.real(sample)
        assert feed.place(sample) == (feed._preprocessor.placement, feed._preprocessor.frame_size)


def test_a_picture_without_planes_is_named():
    with pytest.raises(DataError, match="1x9 pixels has no planes"):
        as_delivered(PLANES, np.zeros((9, 1, 3), np.uint8))


@pytest.mark.parametrize(("declared", "color"), [(REDUCED, "jpeg"), (PLANES, "i420")])
def test_shortcuts_need_opencv_here(declared, color, monkeypatch):
    monkeypatch.setattr(opencv, "available", lambda: False)
    with pytest.raises(DependencyError, match=f"preparing {color} frames needs OpenCV"):
        as_delivered(declared, picture())


class Runner:
    """A variant as goldens see it: its answers are its input's mean."""

    def __init__(self, feed: FrameFeed) -> None:
        self.variant = type("Variant", (), {"name": "int8"})()
        self.preprocessor = Preprocessor(
            feed.declared, TensorSpec("x", "x", (1, 12, 16, 3), "int8", "", Quantization((1.0,), (-128,)))
        )
        self._feed = feed

    def __call__(self, sample: Sample) -> dict[str, np.ndarray]:
        return {"y": self.preprocessor(*self._feed.delivered(sample)).mean(axis=(1, 2, 3)).astype(np.float32)}


class Source:
    def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": inputs["x"].mean(axis=(1, 2, 3))}


@pytest.mark.parametrize(
    ("declared", "color", "shape"),
    [(PLAIN, "bgr", (23, 32, 3)), (REDUCED, "jpeg", None), (PLANES, "i420", (33, 32))],
)
def test_goldens_are_stored_as_they_are_delivered(declared, color, shape):
    feed = FrameFeed(declared, "x")
    large = Sample({FRAME: picture(), JPEG: cv2.imencode(".jpg", picture())[1].reshape(-1)})
    small = Sample({FRAME: picture(32, 24), JPEG: cv2.imencode(".jpg", picture(32, 24))[1].reshape(-1)})
    goldens = choose_goldens([large, small], feed, Source(), [Runner(feed)])
    assert goldens.color == color and goldens.count == 2
    assert len(goldens.input_sha256["int8"]) == 3
    if color == "jpeg":
        decoded = cv2.imdecode(goldens.frames[0], cv2.IMREAD_COLOR)
        assert decoded.shape == (23, 32, 3)  # made smaller, so encoded anew
        np.testing.assert_array_equal(goldens.frames[1], small.inputs[JPEG])
    else:
        assert goldens.frames[0].shape == shape
    replayed = Preprocessor(declared, TensorSpec("x", "x", (1, 12, 16, 3), "float32"))
    means = [replayed(frame, color).mean() for frame in goldens.frames]
    np.testing.assert_allclose(means, goldens.reference["y"], rtol=1e-5)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("tf,geometry=letterbox,decode=reduced", {**PRESETS["tf"], "geometry": "letterbox", "decode": "reduced"}),
        ("planes=resize-first", {**PRESETS["raw"], "planes": "resize-first"}),
        ("torch, mean=[0.5, 0.5, 0.5], std=[0.25]", {**PRESETS["torch"], "mean": (0.5,) * 3, "std": (0.25,)}),
        ("unit,pad_value=0,color=bgr", {**PRESETS["unit"], "pad_value": 0, "color": "bgr"}),
    ],
)
def test_keys_after_a_preset(option, expected):
    assert read_preprocessing(option, 12, 16, 3) == Preprocessing(16, 12, **expected)


def test_keys_after_a_file(tmp_path):
    path = tmp_path / "with, a comma.toml"
    path.write_text('preset = "tf"\ndecode = "full"\n')
    assert read_preprocessing(str(path), 12, 16, 3).decode == "full"
    plain = tmp_path / "camera.toml"
    plain.write_text('preset = "tf"\ndecode = "full"\n')
    found = read_preprocessing(f"{plain},decode=reduced", 12, 16, 3)
    assert (found.decode, found.scale) == ("reduced", PRESETS["tf"]["scale"])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("tf,decode=half", "decode: is 'half'"),
        ("tf,decod=reduced", "did you mean 'decode'"),
        ("tf,letterbox", "'letterbox' is no key=value"),
        ("tff,decode=reduced", "did you mean 'tf'"),
        ("tf,pad_value=grey", "pad_value"),
        ("decode=reduced,planes=resize-first", "exclude each other"),
    ],
)
def test_keys_that_cannot_be_used(option, words):
    with pytest.raises(OptionError, match=words):
        read_preprocessing(option, 12, 16, 3)


def test_planes_need_even_sides():
    with pytest.raises(OptionError, match="width: is 15, must be even where planes are resized first"):
        read_preprocessing("raw,planes=resize-first", 12, 15, 3)

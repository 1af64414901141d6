"""Goldens of declared shortcuts: the device decodes JPEG files and resizes planes itself, or is caught."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from edgeferry_runtime import opencv
from edgeferry_runtime.backend import Interpreter
from edgeferry_runtime.check import check_here
from edgeferry_runtime.cli import main
from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.golden import load_array, load_frame, probe_frame, replay, tensor_sha256
from edgeferry_runtime.manifest import Manifest, content_version
from edgeferry_runtime.model import Model
from edgeferry_runtime.preprocessor import Preprocessor
from edgeferry_runtime.tensors import dequantize

cv2 = opencv.load("the tests")


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@pytest.fixture
def shortcut_bundle(make_bundle, tmp_path):
    """A tiny bundle whose goldens go through a shortcut: "jpeg" (decoded reduced) or "i420" (planes first)."""

    def make(color: str, spoil=lambda members: None):
        def change(manifest, members):
            variant, spec = manifest.variants[0], manifest.variants[0].inputs[0]
            shortcut = {"decode": "reduced"} if color == "jpeg" else {"planes": "resize-first"}
            declared = replace(manifest.preprocessing, **shortcut)
            model = tmp_path / "model.tflite"
            model.write_bytes(members[variant.file])
            interpreter = Interpreter(str(model), threads=1)
            preprocess, names, hashes, answers = Preprocessor(declared, spec), [], [], []
            for i, member in enumerate(manifest.golden.frames):
                pixels = np.load(io.BytesIO(members.pop(member)))
                pixels = cv2.resize(pixels, (60, 40))
                encoded = cv2.cvtColor(pixels, cv2.COLOR_BGR2YUV_I420)
                if color == "jpeg":
                    encoded = cv2.imencode(".jpg", pixels)[1]
                names.append(f"golden/frame-{i:02d}." + ("jpg" if color == "jpeg" else "npy"))
                members[names[-1]] = encoded.tobytes() if color == "jpeg" else npy(encoded)
                hashes.append(tensor_sha256(preprocess(encoded, color)))
                np.copyto(interpreter.input(spec.tensor), preprocess(encoded, color))
                interpreter.invoke()
                answers.append(
                    dequantize(interpreter.output(variant.outputs[0].tensor), variant.outputs[0]).copy()
                )
            probe = color if color == "i420" else "bgr"
            hashes.append(tensor_sha256(preprocess(probe_frame(probe), probe)))
            members["golden/int8.npy"] = npy(np.concatenate(answers))
            spoil(members)
            golden = replace(manifest.golden, color=color, frames=tuple(names))
            return replace(
                manifest,
                preprocessing=declared,
                golden=golden,
                variants=(replace(variant, input_sha256=tuple(hashes)),),
            ), members

        return make_bundle(change=change)

    return make


@pytest.mark.parametrize("color", ["jpeg", "i420"])
def test_a_good_device_passes(shortcut_bundle, color, capsys):
    path = shortcut_bundle(color)
    report = check_here(str(path), None, None, None)
    assert report.ok and report.frames == 8 and not report.preprocessing_differs
    assert main(["check", "--bundle", str(path)]) == 0
    assert "8 golden frames within tolerance" in capsys.readouterr().out


def test_frames_are_stored_as_the_camera_delivers_them(shortcut_bundle):
    with Model.open(shortcut_bundle("jpeg")) as model:
        member = model.bundle.manifest.golden.frames[0]
        frame = load_frame(model.bundle, member, "jpeg")
        assert member.endswith(".jpg") and frame.dtype == np.uint8 and frame.ndim == 1
        assert frame.tobytes() == model.bundle.read(member)
        # 60x40 to 12x8: a quarter of each side is enough.
        model.preprocess(frame, "jpeg")
        assert "decoded at 1/4" in model.preprocessor.path
    with Model.open(shortcut_bundle("i420")) as model:
        member = model.bundle.manifest.golden.frames[0]
        frame = load_frame(model.bundle, member, "i420")
        np.testing.assert_array_equal(frame, load_array(model.bundle, member))
        assert frame.shape == (60, 60)


@pytest.mark.parametrize("color", ["jpeg", "i420"])
def test_a_device_that_takes_no_shortcut_is_caught(shortcut_bundle, color, monkeypatch):
    path = shortcut_bundle(color)
    with Model.open(path) as model:
        plain = replace(model.preprocessor.declared, decode="full", planes="convert-first")
        model.preprocessor.declared = plain
        differs = replay(model).preprocessing_differs
    # The probe of a JPEG bundle is a raw frame, which nothing is decoded of.
    assert differs == tuple(range(8 if color == "jpeg" else 9))


def test_a_golden_jpeg_that_is_none_is_an_error(shortcut_bundle):
    path = shortcut_bundle("jpeg", lambda members: members.update({"golden/frame-03.jpg": b"no picture"}))
    with Model.open(path) as model, pytest.raises(FrameError, match="10 bytes are no whole JPEG picture"):
        replay(model)


def test_probes_of_planes_are_fixed_and_their_own():
    planes = probe_frame("i420")
    assert planes.shape == (720, 640)
    np.testing.assert_array_equal(planes, probe_frame("nv12"))
    np.testing.assert_array_equal(planes.ravel(), probe_frame().ravel()[: planes.size])


def test_bundles_from_before_the_shortcuts_still_load(contents):
    manifest, _ = contents
    value = json.loads(manifest.to_bytes())
    del value["preprocessing"]["planes"]
    value["version"] = content_version(value)
    old = Manifest.from_bytes(json.dumps(value).encode())
    assert old.preprocessing.planes == "convert-first" and old.preprocessing.decode == "full"

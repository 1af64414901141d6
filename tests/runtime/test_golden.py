"""Goldens: the device that runs the model wrongly is caught, whatever way it goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from edgeferry_runtime.check import check_here, check_in_child
from edgeferry_runtime.cli import main
from edgeferry_runtime.errors import BackendError, MemberError
from edgeferry_runtime.golden import deviation, probe_frame, replay
from edgeferry_runtime.manifest import Tolerance
from edgeferry_runtime.model import Model


def npy(array):
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def test_a_good_device_passes(bundle, bundle_folder, capsys):
    for path in (bundle, bundle_folder):
        report = check_here(str(path), None, None, None)
        assert report.ok
        assert report.frames == 8
        assert report.outputs[0].max_abs <= report.outputs[0].max_abs_tolerance
        assert main(["check", "--bundle", str(path)]) == 0
        assert "8 golden frames within tolerance on ai-edge-litert" in capsys.readouterr().out


def test_the_goldens_can_tell_a_constant_answer(bundle):
    """What an interpreter with a wrong operator version gives: the same numbers for every picture."""
    with Model.open(bundle) as model:
        variant = model.variant
        from edgeferry_runtime.golden import load_array

        expected = load_array(model.bundle, variant.golden["scores"])
        constant = np.broadcast_to(expected[0], expected.shape)
        assert not deviation("scores", constant, expected, variant.tolerance["scores"]).ok


@pytest.mark.parametrize(
    ("shift", "ok"), [(0.0, True), (0.009, True), (0.011, False), (np.nan, False), (np.inf, False)]
)
def test_deviation_at_its_bounds(shift, ok):
    expected = np.zeros((8, 4), np.float32)
    assert deviation("x", expected + np.float32(shift), expected, Tolerance(max_abs=0.02, rms=0.01)).ok is ok


def test_one_wild_value_is_outside(bundle):
    expected = np.zeros((8, 400), np.float32)
    found = expected.copy()
    found[3, 7] = 0.03  # rms 0.0005
    assert not deviation("x", found, expected, Tolerance(max_abs=0.02, rms=0.01)).ok


def test_wrong_outputs_fail_the_check(make_bundle, capsys):
    def change(manifest, members):
        members["golden/int8.npy"] = npy(np.full((8, 4), 0.25, np.float32))
        return manifest, members

    path = str(make_bundle(change=change))
    assert main(["check", "--bundle", path, "--json"]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["ok"] is False
    assert "runs this model wrongly: output 'scores' differs by" in report["error"]
    assert report["outputs"][0]["max_abs"] > report["outputs"][0]["max_abs_tolerance"]
    assert "edgeferry-run: error:" in captured.err


def test_other_preprocessing_fails_the_check(make_bundle):
    def change(manifest, members):
        variant = manifest.variants[0]
        hashes = ("0" * 64, *variant.input_sha256[1:8], "1" * 64)
        return replace(manifest, variants=(replace(variant, input_sha256=hashes),)), members

    report = check_here(str(make_bundle(change=change)), None, None, None)
    assert report.preprocessing_differs == (0, 8)
    assert not report.ok
    assert "preprocessing gives other bytes here" in report.to_json()["error"]


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY\x01\x00", b"not an array", npy(np.zeros((7, 4), np.float32))])
def test_a_golden_member_that_is_no_array(make_bundle, data):
    def change(manifest, members):
        members["golden/int8.npy"] = data
        return manifest, members

    with Model.open(make_bundle(change=change)) as model, pytest.raises(MemberError):
        replay(model)


def test_pickles_are_not_loaded(make_bundle):
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([print], dtype=object), allow_pickle=True)

    def change(manifest, members):
        members["golden/int8.npy"] = buffer.getvalue()
        return manifest, members

    with Model.open(make_bundle(change=change)) as model, pytest.raises(MemberError, match="is no array"):
        replay(model)


def test_a_corrupt_model_is_refused_before_it_is_loaded(bundle_folder):
    model = bundle_folder / "model-int8.tflite"
    data = bytearray(model.read_bytes())
    data[100] ^= 1
    model.write_bytes(data)
    report = check_in_child(str(bundle_folder), None, None, None)
    assert report["ok"] is False
    assert "SHA-256" in report["error"]


@pytest.fixture
def child_script(tmp_path, monkeypatch):
    """Let the child process be a script of the test's."""

    def use(code: str) -> None:
        script = tmp_path / "child.py"
        script.write_text(code)
        launcher = tmp_path / "python"
        launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}"\n')
        launcher.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(launcher))

    return use


@pytest.mark.skipif(os.name != "posix", reason="signals and sh")
def test_a_child_that_crashes_is_named(child_script):
    child_script(f"import os, signal; os.kill(os.getpid(), {int(signal.SIGSEGV)})")
    report = check_in_child("x.ferry", None, None, None)
    assert report["ok"] is False
    assert "crashed while it loaded or ran x.ferry (SIGSEGV)" in report["error"]


@pytest.mark.skipif(os.name != "posix", reason="signals and sh")
def test_a_child_that_hangs_is_ended(child_script):
    child_script("import time; time.sleep(60)")
    report = check_in_child("x.ferry", None, None, None, timeout_s=0.5)
    assert "did not end within" in report["error"]


@pytest.mark.skipif(os.name != "posix", reason="signals and sh")
@pytest.mark.parametrize("reply", ["", "nonsense", "[]", '{"ok": 1}'])
def test_a_child_that_talks_nonsense_fails_the_check(child_script, reply):
    child_script(f"import sys; print({reply!r}); print('why', file=sys.stderr); sys.exit(3)")
    report = check_in_child("x.ferry", None, None, None)
    assert report["ok"] is False
    assert "ended with 3: why" in report["error"]


def test_the_probe_frame_is_fixed():
    import hashlib

    digest = hashlib.sha256(probe_frame().tobytes()).hexdigest()
    assert digest == "2580424f241dbe03c1b2388945f59858e8f4e032369d77ac57be8c194b1f2dd2"


def test_model_that_is_not_what_the_manifest_says(make_bundle):
    def change(manifest, members):
        variant = manifest.variants[0]
        spec = replace(
            variant.inputs[0], quantization=replace(variant.inputs[0].quantization, zero_points=(-127,))
        )
        return replace(manifest, variants=(replace(variant, inputs=(spec,)),)), members

    with pytest.raises(BackendError, match="is not what the manifest says"):
        Model.open(make_bundle(change=change))


def test_check_works_as_a_module_from_anywhere(bundle, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "edgeferry_runtime", "check", "--bundle", str(bundle)],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

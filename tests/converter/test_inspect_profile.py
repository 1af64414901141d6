"""`edgeferry inspect --profile` on a workstation."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from edgeferry_converter.inspect_profile import with_profile
from edgeferry_runtime import profiling

TINY = Path(__file__).resolve().parent.parent / "contract" / "data" / "tiny_int8.tflite"


def edgeferry(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "edgeferry_deploy", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_model_file_is_profiled_by_operation(tmp_path):
    page = tmp_path / "profile.html"
    done = edgeferry("inspect", TINY, "--profile", "--html", page, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["operations"]["CONV_2D"] == 1
    profile = found["profile"]
    assert profile["loop"] == []
    assert profile["operations"]["measured"]
    assert profile["operations"]["sum_us"] > 0
    assert "Profile of tiny_int8.tflite" in page.read_text("utf-8")


def test_a_bundle_is_profiled_with_its_loop(bundle, monkeypatch):
    monkeypatch.setattr(profiling, "profile_bundle", partial(profiling.profile_bundle, seconds=0.6))
    facts, text = with_profile(bundle, {"name": "tiny"}, "what is known", None)
    assert facts["name"] == "tiny"
    assert len(facts["profile"]["loop"]) == 2
    assert text.startswith("what is known\n\ntiny-")
    for word in ("the loop, sequential", "the loop, pipelined", "SOFTMAX", "bound by"):
        assert word in text


def test_what_cannot_be_profiled_is_refused_before_anything_is_measured(tmp_path):
    done = edgeferry("inspect", tmp_path / "model.keras", "--profile")
    assert done.returncode == 2
    assert "Convert it first" in done.stderr
    done = edgeferry("inspect", TINY, TINY, "--html", tmp_path / "page.html")
    assert done.returncode == 2
    assert "Inspect them one by one" in done.stderr
    assert not (tmp_path / "page.html").exists()

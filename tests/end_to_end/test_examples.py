"""Every script in examples/ runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), np.full((30, 40, 3), 90, np.uint8))
    return path


def test_classify_picture(bundle, picture):
    assert "alpha" in run("classify_picture.py", bundle, picture)


def test_watch_source(bundle, picture):
    assert " ms  " in run("watch_source.py", bundle, picture.parent)


def test_look_into_bundle(bundle, make_bundle):
    from dataclasses import replace

    def judged(manifest, members):
        gate = {"variants": {"int8": {"accuracy": 0.9, "agreement": 1.0}}}
        return replace(manifest, provenance={"gate": gate}), members

    assert "int8: accuracy 90.0%" in run("look_into_bundle.py", make_bundle(seed=3, change=judged))


def test_push_from_python(bundle, tmp_path):
    out = run("push_from_python.py", bundle, f"local:{tmp_path / 'board'}")
    assert "is current" in out
    assert "allowed" in out


def test_no_example_is_forgotten():
    text = Path(__file__).read_text(encoding="utf-8")
    assert [p.name for p in EXAMPLES.glob("*.py") if p.name not in text] == []

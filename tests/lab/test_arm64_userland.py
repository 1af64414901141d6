"""An arm64 Debian userland under qemu-user: the same bytes of preprocessing, golden outputs within tolerance.

Nothing here is timed: emulation is a hundred times slower than a board.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lab_board import need_root_and_tools
from lab_rootfs import unpack

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

SYSTEM = "bookworm"  # Raspberry Pi OS 12: Python 3.11, glibc 2.36
PLATFORMS = [
    "manylinux_2_17_aarch64",
    "manylinux_2_27_aarch64",
    "manylinux_2_28_aarch64",
    "manylinux_2_34_aarch64",
]
# The versions of the profiles rpi3, rpi4 and rpi5.
WHEELS = ["numpy", "opencv-python-headless", "ai-edge-litert>=2.1,<2.2"]


@pytest.fixture(scope="module")
def userland(repository, tmp_path_factory) -> Path:
    """A root file system with Python, the wheels a Raspberry Pi 4 gets, and the runtime."""
    need_root_and_tools()
    root = tmp_path_factory.mktemp("lab") / "root"
    unpack(SYSTEM, root)
    site = root / "opt" / "site"
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", site, *platforms,
         "--python-version", "3.11", "--only-binary=:all:", *WHEELS],
        check=True,
    )  # fmt: skip
    package = repository / "runtime" / "edgeferry_runtime"
    shutil.copytree(package, site / "edgeferry_runtime", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "opt" / "edgeferry").mkdir()
    for name in ("preprocessing_hashes.py", "preprocessing_hashes.json"):
        shutil.copy(repository / "tests" / "contract" / name, root / "opt" / "edgeferry")
    yield root
    shutil.rmtree(root)


def run(userland: Path, *argv: str) -> subprocess.CompletedProcess:
    environment = {"PYTHONPATH": "/opt/site", "PYTHONDONTWRITEBYTECODE": "1", "PATH": "/usr/bin:/bin", "HOME": "/"}
    return subprocess.run(
        [shutil.which("chroot"), str(userland), "/usr/bin/python3", *argv],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip


def test_the_same_bytes_of_preprocessing(userland):
    done = run(userland, "/opt/edgeferry/preprocessing_hashes.py", "--check")
    print(done.stdout)
    assert "216 frames by numpy and OpenCV" in done.stdout, done.stderr
    assert "0 differ" in done.stdout
    machine = run(userland, "-c", "import platform; print(platform.machine())")
    assert machine.stdout.strip() == "aarch64"


def check(userland: Path, bundle: Path) -> dict:
    shutil.copy(bundle, userland / "opt" / "edgeferry" / "x.ferry")
    done = run(userland, "-m", "edgeferry_runtime", "check", "--bundle", "/opt/edgeferry/x.ferry", "--json")
    report = json.loads(done.stdout)
    print(report)
    return report


def test_goldens_of_a_tiny_bundle(userland, bundle):
    report = check(userland, bundle)
    assert report["ok"] is True
    assert report["preprocessing_differs"] == []


def test_goldens_of_the_digits(userland, repository, tmp_path):
    example = repository / "examples" / "digits"
    subprocess.run([sys.executable, example / "scene.py", "--folders", "scenes"], cwd=tmp_path, check=True)
    subprocess.run(
        [sys.executable, "-m", "edgeferry_deploy", "convert", example / "digits.keras", "--profile", "rpi4",
         "--data", "scenes", "--preprocess", "unit", "-o", "digits.ferry"],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    report = check(userland, tmp_path / "digits.ferry")
    assert report["ok"] is True
    assert report["backend"].startswith("ai-edge-litert 2.1")
    # An outright equal answer would mean that this test does not see another interpreter at all.
    assert 0 < report["outputs"][0]["rms"] < report["outputs"][0]["rms_tolerance"]


@pytest.mark.parametrize("color", ["bgr", "i420", "jpeg"])
@pytest.mark.parametrize("pipelined", ["on", "off"])
def test_the_loop_gives_the_answers_of_this_machine(userland, bundle, color, pipelined):
    shutil.copy(bundle, userland / "opt" / "edgeferry" / "x.ferry")
    command = ["-m", "edgeferry_runtime", "run", "--source", f"synthetic:64x48:{color}", "--sink", "jsonl:-",
               "--frames", "5", "--threads", "1", "--pipelined", pipelined, "--bundle"]  # fmt: skip
    there = run(userland, *command, "/opt/edgeferry/x.ferry")
    here = subprocess.run([sys.executable, *command, str(bundle)], capture_output=True, text=True, check=True)
    found, expected = ([json.loads(line) for line in out.splitlines()] for out in (there.stdout, here.stdout))
    assert [result["frame"] for result in found] == [0, 1, 2, 3, 4], there.stderr
    for a, b in zip(found, expected, strict=True):
        assert a["classes"][0]["index"] == b["classes"][0]["index"]
        assert abs(a["classes"][0]["score"] - b["classes"][0]["score"]) < 0.02  # the bundle's tolerance


def test_what_the_device_tells_of_itself(userland, bundle):
    shutil.copy(bundle, userland / "opt" / "edgeferry" / "x.ferry")
    done = run(
        userland, "-m", "edgeferry_runtime", "bench", "--bundle", "/opt/edgeferry/x.ferry", "--json",
        "--source", "synthetic:64x48", "--frames", "5", "--threads", "1",
    )  # fmt: skip
    report = json.loads(done.stdout)["bench"]
    assert report["after"]["arch"] == "aarch64", done.stderr
    assert report["frames"] == 5

"""The wheels, installed outside the source tree: what users get, on the Pythons that boards have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# Python -> what a device with it has; OpenCV on some only, because the runtime must do without.
DEVICES = {
    "3.7": ["tflite-runtime==2.11.0", "numpy<2", "opencv-python-headless"],  # as the Coral Dev Board
    "3.9": ["tflite-runtime==2.14.0", "numpy<2"],
    "3.11": ["ai-edge-litert"],  # Bookworm
    "3.13": ["ai-edge-litert", "opencv-python-headless"],  # Trixie
}


def find_python(version: str) -> str:
    """An interpreter of exactly this version, with venv."""
    names = [shutil.which(f"python{version}") or ""]
    for root in (os.environ.get("PYENV_ROOT", ""), str(Path.home() / ".pyenv")):
        names += [str(p) for p in sorted(Path(root, "versions").glob(f"{version}.*/bin/python"))] if root else []
    for name in filter(None, names):
        probe = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([name, "-c", probe], capture_output=True, text=True)
        if done.stdout.strip() == version:
            return name
    pytest.skip(f"no Python {version} on this machine")


def run(argv: list, cwd: Path, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(a) for a in argv], cwd=cwd, capture_output=True, text=True, env={**clean, **environment}
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(repository, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for part in ("runtime", "converter", "deploy", "."):
        run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, repository / part],
            folder,
        )
    assert len(list(folder.glob("*.whl"))) == 4
    return folder


def wheel(wheels: Path, name: str) -> Path:
    (found,) = wheels.glob(f"{name}-*.whl")
    return found


def test_the_runtime_wheel_needs_numpy_alone(wheels):
    with zipfile.ZipFile(wheel(wheels, "edgeferry_runtime")) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith("METADATA")]
        lines = archive.read(metadata).decode().splitlines()
    needed = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert needed == ["Requires-Dist: numpy"]
    assert "Requires-Python: >=3.7" in lines
    assert all(name.startswith(("edgeferry_runtime/", "edgeferry_runtime-")) for name in names)
    assert "edgeferry_runtime/py.typed" in names


def test_data_travels_in_the_wheels(wheels):
    converter = zipfile.ZipFile(wheel(wheels, "edgeferry_converter")).namelist()
    assert "edgeferry_converter/device_profiles/reference.toml" in converter
    assert "edgeferry_converter/device_profiles/rpi4.toml" in converter
    deploy = zipfile.ZipFile(wheel(wheels, "edgeferry_deploy")).namelist()
    assert {f"edgeferry_deploy/examples/digits/{n}" for n in ("scene.py", "digits.keras", "labels.txt")} <= set(
        deploy
    )


@pytest.mark.parametrize("version", DEVICES)
@pytest.mark.timeout(600)
def test_the_runtime_wheel_alone_on_a_device(wheels, bundle, repository, tmp_path, version):
    python = find_python(version)
    run([python, "-m", "venv", "venv"], tmp_path)
    bin = tmp_path / "venv" / "bin"
    run([bin / "pip", "install", "--quiet", wheel(wheels, "edgeferry_runtime"), *DEVICES[version]], tmp_path)
    device = tmp_path / "device"
    device.mkdir()
    shutil.copy(bundle, device / "tiny.ferry")

    info = json.loads(run([bin / "edgeferry-run", "info", "--bundle", "tiny.ferry", "--json"], device))
    assert info["device"]["python"].startswith(version)
    wanted = DEVICES[version][0].split("==")[0]
    assert info["here"]["backend"].startswith(wanted), info["here"]
    assert str(tmp_path) in run([bin / "python", "-c", "import edgeferry_runtime as e; print(e.__file__)"], device)

    report = json.loads(run([bin / "edgeferry-run", "check", "--bundle", "tiny.ferry", "--json"], device))
    assert report["ok"] is True
    assert report["frames"] == 8

    loop = [
        bin / "edgeferry-run",
        "run",
        "--bundle",
        "tiny.ferry",
        "--source",
        "synthetic:64x48",
        "--sink",
        "jsonl:-",
    ]
    lines = run([*loop, "--frames", "5"], device).splitlines()
    assert [json.loads(line)["frame"] for line in lines] == [0, 1, 2, 3, 4]
    if any("opencv" in name for name in DEVICES[version]):
        jpeg = ["--source", "synthetic:64x48:jpeg", "--pipelined", "on", "--annotate", "drawn", "--threads", "1"]
        run([*loop[:4], *jpeg, "--frames", "5"], device)
        assert len(list((device / "drawn").glob("*.jpg"))) == 5
    bench = [*loop[:1], "bench", *loop[2:6], "--seconds", "0.5", "--threads", "1", "--json"]
    assert json.loads(run(bench, device))["bench"]["frames"] > 10

    hashes = run(
        [bin / "python", repository / "tests" / "contract" / "preprocessing_hashes.py", "--check"], device
    )
    print(hashes)
    assert "216 frames by numpy" in hashes
    assert ("OpenCV" in hashes) == any("opencv" in name for name in DEVICES[version])
    assert "0 differ" in hashes


@pytest.mark.timeout(600)
def test_all_wheels_together_outside_the_source_tree(wheels, tmp_path):
    """The demo from wheels: every package, the profiles and the example come out of them."""
    run([sys.executable, "-m", "venv", "venv"], tmp_path)
    bin = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    run([bin / "pip", "install", "--quiet", "--no-deps", *sorted(wheels.glob("*.whl"))], tmp_path)
    # Third-party packages are borrowed from the environment the tests run in: a .pth line makes its folder
    # importable after the venv's own, and its editable installs stay out because their .pth files are not read.
    site = run([bin / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip()
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for package in ("edgeferry_runtime", "edgeferry_converter", "edgeferry_deploy"):
        place = run([bin / "python", "-c", f"import {package} as p; print(p.__file__)"], tmp_path)
        assert place.startswith(site), place
    profiles = json.loads(run([bin / "edgeferry", "profiles", "--json"], tmp_path))
    assert "rpi4" in json.dumps(profiles)
    figures = json.loads(run([bin / "edgeferry", "demo", "--output", "demo", "--json"], tmp_path))
    assert figures["runs"][0]["accuracy"] > 0.95
    assert (tmp_path / "demo" / "report.html").stat().st_size > 50_000

"""`edgeferry up`: which profile a board gets, how the conversion is called, and the whole way."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace

import pytest
from edgeferry_deploy import up
from edgeferry_deploy.cli import main
from edgeferry_deploy.console import Console
from edgeferry_deploy.errors import ConversionFailedError
from edgeferry_deploy.fact_types import Accelerator, Facts

PI4 = "Raspberry Pi 4 Model B Rev 1.4"
STICK = (Accelerator("edgetpu-usb", "18d1:9302", True),)


@pytest.mark.parametrize(
    ("model", "bits", "accelerators", "profile"),
    [
        (PI4, 64, (), "rpi4"),
        (PI4, 64, STICK, "coral-usb-rpi4"),
        (PI4, 32, (), ""),
        ("Raspberry Pi 5 Model B Rev 1.0", 64, (), "rpi5"),
        ("Raspberry Pi 5 Model B Rev 1.0", 64, STICK, ""),
        ("Raspberry Pi Zero 2 W Rev 1.0", 64, (), "rpi-zero-2w"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", 64, (), "rpi3"),
        ("Freescale i.MX8MQ Phanbell", 64, (), "coral-dev-board"),
        ("Some Other Board", 64, (), ""),
        (None, 64, (), ""),
    ],
)
def test_a_board_gets_the_profile_of_its_kind(model, bits, accelerators, profile):
    facts = Facts("board", model=model, arch="aarch64", userland_bits=bits, accelerators=accelerators)
    assert up.choose_profile(facts) == profile


def test_every_profile_named_here_is_shipped(repository):
    names = {path.stem for path in (repository / "device_profiles").glob("*.toml")}
    assert {name for _, name in up.SHIPPED} <= names


OPTIONS = {"labels": "", "preprocess": "", "task": "", "quantize": "", "max_drop": ""}


def test_the_conversion_gets_what_the_user_gave(tmp_path):
    arguments = Namespace(model="m.keras", data="d", **{**OPTIONS, "labels": "l.txt", "max_drop": "0.02"})
    assert up.convert_argv(arguments, "rpi4", tmp_path / "m.ferry")[2:] == [
        "convert", "m.keras", "--profile", "rpi4", "--data", "d", "-o", str(tmp_path / "m.ferry"), "--json",
        "--labels", "l.txt", "--max-drop", "0.02",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "said"),
    [
        (1, json.dumps({"error": "the gate said no", "remedy": "more data"}), "", "the gate said no"),
        (1, "", "Traceback\nImportError: no such thing\n", "ImportError: no such thing"),
        (-9, "[1, 2]", "", "no word"),
    ],
)
def test_a_conversion_that_fails_says_why(monkeypatch, tmp_path, code, stdout, stderr, said):
    done = subprocess.CompletedProcess((), code, stdout, stderr)
    monkeypatch.setattr(up.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(ConversionFailedError, match=said):
        up.convert(Namespace(model="m", data="d", **OPTIONS), "p", tmp_path / "x", Console(quiet=True))


@pytest.mark.parametrize(
    ("report", "shown"),
    [
        (
            {"evaluation": {"keras_accuracy": 0.98, "variants": {"int8": {"accuracy": 0.97}}}},
            " (Keras 98.0%, int8 97.0%)",
        ),
        ({"evaluation": None}, ""),
        ({}, ""),
    ],
)  # fmt: skip
def test_what_the_conversion_measured_is_told(report, shown):
    assert up.figures(report) == shown


def test_a_missing_file_is_told_before_anybody_is_called(tmp_path, capsys):
    code = main(["up", str(tmp_path / "none.keras"), "pi@nowhere.invalid", "--data", str(tmp_path)])
    assert code == 2
    assert "none.keras: there is no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_from_a_model_to_a_running_service(repository, tmp_path, start_device, capsys):
    example = repository / "examples" / "digits"
    video = tmp_path / "digits.avi"
    subprocess.run(
        [sys.executable, example / "scene.py", "--folders", "scenes", "--video", video, "--seconds", "4"],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    (tmp_path / "run.toml").write_text(f'source = "{video}?loop=1&realtime=1"\n')
    board = start_device(tmp_path / "home")
    argv = ["up", str(example / "digits.keras"), board.target, "--identity", str(board.identity)]
    argv += ["--data", str(tmp_path / "scenes"), "--labels", str(example / "labels.txt"), "--preprocess", "unit"]
    argv += ["--config", str(tmp_path / "run.toml"), "--output", str(tmp_path / "digits.ferry"), "--json"]
    argv += ["--service", "supervised", "--health-seconds", "3"]
    try:
        assert main(argv) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["push"]["health"]["ok"] is True
        assert found["push"]["check"]["ok"] is True
        assert found["conversion"]["evaluation"]["variants"]["int8"]["accuracy"] > 0.9
        assert main(["status", board.target, "--identity", str(board.identity), "--json"]) == 0
        service = json.loads(capsys.readouterr().out)["service"]
        assert service["active"] == "running"
        assert service["frames"] > found["push"]["health"]["results"] - 5
    finally:
        assert main(["remove", board.target, "--identity", str(board.identity), "--yes"]) == 0
    left = [
        path for path in (tmp_path / "home").rglob("*") if path.is_file() and ".virtual-device" not in path.parts
    ]
    assert left == []

"""`edgeferry-run run`, `bench` and `info` around the loop: state, watchdog, accelerators, what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from edgeferry_runtime.cli import main
from edgeferry_runtime.service import read_state

HERE = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("fake_backend", HERE / "fake_backend.py")
fake_backend = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake_backend)


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))


def started(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "edgeferry_runtime", "run", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_the_state_file_tells_how_it_goes_and_how_it_ended(bundle, tmp_path):
    state = tmp_path / "state.json"
    process = started("--bundle", bundle, "--source", "synthetic:64x48@50", "--threads", "1", "--state", state)
    wait_for(lambda: state.exists() and read_state(str(state))["frames"] > 20)
    running = read_state(str(state))
    assert running["state"] == "running"
    assert running["pid"] == process.pid
    assert running["variant"] == "int8"
    assert 20 < running["fps"] < 80
    assert running["source"] == {"outage": "", "reopened": 0}
    assert running["rss_mb"] > 10
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "frames in" in errors
    assert read_state(str(state))["state"] == "stopped"


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="systemd's protocol needs AF_UNIX sockets")
def test_the_watchdog_is_fed_only_while_results_come(bundle, tmp_path):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(30)
        source = "fault:stall@40x30:synthetic:64x48@50"
        process = started(
            "--bundle", bundle, "--source", source, "--threads", "1",
            NOTIFY_SOCKET=address, WATCHDOG_USEC="600000", WATCHDOG_PID="",
        )  # fmt: skip
        try:
            said, beats_at = [], []
            while len(beats_at) < 2:
                said.append(listener.recv(4096).decode())
                if said[-1] == "WATCHDOG=1":
                    beats_at.append(time.monotonic())
            assert said[0] == "READY=1"
            # Then the camera stalls for longer than the watchdog waits: no more beats.
            listener.settimeout(1.5)
            with pytest.raises(socket.timeout):
                for _ in range(20):
                    listener.recv(4096)
        finally:
            process.kill()
            process.communicate()


def test_bench_in_figures(bundle, capsys):
    command = ["bench", "--bundle", str(bundle), "--source", "synthetic:320x240", "--seconds", "0.5"]
    assert main([*command, "--threads", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["bench"]
    assert list(report["cold_start_us"]) == ["import", "open", "load", "allocate", "first invoke"]
    assert all(us > 0 for us in report["cold_start_us"].values())
    assert report["frames"] > 10
    assert report["stages_us"]["invoke"]["p99"] >= report["stages_us"]["invoke"]["p50"] > 0
    assert report["rss_mb"] > 10
    assert report["after"]["usable_cores"] >= 1
    assert main([*command, "--threads", "1"]) == 0
    text = capsys.readouterr().out
    assert "to first answer" in text
    assert "first invoke" in text


def test_info_shows_the_way_of_each_format_and_what_is_delegated(bundle, capsys):
    assert main(["info", "--bundle", str(bundle), "--json"]) == 0
    here = json.loads(capsys.readouterr().out)["here"]
    assert set(here["preprocessing"]) == {"bgr", "i420", "jpeg"}
    assert "xor 0x80" in here["preprocessing"]["bgr"]
    assert 0 < here["delegated_share"] <= 1
    assert here["threads_measured"] is None
    assert main(["info", "--bundle", str(bundle)]) == 0
    assert "delegated" in capsys.readouterr().out


def test_an_accelerator_of_ones_own_and_the_share_it_must_have(bundle, tmp_path, capsys):
    library = fake_backend.build_delegate(tmp_path)
    run = ["run", "--bundle", str(bundle), "--source", "synthetic:64x48", "--frames", "3", "--threads", "1"]
    assert main([*run, "--delegate", library, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["delegate"] == library
    assert main([*run, "--delegate", library, "--no-xnnpack", "--require-delegate", "0.9"]) == 1
    assert "90 % are required" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--source", "synthetc:4x4"], 2, "did you mean 'synthetic'"),
        (["--sink", "jsnl:x"], 2, "did you mean 'jsonl'"),
        (["--threshold", "1.5"], 2, "threshold is 1.5"),
        (["--delegate", "edgtpu"], 2, "did you mean 'edgetpu'"),
        (["--delegate", "/no/such/lib.so"], 1, "cannot be used"),
        (["--require-delegate", "7"], 2, "must be a share"),
        (["--motion", "7"], 2, "must be 0 to 1"),
        (["--variant", "int9"], 2, "did you mean 'int8'"),
        (["--realtime"], 2, "synthetic"),
        (["--sink", "jsonl:/no/such/folder/x.jsonl"], 1, "cannot be written"),
    ],
)
def test_what_is_refused_says_why(bundle, capsys, arguments, code, words):
    if "--source" not in arguments:
        arguments = ["--source", "synthetic:64x48", *arguments]
    assert main(["run", "--bundle", str(bundle), "--threads", "1", "--frames", "2", *arguments]) == code
    assert words in capsys.readouterr().err


def test_a_bundle_for_another_architecture(make_bundle, capsys):
    def change(manifest, members):
        return replace(manifest, requires=replace(manifest.requires, arch=("armv7l",))), members

    path = make_bundle(change=change)
    run = ["run", "--bundle", str(path), "--source", "synthetic:64x48", "--frames", "2", "--threads", "1"]
    assert main(run) == 1
    said = capsys.readouterr().err
    assert "made for armv7l" in said
    assert "--any-arch" in said
    assert main([*run, "--any-arch"]) == 0

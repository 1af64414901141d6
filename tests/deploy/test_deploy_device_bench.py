"""`edgeferry bench`: what a board says, hostile or not, how it is kept, and how two measurements compare."""

from __future__ import annotations

import argparse
import json
import os
import time

import pytest
from edgeferry_deploy import device_bench as module
from edgeferry_deploy.bench_records import (
    cleaned,
    data_folder,
    device_folder,
    differences,
    figures,
    last_record,
    ratio_lines,
    ratios,
    store_record,
)
from edgeferry_deploy.device_bench import bench_words, device_bench, last_object, parse_bench
from edgeferry_deploy.errors import (
    CommandError,
    CommandTimeoutError,
    DeviceReplyError,
    NoReleaseError,
    TargetError,
)
from hypothesis import given
from hypothesis import strategies as st

RELEASE, ENV = "digits-0123456789ab", "e" * 12


def bench(invoke=2000.0, **changes):
    """What a board prints."""
    stats = {"p50": invoke, "p90": invoke, "p99": 2 * invoke, "max": 3 * invoke, "mean": invoke}
    return {
        "source": "synthetic:1280x720", "cold_start_us": {"import": 90_000.0, "open": 10_000.0}, "rss_mb": 64.5,
        "before": {}, "after": {"machine": "Board 1", "python": "3.11.2", "temperature_c": 51.0},
        "bundle": "digits", "variant": "int8", "backend": "ai-edge-litert 2.3.0", "delegate": "", "threads": 2,
        "shape": "pipelined", "preprocessing": "numpy", "frames": 100, "seconds": 10.0, "fps": 10.0,
        "stages_us": {"capture": {**stats, "p50": 1000.0}, "wait": {**stats, "p50": 0.0}, "invoke": stats},
        "age_us": stats, "capture_to_invoke_us": stats, **changes,
    }  # fmt: skip


def record(at="2026-01-01T00:00:00.000000Z", device="pi@board", **changes):
    found = {
        "schema_version": 1, "device": device, "release": RELEASE, "at": at, "profile": "board1", "service": "",
        "requested": {}, "versions": {}, "bench": bench(),
    }  # fmt: skip
    return {**found, **changes}


@pytest.fixture(autouse=True)
def own_data(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEFERRY_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def board(device):
    """A device with a release, whose runtime does what a shell script says."""

    def make(script):
        release = device.root / "releases" / RELEASE
        release.mkdir(parents=True)
        (release / "manifest.json").write_text(json.dumps({"profile": {"name": "board1"}}))
        texts = dict.fromkeys(("bundle", "version", "python", "pushed_by", "pushed_at"), "x")
        (release / "release.json").write_text(json.dumps({**texts, "env": ENV}))
        os.symlink(f"releases/{RELEASE}", device.root / "current")
        launcher = device.root / "env" / ENV / "edgeferry-run"
        launcher.parent.mkdir(parents=True)
        launcher.write_text(f"#!/bin/sh\n{script}\n")
        launcher.chmod(0o755)
        return device

    return make


def prints(text, status=0):
    return f"cat <<'TEXT'\n{text}\nTEXT\nexit {status}"


def arguments(device, **options):
    return argparse.Namespace(
        target=device.target,
        identity=device.identity and str(device.identity),
        root="~/.local/share/edgeferry",
        **{"seconds": 1, "source": "synthetic:8x8", "any_arch": False, "output": "", "json": True, **options},
    )


def test_what_is_asked_of_the_board():
    assert bench_words("/r/b", 20, "video.mp4", any_arch=True) == [
        "bench", "--bundle", "/r/b", "--json", "--seconds", "20", "--source", "video.mp4", "--any-arch",
    ]  # fmt: skip


def test_the_record_carries_what_the_figures_depend_on(board):
    device = board('echo "$@" >asked; echo interpreters like to talk\n' + prints(json.dumps({"bench": bench()})))
    with device.connect() as transport:
        found = device_bench(transport, seconds=1, source="synthetic:8x8")
    bundle = device.root / "releases" / RELEASE
    assert (device.home / "asked").read_text().split() == bench_words(str(bundle), 1, "synthetic:8x8")
    assert (found["release"], found["profile"], found["service"]) == (RELEASE, "board1", "")
    assert found["versions"]["backend"] == "ai-edge-litert 2.3.0"
    assert found["versions"]["python"] == "3.11.2" and found["versions"]["environment"] == ENV
    assert found["bench"] == bench()


def test_a_second_bench_is_compared_with_the_first(board, capsys, tmp_path):
    device = board(prints(json.dumps({"bench": bench()})))
    assert module.run(arguments(device)) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["compared_with"] is None and first["ratios"] == {}
    launcher = device.root / "env" / ENV / "edgeferry-run"
    launcher.write_text("#!/bin/sh\n" + prints(json.dumps({"bench": bench(3000.0, threads=4)})))
    output = tmp_path / "figures.json"
    assert module.run(arguments(device, json=False, output=str(output))) == 0
    said = capsys.readouterr().out
    assert [line.split() for line in said.splitlines() if line.strip().startswith("invoke")] == [
        ["invoke", "3.000", "6.000", "2.000", "1.50", "ms"]
    ]
    assert "threads was 2 and is 4" in said and "took its share" not in said
    assert json.loads(output.read_text())["bench"]["threads"] == 4
    assert len(list(device_folder(first["device"]).iterdir())) == 2


def test_a_running_service_is_named(board, capsys):
    device = board(prints(json.dumps({"bench": bench()})))
    (device.root / "service").mkdir()
    reply = "edgeferry-health 1\nmanager\tsystem edgeferry\nuptime\t5\nActiveState\tactive\nend"
    (device.root / "service" / "control").write_text(prints(reply))
    assert module.run(arguments(device, json=False)) == 0
    assert "was running and took its share of the CPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        (prints('{"ok": false, "error": "no \\u001b[31mcamera", "remedy": "x"}', 1), CommandError, "no .*cam"),
        ("echo '\033[31mSegfault' >&2; exit 3", CommandError, "ended with 3 .*: Segfault"),
        ("kill -9 $$", CommandError, "was killed|ended with 137"),
        ("exit 0", DeviceReplyError, "holds no figures"),
        (prints('{"bench": {"stages_us": []}}'), DeviceReplyError, "says nothing of stages_us"),
        ("yes", DeviceReplyError, "printed more than"),
        ("yes >&2", DeviceReplyError, "printed more than"),
        (prints("[" * 100_000), DeviceReplyError, "holds no figures"),
        ("printf '\\377\\376\\000{}\\n'", DeviceReplyError, "holds no figures"),
    ],
)  # fmt: skip
def test_what_a_board_may_say_instead(board, script, error, words):
    device = board(script)
    with device.connect() as transport, pytest.raises(error, match=words) as caught:
        device_bench(transport, seconds=1)
    assert "\x1b" not in str(caught.value)
    assert not data_folder().exists()


def test_a_bench_that_hangs_is_ended(board, monkeypatch):
    monkeypatch.setattr(module, "START_SECONDS", 0.5)
    device = board("echo $$ >pid; exec sleep 60")
    with device.connect() as transport, pytest.raises(CommandTimeoutError):
        device_bench(transport, seconds=0.5)
    pid = int((device.home / "pid").read_text())
    until = time.monotonic() + 5
    while time.monotonic() < until and os.path.exists(f"/proc/{pid}"):
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")


def test_nothing_pushed(device):
    with device.connect() as transport, pytest.raises(NoReleaseError, match="nothing has been pushed"):
        device_bench(transport)


def test_an_output_without_a_folder_is_refused_before_anybody_is_called(tmp_path):
    options = argparse.Namespace(
        target="pi@192.0.2.1", identity=None, output=str(tmp_path / "no" / "x"), json=True
    )
    with pytest.raises(TargetError, match="no folder"):
        module.run(options)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)
KEYS = (
    "stages_us",
    "cold_start_us",
    "age_us",
    "after",
    "capture_to_invoke_us",
    "fps",
    "frames",
    "threads",
    "rss_mb",
)


@given(st.dictionaries(st.sampled_from(KEYS), json_values), json_values)
def test_any_json_of_a_board_is_refused_or_can_be_shown_and_kept(changes, stray):
    found = last_object(json.dumps({"bench": {**bench(), **changes}, "more": stray}).encode())
    try:
        figures_found = parse_bench(found)
    except ValueError:
        return
    old, new = record(), record(bench=figures_found)
    json.dumps(new, allow_nan=False)
    for one, other in ((new, old), (old, new)):
        lines = [*ratio_lines(one, other), *differences(one, other)]
        assert all(line.isprintable() for line in lines)
        assert all(ratio >= 0 for ratio in ratios(one, other).values())


def test_cleaned_refuses_what_is_too_deep_and_numbers_that_are_none():
    assert cleaned({"a\x1b": [float("nan"), float("inf"), 1.5, True, None, "\x07x"]}) == {
        "a": [None, None, 1.5, True, None, "x"]
    }
    with pytest.raises(ValueError, match="deep"):
        cleaned(json.loads("[" * 50 + "]" * 50))


def test_figures_are_medians_and_leave_out_what_is_absent():
    found = figures(record())
    assert found["invoke"] == (2.0, 4.0, "ms") and "wait" not in found
    assert found["to first answer"] == (100.0, 0.0, "ms") and found["memory"] == (64.5, 0.0, "MB")


def test_the_newest_readable_record_of_that_device_counts():
    assert last_record("pi@board") is None
    for second in (1, 3, 2):
        store_record(record(at=f"2026-01-01T00:00:0{second}.000000Z"))
    store_record(record(at="2027-01-01T00:00:00.000000Z", device="pi@other"))
    folder = device_folder("pi@board")
    (folder / "torn.json").write_text('{"at": "2099')
    (folder / "list.json").write_text("[]")
    (folder / "other.json").write_text('{"at": "2099", "release": 5, "bench": {}}')
    assert last_record("pi@board")["at"] == "2026-01-01T00:00:03.000000Z"


def test_every_device_has_a_folder_of_its_own():
    names = ["pi@board", "pi@[fe80::1%eth0]:2222", "local:/a/b", "local:/a_b", "local:/a.", "local:" + "x" * 300]
    names += ["local:" + "x" * 301, "local:/é", "cam.", "local:/a/../../b"]
    folders = [device_folder(name) for name in names]
    assert len({str(folder).lower() for folder in folders}) == len(names)
    assert all(folder.parent == data_folder() / "bench" for folder in folders)
    assert all(len(folder.name) < 100 and not set(folder.name) & set('<>:"/\\|?*[]%') for folder in folders)


def test_figures_are_not_kept_in_a_root(monkeypatch, tmp_path):
    monkeypatch.delenv("EDGEFERRY_DATA_DIR")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert data_folder().parent == tmp_path and data_folder().name != "edgeferry"


def test_a_folder_that_cannot_be_written_says_so(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEFERRY_DATA_DIR", str(tmp_path / "file"))
    with pytest.raises(TargetError, match="cannot be written"):
        store_record(record())

"""The demo as `make demo` runs it, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the virtual device needs a POSIX shell")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    environment = {**os.environ, "HOME": str(folder / "home"), "XDG_CONFIG_HOME": str(folder / "home" / "config")}
    done = subprocess.run(
        [sys.executable, "-m", "edgeferry_deploy", "demo", "--output", str(folder / "out")],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done, json.loads((folder / "out" / "demo.json").read_text())


def test_it_tells_a_story_and_says_where_the_files_are(demo):
    _, done, figures = demo
    for words in (
        "converted digits.keras",
        "pushed: ",
        "golden frames proven there",
        "rolled back",
        "deployed in",
    ):
        assert words in done.stdout
    for path in figures["files"].values():
        assert path in done.stdout
        assert os.path.getsize(path) > 1000
    assert done.stderr == ""


def test_the_models_are_as_good_on_the_device(demo):
    _, _, figures = demo
    assert len(figures["runs"]) == 2
    for report, run in zip(figures["conversions"], figures["runs"], strict=True):
        evaluation = report["evaluation"]
        assert evaluation["keras_accuracy"] > 0.95
        assert evaluation["keras_accuracy"] - evaluation["variants"]["int8"]["accuracy"] <= 0.01
        assert run["accuracy"] > 0.95
        assert run["summary"]["frames"] == len(run["truth"]) == 600


def test_the_second_version_came_and_went(demo):
    _, _, figures = demo
    first, second = figures["pushes"]
    assert first["release"] != second["release"]
    assert second["previous"] == first["release"] == figures["rollback"]["release"]
    assert figures["status"]["current"]["id"] == first["release"]
    assert figures["status"]["previous"]["id"] == second["release"]
    assert all(run["summary"]["bundle"] == push["release"]
               for run, push in zip(figures["runs"], figures["pushes"], strict=True))  # fmt: skip


def test_only_what_is_missing_was_sent(demo):
    _, _, figures = demo
    first, second = figures["pushes"]
    assert first["blobs_sent"] == first["blobs_total"]
    assert 0 < second["blobs_sent"] < 6  # the frames, labels and the runtime were there
    assert figures["push_with_nothing_new"]["bytes_sent"] == 0


def test_the_device_runs_what_was_proven_on_the_workstation(demo):
    """Results of the loop on the device equal those of the same bundle run here."""
    folder, _, _ = demo
    out = folder / "out"
    done = subprocess.run(
        [sys.executable, "-m", "edgeferry_runtime", "run", "--bundle", str(out / "v1" / "digits.ferry"),
         "--source", str(out / "digits.avi"), "--sink", "jsonl:-"],
        capture_output=True, text=True,
    )  # fmt: skip
    here = [json.loads(line)["classes"] for line in done.stdout.splitlines()]
    there = [json.loads(line)["classes"] for line in (out / "v1" / "results.jsonl").read_text().splitlines()]
    assert here == there


def test_the_report_stands_alone(demo):
    folder, _, _ = demo
    page = (folder / "out" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8
    assert not re.search(r"(src|href)='(?!data:)", page)
    assert len(re.findall(r"version [12]: 5\d\d of 600 frames right", page)) == 2


def test_the_users_own_host_keys_stay_as_they_are(demo):
    folder, _, _ = demo
    assert not (folder / "home").exists() or not list((folder / "home").rglob("known_hosts"))

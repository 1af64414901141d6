"""`edgeferry-run run` with all that run.json switches on: versions, a candidate, several models, who looks on."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from edgeferry_runtime.service import read_state

HERE = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("tiny_versions", HERE / "tiny_versions.py")
tiny_versions = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_versions)
pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="ctl needs Unix sockets")
CAMERA = "synthetic:64x48@50"


@pytest.fixture
def versions(tmp_path, contents):
    """Two versions that answer differently."""
    first = tiny_versions.write_version(tmp_path / "first.ferry", contents)
    second = tiny_versions.write_version(tmp_path / "second.ferry", contents, labels="wxyz")
    return first, second


class Loop:
    """A loop in a process of its own."""

    def __init__(self, folder, bundle, config):
        self.state_path = folder / "run" / "state.json"
        self.results_path = folder / "results.jsonl"
        file = folder / "run.json"
        file.write_text(json.dumps({"schema_version": 1, "source": CAMERA, **config}))
        words = ["run", "--bundle", bundle, "--config", file, "--state", self.state_path, "--json"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgeferry_runtime", *map(str, words)], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        )  # fmt: skip

    def state(self):
        return read_state(str(self.state_path))

    def wait(self, condition, seconds=90):
        deadline = time.monotonic() + seconds
        while True:
            assert self.process.poll() is None, self.process.communicate()
            with contextlib.suppress(Exception):
                if condition(self.state()):
                    return self.state()
            assert time.monotonic() < deadline, self.state_path.read_text() if self.state_path.exists() else "none"
            time.sleep(0.1)

    def ctl(self, *words, code=0):
        argv = [sys.executable, "-m", "edgeferry_runtime", "ctl", *map(str, words), "--json"]
        argv += ["--socket", str(self.state_path.parent / "control.sock")]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, (done.stdout, done.stderr)
        return json.loads(done.stdout)

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, err
        return json.loads(out.splitlines()[-1])["summary"]

    def results(self):
        return [json.loads(line) for line in self.results_path.read_text().splitlines()]


@pytest.fixture
def start(tmp_path):
    loops = []

    def start(bundle, **config):
        config.setdefault("sinks", ["jsonl:{}".format(tmp_path / "results.jsonl")])
        loops.append(Loop(tmp_path, bundle, config))
        return loops[-1]

    yield start
    for loop in loops:
        loop.process.kill()
        loop.process.communicate()


def test_another_version_runs_from_one_frame_to_the_next(start, versions):
    first, second = versions
    loop = start(first)
    before = loop.wait(lambda state: state["frames"] > 20)
    loop.wait(lambda state: (loop.state_path.parent / "control.sock").exists())
    answer = loop.ctl("reload", second)
    assert answer["swap"]["stage"] == "swapped"
    after = loop.wait(
        lambda state: state["bundle"] != before["bundle"] and state["frames"] > before["frames"] + 30
    )
    assert after["version"]["bundle"] == after["bundle"]
    assert "already runs" in loop.ctl("reload", second, code=2)["error"]
    summary = loop.end()
    results = loop.results()
    bundles = [result["bundle"] for result in results]
    changes = [i for i in range(1, len(bundles)) if bundles[i] != bundles[i - 1]]
    assert len(changes) == 1  # it changed once, and never back
    numbers = [result["frame"] for result in results]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == summary["frames"]
    # No answer of one version is called the other's: their labels have no letter in common.
    letters = {"first": set("abcd"), "second": set("wxyz")}
    for i, result in enumerate(results):
        said = {entry["label"] for entry in result["classes"]}
        assert said <= letters["first" if i < changes[0] else "second"]


def test_a_link_that_leads_elsewhere_is_noticed(start, versions, tmp_path):
    first, second = versions
    (tmp_path / "current.ferry").symlink_to(first)
    loop = start(tmp_path / "current.ferry")
    before = loop.wait(lambda state: state["frames"] > 20)
    (tmp_path / "next").symlink_to(second)
    os.replace(tmp_path / "next", tmp_path / "current.ferry")
    loop.wait(lambda state: state["bundle"] != before["bundle"])
    loop.end()


def test_a_version_that_fails_its_goldens_never_runs(start, versions, tmp_path, contents):
    broken = tiny_versions.write_version(tmp_path / "broken.ferry", contents, mean=3.0, broken=True)
    loop = start(versions[0])
    before = loop.wait(lambda state: state["frames"] > 20 and (loop.state_path.parent / "control.sock").exists())
    assert "refused" in loop.ctl("reload", broken, code=1)["error"]
    after = loop.wait(lambda state: state["frames"] > before["frames"] + 20)
    assert after["bundle"] == before["bundle"]
    loop.end()


def test_a_candidate_that_agrees_is_promoted_by_its_rule(start, versions, tmp_path, contents):
    equal = tiny_versions.write_version(tmp_path / "equal.ferry", contents, mean=1e-9)
    rule = "agreement >= 0.8 over 40 frames"
    loop = start(versions[0], candidate={"bundle": str(equal), "share": 1.0, "promote": rule})
    before = loop.wait(lambda state: state["frames"] > 5)
    after = loop.wait(lambda state: state["candidate"]["stage"] == "promoted")
    assert after["bundle"] != before["bundle"]
    compared = loop.ctl("compare")
    assert compared["comparison"]["agreement"][0] == 1.0
    loop.end()


def test_who_looks_on_has_a_part_of_the_state(start, versions, tmp_path):
    folder = tmp_path / "flights"
    loop = start(
        versions[0],
        recorder={"folder": str(folder), "after_s": 0.2},
        drift={"window": 20},
        governor={"ladder": [{}, {"fps": 5.0}], "max_missed": 1.0},
    )
    state = loop.wait(lambda state: state["frames"] > 50)
    assert (state["governor"]["rung"], state["drift"]["verdict"], state["ready"]) == (0, "no baseline", True)
    loop.wait(lambda state: (loop.state_path.parent / "control.sock").exists())
    loop.ctl("record")
    loop.wait(lambda state: list(folder.glob("*/results.jsonl")))
    loop.end()
    (recording,) = folder.glob("*/results.jsonl")
    kept = [json.loads(line) for line in recording.read_text().splitlines()]
    # Played again, the answers are the same ones, bit by bit.
    words = ["run", "--bundle", versions[0], "--source", f"replay:{recording.parent}", "--sink", "jsonl:-"]
    argv = [sys.executable, "-m", "edgeferry_runtime", *map(str, words), "--state", str(tmp_path / "again.json")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
    again = {line["frame"]: line["classes"] for line in map(json.loads, done.stdout.splitlines())}
    assert again == {line["frame"]: line["classes"] for line in kept}
    assert len(again) > 1


def test_several_models_on_one_camera(start, versions, tmp_path):
    first, second = map(str, versions)
    loop = start(
        first,
        models={
            "a": {"process": "thread"},
            "b": {"bundle": second, "process": "worker", "every": 2},
            "c": {"bundle": second, "process": "thread", "load": "lazy"},
        },
        ensembles={"both": {"of": ["a", "c"], "how": "vote", "sinks": [f"csv:{tmp_path / 'both.csv'}"]}},
    )
    with pytest.raises(AssertionError, match="do not have the same classes"):
        loop.wait(lambda state: False)
    loop = start(
        first,
        models={
            "a": {"process": "thread"},
            "b": {"bundle": second, "process": "worker", "every": 2},
            "c": {"process": "thread", "load": "lazy"},
        },
        ensembles={"both": {"of": ["a", "c"], "sinks": [f"csv:{tmp_path / 'both.csv'}"]}},
        drift={},
    )
    state = loop.wait(lambda state: state["ready"] and all(s["frames"] > 40 for s in state["lanes"].values()))
    assert state["memory"]["workers"] == ["b"]
    assert state["frames"] > 120
    assert state["a.drift"]["verdict"] == "no baseline"
    loop.wait(lambda state: (loop.state_path.parent / "control.sock").exists())
    assert loop.ctl("reload", second, "--model", "a")["swap"]["stage"] == "swapped"
    assert "Add --model" in loop.ctl("reload", code=2)["remedy"]
    summary = loop.end()
    results = loop.results()
    by_model = {name: [r for r in results if r.get("model") == name] for name in ("a", "b", "c", "both")}
    assert all(by_model[name] for name in ("a", "b", "c"))
    blocks = [r["frame"] // 2 for r in by_model["b"]]  # of each two frames the first that is seen
    assert len(set(blocks)) == len(blocks)
    joined = {r["frame"] for r in by_model["a"]} & {r["frame"] for r in by_model["c"]}
    assert len(joined) > 20
    assert (tmp_path / "both.csv").read_text().count("\n") > 20
    assert set(summary["lanes"]) == {"a", "b", "c"}


def test_a_worker_that_dies_leaves_the_others_running(start, versions):
    loop = start(versions[0], models={"a": {"process": "thread"}, "b": {"process": "worker"}})
    before = loop.wait(lambda state: state["ready"] and state["lanes"]["b"]["frames"] > 20)
    children = Path(f"/proc/{loop.process.pid}/task/{loop.process.pid}/children")
    if not children.exists():
        pytest.skip("this system does not tell a process's children")
    (worker,) = map(int, children.read_text().split())
    os.kill(worker, signal.SIGKILL)
    after = loop.wait(lambda state: state["lanes"]["b"]["losses"]["away"] > 0
                      and state["lanes"]["b"]["frames"] > before["lanes"]["b"]["frames"] + 30)  # fmt: skip
    assert after["lanes"]["a"]["losses"]["away"] == 0
    assert "SIGKILL" in after["trouble"]
    loop.end()


def test_the_page_is_ready_after_the_goldens(start, versions):
    pytest.importorskip("uvicorn", reason="the page needs uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    loop = start(versions[0], view={"listen": f"127.0.0.1:{port}"})
    loop.wait(lambda state: state["ready"])
    for path, words in (("/healthz", b""), ("/readyz", b""), ("/metrics", b"edgeferry_"), ("/", b"<html")):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            assert answer.status == 200
            assert words in answer.read()
    loop.end()

"""How many threads: measured in the loop, remembered per model and board."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest
from edgeferry_runtime import Model, tuning
from edgeferry_runtime.cli import main
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.tuning import Again, Choice, Repeated, measure, recall, remember

FRAME = Frame(np.zeros((20, 30, 3), np.uint8), "bgr", 7, 0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgeferry" / "threads.json"


def slower(bundle, seconds):
    """Opens the model; so many seconds an invoke, by thread count."""

    def open_model(threads):
        model = Model.open(bundle, threads=threads)
        invoke = model.interpreter.invoke
        model.interpreter.invoke = lambda: (time.sleep(seconds[threads]), invoke())
        return model

    return open_model


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 0.02, 2: 0.005, 3: 0.02}, 2),
        ({1: 0.005, 2: 0.02, 3: 0.02}, 1),
        ({1: 0.02, 2: 0.02, 3: 0.02}, 1),  # as good as the others, with fewer threads
    ],
)
def test_the_fastest_count_is_taken_and_of_equals_the_smallest(bundle, monkeypatch, seconds, best):
    monkeypatch.setattr(tuning, "available_cores", lambda: 3)
    monkeypatch.setattr(tuning, "_NEARLY", 0.8)  # the machine that runs the tests has other things to do
    choice = measure(slower(bundle, seconds), lambda: Repeated(FRAME), budget_s=1.5)
    assert choice.threads == best
    assert sorted(choice.rates) == ["1", "2", "3"]


def test_a_slow_model_is_measured_all_the_same_and_not_for_long(bundle, monkeypatch):
    monkeypatch.setattr(tuning, "available_cores", lambda: 2)
    began = time.monotonic()
    choice = measure(slower(bundle, {1: 0.6, 2: 0.3}), lambda: Repeated(FRAME), budget_s=0.5)
    assert choice.threads == 2
    assert time.monotonic() - began < 15


def test_a_choice_is_kept_for_this_model_backend_and_board(cache, monkeypatch):
    choice = Choice(1, {"1": 80.5, "2": 62.0})
    assert recall("a" * 64, "x") is None
    assert remember("a" * 64, "x", choice)
    assert remember("b" * 64, "x", Choice(1, {"1": 3.0}))
    assert recall("a" * 64, "x") == choice
    assert recall("a" * 64, "y") is None
    monkeypatch.setattr(tuning, "cpu_model", lambda: "another")
    assert recall("a" * 64, "x") is None
    assert os.listdir(cache.parent) == ["threads.json"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}', "null", "\x00"])
def test_a_broken_cache_is_measured_again_and_written_anew(cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert recall("a" * 64, "x") is None
    assert remember("a" * 64, "x", Choice(1, {"1": 1.0}))
    assert recall("a" * 64, "x") == Choice(1, {"1": 1.0})


@pytest.mark.parametrize("threads", [0, -1, 10_000, "two", None, 1.5])
def test_a_kept_choice_that_makes_no_sense_is_not_used(cache, threads):
    remember("a" * 64, "x", Choice(1, {"1": 1.0}))
    kept = json.loads(cache.read_text())
    kept[next(iter(kept))]["threads"] = threads
    cache.write_text(json.dumps(kept))
    assert recall("a" * 64, "x") is None


def test_where_nothing_can_be_written_it_is_only_measured_again(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not remember("a" * 64, "x", Choice(1, {"1": 1.0}))


def test_the_frame_that_was_measured_with_is_not_lost():
    rest = Repeated(FRAME._replace(number=8))
    again = Again(FRAME, rest)
    before = time.monotonic_ns()
    first, second = again.read(), again.read()
    assert (first.number, second.number) == (7, 8)
    assert first.captured_ns >= before


def test_auto_measures_once_and_loses_no_frame(bundle, cache, tmp_path, caplog):
    results = tmp_path / "results.jsonl"
    command = ["run", "--bundle", str(bundle), "--source", "synthetic:64x48", "--frames", "5", "--threads", "auto"]
    caplog.set_level("INFO")
    assert main([*command, "--sink", f"jsonl:{results}"]) == 0
    assert "measuring how many threads" in caplog.text
    assert [json.loads(line)["frame"] for line in results.read_text().splitlines()] == [0, 1, 2, 3, 4]
    caplog.clear()
    assert main(command) == 0
    assert "measuring" not in caplog.text
    assert "measured here: 1: " in caplog.text

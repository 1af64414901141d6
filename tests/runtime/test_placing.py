"""Threads or workers: what the rates say, that they are of all models at once, and that it is measured once."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from edgeferry_runtime import Model, placing
from edgeferry_runtime.errors import BackendError
from edgeferry_runtime.opening import Choices
from edgeferry_runtime.placing import (
    THREADS,
    WORKERS,
    Placing,
    auto,
    choose,
    measure,
    recall,
    remember,
    threads_each,
)
from edgeferry_runtime.sources.base import Frame
from hypothesis import given
from hypothesis import strategies as st

FRAME = Frame(np.zeros((20, 30, 3), np.uint8), "bgr", 0, 0)
MODELS = [("a" * 64, "x"), ("b" * 64, "y")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgeferry" / "threads.json"


@given(st.integers(1, 64), st.integers(1, 16))
def test_all_models_together_have_no_more_threads_than_there_are_cores(cores, models):
    each = threads_each(cores, models)
    assert len(each) == models
    assert sum(each) == max(cores, models)
    assert max(each) - min(each) <= 1
    assert list(each) == sorted(each, reverse=True)


def test_workers_must_be_worth_their_memory():
    assert choose({THREADS: 100.0, WORKERS: 104.0}) == THREADS
    assert choose({THREADS: 100.0, WORKERS: 120.0}) == WORKERS
    assert choose({THREADS: 100.0, WORKERS: 50.0}) == THREADS
    assert str(Placing(THREADS, {THREADS: 41.2, WORKERS: 30.0})) == (
        "threads (measured here: threads: 41/s, workers: 30/s)"
    )


class Slowed:
    """Opens models whose invoke takes so much longer, and notes how many run at once."""

    def __init__(self, bundle):
        self.bundle, self.inside, self.most = bundle, 0, 0
        self.lock = threading.Lock()

    def __call__(self, seconds):
        def open_model():
            model = Model.open(self.bundle, threads=1)
            invoke = model.interpreter.invoke

            def slow():
                with self.lock:
                    self.inside += 1
                    self.most = max(self.most, self.inside)
                time.sleep(seconds)
                with self.lock:
                    self.inside -= 1
                invoke()

            model.interpreter.invoke = slow
            return model

        return open_model


@pytest.mark.parametrize(("slow", "fast"), [(THREADS, WORKERS), (WORKERS, THREADS)])
def test_what_is_faster_here_is_taken(bundle, slow, fast):
    opener = Slowed(bundle)
    found = measure({slow: [opener(0.03), opener(0.05)], fast: [opener(0.005), opener(0.005)]}, FRAME, 0.6)
    assert found.place == fast
    assert found.rates[fast] > found.rates[slow] > 0
    assert opener.most == 2  # both run at once


def test_a_model_that_cannot_run_is_an_error_and_no_thread_waits_for_it(bundle):
    opener = Slowed(bundle)

    def broken():
        model = Model.open(bundle)

        def fail():
            raise BackendError("no kernel")

        model.interpreter.invoke = fail
        return model

    with pytest.raises(BackendError, match="no kernel"):
        measure({THREADS: [opener(0.001), broken], WORKERS: []}, FRAME, 0.2)


def test_it_is_remembered_for_these_models_on_this_board(cache, monkeypatch):
    found = Placing(WORKERS, {THREADS: 40.0, WORKERS: 60.0})
    assert recall(MODELS) is None
    assert remember(MODELS, found)
    assert recall(MODELS) == found
    assert recall(MODELS[::-1]) == found
    assert recall(MODELS[:1]) is None
    assert recall([MODELS[0], MODELS[0]]) is None
    monkeypatch.setattr(placing.tuning, "cpu_model", lambda: "another")
    assert recall(MODELS) is None
    monkeypatch.undo()


def test_auto_measures_real_workers_once(bundle, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(placing.tuning, "BUDGET_S", 0.4)
    choices = [Choices(str(bundle)), Choices(str(bundle))]
    found = auto(choices, MODELS, lambda: FRAME)
    assert min(found.rates.values()) > 0
    assert "measuring" in caplog.text
    caplog.clear()
    assert auto(choices, MODELS, lambda: pytest.fail("it is known")) == found
    assert "measuring" not in caplog.text


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_broken_cache_is_measured_again(cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert recall(MODELS) is None

"""Where the models of several lanes come from: places, the budget, what is lent and given back."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from edgeferry_runtime import lane_models
from edgeferry_runtime.errors import BackendError, ModelAwayError, UsageError
from edgeferry_runtime.lane_models import LaneModels
from edgeferry_runtime.lanes_config import LaneConfig
from edgeferry_runtime.model_config import ModelConfig
from edgeferry_runtime.remote import RemoteInterpreter
from edgeferry_runtime.sources import open_source


@pytest.fixture
def make(bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = []

    def make(lanes, memory_mb=None, live=True):
        made.append(LaneModels(lanes, str(bundle), False, memory_mb, live, lambda choices, path: {"ok": True}))
        return made[-1]

    yield make
    for models in made:
        models.close()


@pytest.fixture
def frame():
    with open_source("synthetic:64x48") as source:
        return source.read()


def closed(*opened):
    for model, roster in opened:
        roster.close()
        model.close()


def test_threads_are_shared_out_unless_somebody_said(make, monkeypatch):
    monkeypatch.setattr(lane_models, "available_cores", lambda: 4)
    said = LaneConfig(process="thread", model=ModelConfig(threads=3))
    models = make({"a": LaneConfig(process="thread"), "b": LaneConfig(process="thread"), "c": said})
    opened = [models.open(name, LaneConfig()) for name in ("a", "b", "c")]
    assert [model.interpreter.threads for model, _ in opened] == [2, 1, 3]
    closed(*opened)


def test_workers_are_processes_and_come_back(make, frame):
    models = make({"a": LaneConfig(process="worker")})
    model, roster = models.open("a", LaneConfig())
    assert isinstance(model.interpreter, RemoteInterpreter)
    assert models.state()["workers"] == ["a"]
    expected = model(frame.pixels, frame.color)
    model.interpreter._worker.process.kill()
    with pytest.raises(BackendError) as died:
        while True:
            model.invoke()
    for _ in range(200):
        try:
            again = roster.replace(model, died.value)
            break
        except ModelAwayError:
            time.sleep(0.05)
    assert again(frame.pixels, frame.color) == expected
    closed((again, roster))
    model.close()


def test_auto_is_measured_once_for_all_that_are_free(make, monkeypatch):
    asked = []

    def auto(choices, keys, a_frame):
        asked.append((len(choices), a_frame().pixels.shape))
        return SimpleNamespace(place=lane_models.WORKERS)

    monkeypatch.setattr(lane_models, "auto", auto)
    models = make({"a": LaneConfig(), "b": LaneConfig(), "c": LaneConfig(process="thread")})
    assert asked == [(2, (480, 640, 3))]
    assert models.state()["workers"] == ["a", "b"]
    make({"a": LaneConfig(), "c": LaneConfig(process="thread")})
    assert len(asked) == 1  # one alone has nobody in its way


def test_a_budget_too_small_for_any_model_is_refused_before_the_first_frame(make):
    with pytest.raises(UsageError, match="a"):
        make({"a": LaneConfig(process="worker"), "b": LaneConfig(process="worker")}, memory_mb=1)


def test_what_is_lent_is_given_back_when_idle_and_comes_again(make, monkeypatch, frame):
    models = make({"a": LaneConfig(process="thread", load="lazy"), "b": LaneConfig(process="thread")})
    model, lent = models.open("a", LaneConfig())
    expected = model(frame.pixels, frame.color)
    assert models.state()["models"]["a"]["in_use"]
    models.tick()
    assert models.state()["models"]["a"]["in_use"]  # it was used just now
    monkeypatch.setattr(lane_models, "_IDLE_S", -1.0)
    models.tick()
    assert not models.state()["models"]["a"]["in_use"]
    assert models._registry.evict("a")
    again = lent.choose(model, frame)
    assert again is not model
    assert again(frame.pixels, frame.color) == expected
    assert models.state()["reloads"] == 1
    closed((again, lent))


def test_reload_asks_which(make):
    models = make({"door": LaneConfig(process="thread", load="lazy"), "yard": LaneConfig(process="thread")})
    reload = models.commands()["reload"]
    with pytest.raises(UsageError, match="which model"):
        reload({})
    with pytest.raises(UsageError, match="did you mean 'yard'"):
        reload({"model": "yrad"})
    with pytest.raises(UsageError, match="lent"):
        reload({"model": "door"})
    opened = models.open("yard", LaneConfig())
    with pytest.raises(UsageError, match="already runs"):
        reload({"model": "yard"})
    closed(opened)

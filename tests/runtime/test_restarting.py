"""A model that failed comes back: how soon, what its frames come to meanwhile, and what is said about it."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from edgeferry_runtime import Model, Pipeline
from edgeferry_runtime.errors import BackendError, ModelAwayError
from edgeferry_runtime.opening import Choices
from edgeferry_runtime.remote import open_remote_model
from edgeferry_runtime.restarting import RestartingRoster, back_off_s
from edgeferry_runtime.sources.base import Frame, FrameSource
from hypothesis import given
from hypothesis import strategies as st

FRAME = Frame(np.zeros((20, 30, 3), np.uint8), "bgr", 0, 0)
DIED = BackendError("it died", "Start it again.")


class Opener:
    """Opens models, after as many failures as it is told, when it may."""

    def __init__(self, bundle, failures=(), broken=()):
        self.bundle, self.failures, self.broken = bundle, list(failures), list(broken)
        self.opened = []
        self.may = threading.Event()
        self.may.set()

    def __call__(self):
        assert self.may.wait(30)
        if self.failures:
            raise self.failures.pop(0)
        model = Model.open(self.bundle, threads=1)
        if self.broken:
            error = self.broken.pop(0)

            def invoke():
                raise error

            model.interpreter.invoke = invoke
        self.opened.append(model)
        return model


class Clock:
    """Time that stands, and the waits that were asked for."""

    def __init__(self):
        self.now, self.waits = 0.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds
        return False


def back(roster, within_s=30.0):
    deadline = time.monotonic() + within_s
    while not roster.state()["up"]:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@given(st.integers(0, 10_000))
def test_the_wait_grows_and_has_an_end(failures):
    assert 0 <= back_off_s(failures) <= back_off_s(failures + 1) <= 5
    assert [back_off_s(n) for n in range(5)] == [0, 0.1, 0.2, 0.4, 0.8]
    assert back_off_s(7) == 5


def test_it_is_opened_until_it_can_be_and_run_once_before_it_counts(bundle):
    clock = Clock()
    opener = Opener(bundle, [OSError("no memory"), BackendError("no delegate")], [BackendError("bad kernel")])
    roster = RestartingRoster(opener, clock=clock, sleep=clock.sleep)
    first = Model.open(bundle)
    assert roster.choose(first, FRAME) is first
    with pytest.raises(ModelAwayError, match="is being opened anew"):
        opener.may.clear()
        roster.replace(first, DIED)
    assert not roster.state()["up"]
    assert roster.choose(first, FRAME) is first  # which fails again at once
    with pytest.raises(ModelAwayError):
        roster.replace(first, BackendError("it is gone"))
    opener.may.set()
    back(roster)
    assert clock.waits == [0, 0.1, 0.2, 0.4]
    assert roster.choose(first, FRAME) is opener.opened[-1]
    # A frame that was prepared for the old one: no new failure.
    assert roster.replace(first, BackendError("it is gone")) is opener.opened[-1]
    state = roster.state()
    assert (state["restarts"], state["last_error"], state["since_s"]) == (1, "bad kernel", 0)
    roster.close()
    for model in (first, *opener.opened):
        model.close()


def test_what_comes_back_only_to_die_waits_longer_each_time_and_starts_afresh_once_it_ran_for_a_while(bundle):
    clock = Clock()
    opener = Opener(bundle)
    roster = RestartingRoster(opener, clock=clock, sleep=clock.sleep, wait_s=60.0)
    model = Model.open(bundle)
    models = [model]
    for _ in range(4):
        model = roster.replace(model, DIED)
        models.append(model)
    assert clock.waits == [0, 0.1, 0.2, 0.4]
    clock.now += 31
    models.append(roster.replace(model, DIED))
    assert clock.waits[4:] == [0]
    assert roster.state()["restarts"] == 5
    roster.close()
    for model in models:
        model.close()


@pytest.mark.parametrize("dies", ["when it is opened", "when it runs"])
def test_what_never_runs_is_given_up_where_that_was_wished(bundle, dies):
    clock = Clock()
    opener = Opener(bundle, [BackendError("no delegate")] * 9 if dies == "when it is opened" else ())
    roster = RestartingRoster(opener, wait_s=60.0, tries=3, clock=clock, sleep=clock.sleep)
    model = Model.open(bundle)
    models = [model]
    with pytest.raises(BackendError, match="failed 3 times in a row") as error:
        for _ in range(9):
            models.append(roster.replace(models[-1], DIED))
    assert not isinstance(error.value, ModelAwayError)
    assert clock.waits == [0, 0.1, 0.2, 0.4]
    assert not roster.state()["up"]
    with pytest.raises(BackendError, match="in a row"):  # of a frame that was under way
        roster.replace(models[-1], DIED)
    roster.close()
    for model in models:
        model.close()


def test_closing_ends_the_wait_of_a_frame_and_opens_nothing_more(bundle):
    opener = Opener(bundle)
    opener.may.clear()
    roster = RestartingRoster(opener, wait_s=300.0)
    with Model.open(bundle) as model:
        timer = threading.Timer(0.1, roster.close)
        timer.start()
        with pytest.raises(ModelAwayError):
            roster.replace(model, DIED)
        timer.join()
    assert not roster.state()["up"]
    opener.may.set()
    for thread in threading.enumerate():
        if thread.name == "edgeferry-restart":
            thread.join(30)
    assert roster.choose(model, FRAME) is model  # what was opened too late was closed again


class Numbered(FrameSource):
    """So many frames, at a rate or as fast as they are taken."""

    encoded = True

    def __init__(self, count, live):
        self.left, self.count, self.live = count, count, live

    def _read(self, timeout_s):
        if not self.left:
            return None
        if self.live:
            time.sleep(0.005)
        self.left -= 1
        return FRAME._replace(number=self.count - self.left - 1, captured_ns=time.monotonic_ns())


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("live", [False, True])
def test_a_worker_that_is_killed_costs_the_loop_some_frames_and_no_more(bundle, live, pipelined):
    choices = Choices(str(bundle), threads=1)
    roster = RestartingRoster(lambda: open_remote_model(choices), wait_s=0.0 if live else 60.0)
    first = open_remote_model(choices)
    pipeline = Pipeline(Numbered(100_000 if live else 60, live), first, pipelined=pipelined, roster=roster)
    numbers = []
    for _, result in pipeline:
        numbers.append(result.frame)
        if len(numbers) == 20:
            os.kill(first.interpreter.pid, signal.SIGKILL)
        if live and pipeline.model is not first and len(numbers) >= 40:
            pipeline.stop()
    losses = pipeline.summary().losses
    assert numbers == sorted(set(numbers))
    assert pipeline.model is not first
    assert roster.state()["restarts"] == 1
    assert "SIGKILL" in roster.state()["last_error"]
    if live:
        assert losses["away"] > 0
    else:
        assert losses["away"] == 0
        assert numbers == list(range(60))
    roster.close()
    pipeline.model.close()
    first.close()

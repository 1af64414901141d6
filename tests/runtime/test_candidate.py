"""Candidates in shadow and in ab: equal, better, worse and broken ones; the loop goes on whatever they do."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import threading
import time
from pathlib import Path

import pytest
from edgeferry_runtime import Model, Pipeline
from edgeferry_runtime.candidate import Candidate
from edgeferry_runtime.candidate_config import CandidateConfig
from edgeferry_runtime.errors import BackendError, EdgeferryError, UsageError
from edgeferry_runtime.turns import Turns, rest_s
from edgeferry_runtime.versions import Versions
from hypothesis import given
from hypothesis import strategies as st

HERE = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("tiny_versions", HERE / "tiny_versions.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

SOUND = {"ok": True}
WAIT_S = 60


@pytest.fixture(scope="module")
def bundles(make_contents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("versions")
    contents = make_contents("tiny", 0)
    return {
        "current": tiny.write_version(folder / "current.ferry", contents),
        "equal": tiny.write_version(folder / "equal.ferry", make_contents("tiny", 1)),
        "other": tiny.write_version(folder / "other.ferry", contents, "bgr", mean=100.0),
    }


@pytest.fixture
def paths(bundles, tmp_path):
    """What runs, one that answers the same, and one that answers otherwise."""
    return {name: Path(shutil.copy(path, tmp_path)) for name, path in bundles.items()}


def opened(path):
    return Model.open(path, threads=1)


class Trial:
    """A candidate beside a version that runs, driven by hand."""

    def __init__(
        self, paths, name, open_candidate=opened, check=lambda path: SOUND, clock=time.monotonic, **config
    ):
        current = str(paths["current"])
        config.setdefault("share", 1.0)
        self.versions = Versions(current, opened(current), lambda path: (opened(path), None), lambda path: SOUND)
        self.disagreements = 0
        self.candidate = Candidate(
            CandidateConfig(str(paths[name]), **config), open_candidate, check, self.versions.reload,
            self.versions, on_disagreement=self._disagreed, clock=clock,
        )  # fmt: skip
        self.name = self.versions.running.identity
        self.drive = tiny.Drive(self, self.versions.running, tiny.pictures(40))

    # A roster that is both of them, as the runner asks and tells both.

    def choose(self, running, frame):
        return self.candidate.choose(running, frame)

    def replace(self, failed, error):
        return self.candidate.replace(failed, error)

    def saw(self, frame, result, model):
        self.versions.saw(frame, result, model)
        self.candidate.saw(frame, result, model)

    def _disagreed(self, frame, result):
        self.disagreements += 1

    def begin(self):
        self.candidate.start()
        tiny.wait_for(lambda: self.candidate.stage not in ("checking", "loading"))
        return self

    def compared(self, count):
        """Drive until so many frames were compared."""
        results = []
        while self.candidate._comparison.frames < count and self.candidate.stage == "running":
            before = self.candidate._comparison.frames
            results += self.drive.step()
            deadline = time.monotonic() + WAIT_S
            while self.candidate._comparison.frames == before and self.candidate.stage == "running":
                assert time.monotonic() < deadline
                time.sleep(0.0005)
        return results

    def close(self):
        self.candidate.close()
        self.versions.close()


@pytest.fixture
def trial(paths):
    made = []

    def make(*arguments, **options):
        made.append(Trial(paths, *arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_an_equal_candidate_is_promoted_by_rule(trial, caplog):
    both = trial("equal", promote="agreement >= 0.9 over 50 frames").begin()
    results = both.compared(49)
    both.candidate.tick()
    assert both.candidate.stage == "running"
    assert both.candidate.state()["decision"]["what"] == "wait"
    results += both.compared(50)
    assert {r.bundle for r in results} == {both.name}  # a shadow publishes nothing
    both.candidate.tick()
    assert both.candidate.state()["stage"] == "promoting"
    with pytest.raises(UsageError, match="being promoted"):
        both.candidate.promote()
    tiny.wait_for(lambda: both.drive.step()[0].bundle != both.name)
    both.candidate.tick()
    state = both.candidate.state()
    assert state["stage"] == "promoted"
    assert state["why"].startswith("by rule: agreement >= 0.9 over 50 frames after 50 frames: agreement 1 (0.9")
    assert [event["what"] for event in state["events"]] == ["promoting", "promoted"]
    assert "promoted: by rule" in caplog.text
    assert both.versions.running.identity == state["bundle"]
    assert state["comparison"]["frames"] >= 50  # the grounds for it stay to be seen
    assert state["comparison"]["current"]["bundle"] == both.name
    assert (both.disagreements, len(both.candidate.kept)) == (0, 0)
    json.dumps(state, allow_nan=False)


def test_a_rule_is_looked_at_once_in_so_many_frames(trial):
    both = trial("equal", promote="p50 <= 1000x over 20 frames", keep=0).begin()
    both.compared(20)
    both.candidate.promote = lambda why: asked.append(why)
    asked = []
    both.candidate.tick()
    both.candidate.tick()
    both.compared(39)
    both.candidate.tick()
    assert len(asked) == 1
    both.compared(40)
    both.candidate.tick()
    assert len(asked) == 2


def test_a_faster_candidate_is_promoted_for_it(trial):
    both = trial("equal", promote="agreement > 0.9 and p50 <= 0.9x over 60 frames").begin()
    invoke = both.versions.running.interpreter.invoke
    both.versions.running.interpreter.invoke = lambda: (time.sleep(0.01), invoke())
    both.compared(60)
    both.candidate.tick()
    assert both.candidate.state()["stage"] == "promoting"


def test_a_worse_candidate_is_abandoned_by_rule_and_its_frames_are_kept(trial):
    both = trial("other", abandon="agreement < 0.9 over 30 frames", keep=5).begin()
    results = both.compared(30)
    both.candidate.tick()
    assert both.candidate.stage == "abandoned"
    assert both.disagreements > 5
    kept = both.candidate.kept.all()
    assert len(kept) == 5
    for one in kept:
        assert one.current == results[one.number].answer.to_json()
        assert one.current["classes"][0]["index"] != one.candidate["classes"][0]["index"]
    assert both.candidate.state()["comparison"]["disagreements"] == both.disagreements
    tiny.wait_for(lambda: not both.candidate._thread.is_alive())
    assert {r.bundle for r in both.drive.step(5)} == {both.name}


def broken(path, works=2):
    """Works while it is warmed up, then fails as a worker that died does."""
    model = opened(path)
    invoke, left = model.interpreter.invoke, [works]

    def fails():
        left[0] -= 1
        if left[0] < 0:
            raise BackendError("the worker was killed by SIGSEGV")
        invoke()

    model.interpreter.invoke = fails
    return model


def test_a_candidate_that_crashes_in_the_shadow_is_abandoned(trial):
    both = trial("equal", open_candidate=broken).begin()
    tiny.wait_for(lambda: both.drive.step()[0].bundle == both.name and both.candidate.stage == "abandoned")
    assert both.candidate.state()["failures"] == 3
    assert "SIGSEGV" in both.candidate.why


@pytest.mark.parametrize("what", ["goldens", "opening", "bug", "no bundle"])
def test_a_candidate_that_cannot_be_loaded_is_refused(trial, paths, what):
    def raises(error):
        def fails(path):
            raise error

        return fails

    options = {
        "goldens": {"check": lambda path: {"ok": False, "error": "runs this model wrongly"}},
        "opening": {"open_candidate": raises(BackendError("no such delegate"))},
        "bug": {"open_candidate": raises(ZeroDivisionError("oh"))},
        "no bundle": {"check": raises(AssertionError("not reached"))},
    }[what]
    if what == "no bundle":
        paths["equal"].unlink()
    both = trial("equal", **options).begin()
    why = {"goldens": "wrongly", "opening": "delegate", "bug": "ZeroDivision", "no bundle": "no such bundle"}[what]
    assert both.candidate.stage == "refused"
    assert why in both.candidate.why
    assert {r.bundle for r in both.drive.step(5)} == {both.name}
    with pytest.raises(UsageError, match="there is no candidate any more: it was refused"):
        both.candidate.promote()


def test_a_candidate_that_hangs_while_it_is_loaded_holds_nothing_up(trial):
    release = threading.Event()
    both = trial("equal", open_candidate=lambda path: (release.wait(WAIT_S), opened(path))[1])
    both.candidate.start()
    tiny.wait_for(lambda: both.candidate.stage == "loading")
    assert {r.bundle for r in both.drive.step(10)} == {both.name}
    with pytest.raises(UsageError, match="still loading"):
        both.candidate.abandon()
    release.set()
    both.close()
    assert both.candidate.stage == "closed"
    assert not both.candidate._thread.is_alive()


def test_the_shadow_rests_as_long_as_its_share_says(trial):
    now = [0.0]

    def slow(path):
        model = opened(path)
        invoke = model.interpreter.invoke
        model.interpreter.invoke = lambda: (now.__setitem__(0, now[0] + 10), invoke())
        return model

    both = trial("equal", open_candidate=slow, clock=lambda: now[0], share=0.2).begin()
    rested = []
    both.candidate._ending.wait = lambda s=None: (rested.append(s), time.sleep(0.001))
    began = now[0]
    both.compared(5)
    tiny.wait_for(lambda: len(rested) == 5)
    assert rested == [pytest.approx(40.0)] * 5
    assert both.candidate._busy_s == pytest.approx(now[0] - began)


@given(st.floats(1e-6, 1e3), st.floats(0.001, 1))
def test_work_and_rest_make_the_share(busy, share):
    assert busy / (busy + rest_s(busy, share)) <= share * (1 + 1e-9)


@given(st.floats(0.001, 0.999), st.integers(0, 500), st.integers(1, 500))
def test_frames_are_split_evenly(part, skip, count):
    turns = Turns(CandidateConfig("x", "ab", part=part))
    taken = [turns.next(0.0) for _ in range(skip + count)][skip:]
    assert abs(sum(taken) - count * part) <= 1 + count * 1e-4


def test_frames_are_split_by_time():
    turns = Turns(CandidateConfig("x", "ab", by="time", part=0.25, period_s=8.0))
    assert [turns.next(16.0 + i) for i in range(8)] == [True, True] + [False] * 6


def test_ab_splits_the_frames_and_names_who_answered(trial):
    both = trial("other", mode="ab", part=0.25, promote="p50 <= 1000x over 10 frames").begin()
    results = both.drive.step(40)
    other = both.candidate.state()["bundle"]
    assert [r.bundle == other for r in results] == [False, False, False, True] * 10
    report = both.candidate.report()
    assert (report["current"]["frames"], report["candidate"]["frames"]) == (30, 10)
    assert report["agreement"] is None
    assert report["confidence_shift"] is not None
    both.candidate.tick()
    assert both.candidate.state()["stage"] == "promoting"
    tiny.wait_for(lambda: {r.bundle for r in both.drive.step(8)} == {other})
    both.candidate.tick()
    assert both.candidate.stage == "promoted"
    both.drive.step(1)
    tiny.wait_for(lambda: not both.candidate._thread.is_alive())


def test_ab_runs_a_frame_again_that_the_candidate_failed_on(trial, caplog):
    both = trial("other", open_candidate=broken, mode="ab", part=0.5).begin()
    results = both.drive.step(12)
    assert {r.bundle for r in results} == {both.name}
    assert [r.frame for r in results] == list(range(12))
    assert both.candidate.stage == "abandoned"
    assert both.candidate.state()["failures"] == 3
    assert caplog.text.count("failed on a frame") == 1
    tiny.wait_for(lambda: not both.candidate._thread.is_alive())  # and closed, now that none of its frames is left


def test_an_answer_that_is_none_counts_as_a_failure_of_the_candidate(trial):
    both = trial("other", mode="ab", part=0.5, failures=2).begin()
    current, candidate = both.versions.running, both.candidate._opened
    both.drive.step(2)
    assert both.candidate.invalid(current, BackendError("NaN")) is None
    assert both.candidate.invalid(candidate, BackendError("NaN")) is current
    assert both.candidate.stage == "running"
    assert both.candidate.invalid(candidate, BackendError("NaN")) is current
    assert both.candidate.stage == "abandoned"


def test_a_failure_of_the_current_version_is_not_the_candidates(trial):
    both = trial("other", mode="ab", part=0.5).begin()
    both.drive.step(4)
    with pytest.raises(BackendError, match="mine"):
        both.candidate.replace(both.versions.running, BackendError("mine"))
    assert both.candidate.state()["failures"] == 0


@pytest.mark.parametrize("pipelined", [False, True])
def test_ab_under_load_loses_nothing_and_names_the_right_one(paths, pipelined):
    both = Trial(paths, "other", mode="ab", part=0.5).begin()
    seen = tiny.Seen()
    source = tiny.Paced(tiny.pictures(50), 0.002)
    pipeline = Pipeline(
        source, both.versions.running, pipelined=pipelined, roster=both.candidate,
        observers=[both.versions, both.candidate, seen],
    )  # fmt: skip
    thread = threading.Thread(target=pipeline.run)
    thread.start()
    try:
        tiny.wait_for(lambda: len(seen.pairs) > 60)
        both.candidate.abandon()
        done = len(seen.pairs)
        tiny.wait_for(lambda: len(seen.pairs) > done + 20)
        tiny.wait_for(lambda: not both.candidate._thread.is_alive())
    finally:
        source.stopped = True
        thread.join(WAIT_S)
        both.close()
    assert len(seen.pairs) == source.given
    for path in (paths["current"], paths["other"]):
        with opened(path) as model:
            own = [(frame, result) for frame, result in seen.pairs if result.bundle == model.identity]
            assert len(own) > 20
            assert [r.answer for _, r in own] == [model(f.pixels, f.color) for f, _ in own]
    assert {r.bundle for _, r in seen.pairs[-10:]} == {both.name}


@pytest.mark.parametrize("what", ["invoke", "decode"])
@pytest.mark.parametrize("pipelined", [False, True])
def test_ab_under_load_abandons_what_fails_and_loses_nothing(paths, pipelined, what):
    def open_candidate(path):
        model = opened(path) if what == "decode" else broken(path, works=5)
        if what == "decode":

            def nothing(placed=None):
                raise BackendError("output 'scores' is NaN")

            model.decode = nothing
        return model

    both = Trial(paths, "other", open_candidate, mode="ab", part=0.5).begin()
    seen = tiny.Seen()
    source = tiny.Paced(tiny.pictures(50), 0.002)
    pipeline = Pipeline(
        source, both.versions.running, pipelined=pipelined, roster=both.candidate,
        observers=[both.versions, both.candidate, seen],
    )  # fmt: skip
    thread = threading.Thread(target=pipeline.run)
    thread.start()
    try:
        tiny.wait_for(lambda: both.candidate.stage == "abandoned" and not both.candidate._thread.is_alive())
    finally:
        source.stopped = True
        thread.join(WAIT_S)
        both.close()
    assert both.candidate.state()["failures"] == 3
    assert len(seen.pairs) == source.given
    with opened(paths["current"]) as model:
        own = [(frame, result) for frame, result in seen.pairs if result.bundle == model.identity]
        assert len(own) >= len(seen.pairs) - 3
        assert [r.answer for _, r in own] == [model(f.pixels, f.color) for f, _ in own]


def test_a_promotion_that_fails_leaves_the_candidate_running(trial):
    both = trial("equal").begin()
    both.versions._check = lambda path: {"ok": False, "error": "goldens differ"}
    with pytest.raises(EdgeferryError, match="was not promoted: goldens differ"):
        both.candidate.commands()["promote"]({"wait_s": WAIT_S})
    both.candidate.tick()
    assert both.candidate.state()["stage"] == "running"
    assert [event["what"] for event in both.candidate.state()["events"]] == ["promoting", "not promoted"]
    assert both.versions.running.identity == both.name


def test_another_current_version_begins_the_comparison_anew(trial, paths):
    both = trial("equal").begin()
    both.compared(10)
    swap = both.versions.reload(str(paths["other"]))
    tiny.wait_for(lambda: both.drive.step() and swap.over)
    assert swap.stage == "swapped"
    both.compared(both.candidate._comparison.frames + 3)
    report = both.candidate.report()
    assert report["current"]["bundle"] == both.versions.running.identity
    assert report["frames"] < 13


def test_commands_by_hand(trial, caplog):
    caplog.set_level(logging.INFO)
    both = trial("equal").begin()
    both.compared(5)
    commands = both.candidate.commands()
    answer = commands["compare"]({})
    assert answer["comparison"]["frames"] == 5
    json.dumps(answer, allow_nan=False)
    assert commands["abandon"]({})["stage"] == "abandoned"
    assert "abandoned: by hand" in caplog.text
    for name in ("abandon", "promote"):
        with pytest.raises(UsageError, match="was abandoned"):
            commands[name]({})
    assert commands["compare"]({})["stage"] == "abandoned"

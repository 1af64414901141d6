"""Several models on one source: each has its own results, what breaks breaks alone, every frame is counted."""

from __future__ import annotations

import importlib.util
import json
import logging
import threading
import time
from pathlib import Path

import pytest
from edgeferry_runtime import Model, opencv
from edgeferry_runtime.errors import BackendError, BundleError, FrameError, SourceError, UsageError
from edgeferry_runtime.lane import LaneOptions
from edgeferry_runtime.lanes import Lanes
from edgeferry_runtime.lanes_config import EnsembleConfig, LaneConfig
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.roster import Roster
from edgeferry_runtime.sources import open_source

HERE = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("fake_lanes", HERE / "fake_lanes.py")
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)
Given, Kept, box, pictures, wait_until = fake.Given, fake.Kept, fake.box, fake.pictures, fake.wait_until


class Run:
    """Lanes on a source, with sinks that keep what they are given; ``before`` may spoil a model it is given."""

    def __init__(self, bundle, source, lanes, ensembles=None, before=lambda name, model: None, **options):
        self.bundle, self.source, self.before = bundle, source, before
        self.opened, self.models, self.sinks = [], [], {}
        configs = {name: LaneConfig(sinks=(name,), **keys) for name, keys in lanes.items()}
        joint = {name: EnsembleConfig(sinks=(name,), **keys) for name, keys in (ensembles or {}).items()}
        shared = options.pop("shared", ())
        self.wanted = "never asked"
        self.lanes = Lanes(
            configs, joint, self._open_source, LaneOptions(self._open_model, **options), self._open_sink, shared
        )

    def _open_source(self, want):
        self.wanted = want
        return self.source

    def _open_model(self, name, config):
        self.opened.append(name)
        if config.process == "worker":  # stands for a detector here
            model = fake.open_detector(config.bundle or self.bundle, lambda: (box(0.6), box(0.9, 5, 5, 12, 6)))
        else:
            model = Model.open(config.bundle or self.bundle, threads=1)
        self.models.append(model)
        roster = self.before(name, model)
        return model, roster

    def _open_sink(self, name):
        sink = self.sinks[name] = Kept("kept:" + name)
        return sink

    def run(self):
        with self.lanes:
            return self.lanes.run()

    def numbers(self, name):
        return self.sinks[name].numbers


def breaking(model, at, error=None, each=False):
    """Invokes raise from the nth on, or only the nth of them."""
    invoke, count = model.interpreter.invoke, []

    def wrapped():
        count.append(1)
        if len(count) == at or (each and len(count) > at):
            raise error or BackendError("the accelerator is gone")
        invoke()

    model.interpreter.invoke = wrapped


def hanging(model, at, released):
    """The nth invoke waits."""
    invoke, count = model.interpreter.invoke, []

    def wrapped():
        count.append(1)
        if len(count) == at:
            assert released.wait(60)
        invoke()

    model.interpreter.invoke = wrapped


def accounted(summary, name):
    said = summary.to_json()["lanes"][name]
    return said["frames"] + sum(said["losses"].values()) + said["unfinished"] + said["passed"]


def test_models_on_one_file_give_what_each_gives_alone(bundle, make_bundle):
    frames = pictures(30)
    other = str(make_bundle("other", 1))
    run = Run(bundle, Given(frames), {"one": {}, "two": {"bundle": other}, "some": {"every": 4}})
    summary = run.run()
    with Model.open(bundle, threads=1) as model:
        expected = [model(frame.pixels) for frame in frames]
    for name, step in (("one", 1), ("two", 1), ("some", 4)):
        assert run.numbers(name) == list(range(0, 30, step))
        assert [result.answer for result in run.sinks[name].results] == expected[::step]
        assert {result.model for result in run.sinks[name].results} == {name}
        assert accounted(summary, name) == 30
    assert {result.bundle.partition("-")[0] for result in run.sinks["two"].results} == {"other"}
    assert run.wanted == (12, 8)
    assert run.source.closed
    assert all(sink.closed for sink in run.sinks.values())
    said = summary.to_json()["lanes"]
    assert {name: part["state"] for name, part in said.items()} == dict.fromkeys(said, "ended")
    assert said["some"]["passed"] == 22
    json.dumps(summary.to_json())
    text = summary.to_text()
    assert "one: ended\n30 frames in" in text
    assert "some: ended\n8 frames in" in text


def test_a_cascade_and_results_that_say_which_box_they_are_of(bundle):
    run = Run(
        bundle, Given(pictures(10)),
        {"people": {"process": "worker"}, "faces": {"after": "people", "min_score": 0.7},
         "all": {"after": "people", "every": 2}},
    )  # fmt: skip
    summary = run.run()
    assert run.numbers("people") == list(range(10))
    assert run.numbers("faces") == list(range(10))
    assert [(result.frame, result.region.box) for result in run.sinks["all"].results] == [
        (number, index) for number in range(0, 10, 2) for index in (1, 0)
    ]
    region = run.sinks["faces"].results[0].to_json()["region"]
    assert region == {"box": 1, "label": "cat", "score": 0.9, "x": 5, "y": 5, "width": 12, "height": 6}
    with Model.open(bundle, threads=1) as model:
        expected = model(pictures(1)[0].pixels[5:11, 5:17])
    assert run.sinks["faces"].results[0].answer == expected
    assert (accounted(summary, "faces"), accounted(summary, "all")) == (10, 10)


def test_an_ensemble_of_lanes_and_one_of_crops(bundle):
    run = Run(
        bundle, Given(pictures(12)),
        {"a": {"every": 3}, "b": {"every": 3}, "people": {"process": "worker"},
         "c": {"after": "people"}, "d": {"after": "people"}},
        {"whole": {"of": ("a", "b")}, "parts": {"of": ("c", "d"), "how": "vote"}},
    )  # fmt: skip
    summary = run.run()
    assert run.numbers("whole") == run.numbers("a") == [0, 3, 6, 9]
    assert [(result.frame, result.region.box) for result in run.sinks["parts"].results] == [
        (number, index) for number in range(12) for index in (1, 0)
    ]
    for whole, alone in zip(run.sinks["whole"].results, run.sinks["a"].results, strict=True):
        scores = {entry.index: entry.score for entry in alone.answer.classes}
        assert {entry.index: entry.score for entry in whole.answer.classes} == pytest.approx(scores)
    assert summary.ensembles["whole"]["losses"] == {"unmatched": 0}
    assert summary.ensembles["parts"]["frames"] == 24
    assert "whole: 4 joint results by mean" in summary.to_text()


def test_shared_sinks_are_given_all_results_with_their_models_names(bundle):
    shared = Kept("all:")
    Run(bundle, Given(pictures(5)), {"a": {}, "b": {}}, {"ab": {"of": ("a", "b")}}, shared=[shared]).run()
    assert sorted((result.frame, result.model) for result in shared.results) == [
        (number, name) for number in range(5) for name in ("a", "ab", "b")
    ]
    assert not shared.closed


def test_a_failing_model_ends_alone(bundle, caplog):
    def before(name, model):
        if name == "bad":
            breaking(model, 4)

    run = Run(bundle, Given(pictures(30)), {"good": {}, "bad": {}, "far": {"every": 5}}, before=before)
    with run.lanes:
        summary = run.lanes.run()
        assert list(run.lanes.failures) == ["bad"]
    assert run.numbers("good") == list(range(30))
    assert run.numbers("far") == list(range(0, 30, 5))
    assert run.numbers("bad") == [0, 1, 2]
    said = summary.to_json()["lanes"]["bad"]
    assert (said["state"], said["error"], said["restarts"]) == ("failed", "the accelerator is gone", 0)
    assert said["unfinished"] >= 1
    assert "model bad failed: the accelerator is gone (the others go on)" in caplog.text
    assert "bad: failed, the accelerator is gone" in summary.to_text()


def test_a_failing_sink_of_a_file_ends_its_lane_alone(bundle):
    run = Run(bundle, Given(pictures(20)), {"good": {}, "bad": {}})
    open_sink = run.lanes._open_sink
    run.lanes._open_sink = lambda name: (
        open_sink(name) if name == "good" else Kept("full:", failing=lambda number: number == 2)
    )
    summary = run.run()
    assert run.numbers("good") == list(range(20))
    said = summary.to_json()["lanes"]["bad"]
    assert said["state"] == "failed"
    assert "full:" in said["error"]


def test_a_first_model_that_fails_lets_what_came_of_it_finish(bundle):
    def before(name, model):
        if name == "people":
            breaking(model, 6)

    run = Run(
        bundle, Given(pictures(20)), {"people": {"process": "worker"}, "faces": {"after": "people"}, "other": {}},
        before=before,
    )  # fmt: skip
    summary = run.run()
    assert run.numbers("other") == list(range(20))
    assert run.numbers("faces") == [number for number in range(5) for _ in range(2)]
    assert summary.described["faces"]["state"] == "ended"


def test_a_second_model_that_fails_does_not_hold_the_first(bundle):
    def before(name, model):
        if name == "faces":
            breaking(model, 3)

    run = Run(
        bundle, Given(pictures(20)),
        {"people": {"process": "worker"}, "faces": {"after": "people"}, "also": {"after": "people"}},
        before=before,
    )  # fmt: skip
    run.run()
    assert run.numbers("people") == list(range(20))
    assert run.numbers("faces") == [0, 0]
    assert len(run.numbers("also")) == 40


def test_members_of_an_ensemble_of_crops_that_all_fail_do_not_hold_the_first(bundle):
    def before(name, model):
        if name in ("c", "d"):
            breaking(model, 2)

    run = Run(
        bundle, Given(pictures(20)),
        {"people": {"process": "worker"}, "c": {"after": "people"}, "d": {"after": "people"}},
        {"cd": {"of": ("c", "d")}}, before=before,
    )  # fmt: skip
    summary = run.run()
    assert run.numbers("people") == list(range(20))
    assert run.numbers("cd") in ([0], [])
    assert summary.ensembles["cd"]["frames"] == len(run.numbers("cd"))


def test_an_ensemble_counts_what_a_failed_member_left(bundle):
    def before(name, model):
        if name == "b":
            breaking(model, 6)

    run = Run(bundle, Given(pictures(20)), {"a": {}, "b": {}}, {"ab": {"of": ("a", "b")}}, before=before)
    summary = run.run()
    assert run.numbers("a") == list(range(20))
    assert run.numbers("ab") == list(range(5))
    assert summary.ensembles["ab"]["losses"] == {"unmatched": 15}


def test_when_all_fail_the_first_error_is_raised(bundle):
    def before(name, model):
        breaking(model, 8 if name == "late" else 2, BackendError(name + " is broken"))

    run = Run(bundle, Given(pictures(30)), {"late": {}, "early": {}, "after": {"after": "people"},
                                            "people": {"process": "worker"}}, before=before)  # fmt: skip
    with pytest.raises(BackendError, match=r"(early|people) is broken"):
        run.run()
    assert run.source.closed
    assert all(sink.closed for sink in run.sinks.values())


def test_an_error_of_the_source_ends_all(bundle):
    run = Run(bundle, Given([*pictures(5), SourceError("unplugged")]), {"a": {}, "b": {}})
    with pytest.raises(SourceError, match="unplugged"):
        run.run()
    assert run.numbers("a") == run.numbers("b") == list(range(5))


def test_a_live_source_that_is_lost_for_good_is_not_tried_again(bundle):
    source = Given([*pictures(3), SourceError("gone")], live=True)
    source.release(4)
    run = Run(bundle, source, {"a": {}, "b": {}})
    with pytest.raises(SourceError, match="gone"):
        run.run()
    assert sorted(run.opened) == ["a", "b"]


@pytest.fixture
def no_pauses(monkeypatch):
    from edgeferry_runtime import lane

    pauses = []
    monkeypatch.setattr(lane, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(lane, "_LONGEST_PAUSE_S", 0.04)
    return pauses


def test_on_a_live_source_a_failed_model_is_opened_anew(bundle, no_pauses):
    def before(name, model):
        if name == "bad" and run.opened.count("bad") <= 2:
            breaking(model, 4)

    source = Given(pictures(400), live=True, period_s=0.005)
    run = Run(bundle, source, {"good": {}, "bad": {}}, {"both": {"of": ("good", "bad")}}, before=before)
    with run.lanes:
        thread = threading.Thread(target=run.lanes.run, daemon=True)
        thread.start()
        assert wait_until(lambda: run.lanes.lanes["bad"].restarts == 2 and run.lanes.lanes["bad"].results > 10)
        assert run.lanes.state()["lanes"]["bad"]["state"] == "running"
        assert run.lanes.state()["lanes"]["bad"]["error"] == "the accelerator is gone"
        assert run.lanes.failures == {}
        thread.join(60)
        assert not thread.is_alive()
        summary = run.lanes.summary()
    assert run.opened.count("bad") == 3
    assert run.opened.count("good") == 1
    assert [accounted(summary, name) for name in ("good", "bad")] == [400, 400]
    for name in ("good", "bad"):
        assert summary.lanes[name].frames == summary.described[name]["results"] == len(run.numbers(name))
    assert 2 <= summary.described["bad"]["unfinished"] <= 6  # what each failure befell, and was prepared behind it
    assert len(run.numbers("good")) > len(run.numbers("bad"))
    assert run.numbers("bad") == sorted(set(run.numbers("bad")))
    joint = summary.ensembles["both"]
    assert joint["frames"] == len(run.numbers("both"))
    # Whatever one of them answered was joined, or given up.
    assert joint["frames"] + joint["losses"]["unmatched"] == len({*run.numbers("good"), *run.numbers("bad")})


def test_while_a_member_is_away_the_other_goes_on(bundle, monkeypatch):
    from edgeferry_runtime import lane

    monkeypatch.setattr(lane, "_FIRST_PAUSE_S", 600.0)

    def before(name, model):
        if name == "bad":
            breaking(model, 4)

    source = Given(pictures(100000), live=True, period_s=0.002)
    run = Run(bundle, source, {"good": {}, "bad": {}}, {"both": {"of": ("good", "bad")}}, before=before)
    with run.lanes:
        thread = threading.Thread(target=run.lanes.run, daemon=True)
        thread.start()
        assert wait_until(lambda: run.lanes.lanes["bad"].state == "failed")
        results = run.lanes.lanes["good"].results
        assert wait_until(lambda: run.lanes.lanes["good"].results > results + 20)
        run.lanes.stop()  # it does not wait for the pause to be over
        thread.join(60)
        assert not thread.is_alive()


def test_pauses_double_up_to_half_a_minute(bundle):
    from edgeferry_runtime.lane import Lane

    lane = Lane("a", LaneConfig(), [], LaneOptions(lambda name, config: None, clock=lambda: 0.0))
    waits = []

    class Stopping:
        def is_set(self):
            return len(waits) == 7

        def wait(self, seconds):
            waits.append(seconds)

    def fail():
        raise BackendError("again")

    lane.source = Given([], live=True)
    lane.source.over, lane.source.taken = False, 0
    lane._stopping, lane._run_once = Stopping(), fail
    lane._run()
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    assert (lane.failures, lane.restarts, lane.hopeless) == (7, 7, True)


def test_a_run_that_fails_again_and_again_ends(bundle, no_pauses):
    source = Given(pictures(100000), live=True, period_s=0.002)
    run = Run(bundle, source, {"a": {}, "b": {}}, before=lambda name, model: breaking(model, 1, each=True))
    with pytest.raises(BackendError, match="the accelerator is gone"):
        run.run()
    assert run.opened.count("a") >= 5


def test_a_model_that_hangs_on_a_live_source_holds_nobody_up(bundle):
    released, now = threading.Event(), [0.0]

    def before(name, model):
        if name == "bad":
            hanging(model, 4, released)

    source = Given(pictures(100000), live=True, period_s=0.002)
    run = Run(
        bundle, source, {"good": {}, "bad": {}}, {"ab": {"of": ("good", "bad")}}, before,
        clock=lambda: now[0], hang_s=30.0,
    )  # fmt: skip
    with run.lanes:
        thread = threading.Thread(target=run.lanes.run, daemon=True)
        thread.start()
        good, bad = run.lanes.lanes["good"], run.lanes.lanes["bad"]
        try:
            assert wait_until(lambda: bad.results >= 2 and bad.unfinished and bad.state == "running")
            stuck = bad.results
            # The members go in step: without the watch, the good one would wait for ever.
            assert wait_until(lambda: now.__setitem__(0, now[0] + 1.0) or bad.state == "hangs")
            results = good.results
            assert wait_until(lambda: good.results > results + 5)
            assert bad.results <= stuck + 2
            assert "no result for" in run.lanes.state()["lanes"]["bad"]["error"]
        finally:
            released.set()
        assert wait_until(lambda: bad.state == "running" and bad.results > stuck + 5)
        run.lanes.stop()
        thread.join(60)
        assert not thread.is_alive()
    assert run.lanes.lanes["bad"].state == "stopped"


def test_a_model_that_hangs_on_a_file_is_given_up(bundle, caplog):
    released, now = threading.Event(), [0.0]

    def before(name, model):
        if name == "bad":
            hanging(model, 3, released)

    def clock():
        now[0] += 0.5
        return now[0]

    run = Run(bundle, Given(pictures(20)), {"good": {}, "bad": {}}, before=before, clock=clock, hang_s=30.0)
    done = []
    with run.lanes:
        thread = threading.Thread(target=lambda: done.append(run.lanes.run()), daemon=True)
        thread.start()
        try:
            assert wait_until(lambda: run.lanes.lanes["good"].ended)
            assert run.numbers("good") == list(range(20))
            assert run.lanes.lanes["bad"].state == "failed"
        finally:
            released.set()
        thread.join(60)
        assert not thread.is_alive()
    assert done[0].described["bad"]["state"] == "failed"
    assert "model bad hangs" in caplog.text


def test_who_waits_for_a_model_that_hangs_is_not_given_up_with_it(bundle):
    released, now = threading.Event(), [0.0]

    def before(name, model):
        if name == "faces":
            hanging(model, 3, released)

    run = Run(
        bundle, Given(pictures(20)), {"people": {"process": "worker"}, "faces": {"after": "people"}},
        before=before, clock=lambda: now[0], hang_s=30.0, pipelined=True,
    )  # fmt: skip
    with run.lanes:
        thread = threading.Thread(target=run.lanes.run, daemon=True)
        thread.start()
        people, faces = run.lanes.lanes["people"], run.lanes.lanes["faces"]
        try:
            assert wait_until(lambda: faces.results == 2)
            while faces.state != "failed":
                # Both stand still by now, and both hold frames: the second one, and who waits for it.
                known = people.results
                time.sleep(0.3)
                if people.results == known and people.unfinished and faces.unfinished:
                    now[0] += 31.0
            assert wait_until(lambda: people.ended)
        finally:
            released.set()
        thread.join(60)
        assert not thread.is_alive()
    assert run.numbers("people") == list(range(20))
    assert (people.state, faces.state) == ("ended", "failed")


def test_a_slow_second_model_never_holds_the_first_of_a_live_source(bundle):
    released = threading.Event()

    def before(name, model):
        if name == "faces":
            hanging(model, 1, released)

    source = Given(pictures(60), live=True, period_s=0.004)
    run = Run(bundle, source, {"people": {"process": "worker"}, "faces": {"after": "people"}}, before=before)
    with run.lanes:
        thread = threading.Thread(target=run.lanes.run, daemon=True)
        thread.start()
        try:
            assert wait_until(lambda: run.lanes.lanes["people"].ended)
        finally:
            released.set()
        thread.join(60)
        assert not thread.is_alive()
        summary = run.lanes.summary()
        crops = run.lanes.lanes["faces"].source
    assert accounted(summary, "people") == 60
    assert accounted(summary, "faces") == crops.offered == 2 * len(run.numbers("people"))
    assert run.numbers("faces")[-1] == run.numbers("people")[-1]


@pytest.mark.parametrize("live", [False, True])
def test_stopping(bundle, live):
    source = Given(pictures(100000, (4, 4)), live=live, period_s=0.001)
    run = Run(
        bundle, source, {"a": {}, "b": {}, "people": {"process": "worker"}, "faces": {"after": "people"}},
        {"ab": {"of": ("a", "b")}},
    )  # fmt: skip
    with run.lanes:
        thread = threading.Thread(target=run.lanes.run, daemon=True)
        thread.start()
        assert wait_until(lambda: len(run.numbers("faces")) > 3 and len(run.numbers("ab")) > 3)
        run.lanes.stop()
        thread.join(60)
        assert not thread.is_alive()
        summary = run.lanes.summary()
    assert {part["state"] for part in summary.described.values()} <= {"stopped", "ended"}
    for name in ("a", "b", "people", "faces"):
        assert summary.described[name]["unfinished"] <= 3
        assert summary.described[name]["results"] == len(run.numbers(name))


def test_so_many_results_a_lane(bundle):
    summary = Run(bundle, Given(pictures(50)), {"a": {}, "b": {"every": 2}}, frames=10).run()
    assert [part.frames for part in summary.lanes.values()] == [10, 10]


def test_what_cannot_be_opened_ends_the_run_before_it_begins(bundle, tmp_path):
    source = Given(pictures(5))
    run = Run(bundle, source, {"a": {}, "b": {"bundle": str(tmp_path / "none.ferry")}})
    with pytest.raises(BundleError, match="model 'b': "):
        run.run()
    assert run.wanted == "never asked"
    assert all(sink.closed for sink in run.sinks.values())


def test_eager_models_are_opened_side_by_side(bundle):
    together = threading.Barrier(3, timeout=30)

    def before(name, model):
        together.wait()

    run = Run(bundle, Given(pictures(2)), {name: {} for name in "abc"}, before=before)
    assert len(run.run().lanes) == 3  # one after the other, the first would wait for ever


def test_a_lazy_model_is_opened_when_its_first_crop_comes(bundle):
    lanes = {
        "people": {"process": "worker"},
        "never": {"after": "people", "min_score": 0.99, "load": "lazy"},
        "faces": {"after": "people", "load": "lazy"},
        "later": {"load": "lazy"},
    }
    run = Run(bundle, Given(pictures(6)), lanes)
    with run.lanes:
        assert run.opened == ["people"]
        summary = run.lanes.run()
    assert sorted(run.opened) == ["faces", "later", "people"]
    assert len(run.numbers("faces")) == 12
    assert run.numbers("later") == list(range(6))
    assert summary.lanes["never"] is None
    said = summary.to_json()["lanes"]["never"]
    assert (said["state"], said["results"]) == ("ended", 0)
    assert "never: ended\nno frame came to it" in summary.to_text()


def test_boxes_come_from_detectors(bundle):
    with pytest.raises(UsageError, match=r"model 'a' \(tiny-\w+\) does classify, and another one runs"):
        Run(bundle, Given([]), {"a": {}, "b": {"after": "a"}}).run()


def test_members_with_other_classes_are_refused(bundle, make_bundle):
    def change(manifest, members):
        return manifest, dict(members, **{"labels.txt": b"one\ntwo\nthree\nfour\n"})

    other = str(make_bundle("other", 0, change))
    with pytest.raises(UsageError, match=r"ensemble 'ab': tiny-\w+ and other-\w+ do not have the same classes"):
        Run(bundle, Given([]), {"a": {}, "b": {"bundle": other}}, {"ab": {"of": ("a", "b")}}).run()


def test_models_of_tensors_are_refused_before_the_run_begins(bundle):
    def before(name, model):
        if name == "b":
            model.preprocessor = None

    run = Run(bundle, Given(pictures(5)), {"a": {}, "b": {}}, before=before)
    with pytest.raises(FrameError, match="takes tensors"):
        run.run()
    assert run.source.asked == 0
    assert run.source.closed


def test_a_roster_chooses_and_replaces_in_its_own_lane(bundle):
    closed = []

    class Spare(Roster):
        def __init__(self, name):
            self.name = name
            self.spare = Model.open(bundle, threads=1)

        def replace(self, failed, error):
            return self.spare

        def close(self):
            closed.append(self.name)
            self.spare.close()

    def before(name, model):
        if name == "bad":
            breaking(model, 3)
            return Spare(name)
        return None

    run = Run(bundle, Given(pictures(10)), {"good": {}, "bad": {}}, before=before)
    run.run()
    assert run.numbers("bad") == run.numbers("good") == list(range(10))
    assert closed == ["bad"]


def test_observers_look_on_in_each_lane(bundle):
    class Counting(Observer):
        def __init__(self):
            self.seen = []

        def saw(self, frame, result, model):
            self.seen.append(result.frame)

    watching = {"a": Counting(), "b": Counting()}
    Run(bundle, Given(pictures(6)), {"a": {}, "b": {"every": 2}}, observers=lambda name: [watching[name]]).run()
    assert (watching["a"].seen, watching["b"].seen) == (list(range(6)), [0, 2, 4])


def test_jpeg_is_decoded_once_for_all_lanes_that_declare_the_whole_picture(bundle, make_bundle, monkeypatch):
    cv2 = opencv.load("tests")
    frames = pictures(8, (48, 64))
    frames = [f._replace(pixels=cv2.imencode(".jpg", f.pixels)[1].reshape(-1), color="jpeg") for f in frames]
    with Model.open(bundle, threads=1) as model:
        expected = [model(frame.pixels, "jpeg") for frame in frames]
    decoded = []
    from edgeferry_runtime import pixels, preprocessor

    decode = pixels.decode_jpeg
    for module in (pixels, preprocessor):
        monkeypatch.setattr(module, "decode_jpeg", lambda *a, **k: (decoded.append(1), decode(*a, **k))[1])
    run = Run(bundle, Given(frames), {"a": {}, "b": {}, "c": {}})
    run.run()
    assert len(decoded) == 8
    for name in "abc":
        assert [result.answer for result in run.sinks[name].results] == expected


def test_on_a_camera_no_lane_waits_for_a_slower_one(bundle):
    released = threading.Event()

    def before(name, model):
        if name == "slow":
            hanging(model, 3, released)

    with open_source("synthetic:64x48@200") as source:
        run = Run(bundle, source, {"quick": {}, "slow": {}}, before=before, frames=100)
        with run.lanes:
            thread = threading.Thread(target=run.lanes.run, daemon=True)
            thread.start()
            try:
                assert wait_until(lambda: run.lanes.lanes["quick"].ended)
            finally:
                released.set()
            assert wait_until(lambda: run.lanes.lanes["slow"].results > 10)
            run.lanes.stop()
            thread.join(60)
            assert not thread.is_alive()
            summary = run.lanes.summary()
    assert len(run.numbers("quick")) == 100
    assert summary.lanes["slow"].losses["unread"] > 50


def test_nothing_is_left_behind(bundle):
    before = set(threading.enumerate())
    Run(bundle, Given(pictures(5)), {"a": {}, "b": {}}, {"ab": {"of": ("a", "b")}}).run()
    assert wait_until(lambda: set(threading.enumerate()) <= before)


def test_a_run_says_nothing_when_nothing_happens(bundle, caplog):
    caplog.set_level(logging.WARNING)
    Run(bundle, Given(pictures(5)), {"a": {}, "b": {"every": 2}}).run()
    assert caplog.records == []

"""The loop itself: order, freshness, what is skipped, what breaks and is survived."""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from edgeferry_runtime import Model, Pipeline, opencv
from edgeferry_runtime.errors import BackendError, FrameError, ModelAwayError, SinkError, SourceError
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.opening import Choices, open_for_loop
from edgeferry_runtime.results import STAGES
from edgeferry_runtime.roster import Roster
from edgeferry_runtime.sinks.base import Sink
from edgeferry_runtime.sources import open_source
from edgeferry_runtime.sources.base import WAITING, Frame, FrameSource

HERE = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("fake_backend", HERE / "fake_backend.py")
fake_backend = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake_backend)


class Given(FrameSource):
    """Frames of a list; an exception in the list is raised in its place."""

    encoded = True

    def __init__(self, items, live=False):
        self._items = list(items)
        self.live = live

    def _read(self, timeout_s):
        if not self._items:
            return None
        item = self._items.pop(0)
        if isinstance(item, Exception):
            raise item
        if item is not WAITING:
            item = item._replace(captured_ns=time.monotonic_ns())
        return item


class Kept(Sink):
    """Keeps what it is given; may be slow, may fail."""

    uri = "kept:"

    def __init__(self, wait_s=0.0, failing=lambda number: False, wants_pixels=False):
        self.results = []
        self.shapes = []
        self.wait_s, self.failing, self.wants_pixels = wait_s, failing, wants_pixels

    def write(self, frame, result):
        time.sleep(self.wait_s)
        if self.failing(result.frame):
            raise SinkError("kept: no room", "Make room.")
        self.results.append(result)
        self.shapes.append(frame.pixels.shape)


def pictures(count, size=(20, 30), color="bgr"):
    random = np.random.default_rng(1)
    shape = (*size, 3)
    return [Frame(random.integers(0, 256, shape, dtype=np.uint8), color, i, 0) for i in range(count)]


@pytest.fixture
def model(bundle):
    with Model.open(bundle, threads=1) as model:
        yield model


def slow(model, seconds):
    """Every invoke takes so much longer."""
    invoke = model.interpreter.invoke
    model.interpreter.invoke = lambda: (time.sleep(seconds), invoke())


@pytest.mark.parametrize("pipelined", [None, False, True])
def test_every_frame_of_a_file_gives_its_own_result_in_order(model, pipelined):
    frames = pictures(40)
    expected = [model(frame.pixels, frame.color) for frame in frames]
    sink = Kept()
    pipeline = Pipeline(Given(frames), model, [sink], pipelined=pipelined)
    pairs = list(pipeline)
    assert [frame.number for frame, _ in pairs] == list(range(40))
    assert [result.answer for _, result in pairs] == expected
    assert sink.results == [result for _, result in pairs]
    summary = pipeline.summary()
    assert (summary.frames, sum(summary.losses.values())) == (40, 0)
    assert summary.shape == ("pipelined" if pipelined else "sequential")  # a tiny model is not worth two threads
    assert list(summary.stages) == list(STAGES)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("color", ["jpeg", "bgr"])
def test_whichever_thread_preprocesses_the_answers_are_the_same(model, late, color):
    frames = pictures(20, size=(48, 64))
    if color == "jpeg":
        cv2 = opencv.load("tests")
        frames = [f._replace(pixels=cv2.imencode(".jpg", f.pixels)[1].reshape(-1), color="jpeg") for f in frames]
    expected = [model(frame.pixels, frame.color) for frame in frames]
    pipeline = Pipeline(Given(frames), model, pipelined=True)
    pipeline._preparation.late = late
    results = [result for _, result in pipeline]
    assert [result.answer for result in results] == expected
    decoding = [result.stages_us[1] for result in results]
    assert all(us > 0 for us in decoding) if color == "jpeg" else not any(decoding)


def test_two_threads_where_they_pay(model):
    slow(model, 0.02)
    source = Given(pictures(40))
    read = source._read
    source._read = lambda timeout_s: (time.sleep(0.02), read(timeout_s))[1]
    summary = Pipeline(source, model).run()
    assert summary.shape == "pipelined"
    assert summary.frames == 40
    # One after the other they would take 1.6 s; side by side, behind the trial's 8 frames, it is 1 s.
    assert summary.seconds < 1.4


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_live_source_is_never_behind(model, pipelined):
    slow(model, 0.1)
    with open_source("synthetic:64x48@30") as source:
        pipeline = Pipeline(source, model, frames=12, pipelined=pipelined)
        ages = [(result.age_us - result.stages_us[4]) / 1000 for _, result in pipeline]
    assert sorted(ages)[len(ages) // 2] < 90  # a queue would be past 100 ms at once, and grow
    summary = pipeline.summary()
    assert summary.losses["unread"] >= 20
    assert summary.capture_to_invoke.count == 12


def test_results_say_how_many_frames_were_lost_so_far(model):
    slow(model, 0.08)
    with open_source("synthetic:64x48@50") as source:
        results = [result for _, result in Pipeline(source, model, frames=6)]
    assert results[-1].dropped >= results[0].dropped + 5 * 2
    numbers = [result.frame for result in results]
    assert numbers[-1] - numbers[0] - 5 == pytest.approx(results[-1].dropped - results[0].dropped, abs=3)


def test_stale_frames_are_skipped_before_the_interpreter_sees_them(model):
    class Old(Given):
        def _read(self, timeout_s):
            frame = super()._read(timeout_s)
            late_ns = 2_000_000_000 if frame is not None and frame.number % 2 else 0
            return frame and frame._replace(captured_ns=frame.captured_ns - late_ns)

    invokes = []
    invoke = model.interpreter.invoke
    model.interpreter.invoke = lambda: (invokes.append(1), invoke())
    summary = Pipeline(Old(pictures(10)), model, max_age_ms=500).run()
    assert (summary.frames, summary.losses["stale"]) == (5, 5)
    assert len(invokes) == 5


def test_frames_are_taken_at_the_asked_rate(model):
    began = time.monotonic()
    summary = Pipeline(Given(pictures(10)), model, fps=50).run()
    assert summary.frames == 10
    assert time.monotonic() - began >= 9 / 50 * 0.95


def test_the_motion_gate_skips_what_shows_nothing_new(model):
    still, moved = pictures(2, size=(96, 128))
    frames = [still] * 5 + [moved] * 3 + [still]
    summary = Pipeline(Given(frames), model, motion=0.01).run()
    assert (summary.frames, summary.losses["still"]) == (3, 6)


def test_a_slow_sink_never_holds_a_live_source(model):
    sink = Kept(wait_s=0.2, wants_pixels=True)
    pipeline = Pipeline(Given(pictures(60), live=True), model, [sink])
    summary = pipeline.run()
    assert summary.frames == 60
    assert summary.seconds < 60 * 0.2 / 4
    counts = summary.sinks["kept:"]
    assert counts["dropped"] >= 50
    assert counts["dropped"] + counts["written"] == 60
    assert sink.results[-1].frame == 59  # the newest is never the one that goes


def test_a_slow_sink_loses_nothing_of_a_file(model):
    sink = Kept(wait_s=0.005)
    Pipeline(Given(pictures(100)), model, [sink]).run()
    assert [result.frame for result in sink.results] == list(range(100))


def test_sinks_that_do_not_look_at_pixels_do_not_hold_them(model):
    plain, drawing = Kept(), Kept(wants_pixels=True)
    Pipeline(Given(pictures(2)), model, [plain, drawing]).run()
    assert plain.shapes == [(0,), (0,)]
    assert drawing.shapes == [(20, 30, 3)] * 2


def test_a_failing_sink_is_named_once_counted_and_tried_again(model, caplog):
    sink = Kept(failing=lambda number: 10 <= number < 20, wait_s=0.001)
    source = Given(pictures(40), live=True)
    summary = Pipeline(source, model, [sink], fps=400).run()
    counts = summary.sinks["kept:"]
    assert (counts["failed"], counts["written"]) == (10, 30)
    said = [record.message for record in caplog.records]
    assert sum("no room" in line for line in said) == 1
    assert sum("works again; 10 results were lost" in line for line in said) == 1


def test_a_failing_sink_ends_the_run_of_a_file(model):
    sink = Kept(failing=lambda number: number == 5)
    with pytest.raises(SinkError, match="no room"):
        Pipeline(Given(pictures(200)), model, [sink]).run()
    assert [result.frame for result in sink.results] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("pipelined", [False, True])
def test_damaged_frames_are_counted_and_named_once(model, pipelined, caplog):
    good = pictures(6)
    torn = Frame(np.zeros(100, np.uint8), "jpeg", 90, 0)
    wrong = Frame(np.zeros((4, 4, 4), np.uint8), "bgr", 91, 0)
    summary = Pipeline(Given([*good[:3], torn, wrong, torn, *good[3:]]), model, pipelined=pipelined).run()
    assert (summary.frames, summary.losses["damaged"]) == (6, 3)
    assert sum("came to no result" in record.message for record in caplog.records) == 1


def test_nothing_but_damaged_frames_is_an_error(model):
    with pytest.raises(FrameError):
        Pipeline(Given([Frame(np.zeros(100, np.uint8), "jpeg", 0, 0)] * 3), model).run()


def test_an_answer_that_is_none_gives_no_result_and_is_survived(model, monkeypatch, caplog):
    decode = model.decode
    calls = []

    def sometimes(placed=None):
        calls.append(1)
        if len(calls) in (3, 4):
            raise BackendError("output 'scores' is NaN or infinite")
        return decode(placed)

    monkeypatch.setattr(model, "decode", sometimes)
    pipeline = Pipeline(Given(pictures(10)), model)
    summary = pipeline.run()
    assert (summary.frames, summary.losses["invalid"]) == (8, 2)
    assert "NaN" in pipeline.trouble
    assert "NaN" in pipeline.state()["trouble"]


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_source_that_fails_ends_the_loop_with_its_error(model, pipelined):
    source = Given([*pictures(3), SourceError("the cable is out")])
    with pytest.raises(SourceError, match="cable"):
        Pipeline(source, model, pipelined=pipelined).run()


@pytest.mark.parametrize("pipelined", [False, True])
def test_stopping_from_another_thread_while_there_are_no_frames(model, pipelined):
    class Silent(FrameSource):
        live = True

        def _read(self, timeout_s):
            time.sleep(timeout_s)
            return WAITING

    pipeline = Pipeline(Silent(), model, pipelined=pipelined)
    threading.Timer(0.3, pipeline.stop).start()
    began = time.monotonic()
    assert pipeline.run().frames == 0
    assert time.monotonic() - began < 5


def test_leaving_the_iteration_early_stops_its_threads(model):
    before = threading.active_count()
    pipeline = Pipeline(Given(pictures(500)), model, [Kept()], pipelined=True)
    for _, result in pipeline:
        if result.frame == 3:
            break
    del _, result
    pipeline = None
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_from_names_alone(bundle, tmp_path):
    results = tmp_path / "results.jsonl"
    with Pipeline.open("synthetic:64x48", bundle, [f"jsonl:{results}"], frames=3, threads=1) as pipeline:
        labels = [result.answer.classes[0].label for _, result in pipeline]
    assert len(labels) == 3
    assert len(results.read_text().splitlines()) == 3


def test_an_accelerator_that_dies_is_replaced_and_taken_back(bundle, tmp_path, caplog):
    library = fake_backend.build_delegate(tmp_path)
    dead = tmp_path / "dead"
    caplog.set_level(logging.INFO)
    model, standby = open_for_loop(Choices(str(bundle), threads=1, delegate=f"{library}?dead_while={dead}"))
    standby._retry_s = 0.2
    delegates = []
    with open_source("synthetic:64x48@100") as source:
        pipeline = Pipeline(source, model, roster=standby, pipelined=True)
        deadline = time.monotonic() + 60
        for _, result in pipeline:
            delegate = pipeline.model.delegate
            if not delegates or delegates[-1] != delegate:
                delegates.append(delegate)
            if result.frame > 20 and len(delegates) == 1:
                dead.write_text("")
            if len(delegates) == 2 and dead.exists():
                dead.unlink()
            if len(delegates) == 3 or time.monotonic() > deadline:
                break
    standby.close()
    model.close()
    assert [library in name for name in delegates] == [True, False, True]
    said = " ".join(record.message for record in caplog.records)
    assert "failed" in said
    assert "is back; it runs again" in said
    assert pipeline.trouble


def test_an_accelerator_that_kills_its_process_is_found_out_in_a_child(bundle, tmp_path):
    library = fake_backend.build_delegate(tmp_path)
    with pytest.raises(BackendError, match="SIGABRT"):
        open_for_loop(Choices(str(bundle), threads=1, delegate=f"{library}?crash_after=0"))


class Turns(Roster):
    """Two models by turns."""

    def __init__(self, *models):
        self.models = models

    def choose(self, running, frame):
        return self.models[frame.number % len(self.models)]


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_roster_says_which_model_runs_each_frame(bundle, pipelined):
    frames = pictures(30)
    with Model.open(bundle, threads=1) as first, Model.open(bundle, threads=1) as second:
        second.identity = "second-0"
        expected = [first(frame.pixels, frame.color) for frame in frames]
        pipeline = Pipeline(Given(frames), first, pipelined=pipelined, roster=Turns(first, second))
        results = [result for _, result in pipeline]
    assert [result.bundle for result in results] == [first.identity, "second-0"] * 15
    assert [result.answer for result in results] == expected


@pytest.mark.parametrize("pipelined", [False, True])
def test_frames_without_a_model_are_counted_and_the_loop_goes_on(bundle, pipelined):
    class Away(Roster):
        def __init__(self, ready):
            self.ready = ready
            self.failures = 0

        def choose(self, running, frame):
            return self.ready if self.failures >= 3 else running

        def replace(self, failed, error):
            self.failures += 1
            raise ModelAwayError("it is being brought back", "Wait.")

    def broken():
        raise BackendError("it died", "Start it again.")

    with Model.open(bundle, threads=1) as dead, Model.open(bundle, threads=1) as ready:
        dead.interpreter.invoke = broken
        pipeline = Pipeline(Given(pictures(20)), dead, pipelined=pipelined, roster=Away(ready))
        results = [result for _, result in pipeline]
    losses = pipeline.summary().losses
    assert losses["away"] >= 3
    assert len(results) + losses["away"] == 20
    assert pipeline.trouble == "it is being brought back"


def test_observers_are_told_of_every_result_and_the_model_it_came_from(model):
    class Onlooker(Observer):
        def __init__(self):
            self.seen = []

        def saw(self, frame, result, model):
            self.seen.append((frame.number, result.frame, model))

    onlooker = Onlooker()
    Pipeline(Given(pictures(5)), model, observers=[onlooker]).run()
    assert onlooker.seen == [(number, number, model) for number in range(5)]


def test_the_pace_can_be_changed_while_the_loop_runs(model):
    pipeline = Pipeline(Given(pictures(30), live=True), model, pipelined=False, fps=1000)
    times = []
    for frame, _ in pipeline:
        times.append(time.monotonic())
        if frame.number == 9:
            pipeline.set_fps(20)
        if frame.number == 14:
            pipeline.set_fps(None)
    slow = times[14] - times[9]
    assert slow > 5 * 0.04
    assert slow > times[29] - times[15]

"""The governor: down when hot, throttled or late, up when all is well, and no swinging in between."""

from __future__ import annotations

import itertools
import logging
from types import SimpleNamespace

import pytest
from edgeferry_runtime import Model, Pipeline
from edgeferry_runtime.errors import BackendError
from edgeferry_runtime.fields import Fields
from edgeferry_runtime.governor import Governor, Readings, Since, decide, is_well, too_much
from edgeferry_runtime.governor_config import GovernorConfig, Rung
from edgeferry_runtime.sources import open_source
from edgeferry_runtime.summary import Tally
from hypothesis import given, settings
from hypothesis import strategies as st

LADDER = (Rung(), Rung(fps=10), Rung(variant="small", fps=5))
LIMITS = GovernorConfig(LADDER, max_temperature_c=70, hysteresis_c=5, step_s=10, hold_s=60)
LONG = Since(1e6, 1e6)


class Board:
    """A fake sysfs, a clock and a pipeline that notes what is asked of it."""

    def __init__(self, root, config=LIMITS, fps=None, use_variant=None):
        self.root, self.now, self.asked = root, 0.0, []
        zone = root / "sys/class/thermal/thermal_zone0"
        firmware = root / "sys/bus/platform/drivers/raspberrypi-firmware/soc:firmware"
        for folder in (zone, firmware):
            folder.mkdir(parents=True)
        self._temp, self._throttled = zone / "temp", firmware / "get_throttled"
        self.reads(50.0)
        self.tally = Tally()
        use = use_variant or (lambda name: self.asked.append(("variant", name)))
        self.governor = Governor(config, use, fps, str(root), lambda: self.now)
        self.governor.attach(self)

    def set_fps(self, fps):
        self.asked.append(("fps", fps))

    def reads(self, celsius, flags=0):
        self._temp.write_text(f"{int(celsius * 1000)}\n")
        self._throttled.write_text(f"{flags:x}\n")

    def results(self, count, age_ms=10.0):
        for _ in range(count):
            self.governor.saw(None, SimpleNamespace(age_us=age_ms * 1000), None)

    def runs(self, seconds, *results):
        for _ in range(seconds):
            self.now += 1
            if results:
                self.results(*results)
            self.governor.tick()

    @property
    def rung(self):
        return self.governor.state()["rung"]


@pytest.mark.parametrize(
    ("readings", "words"),
    [
        (Readings(), ""),
        (Readings(70.0, "", 0.1), ""),
        (Readings(70.1), "70.1 C is above 70"),
        (Readings(20.0, "undervoltage"), "throttled: undervoltage"),
        (Readings(missed=0.25), "25.0% of the frames were late"),
    ],
)
def test_what_is_too_much(readings, words):
    assert too_much(readings, LIMITS) == words
    assert decide(LADDER, 0, readings, LONG, LIMITS) == (1 if words else 0)
    assert not (words and is_well(readings, LIMITS))


@pytest.mark.parametrize(
    ("readings", "well"),
    [
        (Readings(64.9, "", 0.05), True),
        (Readings(65.0), False),  # within the band
        (Readings(missed=0.06), False),
        (Readings(), True),
    ],
)
def test_more_is_done_only_when_all_is_well(readings, well):
    assert is_well(readings, LIMITS) == well
    assert decide(LADDER, 2, readings, LONG, LIMITS) == (1 if well else 2)
    assert decide(LADDER, 2, readings, Since(1e6, 59), LIMITS) == 2
    assert decide(LADDER, 2, readings, Since(59, 1e6), LIMITS) == 2


def test_the_ladder_ends():
    hot, cool = Readings(90.0), Readings(20.0)
    assert decide(LADDER, 2, hot, LONG, LIMITS) == 2
    assert decide(LADDER, 0, cool, LONG, LIMITS) == 0
    assert decide(LADDER, 0, hot, Since(9, 0), LIMITS) == 0  # the last step has had no time to show


celsius = st.one_of(st.none(), st.floats(20, 110))
readings = st.builds(Readings, celsius, st.sampled_from(["", "throttled"]), st.one_of(st.none(), st.floats(0, 1)))


def walked(sequence, rung=0):
    """(second, rung) at each reading, one a second."""
    stepped = well = 0
    path = []
    for now, reading in enumerate(sequence, 1):
        well = well if is_well(reading, LIMITS) else now
        wanted = decide(LADDER, rung, reading, Since(now - stepped, now - well), LIMITS)
        if wanted != rung:
            rung, stepped, well = wanted, now, now
        path.append((now, rung))
    return path


@settings(max_examples=200, deadline=None)
@given(st.lists(readings, max_size=300), st.integers(0, 2))
def test_one_rung_at_a_time_and_never_sooner_than_allowed(sequence, start):
    before, changed, bad = start, 0, 0
    for (now, rung), reading in zip(walked(sequence, start), sequence, strict=False):
        assert 0 <= rung < len(LADDER)
        assert abs(rung - before) <= 1
        bad = bad if is_well(reading, LIMITS) else now
        if rung > before:
            assert now - changed >= LIMITS.step_s
            assert too_much(reading, LIMITS)
        if rung < before:
            assert now - max(changed, bad) >= LIMITS.hold_s
        if rung != before:
            before, changed = rung, now


@settings(max_examples=100, deadline=None)
@given(
    readings,
    st.lists(st.builds(Readings, st.floats(65, 70), st.just(""), st.floats(0.051, 0.1)), max_size=300),
    st.integers(0, 2),
)
def test_within_the_band_nothing_swings(first, band, start):
    rungs = [start] + [rung for _, rung in walked([first] * 10 + band, start)]
    assert sum(a != b for a, b in itertools.pairwise(rungs)) <= 1


def test_a_hot_board_goes_down_and_comes_back(tmp_path, caplog):
    board = Board(tmp_path, fps=30)
    caplog.set_level(logging.INFO, "edgeferry")
    board.runs(20)
    assert (board.rung, board.asked) == (0, [])
    board.reads(72.5)
    board.runs(1)
    assert board.asked == [("fps", 10)]
    state = board.governor.state()
    assert (state["rung"], state["rungs"], state["fps"], state["changes"]) == (1, 3, 10, 1)
    assert state["why"] == "72.5 C is above 70"
    board.runs(10)
    assert board.asked[1:] == [("variant", "small"), ("fps", 5)]
    board.runs(100)
    assert board.rung == 2  # there is nothing below
    board.reads(66)
    board.runs(200)
    assert board.rung == 2  # cooler, and not cool enough
    board.reads(60)
    board.runs(59)
    assert board.rung == 2
    board.runs(61)
    assert board.asked[3:] == [("variant", None), ("fps", 10), ("fps", 30)]
    assert board.rung == 0
    said = [record.message for record in caplog.records]
    assert said == [
        "the governor goes down to 10 frames/s: 72.5 C is above 70",
        "the governor goes down to small, 5 frames/s: 72.5 C is above 70",
        "the governor goes up to 10 frames/s: all is well",
        "the governor goes up to full quality: all is well",
    ]


def test_a_throttled_board_and_what_was_only_once(tmp_path):
    board = Board(tmp_path)
    board.reads(40, flags=0x50000)  # since the board was started, not now
    board.runs(30)
    assert board.rung == 0
    board.reads(40, flags=0x50005)
    board.runs(1)
    assert board.governor.state()["why"] == "throttled: undervoltage, throttled"


@pytest.mark.parametrize("how", ["old", "skipped"])
def test_missed_deadlines(tmp_path, how):
    config = GovernorConfig(LADDER, max_age_ms=100, window_s=10, step_s=10, hold_s=60)
    board = Board(tmp_path, config)
    board.runs(12, 20)
    assert board.governor.state()["missed"] == 0
    for _ in range(10):
        board.results(17)
        if how == "old":
            board.results(3, 150.0)
        else:
            board.tally.losses["stale"] += 3
        board.runs(1)
    assert board.rung == 1
    assert board.governor.state()["why"].endswith("of the frames were late")
    board.runs(58, 20)
    assert board.rung == 1  # the window had to pass first
    board.runs(20, 20)
    assert board.rung == 0


def test_a_few_frames_say_nothing(tmp_path):
    board = Board(tmp_path, GovernorConfig(LADDER, max_age_ms=100, window_s=5))
    board.runs(30, 1, 500.0)
    assert board.rung == 0
    assert "missed" not in board.governor.state()


def test_a_rung_that_does_not_hold_is_tried_later_each_time(tmp_path):
    board = Board(tmp_path, GovernorConfig(LADDER[:2], max_temperature_c=70, step_s=5, hold_s=20))
    ups, before = [], 0
    for _ in range(4000):  # a board that is too hot at full quality, and cool one rung below
        board.reads(60 if board.rung else 75)
        board.runs(1)
        if board.rung < before:
            ups.append(board.now)
        before = board.rung
    waits = [b - a for a, b in itertools.pairwise(ups)]
    assert waits == sorted(waits)
    assert waits[0] < 60
    assert waits[-1] >= 16 * 20
    assert len(ups) < 16
    board.reads(60)
    board.runs(16 * 20 + 40)
    assert board.rung == 0  # it holds now, and patience is as it was
    board.reads(75)
    board.runs(1)
    board.reads(60)
    board.runs(21)
    assert board.rung == 0


def test_a_variant_that_cannot_run_is_left_out(tmp_path, caplog):
    ladder = (Rung(), Rung(variant="broken"), Rung(fps=5))

    def use(name):
        if name == "broken":
            raise BackendError("no variant of the bundle can run here")

    config = GovernorConfig(ladder, max_temperature_c=70, step_s=10, hold_s=60)
    board = Board(tmp_path, config, use_variant=use)
    board.reads(80)
    board.runs(10)
    board.runs(2)
    assert board.asked == [("fps", 5)]
    assert board.governor.state()["rungs"] == 2
    assert "cannot go to broken: no variant" in caplog.text


def test_without_thermometer_or_pipeline_nothing_is_done(tmp_path):
    governor = Governor(LIMITS, root=str(tmp_path))
    governor.tick()
    board = Board(tmp_path / "b")
    governor.attach(board)
    governor.tick()
    assert governor.state()["changes"] == 0
    assert board.asked == []


def test_several_loops_are_governed_as_one(tmp_path):
    board, other = Board(tmp_path / "a"), Board(tmp_path / "b")
    board.governor.attach(board, other)
    board.runs(2, 20)
    board.results(20)
    other.tally.losses["stale"] += 20
    board.runs(10)
    assert board.asked == other.asked == [("fps", 10)]


def test_on_a_real_loop(bundle, tmp_path):
    board = Board(tmp_path / "board", GovernorConfig(LADDER[:2], max_temperature_c=70, step_s=1, hold_s=60))
    with Model.open(bundle, threads=1) as model, open_source("synthetic:64x48@100") as source:
        pipeline = Pipeline(source, model, frames=5, observers=[board.governor])
        board.governor.attach(pipeline)
        board.reads(80)
        board.now += 1
        board.governor.tick()
        numbers = [result.frame for _, result in pipeline]
    assert board.governor.state()["fps"] == 10
    assert numbers[-1] - numbers[0] >= 30  # ten a second of a hundred


def read(value):
    fields = Fields(value)
    config = GovernorConfig.read(fields)
    return config, fields.finish()


def test_the_config():
    config, problems = read({"ladder": [{}, {"fps": 10}, {"variant": "small", "fps": 5}], "max_temperature_c": 70})
    assert problems == []
    assert config == GovernorConfig(LADDER, max_temperature_c=70)
    assert read({"ladder": [{}, {"fps": 1}], "max_temperature_c": 0})[0].max_temperature_c is None
    assert read({"ladder": [{}, {"fps": 1}], "max_temperature_c": None})[0].max_temperature_c == 75


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "ladder: is missing"),
        ({"ladder": [{}]}, "ladder: has 1 entries, needs at least 2"),
        ({"ladder": [{}, {}]}, "ladder[1]: is the same as the one before"),
        ({"ladder": [{}, {"fps": 0}]}, "ladder[1].fps: is 0.0, must be greater than 0"),
        ({"ladder": [{}, {"fsp": 3}]}, "ladder[1].fsp: is unknown, did you mean 'fps'"),
        ({"ladder": [{}, {"variant": "../x"}]}, "ladder[1].variant: is '../x'"),
        ({"ladder": [{}, {"fps": 3}], "hysteresis_c": 0}, "hysteresis_c: is 0.0, must be at least 0.5"),
        ({"ladder": [{}, {"fps": 3}], "max_missed": 2}, "max_missed: is 2.0, must be at most 1.0"),
    ],
)
def test_each_fault_of_the_config_is_named(value, words):
    assert any(words in problem for problem in read(value)[1])

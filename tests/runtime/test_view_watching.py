"""What the page keeps of a lane, with a clock of the test's own; and how small its picture is."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from edgeferry_runtime import opencv
from edgeferry_runtime.results import STAGES, Result
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.tasks.classify import Classification, ClassScore
from edgeferry_runtime.tasks.detect import Box, Detection
from edgeferry_runtime.tasks.keypoints import Keypoint, Pose, Poses
from edgeferry_runtime.view.picture import encode, shrink
from edgeferry_runtime.view.watching import COLUMNS, LaneView
from hypothesis import given
from hypothesis import strategies as st

PIXELS = np.zeros((4, 6, 3), np.uint8)
MODEL = SimpleNamespace(delegate="")


def result(number=0, bundle="tiny-0", age_us=2000.0, answer=None):
    answer = answer or Classification((ClassScore(0, "alpha", 0.75),))
    stages = tuple(float(100 * i) for i in range(len(STAGES)))
    return Result(number, "", bundle, "int8", "fake 1", 0, 1e9, age_us, stages, 0, answer)


class Lane:
    """A lane whose seconds the test counts."""

    def __init__(self):
        self.now, self.done = 100.0, 0
        self.view = LaneView(lambda: self.done, clock=lambda: self.now, wall=lambda: 1e9 + self.now)

    def saw(self, number=0, **what):
        self.done += 1
        self.view.saw(Frame(PIXELS, "bgr", number, 0), result(number, **what), MODEL)

    def tick(self, seconds=1.0):
        self.now += seconds
        self.view.tick()


def test_a_row_a_second():
    lane = Lane()
    for age in (1000.0, 3000.0):
        lane.saw(age_us=age)
    lane.tick()
    lane.tick()
    first, second = (dict(zip(COLUMNS, row, strict=True)) for row in lane.view.history())
    assert first["time"] == 1e9 + 101
    assert (first["fps"], first["age_ms"], first["age_max_ms"]) == (2.0, 2.0, 3.0)
    assert [first[name + "_ms"] for name in STAGES] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert second["fps"] == second["age_ms"] == 0
    assert len(lane.view.history(first["time"])) == 1
    assert lane.view.history(second["time"]) == []


def test_ticks_that_come_sooner_make_no_rows():
    lane = Lane()
    for _ in range(8):
        lane.saw()
        lane.tick(0.25)
    assert [row[1] for row in lane.view.history()] == [4.0, 4.0]


@given(st.integers(0, 1500))
def test_the_history_stays_as_long_as_it_is(seconds):
    lane = Lane()
    for _ in range(seconds):
        lane.tick()
    times = [row[0] for row in lane.view.history()]
    assert len(times) == min(seconds, 600)
    assert times == sorted(times)
    assert not times or times[-1] == 1e9 + lane.now


def test_a_loop_moves_when_frames_are_done_whatever_they_come_to():
    lane = Lane()
    lane.saw()
    lane.tick()
    assert lane.view.still_s() == 0
    lane.tick(7)
    assert lane.view.still_s() == 7
    lane.done += 1  # a frame that was damaged, say
    assert lane.view.still_s() == 0
    lane.tick()
    lane.tick(3)
    assert lane.view.still_s() == 3


def test_a_swap_and_two_by_turns():
    lane = Lane()
    for _ in range(3):
        lane.saw(bundle="tiny-old")
        lane.tick()
    lane.saw(bundle="tiny-new")
    lane.tick()
    assert lane.view.runs("tiny-new")
    assert lane.view.runs("tiny-old")  # it may be the other one's turn
    for _ in range(4):
        lane.saw(bundle="tiny-new")
        lane.tick()
    assert not lane.view.runs("tiny-old")
    told = lane.view.versions()
    assert [(v["bundle"], v["frames"], v["running"]) for v in told] == [
        ("tiny-new", 5, True),
        ("tiny-old", 3, False),
    ]
    for number in range(20):
        lane.saw(bundle=("tiny-new", "tiny-old")[number % 2])
        lane.tick(0.1)
    assert all(version["running"] for version in lane.view.versions())


def test_no_more_than_a_few_versions_are_remembered():
    lane = Lane()
    for number in range(30):
        lane.saw(bundle=f"tiny-{number}")
        lane.tick()
    assert [version["bundle"] for version in lane.view.versions()] == [f"tiny-{n}" for n in range(29, 21, -1)]


def test_recent_results_newest_first_with_their_headline():
    lane = Lane()
    for number in range(50):
        lane.saw(number)
    recent = lane.view.recent()
    assert [line["frame"] for line in recent] == list(range(49, 29, -1))
    assert recent[0]["headline"] == "alpha 75%"
    assert recent[0]["classes"][0]["score"] == 0.75


needs_opencv = pytest.mark.skipif(not opencv.available(), reason="OpenCV draws")


@needs_opencv
@pytest.mark.parametrize("color", ["bgr", "rgb", "gray", "i420", "jpeg"])
def test_a_large_frame_becomes_small_and_its_boxes_with_it(color):
    cv2 = opencv.load("tests")
    pixels = np.zeros((720, 1280, 3), np.uint8)
    pixels[180:540, 320:960] = (40, 90, 200) if color != "gray" else 120
    made = {
        "bgr": lambda: pixels,
        "rgb": lambda: np.ascontiguousarray(pixels[..., ::-1]),
        "gray": lambda: np.ascontiguousarray(pixels[..., 0]),
        "i420": lambda: cv2.cvtColor(pixels, cv2.COLOR_BGR2YUV_I420),
        "jpeg": lambda: cv2.imencode(".jpg", pixels)[1].reshape(-1),
    }[color]()
    answer = Detection((Box(0, "", 0.9, 320, 180, 640, 360),))
    frame, said = shrink(Frame(made, color, 0, 0), result(answer=answer), 640)
    assert frame.pixels.shape == (360, 640, 3)
    assert frame.color == "bgr"
    (box,) = said.answer.boxes
    assert (box.x, box.y, box.width, box.height) == (160, 90, 320, 180)
    bright = frame.pixels.max(axis=2) > 60
    rows, columns = np.nonzero(bright)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == pytest.approx(
        (90, 270, 160, 480), abs=2
    )
    whole = encode(Frame(made, color, 0, 0), result(answer=answer))
    assert cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_COLOR).shape == (360, 640, 3)


@needs_opencv
def test_poses_become_small_and_small_frames_stay():
    answer = Poses((Pose(0.9, (Keypoint(0, "nose", 100.0, 60.0, 0.8),)),))
    wide = Frame(np.zeros((100, 800, 3), np.uint8), "bgr", 0, 0)
    _, said = shrink(wide, result(answer=answer), 400)
    assert (said.answer.poses[0].keypoints[0].x, said.answer.poses[0].keypoints[0].y) == (50, 30)
    small = Frame(PIXELS, "bgr", 0, 0)
    frame, said = shrink(small, result(answer=answer), 640)
    assert frame.pixels is PIXELS
    assert said.answer is answer

"""A cascade's crops: which boxes, which pixels, whose turn, and that every box is accounted for."""

from __future__ import annotations

import importlib.util
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from edgeferry_runtime import opencv, pixels
from edgeferry_runtime.cascade import Crops, Cutting, chosen_boxes, cut
from edgeferry_runtime.sources.base import WAITING, Region
from edgeferry_runtime.tasks.detect import Detection
from hypothesis import given
from hypothesis import strategies as st

HERE = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("fake_lanes", HERE / "fake_lanes.py")
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)
box, pictures, result, wait_until = fake.box, fake.pictures, fake.result, fake.wait_until


def see(crops, frame, *boxes):
    """The first loop has a result."""
    crops.saw(frame, result(frame.number, Detection(boxes)), None)


def rest_of(crops):
    crops.finish()
    return list(iter(lambda: crops.read(1), None))


def test_the_best_boxes_of_the_wanted_classes():
    boxes = [box(0.5), box(0.9, label="dog"), box(0.8), box(0.95, label="bird"), box(0.8, label="dog"), box(0.3)]
    cutting = Cutting(("cat", "dog"), min_score=0.5, max_crops=3)
    assert [index for index, _ in chosen_boxes(boxes, cutting)] == [1, 2, 4]
    assert [index for index, _ in chosen_boxes(boxes, Cutting())] == [3, 1, 2, 4, 0]
    assert chosen_boxes([], cutting) == []


@pytest.mark.parametrize("color", ["bgr", "rgb", "gray"])
def test_a_crop_is_a_view_with_every_pixel_the_box_touches(color):
    frame = pictures(1, (40, 60), color)[0]._replace(number=7, captured_ns=123, name="a.png")
    crop = cut(frame, 2, box(0.9, 10.5, 4.2, 20, 10), 0.0)
    assert crop.region == Region(2, "cat", 0.9, 10, 4, 21, 11)
    np.testing.assert_array_equal(crop.pixels, frame.pixels[4:15, 10:31])
    assert np.shares_memory(crop.pixels, frame.pixels)
    assert crop[1:5] == (color, 7, 123, "a.png")


def test_the_margin_is_a_share_of_the_box_and_ends_at_the_frame():
    frame = pictures(1, (40, 60))[0]
    crop = cut(frame, 0, box(0.9, 10, 10, 20, 10), 0.5)
    assert crop.region[3:7] == (0, 5, 40, 20)
    assert cut(frame, 0, box(0.9, 50, 35, 10, 5), 3.0).region[3:7] == (20, 20, 40, 20)


@given(
    x=st.floats(-100, 200), y=st.floats(-100, 200), width=st.floats(0.001, 300), height=st.floats(0.001, 300),
    margin=st.floats(0, 10),
)  # fmt: skip
def test_a_crop_is_never_empty_and_never_outside(x, y, width, height, margin):
    frame = pictures(1, (7, 5))[0]
    crop = cut(frame, 0, box(0.9, x, y, width, height), margin)
    _, _, _, left, top, wide, high, _ = crop.region
    assert crop.pixels.shape == (high, wide, 3)
    assert 0 <= left < left + wide <= 5
    assert 0 <= top < top + high <= 7


def test_a_crop_of_a_crop_says_where_it_lies_in_the_frame():
    frame = pictures(1, (40, 60))[0]
    outer = cut(frame, 3, box(0.9, 10, 5, 30, 20), 0.0)
    inner = cut(outer, 1, box(0.8, 4, 6, 8, 8, "eye"), 0.0)
    np.testing.assert_array_equal(inner.pixels, frame.pixels[11:19, 14:22])
    assert inner.region == Region(1, "eye", 0.8, 14, 11, 8, 8, outer.region)
    assert inner.region.boxes == (3, 1)
    assert inner.region.to_json() == {
        "box": 1, "label": "eye", "score": 0.8, "x": 14, "y": 11, "width": 8, "height": 8,
        "within": {"box": 3, "label": "cat", "score": 0.9, "x": 10, "y": 5, "width": 30, "height": 20},
    }  # fmt: skip


@pytest.mark.parametrize("color", ["jpeg", "i420"])
def test_what_has_no_rows_of_pixels_is_decoded_first(color):
    cv2 = opencv.load("tests")
    bgr = pictures(1, (40, 60))[0]
    stored = cv2.cvtColor(bgr.pixels, cv2.COLOR_BGR2YUV_I420)
    if color == "jpeg":
        stored = cv2.imencode(".jpg", bgr.pixels)[1].reshape(-1)
    crops = Crops(Cutting(), live=True)
    see(crops, bgr._replace(pixels=stored, color=color), box(0.9, 10, 10, 20, 10), box(0.8, 0, 0, 5, 5))
    first, second = rest_of(crops)
    whole = pixels.to_bgr(stored, color)
    assert (first.color, second.color) == ("bgr", "bgr")
    np.testing.assert_array_equal(first.pixels, whole[10:20, 10:30])
    np.testing.assert_array_equal(second.pixels, whole[:5, :5])


def test_boxes_of_a_damaged_frame_are_counted():
    crops = Crops(Cutting(), live=False)
    damaged, good = pictures(2)
    see(crops, damaged._replace(pixels=np.zeros(100, np.uint8), color="jpeg"), box(), box())
    reader = threading.Thread(target=see, args=(crops, good, box()), daemon=True)
    reader.start()
    assert crops.read(10).number == 1
    assert (crops.offered, crops.taken, crops.skipped, crops.dropped) == (3, 1, 2, 0)


def test_best_first_and_all_of_a_frame_before_the_newest():
    crops = Crops(Cutting(), live=True)
    frames = pictures(4)
    see(crops, frames[0], box(0.5), box(0.9), box(0.7))
    assert crops.read(1).region.box == 1
    for frame in frames[1:]:
        see(crops, frame, box(0.5), box(0.6))  # replaces what no one has begun
    order = [(crop.number, crop.region.box) for crop in rest_of(crops)]
    assert order == [(0, 2), (0, 0), (3, 1), (3, 0)]
    assert (crops.offered, crops.taken, crops.dropped, crops.skipped) == (9, 5, 4, 0)
    assert crops.over


def test_a_live_first_loop_never_waits_and_frames_without_boxes_take_nothing_away():
    crops = Crops(Cutting(min_score=0.5), live=True)
    frames = pictures(100)
    for frame in frames[:50]:
        see(crops, frame, box())
    for frame in frames[50:]:
        see(crops, frame, box(0.4))
    assert [crop.number for crop in rest_of(crops)] == [49]
    assert crops.dropped == 49


def test_of_files_every_box_counts_and_the_first_loop_waits():
    crops = Crops(Cutting(), live=False)
    seen = []

    def first():
        for frame in pictures(20):
            see(crops, frame, box(), box())
            seen.append(frame.number)
        crops.finish()

    thread = threading.Thread(target=first, daemon=True)
    thread.start()
    assert wait_until(lambda: seen == [0])
    time.sleep(0.02)
    assert seen == [0]  # the second waits for room
    assert crops.read(10).number == 0
    assert wait_until(lambda: seen == [0, 1])
    rest = list(iter(lambda: crops.read(10), None))
    assert [crop.number for crop in rest] == [0, *(number for number in range(1, 20) for _ in range(2))]
    thread.join(10)
    assert (crops.offered, crops.taken, crops.dropped) == (40, 40, 0)


def test_a_closed_one_lets_the_first_loop_go_on():
    crops = Crops(Cutting(), live=False)
    frames = pictures(3)
    see(crops, frames[0], box())
    thread = threading.Thread(target=see, args=(crops, frames[1], box()), daemon=True)
    thread.start()
    crops.close()
    thread.join(10)
    assert not thread.is_alive()
    see(crops, frames[2], box())
    assert crops.read(0) is None
    assert (crops.offered, crops.dropped) == (1, 1)


def test_one_frame_in_so_many_and_all_parts_of_it():
    crops = Crops(Cutting(every=2), live=True)
    frames = pictures(4)
    for number in (0, 0, 1):
        see(crops, frames[number], box(), box())
    assert [crop.number for crop in rest_of(crops)] == [0] * 4


def test_parts_of_the_newest_frame_are_kept_together():
    crops = Crops(Cutting(), live=True)
    frames = pictures(2)
    for number in (0, 0, 1, 1, 1):
        see(crops, frames[number], box())
    assert crops.dropped == 2
    assert [crop.number for crop in rest_of(crops)] == [1, 1, 1]


def test_waiting_is_bounded_and_answers_without_boxes_are_none():
    crops = Crops(Cutting(), live=True)
    assert crops.read(0.01) is WAITING
    assert not crops.wait(0.01)
    crops.saw(pictures(1)[0], result(0), None)  # a classification
    assert crops.read(0.01) is WAITING
    see(crops, pictures(1)[0], box())
    assert crops.wait(0)
    assert not crops.over
    assert len(rest_of(crops)) == 1
    assert crops.wait(0)
    assert crops.over

"""Detection: boxes by hand, suppression against a slow reference, the way back to the frame."""

from __future__ import annotations

import json

import numpy as np
import pytest
from edgeferry_runtime.errors import BackendError, FrameError
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import GEOMETRIES, Preprocessing
from edgeferry_runtime.tasks.detect import Box, Detect, Detection, suppress
from hypothesis import example, given, settings
from hypothesis import strategies as st

LABELS = ["cat", "dog", "cow"]
SSD_OUTPUTS = {role: role for role in ("boxes", "classes", "scores", "count")}


def yolo(decoder="yolo-v8", labels=LABELS, size=(100, 50), **changes):
    declared = {"task": "detect", "outputs": {"head": "h"}, "decoder": decoder, "top_k": 100, "threshold": 0.25}
    declared.update(changes)
    return Detect(Postprocessing(**declared), labels, size)


def ssd(size=(200, 100), **changes):
    declared = {"task": "detect", "outputs": SSD_OUTPUTS, "decoder": "ssd", "top_k": 100, "threshold": 0.5}
    declared.update(changes)
    return Detect(Postprocessing(**declared), LABELS, size)


def ssd_outputs(boxes, classes, scores, count=None):
    arrays = {"boxes": boxes, "classes": classes, "scores": scores}
    outputs = {name: np.array(values, np.float32)[None] for name, values in arrays.items()}
    outputs["boxes"] = outputs["boxes"].reshape(1, -1, 4)
    outputs["count"] = np.array([len(scores) if count is None else count], np.float32)
    return outputs


def head_v8(rows):
    """Rows x y w h score-a-class as the model writes them: a column a candidate."""
    return {"h": np.array(rows, np.float32).T[None]}


def places(answer):
    return [(b.label, round(b.score, 4), b.x, b.y, b.width, b.height) for b in answer.boxes]


def test_ssd_fractions_become_pixels_of_the_input():
    outputs = ssd_outputs([[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]], [1, 0], [0.75, 0.875])
    assert places(ssd()(outputs)) == [
        ("cat", 0.875, 0, 0, 200, 100),
        ("dog", 0.75, pytest.approx(40), pytest.approx(10), pytest.approx(80), pytest.approx(40)),
    ]


def test_ssd_rows_behind_the_count_are_filler():
    outputs = ssd_outputs([[0, 0, 1, 1], [0, 0, 0.5, 0.5]], [0, 1], [0.9, 0.9], count=1)
    assert [b.label for b in ssd()(outputs).boxes] == ["cat"]
    outputs["count"][:] = 0
    assert ssd()(outputs).boxes == ()
    outputs["count"][:] = 99
    assert len(ssd()(outputs).boxes) == 2


def test_ssd_drops_what_is_not_finite():
    nan, inf = float("nan"), float("inf")
    boxes = [[0, 0, 1, 1], [0, 0, nan, 1], [0, 0, inf, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0.5, 0.5, 0.25, 0.75]]
    outputs = ssd_outputs(boxes, [0, 0, 0, nan, -1, 0], [nan, 0.9, 0.9, 0.9, 0.9, 0.9])
    assert ssd()(outputs).boxes == ()
    outputs["scores"][0, 0] = inf
    assert ssd()(outputs).boxes == ()
    outputs["count"][:] = nan
    with pytest.raises(BackendError, match="'count' is nan"):
        ssd()(outputs)


def test_v8_by_hand():
    outputs = head_v8(
        [[50, 25, 20, 10, 0.1, 0.9, 0.2], [50, 25, 20, 10, 0.2, 0.2, 0.2], [10, 10, 4, 4, 0.5, 0, 0]]
    )
    expected = [("dog", 0.9, 40, 20, 20, 10), ("cat", 0.5, 8, 8, 4, 4)]
    assert places(yolo()(outputs)) == expected
    assert places(yolo()({"h": outputs["h"].transpose(0, 2, 1)})) == expected


def test_v5_multiplies_objectness():
    rows = [
        [50, 25, 20, 10, 0.5, 0.1, 0.75, 0.2],
        [50, 25, 20, 10, 0.2, 1, 1, 1],
        [50, 25, 20, 10, 0.5, 0.4, 0, 0],
    ]
    head = np.array(rows, np.float32)[None]
    assert places(yolo("yolo-v5")({"h": head})) == [("dog", 0.375, 40, 20, 20, 10)]
    assert places(yolo("yolo-v5")({"h": head.transpose(0, 2, 1)})) == [("dog", 0.375, 40, 20, 20, 10)]


def test_fractions_and_logits():
    outputs = head_v8([[0.5, 0.5, 0.2, 0.2, -1000.0, np.log(3), 0.0], [0.5, 0.5, 0.2, 0.2, -9, -9, -9]])
    (box,) = yolo(box_unit="fraction", scores="logits")(outputs).boxes
    assert (box.label, box.score) == ("dog", pytest.approx(0.75))
    assert (box.x, box.y, box.width, box.height) == pytest.approx((40, 20, 20, 10), abs=1e-4)
    head = np.array([[0.5, 0.5, 0.2, 0.2, np.log(3), -1000.0, np.log(3), 0.0]], np.float32)[None]
    (box,) = yolo("yolo-v5", box_unit="fraction", scores="logits")({"h": head}).boxes
    assert (box.label, box.score) == ("dog", pytest.approx(0.5625))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", range(7))
@pytest.mark.parametrize("scores", ["probabilities", "logits"])
def test_v8_drops_what_is_not_finite(bad, column, scores):
    rows = [[50, 25, 20, 10, 0.9, 0.8, 0.7], [10, 10, 4, 4, 0.5, 0, 0]]
    rows[0][column] = bad
    boxes = yolo(scores=scores, iou_threshold=1.0)(head_v8(rows)).boxes
    # A class that is impossible (minus infinity) leaves the others; anything else takes the candidate along.
    others = bad == float("-inf") and column >= 4
    assert [b.width for b in boxes] == ([20, 4] if others else [4])


def test_scores_above_one_are_clipped():
    (box,) = yolo()(head_v8([[50, 25, 20, 10, 1.0039, 0, 0]])).boxes
    assert box.score == 1


def test_layout_is_told_by_the_number_of_classes():
    head = np.zeros((1, 7, 9), np.float32)
    head[0, :, 0] = [50, 25, 20, 10, 0, 0, 0.5]
    assert yolo()({"h": head}).boxes[0].label == "cow"
    assert yolo(labels=())({"h": head.transpose(0, 2, 1)}).boxes[0].index == 2
    with pytest.raises(BackendError, match=r"no side is 4 \+ the number of classes, 2"):
        yolo(labels=["a", "b"])({"h": head})
    # As many candidates as numbers a candidate: each decoder's own way round.
    square = np.zeros((1, 7, 7), np.float32)
    square[0, :, 0] = [50, 25, 20, 10, 0, 0, 0.5]
    assert yolo()({"h": square}).boxes[0].index == 2
    square = np.zeros((1, 8, 8), np.float32)
    square[0, 0] = [50, 25, 20, 10, 1, 0, 0, 0.5]
    assert yolo("yolo-v5")({"h": square}).boxes[0].index == 2


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "'h' is missing: the model has none"),
        ({"h": np.zeros((2, 7, 9), np.float32)}, "its batch must be 1"),
        ({"h": np.zeros((1, 7), np.float32)}, "not three dimensions"),
        ({"h": np.zeros((1, 8, 9), np.float32)}, "no side is 4"),
    ],
)
def test_other_shapes_are_refused(outputs, message):
    with pytest.raises(BackendError, match=message):
        yolo()(outputs)


@pytest.mark.parametrize(
    ("name", "shape"), [("boxes", (1, 2, 5)), ("classes", (1, 3)), ("scores", (1, 2, 1)), ("count", (1, 2))]
)
def test_other_ssd_shapes_are_refused(name, shape):
    outputs = ssd_outputs([[0, 0, 1, 1]] * 2, [0, 0], [0.9, 0.9])
    outputs[name] = np.zeros(shape, np.float32)
    with pytest.raises(BackendError, match=name):
        ssd()(outputs)


def test_unknown_decoder():
    with pytest.raises(BackendError, match="no decoder ''"):
        yolo("")


def test_top_k_and_ties_keep_the_models_order():
    rows = [[10 * i + 5, 5, 4, 4, 0.5, 0, 0] for i in range(6)]
    assert [b.x for b in yolo(top_k=3)(head_v8(rows)).boxes] == [3, 13, 23]


def test_classes_suppress_each_other_only_when_agnostic():
    rows = [[50, 25, 20, 10, 0.9, 0, 0], [50, 25, 20, 10, 0, 0.8, 0], [51, 25, 20, 10, 0.7, 0, 0]]
    assert [b.label for b in yolo()(head_v8(rows)).boxes] == ["cat", "dog"]
    assert [b.label for b in yolo(class_agnostic=True)(head_v8(rows)).boxes] == ["cat"]
    assert len(yolo(iou_threshold=1.0)(head_v8(rows)).boxes) == 3


def test_an_overlap_equal_to_the_threshold_stays():
    corners = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float64)
    classes, scores = np.zeros(2, np.int64), np.array([0.9, 0.8])
    assert suppress(corners, classes, scores, 0.5).tolist() == [0, 1]
    assert suppress(corners, classes, scores, 0.4999).tolist() == [0]


def test_boxes_are_clipped_and_those_outside_dropped():
    placement = Preprocessing(100, 50, geometry="letterbox").placement(50, 50)  # 25 pixels of padding each side
    rows = [[25, 25, 20, 10, 0.9, 0, 0], [10, 25, 10, 10, 0.9, 0, 0], [90, 48, 4, 4, 0.8, 0, 0]]
    assert places(yolo()(head_v8(rows), placement, (50, 50))) == [("cat", 0.9, 0, 20, 10, 10)]
    # Without the frame's size: to what the model has seen.
    assert places(yolo()(head_v8(rows), placement)) == [("cat", 0.9, 0, 20, 10, 10)]


def test_an_input_of_unknown_size():
    row = head_v8([[50, 25, 2000, 10, 0.9, 0, 0]])
    assert yolo(size=None)(row).boxes[0].width == 2000
    assert yolo(size=None, box_unit="fraction")(head_v8([[0.5, 0.5, 2, 1, 0.9, 0, 0]])).boxes[0].width == 1
    placement = Preprocessing(100, 50).placement(50, 50)
    assert yolo(size=None)(row, placement, (50, 50)).boxes[0].width == 50
    with pytest.raises(FrameError, match="size of the model's input"):
        yolo(size=None, box_unit="fraction")(row, placement, (50, 50))


@settings(max_examples=80, deadline=None)
@given(
    geometry=st.sampled_from(GEOMETRIES),
    frame=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    size=st.tuples(st.integers(1, 640), st.integers(1, 640)),
    box=st.tuples(*[st.floats(0, 1)] * 4),
    unit=st.sampled_from(["pixels", "fraction"]),
)
@example("letterbox", (1, 1), (1, 513), (0.0, 1.0, 0.0, 0.4872779621923039), "pixels")
def test_there_and_back(geometry, frame, size, box, unit):
    """A box of the frame, put into the input as its pixels are, comes back where it was."""
    placement = Preprocessing(size[0], size[1], geometry=geometry).placement(*frame)
    x, y, width, height = placement.crop
    left, right = x + width * min(box[0], box[1]), x + width * max(box[0], box[1])
    top, bottom = y + height * min(box[2], box[3]), y + height * max(box[2], box[3])
    if right - left < 0.01 * width or bottom - top < 0.01 * height:
        return
    ratio = placement.size[0] / width, placement.size[1] / height
    x0, x1 = ((v - x) * ratio[0] + placement.offset[0] for v in (left, right))
    y0, y1 = ((v - y) * ratio[1] + placement.offset[1] for v in (top, bottom))
    row = np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, 0.9, 0, 0])
    if unit == "fraction":
        row[:4] /= [*size, *size]
    (found,) = yolo(size=size, box_unit=unit)(head_v8([row]), placement, frame).boxes
    there = (found.x, found.y, found.x + found.width, found.y + found.height)
    # The head is float32: its pixels of the input, padding included, are exact to a few parts in ten million.
    rounding = 3e-7 * max(size) / min(ratio)
    assert there == pytest.approx((left, top, right, bottom), abs=1e-5 * max(frame) + rounding)


def slow_overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slow_suppress(corners, classes, scores, threshold, agnostic, limit):
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        rivals = [k for k in kept if agnostic or classes[k] == classes[i]]
        if len(kept) < limit and all(slow_overlap(corners[k], corners[i]) <= threshold for k in rivals):
            kept.append(i)
    return kept


SIDE = st.integers(0, 12)
CANDIDATE = st.tuples(SIDE, SIDE, st.integers(1, 8), st.integers(1, 8), st.integers(0, 2), st.integers(0, 5))


@settings(max_examples=200, deadline=None)
@given(
    found=st.lists(CANDIDATE, max_size=30),
    threshold=st.sampled_from([0.0, 0.25, 0.45, 0.5, 1.0]),
    agnostic=st.booleans(),
    limit=st.integers(1, 30),
)
def test_suppression_is_the_reference(found, threshold, agnostic, limit):
    corners = [(x, y, x + w, y + h) for x, y, w, h, _, _ in found]
    classes, scores = [c for *_, c, _ in found], [s / 5 for *_, s in found]
    kept = suppress(
        np.array(corners, np.float64).reshape(-1, 4),
        np.array(classes, np.int64),
        np.array(scores),
        threshold,
        class_agnostic=agnostic,
        limit=limit,
    )
    assert kept.tolist() == slow_suppress(corners, classes, scores, threshold, agnostic, limit)


@pytest.mark.parametrize("limit", [5, 400])
@pytest.mark.parametrize("count", [16, 17, 256, 257, 400])
def test_suppression_of_many_boxes(count, limit):
    random = np.random.RandomState(count)
    corner = random.randint(0, 40, (count, 2))
    corners = np.concatenate([corner, corner + random.randint(1, 8, (count, 2))], axis=1).astype(np.float64)
    classes, scores = random.randint(0, 2, count), random.randint(0, 9, count) / 10
    kept = suppress(corners, classes, scores, 0.3, limit=limit)
    expected = slow_suppress(corners.tolist(), classes.tolist(), scores.tolist(), 0.3, agnostic=False, limit=limit)
    assert kept.tolist() == expected


@settings(max_examples=80, deadline=None)
@given(found=st.lists(CANDIDATE, min_size=1, max_size=20), shift=st.integers(0, 19))
def test_the_whole_decoder_is_the_reference(found, shift):
    """Halves of a pixel are exact in float32, so the answers are equal, not close."""
    rows = np.zeros((len(found), 7))
    for i, (x, y, w, h, c, s) in enumerate(found):
        rows[i, :4], rows[i, 4 + c] = (x + w / 2, y + h / 2, w, h), s / 8
    keep = [i for i, f in enumerate(found) if f[5] / 8 >= 0.25]
    corners = [(f[0], f[1], f[0] + f[2], f[1] + f[3]) for f in found]
    best = slow_suppress(
        [corners[i] for i in keep],
        [found[i][4] for i in keep],
        [found[i][5] / 8 for i in keep],
        0.45,
        agnostic=False,
        limit=100,
    )
    expected = tuple(
        Box(found[i][4], LABELS[found[i][4]], found[i][5] / 8, *(float(v) for v in found[i][:4]))
        for i in (keep[k] for k in best)
    )
    assert yolo()(head_v8(rows)).boxes == expected


def test_json_and_headline():
    answer = Detection(
        (Box(1, "dog", 0.12345678, 1.23456, 2, 3, 4), Box(0, "", 0.1, 0, 0, 1, 1), Box(1, "dog", 0.1, 0, 0, 1, 1))
    )
    first = json.loads(json.dumps(answer.to_json()))["boxes"][0]
    assert first == {"index": 1, "label": "dog", "score": 0.123457, "x": 1.235, "y": 2, "width": 3, "height": 4}
    assert answer.headline() == "2 dog, 1 0"
    assert Detection(()).headline() == "-"
    assert Detection(()).to_json() == {"boxes": []}

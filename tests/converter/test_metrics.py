"""Metrics: values by hand, slow references, and whether a drop between two models is one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from edgeferry_converter.errors import DataError
from edgeferry_converter.metrics import (
    Agreement,
    ClassAgreement,
    KeypointAgreement,
    MeanAbsoluteError,
    MeanAveragePrecision,
    MeanIoU,
    TopK,
    TrueBox,
    agreement_for,
    metric_for,
    metrics_for,
    paired_drop,
)
from edgeferry_runtime.errors import BackendError
from edgeferry_runtime.postprocessing import TASKS, Postprocessing
from edgeferry_runtime.preprocessing import Preprocessing
from hypothesis import given, settings
from hypothesis import strategies as st

CLASSIFY = Postprocessing("classify", {"scores": "s"}, threshold=0.9, top_k=1)
REGRESS = Postprocessing("regress", {"values": "v"})
SEGMENT = Postprocessing("segment", {"mask": "m"})
DETECT = Postprocessing("detect", {"head": "h"}, decoder="yolo-v8", iou_threshold=1.0, threshold=0.6, top_k=1)
KEYPOINTS = Postprocessing("keypoints", {"keypoints": "k"}, decoder="movenet", threshold=0.3)
MULTIPOSE = Postprocessing("keypoints", {"keypoints": "k"}, decoder="movenet-multipose", threshold=0.3)
SIZE = (64, 64)


def scores(*values):
    return {"s": np.array([values], np.float32)}


def head(*boxes, classes=3):
    """(class, x, y, width, height, score) as a YOLO head, padded so that its layout is plain."""
    rows = np.zeros((max(len(boxes), 20), 4 + classes), np.float32)
    for i, (c, x, y, w, h, score) in enumerate(boxes):
        rows[i, :4], rows[i, 4 + c] = (x + w / 2, y + h / 2, w, h), score
    return {"h": rows.T[None]}


def mean_average_precision(*images, labels=("a", "b", "c")):
    """Of (boxes found, true boxes) an image."""
    metric = MeanAveragePrecision(DETECT, labels, SIZE)
    for found, true in images:
        metric.add(head(*found), [TrueBox(*box) for box in true], Preprocessing(*SIZE).placement(*SIZE), SIZE)
    return metric


# Classification


def test_top_k():
    top_1, top_5 = metrics_for(CLASSIFY)
    assert (top_1.name, top_5.name, top_1.better) == ("top-1", "top-5", "higher")
    for label, values in ((1, (0, 1, 0, 0, 0, 0, 0)), (6, (6, 5, 4, 3, 2, 1, 0)), (4, (6, 5, 4, 3, 2, 1, 0))):
        for metric in (top_1, top_5):
            metric.add(scores(*values), np.int64(label))
    assert top_1.per_sample.tolist() == [1, 0, 0]
    assert top_1.per_sample.dtype == np.float32
    assert top_1.value() == pytest.approx(1 / 3)
    assert top_5.value() == pytest.approx(2 / 3)


def test_ties_go_to_the_first_class():
    metric = TopK(CLASSIFY, 1)
    metric.add(scores(0.5, 0.5), 0)
    metric.add(scores(0.5, 0.5), 1)
    assert metric.per_sample.tolist() == [1, 0]


def test_binary_models_have_two_classes():
    metric = TopK(Postprocessing("classify", {"scores": "s"}, scores="binary-logit"), 1)
    metric.add(scores(2.0), 1)
    metric.add(scores(2.0), 0)
    assert metric.value() == 0.5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.integers(0, 8), st.integers(1, 6))
def test_top_k_is_the_reference(values, label, k):
    label = label % len(values)
    metric = TopK(CLASSIFY, k)
    metric.add(scores(*values), label)
    best = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert metric.value() == (label in best)


@pytest.mark.parametrize("label", [-1, 3, 1.0, True, "1", None])
def test_labels_that_are_no_class(label):
    with pytest.raises(DataError, match="is no class: the model has 0 to 2"):
        TopK(CLASSIFY, 1).add(scores(1, 2, 3), label)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_metrics(name):
    of_task = {p.task: p for p in (CLASSIFY, REGRESS, SEGMENT, DETECT, KEYPOINTS)}
    declared = of_task.get(name, Postprocessing(name))
    metric = metric_for(declared, ["a", "b"], SIZE)
    assert len(metric) == 0
    with pytest.raises(DataError, match="has no value"):
        metric.value()
    kinds = {"classify": ClassAgreement, "keypoints": KeypointAgreement}
    assert type(agreement_for(declared)) is kinds.get(name, Agreement)
    labelled = name not in ("keypoints", "embed", "raw")
    assert bool(metrics_for(declared, ["a", "b"], SIZE)) is labelled


def test_class_agreement():
    metric = agreement_for(CLASSIFY)
    metric.add(scores(0.2, 0.8), scores(0.4, 0.6))
    metric.add(scores(0.8, 0.2), scores(0.4, 0.6))
    assert metric.value() == 0.5
    with pytest.raises(DataError, match="has 2 classes, the float model 3"):
        metric.add(scores(1, 2), scores(1, 2, 3))


# Regression and raw outputs


def test_mean_absolute_error():
    metric = metric_for(REGRESS)
    assert metric.better == "lower"
    metric.add({"v": np.array([[1.0, 3.0]], np.float32)}, [0.0, 5.0])
    metric.add({"v": np.array([[1.0, 3.0]], np.float32)}, np.array([1.0, 4.0]))
    assert metric.per_sample.tolist() == [1.5, 0.5]
    assert metric.value() == 1
    single = MeanAbsoluteError(REGRESS)
    single.add({"v": np.array([[2.0]], np.float32)}, 5.0)
    assert single.value() == 3


@pytest.mark.parametrize("label", [[1.0], [1.0, np.nan], [[1.0, 2.0]], []])
def test_labels_that_are_no_vector(label):
    with pytest.raises(DataError, match="must hold 2 finite values"):
        MeanAbsoluteError(REGRESS).add({"v": np.zeros((1, 2), np.float32)}, label)


def test_agreement_by_hand():
    metric = Agreement()
    metric.add(
        {"a": np.array([[3.0, 4.0]]), "b": np.zeros((1, 2))}, {"a": np.array([[4.0, 3.0]]), "b": np.zeros((1, 2))}
    )
    assert metric.per_sample.tolist() == [pytest.approx((24 / 25 + 1) / 2)]
    assert metric.max_error == 1
    metric.add({"a": np.array([[1.0, 0.0]])}, {"a": np.array([[0.0, 0.0]])})
    metric.add({"a": np.array([[1.0, 1.0]])}, {"a": np.array([[-1.0, -1.0]])})
    assert metric.per_sample.tolist()[1:] == [0, -1]
    assert metric.max_error == 2


@pytest.mark.parametrize(
    ("outputs", "label", "error", "message"),
    [
        ({"a": np.ones((1, 2))}, {"b": np.ones((1, 2))}, DataError, "cannot be compared"),
        ({}, {}, DataError, "cannot be compared"),
        ({"a": np.ones((1, 2))}, {"a": np.ones((1, 3))}, DataError, r"is \[1, 2\], the float model's \[1, 3\]"),
        ({"a": np.full((1, 2), np.nan)}, {"a": np.ones((1, 2))}, BackendError, "NaN"),
    ],
)
def test_outputs_that_cannot_be_compared(outputs, label, error, message):
    with pytest.raises(error, match=message):
        Agreement().add(outputs, label)


# Keypoints


def pose(*rows):
    """(y, x, score) a keypoint."""
    return {"k": np.array(rows, np.float32)[None, None]}


def test_keypoints_near_the_float_models():
    metric = metric_for(KEYPOINTS)
    true = pose((0.5, 0.5, 0.9), (0.2, 0.2, 0.3), (0.9, 0.9, 0.29))  # the last is not judged
    metric.add(true, true)
    metric.add(pose((0.5, 0.54, 0.1), (0.2, 0.26, 0.9), (0, 0, 0)), true)
    metric.add(pose((0.54, 0.54, 0.9), (0.2, 0.2, 0.9), (0, 0, 0)), true)  # 0.057 apart
    assert (metric.name, metric.better, len(metric)) == ("PCK@0.05", "higher", 3)
    assert metric.value() == pytest.approx(4 / 6)
    assert metric.weighted(np.array([[2.0, 0, 0], [0, 1, 0]])).tolist() == [1, 0.5]


def test_keypoints_without_anybody():
    metric = agreement_for(KEYPOINTS)
    metric.add(pose((0.5, 0.5, 0.9)), pose((0.5, 0.5, 0.1)))
    with pytest.raises(DataError, match="has no value: no sample has anything to judge by"):
        metric.value()
    metric.add(pose((0.5, 0.5, 0.9)), pose((0.5, 0.5, 0.9)))
    assert metric.value() == 1


def test_poses_may_change_places():
    def poses(*rows):
        return {"k": np.array([[[y, x, 0.9, y, x, 0.9, 0, 0, 1, 1, score] for y, x, score in rows]], np.float32)}

    metric = agreement_for(MULTIPOSE)
    metric.add(
        poses((0.2, 0.2, 0.81), (0.8, 0.8, 0.8), (0, 0, 0)),
        poses((0.8, 0.8, 0.8), (0.2, 0.2, 0.79), (0.5, 0.5, 0.1)),
    )
    assert metric.value() == 1
    metric.add(poses((0.2, 0.2, 0.8), (0, 0, 0.0), (0, 0, 0)), poses((0.8, 0.8, 0.8), (0.2, 0.2, 0.7), (0, 0, 0)))
    assert metric.value() == 0.75


def test_keypoints_of_another_number():
    with pytest.raises(DataError, match=r"poses are \[1, 1, 2\], the float model's \[1, 2, 2\]"):
        agreement_for(KEYPOINTS).add(pose((0, 0, 1)), pose((0, 0, 1), (0, 0, 1)))


# Segmentation


def mask_outputs(mask, classes=3):
    return {"m": np.eye(classes, dtype=np.float32)[np.array(mask)][None]}


def test_mean_iou_by_hand():
    metric = metric_for(SEGMENT)
    # Class 0: 2 of 3; class 1: 2 of 4; class 2 does not occur; one pixel is not judged.
    metric.add(mask_outputs([[0, 0, 1, 1, 1]]), np.array([[0, 0, 0, 1, 255]], np.uint8))
    metric.add(mask_outputs([[1, 0]]), np.array([[1, 1]], np.uint8))
    assert metric.value() == pytest.approx((2 / 4 + 2 / 4) / 2)
    assert metric.per_sample is None


def test_mean_iou_judges_the_frame():
    placement = Preprocessing(4, 4, geometry="center-crop").placement(8, 4)
    metric = MeanIoU(SEGMENT, [], (4, 4))
    true = np.repeat(np.array([[2, 2, 0, 0, 1, 1, 2, 2]], np.uint8), 4, axis=0)  # the model sees the middle
    metric.add(mask_outputs([[0, 0, 1, 1]] * 4), true, placement, (8, 4))
    assert metric.value() == 1


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((2, 2)), "whole numbers"),
        (np.zeros(4, np.uint8), "whole numbers"),
        (np.zeros((0, 4), np.uint8), "whole numbers"),
        (np.full((2, 2), 3, np.uint8), "holds class 3, the model has 0 to 2"),
        (np.full((2, 2), -1), "class -1"),
    ],
)
def test_labels_that_are_no_mask(mask, message):
    with pytest.raises(DataError, match=message):
        MeanIoU(SEGMENT).add(mask_outputs([[0, 1]]), mask)


def test_nothing_to_judge():
    metric = MeanIoU(SEGMENT)
    metric.add(mask_outputs([[0, 1]]), np.full((1, 2), 255, np.uint8))
    with pytest.raises(DataError, match="mean IoU has no value"):
        metric.value()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=8), min_size=1))
def test_mean_iou_is_the_reference(images):
    metric = MeanIoU(SEGMENT)
    for pixels in images:
        metric.add(mask_outputs([[p for p, _ in pixels]]), np.array([[t for _, t in pixels]], np.uint8))
    pixels = [pixel for image in images for pixel in image]
    ious = []
    for c in range(3):
        either = sum(c in pixel for pixel in pixels)
        if either:
            ious.append(sum(pixel == (c, c) for pixel in pixels) / either)
    assert metric.value() == pytest.approx(sum(ious) / len(ious))


# Detection

A = (0, 0, 0, 10, 10)  # class, x, y, width, height
B = (0, 20, 20, 10, 10)
C = (1, 40, 40, 10, 10)


def test_perfect_and_empty():
    assert mean_average_precision(([(*A, 0.9), (*B, 0.2), (*C, 0.8)], [A, B, C])).value() == 1
    assert mean_average_precision(([], [A])).value() == 0
    with pytest.raises(DataError, match="no value"):
        mean_average_precision(([(*A, 0.9)], [])).value()


def test_average_precision_by_hand():
    # In order: hit (1/1), miss (1/2), hit (2/3); the miss after the last hit costs nothing.  Recall 1/3, 2/3.
    found = [(*A, 0.9), (0, 50, 0, 5, 5, 0.8), (*B, 0.7), (0, 50, 20, 5, 5, 0.6)]
    third = (0, 40, 40, 10, 10)
    assert mean_average_precision((found, [A, B, third])).value() == pytest.approx((1 + 2 / 3) / 3)


def test_precision_counts_from_its_best_later_value():
    # miss, hit, hit: precisions 0, 1/2, 2/3, so both hits count 2/3.
    found = [(0, 50, 0, 5, 5, 0.9), (*A, 0.8), (*B, 0.7)]
    assert mean_average_precision((found, [A, B])).value() == pytest.approx(2 / 3)


def test_mean_over_classes_that_are_there():
    found = [(*A, 0.9), (2, 0, 0, 10, 10, 0.9)]  # class 2 is nowhere: no part of the mean
    assert mean_average_precision((found, [A, C])).value() == 0.5


def test_each_truth_once_and_each_image_its_own():
    twice = [(*A, 0.9), (0, 1, 0, 10, 10, 0.8)]
    metric = mean_average_precision((twice, [A]), ([(*A, 0.7)], [A]))
    # hit, miss, hit: 1/1, 2/3.
    assert metric.value() == pytest.approx((1 + 2 / 3) / 2)
    assert mean_average_precision(([(*A, 0.9)], [B]), ([], [A])).value() == 0


def test_half_an_overlap_is_a_hit():
    assert mean_average_precision(([(0, 0, 0, 10, 5, 0.9)], [A])).value() == 1
    assert mean_average_precision(([(0, 0, 0, 10, 4.75, 0.9)], [A])).value() == 0


def test_the_bundles_threshold_is_for_showing():
    """DETECT shows one box from 0.6 on; judging takes all."""
    assert mean_average_precision(([(*A, 0.3), (*B, 0.2)], [A, B])).value() == 1


def test_boxes_are_judged_in_the_frame():
    placement = Preprocessing(*SIZE, geometry="letterbox").placement(128, 64)
    metric = MeanAveragePrecision(DETECT, ["a", "b", "c"], SIZE)
    found = head((0, 10, 16 + 5, 20, 10, 0.9))
    label = [SimpleNamespace(class_index=0, x=20, y=10, width=40, height=20)]
    metric.add(found, label, placement, (128, 64))
    assert metric.value() == 1


@pytest.mark.parametrize(
    "box", [(3, 0, 0, 1, 1), (-1, 0, 0, 1, 1), (0, 0, 0, 0, 1), (0, 0, 0, 1, -1), (0, np.nan, 0, 1, 1)]
)
def test_labels_that_are_no_box(box):
    with pytest.raises(DataError, match="true box"):
        mean_average_precision(([], [box]))


def slow_map(images):
    """Plain loops: matching, one precision-recall point a box, and the area under its upper envelope."""
    precisions = []
    for c in sorted({box[0] for _, true in images for box in true}):
        hits, truths = [], 0
        for i, (found, true) in enumerate(images):
            free = [box for box in true if box[0] == c]
            truths += len(free)
            mine = sorted((f for f in found if f[0] == c), key=lambda f: -f[5])
            for f in mine:
                best = max(free, key=lambda t: slow_overlap(f, t), default=None)
                hit = best is not None and slow_overlap(f, best) >= 0.5
                if hit:
                    free.remove(best)
                hits.append((-f[5], i, hit))
        hits.sort(key=lambda h: h[:2])
        points, found_true = [], 0
        for number, (_, _, hit) in enumerate(hits, 1):
            found_true += hit
            points.append((found_true / truths, found_true / number))
        area, recall = 0.0, 0.0
        for i, (r, _) in enumerate(points):
            area += (r - recall) * max(p for _, p in points[i:])
            recall = r
        precisions.append(area)
    return sum(precisions) / len(precisions)


def slow_overlap(a, b):
    width = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    height = min(a[2] + a[4], b[2] + b[4]) - max(a[2], b[2])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[3] * a[4] + b[3] * b[4] - shared)


PLACE = st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(0, 6), st.integers(2, 6), st.integers(2, 6))
FOUND = st.tuples(PLACE, st.integers(1, 16)).map(lambda pair: (*pair[0], pair[1] / 16))
IMAGE = st.tuples(st.lists(FOUND, max_size=8), st.lists(PLACE, max_size=5))
IMAGES = st.lists(IMAGE, min_size=1, max_size=6).filter(lambda images: any(true for _, true in images))


@settings(max_examples=150, deadline=None)
@given(IMAGES)
def test_map_is_the_reference(images):
    assert mean_average_precision(*images).value() == pytest.approx(slow_map(images))


@settings(max_examples=60, deadline=None)
@given(IMAGES, st.data())
def test_weights_are_copies_of_images(images, data):
    """The value for weights is that of a data set that holds each image so often (scores told apart)."""
    images = [
        ([(*f[:5], 0.01 + 0.9 * (i * 8 + k + 1) / 64) for k, f in enumerate(found)], true)
        for i, (found, true) in enumerate(images)
    ]
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(images), max_size=len(images)))
    drawn = [image for image, count in zip(images, weights, strict=True) for _ in range(count)]
    value = mean_average_precision(*images).weighted(np.array([weights], np.float64))[0]
    if any(true for _, true in drawn):
        assert value == pytest.approx(slow_map(drawn))
    else:
        assert np.isnan(value)


# Whether a drop is one


def top_1_of(hits):
    metric = TopK(CLASSIFY, 1)
    for hit in hits:
        metric.add(scores(0.2, 0.8), int(hit))
    return metric


def test_drop_of_equal_models_is_nothing():
    hits = np.arange(50) % 3 > 0
    assert paired_drop(top_1_of(hits), top_1_of(hits), seed=1) == (0, 0, 0)


def test_drop_has_the_textbooks_interval():
    random = np.random.default_rng(3)
    before = random.random(400) < 0.9
    after = before & (random.random(400) < 0.9)
    drop = paired_drop(top_1_of(before), top_1_of(after), seed=1)
    difference = before.astype(float) - after
    error = 1.96 * difference.std() / np.sqrt(400)
    assert drop.value == pytest.approx(difference.mean())
    assert drop.low == pytest.approx(difference.mean() - error, abs=0.006)
    assert drop.high == pytest.approx(difference.mean() + error, abs=0.006)
    assert paired_drop(top_1_of(before), top_1_of(after), seed=1) == drop
    assert paired_drop(top_1_of(after), top_1_of(before), seed=1).value == -drop.value


def test_drop_of_a_metric_where_lower_is_better():
    good, bad = MeanAbsoluteError(REGRESS), MeanAbsoluteError(REGRESS)
    for i in range(20):
        output = {"v": np.array([[float(i)]], np.float32)}
        good.add(output, [i + 1.0])
        bad.add(output, [i + 2.0 + i % 2])
    drop = paired_drop(good, bad, seed=0)
    assert drop.value == 1.5
    assert 1 < drop.low < 1.5 < drop.high < 2


def test_drop_of_map_and_iou():
    images = [([(*A, 0.9), (*B, 0.8)], [A, B])] * 20 + [([], [])] * 5
    worse = [([(*A, 0.9)], [A, B])] * 10 + images[10:]
    drop = paired_drop(mean_average_precision(*images), mean_average_precision(*worse), seed=0)
    assert drop.value == pytest.approx(0.25)
    assert 0.1 < drop.low < 0.25 < drop.high < 0.45
    good, bad = MeanIoU(SEGMENT), MeanIoU(SEGMENT)
    for i in range(20):
        good.add(mask_outputs([[0, 1]]), np.array([[0, 1]], np.uint8))
        bad.add(mask_outputs([[0, int(i % 2 == 0)]]), np.array([[0, 1]], np.uint8))
    drop = paired_drop(good, bad, seed=0)
    assert drop.value == pytest.approx(1 - (20 / 30 + 10 / 20) / 2)
    assert 0 < drop.low < drop.value < drop.high


def test_draws_without_a_true_box_say_nothing():
    images = [([(*A, 0.9)], [A]), ([], []), ([], [])]
    assert paired_drop(mean_average_precision(*images), mean_average_precision(*images), seed=0) == (0, 0, 0)


def test_blocks_do_not_change_the_value(monkeypatch):
    """With more boxes than images, so that draws and boxes are cut into blocks of their own."""
    found = [(0, 12 * i, 0, 10, 10, 0.9 - 0.1 * i) for i in range(5)]
    true = [box[:5] for box in found]
    images = [(found, true), (found[2:], true), (found[::2], true)]
    worse = [(found[1:], true), (found[3:], true), (found[::2], true[1:])]
    both = mean_average_precision(*images), mean_average_precision(*worse)
    at_once = paired_drop(*both, seed=5)
    monkeypatch.setattr("edgeferry_converter.metric.BLOCK", 40)
    in_blocks = paired_drop(*both, seed=5)
    assert in_blocks == at_once


def test_what_cannot_be_paired():
    with pytest.raises(DataError, match="top-1 cannot be compared with top-5"):
        paired_drop(TopK(CLASSIFY, 1), TopK(CLASSIFY, 5), seed=0)
    with pytest.raises(DataError, match="over 2 and 1 samples"):
        paired_drop(top_1_of([1, 1]), top_1_of([1]), seed=0)
    with pytest.raises(DataError, match="no value"):
        paired_drop(TopK(CLASSIFY, 1), TopK(CLASSIFY, 1), seed=0)

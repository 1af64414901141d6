"""Stored outputs: a task's answer from integers is the one from the real numbers, bit by bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from edgeferry_runtime.manifest import Quantization, TensorSpec
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.tasks import make_task
from edgeferry_runtime.tasks.base import Numbers, Task
from edgeferry_runtime.tasks.classify import FEW, Classify
from edgeferry_runtime.tasks.segment import Segmentation
from edgeferry_runtime.tensors import Stored, dequantize, level_values
from hypothesis import example, given, settings
from hypothesis import strategies as st

SCALES = [1 / 256, 1 / 255, 0.0037, 0.1, 1.0, 3.7]
SIZE = (64, 48)


def spec(shape, dtype="int8", scales=(0.1,), zero_points=(0,), axis=None):
    return TensorSpec("o", "o", tuple(shape), dtype, "", Quantization(tuple(scales), tuple(zero_points), axis))


@st.composite
def stored(draw, shape, axes=()):
    """Integers with scales of their own, for the whole tensor or along one of ``axes``."""
    dtype = draw(st.sampled_from(["int8", "uint8", "int16"]))
    limits = np.iinfo(dtype)
    axis = draw(st.sampled_from([None, *axes]))
    count = 1 if axis is None else shape[axis]
    scales = draw(st.lists(st.sampled_from(SCALES), min_size=count, max_size=count))
    zero_points = draw(st.lists(st.integers(int(limits.min), int(limits.max)), min_size=count, max_size=count))
    random = np.random.RandomState(draw(st.integers(0, 999)))
    # Few different levels make ties, which must be broken alike.
    low, high = draw(st.sampled_from([(limits.min, limits.max), (limits.max - 3, limits.max), (-2, 3)]))
    array = random.randint(max(low, limits.min), int(high) + 1, shape).astype(dtype)
    return Stored(array, spec(shape, dtype, scales, zero_points, axis))


def same(task: Task, outputs, *placed):
    """Both answers, equal in every bit; the one from the integers."""
    from_stored = task(outputs, *placed)
    from_real = task({name: value.real() for name, value in outputs.items()}, *placed)
    assert from_stored.to_json() == from_real.to_json()
    if isinstance(from_stored, Segmentation):
        assert from_stored.mask.dtype == from_real.mask.dtype
        assert (from_stored.mask == from_real.mask).all()
        assert from_stored.areas == from_real.areas
    else:
        assert from_stored == from_real
    return from_stored


# Tables of levels


@pytest.mark.parametrize(("dtype", "view"), [("int8", "u1"), ("uint8", "u1"), ("int16", "u2")])
def test_level_values_are_the_dequantised_ones(dtype, view):
    limits = np.iinfo(dtype)
    levels = np.arange(limits.min, limits.max + 1).astype(dtype)
    for scale, zero_point in itertools.product(SCALES, (limits.min, 3, limits.max)):
        tensor = spec(levels.shape, dtype, [scale], [zero_point])
        values = level_values(tensor)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values[levels.view(view)], dequantize(levels, tensor))


@pytest.mark.parametrize(
    "tensor",
    [
        TensorSpec("o", "o", (1, 4), "float32"),
        spec((1, 4), "int32"),
        spec((1, 2), scales=[0.1, 0.2], zero_points=[0, 0], axis=1),
        spec((1, 2), scales=[0.1, 0.1], zero_points=[0, 1], axis=1),
        spec((1, 4), scales=[1e-46]),  # all levels but a few are 0 in float32
        spec((1, 4), scales=[1e37]),  # and here some are infinite
    ],
)
def test_levels_that_cannot_stand_for_their_numbers(tensor):
    assert level_values(tensor) is None


def test_equal_scales_along_an_axis_are_one_scale():
    assert level_values(spec((1, 2), scales=[0.1, 0.1], zero_points=[4, 4], axis=1)) is not None


@settings(max_examples=60, deadline=None)
@given(stored((1, 3, 7)), st.floats(-600, 600, width=32))
def test_greater_is_told_by_levels(tensor, edge):
    numbers = Numbers(tensor.array[0].T, level_values(tensor.spec))
    real = tensor.real()[0].T
    for at in (edge, float(real[0, 0])):
        assert (numbers.greater(at, numbers.array) == (real > at)).all()


def test_integers_are_not_dequantised_whole(monkeypatch):
    """Or the equalities below would compare one path with itself."""
    monkeypatch.setattr(Stored, "real", lambda self: pytest.fail("dequantised"))
    for task, shape in ((classifier(), (1, 9)), (yolo("yolo-v8"), (1, 7, 30)), (segmenter(), (1, 4, 4, 3))):
        task({"o": Stored(np.zeros(shape, np.int8), spec(shape))})


def test_another_tensor_has_another_table():
    task = classifier()
    array = np.array([[4, 2]], np.int8)
    for scale in (0.125, 0.25, 0.125):
        assert task({"o": Stored(array, spec((1, 2), scales=[scale]))}).classes[0].score == 4 * scale


# Tasks


def classifier(**declared):
    return Classify(Postprocessing("classify", {"scores": "o"}, **declared), ["a", "b"])


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(stored((1, 1000)), stored((1, 7), axes=[1]), stored((1, 1, 1, 40), axes=[3])),
    st.sampled_from(["probabilities", "logits"]),
    st.sampled_from([1, 5, FEW, FEW + 1, 2000]),
    st.sampled_from([0.0, 0.001, 0.3, 1.0]),
)
def test_classify(tensor, kind, top_k, threshold):
    same(classifier(scores=kind, top_k=top_k, threshold=threshold), {"o": tensor})


@settings(max_examples=40, deadline=None)
@given(stored((1, 1)), st.sampled_from(["binary-probability", "binary-logit"]))
def test_classify_in_two(tensor, kind):
    same(classifier(scores=kind), {"o": tensor})


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.125, 0.3, 0.7, 1.0]), min_size=1, max_size=40),
    st.sampled_from([1, FEW, FEW + 1, 50]),
    st.sampled_from([0.0, 0.3, 0.7]),
)
@example([0.3, 0.0, 0.0], FEW, 0.0)
@example([0.3, 0.0, 0.0], FEW + 1, 0.0)
def test_the_best_classes_are_the_reference(scores, top_k, threshold):
    found = classifier(top_k=top_k, threshold=threshold)({"o": np.array([scores], np.float32)}).classes
    best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:top_k]
    # 0.7 as float32 is less than 0.7 and yet reaches a threshold of 0.7.
    assert [c.index for c in found] == [i for i in best if scores[i] >= threshold]


def yolo(decoder, labels=3, **declared):
    values = {"threshold": 0.25, "top_k": 100, "decoder": decoder, "box_unit": "fraction", **declared}
    return make_task(Postprocessing("detect", {"head": "o"}, **values), ["c"] * labels, SIZE)


@settings(max_examples=200, deadline=None)
@given(
    st.data(),
    st.sampled_from([("yolo-v8", 7), ("yolo-v5", 8)]),
    st.sampled_from(["probabilities", "logits"]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([30, 400]),  # fewer and more candidates than levels
    st.booleans(),
)
def test_detect(data, kind, scores, threshold, candidates, rows):
    decoder, numbers = kind
    shape = (1, candidates, numbers) if rows else (1, numbers, candidates)
    tensor = data.draw(stored(shape, axes=[1, 2]))
    placement = Preprocessing(*SIZE, geometry="letterbox").placement(200, 100)
    same(yolo(decoder, scores=scores, threshold=threshold), {"o": tensor}, placement, (200, 100))


def test_detect_finds_boxes_in_a_stored_head():
    head = np.full((1, 7, 500), -128, np.int8)
    head[0, :4, 77] = (-1, -1, -64, -64)  # of the input: centre 0.498, side 0.251
    head[0, 5, 77], head[0, 6, 12] = 100, -65  # 0.894 and 0.247, which stays below the threshold
    tensor = Stored(head, spec(head.shape, scales=[1 / 255], zero_points=[-128]))
    (box,) = same(yolo("yolo-v8"), {"o": tensor}).boxes
    assert (box.index, box.score) == (1, pytest.approx(228 / 255))
    assert (box.x, box.width) == (pytest.approx(64 * 95 / 255), pytest.approx(64 * 64 / 255))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_detect_ssd(data):
    outputs = {
        "boxes": data.draw(stored((1, 6, 4), axes=[2])),
        "classes": data.draw(stored((1, 6))),
        "scores": data.draw(stored((1, 6))),
        "count": data.draw(stored((1,))),
    }
    declared = Postprocessing("detect", {name: name for name in outputs}, decoder="ssd", top_k=100)
    same(make_task(declared, (), SIZE), outputs)


def segmenter(**declared):
    return make_task(Postprocessing("segment", {"mask": "o"}, **declared), (), SIZE)


@settings(max_examples=80, deadline=None)
@given(
    st.one_of(stored((1, 6, 8, 5), axes=[1, 3]), stored((1, 6, 8, 1)), stored((1, 20, 20, 1))),
    st.sampled_from(["probabilities", "logits"]),
)
def test_segment(tensor, scores):
    same(segmenter(scores=scores), {"o": tensor}, Preprocessing(*SIZE).placement(80, 60), (80, 60))


@pytest.mark.parametrize(
    ("task", "role", "shape"), [("regress", "values", (1, 4)), ("keypoints", "keypoints", (1, 1, 17, 3))]
)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_other_tasks(task, role, shape, data):
    declared = Postprocessing(task, {role: "o"}, decoder="movenet" if task == "keypoints" else "")
    same(make_task(declared, (), SIZE), {"o": data.draw(stored(shape, axes=[len(shape) - 1]))})


@pytest.mark.parametrize("name", ["raw", "embed"])
def test_answers_that_are_arrays(name):
    outputs = {"embedding": "o"} if name == "embed" else {}
    tensor = Stored(np.array([[3, 4]], np.int8), spec((1, 2), scales=[0.5, 0.25], zero_points=[1, 0], axis=1))
    task = make_task(Postprocessing(name, outputs))
    assert task({"o": tensor}).to_json() == task({"o": tensor.real()}).to_json()


def test_a_float_tensor_is_what_it_is():
    tensor = Stored(np.array([[0.25, 0.75]], np.float32), TensorSpec("o", "o", (1, 2), "float32"))
    assert classifier()({"o": tensor}).headline() == "b 75%"


def test_stored_batches_are_one():
    with pytest.raises(Exception, match="its batch must be 1"):
        classifier()({"o": Stored(np.zeros((2, 4), np.int8), spec((2, 4)))})

"""Segmentation: masks by hand, shares without padding, and the way back to the frame."""

from __future__ import annotations

import json

import numpy as np
import pytest
from edgeferry_runtime.errors import BackendError, FrameError
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import GEOMETRIES, Preprocessing
from edgeferry_runtime.tasks.segment import Area, Segment
from hypothesis import given, settings
from hypothesis import strategies as st


def segment(labels=(), size=None, scores="probabilities"):
    return Segment(Postprocessing("segment", {"mask": "m"}, scores=scores), labels, size)


def one_hot(mask, classes=4):
    return {"m": np.eye(classes, dtype=np.float32)[np.array(mask)][None]}


def test_largest_channel_first_of_equal_ones():
    output = np.array([[[0.2, 0.5, 0.5], [0.1, 0.2, 0.7]]], np.float32)
    answer = segment(["a", "b", "c"])({"m": output[None]})
    assert answer.mask.dtype == np.uint8
    assert answer.mask.tolist() == [[1, 2]]
    assert answer.areas == (Area(1, "b", 0.5), Area(2, "c", 0.5))
    assert answer.headline() == "b 50%, c 50%"


@pytest.mark.parametrize(("scores", "edge"), [("probabilities", 0.5), ("logits", 0.0), ("binary-logit", 0.0)])
def test_one_channel_is_two_classes(scores, edge):
    output = np.array([[[edge - 0.01], [edge], [edge + 0.01]]], np.float32)
    answer = segment(["ground", "thing"], scores=scores)({"m": output[None]})
    assert answer.mask.tolist() == [[0, 0, 1]]
    assert json.loads(json.dumps(answer.to_json())) == {
        "areas": [
            {"index": 0, "label": "ground", "share": 0.666667},
            {"index": 1, "label": "thing", "share": 0.333333},
        ]
    }


def test_many_classes_need_two_bytes():
    answer = segment()(one_hot([[255, 299]], 300))
    assert answer.mask.dtype == np.uint16
    assert answer.mask.tolist() == [[255, 299]]
    assert answer.outside == 65535
    assert segment()(one_hot([[0]], 255)).outside == 255
    assert segment()(one_hot([[255]], 256)).outside == 65535  # or class 255 would be "outside"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.zeros((1, 4, 4), np.float32), "not \\[1, h, w, classes\\]"),
        (np.full((1, 2, 2, 3), np.nan, np.float32), "'m' is NaN"),
        (np.zeros((2, 2, 2, 3), np.float32), "batch must be 1"),
    ],
)
def test_other_outputs_are_refused(output, message):
    with pytest.raises(BackendError, match=message):
        segment()({"m": output})


def test_padding_has_no_share():
    placement = Preprocessing(8, 8, geometry="letterbox").placement(16, 8)  # rows 2 to 5 are picture
    mask = [[0] * 8] * 2 + [[1] * 6 + [2] * 2] * 4 + [[0] * 8] * 2
    answer = segment(size=(8, 8))(one_hot(mask), placement, (16, 8))
    assert answer.areas == (Area(1, "", 0.75), Area(2, "", 0.25))
    assert answer.mask_for_frame(16, 8).tolist() == [[1] * 12 + [2] * 4] * 8
    # The same model with a mask of half the resolution.
    answer = segment(size=(8, 8))(one_hot([[0] * 4, [1, 1, 1, 2], [1, 1, 1, 2], [0] * 4]), placement, (16, 8))
    assert answer.areas == (Area(1, "", 0.75), Area(2, "", 0.25))
    assert answer.mask_for_frame(16, 8).tolist() == [[1] * 12 + [2] * 4] * 8


def test_a_picture_thinner_than_the_masks_pixels():
    placement = Preprocessing(64, 64, geometry="letterbox").placement(640, 1)
    answer = segment(size=(64, 64))(one_hot([[0, 0], [1, 2]]), placement, (640, 1))
    assert sum(area.share for area in answer.areas) == 1
    assert answer.mask_for_frame(640, 1).shape == (1, 640)
    # The picture is row 31 of 64; of three rows of the mask the middle one holds it, its centre at 32 beside it.
    answer = segment(size=(64, 64))(one_hot([[0, 0], [1, 2], [3, 3]]), placement, (640, 1))
    assert answer.areas == (Area(1, "", 0.5), Area(2, "", 0.5))


def test_what_centre_crop_cut_is_outside():
    placement = Preprocessing(4, 4, geometry="center-crop").placement(8, 4)
    answer = segment(size=(4, 4))(one_hot([[1, 2, 3, 0]] * 4), placement, (8, 4))
    assert answer.mask_for_frame(8, 4).tolist() == [[255, 255, 1, 2, 3, 0, 255, 255]] * 4
    # The frame's content at half its size.
    assert answer.mask_for_frame(4, 2).tolist() == [[255, 2, 0, 255]] * 2


def test_a_centre_on_the_edge_of_the_crop():
    placement = Preprocessing(2, 2, geometry="center-crop").placement(8, 2)  # columns 3 and 4 are seen
    answer = segment(size=(2, 2))(one_hot([[1, 2]] * 2), placement, (8, 2))
    assert answer.mask_for_frame(4, 1).tolist() == [[255, 1, 255, 255]]  # centres at 1, 3, 5, 7


def test_no_placement_stretches_the_mask():
    answer = segment()(one_hot([[1, 2]]))
    assert answer.mask_for_frame(4, 2).tolist() == [[1, 1, 2, 2]] * 2
    assert answer.mask_for_frame(2, 1).tolist() == answer.mask.tolist()


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (4, 40_000)])
def test_impossible_sizes(size):
    with pytest.raises(FrameError, match="cannot be made"):
        segment()(one_hot([[1, 2]])).mask_for_frame(*size)


@settings(max_examples=80, deadline=None)
@given(
    geometry=st.sampled_from(GEOMETRIES),
    frame=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    stride=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_mask_is_the_reference(geometry, frame, size, stride, seed):
    """Pixel by pixel with fractions: which pixel of the mask holds the centre of the frame's."""
    from fractions import Fraction

    placement = Preprocessing(size[0], size[1], geometry=geometry).placement(*frame)
    shape = (max(1, size[1] // stride), max(1, size[0] // stride))
    mask = np.random.RandomState(seed).randint(0, 4, shape)
    answer = segment(size=size)(one_hot(mask), placement, frame)

    def position(i, axis):
        inside = i + Fraction(1, 2) - placement.crop[axis]
        if not 0 <= inside < placement.crop[axis + 2]:
            return None
        place = inside * placement.size[axis] / placement.crop[axis + 2] + placement.offset[axis]
        return int(place * shape[1 - axis] / size[axis])

    columns, rows = [position(i, 0) for i in range(frame[0])], [position(i, 1) for i in range(frame[1])]
    expected = [[255 if None in (r, c) else mask[r, c] for c in columns] for r in rows]
    assert answer.mask_for_frame(*frame).tolist() == expected
    picture = [
        [mask[r, c] for c in range(shape[1]) if inside(c, 0, placement, shape, size)]
        for r in range(shape[0])
        if inside(r, 1, placement, shape, size)
    ]
    flat = [v for row in picture for v in row]
    if flat:
        assert {a.index: a.share for a in answer.areas} == {
            c: pytest.approx(flat.count(c) / len(flat)) for c in set(flat)
        }
    assert sum(a.share for a in answer.areas) == pytest.approx(1)


def inside(i, axis, placement, shape, size):
    """Whether the centre of the mask's pixel lies in the picture."""
    doubled = (2 * i + 1) * size[axis]
    begin, length = placement.offset[axis], placement.size[axis]
    return 2 * shape[1 - axis] * begin <= doubled < 2 * shape[1 - axis] * (begin + length)

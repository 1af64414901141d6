"""Drawing: every task's answer on frames of every format and size, and nothing outside of its place."""

from __future__ import annotations

import numpy as np
import pytest
from edgeferry_runtime.drawing import MASK_OPACITY, PALETTE, SKELETON, draw
from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.results import STAGES, Result
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.tasks.classify import Classification, ClassScore
from edgeferry_runtime.tasks.detect import Box, Detection
from edgeferry_runtime.tasks.embed import Embedding
from edgeferry_runtime.tasks.keypoints import COCO, Keypoint, Pose, Poses
from edgeferry_runtime.tasks.raw import Outputs
from edgeferry_runtime.tasks.regress import Regression
from edgeferry_runtime.tasks.segment import Segment

cv2 = pytest.importorskip("cv2", reason="drawing needs OpenCV")

GRAY = 90
BLACK = (0, 0, 0)


def frame(width=320, height=240, color="bgr"):
    pixels = np.full((height, width, 3), GRAY, np.uint8)
    if color == "gray":
        pixels = pixels[:, :, 0]
    elif color == "jpeg":
        pixels = cv2.imencode(".jpg", pixels)[1].ravel()
    elif color in ("i420", "nv12"):
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2YUV_I420)  # gray: U and V are alike, however they lie
    pixels.flags.writeable = False
    return Frame(pixels, color, 7, 0)


def drawn(answer, at=None):
    stages = (0.0,) * len(STAGES)
    return draw(at or frame(), Result(7, "", "m-0123456789ab", "int8", "b", 0, 0.0, 12345.0, stages, 0, answer))


def where(picture, color):
    """(rows, columns) of the pixels of exactly this colour."""
    return np.nonzero((picture == color).all(axis=2))


def box(index, x, y, width, height, label="cat", score=0.9):
    return Box(index, label, score, x, y, width, height)


def pose(*points, label=COCO.__getitem__):
    return Pose(0.9, tuple(Keypoint(i, label(i), x, y, 0.9) for i, x, y in points))


def segmentation(mask, size, classes=4, labels=(), geometry="stretch", at=(320, 240)):
    placement = Preprocessing(*size, geometry=geometry).placement(*at)
    one_hot = {"m": np.eye(classes, dtype=np.float32)[np.array(mask)][None]}
    return Segment(Postprocessing("segment", {"mask": "m"}), labels, size)(one_hot, placement, at)


ANSWERS = {
    "classify": Classification((ClassScore(1, "cat", 0.9),)),
    "detect": Detection((box(0, 40, 60, 80, 90), box(1, 200, 20, 100, 200), box(9, -5, -5, 20, 20, ""))),
    "segment": segmentation([[0, 1], [2, 3]], (64, 64)),
    "keypoints": Poses((pose((0, 50, 50), (1, 60, 40)), pose((5, 400, -3)))),
    "regress": Regression((1.5, 2.0)),
    "embed": Embedding(np.ones(4, np.float32)),
    "raw": Outputs({"a": np.ones((1, 3), np.float32)}),
    "nothing": Detection(()),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_leaves_the_frame_alone(name):
    before = frame()
    picture = drawn(ANSWERS[name], before)
    assert (picture.shape, picture.dtype) == ((240, 320, 3), np.uint8)
    assert (before.pixels == GRAY).all()
    assert len(where(picture, BLACK)[0]) > 500  # the ground of the footer
    if name != "segment":
        assert len(where(picture, GRAY)[0]) > 40_000


@pytest.mark.parametrize("color", ["rgb", "gray", "jpeg", "i420", "nv12"])
def test_frames_of_every_format(color):
    answer = Detection((box(2, 100, 100, 80, 60),))
    np.testing.assert_allclose(drawn(answer, frame(color=color)), drawn(answer), atol=2)


def test_pixels_that_are_no_frame():
    with pytest.raises(FrameError):
        drawn(ANSWERS["classify"], Frame(np.zeros(10, np.uint8), "jpeg", 0, 0))


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (64, 48), (48, 640), (224, 224), (1280, 720)])
@pytest.mark.parametrize("name", ANSWERS)
def test_frames_of_every_size(name, size):
    answer = ANSWERS[name] if name != "segment" else segmentation([[0, 1], [2, 3]], (64, 64), at=size)
    assert drawn(answer, frame(*size)).shape == (size[1], size[0], 3)


def test_a_box_is_drawn_on_its_edges():
    picture = drawn(Detection((box(3, 40, 100, 200, 80),)))
    for y, x in ((100, 180), (180, 140), (140, 40), (140, 240)):
        assert tuple(picture[y, x]) == PALETTE[3]
    assert (picture[110:170, 50:230] == GRAY).all()


def test_labels_stand_above_their_boxes_and_not_on_each_other():
    apart = drawn(Detection((box(0, 40, 100, 100, 80),)))
    rows, columns = where(apart[:99], PALETTE[0])
    assert rows.max() == 98  # it ends where the box begins
    assert columns.min() == 40
    # Three boxes in one place: as much of each label's ground is to be seen as of one that is alone.
    picture = drawn(Detection(tuple(box(i, 40, 100, 100, 80) for i in range(3))))
    alone = len(where(apart, PALETTE[0])[0])
    edges = 2 * (100 + 80)
    for i in range(3):
        assert len(where(picture, PALETTE[i])[0]) >= alone - 1.5 * edges


def test_labels_stay_in_the_picture_with_their_score():
    long = Detection((box(0, 300, 100, 20, 80, "a label longer than the picture is wide " * 3),))
    _, columns = where(drawn(long)[:99], PALETTE[0])
    assert columns.max() == 319
    assert 130 < columns.max() - columns.min() < 320 * 0.6 + 1
    # The score is what stands at the end of it, so another score draws other pixels there and nowhere else.
    other = Detection((box(0, 300, 100, 20, 80, long.boxes[0].label, 0.18),))
    _, changed = np.nonzero((drawn(other)[:99] != drawn(long)[:99]).any(axis=2))
    assert 280 < changed.min() <= changed.max() < 320


def test_texts_lie_on_top_of_shapes():
    picture = drawn(Detection((box(0, 1, 1, 318, 238),)))
    assert tuple(picture[1, 4]) == BLACK  # the headline's ground, where the box's edge would be
    assert where(picture, PALETTE[0])[0].min() > 0  # its label, too, is elsewhere
    assert tuple(picture[239, 60]) == BLACK  # and the footer's


def test_the_best_box_is_on_top():
    picture = drawn(Detection((box(0, 40, 100, 100, 80), box(1, 90, 100, 100, 80))))
    assert tuple(picture[180, 120]) == PALETTE[0]


def test_a_mask_is_mixed_with_the_picture():
    answer = segmentation([[0] * 8, [1] * 8], (64, 64), labels=["sky", "road"])
    picture = drawn(answer)
    for y, index in ((110, 0), (130, 1)):
        expected = [GRAY * (1 - MASK_OPACITY) + MASK_OPACITY * c for c in PALETTE[index]]
        assert picture[y, 300].tolist() == pytest.approx(expected, abs=1)
    # The legend: a line a class in its own colour.
    grounds = [where(picture[:, :160], PALETTE[i])[0] for i in (0, 1)]
    assert grounds[0].max() < grounds[1].min()


def test_what_the_model_did_not_see_has_no_colour():
    answer = segmentation([[1] * 8] * 8, (64, 64), geometry="center-crop")
    picture = drawn(answer)
    assert (picture[100:200, :39] == GRAY).all()
    assert (picture[100:200, 41:279] != GRAY).any(axis=2).all()


def test_a_legend_ends_above_the_footer():
    mask = np.arange(32).reshape(4, 8)
    picture = drawn(segmentation(mask, (64, 64), 32), frame(320, 100))
    footer = where(picture, BLACK)[0].max()
    assert footer == 99
    legend = max(where(picture[:, :20], color)[0].max(initial=0) for color in PALETTE)
    assert 60 < legend < 90


def test_keypoints_and_their_skeleton():
    together = Poses((pose((5, 100, 100), (7, 100, 200)),))
    assert (5, 7) in SKELETON
    picture = drawn(together)
    for y in (100, 150, 200):
        assert picture[y, 100].tolist() == pytest.approx(PALETTE[0], abs=20)  # edges are smoothed
    picture = drawn(Poses((pose((5, 100, 100), (7, 100, 200), label=str),)))  # not a person's
    assert picture[100, 100].tolist() == pytest.approx(PALETTE[0], abs=20)
    assert (picture[110:190] == GRAY).all()
    assert all(0 <= i < len(COCO) for pair in SKELETON for i in pair)


def test_positions_no_picture_has():
    far = 1e300
    np.testing.assert_array_equal(drawn(Poses((pose((0, far, -far)),)))[60:200], GRAY)
    drawn(Detection((box(0, -far, -far, 3 * far, 3 * far),)))


def test_a_headline_wider_than_the_picture_is_cut():
    picture = drawn(Regression(tuple([1.5] * 3), ("a name " * 40, "b", "c")))
    assert where(picture[:30], BLACK)[1].max() <= 319
    assert where(picture[:10, 250:], BLACK)[1].size

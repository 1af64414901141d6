"""Keypoints and embeddings: poses by hand, the way back to the frame, vectors and their angles."""

from __future__ import annotations

import json

import numpy as np
import pytest
from edgeferry_runtime.errors import BackendError, FrameError
from edgeferry_runtime.fields import Fields
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import GEOMETRIES, Preprocessing
from edgeferry_runtime.tasks.embed import Embed
from edgeferry_runtime.tasks.keypoints import COCO, Keypoint, Keypoints, Pose, Poses
from hypothesis import given, settings
from hypothesis import strategies as st

SIZE = (200, 100)


def keypoints(decoder="movenet", labels=(), size=SIZE, **changes):
    declared = {"threshold": 0.3, "decoder": decoder, **changes}
    return Keypoints(Postprocessing("keypoints", {"keypoints": "k"}, **declared), labels, size)


def single(*rows):
    return {"k": np.array(rows, np.float32)[None, None]}


def pose_row(score, *points):
    """A row of the multipose layout; its box is not read."""
    return [number for point in points for number in point] + [0, 0, 1, 1, score]


def places(answer):
    return [[(p.label, p.x, p.y) for p in pose.keypoints] for pose in answer.poses]


def test_a_pose_by_hand():
    outputs = single((0.5, 0.25, 0.75), (0, 1, 0.25), (1, 0, 0.5))
    answer = keypoints(labels=["a", "b", "c"])(outputs)
    assert answer == Poses((Pose(0.5, (Keypoint(0, "a", 50, 50, 0.75), Keypoint(2, "c", 0, 100, 0.5))),))
    assert keypoints(labels=["a", "b", "c"])({"k": outputs["k"][0]}) == answer  # [1, K, 3]
    assert json.loads(json.dumps(answer.to_json())) == {
        "poses": [
            {
                "score": 0.5,
                "keypoints": [
                    {"index": 0, "label": "a", "x": 50, "y": 50, "score": 0.75},
                    {"index": 2, "label": "c", "x": 0, "y": 100, "score": 0.5},
                ],
            }
        ]
    }
    assert answer.headline() == "1 pose, 50%"


def test_nobody():
    answer = keypoints()(single(*[(0.5, 0.5, 0.29)] * 17))
    assert answer == Poses(())
    assert (answer.headline(), answer.to_json()) == ("-", {"poses": []})


def test_seventeen_keypoints_are_cocos():
    (pose,) = keypoints()(single(*[(0.5, 0.5, 0.9)] * 17)).poses
    assert tuple(p.label for p in pose.keypoints) == COCO
    assert len(set(COCO)) == 17
    (pose,) = keypoints()(single(*[(0.5, 0.5, 0.9)] * 4)).poses
    assert {p.label for p in pose.keypoints} == {""}


def test_multipose():
    rows = [
        pose_row(0.4, (0.5, 0.5, 0.9), (0, 0, 0.9)),
        pose_row(0.2, (0.5, 0.5, 0.9), (0, 0, 0.9)),  # no pose
        pose_row(0.8, (0.1, 0.2, 0.9), (0, 0, 0.1)),
        pose_row(0.9, (0.1, 0.2, 0.1), (0, 0, 0.1)),  # no keypoint
        pose_row(0.4, (0.5, 0.25, 0.3), (0, 0, 0.1)),
    ]
    answer = keypoints("movenet-multipose", ["a", "b"])({"k": np.array([rows], np.float32)})
    assert [pose.score for pose in answer.poses] == [pytest.approx(s) for s in (0.8, 0.4, 0.4)]
    # The threshold as float32, or a score of 0.3 would be less than a threshold of 0.3.
    assert places(answer)[1:] == [[("a", 100, 50), ("b", 0, 0)], [("a", 50, 50)]]
    assert answer.headline() == "3 poses, 80%"
    best = keypoints("movenet-multipose", ["a", "b"], top_k=1)({"k": np.array([rows], np.float32)})
    assert best.poses == answer.poses[:1]


def test_multipose_as_movenet_writes_it():
    rows = np.zeros((1, 6, 56), np.float32)
    rows[0, 2, 2:51:3] = 0.5  # scores of all keypoints
    rows[0, 2, 55] = 1.0039  # a dequantised score may be a step above 1
    (pose,) = keypoints("movenet-multipose")({"k": rows}).poses
    assert (len(pose.keypoints), pose.score) == (17, 1)


def test_a_low_score_of_one_pose_does_not_hide_its_keypoints():
    (pose,) = keypoints()(single((0, 0, 0.9), (0, 0, 0), (0, 0, 0), (0, 0, 0))).poses
    assert (len(pose.keypoints), pose.score) == (1, pytest.approx(0.225))


@settings(max_examples=80, deadline=None)
@given(
    geometry=st.sampled_from(GEOMETRIES),
    frame=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    size=st.tuples(st.integers(1, 640), st.integers(1, 640)),
    point=st.tuples(st.floats(-0.2, 1.2), st.floats(-0.2, 1.2)),
)
def test_there_and_back(geometry, frame, size, point):
    """A point of the frame, put into the input as its pixels are, comes back where it was."""
    placement = Preprocessing(size[0], size[1], geometry=geometry).placement(*frame)
    x, y, width, height = placement.crop
    there = x + width * point[0], y + height * point[1]
    fractions = [
        ((there[axis] - placement.crop[axis]) * placement.size[axis] / placement.crop[axis + 2]
         + placement.offset[axis]) / size[axis]
        for axis in (0, 1)
    ]  # fmt: skip
    (pose,) = keypoints(size=size)(single((fractions[1], fractions[0], 0.9)), placement, frame).poses
    assert (pose.keypoints[0].x, pose.keypoints[0].y) == pytest.approx(there, abs=1e-5 * max(frame) + 1e-3)


def test_an_input_of_unknown_size():
    outputs = single((0.5, 0.25, 0.9))
    assert places(keypoints(size=None)(outputs)) == [[("", 0.25, 0.5)]]
    with pytest.raises(FrameError, match="size of the model's input"):
        keypoints(size=None)(outputs, Preprocessing(100, 50).placement(50, 50), (50, 50))


@pytest.mark.parametrize(
    ("decoder", "outputs", "message"),
    [
        ("movenet", {}, "'k' is missing"),
        ("movenet", {"k": np.zeros((1, 17, 4), np.float32)}, r"has shape \[1, 17, 4\], which 'movenet' does not"),
        ("movenet", {"k": np.zeros((1, 2, 17, 3), np.float32)}, r"has shape \[1, 2, 17, 3\]"),
        ("movenet", {"k": np.full((1, 17, 3), np.nan, np.float32)}, "is NaN or infinite"),
        ("movenet", {"k": np.full((1, 17, 3), np.inf, np.float32)}, "is NaN or infinite"),
        ("movenet", {"k": np.zeros((1, 16, 3), np.float32)}, "has 16 keypoints for 17 labels"),
        ("movenet-multipose", {"k": np.zeros((1, 17, 3), np.float32)}, "'movenet-multipose' does not"),
        ("movenet-multipose", {"k": np.zeros((1, 6, 57), np.float32)}, "'movenet-multipose' does not"),
        ("movenet-multipose", {"k": np.zeros((1, 6, 5), np.float32)}, "'movenet-multipose' does not"),
    ],
)
def test_other_outputs_are_refused(decoder, outputs, message):
    with pytest.raises(BackendError, match=message):
        keypoints(decoder, COCO)(outputs)


def test_unknown_decoder():
    with pytest.raises(BackendError, match="no decoder 'ssd'"):
        keypoints("ssd")


@pytest.mark.parametrize(
    ("task", "outputs", "decoder", "fits"),
    [
        ("keypoints", {"keypoints": "k"}, "movenet", True),
        ("keypoints", {"keypoints": "k"}, "movenet-multipose", True),
        ("keypoints", {"keypoints": "k"}, "", False),
        ("keypoints", {"keypoints": "k"}, "yolo-v8", False),
        ("detect", {"head": "k"}, "movenet", False),
        ("detect", {"head": "k"}, "yolo-v5", True),
        ("embed", {"embedding": "k"}, "", True),
        ("embed", {"values": "k"}, "", None),
    ],
)
def test_declarations_are_checked(task, outputs, decoder, fits):
    fields = Fields({"task": task, "outputs": outputs, "decoder": decoder, "normalize": False})
    declared = Postprocessing.read(fields)
    problems = "\n".join(fields.finish())
    assert ("does not fit" in problems) is (fits is False)
    assert ("must name embedding" in problems) is (fits is None)
    assert declared.normalize is False


# Embeddings


def embed(*values, **declared):
    return Embed(Postprocessing("embed", {"embedding": "e"}, **declared))({"e": np.array([values], np.float32)})


def test_an_embedding_has_length_one():
    answer = embed(3, 4)
    assert answer.vector.dtype == np.float32
    assert answer.vector.tolist() == pytest.approx([0.6, 0.8])
    assert answer.headline() == "2 numbers"
    assert json.loads(json.dumps(embed(1, 2, 2).to_json())) == {"embedding": [0.333333, 0.666667, 0.666667]}
    assert embed(3e30, 4e30).vector.tolist() == pytest.approx([0.6, 0.8])
    with pytest.raises(ValueError, match="read-only"):
        answer.vector[0] = 1


def test_normalisation_is_declared():
    assert embed(3, 4, normalize=False).vector.tolist() == [3, 4]


def test_embeddings_of_frames_stay_apart():
    memory = np.array([[1, 0]], np.float32)
    task = Embed(Postprocessing("embed", {"embedding": "e"}, normalize=False))
    first = task({"e": memory})
    memory[:] = 5
    assert first.vector.tolist() == [1, 0]


def test_similarity():
    assert embed(1, 0).similarity(embed(0, 1)) == 0
    assert embed(1, 0).similarity(embed(-2, 0)) == -1
    assert embed(3, 4).similarity(embed(4, 3)) == pytest.approx(24 / 25)
    assert embed(3, 4, normalize=False).similarity(np.array([8, 6])) == pytest.approx(24 / 25)
    assert embed(0, 0).similarity(embed(1, 0)) == 0
    assert embed(0.1, 0.7, 0.3).similarity(embed(0.1, 0.7, 0.3)) <= 1
    assert embed(0, 0).vector.tolist() == [0, 0]


@pytest.mark.parametrize("other", [np.zeros(3), np.zeros((1, 2)), np.array([np.nan, 1]), np.array([np.inf, 1])])
def test_vectors_that_cannot_be_compared(other):
    with pytest.raises(FrameError, match="an embedding of 2 cannot be compared"):
        embed(1, 2).similarity(other)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_embeddings_must_be_finite(bad):
    with pytest.raises(BackendError, match="'e' is NaN or infinite"):
        embed(1, bad)


def test_embeddings_are_one_vector():
    task = Embed(Postprocessing("embed", {"embedding": "e"}))
    assert task({"e": np.ones((1, 1, 1, 4), np.float32)}).vector.shape == (4,)
    with pytest.raises(BackendError, match=r"has shape \[1, 2, 2\], not \[1, values\]"):
        task({"e": np.ones((1, 2, 2), np.float32)})

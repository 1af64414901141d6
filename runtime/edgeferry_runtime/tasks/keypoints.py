"""Keypoints: the joints of people (or the corners of things), in pixels of the frame.

Layouts, and where they are written down:

movenet             [1, 1, K, 3] or [1, K, 3], one pose: y, x as fractions of the model's input, score.  Source:
                    MoveNet.SinglePose's model card, tfhub.dev/google/movenet/singlepose/lightning.
movenet-multipose   [1, P, 3 K + 5], a row a pose ([1, 6, 56]): K times y, x, score, then ymin, xmin, ymax, xmax
                    of its box and the pose's score.  Source: MoveNet.MultiPose's model card,
                    tfhub.dev/google/movenet/multipose/lightning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, NamedTuple, Sequence

import numpy as np

from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Placement
from edgeferry_runtime.tasks.base import Answer, Task, Tensor, to_frame, unusable

__all__ = ["COCO", "Candidates", "Keypoint", "Keypoints", "Pose", "Poses"]

# The keypoints of a person in COCO's order, which MoveNet keeps.  Source: cocodataset.org, keypoint annotations
# (person_keypoints_val2017.json, categories[0].keypoints).
COCO = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip


@dataclass(frozen=True)
class Keypoint:
    """One point of a pose.

    Attributes:
        index, label: which it is, label "" where it has none.
        x, y: in pixels of the frame; a model may place a point outside of it.
        score: 0 to 1.
    """

    index: int
    label: str
    x: float
    y: float
    score: float


@dataclass(frozen=True)
class Pose:
    """One person or thing.

    Attributes:
        score: the model's for the pose; where it gives none, the mean over all its keypoints.
        keypoints: those that reach the threshold, in the model's order; at least one.
    """

    score: float
    keypoints: tuple[Keypoint, ...]


@dataclass(frozen=True)
class Poses(Answer):
    """The poses of one frame, best first; empty when nothing reaches the threshold."""

    poses: tuple[Pose, ...]

    def to_json(self) -> dict[str, Any]:
        """Scores with 6 digits, pixels with 3: ``{"poses": [{"score", "keypoints": [{"index", ...}]}]}``."""
        return {
            "poses": [
                {
                    "score": round(pose.score, 6),
                    "keypoints": [
                        {
                            "index": point.index,
                            "label": point.label,
                            "x": round(point.x, 3),
                            "y": round(point.y, 3),
                            "score": round(point.score, 6),
                        }
                        for point in pose.keypoints
                    ],
                }
                for pose in self.poses
            ]
        }

    def confidence(self) -> float | None:
        return self.poses[0].score if self.poses else 0.0

    def headline(self) -> str:
        """How many, and how sure the best is: "2 poses, 87%"."""
        if not self.poses:
            return "-"
        count = len(self.poses)
        return "{} {}, {:.0%}".format(count, "pose" if count == 1 else "poses", self.poses[0].score)


class Candidates(NamedTuple):
    """All that a model says, before the threshold.

    Attributes:
        points: float64 [poses, K, 2], x and y as fractions of the model's input.
        scores: float32 [poses, K], at most 1.
        poses: float32 [poses], at most 1.
    """

    points: np.ndarray
    scores: np.ndarray
    poses: np.ndarray


class Keypoints(Task):
    """Decodes a pose estimator's output; arguments as in :class:`Task`, labels one a keypoint.

    Keypoints below the threshold are left out, then poses without any and, where the model scores poses, those
    below the threshold.  Without labels 17 keypoints are COCO's.

    Raises:
        BackendError: the decoder is unknown.
    """

    def __init__(
        self, declared: Postprocessing, labels: Sequence[str] = (), input_size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(declared, labels, input_size)
        decoders = {"movenet": _single, "movenet-multipose": _multiple}
        if declared.decoder not in decoders:
            raise unusable(declared.outputs.get("keypoints", ""), "has no decoder {!r}".format(declared.decoder))
        self._decode = decoders[declared.decoder]
        self._threshold = float(np.float32(declared.threshold))  # in the precision of what it is compared with

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> Poses:
        """The poses of one frame.

        Args:
            outputs: by name; shapes as the module's docstring has them.
            placement: how the frame went into the model's input; None leaves the points in pixels of the input
                (in fractions of it where its size is not known).
            frame_size: points are not clipped to it; ignored.

        Raises:
            BackendError: the output is missing, has another shape, holds NaN or infinity, or its number of
                keypoints is not the labels'.
            FrameError: the input's size is not known, so that fractions of it cannot be mapped back.
        """
        if placement is not None and self.input_size is None:
            raise FrameError("keypoints cannot be mapped to the frame without the size of the model's input")
        found = self.candidates(outputs)
        count = found.scores.shape[1]
        if self.labels and len(self.labels) != count:
            raise unusable(
                self.declared.outputs["keypoints"],
                "has {} keypoints for {} labels".format(count, len(self.labels)),
            )
        labels = self.labels or (COCO if count == len(COCO) else ("",) * count)
        points = found.points * np.array(self.input_size or (1, 1), np.float64)
        if placement is not None:
            points = to_frame(points, placement)
        poses = []
        for i in np.argsort(-found.poses, kind="stable"):
            kept = self._keypoints(labels, points[i].tolist(), found.scores[i].tolist())
            if kept:
                poses.append(Pose(float(found.poses[i]), kept))
        if self.declared.decoder == "movenet-multipose":
            poses = [pose for pose in poses if pose.score >= self._threshold]
        return Poses(tuple(poses[: self.declared.top_k]))

    def candidates(self, outputs: Mapping[str, Tensor]) -> Candidates:
        """All poses in the model's order; arguments and errors as for a call."""
        name = self.declared.outputs["keypoints"]
        output = self.output(outputs, "keypoints")
        if not np.isfinite(output).all():
            raise unusable(name, "is NaN or infinite")
        found = self._decode(output)
        if found is None:
            shape = [1, *output.shape]
            raise unusable(name, "has shape {}, which {!r} does not decode".format(shape, self.declared.decoder))
        return found

    def _keypoints(
        self, labels: Sequence[str], points: Sequence[Sequence[float]], scores: Sequence[float]
    ) -> tuple[Keypoint, ...]:
        return tuple(
            Keypoint(i, label, x, y, score)
            for i, (label, (x, y), score) in enumerate(zip(labels, points, scores))
            if score >= self._threshold
        )


def _single(output: np.ndarray) -> Candidates | None:
    if output.ndim == 3 and output.shape[0] == 1:
        output = output[0]
    if output.ndim != 2 or output.shape[1] != 3:
        return None
    points, scores = _points(output[None])
    return Candidates(points, scores, scores.mean(axis=1))


def _multiple(output: np.ndarray) -> Candidates | None:
    if output.ndim != 2 or output.shape[1] < 8 or output.shape[1] % 3 != 2:
        return None
    points, scores = _points(output[:, :-5].reshape(len(output), -1, 3))
    return Candidates(points, scores, np.minimum(output[:, -1], np.float32(1)))


def _points(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y, x, score as float32 [poses, K, 3] -> points and scores as in ``Candidates``."""
    # A dequantised score may be a step above 1.
    return rows[:, :, [1, 0]].astype(np.float64), np.minimum(rows[:, :, 2], np.float32(1))

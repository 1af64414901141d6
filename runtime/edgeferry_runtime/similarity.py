"""How much two answers to one frame say the same, and how sure an answer is of itself: one number a task.

classify    1 where the best class is the same (or both have none), else 0
detect      F1 of the boxes: of one class and with an intersection over union of at least 0.5, best scores first,
            as PASCAL VOC matches them (Everingham et al., Int. J. Comput. Vis. 88, 2010)
segment     1 where at least 95 % of the pixels have the same class, else 0
keypoints   1 where at least 90 % of the points are at the same place, else 0: within 0.1 of the larger side of the
            pose, PCK of Yang and Ramanan, IEEE Trans. PAMI 35, 2013
regress     1 where no value differs by more than 5 % of the larger of the two, else 0
embed, raw  1 where the cosine of the angle is at least 0.95 (embed) or 0.99 (all outputs of raw), else 0
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Sequence

import numpy as np

from edgeferry_runtime.tasks.base import Answer
from edgeferry_runtime.tasks.classify import Classification
from edgeferry_runtime.tasks.detect import Box, Detection
from edgeferry_runtime.tasks.embed import Embedding
from edgeferry_runtime.tasks.keypoints import Pose, Poses
from edgeferry_runtime.tasks.raw import Outputs
from edgeferry_runtime.tasks.regress import Regression
from edgeferry_runtime.tasks.segment import Segmentation

__all__ = ["Similarity", "compare_answers"]

IOU = 0.5
SAME_PIXELS = 0.95
SAME_POINTS, POINT_DISTANCE = 0.9, 0.1
VALUE_TOLERANCE = 0.05
EMBEDDING_COSINE, RAW_COSINE = 0.95, 0.99
TINY = 1e-6  # values below it are zero


class Similarity(NamedTuple):
    """What two answers have in common.

    Attributes:
        agreement: 0 to 1, as the module's docstring has it.
        difference: 0 to 1, to rank frames by how much they tell: of two frames without agreement, the one whose
            answers were surer is worth more.
    """

    agreement: float
    difference: float


def compare_answers(current: Answer, candidate: Answer) -> Similarity:
    """The similarity of two answers to one frame; none where they are of different tasks."""
    compare = _COMPARE.get(type(current))
    if compare is None or type(candidate) is not type(current):
        return Similarity(0.0, 1.0)
    return compare(current, candidate)


def _classes(a: Classification, b: Classification) -> Similarity:
    first, second = (c.classes[0] if c.classes else None for c in (a, b))
    sure = [c.score if c else 0.0 for c in (first, second)]
    if (first.index if first else None) == (second.index if second else None):
        return Similarity(1.0, abs(sure[0] - sure[1]) / 2)
    return Similarity(0.0, 0.5 + sum(sure) / 4)


def _boxes(a: Detection, b: Detection) -> Similarity:
    if not a.boxes and not b.boxes:
        return Similarity(1.0, 0.0)
    left = list(b.boxes)
    lonely = []  # scores of boxes without a partner
    for box in a.boxes:
        partner = max((o for o in left if o.index == box.index), key=lambda o: _iou(box, o), default=None)
        if partner is not None and _iou(box, partner) >= IOU:
            left.remove(partner)
        else:
            lonely.append(box.score)
    lonely += [box.score for box in left]
    total = len(a.boxes) + len(b.boxes)
    return Similarity((total - len(lonely)) / total, sum(lonely) / total)


def _iou(a: Box, b: Box) -> float:
    width = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    height = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / (a.width * a.height + b.width * b.height - common)


def _masks(a: Segmentation, b: Segmentation) -> Similarity:
    here, there = a.mask, b.mask
    if here.shape != there.shape:  # models of two resolutions: each at the frame's, or the larger one's
        width, height = a.frame_size or (max(here.shape[1], there.shape[1]), max(here.shape[0], there.shape[0]))
        here, there = (s.mask_for_frame(min(width, 512), min(height, 512)) for s in (a, b))
    same = float(np.mean(here == there))
    return Similarity(float(same >= SAME_PIXELS), 1 - same)


def _poses(a: Poses, b: Poses) -> Similarity:
    total = sum(len(pose.keypoints) for poses in (a, b) for pose in poses.poses)
    if not total:
        return Similarity(1.0, 0.0)
    left = list(b.poses)
    matched = 0
    for pose in a.poses:
        counts = [_same_points(pose, other) for other in left]
        most = max(counts, default=0)
        if most:
            matched += most
            del left[counts.index(most)]
    share = 2 * matched / total
    return Similarity(float(share >= SAME_POINTS), 1 - share)


def _same_points(a: Pose, b: Pose) -> int:
    xs, ys = [p.x for p in a.keypoints], [p.y for p in a.keypoints]
    reach = POINT_DISTANCE * max(max(xs) - min(xs), max(ys) - min(ys), 1.0)
    there = {p.index: p for p in b.keypoints}
    pairs = [(p, there[p.index]) for p in a.keypoints if p.index in there]
    return sum(1 for p, q in pairs if (p.x - q.x) ** 2 + (p.y - q.y) ** 2 <= reach * reach)


def _values(a: Regression, b: Regression) -> Similarity:
    if len(a.values) != len(b.values):
        return Similarity(0.0, 1.0)
    worst = max((abs(x - y) / max(abs(x), abs(y), TINY) for x, y in zip(a.values, b.values)), default=0.0)
    return Similarity(float(worst <= VALUE_TOLERANCE), min(1.0, worst / 2))


def _embeddings(a: Embedding, b: Embedding) -> Similarity:
    return _by_cosine([a.vector], [b.vector], EMBEDDING_COSINE)


def _outputs(a: Outputs, b: Outputs) -> Similarity:
    if {name: array.shape for name, array in a.outputs.items()} != {n: v.shape for n, v in b.outputs.items()}:
        return Similarity(0.0, 1.0)
    names = sorted(a.outputs)
    return _by_cosine([a.outputs[n] for n in names], [b.outputs[n] for n in names], RAW_COSINE)


def _by_cosine(a: Sequence[np.ndarray], b: Sequence[np.ndarray], threshold: float) -> Similarity:
    x, y = (np.concatenate([np.zeros(0), *(v.ravel().astype(np.float64) for v in side)]) for side in (a, b))
    if x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return Similarity(0.0, 1.0)
    lengths = float(np.sqrt(x.dot(x))) * float(np.sqrt(y.dot(y)))
    cosine = float(x.dot(y)) / lengths if lengths else float(np.array_equal(x, y))
    return Similarity(float(cosine >= threshold), min(1.0, max(0.0, (1 - cosine) / 2)))


_COMPARE: dict[type, Callable[[Any, Any], Similarity]] = {
    Classification: _classes,
    Detection: _boxes,
    Segmentation: _masks,
    Poses: _poses,
    Regression: _values,
    Embedding: _embeddings,
    Outputs: _outputs,
}

"""Detection: candidates into the boxes that remain, in pixels of the frame.

    decode -> threshold -> to the frame -> non-maximum suppression -> clip to the frame

Layouts, and where they are written down:

ssd         the outputs of TFLite_Detection_PostProcess: boxes [1, N, 4] (ymin, xmin, ymax, xmax as fractions of
            the model's input), classes [1, N], scores [1, N], count [1]; rows from ``count`` on are filler.
            Source: tensorflow/lite/kernels/detection_postprocess.cc.
yolo-v5     [1, N, 5 + C] or its transpose: x, y (the centre), width, height, objectness, C class scores; a
            box's score is objectness * class score.  Source: Ultralytics YOLOv5, utils/general.py,
            ``non_max_suppression``.
yolo-v8     [1, 4 + C, N] or its transpose: x, y (the centre), width, height, C class scores, no objectness.
            Source: Ultralytics, utils/ops.py, ``non_max_suppression``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Mapping, NamedTuple, Sequence

import numpy as np

from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Placement
from edgeferry_runtime.tasks.base import Answer, Numbers, Task, Tensor, to_frame, unusable

__all__ = ["Box", "Detect", "Detection", "suppress"]

BLOCK, FEW = 16, 256  # boxes that suppression looks at together, while no more than FEW are left


@dataclass(frozen=True)
class Box:
    """One thing that was found.

    Attributes:
        index, label: its class, label "" without labels.
        score: 0 to 1.
        x, y: upper left corner, in pixels of the frame.
        width, height: in pixels of the frame, greater than 0.
    """

    index: int
    label: str
    score: float
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Detection(Answer):
    """The boxes of one frame, best first; empty when none reaches the threshold."""

    boxes: tuple[Box, ...]

    def to_json(self) -> dict[str, Any]:
        """Scores with 6 digits, pixels with 3: ``{"boxes": [{"index", "label", "score", "x", ...}]}``."""
        return {
            "boxes": [
                {
                    "index": box.index,
                    "label": box.label,
                    "score": round(box.score, 6),
                    "x": round(box.x, 3),
                    "y": round(box.y, 3),
                    "width": round(box.width, 3),
                    "height": round(box.height, 3),
                }
                for box in self.boxes
            ]
        }

    def confidence(self) -> float | None:
        return self.boxes[0].score if self.boxes else 0.0

    def headline(self) -> str:
        """How many of what, the class of the best box first: "2 person, 1 dog"."""
        counts = Counter(box.label or str(box.index) for box in self.boxes)
        return ", ".join("{} {}".format(count, label) for label, count in counts.items()) or "-"


class _Candidates(NamedTuple):
    """What reached the threshold.

    Attributes:
        corners: float64 [n, 4], left, top, right, bottom in pixels of the model's input.
        classes: int64 [n].
        scores: float32 [n], 0 to 1.
    """

    corners: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


class Detect(Task):
    """Decodes a detector's outputs; arguments as in :class:`Task`.

    A candidate takes its best class alone.  One whose box or score is not finite, that has no area, or that
    lies wholly outside the frame (in the padding, say) is dropped.  Boxes of equal score keep the order of the
    model's output, so that one output has one answer on every machine.

    Raises:
        BackendError: the decoder is unknown.
    """

    def __init__(
        self, declared: Postprocessing, labels: Sequence[str] = (), input_size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(declared, labels, input_size)
        decoders = {"ssd": self._ssd, "yolo-v5": self._yolo_v5, "yolo-v8": self._yolo_v8}
        if declared.decoder not in decoders:
            raise unusable(
                next(iter(declared.outputs.values()), ""), "has no decoder {!r}".format(declared.decoder)
            )
        self._decode = decoders[declared.decoder]
        self._fractions = declared.decoder == "ssd" or declared.box_unit == "fraction"

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> Detection:
        """The boxes of one frame.

        Args:
            outputs: by name; shapes as the module's docstring has them.
            placement: how the frame went into the model's input; None leaves the boxes in pixels of the input
                (in fractions of it where its size is not known).
            frame_size: (width, height) in pixels, what boxes are clipped to; without it they are clipped to
                what the model has seen.

        Raises:
            BackendError: an output is missing or has another shape.
            FrameError: the input's size is not known, so that fractions of it cannot be mapped back.
        """
        if self._fractions and placement is not None and self.input_size is None:
            raise FrameError("boxes cannot be mapped to the frame without the size of the model's input")
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are dropped, not warned of
            found = self._decode(outputs)
        corners = found.corners if placement is None else to_frame(found.corners, placement)
        clipped = self._clip(corners, placement, frame_size)
        with np.errstate(invalid="ignore"):
            keep = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
        keep &= np.isfinite(corners).all(axis=1)
        corners, clipped, classes, scores = (a[keep] for a in (corners, clipped, found.classes, found.scores))
        best = suppress(
            corners,
            classes,
            scores,
            self.declared.iou_threshold,
            class_agnostic=self.declared.class_agnostic,
            limit=self.declared.top_k,
        )
        return Detection(tuple(self._box(classes[i], scores[i], clipped[i]) for i in best))

    def _box(self, index: int, score: float, corners: np.ndarray) -> Box:
        left, top, right, bottom = corners.tolist()
        return Box(int(index), self.label(int(index)), float(score), left, top, right - left, bottom - top)

    def _clip(
        self, corners: np.ndarray, placement: Placement | None, frame_size: tuple[int, int] | None
    ) -> np.ndarray:
        if frame_size is not None and placement is not None:
            x, y, width, height = 0, 0, frame_size[0], frame_size[1]
        elif placement is not None:
            x, y, width, height = placement.crop
        else:
            if self.input_size is None and not self._fractions:
                return corners  # pixels of an input whose size nobody knows: nothing to clip to
            x, y = 0, 0
            width, height = self.input_size or (1, 1)
        clipped: np.ndarray = np.clip(corners, [x, y, x, y], [x + width, y + height, x + width, y + height])
        return clipped

    def _ssd(self, outputs: Mapping[str, Tensor]) -> _Candidates:
        boxes, classes, scores, count = (
            self.output(outputs, role) for role in ("boxes", "classes", "scores", "count")
        )
        names = self.declared.outputs
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise unusable(names["boxes"], "has shape {}, not [1, N, 4]".format([1, *boxes.shape]))
        for role, array in (("classes", classes), ("scores", scores)):
            if array.shape != boxes.shape[:1]:
                raise unusable(names[role], "has shape {}, not [1, {}]".format([1, *array.shape], len(boxes)))
        if count.size != 1 or not np.isfinite(count).all():
            raise unusable(names["count"], "is {}, not one number".format(count.tolist()))
        used = int(np.clip(np.rint(count), 0, len(boxes)))
        scores = self._scores(scores[:used])
        keep = np.isfinite(scores) & (scores >= self.declared.threshold)
        keep &= (classes[:used] >= 0) & (classes[:used] < 2**31)  # false for NaN, too
        corners = boxes[:used][keep][:, [1, 0, 3, 2]].astype(np.float64)
        indices = np.rint(classes[:used][keep]).astype(np.int64)
        return _Candidates(self._to_pixels(corners), indices, scores[keep])

    def _yolo_v5(self, outputs: Mapping[str, Tensor]) -> _Candidates:
        head = self._head(outputs, 5, rows_first=True)
        objectness = head.apply(self._scores, head.array[4])
        # No class score exceeds 1: what objectness alone does not lift over the threshold, nothing will.
        maybe = np.flatnonzero(objectness >= self.declared.threshold)
        of_classes = head.array[5:, maybe]
        scores = objectness[maybe] * head.apply(self._scores, of_classes.max(axis=0))
        found = np.flatnonzero(scores >= self.declared.threshold)
        corners = self._corners(head.real(head.array[:4, maybe[found]]))
        return _Candidates(corners, of_classes[:, found].argmax(axis=0).astype(np.int64), scores[found])

    def _yolo_v8(self, outputs: Mapping[str, Tensor]) -> _Candidates:
        head = self._head(outputs, 4, rows_first=False)
        scores = head.apply(self._scores, head.array[4:].max(axis=0))
        found = np.flatnonzero(scores >= self.declared.threshold)
        classes = head.array[4:, found].argmax(axis=0).astype(np.int64)
        return _Candidates(self._corners(head.real(head.array[:4, found])), classes, scores[found])

    def _head(self, outputs: Mapping[str, Tensor], extra: int, rows_first: bool) -> Numbers:
        """The head as [extra + classes, N], a view; ``rows_first`` decides where both ways round fit."""
        head, values = self.numbers(outputs, "head")
        name = self.declared.outputs["head"]
        if head.ndim != 2:
            raise unusable(name, "has shape {}, not three dimensions".format([1, *head.shape]))
        if self.labels:
            fits = [side == extra + len(self.labels) for side in head.shape]
        else:  # more candidates than numbers a candidate, in every model there is
            fits = [side == min(head.shape) and side > extra for side in head.shape]
        if not any(fits):
            raise unusable(
                name,
                "has shape {}: no side is {} + the number of classes{}".format(
                    [1, *head.shape], extra, ", {}".format(len(self.labels)) if self.labels else ""
                ),
            )
        upright = fits[0] and not (fits[1] and rows_first)
        return Numbers(head if upright else head.T, values)

    def _scores(self, scores: np.ndarray) -> np.ndarray:
        """Scores from 0 to 1; NaN, which reaches no threshold, where a number is not finite."""
        finite = np.where(np.isfinite(scores), scores, np.float32(np.nan))
        if self.declared.scores == "logits":
            return 0.5 * (1 + np.tanh(0.5 * finite))  # the logistic function, without overflow
        clipped: np.ndarray = np.minimum(finite, np.float32(1))  # dequantised ones may be a step above
        return clipped

    def _corners(self, rows: np.ndarray) -> np.ndarray:
        """x, y (centre), width, height as float [4, n] -> corners in pixels of the input, float64 [n, 4]."""
        x, y, width, height = rows.astype(np.float64)
        corners = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
        return self._to_pixels(corners) if self._fractions else corners

    def _to_pixels(self, corners: np.ndarray) -> np.ndarray:
        """Fractions of the input -> its pixels; unchanged where its size is not known."""
        scaled: np.ndarray = corners * np.array((self.input_size or (1, 1)) * 2, np.float64)
        return scaled


def suppress(
    corners: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
    iou_threshold: float,
    *,
    class_agnostic: bool = False,
    limit: int = 10_000,
) -> np.ndarray:
    """Greedy non-maximum suppression: the best box stays, what overlaps it by more than the threshold goes.

    Source: ``NonMaxSuppressionSingleClassHelper`` in tensorflow/lite/kernels/detection_postprocess.cc; overlap
    is intersection over union, and a box whose overlap equals the threshold stays.

    Args:
        corners: float64 [n, 4], left, top, right, bottom; every area greater than 0.
        classes: int [n].
        scores: float [n].
        iou_threshold: 0 to 1; at 1 nothing is suppressed.
        class_agnostic: boxes of different classes suppress each other as well.
        limit: how many boxes stay, at most.

    Returns:
        int64 [m], the boxes that stay, best first; of equal scores the earlier one.
    """
    order = np.argsort(-scores, kind="stable")
    left, top, right, bottom = corners[order].T
    classes = classes[order]
    areas = (right - left) * (bottom - top)
    kept: list[int] = []
    alive = np.arange(len(order))
    while len(alive) and len(kept) < limit:
        # Several of the best at once cost little more than one, while the others are few.
        block = alive[: BLOCK if len(alive) <= FEW else 1]
        best = block[:, None]
        width = np.minimum(right[best], right[alive]) - np.maximum(left[best], left[alive])
        height = np.minimum(bottom[best], bottom[alive]) - np.maximum(top[best], top[alive])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        overlaps = shared / (areas[best] + areas[alive] - shared) > iou_threshold
        if not class_agnostic:
            overlaps &= classes[best] == classes[alive]
        gone = np.zeros(len(alive), bool)
        for i, index in enumerate(block.tolist()):
            if not gone[i]:
                kept.append(index)
                gone |= overlaps[i]
        alive = alive[len(block) :][~gone[len(block) :]]
    survivors: np.ndarray = order[np.array(kept[:limit], np.int64)]
    return survivors

"""Mean average precision: how well a detector finds what is there."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Placement
from edgeferry_runtime.tasks.detect import Detect

from edgeferry_converter.errors import DataError
from edgeferry_converter.metric import Metric, Outputs, blocks, mean_where

__all__ = ["LabelledBox", "MeanAveragePrecision", "TrueBox"]

IOU_MATCH = 0.5
# As pycocotools and Ultralytics judge: nearly all boxes count, the best hundred of an image.
JUDGE_THRESHOLD = 0.001
JUDGE_BOXES = 100


class LabelledBox(Protocol):
    """What the labels of a detector's sample must have: a class and a place in pixels of the frame.

    ``x`` and ``y`` are the upper left corner; width and height are greater than 0.
    """

    @property
    def class_index(self) -> int: ...
    @property
    def x(self) -> float: ...
    @property
    def y(self) -> float: ...
    @property
    def width(self) -> float: ...
    @property
    def height(self) -> float: ...


@dataclass(frozen=True)
class TrueBox:
    """One object that is there, see :class:`LabelledBox`."""

    class_index: int
    x: float
    y: float
    width: float
    height: float


class MeanAveragePrecision(Metric):
    """mAP at an intersection over union of 0.5; the label is a sequence of :class:`LabelledBox`.

    In each image and class the boxes take, best score first, the free true box they overlap most, of equal
    ones the first; that is a hit where the overlap is at least 0.5, and each true box is hit once.  Over all
    images, in the order of the scores, AP = sum over the hits of (recall gained) * (best precision from there
    on), and mAP is the mean over the classes that have true boxes.  Sources: matching as in pycocotools,
    ``COCOeval.evaluateImg``; area under the curve at all points as in PASCAL VOC since 2010 (Everingham et al.,
    2015, section 4.1), where COCO samples it at 101.

    The bundle's threshold and top_k are for showing; here the best ``JUDGE_BOXES`` boxes from
    ``JUDGE_THRESHOLD`` on count.
    """

    name = "mAP@0.5"

    def __init__(
        self, declared: Postprocessing, labels: Sequence[str] = (), input_size: tuple[int, int] | None = None
    ) -> None:
        judged = replace(declared, threshold=min(declared.threshold, JUDGE_THRESHOLD), top_k=JUDGE_BOXES)
        self._detect = Detect(judged, labels, input_size)
        self._classes = len(labels)
        self._images = 0
        # One entry a true box, and one a box that was found.
        self._true_image, self._true_class = array("q"), array("q")
        self._image, self._class, self._score, self._hit = array("q"), array("q"), array("d"), array("b")

    def __len__(self) -> int:
        return self._images

    def add(
        self,
        outputs: Outputs,
        label: Sequence[LabelledBox],
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> None:
        true = _corners(label)
        true_classes = np.array([box.class_index for box in label], np.int64)
        if (true_classes < 0).any() or (self._classes and (true_classes >= self._classes).any()):
            raise DataError(f"class {true_classes.tolist()} of a true box is not one of {self._classes}")
        boxes = self._detect(outputs, placement, frame_size).boxes
        free = np.ones(len(true), bool)
        for box in boxes:
            corners = np.array([box.x, box.y, box.x + box.width, box.y + box.height])
            overlaps = np.where(free & (true_classes == box.index), _overlaps(corners, true), -1.0)
            best = int(overlaps.argmax()) if len(true) else -1
            hit = best >= 0 and bool(overlaps[best] >= IOU_MATCH)
            if hit:
                free[best] = False
            self._hit.append(hit)
            self._image.append(self._images)
            self._class.append(box.index)
            self._score.append(box.score)
        self._true_class.extend(true_classes.tolist())
        self._true_image.extend([self._images] * len(true))
        self._images += 1

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        image, classes, hit = (np.array(a, np.int64) for a in (self._image, self._class, self._hit))
        order = np.argsort(-np.array(self._score, np.float64), kind="stable")
        true_image, true_class = np.array(self._true_image, np.int64), np.array(self._true_class, np.int64)
        precisions, present = [], []
        for index in np.unique(true_class):
            truths = weights[:, true_image[true_class == index]].sum(axis=1)
            of_class = order[classes[order] == index]
            hits = hit[of_class].astype(bool)
            last = int(np.flatnonzero(hits)[-1]) + 1 if hits.any() else 0  # misses after it change nothing
            areas = _average_precision(weights, image[of_class[:last]], hits[:last])
            precisions.append(areas / np.where(truths > 0, truths, 1))
            present.append(truths > 0)
        if not precisions:
            return np.full(len(weights), np.nan)
        return mean_where(np.stack(precisions, axis=1), np.stack(present, axis=1))


def _corners(boxes: Sequence[LabelledBox]) -> np.ndarray:
    """float64 [n, 4], left, top, right, bottom."""
    places = np.array([[box.x, box.y, box.width, box.height] for box in boxes], np.float64).reshape(-1, 4)
    if not np.isfinite(places).all() or (places[:, 2:] <= 0).any():
        raise DataError(f"a true box has no area or no place: {places.tolist()!r:.120}")
    return np.concatenate([places[:, :2], places[:, :2] + places[:, 2:]], axis=1)


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with others: [4], [n, 4] -> [n]."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    return shared / ((box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared)


def _average_precision(weights: np.ndarray, image: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Sum over the hits of weight * best precision from there on, [n]; boxes in the order of their scores."""
    areas = np.zeros(len(weights))
    for rows in blocks(len(weights), len(image)):
        counts = weights[rows][:, image]
        found = np.cumsum(counts * hits, axis=1)
        everything = np.cumsum(counts, axis=1)
        precision = found / np.where(everything > 0, everything, 1)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        areas[rows] = (counts * hits * best).sum(axis=1)
    return areas

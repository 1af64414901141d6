"""Metrics: how good a model's answers on held-out samples are, and whether another model's are worse.

A metric takes one sample after another and keeps a few numbers of each, so that its value can be computed for
any weights of the samples: all ones give the value itself, how often a bootstrap draws each gives its spread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Placement
from edgeferry_runtime.tasks.base import unusable
from edgeferry_runtime.tasks.classify import Classify
from edgeferry_runtime.tasks.detect import Detect
from edgeferry_runtime.tasks.regress import Regress
from edgeferry_runtime.tasks.segment import Segment

from edgeferry_converter.errors import DataError

__all__ = [
    "Agreement",
    "ClassAgreement",
    "Drop",
    "LabelledBox",
    "MeanAbsoluteError",
    "MeanAveragePrecision",
    "MeanIoU",
    "Metric",
    "TopK",
    "TrueBox",
    "agreement_for",
    "metric_for",
    "metrics_for",
    "paired_drop",
]

RESAMPLES = 2000  # 50 of them beyond each end of a 95 % interval
BLOCK = 1 << 22  # numbers computed at a time: 32 MB, however many samples there are
IOU_MATCH = 0.5
# As pycocotools and Ultralytics judge: nearly all boxes count, the best hundred of an image.
JUDGE_THRESHOLD = 0.001
JUDGE_BOXES = 100
IGNORED = 255  # label of pixels that nobody judges, as in PASCAL VOC

Outputs = Mapping[str, np.ndarray]


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


class Metric(ABC):
    """Base of all metrics.

    Attributes:
        name: as people call it, "top-1".
        better: which way is better.
    """

    name: str
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    @abstractmethod
    def __len__(self) -> int:
        """How many samples were added."""

    @abstractmethod
    def add(
        self,
        outputs: Outputs,
        label: Any,
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> None:
        """Judge one sample.

        Args:
            outputs: the model's, real numbers with batch 1, by name.
            label: what is true; the subclass says of which kind.
            placement, frame_size: how the frame went into the model's input, where labels are in its pixels.

        Raises:
            BackendError: the outputs are not what the bundle declares, or not finite.
            DataError: the label does not serve.
        """

    @abstractmethod
    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """The value over samples that count as often as ``weights`` says.

        Args:
            weights: float64 [n, samples], not negative.

        Returns:
            float64 [n]; NaN where the weighted samples define none.
        """

    @property
    def per_sample(self) -> np.ndarray | None:
        """float32 [samples] where the value is their mean, else None."""
        return None

    def value(self) -> float:
        """The metric over all samples.

        Raises:
            DataError: there are no samples, or nothing in them to judge by.
        """
        value = float(self.weighted(np.ones((1, len(self))))[0]) if len(self) else np.nan
        if np.isnan(value):
            raise DataError(f"{self.name} has no value: no sample has anything to judge by")
        return value


class _Mean(Metric):
    """A metric that is the mean of one score a sample."""

    def __init__(self) -> None:
        self._scores = array("f")

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def per_sample(self) -> np.ndarray:
        return np.array(self._scores, np.float32)

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        return weights @ self.per_sample.astype(np.float64) / weights.sum(axis=1)


class TopK(_Mean):
    """Share of samples whose class is among the ``k`` best; the label is the class's index.

    Of classes with equal scores the lower index is the better one, as in the classifier's answers.
    """

    def __init__(self, declared: Postprocessing, k: int) -> None:
        super().__init__()
        self.name = f"top-{k}"
        self._k = k
        self._classify = Classify(declared)

    def add(
        self,
        outputs: Outputs,
        label: int,
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> None:
        scores = self._classify.scores(outputs)
        if isinstance(label, bool) or not isinstance(label, int | np.integer) or not 0 <= label < len(scores):
            raise DataError(f"{label!r} is no class: the model has 0 to {len(scores) - 1}")
        better = (scores > scores[label]).sum() + (scores[:label] == scores[label]).sum()
        self._scores.append(float(better < self._k))


class ClassAgreement(_Mean):
    """Share of samples whose best class is that of the float model; the label is the float model's outputs."""

    name = "class agreement"

    def __init__(self, declared: Postprocessing) -> None:
        super().__init__()
        self._classify = Classify(declared)

    def add(
        self,
        outputs: Outputs,
        label: Outputs,
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> None:
        here, there = self._classify.scores(outputs), self._classify.scores(label)
        if len(here) != len(there):
            raise DataError(f"the model has {len(here)} classes, the float model {len(there)}")
        self._scores.append(float(here.argmax() == there.argmax()))


class MeanAbsoluteError(_Mean):
    """Mean of |value - true value|, first over a sample's values; the label is a float vector [k]."""

    name = "MAE"
    better = "lower"

    def __init__(self, declared: Postprocessing) -> None:
        super().__init__()
        self._regress = Regress(declared)

    def add(
        self,
        outputs: Outputs,
        label: Any,
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> None:
        found = np.array(self._regress(outputs).values)
        true = np.atleast_1d(np.asarray(label, np.float64))
        if true.shape != found.shape or not np.isfinite(true).all():
            raise DataError(f"a label must hold {len(found)} finite values, not {true.tolist()!r:.60}")
        self._scores.append(float(np.abs(found - true).mean()))


class Agreement(_Mean):
    """Cosine similarity with the float model's outputs; the label is those outputs.

    A sample's score is the mean over its outputs of a.b / (|a| |b|), each flattened; two outputs of nothing but
    zeros agree (1), one alone does not (0).

    Attributes:
        max_error: largest |difference| of any value so far.
    """

    name = "cosine similarity"

    def __init__(self) -> None:
        super().__init__()
        self.max_error = 0.0

    def add(
        self,
        outputs: Outputs,
        label: Outputs,
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> None:
        if not outputs or outputs.keys() != label.keys():
            raise DataError(f"outputs {sorted(outputs)} cannot be compared with {sorted(label)}")
        cosines = []
        for name in outputs:
            here, there = np.asarray(outputs[name], np.float64), np.asarray(label[name], np.float64)
            if here.shape != there.shape:
                raise DataError(f"output {name!r} is {list(here.shape)}, the float model's {list(there.shape)}")
            if not (np.isfinite(here).all() and np.isfinite(there).all()):
                raise unusable(name, "is NaN or infinite")
            cosines.append(_cosine(here.ravel(), there.ravel()))
            self.max_error = max(self.max_error, float(np.abs(here - there).max()))
        self._scores.append(float(np.mean(cosines)))


class MeanIoU(Metric):
    """Mean over the classes of intersection / union, both summed over all samples' pixels.

    A class that neither labels nor answers show does not count.  The label is an integer mask [h, w] of the
    frame; pixels that are ``IGNORED`` in it, or that centre-crop hid from the model, are not judged.  Source:
    PASCAL VOC segmentation accuracy (Everingham et al., 2015, section 4.2); Keras' ``MeanIoU`` is the same.
    """

    name = "mean IoU"

    def __init__(
        self, declared: Postprocessing, labels: Sequence[str] = (), input_size: tuple[int, int] | None = None
    ) -> None:
        self._declared = declared
        self._segment = Segment(declared, labels, input_size)
        self._shared: list[np.ndarray] = []  # uint32 [classes] a sample: pixels where label and answer agree
        self._either: list[np.ndarray] = []  # and pixels where at least one of them is the class

    def __len__(self) -> int:
        return len(self._shared)

    def add(
        self,
        outputs: Outputs,
        label: np.ndarray,
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> None:
        answer = self._segment(outputs, placement, frame_size)
        classes = max(2, np.shape(outputs[self._declared.outputs["mask"]])[-1])
        true = np.asarray(label)
        if true.ndim != 2 or true.size == 0 or true.dtype.kind not in "ui":
            raise DataError(f"a mask must be whole numbers [h, w], not {true.dtype} {list(true.shape)}")
        found = answer.mask_for_frame(true.shape[1], true.shape[0])
        judged = (true != IGNORED) & (found != answer.outside)
        true, found = true[judged].astype(np.int64), found[judged].astype(np.int64)
        if true.size and not 0 <= true.min() <= true.max() < classes:
            raise DataError(f"a mask holds class {true.max()}, the model has 0 to {classes - 1}")
        shared = np.bincount(true[true == found], minlength=classes)
        either = np.bincount(true, minlength=classes) + np.bincount(found, minlength=classes) - shared
        self._shared.append(shared.astype(np.uint32))
        self._either.append(either.astype(np.uint32))

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        shared = weights @ np.stack(self._shared).astype(np.float64)
        either = weights @ np.stack(self._either).astype(np.float64)
        return _mean_where(shared / np.maximum(either, 1), either > 0)


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
        return _mean_where(np.stack(precisions, axis=1), np.stack(present, axis=1))


class Drop(NamedTuple):
    """How much worse the other model is, in the metric's unit: below 0 it is better.

    ``low`` and ``high`` are the ends of the 95 % confidence interval of ``value``.
    """

    value: float
    low: float
    high: float


def paired_drop(reference: Metric, other: Metric, seed: int) -> Drop:
    """What ``other`` loses against ``reference`` on the same samples, with a 95 % confidence interval.

    Percentile bootstrap over the samples, ``RESAMPLES`` times, each draw taken for both models, so that samples
    both find hard do not widen the interval.  Source: Efron and Tibshirani, An Introduction to the Bootstrap
    (1993), chapter 13.  Where no sample tells the models apart the interval has no width: what so few samples
    could not show is not in it.

    Args:
        reference, other: one metric over the same samples in the same order.
        seed: of the draws.

    Raises:
        DataError: the metrics differ, or their numbers of samples do, or there is no value.
    """
    if (type(reference), reference.name) != (type(other), other.name):
        raise DataError(f"{reference.name} cannot be compared with {other.name}")
    if len(reference) != len(other):
        raise DataError(f"{reference.name} over {len(reference)} and {len(other)} samples cannot be compared")
    sign = 1.0 if reference.better == "higher" else -1.0
    value = sign * (reference.value() - other.value())
    random = np.random.default_rng(seed)
    drops = []
    for rows in _blocks(RESAMPLES, len(reference)):
        weights = _draws(random, rows.stop - rows.start, len(reference))
        drops.append(sign * (reference.weighted(weights) - other.weighted(weights)))
    # A draw without a single true box has no mAP and says nothing.
    low, high = np.nanquantile(np.concatenate(drops), [0.025, 0.975])
    return Drop(value, float(low), float(high))


_METRICS: dict[str, Callable[[Postprocessing, Sequence[str], tuple[int, int] | None], tuple[Metric, ...]]] = {
    "classify": lambda declared, labels, size: (TopK(declared, 1), TopK(declared, 5)),
    "detect": lambda declared, labels, size: (MeanAveragePrecision(declared, labels, size),),
    "segment": lambda declared, labels, size: (MeanIoU(declared, labels, size),),
    "regress": lambda declared, labels, size: (MeanAbsoluteError(declared),),
    "raw": lambda declared, labels, size: (Agreement(),),
}


def metrics_for(
    declared: Postprocessing, labels: Sequence[str] = (), input_size: tuple[int, int] | None = None
) -> tuple[Metric, ...]:
    """New metrics for a task, the one to decide by first.

    Args:
        declared: the bundle's postprocessing; task "raw" is judged against the float model's outputs.
        labels: one a class, or empty.
        input_size: (width, height) of the model's input in pixels.
    """
    return _METRICS[declared.task](declared, labels, input_size)


def metric_for(
    declared: Postprocessing, labels: Sequence[str] = (), input_size: tuple[int, int] | None = None
) -> Metric:
    """The first of :func:`metrics_for`."""
    return metrics_for(declared, labels, input_size)[0]


def agreement_for(declared: Postprocessing) -> Metric:
    """A new metric whose labels are the float model's outputs, for any task."""
    return ClassAgreement(declared) if declared.task == "classify" else Agreement()


def _cosine(here: np.ndarray, there: np.ndarray) -> float:
    lengths = float(np.linalg.norm(here)), float(np.linalg.norm(there))
    if 0.0 in lengths:
        return float(lengths == (0.0, 0.0))
    return float(np.clip(here / lengths[0] @ (there / lengths[1]), -1.0, 1.0))


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
    for rows in _blocks(len(weights), len(image)):
        counts = weights[rows][:, image]
        found = np.cumsum(counts * hits, axis=1)
        everything = np.cumsum(counts, axis=1)
        precision = found / np.where(everything > 0, everything, 1)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        areas[rows] = (counts * hits * best).sum(axis=1)
    return areas


def _mean_where(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of each row over what counts, NaN where nothing does: [n, k], bool [n, k] -> [n]."""
    number = counts.sum(axis=1)
    mean = np.where(counts, values, 0.0).sum(axis=1) / np.maximum(number, 1)
    return np.where(number > 0, mean, np.nan)


def _blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _draws(random: np.random.Generator, rows: int, samples: int) -> np.ndarray:
    """How often each of ``samples`` draws with replacement took each sample: float64 [rows, samples]."""
    taken = random.integers(0, samples, (rows, samples)) + samples * np.arange(rows)[:, None]
    return np.bincount(taken.ravel(), minlength=rows * samples).reshape(rows, samples).astype(np.float64)

"""The metrics of each task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Placement
from edgeferry_runtime.tasks.base import unusable
from edgeferry_runtime.tasks.classify import Classify
from edgeferry_runtime.tasks.regress import Regress
from edgeferry_runtime.tasks.segment import Segment

from edgeferry_converter.average_precision import LabelledBox, MeanAveragePrecision, TrueBox
from edgeferry_converter.errors import DataError
from edgeferry_converter.keypoint_agreement import KeypointAgreement
from edgeferry_converter.metric import Drop, MeanMetric, Metric, Outputs, mean_where, paired_drop

__all__ = [
    "Agreement",
    "ClassAgreement",
    "Drop",
    "KeypointAgreement",
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

IGNORED = 255  # label of pixels that nobody judges, as in PASCAL VOC


class TopK(MeanMetric):
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


class ClassAgreement(MeanMetric):
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


class MeanAbsoluteError(MeanMetric):
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


class Agreement(MeanMetric):
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
        return mean_where(shared / np.maximum(either, 1), either > 0)


# Keypoints, embeddings and raw outputs have no labels to be judged by.
_METRICS: dict[str, Callable[[Postprocessing, Sequence[str], tuple[int, int] | None], tuple[Metric, ...]]] = {
    "classify": lambda declared, labels, size: (TopK(declared, 1), TopK(declared, 5)),
    "detect": lambda declared, labels, size: (MeanAveragePrecision(declared, labels, size),),
    "segment": lambda declared, labels, size: (MeanIoU(declared, labels, size),),
    "regress": lambda declared, labels, size: (MeanAbsoluteError(declared),),
}


def metrics_for(
    declared: Postprocessing, labels: Sequence[str] = (), input_size: tuple[int, int] | None = None
) -> tuple[Metric, ...]:
    """New metrics for a task whose data has labels, the one to decide by first; none for any other.

    Args:
        declared: the bundle's postprocessing.
        labels: one a class, or empty.
        input_size: (width, height) of the model's input in pixels.
    """
    make = _METRICS.get(declared.task)
    return make(declared, labels, input_size) if make else ()


def metric_for(
    declared: Postprocessing, labels: Sequence[str] = (), input_size: tuple[int, int] | None = None
) -> Metric:
    """The first of :func:`metrics_for`; where there is none, the agreement with the float model."""
    found = metrics_for(declared, labels, input_size)
    return found[0] if found else agreement_for(declared)


def agreement_for(declared: Postprocessing) -> Metric:
    """A new metric whose labels are the float model's outputs, for any task."""
    make = {"classify": ClassAgreement, "keypoints": KeypointAgreement}.get(declared.task)
    return make(declared) if make else Agreement()


def _cosine(here: np.ndarray, there: np.ndarray) -> float:
    lengths = float(np.linalg.norm(here)), float(np.linalg.norm(there))
    if 0.0 in lengths:
        return float(lengths == (0.0, 0.0))
    return float(np.clip(here / lengths[0] @ (there / lengths[1]), -1.0, 1.0))

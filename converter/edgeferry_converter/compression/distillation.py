"""Distillation: a student learns from a teacher's answers as well (Hinton et al. 2015, arXiv:1503.02531).

The teacher's answers travel with the labels as targets and the student is fine-tuned like any model.
keras.distillation.Distiller is not used: it wraps the student, so that callbacks and checkpoints see another
model, and its losses take logits only, while models here end in a softmax as often as not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeferry_converter.compression.checkpoint import TrainingError
from edgeferry_converter.compression.training import (
    Batches,
    Data,
    History,
    TrainOptions,
    fine_tune,
    gives_probabilities,
)
from edgeferry_converter.errors import OptionError

if TYPE_CHECKING:
    from edgeferry_converter.compression.epoch_watch import Tell

__all__ = ["Distilled", "DistillOptions", "Standing", "WeakTeacherError", "check_teacher", "distill", "measure"]

TINY = 1e-7  # probabilities below are taken for it before the logarithm
NO_LABEL = -1.0


class WeakTeacherError(TrainingError):
    """The teacher answers too badly on the very images it would teach on; ``standing`` has the figures."""

    def __init__(self, message: str, remedy: str | None, standing: Standing) -> None:
        super().__init__(message, remedy)
        self.standing = standing


@dataclass(frozen=True)
class DistillOptions:
    """How to distil.

    Attributes:
        temperature: T of the softened answers.
        alpha: weight of the labels' loss; 1 - alpha is the teacher's, times T squared.  Without labels it is 0.
        min_accuracy: a teacher below it on the training stream is refused, 0 to 1.
        max_loss: how much accuracy a teacher may lose to the augmentation, 0 to 1: it was not trained on such
            images then, and teaches its errors.
        samples: how many images the teacher is measured on.
        force: teach with a weak teacher all the same.

    Raises:
        OptionError: a value is out of its range.
    """

    temperature: float = 4.0
    alpha: float = 0.3
    min_accuracy: float = 0.0
    max_loss: float = 0.03
    samples: int = 4096
    force: bool = False

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and 0 <= self.alpha <= 1 and self.samples > 0):
            raise OptionError(
                "cannot distil so: temperature is greater than 0, alpha 0 to 1, samples 1 or more",
                "Correct the recipe.",
            )


@dataclass(frozen=True)
class Standing:
    """Shares of right answers, 0 to 1, on training images: as they come to training, and plain."""

    teacher: float
    student: float
    teacher_plain: float


@dataclass(frozen=True)
class Distilled:
    """What came of it; ``standing`` was measured before, None without labels."""

    history: History
    standing: Standing | None


def distill(
    student: Any,
    teacher: Any,
    data: Data,
    options: TrainOptions,
    distilling: DistillOptions | None = None,
    callbacks: Sequence[Any] = (),
    folder: Path | None = None,
    progress: Tell | None = None,
    *,
    validation: Data | None = None,
) -> Distilled:
    """Train a student in place; see ``training.fine_tune`` for what is not named here.

    Args:
        student: a classifier, keras.Model with one output [n, classes].
        teacher: another with the same inputs and classes; not changed.
        data: labelled or not.
        distilling: temperature, weights, limits; None for the defaults.

    Raises:
        OptionError: student and teacher do not tell the same classes apart.
        WeakTeacherError: see ``check_teacher``.
        TrainingError: as ``fine_tune``.
    """
    how = distilling or DistillOptions()
    _check_classes(student, teacher)
    standing = measure(student, teacher, data, options, how.samples) if data.task == "classify" else None
    if standing is not None and not how.force:
        check_teacher(standing, how)
    x = data.batches(options.batch_size, options.seed, options.augment)[0][0]
    logits = [not gives_probabilities(model, x) for model in (student, teacher)]
    soft = SoftTargets(data, teacher, logits[1])
    soft.description += f" with {how}"  # a run that is resumed must have the same
    history = fine_tune(
        student,
        soft,
        options,
        callbacks,
        folder,
        progress,
        validation=SoftTargets(validation, teacher, logits[1]) if validation is not None else None,
        loss=_loss(how, logits[0]),
        metrics=[_accuracy] if data.task == "classify" else [],
    )
    return Distilled(history, standing)


def check_teacher(standing: Standing, how: DistillOptions) -> None:
    """Refuse a teacher who would teach errors.

    Raises:
        WeakTeacherError: on the training stream it is weaker than the student, below ``min_accuracy``, or more
            than ``max_loss`` below its own accuracy on plain images.
    """
    found = standing.teacher
    reasons = [
        (found < standing.student, f"the student itself is right on {standing.student:.1%}"),
        (found < how.min_accuracy, f"at least {how.min_accuracy:.1%} are asked for"),
        (
            standing.teacher_plain - found > how.max_loss,
            f"on plain ones it is right on {standing.teacher_plain:.1%}",
        ),
    ]
    told = "; ".join(reason for holds, reason in reasons if holds)
    if told:
        raise WeakTeacherError(
            f"the teacher is right on {found:.1%} of the training images as augmented; {told}",
            "Recalibrate or fine-tune the teacher on this data first, augment less, or force it at a loss.",
            standing,
        )


def measure(student: Any, teacher: Any, data: Data, options: TrainOptions, samples: int) -> Standing:
    """Accuracies of both on the training stream, and the teacher's on the same images without augmentation."""
    stream = data.batches(options.batch_size, options.seed, options.augment)
    plain = data.batches(options.batch_size, options.seed, "none")
    count = min(len(stream), -(-samples // options.batch_size))
    taught = _forward(teacher)
    return Standing(
        teacher=_right(taught, stream, count),
        student=_right(_forward(student), stream, count),
        teacher_plain=_right(taught, plain, count),
    )


class SoftTargets:
    """Data whose labels are float32 [n, 1 + classes]: the label (-1 for none), then the teacher's logits."""

    def __init__(self, data: Data, teacher: Any, logits: bool) -> None:
        self._data, self._logits = data, logits
        self.classes, self.task = data.classes, data.task
        self.description = f"{data.description}, taught by {teacher.name}"
        self._answer = _forward(teacher)

    @property
    def size(self) -> int:
        """How many samples there are."""
        return self._data.size

    def batches(self, batch_size: int, seed: int = 0, augment: str | None = None) -> Batches:
        """The data's batches with these labels."""
        return _SoftBatches(self._data.batches(batch_size, seed, augment), self._answer, self._logits)


class _SoftBatches:
    def __init__(self, batches: Batches, answer: Any, logits: bool) -> None:
        self._batches, self._answer, self._logits = batches, answer, logits

    @property
    def epoch(self) -> int:
        return self._batches.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._batches.epoch = epoch

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        x, *rest = self._batches[i]
        answers = np.asarray(self._answer(x), np.float32)
        taught = answers if self._logits else np.log(np.maximum(answers, TINY))
        labels = np.asarray(rest[0]).reshape(-1, 1) if rest else np.full((len(taught), 1), NO_LABEL)
        return x, np.concatenate([labels, taught], axis=1, dtype=np.float32)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return (self[i] for i in range(len(self)))


def _loss(how: DistillOptions, logits: bool) -> Any:
    """alpha * cross-entropy + (1 - alpha) * T^2 * KL(teacher_T || student_T); without a label the second alone."""
    import keras

    ops, warmth = keras.ops, how.temperature

    def distillation(targets: Any, answers: Any) -> Any:
        label, taught = targets[:, 0], targets[:, 1:]
        own = answers if logits else ops.log(ops.maximum(answers, TINY))
        labelled = ops.cast(label >= 0, own.dtype)
        hard = keras.losses.sparse_categorical_crossentropy(
            ops.cast(ops.maximum(label, 0), "int32"), own, from_logits=True
        )
        wanted, given = ops.log_softmax(taught / warmth), ops.log_softmax(own / warmth)
        soft = warmth**2 * ops.sum(ops.exp(wanted) * (wanted - given), axis=-1)
        alpha = how.alpha * labelled
        return alpha * hard + (1 - alpha) * soft

    return distillation


def _accuracy(targets: Any, answers: Any) -> Any:
    import keras

    return keras.metrics.sparse_categorical_accuracy(targets[:, 0], answers)


_accuracy.__name__ = "accuracy"  # what Keras calls the figure


def _right(answer: Any, batches: Batches, count: int) -> float:
    right = total = 0
    for i in range(count):
        x, y, *_ = batches[i]
        found = np.asarray(answer(x)).argmax(axis=-1)
        right, total = right + int((found == np.asarray(y).reshape(-1)).sum()), total + len(found)
    return right / max(total, 1)


def _forward(model: Any) -> Any:
    import tensorflow as tf

    return tf.function(lambda x: model(x, training=False), autograph=False, reduce_retracing=True)


def _check_classes(student: Any, teacher: Any) -> None:
    shapes = [tuple(model.output_shape) for model in (student, teacher)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 2 or (shapes[0][1] or 0) < 2:
        raise OptionError(
            f"the student answers {list(shapes[0])}, the teacher {list(shapes[1])}",
            "Distillation needs two classifiers of the same classes, one output [n, classes] each.",
        )
    inputs = [[tuple(tensor.shape) for tensor in model.inputs] for model in (student, teacher)]
    if inputs[0] != inputs[1]:
        raise OptionError(
            f"the student takes {inputs[0]}, the teacher {inputs[1]}", "Take a teacher with the same inputs."
        )

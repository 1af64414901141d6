"""Judging: the float model and every variant on the same held-out samples, through the board's preprocessing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from edgeferry_runtime.postprocessing import SCORES, Postprocessing
from edgeferry_runtime.tasks.classify import class_scores

from edgeferry_converter.data.dataset import Box, Sample
from edgeferry_converter.errors import ConversionError
from edgeferry_converter.feeding import Feed
from edgeferry_converter.loading.source import SourceModel
from edgeferry_converter.metrics import Metric, TrueBox, agreement_for, metrics_for
from edgeferry_converter.variants import VariantRunner

__all__ = ["Change", "Evaluation", "Judgement", "OutputError", "evaluate", "first_outputs", "scores_kind"]

BATCH = 64
Outputs = dict[str, np.ndarray]


@dataclass
class OutputError:
    """Differences of one output from the float model's, over all samples and values, in real units."""

    squared: float = 0.0
    values: int = 0
    largest: float = 0.0

    def add(self, found: np.ndarray, reference: np.ndarray) -> None:
        """Count one sample."""
        error = found.astype(np.float64) - reference
        self.squared += float((error**2).sum())
        self.values += error.size
        self.largest = max(self.largest, float(np.abs(error).max(initial=0.0)))

    @property
    def rms(self) -> float:
        """Root mean square."""
        return float(np.sqrt(self.squared / max(1, self.values)))


class Change(NamedTuple):
    """A held-out sample on which a variant's best class is not the float model's.

    Attributes:
        number: of the sample among the held-out ones.
        label: the true class, None where it is not known.
        reference, variant: best classes of the two.
    """

    number: int
    label: int | None
    reference: int
    variant: int


@dataclass
class Judgement:
    """What a variant did.

    Attributes:
        metric: the task's, against the labels; None without labels.
        agreement: with the float model.
        errors: by output name.
        changes: samples a classifier answers otherwise than the float model does.
        others: further metrics of the task against the labels, top-5 for example, which decide nothing.
    """

    metric: Metric | None
    agreement: Metric
    errors: dict[str, OutputError] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    others: tuple[Metric, ...] = ()


@dataclass
class Evaluation:
    """Results over ``samples`` held-out samples.

    Attributes:
        reference: the float model's metric against the labels; None without labels.
        spans: largest |value| of each output of the float model, for judging float rounding.
        variants: by name.
        others: the float model's further metrics.
    """

    reference: Metric | None
    samples: int = 0
    spans: dict[str, float] = field(default_factory=dict)
    variants: dict[str, Judgement] = field(default_factory=dict)
    others: tuple[Metric, ...] = ()


def evaluate(
    source: SourceModel,
    feed: Feed,
    runners: Sequence[VariantRunner],
    samples: Iterable[Sample],
    post: Postprocessing,
    labels: Sequence[str],
    labelled: bool,
) -> Evaluation:
    """Run everything on every sample; samples stream, none is kept.

    Args:
        post: the task.
        labels: one a class; may be empty.
        labelled: whether the samples say what is true.

    Raises:
        ConversionError: a model answers NaN.
    """
    size = (feed.declared.width, feed.declared.height) if feed.declared else None

    def metrics() -> tuple[Metric, ...]:
        return metrics_for(post, labels, size) if labelled else ()

    first = metrics()
    result = Evaluation(first[0] if first else None, others=first[1:])
    for runner in runners:
        own = metrics()
        result.variants[runner.variant.name] = Judgement(
            own[0] if own else None, agreement_for(post), others=own[1:]
        )
    batch: list[tuple[Sample, Outputs, list[Outputs]]] = []

    def flush() -> None:
        if batch:
            _judge_batch(result, source, feed, post, [r.variant.name for r in runners], batch)
            batch.clear()

    for sample in samples:
        batch.append((sample, feed.real(sample), [runner(sample) for runner in runners]))
        if len(batch) == BATCH:
            flush()
    flush()
    return result


def _judge_batch(
    result: Evaluation,
    source: SourceModel,
    feed: Feed,
    post: Postprocessing,
    names: Sequence[str],
    batch: list[tuple[Sample, Outputs, list[Outputs]]],
) -> None:
    inputs = {name: np.concatenate([real[name] for _, real, _ in batch]) for name in batch[0][1]}
    outputs = source.predict(inputs)
    _check_finite(outputs, "the float model")
    for name, values in outputs.items():
        result.spans[name] = max(result.spans.get(name, 0.0), float(np.abs(values).max(initial=0.0)))
    for i, (sample, _, answers) in enumerate(batch):
        reference = {name: values[i : i + 1] for name, values in outputs.items()}
        result.samples += 1
        label, place = _truth(sample), feed.place(sample)
        for metric in (result.reference, *result.others):
            if metric is not None:
                metric.add(reference, label, *place)
        for name, answer in zip(names, answers, strict=True):
            _check_finite(answer, f"variant {name}")
            judgement = result.variants[name]
            for metric in (judgement.metric, *judgement.others):
                if metric is not None:
                    metric.add(answer, label, *place)
            judgement.agreement.add(answer, reference)
            if post.task == "classify":
                _note_change(judgement, result.samples - 1, label, *(_best(o, post) for o in (reference, answer)))
            for output, values in answer.items():
                judgement.errors.setdefault(output, OutputError()).add(values, reference[output])


def _best(outputs: Outputs, post: Postprocessing) -> int:
    return int(class_scores(outputs[post.outputs["scores"]], post.scores)[0].argmax())


def _note_change(judgement: Judgement, number: int, label: Any, reference: int, variant: int) -> None:
    if reference != variant:
        judgement.changes.append(Change(number, label if isinstance(label, int) else None, reference, variant))


def _truth(sample: Sample) -> Any:
    """A sample's label as the metrics take it."""
    if isinstance(sample.label, tuple):
        boxes = (box for box in sample.label if isinstance(box, Box))
        return [TrueBox(box.label, box.x, box.y, box.w, box.h) for box in boxes]
    return sample.label


def _check_finite(outputs: Outputs, what: str) -> None:
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise ConversionError(
                f"{what} answers NaN or infinity at output {name!r} for a held-out sample",
                "Check --preprocess: a wrong range of values overflows some models.",
            )


def scores_kind(activation: str, outputs: np.ndarray) -> str:
    """What a classifier's outputs are, told by its last activation and by the numbers themselves.

    Args:
        activation: of the last layer, "" where it is not known.
        outputs: of some samples, float32 [n, classes].

    Returns:
        One of ``postprocessing.SCORES``.
    """
    inside = bool((outputs >= 0).all() and (outputs <= 1).all())
    flat = outputs.reshape(len(outputs), -1)
    if flat.shape[1] == 1:
        kind = "binary-probability" if activation == "sigmoid" or inside else "binary-logit"
    else:
        sums_to_one = inside and bool(np.allclose(flat.sum(axis=1), 1.0, atol=1e-3))
        # Independent sigmoids do not sum to one, but each is a score from 0 to 1 already.
        kind = "probabilities" if activation in ("softmax", "sigmoid") or sums_to_one else "logits"
    assert kind in SCORES  # noqa: S101 - the contract's own list
    return kind


def first_outputs(source: SourceModel, feed: Feed, samples: Iterable[Sample]) -> Outputs:
    """The float model's outputs for a few samples, stacked."""
    reals = [feed.real(sample) for sample in samples]
    return source.predict({name: np.concatenate([real[name] for real in reals]) for name in reals[0]})

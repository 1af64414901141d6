"""Linting with the float model's answers: a preprocessing that does not fit it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from edgeferry_runtime.preprocessing import PRESETS, Preprocessing

from edgeferry_converter.data.dataset import Dataset
from edgeferry_converter.data.finding import Finding, finding
from edgeferry_converter.data.lint_labels import accuracy_in_order, lint_labels_order

__all__ = ["JUDGED", "Judge", "candidates", "lint_presets", "lint_twice_normalised"]

JUDGED = 128  # images
TOGETHER = 16  # in memory at a time: photographs are large

# With labels another preset is suspected better when it is right at least this much oftener, and when the images
# that only one of the two has right are divided so unevenly by chance once in 200 times at most (a paired sign
# test, about 2.6 standard errors): up to eleven are tried, so once in 20 would find something in good data.
ACCURACY_GAP = 0.05
CHANCE = 0.005

# Without labels only confidence is left, and larger inputs make most nets more confident, right or wrong.  So
# another range must be far more confident than a declared one that is unsure, in the same colour order, and with
# other answers (a net that merely grows surer keeps them) that are not one for all; another colour order in the
# same range must be more confident by 5 points and 3 standard errors.
CONFIDENCE_GAP = 0.2
UNSURE = 0.6
AGREEING = 0.5
COLOR_GAP = 0.05
COLOR_ERRORS = 3.0
SURE = 0.7
COLLAPSED = 1.5  # effective number of classes answered
DIVERSE = 3.0

SWAPPED = " with red and blue swapped"
# Among alternatives that do about as well, one that has a plain name is told.
UNLIKELY = 0.03


class Judge(Protocol):
    """Runs the float model."""

    def __call__(self, declared: Preprocessing, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Scores float32 [n, classes], 0 to 1, of frames uint8 [h, w, 3] BGR through ``declared``."""


@dataclass(frozen=True)
class _Answers:
    """What the model answers through one preprocessing.

    Attributes:
        confidence: top score of each image.
        best: class of it.
        declared: the preprocessing.
        span: difference between the values that levels 0 and 255 become, mean over the channels.
    """

    name: str
    declared: Preprocessing
    confidence: np.ndarray
    best: np.ndarray
    span: float

    @property
    def diversity(self) -> float:
        """Effective number of classes answered: the exponential of the answers' entropy."""
        shares = np.bincount(self.best) / len(self.best)
        shares = shares[shares > 0]
        return float(np.exp(-(shares * np.log(shares)).sum()))


def lint_presets(
    dataset: Dataset,
    judge: Judge,
    declared: Preprocessing,
    presets: Mapping[str, Mapping[str, Any]] = PRESETS,
    limit: int = JUDGED,
    indices: Sequence[int] | None = None,
) -> list[Finding]:
    """Compare the declared preprocessing with the plausible ones, by accuracy where there are labels.

    Also looks at the order of the labels, which needs the same answers, and names the likelier of the two: a net
    that goes by colour alone answers swapped colours as if labels were swapped.

    Args:
        dataset: of frames; class labels are used where ``task_hint`` is "classify".
        judge: the float model.
        declared: what the user chose.
        presets: name -> keys of a ``Preprocessing``.
        limit: images judged.
        indices: of the samples to take from; None for all.
    """
    pool = list(range(len(dataset)) if indices is None else indices)
    chosen = pool if len(pool) <= limit else [pool[i * len(pool) // limit] for i in range(limit)]
    if not chosen:
        return []
    others = candidates(declared, presets)
    truth, scores = _judge_all(dataset, chosen, judge, [declared, *others.values()])
    mine = _answers("declared", declared, scores[0])
    answers = [_answers(name, one, got) for (name, one), got in zip(others.items(), scores[1:], strict=True)]
    if truth is None:
        return _by_confidence(mine, answers)
    found = _by_accuracy(mine, answers, truth)
    order = lint_labels_order(scores[0], truth, dataset.labels)
    if order and (not found or found[0] < accuracy_in_order(scores[0], truth)):
        return order
    return [found[1]] if found else []


def candidates(
    declared: Preprocessing, presets: Mapping[str, Mapping[str, Any]] = PRESETS
) -> dict[str, Preprocessing]:
    """The preprocessings to compare with: every preset, and it and the declared one with red and blue swapped."""
    found: dict[str, Preprocessing] = {}

    def add(name: str, one: Preprocessing) -> None:
        if one != declared and one not in found.values():
            found[name] = one

    for name, values in presets.items():
        one = replace(declared, **{key: values[key] for key in ("color", "scale", "mean", "std")})
        if declared.color != "gray":
            add(name, one)
        elif len(one.mean) == 1 and len(one.std) == 1:
            add(name, replace(one, color="gray"))
    if declared.color != "gray":
        for name, one in list(found.items()):
            add(name + SWAPPED, _swapped(one))
        add("the declared one" + SWAPPED, _swapped(declared))
    return found


def lint_twice_normalised(first_layers: Sequence[str], declared: Preprocessing) -> list[Finding]:
    """A model that normalises by itself behind a preprocessing that does so, too.

    Args:
        first_layers: class names of the model's first layers, in order.
        declared: what the user chose.
    """
    own = [name for name in first_layers if name in ("Rescaling", "Normalization")]
    plain = declared.scale == 1 and all(m == 0 for m in declared.mean) and all(s == 1 for s in declared.std)
    if not own or plain:
        return []
    message = (
        f"normalised twice: the model starts with {own[0]}, and --preprocess scales by {declared.scale:.6g},"
        f" mean {_numbers(declared.mean)}, std {_numbers(declared.std)}"
    )
    return [finding(203, "warning", message, "Use --preprocess raw: the model takes pixels 0 to 255 itself.")]


def _judge_all(
    dataset: Dataset, chosen: Sequence[int], judge: Judge, ways: Sequence[Preprocessing]
) -> tuple[np.ndarray | None, list[np.ndarray]]:
    """Classes by the labels (None without), and for each preprocessing the scores, float32 [n, classes]."""
    labels: list[int] = []
    scores: list[list[np.ndarray]] = [[] for _ in ways]
    for begin in range(0, len(chosen), TOGETHER):
        samples = [dataset.load(i) for i in chosen[begin : begin + TOGETHER]]
        frames = [sample.frame for sample in samples]
        for one, got in zip(ways, scores, strict=True):
            got.append(np.nan_to_num(np.asarray(judge(one, frames), np.float32)))
        if dataset.task_hint == "classify":
            labels += [int(sample.label) for sample in samples]
    return np.array(labels, int) if labels else None, [np.concatenate(got) for got in scores]


def _swapped(one: Preprocessing) -> Preprocessing:
    """The other colour order in, the constants of each place kept."""
    return replace(one, color={"rgb": "bgr", "bgr": "rgb"}.get(one.color, one.color))


def _answers(name: str, one: Preprocessing, scores: np.ndarray) -> _Answers:
    span = 255 * abs(one.scale) * float(np.mean(1 / np.array(one.std)))
    return _Answers(name, one, scores.max(axis=1), scores.argmax(axis=1), span)


def _by_accuracy(mine: _Answers, others: Sequence[_Answers], truth: np.ndarray) -> tuple[float, Finding] | None:
    """The best of the clearly better ones: how often it is right, and the finding."""
    right = mine.best == truth
    better = []
    for other in others:
        theirs = other.best == truth
        gained, lost = int((theirs & ~right).sum()), int((right & ~theirs).sum())
        if gained - lost >= ACCURACY_GAP * len(truth) and _by_chance(gained, lost) <= CHANCE:
            better.append((float(theirs.mean()), other))
    if not better:
        return None
    accuracy, best = max(better, key=lambda pair: pair[0] - _handicap(pair[1]))
    message = (
        f"wrong {_kind(mine, best)} suspected: the model is right on {right.mean():.0%} of {len(truth)} images as"
        f" declared (mean confidence {mine.confidence.mean():.2f}), on {accuracy:.0%} with {best.name}"
        f" ({best.confidence.mean():.2f})"
    )
    remedy = f"Give --preprocess what the model was trained with: {best.name}?"
    return accuracy, finding(201, "warning", message, remedy)


def _by_confidence(mine: _Answers, others: Sequence[_Answers]) -> list[Finding]:
    better = [other for other in others if _more_plausible(mine, other)]
    if not better:
        return []
    best = max(better, key=lambda other: float(other.confidence.mean()) - _handicap(other))
    message = (
        f"wrong {_kind(mine, best)} suspected: the model's mean confidence is {mine.confidence.mean():.2f} on"
        f" {len(mine.best)} images as declared ({mine.diversity:.1f} classes answered),"
        f" {best.confidence.mean():.2f} with {best.name} ({best.diversity:.1f})"
    )
    remedy = f"Give --preprocess what the model was trained with: {best.name}? Labels would make this certain."
    return [finding(201, "warning", message, remedy)]


def _more_plausible(mine: _Answers, other: _Answers) -> bool:
    gaps = other.confidence - mine.confidence
    gap = float(gaps.mean())
    if math.isclose(mine.span, other.span, rel_tol=0.01):
        error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.inf
        return len(gaps) >= 30 and gap >= COLOR_GAP and gap >= COLOR_ERRORS * error
    if other.span < mine.span and mine.diversity <= COLLAPSED and other.diversity >= DIVERSE:
        return float(other.confidence.mean()) >= SURE  # too large a range drives everything into one answer
    if other.declared.color != mine.declared.color or float((mine.best == other.best).mean()) > AGREEING:
        return False
    unsure = float(mine.confidence.mean()) < UNSURE
    return unsure and gap >= CONFIDENCE_GAP and other.diversity >= max(2.0, 0.8 * mine.diversity)


def _kind(mine: _Answers, best: _Answers) -> str:
    return "colour order" if replace(best.declared, color=mine.declared.color) == mine.declared else "range"


def _handicap(other: _Answers) -> float:
    return UNLIKELY if other.name.endswith(SWAPPED) else 0.0


def _by_chance(gained: int, lost: int) -> float:
    """Chance of at least ``gained`` heads in ``gained + lost`` throws of a fair coin."""
    total = gained + lost
    return sum(math.comb(total, k) for k in range(gained, total + 1)) / 2.0**total


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)

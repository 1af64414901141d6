"""The gate: a bundle leaves only when its variants are about as good as the float model."""

from __future__ import annotations

from dataclasses import dataclass

from edgeferry_converter.evaluation import Evaluation, Judgement
from edgeferry_converter.metrics import Drop, paired_drop

__all__ = ["DEFAULT_MAX_DROP", "Verdict", "judge"]

DEFAULT_MAX_DROP = 0.01  # one point of the task's metric


@dataclass(frozen=True)
class Verdict:
    """What the gate says of one variant.

    Attributes:
        passed: it may leave.
        drop: how much worse than the float model it is, with its 95 % confidence interval.
        max_drop: what was allowed; 0 when the gate was off.
        reason: in words.
    """

    passed: bool
    drop: Drop
    max_drop: float
    reason: str


def judge(name: str, evaluation: Evaluation, max_drop: float, seed: int) -> Verdict:
    """Compare a variant's drop with what is allowed.

    The measured drop decides, not the end of its confidence interval: with few samples the interval is wide, and
    the report says so.  Errors (a metric of which less is better) drop relative to the float model's.  Without
    labels the drop is what the mean agreement with the float model lacks to 1.

    Args:
        name: of the variant.
        evaluation: what judging gave.
        max_drop: 0 turns the gate off.
        seed: of the interval's bootstrap.
    """
    judgement = evaluation.variants[name]
    metric, drop = _drop(evaluation, judgement, seed)
    measured = f"{name}: {metric} drops by {drop.value:+.4f} (95 %: {drop.low:+.4f} to {drop.high:+.4f})"
    if max_drop == 0:
        return Verdict(True, drop, max_drop, f"{measured}; the gate is off (--max-drop 0)")
    if drop.value <= max_drop:
        return Verdict(True, drop, max_drop, f"{measured}; {max_drop:g} is allowed")
    return Verdict(False, drop, max_drop, f"{measured}, more than the {max_drop:g} allowed")


def _drop(evaluation: Evaluation, judgement: Judgement, seed: int) -> tuple[str, Drop]:
    if evaluation.reference is None or judgement.metric is None:
        lacks = 1.0 - judgement.agreement.value()
        return f"{judgement.agreement.name} with the float model", Drop(lacks, lacks, lacks)
    drop = paired_drop(evaluation.reference, judgement.metric, seed)
    if evaluation.reference.better == "higher":
        return evaluation.reference.name, drop
    size = evaluation.reference.value() or 1.0
    return f"{evaluation.reference.name} (relative)", Drop(*(value / size for value in drop))

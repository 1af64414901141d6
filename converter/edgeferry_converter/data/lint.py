"""The calibration linter: every check over one data set."""

from __future__ import annotations

from collections.abc import Sequence

from edgeferry_runtime.preprocessing import Preprocessing

from edgeferry_converter.data.dataset import Dataset
from edgeferry_converter.data.finding import Finding, raise_for, to_text
from edgeferry_converter.data.lint_images import LIMIT, lint_classes, lint_count, lint_images, lint_tensors
from edgeferry_converter.data.lint_labels import lint_labels_order
from edgeferry_converter.data.lint_model import Judge, lint_presets, lint_twice_normalised

__all__ = [
    "Finding",
    "Judge",
    "lint",
    "lint_classes",
    "lint_count",
    "lint_images",
    "lint_labels_order",
    "lint_presets",
    "lint_tensors",
    "lint_twice_normalised",
    "raise_for",
    "to_text",
]


def lint(
    dataset: Dataset,
    declared: Preprocessing | None = None,
    judge: Judge | None = None,
    first_layers: Sequence[str] = (),
    calibration: Sequence[int] | None = None,
    limit: int = LIMIT,
) -> list[Finding]:
    """Everything that can be said of a data set.

    Args:
        dataset: frames or tensors.
        declared: the preprocessing of frames.
        judge: the float model, when it is a classifier; None leaves out what needs its answers.
        first_layers: class names of the model's first layers, in order.
        calibration: which samples calibrate; None for all.
        limit: samples looked at.
    """
    if dataset.kind == "tensors" or declared is None:
        return lint_tensors(dataset, calibration, limit)
    size = (declared.width, declared.height)
    findings = lint_images(dataset, size, calibration, limit)
    if declared.color == "gray":  # all become gray
        findings = [f for f in findings if f.code != "W112"]
    twice = lint_twice_normalised(first_layers, declared)
    if judge is not None and not any(f.severity == "error" for f in findings):
        by_model = lint_presets(dataset, judge, declared)
        # One fault, one finding: a model that is fed doubly normalised pixels answers badly because of that.
        findings += [f for f in by_model if not (twice and f.code == "W201")]
    return [*findings, *twice]

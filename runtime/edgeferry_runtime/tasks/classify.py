"""Classification: scores into the best classes with their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np

from edgeferry_runtime.postprocessing import Postprocessing

__all__ = ["Classification", "Classify", "ClassScore", "class_scores"]


@dataclass(frozen=True)
class ClassScore:
    """One class of a result: its index, its label ("" without labels) and its score, 0 to 1."""

    index: int
    label: str
    score: float


@dataclass(frozen=True)
class Classification:
    """The best classes of one frame, best first; empty when none reaches the threshold."""

    classes: tuple[ClassScore, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for a line of JSON."""
        return {
            "classes": [
                {"index": c.index, "label": c.label, "score": round(c.score, 6)} for c in self.classes
            ]
        }  # fmt: skip


class Classify:
    """Decodes a classifier's output.

    Args:
        declared: the bundle's postprocessing.
        labels: one a class, or empty.
    """

    def __init__(self, declared: Postprocessing, labels: Sequence[str] = ()) -> None:
        self.declared = declared
        self.labels = list(labels)

    def __call__(self, output: np.ndarray) -> Classification:
        """The answer for one frame.

        Args:
            output: real numbers, float32 [1, classes] (or [1, 1] when binary).
        """
        scores = class_scores(output, self.declared.scores)[0]
        best = np.argsort(-scores, kind="stable")[: self.declared.top_k]
        return Classification(
            tuple(
                ClassScore(int(i), self.labels[i] if self.labels else "", float(scores[i]))
                for i in best
                if scores[i] >= self.declared.threshold
            )
        )


def class_scores(output: np.ndarray, kind: str) -> np.ndarray:
    """A classifier's raw output as one score from 0 to 1 a class.

    Args:
        output: real numbers, float [frames, ..., classes]; axes of length 1 between are dropped.
        kind: one of ``postprocessing.SCORES``.

    Returns:
        float32 [frames, classes].
    """
    scores = np.asarray(output, np.float32).reshape(len(output), -1)
    if kind == "logits":
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
    elif kind.startswith("binary"):
        second = scores if kind == "binary-probability" else 0.5 * (1 + np.tanh(0.5 * scores))
        scores = np.concatenate([1 - second, second], axis=1)
    return scores

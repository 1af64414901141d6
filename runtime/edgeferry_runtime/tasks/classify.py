"""Classification: scores into the best classes with their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

import numpy as np

from edgeferry_runtime.preprocessing import Placement
from edgeferry_runtime.tasks.base import Answer, Task, unusable

__all__ = ["Classification", "Classify", "ClassScore", "class_scores"]


@dataclass(frozen=True)
class ClassScore:
    """One class of a result: its index, its label ("" without labels) and its score, 0 to 1."""

    index: int
    label: str
    score: float


@dataclass(frozen=True)
class Classification(Answer):
    """The best classes of one frame, best first; empty when none reaches the threshold."""

    classes: tuple[ClassScore, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for a line of JSON."""
        return {
            "classes": [
                {"index": c.index, "label": c.label, "score": round(c.score, 6)} for c in self.classes
            ]
        }  # fmt: skip

    def headline(self) -> str:
        if not self.classes:
            return "-"
        best = self.classes[0]
        return "{} {:.0%}".format(best.label or best.index, best.score)


class Classify(Task):
    """Decodes a classifier's output; arguments as in :class:`Task`."""

    def __call__(
        self,
        outputs: Mapping[str, np.ndarray] | np.ndarray,
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> Classification:
        """The answer for one frame.

        Args:
            outputs: by name, or the scores alone: float32 [1, classes] (or [1, 1] when binary).
            placement, frame_size: classes have no place in the frame; ignored.

        Raises:
            BackendError: the output is missing, its batch is not 1, or a score is NaN or infinite.
        """
        scores = self.scores(outputs)
        reached = scores >= self.declared.threshold
        best = np.argsort(-scores, kind="stable")[: self.declared.top_k]
        return Classification(
            tuple(ClassScore(int(i), self.label(int(i)), float(scores[i])) for i in best if reached[i])
        )

    def scores(self, outputs: Mapping[str, np.ndarray] | np.ndarray) -> np.ndarray:
        """One score from 0 to 1 for every class, float32 [classes]; arguments and errors as for a call."""
        name = self.declared.outputs["scores"]
        by_name = {name: outputs} if isinstance(outputs, np.ndarray) else outputs
        output = self.output(by_name, "scores")
        # An infinite logit gives NaN here and is refused below, which says more than a warning would.
        with np.errstate(invalid="ignore"):
            scores: np.ndarray = class_scores(output[None], self.declared.scores)[0]
        if not np.isfinite(scores).all():
            raise unusable(name, "is NaN or infinite")
        return scores


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

"""Classification: scores into the best classes with their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import numpy as np

from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Placement
from edgeferry_runtime.tasks.base import Answer, Task, Tensor, unusable
from edgeferry_runtime.tensors import Stored

__all__ = ["Classification", "Classify", "ClassScore", "class_scores"]

FEW = 16  # so many classes are found sooner one by one than by sorting a thousand


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

    def confidence(self) -> float | None:
        return self.classes[0].score if self.classes else 0.0

    def headline(self) -> str:
        if not self.classes:
            return "-"
        best = self.classes[0]
        return "{} {:.0%}".format(best.label or best.index, best.score)


class Classify(Task):
    """Decodes a classifier's output; arguments as in :class:`Task`."""

    def __init__(
        self, declared: Postprocessing, labels: Sequence[str] = (), input_size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(declared, labels, input_size)
        # As scores are: 0.7 is less than the threshold 0.7 in one precision and equal to it in the other.
        self._threshold = float(np.float32(declared.threshold))

    def __call__(
        self,
        outputs: Mapping[str, Tensor] | Tensor,
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> Classification:
        """The answer for one frame.

        Args:
            outputs: by name, or the scores alone: [1, classes] (or [1, 1] when binary).
            placement, frame_size: classes have no place in the frame; ignored.

        Raises:
            BackendError: the output is missing, its batch is not 1, or a score is NaN or infinite.
        """
        best = _best(self.scores(outputs), self.declared.top_k, self._threshold)
        return Classification(tuple([ClassScore(index, self.label(index), score) for index, score in best]))

    def scores(self, outputs: Mapping[str, Tensor] | Tensor) -> np.ndarray:
        """One score from 0 to 1 for every class, float32 [classes]; arguments and errors as for a call."""
        name = self.declared.outputs["scores"]
        by_name = {name: outputs} if isinstance(outputs, (np.ndarray, Stored)) else outputs
        numbers = self.numbers(by_name, "scores")
        array, levels = numbers.array, numbers.values is not None  # which stand for finite numbers, all of them
        kind = self.declared.scores
        # Infinity would make all the others NaN, with a warning; minus infinity is a class that cannot be.
        if kind == "logits" and not (levels or np.isfinite(array.max())):
            raise unusable(name, "is NaN or infinite")
        scores: np.ndarray = class_scores(numbers.real(array)[None], kind)[0]
        if not (levels or np.isfinite(scores).all()):
            raise unusable(name, "is NaN or infinite")
        return scores


def _best(scores: np.ndarray, count: int, threshold: float) -> list[tuple[int, float]]:
    """(index, score) of the best classes that reach the threshold; of equal scores the lower index first."""
    if count > FEW:
        order = np.argsort(-scores, kind="stable")[:count].tolist()
        return [(i, s) for i, s in zip(order, scores[order].tolist()) if s >= threshold]
    left = scores.copy()
    best: list[tuple[int, float]] = []
    for _ in range(min(count, len(left))):
        index = int(left.argmax())
        score = left.item(index)
        if score < threshold:
            break
        best.append((index, score))
        left[index] = -np.inf
    return best


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

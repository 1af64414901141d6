"""Postprocessing as the bundle declares it: how the model's outputs become an answer."""

from __future__ import annotations

from dataclasses import dataclass

from edgeferry_runtime.fields import Fields

__all__ = ["SCORES", "TASKS", "Postprocessing"]

TASKS = ("classify",)
# What the numbers of a classifier's output are.  "binary-*": one number, for the second of two classes.
SCORES = ("probabilities", "logits", "binary-probability", "binary-logit")


@dataclass(frozen=True)
class Postprocessing:
    """What happens to the outputs after the model ran.

    Attributes:
        task: "classify".
        output: name of the output tensor that holds the scores.
        scores: what the output's numbers are, one of ``SCORES``.
        labels: member with one label a line in the order of the classes, "" where there is none.
        top_k: how many classes a result names, at most.
        threshold: classes with a lower score (0 to 1) are left out of the result.
    """

    task: str
    output: str
    scores: str = "probabilities"
    labels: str = ""
    top_k: int = 5
    threshold: float = 0.0

    @classmethod
    def read(cls, fields: Fields) -> Postprocessing:
        return cls(
            task=fields.choice("task", TASKS),
            output=fields.text("output"),
            scores=fields.choice("scores", SCORES, default="probabilities"),
            labels=fields.text("labels", default=""),
            top_k=fields.integer("top_k", default=5, minimum=1, maximum=1000),
            threshold=fields.number("threshold", default=0.0, minimum=0.0, maximum=1.0),
        )

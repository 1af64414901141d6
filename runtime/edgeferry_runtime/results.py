"""What one frame gave: the answer, what ran it, how old the frame was, where the time went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeferry_runtime.tasks.base import Answer

__all__ = ["STAGES", "Result"]

STAGES = ("capture", "preprocess", "invoke", "decode")


@dataclass(frozen=True)
class Result:
    """One result.

    Attributes:
        frame: number of the frame.
        name: where the frame came from, "" for streams.
        bundle: name and short version of the bundle, "digits-0123456789ab".
        variant, backend: what ran it.
        time: when the result was ready, seconds since 1970.
        age_us: from capture to result.
        stages_us: microseconds a stage, keys as in ``STAGES``.
        answer: the task's.
    """

    frame: int
    name: str
    bundle: str
    variant: str
    backend: str
    time: float
    age_us: float
    stages_us: dict[str, float]
    answer: Answer

    def to_json(self) -> dict[str, Any]:
        """Plain values for a line of JSON."""
        value: dict[str, Any] = {
            "frame": self.frame,
            "time": round(self.time, 6),
            "age_ms": round(self.age_us / 1000, 3),
            "bundle": self.bundle,
            "variant": self.variant,
            "backend": self.backend,
            "stages_us": {name: round(us, 1) for name, us in self.stages_us.items()},
        }
        if self.name:
            value["name"] = self.name
        value.update(self.answer.to_json())
        return value

"""What one frame gave: the answer, what ran it, how old the frame was, where the time went."""

from __future__ import annotations

from typing import Any, NamedTuple

from edgeferry_runtime.sources.base import Region
from edgeferry_runtime.tasks.base import Answer

__all__ = ["STAGES", "Result"]

# capture      waiting for the source and reading it
# decode       a JPEG frame into pixels, where the source hands JPEG over; else 0
# preprocess   pixels into the model's input
# wait         the frame lying still between the stages
# invoke       the interpreter
# postprocess  outputs into an answer
# All but capture add up to the frame's age.
STAGES = ("capture", "decode", "preprocess", "wait", "invoke", "postprocess")


class Result(NamedTuple):
    """One result.

    Attributes:
        frame: number of the frame.
        name: where the frame came from, "" for streams.
        bundle: name and short version of the bundle, "digits-0123456789ab".
        variant, backend: what ran it.
        captured_ns: when the source had the frame, ``time.monotonic_ns()``.
        time: when the result was ready, seconds since 1970.
        age_us: from capture to result.
        stages_us: microseconds a stage, in the order of ``STAGES``.
        dropped: frames so far that came to no result: never read, stale, still or damaged.
        answer: the task's.
        region: which part of the frame was run, where it was not the whole.
        model: name of the model or ensemble where several run on one source, else "".
    """

    frame: int
    name: str
    bundle: str
    variant: str
    backend: str
    captured_ns: int
    time: float
    age_us: float
    stages_us: tuple[float, ...]
    dropped: int
    answer: Answer
    region: Region | None = None
    model: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values for a line of JSON."""
        value: dict[str, Any] = {
            "frame": self.frame,
            "captured": round(self.time - self.age_us / 1e6, 6),
            "time": round(self.time, 6),
            "age_ms": round(self.age_us / 1000, 3),
            "dropped": self.dropped,
            "bundle": self.bundle,
            "variant": self.variant,
            "backend": self.backend,
            "stages_us": {name: round(us, 1) for name, us in zip(STAGES, self.stages_us)},
        }
        if self.name:
            value["name"] = self.name
        if self.model:
            value["model"] = self.model
        if self.region is not None:
            value["region"] = self.region.to_json()
        value.update(self.answer.to_json())
        return value

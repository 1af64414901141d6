"""What a run amounts to: counted while it runs, shown when it ends."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from edgeferry_runtime.errors import EdgeferryError
from edgeferry_runtime.results import STAGES
from edgeferry_runtime.stats import LatencyStats

__all__ = ["LOSSES", "Summary", "Tally"]

_LOG = logging.getLogger("edgeferry")

# Frames that came to no result, by why.
LOSSES = {
    "unread": "came while another was under way",
    "stale": "were older than allowed",
    "still": "showed nothing new",
    "damaged": "could not be decoded",
    "invalid": "gave an answer that is none",
    "away": "came while no model could run them",
}


class Tally:
    """Counts while the loop runs; the loop writes, anybody may read.

    Attributes:
        frames: results given.
        losses: frames without a result, by the keys of ``LOSSES``.
        stages, age, capture_to_invoke: latencies in microseconds over all results.
        started_ns, ended_ns: of the first read and the last result, ``time.monotonic_ns()``.
        trouble: the last thing that went wrong and was survived, "" when nothing did.
        refused: the last frame's error that was survived.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.losses = dict.fromkeys(LOSSES, 0)
        self.stages = tuple(LatencyStats() for _ in STAGES)
        self.age = LatencyStats()
        self.capture_to_invoke = LatencyStats()
        self.trouble = ""
        self.refused: EdgeferryError | None = None
        self.begin()

    def begin(self) -> None:
        """The first frame is asked for now."""
        self.started_ns = self.ended_ns = time.monotonic_ns()

    def add(self, stages_us: tuple[float, ...], age_us: float, capture_to_invoke_us: float) -> None:
        """Count one result."""
        self.frames += 1
        for stats, microseconds in zip(self.stages, stages_us):
            stats.add(microseconds)
        self.age.add(age_us)
        self.capture_to_invoke.add(capture_to_invoke_us)

    def survive(self, error: EdgeferryError, loss: str, frame: int) -> None:
        """Count a frame that came to nothing; the first of each kind is named in the log."""
        if not self.losses[loss]:
            _LOG.warning("frame %d came to no result: %s (more like it are only counted)", frame, error.message)
        self.losses[loss] += 1
        self.trouble = error.message
        self.refused = error

    @property
    def lost(self) -> int:
        """Frames without a result, for whatever reason."""
        return sum(self.losses.values())


@dataclass(frozen=True)
class Summary:
    """What a run amounted to.

    Attributes:
        bundle, variant, backend, delegate, threads, preprocessing: what ran.
        shape: "pipelined" (reading and preprocessing beside the interpreter) or "sequential".
        frames: results given.
        seconds: from the first read to the last result.
        losses: frames without a result, by the keys of ``LOSSES``.
        reopened: how often the source was lost and found again.
        sinks: by uri, what each did: "written", "dropped", "failed".
        stages, age, capture_to_invoke: latencies in microseconds, over all results.
        conditions: of the host (temperature, governor, throttling, memory), where asked for.
    """

    bundle: str
    variant: str
    backend: str
    delegate: str
    threads: int
    shape: str
    preprocessing: str
    frames: int
    seconds: float
    losses: dict[str, int]
    reopened: int
    sinks: dict[str, dict[str, Any]]
    stages: dict[str, LatencyStats]
    age: LatencyStats
    capture_to_invoke: LatencyStats
    conditions: dict[str, Any] = field(default_factory=dict)

    @property
    def fps(self) -> float:
        """Results a second."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "bundle": self.bundle,
            "variant": self.variant,
            "backend": self.backend,
            "delegate": self.delegate,
            "threads": self.threads,
            "shape": self.shape,
            "preprocessing": self.preprocessing,
            "frames": self.frames,
            "seconds": round(self.seconds, 6),
            "fps": round(self.fps, 2),
            "losses": self.losses,
            "reopened": self.reopened,
            "sinks": self.sinks,
            "stages_us": {name: stats.to_json() for name, stats in self.stages.items()},
            "age_us": self.age.to_json(),
            "capture_to_invoke_us": self.capture_to_invoke.to_json(),
            "conditions": self.conditions,
        }

    def to_text(self) -> str:
        """A table for people."""
        lines = [
            "{} frames in {:.2f} s = {:.1f} frames/s".format(self.frames, self.seconds, self.fps),
            "{} {} on {}{}, {} thread{}, {}".format(
                self.bundle,
                self.variant,
                self.backend,
                " with " + self.delegate if self.delegate else "",
                self.threads,
                "" if self.threads == 1 else "s",
                self.shape,
            ),
            "preprocessing: {}".format(self.preprocessing),
        ]
        lines += ["{} frames {}".format(count, LOSSES[why]) for why, count in self.losses.items() if count]
        if self.reopened:
            lines.append("the source was lost and found again {} times".format(self.reopened))
        for uri, counts in self.sinks.items():
            if counts.get("dropped") or counts.get("failed"):
                lines.append("{}: {dropped} results dropped, {failed} failed".format(uri, **counts))
        lines.append("{:<18}{:>10}{:>10}{:>10}{:>10}".format("", "p50 ms", "p90 ms", "p99 ms", "max ms"))
        rows = [
            *self.stages.items(),
            ("capture to invoke", self.capture_to_invoke),
            ("frame age", self.age),
        ]
        for name, stats in rows:
            values = stats.to_json()
            if values["max"]:
                cells = ("{:>10.3f}".format(values[key] / 1000) for key in ("p50", "p90", "p99", "max"))
                lines.append("{:<18}".format(name) + "".join(cells))
        return "\n".join(lines)

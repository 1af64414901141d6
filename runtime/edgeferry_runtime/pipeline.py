"""The camera loop: capture, preprocess, invoke, decode, sinks, with every stage timed for every frame."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Sequence

from edgeferry_runtime.model import Model
from edgeferry_runtime.results import STAGES, Result
from edgeferry_runtime.sinks.base import Sink
from edgeferry_runtime.sources.base import FrameSource
from edgeferry_runtime.stats import LatencyStats

__all__ = ["Pipeline", "Summary"]


@dataclass(frozen=True)
class Summary:
    """What a run amounted to.

    Attributes:
        bundle, variant, backend, threads, preprocessing: what ran.
        frames: results given.
        seconds: from the first read to the last result.
        stages, age: latencies in microseconds, over all frames.
    """

    bundle: str
    variant: str
    backend: str
    threads: int
    preprocessing: str
    frames: int
    seconds: float
    stages: dict[str, LatencyStats]
    age: LatencyStats

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
            "threads": self.threads,
            "preprocessing": self.preprocessing,
            "frames": self.frames,
            "seconds": round(self.seconds, 6),
            "fps": round(self.fps, 2),
            "stages_us": {name: stats.to_json() for name, stats in self.stages.items()},
            "age_us": self.age.to_json(),
        }

    def to_text(self) -> str:
        """A table for people."""
        lines = [
            "{} frames in {:.2f} s = {:.1f} frames/s".format(self.frames, self.seconds, self.fps),
            "{} {} on {}, {} thread{}".format(
                self.bundle, self.variant, self.backend, self.threads, "" if self.threads == 1 else "s"
            ),
            "preprocessing: {}".format(self.preprocessing),
            "{:<12}{:>10}{:>10}{:>10}{:>10}".format("", "p50 ms", "p90 ms", "p99 ms", "max ms"),
        ]
        for name, stats in [*list(self.stages.items()), ("frame age", self.age)]:
            values = stats.to_json()
            lines.append(
                "{:<12}".format(name)
                + "".join("{:>10.3f}".format(values[key] / 1000) for key in ("p50", "p90", "p99", "max"))
            )
        return "\n".join(lines)


class Pipeline:
    """Runs a model on a source until the source ends, enough frames are done, or it is told to stop.

    Args:
        source, model, sinks: opened by the caller, who also closes them.
        frames: how many results at most; None for no limit.
    """

    def __init__(
        self, source: FrameSource, model: Model, sinks: Sequence[Sink], frames: int | None = None
    ) -> None:
        self._source = source
        self._model = model
        self._sinks = sinks
        self._limit = frames
        self._stopping = False

    def stop(self) -> None:
        """End after the frame that is under way; may be called from a signal handler."""
        self._stopping = True

    def warm_up(self, invokes: int = 2) -> None:
        """Run the interpreter on whatever its input holds: the first invoke sets up kernels and pages."""
        for _ in range(invokes):
            self._model.invoke()

    def run(self) -> Summary:
        """Warm up, then loop.

        Raises:
            SourceError, SinkError, FrameError, BackendError.
        """
        model, clock = self._model, time.monotonic_ns
        stages = {name: LatencyStats() for name in STAGES}
        age = LatencyStats()
        backend = str(model.interpreter.backend)
        self.warm_up()
        count = 0
        started = clock()
        while not self._stopping and (self._limit is None or count < self._limit):
            marks = [clock()]
            frame = self._source.read()
            if frame is None:
                break
            marks.append(clock())
            model.preprocess(frame.pixels, frame.color)
            marks.append(clock())
            model.invoke()
            marks.append(clock())
            answer = model.decode()
            marks.append(clock())
            times = {name: (marks[i + 1] - marks[i]) / 1000 for i, name in enumerate(STAGES)}
            age_us = (marks[-1] - frame.captured_ns) / 1000
            result = Result(
                frame=frame.number,
                name=frame.name,
                bundle=model.identity,
                variant=model.variant.name,
                backend=backend,
                time=time.time(),
                age_us=age_us,
                stages_us=times,
                answer=answer,
            )
            for name, microseconds in times.items():
                stages[name].add(microseconds)
            age.add(age_us)
            for sink in self._sinks:
                sink.write(frame, result)
            count += 1
        seconds = (clock() - started) / 1e9
        return Summary(
            bundle=model.identity,
            variant=model.variant.name,
            backend=backend,
            threads=model.interpreter.threads,
            preprocessing=model.preprocessor.path if model.preprocessor else "tensors",
            frames=count,
            seconds=seconds,
            stages=stages,
            age=age,
        )

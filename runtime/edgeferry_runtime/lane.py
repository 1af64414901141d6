"""One model among several: a loop in its own thread, started again when it fails, every frame accounted for."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Sequence, Tuple, Union

from edgeferry_runtime.cascade import Crops
from edgeferry_runtime.errors import BackendError, EdgeferryError, UsageError
from edgeferry_runtime.hub import Tap
from edgeferry_runtime.lanes_config import LaneConfig
from edgeferry_runtime.model import Model
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.pipeline import Pipeline
from edgeferry_runtime.results import Result
from edgeferry_runtime.roster import Roster
from edgeferry_runtime.sinks.base import Sink
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.summary import LOSSES, Summary, Tally

if TYPE_CHECKING:
    from edgeferry_runtime.service import Heartbeat

__all__ = ["Lane", "LaneOptions", "Opened", "named"]

_LOG = logging.getLogger("edgeferry")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0  # between a failure and the next try; doubling
_POLL_S = 0.25  # how soon a stop is noticed
_STEADY_S = 60.0  # after so long without a failure the pauses begin anew
_HOPELESS = 5  # failures in a row, without one result

Opened = Tuple[Model, Union[Roster, None]]


class LaneOptions(NamedTuple):
    """What all lanes of a run have in common.

    Attributes:
        open_model: opens a lane's model, and what chooses among its versions, by name and config.
        observers: what else looks on in a lane's loop, by name.
        frames: results a lane at most; None for no limit.
        pipelined: as the pipeline has it.
        heartbeat: of the service.
        hang_s: after so long without a result for a frame that was taken, a lane is taken for hanging.
        clock: monotonic seconds.
    """

    open_model: Callable[[str, LaneConfig], Opened]
    observers: Callable[[str], Sequence[Observer]] = lambda name: ()
    frames: int | None = None
    pipelined: bool | None = None
    heartbeat: Heartbeat | None = None
    hang_s: float = 60.0
    clock: Callable[[], float] = time.monotonic


class _Named(Sink):
    """Says of each result which model gave it."""

    def __init__(self, sink: Sink, name: str) -> None:
        self.uri, self.wants_pixels = sink.uri, sink.wants_pixels
        self._sink = sink
        self._name = name

    def write(self, frame: Frame, result: Result) -> None:
        self._sink.write(frame, result._replace(model=self._name))

    def state(self) -> dict[str, Any]:
        return self._sink.state()


def named(sinks: Sequence[Sink], name: str) -> list[Sink]:
    """The sinks, given results that say which model they are of."""
    return [_Named(sink, name) for sink in sinks]


class Lane:
    """A model, where its frames come from, and what becomes of them.

    Args:
        name, config: of run.json.
        sinks: opened by the caller, who also closes them.
        options: of the run.

    Attributes:
        source: a tap or crops; set before the start.
        watchers: observers that belong to the run itself: what cuts out crops, what joins answers.
        hands_boxes_on: another lane runs what its boxes show.
        on_away: told True when the lane runs no frames for a while, and False when it does again.
        on_end: told when it has ended for good.
        state: "waiting", "opening", "running", "failed", "hangs", "ended" or "stopped".
        error: what it failed with last; None where it never did.
        failed_at: when, by the run's clock.
        failures: in a row, without a result between them.
        restarts: how often it was started again.
        ended: nothing will come any more.
        pipeline: the one that runs, or ran to its end; None before it runs, and while there is no model.
    """

    def __init__(self, name: str, config: LaneConfig, sinks: Sequence[Sink], options: LaneOptions) -> None:
        self.name, self.config = name, config
        self.source: Tap | Crops
        self.watchers: list[Observer] = []
        self.hands_boxes_on = False
        self.on_away: list[Callable[[bool], None]] = []
        self.on_end: list[Callable[[], None]] = []
        self.state = "waiting"
        self.error: Exception | None = None
        self.failed_at = 0.0
        self.failures = self.restarts = 0
        self.ended = False
        self.pipeline: Pipeline | None = None
        self._sinks = named(sinks, name)
        self._options = options
        self._observers = list(options.observers(name))
        self._opened: Opened | None = None
        self._fresh: Pipeline | None = None  # prepared, and not run yet
        self._earlier: list[Tally] = []  # of the pipelines before this one
        self._summary: Summary | None = None  # of the last of them
        self._stopping = threading.Event()
        self._progress = (0, options.clock())
        self._thread = threading.Thread(target=self._run, name="edgeferry-lane-" + name, daemon=True)

    @property
    def hopeless(self) -> bool:
        """It failed for good, or again and again without a single result."""
        return self.state == "failed" and (self.ended or self.failures >= _HOPELESS)

    @property
    def model(self) -> Model | None:
        """What was opened, or ran last."""
        if self.pipeline is not None:
            return self.pipeline.model
        return self._opened[0] if self._opened else None

    def open(self) -> Model:
        """Open the model.

        Raises:
            UsageError: boxes are wanted of it, and it gives none.
            Whatever opening raises.
        """
        self._opened = self._options.open_model(self.name, self.config)
        model = self._opened[0]
        task = model.bundle.manifest.postprocessing.task
        if self.hands_boxes_on and task != "detect":
            self.close()
            raise UsageError(
                "model {!r} ({}) does {}, and another one runs what its boxes show".format(
                    self.name, model.identity, task
                ),
                "Name a detector in the other one's `after`.",
            )
        return model

    def prepare(self) -> Pipeline:
        """The pipeline for the next run.

        Raises:
            FrameError: the model takes tensors, not frames.
        """
        if self._opened is None:
            self.open()
        assert self._opened is not None  # noqa: S101 - it was opened just now
        model, roster = self._opened
        options, config = self._options, self.config
        left = None if options.frames is None else max(1, options.frames - self.results)
        self.pipeline = self._fresh = Pipeline(
            self.source,
            model,
            self._sinks,
            left,
            pipelined=options.pipelined,
            fps=config.fps,
            max_age_ms=config.max_age_ms,
            motion=config.motion,
            roster=roster,
            heartbeat=options.heartbeat,
            observers=[*self.watchers, *self._observers],
        )
        return self.pipeline

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the frame that is under way."""
        self._stopping.set()
        if self.pipeline is not None:
            self.pipeline.stop()

    def join(self, timeout_s: float) -> bool:
        """Wait until it has ended; returns whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def close(self) -> None:
        """Close its model; harmless twice, and one that hangs is left alone."""
        if self._thread.is_alive():
            return
        opened, self._opened = self._opened, None
        if opened is None:
            return
        model, roster = opened
        if roster is not None:
            roster.close()
        if self.pipeline is not None:
            self.pipeline.model.close()
        model.close()

    def watch(self) -> bool:
        """Look whether it hangs; one that does holds nobody else up.

        Returns:
            Whether it was found to hang just now.
        """
        now, settled = self._options.clock(), self._settled()
        known, since = self._progress
        if settled != known or self.state not in ("running", "hangs") or not self.unfinished:
            self.excuse()
            if self.state == "hangs":
                self.state = "running"
                _LOG.warning("model %s goes on after %.0f s", self.name, now - since)
                self._say_away(False)
            return False
        if self.state != "running" or now - since < self._options.hang_s:
            return False
        self.error = BackendError(
            "model {} hangs: no result for {:.0f} s".format(self.name, now - since),
            'Run it with process = "worker": a process that hangs is ended and started again.',
        )
        self.failed_at = now
        _LOG.error("%s", self.error.message)
        self._say_away(True)
        self.state = "hangs"
        if not self.source.live:  # every frame counts, and the other lanes' do, too
            self.state, self.ended = "failed", True
            self.source.close()
            self._say_end()
        return True

    def excuse(self) -> None:
        """That nothing moved so far was not its own fault."""
        self._progress = (self._settled(), self._options.clock())

    # In the lane's thread.

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            began, results = self._options.clock(), self.results
            try:
                self._run_once()
                self._settle("stopped" if self._stopping.is_set() else "ended")
                break
            except Exception as error:  # whatever it is, it stays with this model
                self.failures = 1 if self.results > results else self.failures + 1
                if self._options.clock() - began >= _STEADY_S:
                    pause_s = _FIRST_PAUSE_S
                self._note(error, pause_s if self._may_restart() else None)
            if not self._may_restart():
                break
            self._say_away(True)
            self._let_go()
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self.restarts += 1
        self.ended = True
        self.source.close()
        self._say_end()

    def _run_once(self) -> None:
        if self.config.load == "lazy" and isinstance(self.source, Crops):
            while not self.source.wait(_POLL_S):
                if self._stopping.is_set():
                    return
            if self.source.over:
                return
        if self._fresh is None:
            self._settle("opening")
        pipeline = self._fresh or self.prepare()
        self._fresh = None
        if self._stopping.is_set():
            return
        self.excuse()
        self._settle("running")
        if self.restarts:
            self._say_away(False)
        pipeline.run()

    def _settle(self, state: str) -> None:
        if not self.ended:  # one that was given up may wake again
            self.state = state

    def _may_restart(self) -> bool:
        """Where frames go on coming."""
        return self.source.live and not self.source.over and not self._stopping.is_set()

    def _note(self, error: Exception, pause_s: float | None) -> None:
        self._settle("failed")
        self.failed_at = self._options.clock()
        message = error.message if isinstance(error, EdgeferryError) else repr(error)
        then = "the others go on" if pause_s is None else "it starts again in {:.0f} s".format(pause_s)
        _LOG.error("model %s failed: %s (%s)", self.name, message, then)
        _LOG.debug("model %s", self.name, exc_info=error)
        # Its traceback holds the model, for which there may be no room beside the next one.
        self.error = error.with_traceback(None)
        self.error.__cause__ = self.error.__context__ = None

    def _let_go(self) -> None:
        """Give a model up that failed: the next one is opened anew."""
        pipeline, opened = self.pipeline, self._opened
        if pipeline is not None:
            self._summary = pipeline.summary()
            self._earlier.append(pipeline.tally)
        self.pipeline = self._fresh = self._opened = None
        if opened is None:
            return
        model, roster = opened
        try:
            if roster is not None:
                roster.close()
            if pipeline is not None:
                pipeline.model.close()
            model.close()
        except Exception as error:
            _LOG.warning("model %s could not be closed: %r", self.name, error)

    def _say_away(self, away: bool) -> None:
        for tell in self.on_away:
            tell(away)

    def _say_end(self) -> None:
        self._say_away(True)
        for tell in self.on_end:
            tell()

    # What was counted.

    def _tallies(self) -> list[Tally]:
        pipeline = self.pipeline
        return [*self._earlier, pipeline.tally] if pipeline is not None else list(self._earlier)

    @property
    def results(self) -> int:
        """Results given, over all restarts."""
        return sum(tally.frames for tally in self._tallies())

    @property
    def unfinished(self) -> int:
        """Frames that were taken and came to nothing: under way, or lost with a loop that failed or stopped."""
        return self.source.taken - self._settled()

    def _settled(self) -> int:
        """Frames that were taken and came to a result, or to none."""
        return sum(tally.frames + tally.lost for tally in self._tallies())

    def losses(self) -> dict[str, int]:
        """Frames without a result by the keys of ``LOSSES``, over all restarts; without those ``unfinished``."""
        tallies = self._tallies()
        total = {why: sum(tally.losses[why] for tally in tallies) for why in LOSSES}
        total["unread"] += self.source.dropped
        total["damaged"] += self.source.skipped
        return total

    def summary(self) -> Summary | None:
        """What it amounted to; latencies are those of the last start.  None where no model was ever opened."""
        pipeline = self.pipeline
        summary = pipeline.summary() if pipeline is not None else self._summary
        if summary is None:
            return None
        seconds = sum(tally.ended_ns - tally.started_ns for tally in self._tallies()) / 1e9
        return replace(summary, frames=self.results, seconds=seconds, losses=self.losses())

    def describe(self) -> dict[str, Any]:
        """What is known of the lane beside its loop, as plain values; from any thread."""
        return {
            "state": self.state,
            "error": getattr(self.error, "message", repr(self.error)) if self.error is not None else "",
            "restarts": self.restarts,
            "results": self.results,
            "losses": self.losses(),
            "unfinished": self.unfinished,
            "passed": self.source.passed if isinstance(self.source, Tap) else 0,
        }

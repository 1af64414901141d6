"""The camera loop: frames through model and sinks, each stage timed, every frame that comes to nothing counted.

Reading and preprocessing run beside the interpreter in a thread of their own where that pays, else in turn with
it.  A frame has one owner at a time: the source, then whoever reads it, then the interpreter's thread, then the
sinks.  From a live source the next frame is taken as late as it can be and still be ready when the interpreter
is, so that it is as young as it can be.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Iterator, Sequence

from edgeferry_runtime.backend import available_cores
from edgeferry_runtime.errors import BackendError, FrameError, ModelAwayError
from edgeferry_runtime.mailbox import Mailbox
from edgeferry_runtime.model import Model, Placed
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.outlet import Outlet
from edgeferry_runtime.preparing import POLL_S, Preparation, Prepared, smoothed
from edgeferry_runtime.results import STAGES, Result
from edgeferry_runtime.roster import Roster
from edgeferry_runtime.sinks import open_sink
from edgeferry_runtime.sinks.base import Sink
from edgeferry_runtime.sources import open_source
from edgeferry_runtime.sources.base import Frame, FrameSource
from edgeferry_runtime.summary import Summary, Tally
from edgeferry_runtime.tasks.base import Answer

if TYPE_CHECKING:
    from edgeferry_runtime.service import Heartbeat

__all__ = ["Pipeline"]

_MODEL_OPTIONS = ("variant", "backend", "threads", "delegate", "threshold", "top_k")
_TRIAL_FRAMES = 8  # after which it is known whether reading beside the interpreter pays
_WORTH = 0.05  # of a frame's time, and ...
_WORTH_US = 150.0  # ... what must run side by side for the handing over between threads to pay


class Pipeline:
    """Runs a model on a source until the source ends, enough frames are done, or it is told to stop.

    Iterate over it for (frame, result) pairs, or call :meth:`run`; once.

    Args:
        source, model, sinks: opened by the caller, who also closes them; :meth:`open` does both.
        frames: how many results at most; None for no limit.
        pipelined: reading and preprocessing beside the interpreter; None does so where there are cores for it and
            the first frames show that it pays.
        fps: at most so many frames a second are taken.
        max_age_ms: frames older than this when the interpreter is ready for them are skipped.
        motion: frames that differ from the last one that was run in a smaller share of their pixels than this
            are skipped, 0 to 1; None runs all.
        roster: which model runs a frame, and what runs instead of one that fails; None runs ``model`` alone.
        heartbeat: told of every result, so that a watchdog knows that results flow.
        observers: told of every result, in this loop's thread.

    Attributes:
        tally: what was counted so far.
        model: what ran last; changes when an accelerator fails or comes back, and with a new version.

    Raises:
        FrameError: the model takes tensors, not frames.
    """

    def __init__(
        self,
        source: FrameSource,
        model: Model,
        sinks: Sequence[Sink] = (),
        frames: int | None = None,
        pipelined: bool | None = None,
        fps: float | None = None,
        max_age_ms: float | None = None,
        motion: float | None = None,
        roster: Roster | None = None,
        heartbeat: Heartbeat | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        if model.preprocessor is None:
            raise FrameError(
                "{} takes tensors ({}), not frames".format(model.identity, ", ".join(model.inputs)),
                "Give them with Model.set_inputs({name: numbers}), without a pipeline.",
            )
        self.model = model
        self.tally = Tally()
        self._source = source
        self._sinks = sinks
        self._limit = frames
        self._roster = roster or Roster()
        self._preparation = Preparation(
            source, model, self._roster, self.tally, fps, max_age_ms, motion, heartbeat
        )
        self._pipelined = pipelined if available_cores() > 1 or pipelined else False
        self._shape = "sequential"
        self._heartbeat = heartbeat
        self._observers = observers
        self._outlets: list[Outlet] = []
        self._owned = ExitStack()
        self._error: BaseException | None = None
        self._failed: Model | None = None  # frames that were prepared for it go to the one that took its place
        self._failed_ns = 0
        # What the interpreter takes, smoothed: when to take the next frame.
        self._cycle_ns = self._idle_at_ns = 0

    @classmethod
    def open(
        cls,
        source: str | FrameSource,
        bundle: str | os.PathLike[str],
        sinks: Sequence[str | Sink] = (),
        **options: Any,
    ) -> Pipeline:
        """A pipeline from names; use it as a context manager, which closes what it runs.

        Args:
            source: as for ``open_source``: "/dev/video0", a video, a folder; or a source of one's own.
            bundle: a ``.ferry`` file or a folder.
            sinks: as for ``open_sink``, or of one's own.
            **options: of the constructor; and ``variant``, ``backend``, ``threads``, ``delegate``, ``threshold``
                and ``top_k`` of ``Model.open``.
        """
        chosen = {name: options.pop(name) for name in _MODEL_OPTIONS if name in options}
        with ExitStack() as stack:
            model = stack.enter_context(Model.open(bundle, **chosen))
            if isinstance(source, str):
                source = open_source(source, want=model.frame_size, encoded=True)
            stack.enter_context(source)
            opened = [stack.enter_context(open_sink(s) if isinstance(s, str) else s) for s in sinks]
            pipeline = cls(source, model, opened, **options)
            pipeline._owned = stack.pop_all()
        return pipeline

    @property
    def trouble(self) -> str:
        """The last thing that went wrong and was survived, "" when nothing did."""
        return self.tally.trouble

    def close(self) -> None:
        """Close what :meth:`open` was given or opened."""
        self._owned.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stop(self) -> None:
        """End after the frame that is under way; may be called from a signal handler or another thread."""
        self._preparation.stopping = True

    def set_fps(self, fps: float | None) -> None:
        """Take at most so many frames a second from now on, None for all; may be called from another thread."""
        self._preparation.set_fps(fps)

    def run(self) -> Summary:
        """Run to the end.

        Raises:
            SourceError, SinkError, BackendError: what could not be survived.
            FrameError: no frame at all could be decoded.
        """
        for _ in self:
            pass
        return self.summary()

    def __iter__(self) -> Iterator[tuple[Frame, Result]]:
        """Warm up, then give each frame with its result; sinks have been given it too.

        Raises:
            As :meth:`run`.
        """
        if self._source.live:  # a file's first result comes sooner without
            self.model.warm_up(1)
        tally = self.tally
        tally.begin()
        live = self._source.live
        self._outlets = [Outlet(sink, live) for sink in self._sinks]
        try:
            if self._pipelined is not True:
                yield from self._in_turn(None if self._pipelined is False else _TRIAL_FRAMES)
            if self._pipelined is not False and self._going():
                yield from self._side_by_side()
        finally:
            tally.ended_ns = time.monotonic_ns()
            for outlet in self._outlets:
                outlet.finish()
        for outlet in self._outlets:
            if outlet.error is not None and not live:
                raise outlet.error
        if tally.refused is not None and not tally.frames:
            raise tally.refused

    def summary(self) -> Summary:
        """What was counted so far."""
        tally, model = self.tally, self.model
        return Summary(
            bundle=model.identity,
            variant=model.variant.name,
            backend=str(model.interpreter.backend),
            delegate=model.delegate,
            threads=model.interpreter.threads,
            shape=self._shape,
            preprocessing=self._preparation.preprocessor.path,
            frames=tally.frames,
            seconds=(tally.ended_ns - tally.started_ns) / 1e9,
            losses=self._losses(),
            reopened=self._source.reopened,
            sinks=self._sink_counts(),
            stages=dict(zip(STAGES, tally.stages)),
            age=tally.age,
            capture_to_invoke=tally.capture_to_invoke,
        )

    def state(self) -> dict[str, Any]:
        """How it goes just now, as plain values; may be asked from another thread."""
        tally, model, source = self.tally, self.model, self._source
        return {
            "bundle": model.identity,
            "variant": model.variant.name,
            "backend": model.backend_name,
            "delegate": model.delegate,
            "threads": model.interpreter.threads,
            "shape": self._shape,
            "frames": tally.frames,
            "losses": self._losses(),
            "age_us": tally.age.to_json(),
            "source": {"outage": source.outage, "reopened": source.reopened},
            "sinks": self._sink_counts(),
            "trouble": tally.trouble,
        }

    def _sink_counts(self) -> dict[str, dict[str, Any]]:
        """By uri; a second one of the same uri has its place behind it."""
        counts: dict[str, dict[str, Any]] = {}
        for number, outlet in enumerate(self._outlets, 1):
            uri = outlet.sink.uri or type(outlet.sink).__name__
            counts[uri if uri not in counts else "{} ({})".format(uri, number)] = outlet.counts()
        return counts

    def _losses(self) -> dict[str, int]:
        """Frames that came to no result, those counted by the source among them."""
        losses, source = self.tally.losses, self._source
        return dict(losses, unread=source.dropped, damaged=losses["damaged"] + source.skipped)

    # One after the other, in this thread.

    def _in_turn(self, trial: int | None) -> Iterator[tuple[Frame, Result]]:
        """All frames, or as many as show that two threads are better."""
        while self._going():
            prepared = self._preparation.next()
            if prepared is None:
                self.stop()
                return
            outcome = self._finish(prepared)
            if outcome is not None:
                yield outcome
            if trial is not None and self.tally.frames >= trial:
                if self._pays():
                    return
                trial = None

    def _pays(self) -> bool:
        """Whether there is enough that can run side by side."""
        middle = {name: stats.percentile(50) for name, stats in zip(STAGES, self.tally.stages)}
        preparing, running = middle["decode"] + middle["preprocess"], middle["invoke"] + middle["postprocess"]
        if not self._source.live:
            preparing += middle["capture"]
        elif middle["capture"] > preparing:
            return False  # the loop waits for frames as it is; two threads would only make them older
        self._preparation.late = preparing - middle["preprocess"] > running
        return min(preparing, running) > max(_WORTH_US, _WORTH * (preparing + running))

    # Side by side: a thread prepares, this one runs the interpreter.

    def _side_by_side(self) -> Iterator[tuple[Frame, Result]]:
        self._shape = "pipelined"
        self._preparation.ahead = True
        ready: Mailbox[Prepared] = Mailbox(1)
        thread = threading.Thread(target=self._prepare_ahead, args=(ready,), name="edgeferry-prepare", daemon=True)
        thread.start()
        try:
            while self._going():
                prepared = ready.get(POLL_S)
                if prepared is None:
                    if ready.closed and not len(ready):
                        break
                    continue
                outcome = self._finish(prepared)
                if outcome is not None:
                    yield outcome
        finally:
            self.stop()
            ready.close()
            # A source that blocks (a pipe nobody writes to) is left to end with the process.
            thread.join(4 * POLL_S)
        if self._error is not None:
            raise self._error

    def _prepare_ahead(self, ready: Mailbox[Prepared]) -> None:
        try:
            while not self._preparation.stopping:
                if self._source.live and not self._wait_for_the_moment(ready):
                    continue
                prepared = self._preparation.next()
                if prepared is None:
                    break
                ready.put(prepared)
        except BaseException as error:
            self._error = error
        finally:
            ready.close()

    def _wait_for_the_moment(self, ready: Mailbox[Prepared]) -> bool:
        """Wait until a frame that is taken now will be ready just when the interpreter is; False on the way."""
        if not ready.wait_until_empty(POLL_S):
            return False
        takes_ns = self._preparation.takes_ns
        lead_ns = takes_ns + takes_ns // 4 + 1_000_000
        left_ns = self._idle_at_ns - lead_ns - time.monotonic_ns()
        if left_ns > 0:
            ready.wait_until_wanted(left_ns / 1e9)
        return True

    # What both have in common.

    def _going(self) -> bool:
        return not self._preparation.stopping and (self._limit is None or self.tally.frames < self._limit)

    def _finish(self, prepared: Prepared) -> tuple[Frame, Result] | None:
        """Run the interpreter on a prepared frame and hand its result out; None when it comes to none."""
        clock, tally = time.monotonic_ns, self.tally
        frame, model, tensor, picture, placed, began, read, decoded, ready = prepared
        taken = clock()
        max_age_ns = self._preparation.max_age_ns
        if max_age_ns and taken - frame.captured_ns > max_age_ns:
            tally.losses["stale"] += 1
            return None
        if model is self._failed and read < self._failed_ns:  # who chose it later knew that it had failed
            model, placed = self._prepare_again(frame)
        elif tensor is None:
            assert picture is not None  # noqa: S101 - one of the two is there
            model.place(picture)
            placed = model.placed
        elif tensor is not model.frame_input:
            model.load(tensor)
        start = clock()
        self._idle_at_ns = start + self._cycle_ns
        try:
            model, placed = self._invoke(model, placed, frame)
        except ModelAwayError as error:
            tally.survive(error, "away", frame.number)
            return None
        invoked = clock()
        try:
            answer = self._decode(model, placed, frame)
        except BackendError as error:
            tally.survive(error, "invalid", frame.number)
            return None
        model = self.model
        done = clock()
        self._cycle_ns = smoothed(self._cycle_ns, done - start)
        captured = frame.captured_ns
        in_pixels = decoded or read
        stages = (
            (read - began) / 1000,
            (in_pixels - read) / 1000,
            (ready - in_pixels + start - taken) / 1000,
            (read - captured + taken - ready) / 1000,
            (invoked - start) / 1000,
            (done - invoked) / 1000,
        )
        age = (done - captured) / 1000
        tally.add(stages, age, (start - captured) / 1000)
        tally.ended_ns = done
        result = Result(
            frame.number,
            frame.name,
            model.identity,
            model.variant.name,
            model.backend_name,
            captured,
            time.time(),
            age,
            stages,
            tally.lost + self._source.dropped,
            answer,
            frame.region,
        )
        for outlet in self._outlets:
            outlet.put(frame, result)
        for observer in self._observers:
            observer.saw(frame, result, model)
        if self._heartbeat is not None:
            self._heartbeat.advance()
        return frame, result

    def _invoke(self, model: Model, placed: Placed, frame: Frame) -> tuple[Model, Placed]:
        """Run the interpreter on what is in place; where it fails, what the roster gives instead of it.

        Raises:
            BackendError: the roster gives nothing, or what it gives fails as well.
        """
        try:
            model.invoke()
        except BackendError as error:
            failed = model
            try:
                model = self._roster.replace(failed, error)
            finally:
                self._failed, self._failed_ns = failed, time.monotonic_ns()
            self.tally.trouble = error.message
            self.model = model
            model, placed = self._prepare_again(frame)
            model.invoke()
        self.model = model
        return model, placed

    def _decode(self, model: Model, placed: Placed, frame: Frame) -> Answer:
        """The answer; where it is none, that of the model the roster would rather have run the frame with.

        Raises:
            BackendError: it is none, and there is no such model, or its answer is none as well.
        """
        try:
            return model.decode(placed)
        except BackendError as error:
            other = self._roster.invalid(model, error)
            if other is None:
                raise
            self.model = other
            _, placed = self._prepare_again(frame)
            other.invoke()
            return other.decode(placed)

    def _prepare_again(self, frame: Frame) -> tuple[Model, Placed]:
        """A frame that was prepared for a model that failed since."""
        self.model.preprocess(frame.pixels, frame.color)
        return self.model, self.model.placed

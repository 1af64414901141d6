"""`edgeferry-run run`: everything around the loop: opening, thread count, watchdog, state, signals, summary."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Callable

from edgeferry_runtime.errors import SinkError, UsageError
from edgeferry_runtime.model import Model, profile_threads
from edgeferry_runtime.opening import Choices, open_for_loop, open_model, warn_if_undelegated
from edgeferry_runtime.pipeline import Pipeline
from edgeferry_runtime.run_config import RunConfig, load
from edgeferry_runtime.service import ClockWatch, Heartbeat, Notifier, StateFile, StateThread, state_path
from edgeferry_runtime.sinks import open_sink
from edgeferry_runtime.sources import open_source
from edgeferry_runtime.sources.base import PICTURES, WAITING, FrameSource
from edgeferry_runtime.summary import Summary

__all__ = ["choices_of", "choose_threads", "run", "with_config"]

_LOG = logging.getLogger("edgeferry")
_SHAPES = {"auto": None, "on": True, "off": False}


def run(arguments: argparse.Namespace) -> int:
    """Run the loop until it ends or is told to."""
    arguments = with_config(arguments)
    choices = choices_of(arguments)
    notifier = Notifier()
    with ExitStack() as stack:
        # Sinks first: what cannot be written is found out before seconds go into model and camera.
        sinks = [stack.enter_context(open_sink(uri)) for uri in _sink_uris(arguments)]
        model, standby = open_for_loop(choices)
        stack.callback(lambda: model.close())  # the one that runs in the end
        if standby is not None:
            stack.callback(standby.close)
        uri = _played(arguments.source) if arguments.realtime else arguments.source
        source = stack.enter_context(open_source(uri, want=model.frame_size, encoded=True))
        if standby is None:
            model, source = choose_threads(choices, arguments.threads, uri, model, source)
        heartbeat = Heartbeat(notifier)
        pipeline = Pipeline(
            source,
            model,
            sinks,
            arguments.frames,
            pipelined=_SHAPES[arguments.pipelined],
            fps=arguments.fps,
            max_age_ms=arguments.max_age_ms,
            motion=arguments.motion,
            roster=standby,
            heartbeat=heartbeat,
        )
        _stop_on_signals(pipeline.stop)
        with _Watch(pipeline, heartbeat, arguments.state):
            results = iter(pipeline)
            if next(results, None) is not None:
                notifier.ready()
                warn_if_undelegated(pipeline.model)  # not before the first result: looking takes a millisecond
            for _ in results:
                pass
            summary = pipeline.summary()
        notifier.stopping()
    _show(summary, arguments.json)
    return 0


def with_config(arguments: argparse.Namespace) -> argparse.Namespace:
    """The command line, with the file of --config in the place of what it leaves out.

    Raises:
        UsageError: the file is no config, or neither names a source.
    """
    if not arguments.config and not arguments.source:
        raise UsageError("no source is given", "Name one with --source, or a file that does with --config.")
    config = load(arguments.config) if arguments.config else RunConfig(arguments.source)
    file = dict(vars(config.model), **vars(config.loop), source=config.source, sink=list(config.sinks))
    given = vars(arguments)
    return argparse.Namespace(**dict(given, **{key: file[key] for key in file if given.get(key) is None}))


def _played(source: str) -> str:
    """A file as it is played at its own rate."""
    more = "?" in source and not os.path.exists(source)
    return source + ("&" if more else "?") + "realtime=1"


def choices_of(arguments: argparse.Namespace) -> Choices:
    """The command line's choices about the model."""
    return Choices(
        arguments.bundle,
        arguments.variant,
        arguments.backend,
        arguments.threads if isinstance(arguments.threads, int) else None,
        arguments.delegate,
        arguments.xnnpack is not False,
        arguments.threshold,
        arguments.top_k,
        arguments.require_delegate,
        bool(arguments.any_arch),
    )


def choose_threads(
    choices: Choices, asked: int | str | None, uri: str, model: Model, source: FrameSource
) -> tuple[Model, FrameSource]:
    """The model with the number of threads that is best here, measured at the first start.

    Args:
        choices: what the model was opened with.
        asked: a number (nothing is measured), "auto" (measured, or remembered), or None: as the profile says,
            else as "auto".
        uri: of the source, to open it once more where its frames have to be read to know what reading costs.
        model, source: open; the model is closed when another takes its place.
    """
    if isinstance(asked, int) or (asked is None and profile_threads(model.bundle.manifest)):
        return model, source
    from edgeferry_runtime import tuning

    key = tuning.loop_key(model)
    choice = tuning.recall(*key)
    if choice is None:
        frame = source.read(tuning.BUDGET_S)
        if frame is None or frame is WAITING:
            return model, source
        first = frame

        def frames() -> FrameSource:
            # A video that is decoded while it is read costs time no repeated frame would show.
            if os.path.isfile(uri) and not uri.lower().endswith(PICTURES) and first.color != "jpeg":
                return open_source(uri)
            return tuning.Repeated(first)

        _LOG.info("measuring how many threads are best here; this is done once")
        choice = tuning.measure(lambda threads: open_model(choices._replace(threads=threads)), frames)
        tuning.remember(*key, choice)
        if not source.live:
            source = tuning.Again(first, source)
    _LOG.info("%s", choice)
    if choice.threads == model.interpreter.threads:
        return model, source
    model.close()
    return open_model(choices._replace(threads=choice.threads)), source


def _sink_uris(arguments: argparse.Namespace) -> list[str]:
    annotated = ["annotate:" + where for where in arguments.annotate]
    return [*arguments.sink, *annotated]


def _show(summary: Summary, as_json: bool) -> None:
    from edgeferry_runtime.conditions import conditions

    summary = replace(summary, conditions=conditions())
    if as_json:
        print(json.dumps({"summary": summary.to_json()}))
    else:
        print(summary.to_text(), file=sys.stderr)


class _Watch:
    """Once a second, beside the loop: the watchdog's beat, the state file, an eye on the clock."""

    def __init__(self, pipeline: Pipeline, heartbeat: Heartbeat, path: str | None) -> None:
        self._pipeline = pipeline
        self._heartbeat = heartbeat
        self._file = StateFile(path or state_path())
        self._clock = ClockWatch()
        self._frames, self._at = 0, time.monotonic()
        self._thread = StateThread(heartbeat.interval_s, self._tick)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.stop()
        try:
            self._file.close(self._state())
        except SinkError as error:
            _LOG.warning("%s", error)

    def _tick(self) -> None:
        self._heartbeat.tick()
        jump = self._clock.check()
        if jump is not None:
            self._pipeline.tally.trouble = "the clock jumped by {:+.1f} s".format(jump)
            _LOG.warning("%s; ages and intervals are measured on another one", self._pipeline.tally.trouble)
        self._file.write(self._state())

    def _state(self) -> dict[str, Any]:
        # Not before the first result: reading thermometers can wait.
        from edgeferry_runtime.conditions import rss_mb, temperature, throttled

        frames, now = self._pipeline.tally.frames, time.monotonic()
        fps = (frames - self._frames) / max(now - self._at, 1e-9)
        self._frames, self._at = frames, now
        state = self._pipeline.state()
        state["fps"] = round(fps, 2)
        state["still_s"] = round(self._heartbeat.still_s, 1)
        readings = {"rss_mb": rss_mb(), "temperature_c": temperature(), "throttled": throttled()}
        state.update({name: value for name, value in readings.items() if value is not None})
        return state


def _stop_on_signals(stop: Callable[[], None]) -> None:
    """The first Ctrl-C or SIGTERM ends the loop after its frame; the second one ends the process."""

    def handler(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop()

    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)

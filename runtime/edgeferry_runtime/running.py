"""`edgeferry-run run`: command line and run.json, watchdog, state file, control socket, signals, summary."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Callable

from edgeferry_runtime.errors import EdgeferryError, SinkError, UsageError
from edgeferry_runtime.opening import Choices
from edgeferry_runtime.run_config import RunConfig, load
from edgeferry_runtime.runner import Runner
from edgeferry_runtime.running_one import open_one
from edgeferry_runtime.service import ClockWatch, Heartbeat, Notifier, StateFile, StateThread, state_path
from edgeferry_runtime.view_config import ViewConfig

__all__ = ["choices_of", "run", "with_config"]

_LOG = logging.getLogger("edgeferry")


def run(arguments: argparse.Namespace) -> int:
    """Run the loop until it ends or is told to."""
    settings = with_config(arguments)
    notifier = Notifier()
    heartbeat = Heartbeat(notifier)
    with ExitStack() as stack:
        if settings.config.models:
            from edgeferry_runtime.running_several import open_several

            running = open_several(settings, heartbeat, stack)
        else:
            running = open_one(settings, choices_of(settings), heartbeat, stack)
        _obey_signals(running.stop, running.reload)
        with _Watch(running.runner, heartbeat, settings.state):
            code = running.run(notifier.ready)
        notifier.stopping()
    # Not before the sinks are closed: some write until then.
    _show(running.summary(), settings.json)
    return code


def with_config(arguments: argparse.Namespace) -> argparse.Namespace:
    """The command line, with the file of --config in the place of what it leaves out.

    Raises:
        UsageError: the file is no config, or neither names a source.
    """
    if not arguments.config and not arguments.source:
        raise UsageError("no source is given", "Name one with --source, or a file that does with --config.")
    config = load(arguments.config) if arguments.config else RunConfig(arguments.source)
    if arguments.view:
        config = replace(config, view=ViewConfig(arguments.view, arguments.view_token_file))
    file = dict(vars(config.model), **vars(config.loop), source=config.source, sink=list(config.sinks))
    given = vars(arguments)
    settings = argparse.Namespace(**dict(given, **{key: file[key] for key in file if given.get(key) is None}))
    settings.config = config
    settings.played = _played(settings.source) if settings.realtime else settings.source
    settings.sinks = [*settings.sink, *("annotate:" + where for where in settings.annotate)]
    return settings


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


def _show(summary: Any, as_json: bool) -> None:
    from edgeferry_runtime.conditions import conditions

    if as_json:
        print(json.dumps({"summary": dict(summary.to_json(), conditions=conditions())}))
    else:
        print(summary.to_text(), file=sys.stderr)


class _Watch:
    """Once a second, beside the loop: the watchdog's beat, who looks on, the state file, an eye on the clock."""

    def __init__(self, runner: Runner, heartbeat: Heartbeat, path: str | None) -> None:
        self._runner = runner
        self._heartbeat = heartbeat
        self._file = StateFile(path or state_path())
        self._clock = ClockWatch()
        self._control: Any = None
        self._thread = StateThread(heartbeat.interval_s, self._tick)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.stop()
        if self._control:
            self._control.close()
        try:
            self._file.close(self._runner.state())
        except SinkError as error:
            _LOG.warning("%s", error)

    def _tick(self) -> None:
        self._heartbeat.tick()
        self._runner.still_s = self._heartbeat.still_s
        jump = self._clock.check()
        if jump is not None:
            trouble = "the clock jumped by {:+.1f} s".format(jump)
            _LOG.warning("%s; ages and intervals are measured on another one", trouble)
            for pipeline in self._runner.lanes.values():
                pipeline.tally.trouble = trouble
        self._runner.tick()
        self._file.write(self._runner.state())
        if self._control is None:
            self._open_control()

    def _open_control(self) -> None:
        # Not before the loop runs: who asks can wait, the first result cannot.
        from edgeferry_runtime.control import ControlServer, socket_path

        self._control = False
        try:
            self._control = ControlServer(socket_path(self._file.path), self._runner.commands).start()
        except EdgeferryError as error:
            _LOG.warning("`edgeferry-run ctl` cannot reach this loop: %s", error.message)


def _obey_signals(stop: Callable[[], None], reload: Callable[[], None]) -> None:
    """The first Ctrl-C or SIGTERM ends the loop after its frame, the second one the process; SIGHUP reloads."""

    def handler(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop()

    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda number, frame: reload())

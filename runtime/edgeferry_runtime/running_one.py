"""One model on one source, and all that run.json has look on: opened from the first sink to the page."""

from __future__ import annotations

import argparse
import functools
import logging
import threading
from contextlib import ExitStack
from typing import Any, Callable, Mapping, NamedTuple

from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.check import check_in_child
from edgeferry_runtime.errors import EdgeferryError
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.opening import Choices, check_architecture, open_for_loop, open_model, warn_if_undelegated
from edgeferry_runtime.pipeline import Pipeline
from edgeferry_runtime.roster import Roster
from edgeferry_runtime.run_config import RunConfig
from edgeferry_runtime.runner import Command, Runner
from edgeferry_runtime.service import Heartbeat
from edgeferry_runtime.sinks import open_sink
from edgeferry_runtime.sources import open_source
from edgeferry_runtime.thread_choice import choose_threads
from edgeferry_runtime.versions import Opened, Versions
from edgeferry_runtime.watcher import Watcher

__all__ = ["SHAPES", "Running", "checked", "open_one", "open_view"]

_LOG = logging.getLogger("edgeferry")
SHAPES = {"auto": None, "on": True, "off": False}
_HUMBLE = 10  # how much lower the priority of what is only tried or checked is
_CHECK_S = 300.0
_AB_TIMEOUT_S = 3.0
_STUTTER_US = 10_000.0  # a third of a frame at 30 frames/s


class Running(NamedTuple):
    """What ``edgeferry-run run`` runs.

    Attributes:
        runner: for those who ask.
        run: runs it to its end; given what to call once results flow; gives the exit code.
        stop: ends it after the frames under way.
        reload: looks for another version at the next tick.
        summary: when it is over; has ``to_json`` and ``to_text``.
    """

    runner: Runner
    run: Callable[[Callable[[], object]], int]
    stop: Callable[[], None]
    reload: Callable[[], None]
    summary: Callable[[], Any]


def open_one(settings: argparse.Namespace, choices: Choices, heartbeat: Heartbeat, stack: ExitStack) -> Running:
    """Open everything, in the order in which it is cheapest to find out what is wrong.

    Args:
        settings: the command line with the config in the place of what it leaves out; its ``config`` is that.
        choices: about the model.
        heartbeat: told of every result.
        stack: closes it all; what is written is whole when it has.

    Raises:
        EdgeferryError: something cannot be opened.
    """
    config: RunConfig = settings.config
    view = open_view(config, stack)
    sinks = [stack.enter_context(open_sink(uri)) for uri in settings.sinks]
    model, standby = open_for_loop(choices)
    opened = stack.enter_context(ExitStack())
    opened.callback(model.close)
    if standby is not None:
        opened.callback(standby.close)
    source = stack.enter_context(open_source(settings.played, want=model.frame_size, encoded=True))
    if standby is None:
        model, source = choose_threads(choices, settings.threads, settings.played, model, source)
    opened.pop_all()  # they are the versions' from here on
    here = choices._replace(threads=model.interpreter.threads)
    # What depends on an accelerator is opened with its standby, in this process.
    open_version = functools.partial(_open_version, here, 0.0 if standby else model.interpreter.allocate_us)
    versions = Versions(
        choices.bundle,
        model,
        open_version,
        functools.partial(checked, here),
        roster=standby,
        open_variant=open_version,
    )
    stack.callback(versions.close)
    watcher = Watcher(versions)
    observers: list[Observer] = [versions, watcher]
    commands: dict[str, Command] = dict(versions.commands())
    roster: Roster = versions
    recorder = _recorder(config, stack, observers, commands)
    if config.candidate is not None:
        roster = _candidate(config, here, versions, recorder, stack, observers, commands)
    if config.drift is not None:
        from edgeferry_runtime.drift import Drift

        observers.append(Drift(config.drift, source.live, settings.threshold))
    if view is not None:
        observers.append(view.lane(""))
    governor = None
    if config.governor is not None:
        from edgeferry_runtime.governor import Governor

        governor = Governor(config.governor, versions.use_variant, settings.fps)
        observers.append(governor)
    pipeline = Pipeline(
        source, model, sinks, settings.frames, pipelined=SHAPES[settings.pipelined], fps=settings.fps,
        max_age_ms=settings.max_age_ms, motion=settings.motion, roster=roster, heartbeat=heartbeat,
        observers=observers,
    )  # fmt: skip
    for part in (governor, recorder):
        if part is not None:
            part.attach(pipeline)
    runner = Runner({"": pipeline}, observers, commands)
    if view is not None:
        stack.callback(view.close)
        view.start(runner, lambda lane: open_model(here._replace(bundle=versions.running_path, threads=1)))
    check = functools.partial(checked, here, choices.bundle) if view is not None else None

    def run(ready: Callable[[], object]) -> int:
        try:
            _run(pipeline, runner, check, ready)
            return 0
        except EdgeferryError as error:
            if recorder is not None:  # what came before the end is what one wants to see
                recorder.trigger("fault", error.message)
            raise

    return Running(runner, run, pipeline.stop, watcher.ask, pipeline.summary)


def _run(
    pipeline: Pipeline, runner: Runner, check: Callable[[], Mapping[str, Any]] | None, ready: Callable[[], object]
) -> None:
    results = iter(pipeline)
    if next(results, None) is None:
        return
    ready()
    warn_if_undelegated(pipeline.model)  # not before the first result: looking takes a millisecond
    if check is None:
        runner.ready = True
    else:
        threading.Thread(target=_prove, args=(runner, check), name="edgeferry-prove", daemon=True).start()
    for _ in results:
        pass


def _prove(runner: Runner, check: Callable[[], Mapping[str, Any]]) -> None:
    """Ready is what has also replayed its goldens here; that takes seconds, and the loop does not wait for it."""
    report = check()
    if report.get("ok") is True:
        runner.ready = True
    else:
        _LOG.error("the self-check failed, so this is not ready: %s", report.get("error"))


def _open_version(here: Choices, allocate_us: float, path: str, variant: str | None = None) -> Opened:
    """A version to change to.

    Preparing a large model holds Python's lock for its whole length; the loop would stand still meanwhile.  Such a
    one gets a process of its own, where nothing but the machine's cores is shared.
    """
    choices = here._replace(bundle=path, variant=variant or here.variant)
    if allocate_us < _STUTTER_US:
        return open_for_loop(choices)
    from edgeferry_runtime.remote import open_remote_model
    from edgeferry_runtime.restarting import RestartingRoster

    with Bundle.open(path) as bundle:
        check_architecture(bundle.manifest, choices.any_arch)
    return open_remote_model(choices), RestartingRoster(lambda: open_remote_model(choices))


def checked(choices: Choices, path: str) -> dict[str, Any]:
    """A bundle's goldens, replayed in a child process."""
    return check_in_child(path, choices.variant, choices.backend, choices.threads, _CHECK_S, nice=_HUMBLE)


def open_view(config: RunConfig, stack: ExitStack) -> Any:
    """The page's port, before anything that takes long; None where there is no page."""
    if config.view is None:
        return None
    from edgeferry_runtime.view.server import View

    view = View(config.view)
    stack.callback(view.close)
    return view


def _recorder(config: RunConfig, stack: ExitStack, observers: list[Observer], commands: dict[str, Command]) -> Any:
    if config.recorder is None:
        return None
    from edgeferry_runtime.recorder import Recorder

    recorder = Recorder(config.recorder)
    stack.callback(recorder.close)
    observers.append(recorder)
    commands.update(recorder.commands())
    return recorder


def _candidate(
    config: RunConfig, here: Choices, versions: Versions, recorder: Any, stack: ExitStack,
    observers: list[Observer], commands: dict[str, Command],
) -> Roster:  # fmt: skip
    from edgeferry_runtime.candidate import Candidate
    from edgeferry_runtime.remote import open_remote_model

    assert config.candidate is not None  # noqa: S101 - the caller looked
    # In ab a candidate that hangs holds the loop until it is given up.
    how = {"nice": _HUMBLE} if config.candidate.mode == "shadow" else {"timeout_s": _AB_TIMEOUT_S}

    candidate = Candidate(
        config.candidate,
        lambda path: open_remote_model(here._replace(bundle=path), **how),
        functools.partial(checked, here),
        versions.reload,
        roster=versions,
        on_disagreement=functools.partial(recorder.trigger, "disagreement", "") if recorder is not None else None,
    ).start()
    stack.callback(candidate.close)
    observers.append(candidate)
    commands.update(candidate.commands())
    return candidate

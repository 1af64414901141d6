"""Several models on one source, and all that run.json has look on."""

from __future__ import annotations

import argparse
import functools
import os
import threading
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable

from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.lane import LaneOptions
from edgeferry_runtime.lane_models import LaneModels
from edgeferry_runtime.lanes import Lanes
from edgeferry_runtime.model import Model
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.opening import Choices, open_model
from edgeferry_runtime.results import Result
from edgeferry_runtime.run_config import RunConfig
from edgeferry_runtime.runner import Command, Runner
from edgeferry_runtime.running_one import SHAPES, Running, checked, open_view
from edgeferry_runtime.service import Heartbeat
from edgeferry_runtime.sinks import open_sink
from edgeferry_runtime.sources import open_source
from edgeferry_runtime.sources.base import Frame

if TYPE_CHECKING:
    from edgeferry_runtime.governor import Governor

__all__ = ["open_several"]


def open_several(settings: argparse.Namespace, heartbeat: Heartbeat, stack: ExitStack) -> Running:
    """Open everything; arguments and errors as for ``running_one.open_one``."""
    config: RunConfig = settings.config
    view = open_view(config, stack)
    sinks = [stack.enter_context(open_sink(uri)) for uri in settings.sinks]
    source = stack.enter_context(
        open_source(settings.played, want=_wanted_size(config, settings.bundle), encoded=True)
    )
    models = LaneModels(
        config.models, settings.bundle, bool(settings.any_arch), config.memory_mb, source.live, checked
    )
    stack.callback(models.close)
    first = _First(config)
    extra: list[Observer] = []
    commands: dict[str, Command] = dict(models.commands())
    of_lanes = {name: _observers(name, config, source.live, view, stack, extra) for name in config.models}
    everywhere: list[Observer] = []
    options = LaneOptions(
        open_model=models.open,
        observers=lambda name: [*models.observers(name), *of_lanes[name], *everywhere, first.of(name)],
        frames=settings.frames,
        pipelined=SHAPES[settings.pipelined],
        heartbeat=heartbeat,
    )
    lanes = Lanes(_with_loop(config), config.ensembles, lambda want: source, options, sinks=sinks)
    if config.governor is not None:
        from edgeferry_runtime.governor import Governor

        governor = Governor(config.governor, None, config.loop.fps)
        everywhere.append(governor)
        extra.append(_Reattached(governor, lanes))
    stack.enter_context(lanes)
    observers = [models, *extra]
    runner = Runner(lanes.pipelines, observers, commands, several=lanes.state, current=lambda: lanes.pipelines)
    if view is not None:
        stack.callback(view.close)
        view.start(runner, functools.partial(_open_again, lanes))
    return Running(
        runner, functools.partial(_run, lanes, runner, first), lanes.stop, models.reload_all, lanes.summary
    )


def _wanted_size(config: RunConfig, bundle: str) -> tuple[int, int] | None:
    """What covers the inputs of all models that look at whole frames."""
    sizes = []
    for lane in config.models.values():
        if lane.after is None:
            with Bundle.open(lane.bundle or bundle) as opened:
                declared = opened.manifest.preprocessing
            if declared is not None:
                sizes.append((declared.width, declared.height))
    return (max(w for w, _ in sizes), max(h for _, h in sizes)) if sizes else None


def _with_loop(config: RunConfig) -> dict[str, Any]:
    """The lanes, with the loop's choices where they make none of their own."""
    loop = config.loop
    return {
        name: replace(
            lane,
            fps=lane.fps or loop.fps,
            max_age_ms=lane.max_age_ms or loop.max_age_ms,
            motion=loop.motion if lane.motion is None and lane.after is None else lane.motion,
        )
        for name, lane in config.models.items()
    }


def _observers(
    name: str, config: RunConfig, live: bool, view: Any, stack: ExitStack, extra: list[Observer]
) -> list[Observer]:
    """What looks on in one lane; what has to be ticked, too, is added to ``extra`` under a name of its own."""
    found: list[Observer] = []
    if config.drift is not None:
        from edgeferry_runtime.drift import Drift

        found.append(Drift(config.drift, live, config.models[name].model.threshold))
    if config.recorder is not None:
        from edgeferry_runtime.recorder import Recorder

        folder = os.path.join(config.recorder.folder, name)
        share = config.recorder.max_mb / len(config.models)
        recorder = Recorder(replace(config.recorder, folder=folder, max_mb=share))
        stack.callback(recorder.close)
        found.append(recorder)
    for observer in found:
        observer.name = "{}.{}".format(name, observer.name)
    extra.extend(found)
    if view is not None:
        found.append(view.lane(name))
    return found


def _run(lanes: Lanes, runner: Runner, first: _First, ready: Callable[[], object]) -> int:
    def all_there() -> None:
        runner.ready = True
        ready()

    first.then = all_there
    lanes.run()
    return 1 if lanes.failures else 0  # why, the log and the summary say


def _open_again(lanes: Lanes, name: str) -> Model:
    """What a lane runs, once more, for pictures that are sent in."""
    model = lanes.lanes[name].model
    if model is None:
        from edgeferry_runtime.errors import BackendError

        raise BackendError("model {!r} is not loaded".format(name), "Send the picture again when it runs.")
    return open_model(Choices(model.bundle.path, model.variant.name, any_arch=True, threads=1))


class _Reattached(Observer):
    """The governor of all lanes, whose loops are made anew when a lane starts again."""

    def __init__(self, governor: Governor, lanes: Lanes) -> None:
        self.name = governor.name
        self._governor, self._lanes = governor, lanes

    def tick(self) -> None:
        self._governor.attach(*self._lanes.pipelines.values())
        self._governor.tick()

    def state(self) -> dict[str, Any]:
        return self._governor.state()


class _First:
    """Notices when every lane that looks at whole frames has given a result."""

    def __init__(self, config: RunConfig) -> None:
        self.then: Callable[[], None] = lambda: None
        self._left = {name for name, lane in config.models.items() if lane.after is None}
        self._lock = threading.Lock()

    def of(self, name: str) -> Observer:
        return _FirstOf(self, name)

    def arrived(self, name: str) -> None:
        with self._lock:
            last = self._left == {name}
            self._left.discard(name)
        if last:
            self.then()


class _FirstOf(Observer):
    def __init__(self, all_of_them: _First, lane: str) -> None:
        self._all, self._lane, self._told = all_of_them, lane, False

    def saw(self, frame: Frame, result: Result, model: Model) -> None:
        if not self._told:
            self._told = True
            self._all.arrived(self._lane)

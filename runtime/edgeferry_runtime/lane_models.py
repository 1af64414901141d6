"""The models of several lanes: in this process or in workers, within a budget of memory, each replaceable."""

from __future__ import annotations

import functools
import logging
import threading
import time
from typing import Any, Callable, Mapping

from edgeferry_runtime import tuning
from edgeferry_runtime.backend import available_cores
from edgeferry_runtime.errors import BackendError, UsageError
from edgeferry_runtime.fields import did_you_mean
from edgeferry_runtime.lane import Opened
from edgeferry_runtime.lanes_config import LaneConfig
from edgeferry_runtime.model import Model
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.opening import Choices, open_for_loop, open_model
from edgeferry_runtime.placing import WORKERS, auto, threads_each
from edgeferry_runtime.registry import Registry
from edgeferry_runtime.remote import open_remote_model
from edgeferry_runtime.restarting import RestartingRoster
from edgeferry_runtime.results import Result
from edgeferry_runtime.roster import Roster
from edgeferry_runtime.sources import open_source
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.versions import Versions

__all__ = ["LaneModels"]

_LOG = logging.getLogger("edgeferry")
_RESERVE_MB = 48.0  # what a board needs beside all models so that it does not swap
_IDLE_S = 10.0  # without a frame, after which a lazy model may give way to another


class LaneModels(Observer):
    """Opens what lanes run, and knows about all of it.

    A model that is lazy, or one of several with a budget, is lent by a registry: it may be evicted while its lane
    is idle, and its version changes with a restart.  All others change their version while they run.

    Args:
        lanes: by name.
        bundle: of lanes that name none.
        any_arch: as the command line has it.
        memory_mb: what all may hold together, MiB; None for no limit.
        live: of the source.
        check: replays a bundle's goldens in a child process.
    """

    name = "memory"

    def __init__(
        self, lanes: Mapping[str, LaneConfig], bundle: str, any_arch: bool,
        memory_mb: float | None, live: bool, check: Callable[[Choices, str], Mapping[str, Any]],
    ) -> None:  # fmt: skip
        self._lanes, self._live, self._check = lanes, live, check
        self._bundle, self._any_arch = bundle, any_arch
        each = dict(zip(lanes, threads_each(available_cores(), len(lanes))))
        self._choices = {name: self._chosen(lane, each[name]) for name, lane in lanes.items()}
        self._workers = self._placed()
        self._lent = [name for name, lane in lanes.items() if memory_mb is not None or lane.load == "lazy"]
        self._registry = Registry(memory_mb, _RESERVE_MB)
        for name in self._lent:
            self._registry.add(name, functools.partial(self._open, self._choices[name], name in self._workers))
        if memory_mb is not None:
            self._registry.measure_all()  # what can never run is known before the first frame
        self._versions: dict[str, _Latest] = {name: _Latest() for name in lanes}
        self._lendings: dict[str, _Lent] = {}

    def _chosen(self, lane: LaneConfig, threads: int) -> Choices:
        model = lane.model
        return Choices(
            lane.bundle or self._bundle,
            model.variant,
            model.backend,
            model.threads if isinstance(model.threads, int) else threads,
            model.delegate,
            model.xnnpack,
            model.threshold,
            model.top_k,
            model.require_delegate,
            self._any_arch or model.any_arch,
        )

    def _placed(self) -> set[str]:
        """Names of those that get a process of their own."""
        workers = {name for name, lane in self._lanes.items() if lane.process == "worker"}
        free = [name for name, lane in self._lanes.items() if lane.process == "auto"]
        if len(free) < 2:
            return workers  # nothing runs beside it in Python that would be in its way
        keys = []
        for name in free:
            with open_model(self._choices[name]) as model:
                keys.append(tuning.loop_key(model))
        found = auto([self._choices[name] for name in free], keys, _any_frame)
        return workers | set(free) if found.place == WORKERS else workers

    def _open(self, choices: Choices, worker: bool) -> Model:
        return open_remote_model(choices) if worker else open_for_loop(choices)[0]

    def open(self, name: str, lane: LaneConfig) -> Opened:
        """A lane's model, and what chooses among its versions.

        Raises:
            UsageError, BundleError, BackendError, DependencyError.
        """
        if name in self._lent:
            lent = self._lendings[name] = _Lent(self._registry, name, self._restarting(name))
            return lent.model, lent
        choices, worker = self._choices[name], name in self._workers
        if worker:
            model: Model = self._open(choices, True)
            roster: Roster | None = self._restarting(name, lambda: self._open(choices, True))
        else:
            model, roster = open_for_loop(choices)
        latest = self._versions[name]
        latest.versions = Versions(
            choices.bundle, model, functools.partial(self._open_version, choices, worker),
            functools.partial(self._check, choices), roster,
        )  # fmt: skip
        return model, latest.versions

    def _open_version(self, choices: Choices, worker: bool, path: str) -> Opened:
        choices = choices._replace(bundle=path)
        if not worker:
            return open_for_loop(choices)
        model = self._open(choices, True)
        return model, self._restarting("", lambda: self._open(choices, True))

    def _restarting(self, name: str, reopen: Callable[[], Model] | None = None) -> RestartingRoster | None:
        """What brings a worker back; a model in this process is its lane's to start again."""
        if name and name not in self._workers:
            return None
        again = reopen or (lambda: self._registry.renew(name))
        # A camera's next frame is younger; of a file every frame counts, so it waits.
        return RestartingRoster(again) if self._live else RestartingRoster(again, wait_s=60.0, tries=5)

    def observers(self, name: str) -> list[Observer]:
        """What looks on in a lane's loop for it."""
        return [self._versions[name]]

    def commands(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """What may be asked for: "reload", with "model"."""
        return {"reload": self._reload}

    def _reload(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = request.get("model")
        if not isinstance(name, str) or name not in self._lanes:
            hint = did_you_mean(name, list(self._lanes)) if isinstance(name, str) else ""
            raise UsageError(
                "which model? There are {}{}".format(", ".join(self._lanes), hint), "Add --model NAME."
            )
        versions = self._versions[name].versions
        if versions is None:
            raise UsageError(
                "model {!r} is lent by a memory budget, or not loaded yet".format(name),
                "It takes another version when the service starts again.",
            )
        return versions.commands()["reload"](request)

    def reload_all(self) -> None:
        """Look for another version of each model, as SIGHUP asks for."""
        for name, latest in self._versions.items():
            try:
                if latest.versions is not None:
                    latest.versions.reload()
            except (UsageError, BackendError) as error:
                _LOG.warning("model %s: no other version is loaded: %s", name, error.message)

    def tick(self) -> None:
        for latest in self._versions.values():
            latest.tick()
        for lent in list(self._lendings.values()):
            lent.rest()

    def state(self) -> dict[str, Any]:
        """Where each runs, its version, and what the registry says."""
        return dict(
            self._registry.state(),
            workers=sorted(self._workers),
            versions={name: v.versions.state() for name, v in self._versions.items() if v.versions is not None},
        )

    def close(self) -> None:
        """Close what is lent; lanes close what is theirs."""
        self._registry.close()


class _Latest(Observer):
    """A lane's versions, which are made anew whenever it starts again."""

    def __init__(self) -> None:
        self.versions: Versions | None = None

    def saw(self, frame: Frame, result: Result, model: Model) -> None:
        if self.versions is not None:
            self.versions.saw(frame, result, model)

    def tick(self) -> None:
        if self.versions is not None:
            self.versions.tick()


class _Lent(Roster):
    """A model that is held while frames come, and may be evicted while none do.

    Args:
        registry: lends it.
        name: in it.
        restarting: what brings it back when it fails; None ends the loop.
    """

    def __init__(self, registry: Registry, name: str, restarting: RestartingRoster | None) -> None:
        self._registry, self._name, self._restarting = registry, name, restarting
        self._lock = threading.Lock()
        self._used_s = time.monotonic()
        self._held = True
        self.model = registry.hold(name)

    def choose(self, running: Model, frame: Frame) -> Model:
        with self._lock:
            self._used_s = time.monotonic()
            if not self._held:
                self.model = self._registry.hold(self._name)
                self._held = True
        return self._restarting.choose(self.model, frame) if self._restarting is not None else self.model

    def replace(self, failed: Model, error: BackendError) -> Model:
        if self._restarting is None:
            raise error
        self.model = self._restarting.replace(failed, error)
        return self.model

    def rest(self) -> None:
        """Give it back when no frame came for a while; it stays loaded until its memory is wanted."""
        with self._lock:
            if self._held and time.monotonic() - self._used_s > _IDLE_S:
                self._registry.release(self._name)
                self._held = False

    def close(self) -> None:
        with self._lock:
            if self._restarting is not None:
                self._restarting.close()
            if self._held:
                self._registry.release(self._name)
                self._held = False
            self._registry.evict(self._name)  # who runs it closes it


def _any_frame() -> Frame:
    """A picture to measure with."""
    with open_source("synthetic:640x480") as source:
        frame = source.read()
    assert frame is not None  # noqa: S101 - it has no end
    return frame

"""Everything that runs in this process, as those see it who ask: the state file, the control socket, the page."""

from __future__ import annotations

import logging
import time
from typing import Any, Callable, Mapping, Sequence

from edgeferry_runtime.errors import EdgeferryError
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.pipeline import Pipeline

__all__ = ["Command", "Runner"]

_LOG = logging.getLogger("edgeferry")
Command = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Runner:
    """What runs and what looks on; may be asked from any thread.

    Args:
        lanes: a pipeline a model, by name; one named "" where there is a single model.
        observers: told once a second; what they say of themselves is in the state under their names.
        commands: what ``edgeferry-run ctl`` and the page may ask for, by name.
        several: how the lanes are, where there are several.
        current: the pipelines there are just now, where they come and go.

    Attributes:
        ready: warm-up and the self-check are over.
        still_s: seconds without a result, as the watchdog sees it.
    """

    def __init__(
        self,
        lanes: Mapping[str, Pipeline],
        observers: Sequence[Observer] = (),
        commands: Mapping[str, Command] | None = None,
        several: Callable[[], dict[str, Any]] | None = None,
        current: Callable[[], Mapping[str, Pipeline]] | None = None,
    ) -> None:
        self._lanes = lanes
        self._current = current
        self.commands: dict[str, Command] = {
            "state": lambda request: self.state(),
            "models": lambda request: self.models(),
            **(commands or {}),
        }
        self.ready = False
        self.still_s = 0.0
        self._observers = observers
        self._several = several
        self._failing: set[str] = set()
        self._began = time.monotonic()
        self._counted: dict[str, tuple[int, float]] = {}
        self._rates: dict[str, float] = {}

    @property
    def lanes(self) -> Mapping[str, Pipeline]:
        """A pipeline a model, by name."""
        return self._lanes if self._current is None else self._current()

    def tick(self) -> None:
        """Once a second: count, and let everybody who looks on do what takes longer than a frame may."""
        for name, pipeline in self.lanes.items():
            frames, now = pipeline.tally.frames, time.monotonic()
            before, at = self._counted.get(name, (0, self._began))
            self._counted[name] = (frames, now)
            self._rates[name] = round((frames - before) / (now - at), 2) if now > at else 0.0
        for observer in self._observers:
            try:
                observer.tick()
                self._failing.discard(observer.name)
            except Exception as error:  # who looks on must not end the loop, nor silence the others
                if observer.name not in self._failing:
                    reason = error.message if isinstance(error, EdgeferryError) else repr(error)
                    _LOG.error("%s: %s", observer.name or type(observer).__name__, reason)
                self._failing.add(observer.name)

    def models(self) -> dict[str, Any]:
        """What runs in each lane."""
        keys = ("bundle", "variant", "backend", "delegate", "threads", "frames")
        states = {name: pipeline.state() for name, pipeline in self.lanes.items()}
        return {"models": {name: {key: state[key] for key in keys} for name, state in states.items()}}

    def state(self) -> dict[str, Any]:
        """How it goes just now, as plain values."""
        # Not before it is asked for: reading thermometers can wait.
        from edgeferry_runtime.conditions import rss_mb, temperature, throttled

        if self._several is None:
            ((name, pipeline),) = self.lanes.items()
            state = dict(pipeline.state(), fps=self._rates.get(name, 0.0))
        else:
            state = self._joint_state(self._several())
        state["ready"] = self.ready
        state["still_s"] = round(self.still_s, 1)
        for observer in self._observers:
            if observer.name:
                state[observer.name] = observer.state()
        readings = {"rss_mb": rss_mb(), "temperature_c": temperature(), "throttled": throttled()}
        state.update({name: value for name, value in readings.items() if value is not None})
        return state

    def _joint_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Of several lanes, with what they come to together: who watches the service looks at that."""
        lanes: Mapping[str, Mapping[str, Any]] = state["lanes"]
        for name, lane in state["lanes"].items():
            lane["fps"] = self._rates.get(name, 0.0)
        ages = [lane["age_us"] for lane in lanes.values() if "age_us" in lane]
        troubles = ["{}: {}".format(name, lane.get("error") or lane.get("trouble")) for name, lane in lanes.items()
                    if lane.get("error") or lane.get("trouble")]  # fmt: skip
        return dict(
            state,
            frames=sum(lane.get("frames", 0) for lane in lanes.values()),
            fps=round(sum(lane["fps"] for lane in lanes.values()), 2),
            age_us=max(ages, key=lambda age: age["p50"], default={}),
            source=next((lane["source"] for lane in lanes.values() if "source" in lane), {}),
            trouble="; ".join(troubles),
        )

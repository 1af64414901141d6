"""The governor: less is asked of a board that is too hot, throttled or late, and more again once all is well.

A ladder says what less is: a smaller variant, fewer frames a second.  Down it goes at once, one rung at a time;
up only after all has been well for a while.  Between "too much" and "well" lies a band in which nothing changes,
and a rung that had to be left again soon is tried later each time, so that it does not swing.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, Deque, NamedTuple, Sequence

from edgeferry_runtime.conditions import temperature, throttled
from edgeferry_runtime.errors import EdgeferryError
from edgeferry_runtime.governor_config import GovernorConfig, Rung
from edgeferry_runtime.observer import Observer

if TYPE_CHECKING:
    from edgeferry_runtime.model import Model
    from edgeferry_runtime.pipeline import Pipeline
    from edgeferry_runtime.results import Result
    from edgeferry_runtime.sources.base import Frame

__all__ = ["Governor", "Readings", "Since", "decide", "is_well", "too_much"]

_LOG = logging.getLogger("edgeferry")
_FEW = 8  # frames, of which a share says nothing
_MAX_PATIENCE = 16  # by which the wait before a step up grows at most


class Readings(NamedTuple):
    """What was read just now; None where it is not known, which is no reason for anything.

    Attributes:
        temperature_c: of the hottest thermal zone.
        throttled: why the board holds its clock down just now, in words; "" when it does not.
        missed: share of frames that missed their deadline lately.
    """

    temperature_c: float | None = None
    throttled: str = ""
    missed: float | None = None


class Since(NamedTuple):
    """Seconds since the last step, and since when all has been well (0 while it is not)."""

    step_s: float
    well_s: float


def too_much(readings: Readings, limits: GovernorConfig) -> str:
    """Why less must be done, in words; "" where nothing says so."""
    hot, limit, missed = readings.temperature_c, limits.max_temperature_c, readings.missed
    if hot is not None and limit is not None and hot > limit:
        return "{:.1f} C is above {:g}".format(hot, limit)
    if readings.throttled and limits.throttle:
        return "throttled: {}".format(readings.throttled)
    if missed is not None and missed > limits.max_missed:
        return "{:.1%} of the frames were late".format(missed)
    return ""


def is_well(readings: Readings, limits: GovernorConfig) -> bool:
    """Whether nothing speaks against doing more: well below each limit, not just below it."""
    hot, limit, missed = readings.temperature_c, limits.max_temperature_c, readings.missed
    cool = hot is None or limit is None or hot < limit - limits.hysteresis_c
    in_time = missed is None or missed <= limits.max_missed / 2
    return cool and in_time and not too_much(readings, limits)


def decide(ladder: Sequence[Rung], rung: int, readings: Readings, since: Since, limits: GovernorConfig) -> int:
    """The rung to be on, at most one from the present one.

    Args:
        ladder: full quality first.
        rung: the present one, an index.
        readings: of this moment.
        since: how long it has been as it is.
        limits: what is allowed.
    """
    if too_much(readings, limits):
        return rung + 1 if rung + 1 < len(ladder) and since.step_s >= limits.step_s else rung
    if rung and is_well(readings, limits) and min(since) >= limits.hold_s:
        return rung - 1
    return rung


class Governor(Observer):
    """Reads once a second, decides, and acts on one pipeline, or on the frame rate of several.

    Args:
        config: ladder and limits.
        use_variant: told the name of the variant to run, None for the one the loop began with.  It must return
            soon: what loads a model does that in a thread of its own.  None where no rung names a variant.
        fps: of the loop itself, for rungs that name none.
        root: where proc and sys are.
        clock: seconds, monotonic.
    """

    name = "governor"

    def __init__(
        self,
        config: GovernorConfig,
        use_variant: Callable[[str | None], Any] | None = None,
        fps: float | None = None,
        root: str = "/",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._ladder = list(config.ladder)
        self._use_variant = use_variant
        self._fps = fps
        self._root = root
        self._clock = clock
        self._pipelines: tuple[Pipeline, ...] = ()
        self._rung = self._changes = 0
        self._why = ""
        self._readings = Readings()
        self._patience = 1
        self._climbed = False  # whether the last step went up
        self._stepped = self._well = clock()  # since when
        self._since = time.time()
        self._max_age_us = config.max_age_ms * 1000 if config.max_age_ms else float("inf")
        self._results = self._late = 0
        # (seconds, results, late or skipped), the oldest first: what the window began with.
        self._counts: Deque[tuple[float, int, int]] = deque()

    def attach(self, *pipelines: Pipeline) -> None:
        """Act on these from now on; until then nothing is decided."""
        self._pipelines = pipelines

    def saw(self, frame: Frame, result: Result, model: Model) -> None:
        """Count it."""
        self._results += 1
        if result.age_us > self._max_age_us:
            self._late += 1

    def tick(self) -> None:
        """Read, decide, act."""
        if not self._pipelines:
            return
        now, config = self._clock(), self._config
        self._readings = readings = self._read(now)
        if not is_well(readings, config):
            self._well = now
        elif self._climbed and now - self._stepped >= config.hold_s:
            self._patience, self._climbed = 1, False  # it holds what it climbed to
        limits = replace(config, hold_s=config.hold_s * self._patience)
        wanted = decide(self._ladder, self._rung, readings, Since(now - self._stepped, now - self._well), limits)
        if wanted != self._rung:
            self._step(wanted, too_much(readings, config) or "all is well", now)

    def state(self) -> dict[str, Any]:
        """Rung (0 is full quality), what that is, why and since when (seconds since 1970), and what was read."""
        ladder, rung = self._ladder, self._rung
        state: dict[str, Any] = {
            "rung": rung,
            "rungs": len(ladder),
            "variant": ladder[rung].variant,
            "fps": ladder[rung].fps or self._fps,
            "why": self._why,
            "since": round(self._since, 1),
            "changes": self._changes,
        }
        missed = self._readings.missed
        if missed is not None:
            state["missed"] = round(missed, 4)
        return state

    def _read(self, now: float) -> Readings:
        flags = throttled(self._root) if self._config.throttle else None
        hot = temperature(self._root) if self._config.max_temperature_c is not None else None
        return Readings(hot, ", ".join(flags["now"]) if flags else "", self._missed(now))

    def _missed(self, now: float) -> float | None:
        """The share over the window, None while there are too few frames."""
        stale = sum(pipeline.tally.losses["stale"] for pipeline in self._pipelines)
        counts = self._counts
        if counts and stale + self._late < counts[-1][2]:
            counts.clear()  # the loop began anew
        counts.append((now, self._results + stale, self._late + stale))
        while len(counts) > 1 and counts[1][0] <= now - self._config.window_s:
            counts.popleft()
        frames, missed = (counts[-1][i] - counts[0][i] for i in (1, 2))
        return missed / frames if frames >= _FEW else None

    def _step(self, wanted: int, why: str, now: float) -> None:
        up, rung = wanted < self._rung, self._ladder[wanted]
        undone = self._climbed and not up
        self._stepped = self._well = now
        try:
            self._act(rung)
        except EdgeferryError as error:
            _LOG.warning("the governor cannot go to %s: %s", rung, error.message)
            if up:
                self._patience = min(2 * self._patience, _MAX_PATIENCE)  # once more, later
            elif len(self._ladder) > 2:
                del self._ladder[wanted]
                self._stepped -= self._config.step_s  # the rung below is tried next, without waiting
            return
        if undone:
            self._patience = min(2 * self._patience, _MAX_PATIENCE)
        level = logging.INFO if up else logging.WARNING
        _LOG.log(level, "the governor goes %s to %s: %s", "up" if up else "down", rung, why)
        self._rung, self._why, self._climbed = wanted, why, up
        self._since = time.time()
        self._changes += 1
        self._counts.clear()  # what was late before says nothing of this rung

    def _act(self, rung: Rung) -> None:
        """
        Raises:
            EdgeferryError: the variant cannot be run.
        """
        if rung.variant != self._ladder[self._rung].variant and self._use_variant is not None:
            self._use_variant(rung.variant)
        for pipeline in self._pipelines:
            pipeline.set_fps(rung.fps or self._fps)

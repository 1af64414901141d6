"""What the page knows of a lane: its newest frame and result, a short history, the versions that ran."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, NamedTuple

import numpy as np

from edgeferry_runtime.observer import Observer
from edgeferry_runtime.results import STAGES

if TYPE_CHECKING:
    from edgeferry_runtime.model import Model
    from edgeferry_runtime.results import Result
    from edgeferry_runtime.sources.base import Frame

__all__ = ["COLUMNS", "LaneView", "Seen"]

# A row of the history, one a second: when it ended (seconds since 1970), results a second, the mean and the
# largest age, the mean of each stage; all but the first two in milliseconds.
COLUMNS = ("time", "fps", "age_ms", "age_max_ms", *(name + "_ms" for name in STAGES))
_SECONDS = 600  # of history
_RECENT = 20  # results
_VERSIONS = 8  # that ran here, the latest
_PERIOD_S = 0.95  # a tick sooner than this after the last row makes none
_RETIRED_S = 3.0  # a version without a result for so long, while another one gives them, no longer runs


class Seen(NamedTuple):
    """The newest frame with its result."""

    frame: Frame
    result: Result


class _Version:
    """One bundle that gave results here; times are monotonic seconds."""

    def __init__(self, result: Result, delegate: str, now: float) -> None:
        self.variant, self.backend, self.delegate = result.variant, result.backend, delegate
        self.frames = 0
        self.first = self.last = now


class LaneView(Observer):
    """Looks on one lane; the loop writes, anybody reads.

    Args:
        moves: counts the frames the loop is done with, those that gave no result among them.
        clock, wall: monotonic seconds, and seconds since 1970.

    Attributes:
        seen: the newest frame with its result, None before the first.
    """

    def __init__(
        self,
        moves: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.seen: Seen | None = None
        self.moves = moves
        self._clock, self._wall = clock, wall
        self._recent: Deque[Result] = deque(maxlen=_RECENT)
        self._versions: dict[str, _Version] = {}
        self._current: _Version | None = None
        self._bundle = ""
        self._sums = _zeros()
        self._rows = np.zeros((_SECONDS, len(COLUMNS)))
        self._count = 0  # rows ever made
        self._moves_seen = 0
        self._moved_at = self._row_at = clock()

    def saw(self, frame: Frame, result: Result, model: Model) -> None:
        self.seen = Seen(frame, result)
        self._recent.append(result)
        version = self._current
        if version is None or result.bundle != self._bundle:
            version = self._arrive(result, model)
        version.frames += 1
        age, sums = result.age_us, self._sums
        sums[0] += 1
        sums[1] += age
        if age > sums[2]:
            sums[2] = age
        for place, microseconds in enumerate(result.stages_us, 3):
            sums[place] += microseconds

    def tick(self) -> None:
        """Notice whether the loop moves, and end a row of the history when a second is over."""
        now = self._clock()
        moves = self.moves() if self.moves is not None else 0
        if moves != self._moves_seen or self._sums[0]:
            self._moves_seen, self._moved_at = moves, now
            if self._current is not None and self._sums[0]:
                self._current.last = now
        if now - self._row_at >= _PERIOD_S:
            self._end_row(now)

    def still_s(self) -> float:
        """For how many seconds the loop was not seen to move."""
        moves = self.moves() if self.moves is not None else 0
        return 0.0 if moves != self._moves_seen else max(0.0, self._clock() - self._moved_at)

    def history(self, since: float = 0.0) -> list[list[float]]:
        """Rows of ``COLUMNS`` that ended after ``since`` (seconds since 1970), oldest first."""
        count = self._count
        order = np.arange(max(0, count - _SECONDS), count) % _SECONDS
        rows = self._rows[order]
        found: list[list[float]] = np.round(rows[rows[:, 0] > since], 3).tolist()
        return found

    def recent(self) -> list[dict[str, Any]]:
        """The latest results as they go to sinks, newest first, each with its answer in a few words."""
        return [
            dict(result.to_json(), headline=result.answer.headline()) for result in reversed(list(self._recent))
        ]

    def versions(self) -> list[dict[str, Any]]:
        """What ran here, the latest to arrive first."""
        now, wall = self._clock(), self._wall()
        known = sorted(self._versions.items(), key=lambda item: -item[1].first)
        return [
            {
                "bundle": bundle,
                "variant": version.variant,
                "backend": version.backend,
                "delegate": version.delegate,
                "frames": version.frames,
                "since": round(wall - (now - version.first), 3),
                "running": self.runs(bundle),
            }
            for bundle, version in known
        ]

    def runs(self, bundle: str) -> bool:
        """Whether this version gives results just now, alone or by turns with another one."""
        version = self._versions.get(bundle)
        if version is None:
            return False
        return version is self._current or self._clock() - version.last < _RETIRED_S

    def _arrive(self, result: Result, model: Model) -> _Version:
        """Another version than with the last result; with two on trial this comes with every other frame."""
        now = self._clock()
        if self._current is not None:
            self._current.last = now
        version = self._versions.get(result.bundle)
        if version is None:
            version = _Version(result, model.delegate, now)
            kept = dict(self._versions)
            while len(kept) >= _VERSIONS:
                del kept[min(kept, key=lambda bundle: kept[bundle].last)]
            kept[result.bundle] = version
            self._versions = kept  # replaced as a whole: somebody may be reading the old one
        version.last = now
        version.variant, version.backend, version.delegate = result.variant, result.backend, model.delegate
        self._bundle, self._current = result.bundle, version
        return version

    def _end_row(self, now: float) -> None:
        sums, self._sums = self._sums, _zeros()
        frames, seconds = sums[0], now - self._row_at
        row = self._rows[self._count % _SECONDS]
        row[0], row[1] = self._wall(), frames / seconds
        row[2:] = [0.0] * (len(COLUMNS) - 2) if not frames else _means(sums, frames)
        self._row_at = now
        self._count += 1


def _zeros() -> list[float]:
    return [0.0] * (3 + len(STAGES))


def _means(sums: list[float], frames: float) -> list[float]:
    """Milliseconds: the mean age, the largest one, the mean of each stage."""
    return [sums[1] / frames / 1000, sums[2] / 1000, *(total / frames / 1000 for total in sums[3:])]

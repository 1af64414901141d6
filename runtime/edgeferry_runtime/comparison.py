"""A candidate beside the model that runs: agreement, confidence, latency and memory, each with its uncertainty.

All intervals are two-sided and cover the truth with 95 % confidence where frames are independent of each other.
Those of a camera are not quite, for neighbours resemble each other: the truth may lie further off.

agreement   Wilson's score interval (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927).  Where a frame may agree in part
            it is conservative: no variable from 0 to 1 varies more than one that is only ever 0 or 1.
confidence  Student's t interval of the mean difference; paired in shadow, Welch's in ab (B. L. Welch, Biometrika
            34, 1947).
p50, p90    order statistics with binomial ranks (Hahn and Meeker, Statistical Intervals, 1991, section 5.2).
ratios      from the ends of two intervals of 97.5 % each, which by Bonferroni's inequality makes 95 % or more.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import Any, Deque, Mapping, NamedTuple, Sequence

from edgeferry_runtime.promotion import Evidence, Interval, Key
from edgeferry_runtime.similarity import Similarity, compare_answers
from edgeferry_runtime.tasks.base import Answer

__all__ = ["Comparison", "Moments", "mean_interval", "quantile_interval", "to_text", "wilson_interval"]

Z95, Z975 = 1.959964, 2.241403  # two-sided 95 % and 97.5 % of the normal distribution
LAST = 5000  # latencies that are kept of each
_PERCENTILES = (50, 90)


def wilson_interval(hits: float, count: int, z: float = Z95) -> Interval:
    """A proportion.

    Args:
        hits: of ``count``, 0 to ``count``; need not be whole.
        z: quantile of the normal distribution.
    """
    if not count:
        return Interval(math.nan, 0.0, 1.0)
    share, shift = hits / count, z * z / count
    middle = (share + shift / 2) / (1 + shift)
    half = z / (1 + shift) * math.sqrt(max(0.0, share * (1 - share) / count + shift / (4 * count)))
    return Interval(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def quantile_interval(ordered: Sequence[float], quantile: float, z: float = Z95) -> Interval:
    """A quantile of a distribution of any shape; without an end (infinite) where there are too few samples.

    Args:
        ordered: samples, least first; one or more.
        quantile: 0 to 1.
    """
    count = len(ordered)
    value = ordered[min(count - 1, max(0, math.ceil(quantile * count) - 1))]
    half = z * math.sqrt(count * quantile * (1 - quantile))
    low, high = math.floor(quantile * count - half), math.ceil(quantile * count + half)  # ranks, from 1
    return Interval(
        value, ordered[low - 1] if low >= 1 else -math.inf, ordered[high] if high < count else math.inf
    )


class Moments:
    """Mean and variance of a stream (B. P. Welford, Technometrics 4, 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self._squares += step * (value - self.mean)

    @property
    def variance(self) -> float:
        """Of the population the values come from; 0 for fewer than two."""
        return self._squares / (self.count - 1) if self.count > 1 else 0.0


def mean_interval(candidate: Moments, current: Moments | None = None) -> Interval:
    """A mean, or the candidate's less the current's; without ends where a side has fewer than two values."""
    sides = [candidate] if current is None else [candidate, current]
    value = candidate.mean - (current.mean if current else 0.0)
    if any(side.count < 2 for side in sides):
        return Interval(value, -math.inf, math.inf)
    parts = [side.variance / side.count for side in sides]
    error = sum(parts)
    if not error:
        return Interval(value, value, value)
    degrees = error**2 / sum(part**2 / (side.count - 1) for part, side in zip(parts, sides))
    half = _student(degrees) * math.sqrt(error)
    return Interval(value, value - half, value + half)


def _student(degrees: float) -> float:
    """The two-sided 95 % quantile of Student's t, within 1 % from 3 degrees on and too large below.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    if degrees < 3:
        return 12.71
    z, v = Z95, degrees
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


class _Side(NamedTuple):
    """One of the two: its last latencies in microseconds, and its confidence."""

    latencies: Deque[float]
    confidence: Moments


class Comparison:
    """Counts answers and latencies of both; in bounded memory, for several threads.

    Args:
        paired: both answer the same frames (shadow); False: each has its own (ab).

    Attributes:
        frames: that both were compared on; where each has its own, of the one that has fewer.
    """

    def __init__(self, paired: bool) -> None:
        self.paired = paired
        self._lock = threading.Lock()  # held for microseconds, and while some thousand numbers are copied
        self._current, self._candidate = (_Side(deque(maxlen=LAST), Moments()) for _ in range(2))
        self._shift = Moments()
        self._counts = [0, 0]
        self._agreement = 0.0
        self._disagreements = 0
        self.rss_mb: tuple[float | None, float | None] = (None, None)

    @property
    def frames(self) -> int:
        return min(self._counts)

    def add_pair(self, current: Answer, current_us: float, candidate: Answer, candidate_us: float) -> Similarity:
        """Count a frame that both answered."""
        similarity = compare_answers(current, candidate)
        first, second = current.confidence(), candidate.confidence()
        with self._lock:
            self._add(0, first, current_us)
            self._add(1, second, candidate_us)
            self._agreement += similarity.agreement
            self._disagreements += similarity.agreement < 1
            if first is not None and second is not None:
                self._shift.add(second - first)
        return similarity

    def add_one(self, candidate: bool, answer: Answer, us: float) -> None:
        """Count a frame that one of them answered."""
        sure = answer.confidence()
        with self._lock:
            self._add(int(candidate), sure, us)

    def _add(self, which: int, sure: float | None, us: float) -> None:
        side = self._candidate if which else self._current
        self._counts[which] += 1
        side.latencies.append(us)
        if sure is not None:
            side.confidence.add(sure)

    def evidence(self) -> Evidence:
        """What rules decide on."""
        with self._lock:
            frames = self.frames
            known: dict[Key, Interval] = {}
            if self.paired and frames:
                known["agreement", ""] = wilson_interval(self._agreement, frames)
            if self._candidate.confidence.count and self._current.confidence.count:
                shift = mean_interval(self._shift) if self.paired else mean_interval(
                    self._candidate.confidence, self._current.confidence
                )  # fmt: skip
                known["confidence", ""] = shift
            taken = [list(side.latencies) for side in (self._current, self._candidate)]
        if all(taken):
            current, candidate = (sorted(latencies) for latencies in taken)
            for percent in _PERCENTILES:
                known.update(_latency("p{}".format(percent), percent / 100, current, candidate))
        known.update(_memory(*self.rss_mb))
        return Evidence(frames, known)

    def to_json(self) -> dict[str, Any]:
        """Plain values; null where nothing is known, or an interval has no end."""
        evidence = self.evidence()
        with self._lock:
            sides = (self._current, self._candidate)
            sure = [side.confidence.mean if side.confidence.count else None for side in sides]
            taken = [sorted(side.latencies) for side in sides]
            counts, disagreements = list(self._counts), self._disagreements
        middle = {p: [quantile_interval(t, p / 100) if t else None for t in taken] for p in _PERCENTILES}
        value: dict[str, Any] = {
            "frames": evidence.frames,
            "paired": self.paired,
            "disagreements": disagreements if self.paired else None,
        }
        for which, name in enumerate(("current", "candidate")):
            value[name] = {"frames": counts[which], "confidence": _number(sure[which])}
            for percent, intervals in middle.items():
                ms = [None if x is None else x / 1000 for x in intervals[which] or (None,) * 3]
                value[name]["p{}_ms".format(percent)] = _interval(ms)
            value[name]["rss_mb"] = _number(self.rss_mb[which])
        names = {("agreement", ""): "agreement", ("confidence", ""): "confidence_shift"}
        names.update({(metric, "x"): metric + "_ratio" for metric in ("p50", "p90", "rss")})
        for key, name in names.items():
            value[name] = _interval(evidence.intervals.get(key))
        return value


def _latency(name: str, quantile: float, current: list[float], candidate: list[float]) -> dict[Key, Interval]:
    here, there = quantile_interval(current, quantile, Z975), quantile_interval(candidate, quantile, Z975)
    alone = quantile_interval(candidate, quantile)
    ratio = Interval(
        there.value / max(here.value, 1e-9),
        max(there.low, 0.0) / here.high if here.high > 0 else math.nan,
        there.high / here.low if here.low > 0 else math.inf,
    )
    return {(name, "ms"): Interval(*(us / 1000 for us in alone)), (name, "x"): ratio}


def _memory(current: float | None, candidate: float | None) -> dict[Key, Interval]:
    """Read, not estimated: the interval is the figure."""
    known: dict[Key, Interval] = {}
    if candidate is not None:
        known["rss", "mb"] = Interval(candidate, candidate, candidate)
    if candidate is not None and current:
        known["rss", "x"] = Interval(*[candidate / current] * 3)
    return known


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float("{:.6g}".format(value))


def _interval(interval: Sequence[float | None] | None) -> list[float | None] | None:
    return None if interval is None or interval[0] is None else [_number(value) for value in interval]


def to_text(report: Mapping[str, Any]) -> str:
    """A table for people, from what ``to_json`` gave."""
    lines = ["{:<12}{:>12}{:>12}   {}".format("", "current", "candidate", "candidate to current, 95 %")]

    def row(name: str, key: str, scale: str, relation: str, sign: str) -> None:
        cells = []
        for side in ("current", "candidate"):
            value = report[side][key]
            value = value[0] if isinstance(value, list) else value
            cells.append("-" if value is None else scale.format(value))
        lines.append("{:<12}{:>12}{:>12}   {}".format(name, *cells, _span(report.get(relation), sign)).rstrip())

    row("frames", "frames", "{}", "", "")
    if report["paired"]:
        lines.append("{:<36}   {}".format("agreement", _span(report["agreement"], "{:.4f}")))
    row("confidence", "confidence", "{:.4f}", "confidence_shift", "{:+.4f}")
    row("p50 ms", "p50_ms", "{:.3f}", "p50_ratio", "{:.3f}x")
    row("p90 ms", "p90_ms", "{:.3f}", "p90_ratio", "{:.3f}x")
    row("memory MB", "rss_mb", "{:.1f}", "rss_ratio", "{:.3f}x")
    return "\n".join(lines)


def _span(interval: Sequence[float | None] | None, sign: str) -> str:
    if not interval:
        return ""
    if any(end is None for end in interval):
        return sign.format(interval[0]) + " (too few frames to say more)"
    value, low, high = (sign.format(end) for end in interval)
    return value if value == low == high else "{} ({} to {})".format(value, low, high)

"""Latencies in constant memory: percentiles of millions of samples from a few hundred counters."""

from __future__ import annotations

import math
from typing import Sequence

__all__ = ["LatencyStats"]

_STEPS = 32  # buckets for each doubling: a percentile is within 1.1 % of the sample it stands for
_BUCKETS = 40 * _STEPS  # 1 us to 2^40 us, twelve days


class LatencyStats:
    """Counts latencies in logarithmic buckets (as HdrHistogram does) and answers with percentiles.

    All times are microseconds.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total_us = 0.0
        self.max_us = 0.0
        self._buckets = [0] * _BUCKETS

    def add(self, microseconds: float) -> None:
        """Count one sample."""
        self.count += 1
        self.total_us += microseconds
        if microseconds > self.max_us:
            self.max_us = microseconds
        index = int(math.log2(microseconds) * _STEPS) if microseconds > 1 else 0
        self._buckets[min(index, _BUCKETS - 1)] += 1

    def percentile(self, percent: float) -> float:
        """The latency that ``percent`` of the samples do not exceed, 0 when there are none."""
        wanted = self.count * percent / 100
        seen = 0
        for index, count in enumerate(self._buckets):
            seen += count
            if count and seen >= wanted:
                return float(min(2 ** ((index + 0.5) / _STEPS), self.max_us))
        return 0.0

    def up_to(self, powers: Sequence[int]) -> list[int]:
        """Samples of less than 2 ** power us, for each power; rising ones."""
        counts, found, total, at = list(self._buckets), [], 0, 0
        for power in powers:
            total += sum(counts[at : power * _STEPS])
            at = power * _STEPS
            found.append(total)
        return found

    def to_json(self) -> dict[str, float]:
        """p50, p90, p99, max and mean in microseconds."""
        values = {"p{}".format(p): self.percentile(p) for p in (50, 90, 99)}
        values["max"] = self.max_us
        values["mean"] = self.total_us / self.count if self.count else 0.0
        return {name: round(value, 1) for name, value in values.items()}

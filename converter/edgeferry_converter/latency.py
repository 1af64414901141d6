"""Latency of variants side by side, as ratios: this machine's clock is nobody else's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from edgeferry_converter.variants import VariantRunner

__all__ = ["Latency", "measure_latency"]

ROUNDS = 60
BUDGET_S = 4.0


@dataclass(frozen=True)
class Latency:
    """Of one variant's invoke, one thread.

    Attributes:
        p50_ms, p90_ms: percentiles.
        ratio: median against the first variant's, from interleaved rounds.
    """

    p50_ms: float
    p90_ms: float
    ratio: float


def measure_latency(runners: Sequence[VariantRunner]) -> dict[str, Latency]:
    """Time every variant in turn, A B A B, so that a busy machine slows all of them alike.

    Args:
        runners: the first one is what the others are compared with.
    """
    times: dict[str, list[float]] = {runner.variant.name: [] for runner in runners}
    for runner in runners:
        for _ in range(3):
            runner.interpreter.invoke()
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for runner in runners:
            begin = time.perf_counter()
            runner.interpreter.invoke()
            times[runner.variant.name].append((time.perf_counter() - begin) * 1000)
        if time.perf_counter() - started > BUDGET_S:
            break
    base = statistics.median(times[runners[0].variant.name])
    return {
        name: Latency(
            p50_ms=statistics.median(values),
            p90_ms=sorted(values)[int(0.9 * (len(values) - 1))],
            ratio=statistics.median(values) / base,
        )
        for name, values in times.items()
    }

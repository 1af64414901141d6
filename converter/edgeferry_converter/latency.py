"""Latency side by side, as ratios: this machine's clock is nobody else's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Latency", "measure_latency"]

ROUNDS = 60
BUDGET_S = 4.0


@dataclass(frozen=True)
class Latency:
    """Of one way of running the model on one sample.

    Attributes:
        p50_ms, p90_ms: percentiles.
        ratio: median against the first way's, from interleaved rounds.
    """

    p50_ms: float
    p90_ms: float
    ratio: float


def measure_latency(ways: Mapping[str, Callable[[], object]]) -> dict[str, Latency]:
    """Time every way in turn, A B A B, so that a busy machine slows all of them alike.

    Args:
        ways: name -> runs the model once; the first one is what the others are compared with.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run()  # the first run sets up kernels, traces and memory
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for name, run in ways.items():
            begin = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - begin) * 1000)
        if time.perf_counter() - started > BUDGET_S:
            break
    base = statistics.median(next(iter(times.values())))
    return {
        name: Latency(
            p50_ms=statistics.median(values),
            p90_ms=sorted(values)[int(0.9 * (len(values) - 1))],
            ratio=statistics.median(values) / base,
        )
        for name, values in times.items()
    }

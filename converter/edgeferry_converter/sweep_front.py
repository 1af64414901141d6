"""Pure decisions over finished trials: what dominates what, what is within the limits, which one to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeferry_converter.errors import ConverterError

__all__ = ["Limits", "SweepError", "Tried", "choose", "nearest", "pareto_front"]


class SweepError(ConverterError):
    """A sweep found nothing that may be taken, or cannot go on; what it did find is kept."""


@dataclass(frozen=True)
class Tried:
    """One finished trial.

    Attributes:
        number: of its folder; 0 is int8 of the source, without any recipe.
        recipe: as its file says it; empty for number 0.
        metric: the task's metric of the int8 variant; None without labels.
        drop: what int8 lost against the float source; ``low`` and ``high`` are its 95 % interval.
        latency_ms: median of one invoke, as the baseline's latency times ``ratio``.
        ratio: latency against int8 of the source.
        bytes: of the int8 .tflite, or of it zipped, whichever the sweep looks for.
        zipped: of it compressed by zlib.
        overlap: samples that judge and were trained on.
        seconds: what the trial took.
        reason: why it failed; empty when it did not, and then everything above counts.
    """

    number: int
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metric: float | None = None
    drop: float = 0.0
    low: float = 0.0
    high: float = 0.0
    latency_ms: float = 0.0
    ratio: float = 0.0
    bytes: int = 0
    zipped: int = 0
    overlap: int = 0
    seconds: float = 0.0
    reason: str = ""

    @property
    def goals(self) -> tuple[float, float, float]:
        """What a search makes small."""
        return (self.drop, self.ratio, float(self.bytes))


@dataclass(frozen=True)
class Limits:
    """What a bundle may lose, take and weigh; None where anything goes."""

    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_bytes: int | None = None

    def excess(self, trial: Tried) -> dict[str, tuple[float, float]]:
        """The limits a trial breaks: option -> (its figure, what is allowed)."""
        pairs = {
            "--max-drop": (trial.drop, self.max_drop),
            "--max-latency-ms": (trial.latency_ms, self.max_latency_ms),
            "--max-bytes": (float(trial.bytes), self.max_bytes),
        }
        return {
            name: (value, float(most))
            for name, (value, most) in pairs.items()
            if most is not None and value > most
        }


def pareto_front(trials: Sequence[Tried]) -> list[Tried]:
    """The trials that no other one beats in everything, by latency.

    A trial is beaten by one that is as good in drop, latency and bytes and better in one of them; of equals the
    first stays.
    """
    good = [trial for trial in trials if not trial.reason]
    front = [
        trial
        for place, trial in enumerate(good)
        if not any(
            _covers(other.goals, trial.goals) and (other.goals != trial.goals or at < place)
            for at, other in enumerate(good)
        )
    ]
    return sorted(front, key=lambda trial: (trial.ratio, trial.drop, trial.number))


def choose(trials: Sequence[Tried], limits: Limits) -> Tried | None:
    """The fastest within the limits, then the most accurate; None when there is none.

    Latencies within 1 % of the baseline's count as equal: the clock tells no less.
    """
    fitting = [trial for trial in trials if not trial.reason and not limits.excess(trial)]
    return min(fitting, key=lambda t: (round(t.ratio, 2), t.drop, t.bytes, t.number), default=None)


def nearest(trials: Sequence[Tried], limits: Limits) -> SweepError:
    """What to say when nothing is within the limits: what comes nearest, and what would let it in."""
    good = [trial for trial in trials if not trial.reason]

    def by_how_much(trial: Tried) -> float:
        # A drop has no scale of its own: a point over counts as much as a tenth of the latency.
        scale = {"--max-drop": 0.1}
        return sum(
            (value - most) / scale.get(name, most or 1.0) for name, (value, most) in limits.excess(trial).items()
        )

    close = min(good, key=by_how_much)
    broken = limits.excess(close)
    shown = ", ".join(f"{_shown(name, value)} where {name} {_shown(name, most)}" for name, (value, most) in
                      broken.items())  # fmt: skip
    loosen = " and ".join(f"{name} {_loosened(name, value)}" for name, (value, _) in broken.items())
    return SweepError(
        f"none of {len(good)} trials is within the limits; trial {close.number} comes nearest: {shown}",
        f"Loosen {loosen}, add --trials, or widen the space.",
    )


def _covers(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True))


def _shown(name: str, value: float) -> str:
    return f"{value:,.0f}" if name == "--max-bytes" else f"{value:.4g}"


def _loosened(name: str, value: float) -> str:
    """A limit that lets the value in: rounded up, never down."""
    if name == "--max-bytes":
        return f"{value:.0f}"
    return f"{value + 0.00005:.4f}"

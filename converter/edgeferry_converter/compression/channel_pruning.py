"""Make a model smaller by whole channels, in one step or in several with training in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeferry_converter.compression.channel_choice import (
    LEAST,
    TargetError,
    choose,
    largest_share,
    round_targets,
    smallest,
)
from edgeferry_converter.compression.channel_graph import prunable
from edgeferry_converter.compression.channel_groups import Tracing
from edgeferry_converter.compression.macs import cost_table
from edgeferry_converter.compression.rebuild import rebuild
from edgeferry_converter.errors import ModelError

__all__ = ["ChannelBudget", "Shrunk", "share_that_fits", "shrink", "shrink_once"]

Score = Callable[[Tracing], Mapping[str, np.ndarray]]
Restore = Callable[[Tracing, Mapping[str, np.ndarray], Any], object]


@dataclass(frozen=True)
class ChannelBudget:
    """What a channel costs, and in what steps channels go.

    Attributes:
        unit: "macs" or "parameters".
        align: channels the kernels compute at once; counts are kept to multiples of it.
        least: share of each group's channels that stays whatever they matter.
        per_layer: layer name to the price of one unit there, say measured milliseconds for each
            multiply-accumulate; 1 where it is missing.
    """

    unit: str = "macs"
    align: int = 8
    least: float = LEAST
    per_layer: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Shrunk:
    """A smaller model.

    Attributes:
        model: a functional keras.Model, not compiled.
        counts: group name to the channels it has now and those it began with.
        untouched: layer name to the reason why its channels stay.
        before, after: the cost, in the budget's unit.
    """

    model: Any
    counts: Mapping[str, tuple[int, int]]
    untouched: Mapping[str, str]
    before: float
    after: float

    @property
    def share(self) -> float:
        """What is left of the cost."""
        return self.after / self.before


def shrink_once(model: Any, share: float, score: Score, budget: ChannelBudget | None = None) -> Shrunk:
    """Remove the least important channels until at most ``share`` of the cost is left; nothing is trained.

    Args:
        model: a functional or Sequential keras.Model; it is not changed.
        share: of its cost, in (0, 1].
        score: importance of the channels of each group (``edgeferry_converter.compression.importance``).

    Raises:
        ModelError: no channel can be removed, or the model cannot be traced.
        TargetError: the share is below what can be reached.
    """
    return shrink(model, share, score, rounds=1, train=lambda _: None, budget=budget)


def shrink(
    model: Any,
    share: float,
    score: Score,
    rounds: int,
    train: Callable[[Any], None],
    budget: ChannelBudget | None = None,
    restore: Restore | None = None,
) -> Shrunk:
    """Remove channels in rounds, each by the same factor, and train the model in place after each.

    Args:
        rounds: at least 1; channels are ranked anew in each.
        train: called with the smaller model after every round.
        restore: called before it with the tracing, what was kept, and the smaller model, to make up for what went
            (``reconstruction.reconstruct``).

    Raises:
        ModelError: no channel can be removed, or the model cannot be traced.
        TargetError: the share is below what can be reached; told before any training.
    """
    budget = budget or ChannelBudget()
    tracing = _something_to_remove(prunable(model))
    costs = cost_table(tracing, budget.unit, budget.per_layer)
    sizes = dict(costs.groups)
    full = costs.total(costs.sizes)
    _check_reachable(share, smallest(costs, budget.align, budget.least) / full, budget.unit)
    current = tracing.model
    for target in round_targets(share, rounds):
        costs = cost_table(tracing, budget.unit, budget.per_layer)
        keeps = choose(score(tracing), costs, target * full, budget.align, budget.least, sizes)
        current = rebuild(tracing, keeps)
        if restore is not None:
            restore(tracing, keeps, current)
        train(current)
        tracing = prunable(current)
    counts = {group.name: (group.size, sizes[group.name]) for group in tracing.groups}
    costs = cost_table(tracing, budget.unit, budget.per_layer)
    return Shrunk(current, counts, tracing.untouched, full, costs.total(costs.sizes))


def share_that_fits(
    model: Any,
    measure: Callable[[Any], float],
    limit: float,
    score: Score,
    budget: ChannelBudget | None = None,
) -> float:
    """The largest share of the cost at which a measured figure keeps within a limit.

    Bytes of the converted file and latency depend on the channel counts in ways only a measurement tells, so
    models are built (not trained) and measured at up to eight shares.

    Args:
        measure: a keras.Model to its bytes, milliseconds or whatever ``limit`` is in.

    Raises:
        ModelError: no channel can be removed, or the model cannot be traced.
        TargetError: not even the smallest model fits.
    """
    budget = budget or ChannelBudget()
    tracing = _something_to_remove(prunable(model))
    costs = cost_table(tracing, budget.unit, budget.per_layer)
    full, importances = costs.total(costs.sizes), score(tracing)

    def fits(share: float) -> bool:
        keeps = choose(importances, costs, share * full, budget.align, budget.least)
        return measure(rebuild(tracing, keeps)) <= limit

    return largest_share(fits, smallest(costs, budget.align, budget.least) / full)


def _something_to_remove(tracing: Tracing) -> Tracing:
    if not tracing.groups:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(tracing.untouched.items())[:4])
        raise ModelError(
            f"{tracing.model.name}: no channel can be removed ({why})",
            "Pruning by magnitude and quantisation-aware training work on the layers as they are.",
        )
    return tracing


def _check_reachable(share: float, reachable: float, unit: str) -> None:
    if share < reachable:
        raise TargetError(
            f"{share:.1%} of the {unit} cannot be reached by removing channels; the least is {reachable:.1%}",
            f"Set the target to {np.ceil(reachable * 1000) / 10:.1f} % or more, or start from a smaller model.",
            reachable,
        )

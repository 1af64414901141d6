"""Which channels go so that a model becomes as cheap as asked; numpy alone, and the same answer every time."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgeferry_converter.errors import OptionError

__all__ = ["CostTable", "TargetError", "choose", "largest_share", "round_targets", "smallest"]

LEAST = 0.125  # one channel in eight stays: thinner layers lose more than they save


class TargetError(OptionError):
    """No choice of channels reaches the target; ``reachable`` is the lowest cost there is."""

    def __init__(self, message: str, remedy: str | None = None, reachable: float = 0.0) -> None:
        super().__init__(message, remedy)
        self.reachable = reachable


@dataclass(frozen=True)
class CostTable:
    """The cost of a model as an exact function of how many channels each group keeps.

    total = constant + sum over weights of factor * (counts[0] . kept + fixed[0]) * (counts[1] . kept + fixed[1])

    Attributes:
        groups: name and size of each group.
        factors: float64 [weights].
        counts: float64 [weights, 2, groups], how often a channel of the group lies along the weight's two axes.
        fixed: float64 [weights, 2], channels along them that always stay; 1 where there is no second axis.
        constant: of everything no group touches.
    """

    groups: tuple[tuple[str, int], ...]
    factors: np.ndarray
    counts: np.ndarray
    fixed: np.ndarray
    constant: float

    @property
    def sizes(self) -> np.ndarray:
        """int64 [groups], all channels."""
        return np.array([size for _, size in self.groups], np.int64)

    def total(self, kept: np.ndarray) -> float:
        """The cost with ``kept`` channels [groups] left."""
        return float(self.constant + self.factors @ np.prod(self.counts @ kept + self.fixed, axis=1))

    def plus(self, constant: float) -> CostTable:
        """The same with a further constant cost."""
        return replace(self, constant=self.constant + constant)


def choose(
    importances: Mapping[str, np.ndarray],
    costs: CostTable,
    target: float,
    align: int = 8,
    least: float = LEAST,
    original: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """The channels to keep: again and again the block goes that matters least for what it frees.

    Once the target is met, blocks come back that fit below it, the last one removed first.

    A block is as many channels as bring the group to the next multiple of ``align``, the least important first.
    A group of ``align`` channels or fewer goes in smaller blocks, halved until one is less than the group.  At
    least one block and the share ``least`` of the channels stay.

    Args:
        importances: group name to [size], larger is more important; comparable between groups.
        costs: of the same groups.
        target: at most this cost, in the table's unit.
        align: channels the kernels compute at once.
        least: share of each group's channels that stays, in (0, 1].
        original: group name to the size that share is taken of, where the model has been shrunk before.

    Returns:
        group name to the kept channels, int64 in ascending order; only groups that lose some.

    Raises:
        TargetError: the target is below what can be reached.
    """
    names = [name for name, _ in costs.groups]
    ranked = [np.argsort(importances[name], kind="stable") for name in names]
    # lost[group][n]: the importance of the n least important channels
    lost = [np.cumsum([0.0, *importances[n][order]]) for n, order in zip(names, ranked, strict=True)]
    full = costs.sizes
    begin = _begin(costs, original)
    kept = full.copy()

    def score(group: int, fewer: int) -> float:
        """Importance lost for each unit of cost freed."""
        freed = costs.total(kept) - costs.total(_with(kept, group, fewer))
        loses = lost[group][full[group] - fewer] - lost[group][full[group] - kept[group]]
        return float(loses) / freed if freed > 0 else np.inf

    heap: list[tuple[float, int]] = []
    removed: list[tuple[int, int, int]] = []

    def offer(group: int) -> None:
        fewer = _fewer(int(kept[group]), int(begin[group]), align, least)
        if fewer is not None:
            heapq.heappush(heap, (score(group, fewer), group))

    for group in range(len(names)):
        offer(group)
    while costs.total(kept) > target:
        if not heap:
            raise _unreachable(target, costs.total(kept), costs.total(full))
        _, group = heapq.heappop(heap)
        fewer = _fewer(int(kept[group]), int(begin[group]), align, least)
        assert fewer is not None, "only groups that can shrink are offered"  # noqa: S101 - an invariant
        # Other groups shrank since: what this block frees is less now, so its score can only have grown.
        current = score(group, fewer)
        if heap and (current, group) > heap[0]:
            heapq.heappush(heap, (current, group))
            continue
        removed.append((group, int(kept[group]), fewer))
        kept[group] = fewer
        offer(group)
    kept = _with_what_fits(kept, removed, costs, target)
    return {
        name: np.sort(order[size - count :])
        for name, order, size, count in zip(names, ranked, full, kept, strict=True)
        if count < size
    }


def smallest(
    costs: CostTable, align: int = 8, least: float = LEAST, original: Mapping[str, int] | None = None
) -> float:
    """The lowest cost ``choose`` can reach."""
    kept = costs.sizes
    begin = _begin(costs, original)
    for group in range(len(kept)):
        while (fewer := _fewer(int(kept[group]), int(begin[group]), align, least)) is not None:
            kept[group] = fewer
    return costs.total(kept)


def round_targets(share: float, rounds: int) -> tuple[float, ...]:
    """The shares of the cost to come down to, round by round, each by the same factor: share ** (i / rounds).

    >>> round_targets(0.25, 2)
    (0.5, 0.25)
    """
    if not 0 < share <= 1 or rounds < 1:
        raise ValueError(f"a share in (0, 1] in at least one round, not {share} in {rounds}")
    return (*(share ** (i / rounds) for i in range(1, rounds)), share)


def largest_share(fits: Callable[[float], bool], low: float, steps: int = 6) -> float:
    """The largest share in [low, 1] that fits, to (1 - low) / 2**steps; for costs that only a measurement knows.

    Args:
        fits: whether a model of this share is small or fast enough; monotonic but for noise.
        low: the smallest share that can be reached.

    Raises:
        TargetError: not even ``low`` fits.
    """
    if fits(1.0):
        return 1.0
    if not fits(low):
        raise TargetError(
            f"the target is missed even with {low:.1%} of the cost, the least that can be reached",
            "Allow more, or start from a smaller model.",
            low,
        )
    high = 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _fewer(kept: int, begin: int, align: int, share: float) -> int | None:
    """The next smaller count a group of ``begin`` channels may have."""
    block = align
    while block >= begin and block > 1:
        block //= 2
    least = max(block, int(np.ceil(begin * share / block)) * block)
    fewer = (kept - 1) // block * block
    return fewer if fewer >= least else None


def _with_what_fits(
    kept: np.ndarray, removed: list[tuple[int, int, int]], costs: CostTable, target: float
) -> np.ndarray:
    """The counts with blocks (group, channels before, after) put back below the target, the last one first."""
    for group, before, after in reversed(removed):
        more = _with(kept, group, before)
        if kept[group] == after and costs.total(more) <= target:
            kept = more
    return kept


def _begin(costs: CostTable, original: Mapping[str, int] | None) -> np.ndarray:
    return np.array([(original or {}).get(name, size) for name, size in costs.groups], np.int64)


def _with(kept: np.ndarray, group: int, count: int) -> np.ndarray:
    changed = kept.copy()
    changed[group] = count
    return changed


def _unreachable(target: float, reached: float, full: float) -> TargetError:
    return TargetError(
        f"removing channels brings the cost to {reached:,.0f} at the least ({reached / full:.1%} of {full:,.0f}), "
        f"not to {target:,.0f}",
        f"Set the target to {np.ceil(reached / full * 1000) / 10:.1f} % or more, or start from a smaller model.",
        reached,
    )

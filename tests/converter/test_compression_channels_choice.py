"""Choosing channels: the target is met, counts are aligned, what matters least goes first."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from edgeferry_converter.compression.channel_choice import (
    CostTable,
    TargetError,
    choose,
    largest_share,
    round_targets,
    smallest,
)
from edgeferry_converter.compression.channel_groups import IN, OUT, Axis, Slots, Weight, grouped
from hypothesis import given, settings
from hypothesis import strategies as st


def chain(*sizes: int) -> CostTable:
    """A chain of 1x1 convolutions on one pixel: 3 channels in, the groups in between, 10 classes out."""
    terms = len(sizes) + 1
    counts, fixed = np.zeros((terms, 2, len(sizes))), np.zeros((terms, 2))
    for i in range(terms):
        for side, group in enumerate((i - 1, i)):
            if 0 <= group < len(sizes):
                counts[i, side, group] = 1
    fixed[0, 0], fixed[-1, 1] = 3, 10
    return CostTable(tuple((f"c{i}", n) for i, n in enumerate(sizes)), np.ones(terms), counts, fixed, 7.0)


def by_hand(*counts: int) -> float:
    widths = [3, *counts, 10]
    return 7 + sum(a * b for a, b in pairwise(widths))


def counts_of(keeps, costs):
    return [len(keeps[name]) if name in keeps else size for name, size in costs.groups]


def test_the_cost_is_exact():
    costs = chain(16, 24)
    assert costs.total(costs.sizes) == by_hand(16, 24)
    assert costs.total(np.array([8, 5])) == by_hand(8, 5)
    assert costs.plus(3).total(costs.sizes) == by_hand(16, 24) + 3


def test_the_least_important_channels_go_first():
    importance = np.arange(16.0)[::-1].copy()
    keeps = choose({"c0": importance}, chain(16), by_hand(8))
    assert keeps["c0"].tolist() == list(range(8))


def test_importance_is_weighed_against_cost():
    costs = chain(16, 16, 16)  # a channel of c1 frees 32 multiplications, one of c0 19, one of c2 26
    same = {f"c{i}": np.ones(16) for i in range(3)}
    assert list(choose(same, costs, by_hand(16, 8, 16))) == ["c1"]
    worthless = {**same, "c0": np.full(16, 0.1)}
    assert list(choose(worthless, costs, by_hand(16, 16, 16) - 1)) == ["c0"]


def test_what_went_too_far_comes_back():
    """Eight worthless channels of c0 go first; then a block of c1, which alone would have been enough."""
    costs = chain(64, 16)
    importances = {"c0": np.array([0.001] * 8 + [100.0] * 56), "c1": np.ones(16)}
    assert counts_of(choose(importances, costs, by_hand(64, 8)), costs) == [64, 8]
    assert counts_of(choose(importances, costs, by_hand(64, 8) - 1), costs) == [56, 8]


@pytest.mark.parametrize(
    ("size", "align", "least"),
    [(64, 8, 8), (256, 8, 32), (100, 8, 16), (12, 8, 8), (8, 8, 4), (6, 8, 4), (1, 8, 1)],
)
def test_a_block_and_an_eighth_stay(size, align, least):
    costs = chain(size)
    assert smallest(costs, align) == by_hand(least)
    keeps = choose({"c0": np.ones(size)}, costs, by_hand(least), align)
    assert counts_of(keeps, costs) == [least]


def test_an_eighth_is_of_the_size_before_the_first_round():
    assert smallest(chain(64), original={"c0": 256}) == by_hand(32)
    assert smallest(chain(64), least=0.3) == by_hand(24)


def test_a_target_out_of_reach_says_what_is_in_reach():
    costs = chain(64, 64)
    with pytest.raises(TargetError, match=r"at the least \(\d+\.\d% of") as caught:
        choose({"c0": np.ones(64), "c1": np.ones(64)}, costs, 20.0)
    assert caught.value.reachable == by_hand(8, 8)
    assert caught.value.exit_code == 2


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=5),
    st.floats(0.02, 1.0),
    st.sampled_from([1, 4, 8, 16]),
    st.integers(0, 2**31),
)
def test_the_target_is_met_by_aligned_counts_or_refused(sizes, share, align, seed):
    costs = chain(*sizes)
    target = share * costs.total(costs.sizes)
    random = np.random.default_rng(seed)
    importances = {name: random.random(size) for name, size in costs.groups}
    if target < smallest(costs, align):
        with pytest.raises(TargetError):
            choose(importances, costs, target, align)
        return
    keeps = choose(importances, costs, target, align)
    counts = counts_of(keeps, costs)
    assert by_hand(*counts) <= target
    for name, kept in keeps.items():
        size = dict(costs.groups)[name]
        assert len(kept) % align == 0 or size <= align
        assert len(kept) >= size / 8
        gone = np.delete(importances[name], kept)
        assert gone.max() <= importances[name][kept].min()
    again = choose(importances, costs, target, align)
    assert {name: kept.tolist() for name, kept in again.items()} == {n: k.tolist() for n, k in keeps.items()}


def test_rounds_shrink_by_the_same_factor():
    shares = round_targets(0.35, 4)
    assert shares[-1] == 0.35
    assert np.allclose(np.diff(np.log([1.0, *shares])), np.log(0.35) / 4)
    assert round_targets(0.5, 1) == (0.5,)
    with pytest.raises(ValueError, match="share"):
        round_targets(0.0, 3)


def test_the_largest_share_that_fits_is_found():
    asked = []

    def fits(share):
        asked.append(share)
        return share <= 0.6

    assert 0.6 - 0.8 / 2**6 <= largest_share(fits, 0.2) <= 0.6
    assert len(asked) == 8
    assert largest_share(lambda _: True, 0.2) == 1.0
    with pytest.raises(TargetError, match=r"20\.0%"):
        largest_share(lambda _: False, 0.2)


def test_an_addition_of_a_concatenation_couples_each_half_with_its_own():
    slots = Slots()
    image, a, b, wide = slots.new(3), slots.new(8), slots.new(16), slots.new(24)
    slots.freeze(image, "input")
    slots.join(np.concatenate([a, b]), wide)
    classes = slots.classes()

    def kernel(name, read, made):
        axes = [Axis(-1, OUT, classes[made])]
        if name == "d":
            axes = [Axis(-2, IN, classes[read])]
        return Weight(name, 0, "kernel", (1, 1, len(read), len(made)), 1, tuple(axes))

    weights = [kernel("a", image, a), kernel("b", image, b), kernel("wide", image, wide), kernel("d", wide, image)]
    groups = grouped(weights)
    assert [(g.name, g.size, g.producers, g.consumers) for g in groups] == [
        ("a", 8, ("a", "wide"), ("d",)),
        ("b", 16, ("b", "wide"), ("d",)),
    ]


def test_what_is_frozen_freezes_what_is_joined_to_it_and_says_why():
    slots = Slots()
    a, b, c = slots.new(2), slots.new(2), slots.new(2)
    slots.join(b, c)
    slots.freeze(c[:1], "the reason")
    slots.join(a, b)
    assert slots.reason(int(a[0])) == "the reason"
    assert slots.reason(int(a[1])) == ""
    assert slots.classes().tolist() == [-1, 0, -1, 0, -1, 0]


def test_the_pure_modules_do_not_import_tensorflow():
    modules = (
        "channel_choice",
        "channel_groups",
        "channel_graph",
        "channel_rules",
        "importance",
        "rebuild",
        "macs",
    )
    imports = "; ".join(
        f"import edgeferry_converter.compression.{module}" for module in (*modules, "channel_pruning")
    )
    check = f"import sys; {imports}; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0

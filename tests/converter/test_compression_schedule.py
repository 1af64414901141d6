"""Schedules give the published formula's values; masks drop exactly what they say."""

from __future__ import annotations

import numpy as np
import pytest
from edgeferry_converter.compression.masks import STRUCTURES, block_mask, magnitude_mask, two_of_four_mask
from edgeferry_converter.compression.schedule import ConstantSparsity, PolynomialDecay
from edgeferry_converter.errors import OptionError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

ARRAYS = stn.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.sampled_from([4, 8, 12]), st.integers(1, 5)),
    elements=st.integers(-5, 5).map(float),  # many ties
)
SHARES = st.floats(0, 1)


# Worked by hand from equation 1 of arXiv:1710.01878: s_i 0.2, s_f 0.8, t_0 100, t_n 500.
@pytest.mark.parametrize(
    ("step", "cubic", "linear"),
    [(99, 0, 0), (100, 0.2, 0.2), (200, 0.546875, 0.35), (300, 0.725, 0.5), (500, 0.8, 0.8), (9000, 0.8, 0.8)],
)
def test_the_decay_follows_the_formula(step, cubic, linear):
    assert PolynomialDecay(0.2, 0.8, 100, 500).sparsity(step) == pytest.approx(cubic, abs=1e-12)
    assert PolynomialDecay(0.2, 0.8, 100, 500, power=1).sparsity(step) == pytest.approx(linear, abs=1e-12)


def test_constant_sparsity_begins_at_its_step():
    schedule = ConstantSparsity(0.5, 10, frequency=4)
    assert [schedule.sparsity(step) for step in (0, 9, 10, 11, 10**6)] == [0, 0, 0.5, 0.5, 0.5]
    assert [step for step in range(30) if schedule.updates(step)] == [10, 14, 18, 22, 26]
    assert schedule.settled_step == 10


def test_the_last_update_is_the_end_whatever_the_frequency():
    schedule = PolynomialDecay(0, 0.8, 0, 250, frequency=100)
    assert [step for step in range(1000) if schedule.updates(step)] == [0, 100, 200, 250]
    assert schedule.sparsity(250) == 0.8 and schedule.settled_step == 250


@given(st.integers(0, 50), st.integers(1, 300), st.integers(1, 120), st.integers(0, 400))
def test_last_update_is_the_latest_step_that_updates(begin, length, frequency, step):
    schedule = PolynomialDecay(0, 0.9, begin, begin + length, frequency=frequency)
    before = [s for s in range(step + 1) if schedule.updates(s)]
    assert schedule.last_update(step) == (before[-1] if before else None)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: ConstantSparsity(1.0, 0), "target_sparsity is at least 0 and less than 1"),
        (lambda: ConstantSparsity(0.5, -1), "begin_step"),
        (lambda: ConstantSparsity(0.5, 10, 5), "end_step comes before"),
        (lambda: PolynomialDecay(0.5, 0.2, 0, 10), "weights that are gone stay gone"),
        (lambda: PolynomialDecay(0, float("nan"), 0, 10), "final_sparsity"),
        (lambda: PolynomialDecay(0, 0.5, 10, 10), "end_step comes after"),
        (lambda: PolynomialDecay(0, 0.5, 0, 10, frequency=0), "frequency"),
        (lambda: PolynomialDecay(0, 0.5, 0, 10, power=0), "power"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(make, rule):
    with pytest.raises(OptionError, match=rule):
        make()


@given(ARRAYS, SHARES)
def test_unstructured_sparsity_is_exact_and_keeps_the_largest(weights, sparsity):
    mask = magnitude_mask(weights, sparsity)
    assert mask.shape == weights.shape and mask.dtype == bool
    assert np.count_nonzero(~mask) == round(sparsity * weights.size)
    if mask.any() and not mask.all():
        assert np.abs(weights[mask]).min() >= np.abs(weights[~mask]).max()


@given(ARRAYS, SHARES)
def test_blocks_are_four_consecutive_inputs(weights, sparsity):
    mask = block_mask(weights, sparsity, axis=1)
    blocks = mask.reshape(mask.shape[0], -1, 4, mask.shape[2])
    assert (blocks.all(axis=2) == blocks.any(axis=2)).all()
    assert np.count_nonzero(~blocks.all(axis=2)) == round(sparsity * weights.size / 4)
    sums = np.abs(weights).reshape(blocks.shape).sum(axis=2)
    keep = blocks.all(axis=2)
    if keep.any() and not keep.all():
        assert sums[keep].min() >= sums[~keep].max()


@given(ARRAYS, st.floats(0, 0.5))
def test_two_of_four(weights, sparsity):
    mask = two_of_four_mask(weights, sparsity, axis=1)
    zeros = (~mask).reshape(mask.shape[0], -1, 4, mask.shape[2]).sum(axis=2)
    assert set(np.unique(zeros)) <= {0, 2}
    assert zeros.sum() == 2 * round(2 * sparsity * weights.size / 4)


@pytest.mark.parametrize("structure", STRUCTURES)
@given(weights=ARRAYS, sparsity=st.floats(0, 0.5))
def test_masks_are_deterministic_and_pruned_weights_stay_pruned(structure, weights, sparsity):
    make = STRUCTURES[structure]
    weights = np.where(weights == 0, np.float32(0.5), weights)
    mask = make(weights, sparsity, 1)
    assert (make(weights.copy(), sparsity, 1) == mask).all()
    assert (make(weights * mask, sparsity, 1) == mask).all()


def test_ties_go_in_order():
    assert magnitude_mask(np.ones(6), 0.5).tolist() == [False] * 3 + [True] * 3


def test_inputs_that_are_no_multiple_of_four_are_refused():
    with pytest.raises(OptionError, match="3 inputs, no multiple of 4"):
        block_mask(np.ones((3, 3, 3, 8)), 0.5, axis=2)
    with pytest.raises(OptionError, match="2:4 sparsity is 50 %, not 60%"):
        two_of_four_mask(np.ones((4, 8)), 0.6, axis=0)


def test_schedules_and_masks_need_no_tensorflow():
    import subprocess
    import sys

    code = (
        "import sys, edgeferry_converter.compression.schedule, edgeferry_converter.compression.masks,"
        "edgeferry_converter.compression.training, edgeferry_converter.compression.train_data,"
        "edgeferry_converter.compression.distillation, edgeferry_converter.compression.recalibration;"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

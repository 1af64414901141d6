"""Two models compared: similarity by task, intervals that cover what they claim, memory that does not grow."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from edgeferry_runtime.comparison import (
    LAST,
    Comparison,
    Moments,
    mean_interval,
    quantile_interval,
    to_text,
    wilson_interval,
)
from edgeferry_runtime.disagreements import Disagreements
from edgeferry_runtime.results import Result
from edgeferry_runtime.similarity import compare_answers
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.tasks.classify import Classification, ClassScore
from edgeferry_runtime.tasks.detect import Box, Detection
from edgeferry_runtime.tasks.embed import Embedding
from edgeferry_runtime.tasks.keypoints import Keypoint, Pose, Poses
from edgeferry_runtime.tasks.raw import Outputs
from edgeferry_runtime.tasks.regress import Regression
from edgeferry_runtime.tasks.segment import Segmentation
from hypothesis import given, settings
from hypothesis import strategies as st


def classes(index, score=0.9):
    return Classification((ClassScore(index, "", score),))


NOTHING = Classification(())


def boxes(*places):
    return Detection(tuple(Box(index, "", 0.9, x, y, 10.0, 10.0) for index, x, y in places))


def mask(values):
    array = np.array(values, np.uint8)
    return Segmentation(array, (), None, array.shape[::-1], array.shape[::-1])


def pose(dx, count=10):
    return Poses((Pose(0.8, tuple(Keypoint(i, "", 10.0 * i + dx, 0.0, 0.9) for i in range(count))),))


def embedding(*numbers):
    return Embedding(np.array(numbers, np.float32))


@pytest.mark.parametrize(
    ("a", "b", "agreement"),
    [
        (classes(1), classes(1, 0.1), 1),
        (classes(1), classes(2), 0),
        (NOTHING, NOTHING, 1),
        (classes(1), NOTHING, 0),
        (boxes(), boxes(), 1),
        (boxes((0, 0, 0)), boxes(), 0),
        (boxes((0, 0, 0), (1, 50, 50)), boxes((1, 50, 51), (0, 1, 0)), 1),  # in another order
        (boxes((0, 0, 0)), boxes((1, 0, 0)), 0),  # another class
        (boxes((0, 0, 0)), boxes((0, 6, 0)), 0),  # IoU 0.25
        (boxes((0, 0, 0), (0, 90, 0)), boxes((0, 0, 0)), 2 / 3),
        (boxes((0, 0, 0), (0, 0, 0)), boxes((0, 0, 0)), 2 / 3),  # one partner each
        (mask(np.zeros((10, 10))), mask(np.eye(10)), 0),
        (mask(np.zeros((10, 10))), mask(np.zeros((20, 20))), 1),  # another resolution
        (mask(np.zeros((40, 10))), mask(np.pad(np.ones((1, 10)), ((0, 39), (0, 0)))), 1),  # 2.5 % of the pixels
        (pose(0), pose(5), 1),
        (pose(0), pose(9.5), 0),
        (pose(0), Poses(()), 0),
        (Regression((1.0, 100.0)), Regression((1.04, 96.0)), 1),
        (Regression((1.0, 100.0)), Regression((1.1, 100.0)), 0),
        (Regression((0.0,)), Regression((0.0,)), 1),
        (Regression((1.0,)), Regression((1.0, 2.0)), 0),
        (embedding(1, 0), embedding(2, 0.1), 1),
        (embedding(1, 0), embedding(0, 1), 0),
        (Outputs({"a": np.ones((1, 4), np.float32)}), Outputs({"a": np.ones((1, 4), np.float32)}), 1),
        (Outputs({"a": np.ones((1, 4), np.float32)}), Outputs({"b": np.ones((1, 4), np.float32)}), 0),
        (Outputs({"a": np.full((1, 4), np.nan, np.float32)}), Outputs({"a": np.ones((1, 4), np.float32)}), 0),
        (classes(1), boxes(), 0),  # another task
    ],
)
def test_agreement_by_task(a, b, agreement):
    for left, right in ((a, b), (b, a)):
        found = compare_answers(left, right)
        assert found.agreement == pytest.approx(agreement)
        assert 0 <= found.difference <= 1
    assert compare_answers(a, a).difference == pytest.approx(0, abs=1e-9) or isinstance(a, Outputs)


def test_sure_answers_that_differ_tell_more_than_unsure_ones():
    sure = compare_answers(classes(1, 0.99), classes(2, 0.99)).difference
    unsure = compare_answers(classes(1, 0.3), classes(2, 0.3)).difference
    assert 1 >= sure > unsure > compare_answers(classes(1, 0.9), classes(1, 0.1)).difference


def test_confidence_by_task():
    answers = [classes(1, 0.7), NOTHING, boxes((0, 0, 0)), pose(0), Regression((1.0,)), embedding(1)]
    assert [answer.confidence() for answer in answers] == [0.7, 0.0, 0.9, 0.8, None, None]


def test_intervals_of_the_literature():
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 29 of 29.
    for hits, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611),
                                   (29, 29, 0.8830, 1)):  # fmt: skip
        assert wilson_interval(hits, count)[1:] == pytest.approx((low, high), abs=1e-4)
    moments = Moments()
    for value in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0):  # t with 5 degrees: 2.571; 3.5 +- 2.571 * 1.871 / sqrt(6)
        moments.add(value)
    assert mean_interval(moments) == pytest.approx((3.5, 1.536, 5.464), abs=0.01)


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_wilsons_interval_lies_around_its_share_within_0_and_1(count, share):
    value, low, high = wilson_interval(share * count, count)
    assert 0 <= low <= value <= high <= 1
    assert low < high


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.sampled_from([0.5, 0.9]))
def test_a_quantile_lies_in_its_interval(samples, quantile):
    ordered = sorted(samples)
    value, low, high = quantile_interval(ordered, quantile)
    assert low <= value <= high
    assert sum(s <= value for s in ordered) >= quantile * len(ordered) - 1e-9


def covered(draw, truth, interval, rounds=600):
    random = np.random.default_rng(7)
    hits = 0
    for _ in range(rounds):
        _, low, high = interval(draw(random))
        hits += low <= truth <= high
    return hits / rounds


def test_the_intervals_cover_the_truth_as_often_as_they_say():
    assert covered(lambda r: r.binomial(300, 0.95), 0.95, lambda hits: wilson_interval(hits, 300)) > 0.93
    # Partial agreement: no less often.
    assert covered(lambda r: r.beta(8, 2, 200).sum(), 0.8, lambda total: wilson_interval(total, 200)) > 0.98
    for quantile, truth in ((0.5, math.log(2)), (0.9, math.log(10))):
        draws = lambda r: sorted(r.exponential(1, 200))  # noqa: E731
        assert covered(draws, truth, lambda s, q=quantile: quantile_interval(s, q)) > 0.93

    def two(random):
        sides = [Moments(), Moments()]
        for side, spread, count in zip(sides, (1.0, 3.0), (40, 25), strict=True):
            for value in random.normal(0.2, spread, count):
                side.add(value)
        return sides

    assert covered(two, 0.0, lambda sides: mean_interval(*sides)) > 0.93


def test_too_few_samples_give_no_end():
    assert quantile_interval([5.0], 0.9) == (5.0, -math.inf, math.inf)
    assert mean_interval(Moments())[1:] == (-math.inf, math.inf)
    comparison = Comparison(paired=True)
    assert comparison.to_json()["agreement"] is None
    comparison.add_pair(classes(1), 1000.0, classes(1), 1100.0)
    report = comparison.to_json()
    assert report["p90_ratio"] == [pytest.approx(1.1), 0.0, None]
    json.dumps(report, allow_nan=False)


def filled(frames=2000, wrong=20, slower=1.2):
    random = np.random.default_rng(3)
    comparison = Comparison(paired=True)
    for i in range(frames):
        us, score = random.uniform(900, 1100), random.uniform(0.6, 0.8)
        answer = classes(1 if i % (frames // wrong) else 2, score + 0.05)
        comparison.add_pair(classes(1, score), us, answer, us * slower)
    comparison.rss_mb = (80.0, 40.0)
    return comparison


def test_the_whole_comparison():
    report = filled().to_json()
    assert (report["frames"], report["disagreements"]) == (2000, 20)
    value, low, high = report["agreement"]
    assert (value, low < 0.99 < high) == (0.99, True)
    assert report["confidence_shift"][0] == pytest.approx(0.05)
    assert report["p90_ratio"][0] == pytest.approx(1.2, rel=0.01)
    assert report["p90_ratio"][1] < 1.2 < report["p90_ratio"][2]
    assert report["rss_ratio"] == [0.5, 0.5, 0.5]
    text = to_text(json.loads(json.dumps(report)))
    assert "0.9900 (0.98" in text
    assert "+0.0500" in text
    assert "0.500x" in text
    assert to_text(Comparison(paired=False).to_json())


def test_where_each_has_its_own_frames_there_is_no_agreement():
    comparison = Comparison(paired=False)
    for i in range(100):
        comparison.add_one(i % 4 == 0, classes(1, 0.5 + i / 1000), 1000.0)
    evidence = comparison.evidence()
    assert evidence.frames == 25
    assert ("agreement", "") not in evidence.intervals
    assert evidence.intervals["confidence", ""].low < 0 < evidence.intervals["confidence", ""].high


def test_a_comparison_does_not_grow():
    comparison = Comparison(paired=False)
    for i in range(LAST + 500):
        comparison.add_one(False, classes(1), float(i))
    assert len(comparison._current.latencies) == LAST
    assert comparison._current.latencies[0] == 500.0


def result(number):
    return Result(number, "", "b", "v", "x", 0, 0.0, 1.0, (0.0,) * 6, 0, classes(1))


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 400)), max_size=40), st.integers(0, 8))
def test_the_most_telling_frames_are_kept_within_the_bounds(offers, keep):
    kept = Disagreements(keep, 0.001)
    for number, (difference, size) in enumerate(offers):
        frame = Frame(np.zeros(size, np.uint8), "jpeg", number, 0)
        kept.offer(difference, frame, result(number), classes(2))
    found = kept.all()
    assert len(found) <= keep
    assert kept.nbytes == sum(k.pixels.nbytes for k in found) <= 1000
    assert [k.difference for k in found] == sorted((k.difference for k in found), reverse=True)
    if keep and sum(size for _, size in offers) <= 1000:
        best = sorted((difference for difference, _ in offers), reverse=True)[:keep]
        assert [k.difference for k in found] == best


def test_kept_frames_are_copies_with_both_answers():
    kept = Disagreements(2, 1.0)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    frame = Frame(pixels, "bgr", 7, 0)
    assert kept.offer(0.5, frame, result(7), classes(2))
    (one,) = kept.all()
    assert not np.shares_memory(one.pixels, pixels)
    assert not one.pixels.flags.writeable
    assert one.color in ("jpeg", "bgr")
    json.dumps(one.to_json())
    assert one.to_json()["current"]["classes"][0]["index"] == 1
    assert one.to_json()["candidate"]["classes"][0]["index"] == 2
    assert not Disagreements(2, 0.0001).offer(0.5, frame, result(7), classes(2))

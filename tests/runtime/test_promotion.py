"""Rules: what is a rule and what is not, and that the unfavourable end of every interval decides."""

from __future__ import annotations

import math

import pytest
from edgeferry_runtime.candidate_config import CandidateConfig
from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.fields import Fields
from edgeferry_runtime.promotion import METRICS, Condition, Evidence, Interval, Rule, decide, parse_rule
from hypothesis import given
from hypothesis import strategies as st

RULE = "agreement >= 0.98 over 5000 frames and p90 <= 1.1x"


def test_the_rule_of_the_manual():
    rule = parse_rule("promote when " + RULE)
    assert rule == Rule((Condition("agreement", ">=", 0.98, ""), Condition("p90", "<=", 1.1, "x")), 5000)
    assert parse_rule(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("agreement>=98%", Condition("agreement", ">=", 0.98, "")),
        ("Abandon when  AGREEMENT < .9", Condition("agreement", "<", 0.9, "")),
        ("confidence > -0.01", Condition("confidence", ">", -0.01, "")),
        ("p50 <= 12.5 ms", Condition("p50", "<=", 12.5, "ms")),
        ("rss <= 200MB over 7 frames", Condition("rss", "<=", 200.0, "mb")),
    ],
)
def test_ways_to_write_a_condition(text, condition):
    assert parse_rule(text).conditions == (condition,)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no metric"),
        ("agrement >= 0.9", "did you mean 'agreement'"),
        ("agreement => 0.9", "is no condition"),
        ("agreement = 0.9", "is no condition"),
        ("agreement >= high", "is no condition"),
        ("agreement >= 0.98 and", "is no condition"),
        ("agreement >= 0.9 or p90 <= 2x", "is no condition"),
        ("agreement >= 98", "from 0 to 1"),
        ("agreement >= 1", "can never be proven"),
        ("agreement < 0", "can never be proven"),
        ("agreement >= 0.9x", "behind the number of agreement goes nothing or %"),
        ("p90 <= 1.1", "behind the number of p90 goes x or ms"),
        ("p90 <= 1,1x", "is no condition"),
        ("p90 <= -1x", "from 0 to inf"),
        ("agreement >= 0.9 over 0 frames", "over 1 to"),
        ("agreement >= 0.9 over 99999999999999999999 frames", "over 1 to"),
        ("agreement >= 0.9 over 5000", "is no condition"),
        ("p50 <= 2ms and p50 <= 3ms", "twice"),
        ("p50 <= 2ms and " * 100, "longer than"),
    ],
)
def test_what_is_no_rule(text, problem):
    with pytest.raises(UsageError, match=problem):
        parse_rule(text)


@given(st.text(alphabet="agreementp9051 <>=.%xmsover frames and", max_size=60))
def test_any_text_is_a_rule_or_refused_in_words(text):
    try:
        rule = parse_rule(text)
    except UsageError as error:
        assert error.message
        assert error.remedy
    else:
        assert parse_rule(str(rule)).frames == rule.frames


def evidence(frames=5000, agreement=(0.99, 0.985, 0.993), p90=(1.0, 0.95, 1.05)):
    return Evidence(frames, {("agreement", ""): Interval(*agreement), ("p90", "x"): Interval(*p90)})


@pytest.mark.parametrize(
    ("known", "what"),
    [
        (evidence(), "promote"),
        (evidence(frames=4999), "wait"),
        (evidence(agreement=(0.985, 0.979, 0.99)), "wait"),  # good enough as a figure, not proven
        (evidence(p90=(1.05, 1.0, 1.11)), "wait"),
        (evidence(p90=(math.nan, math.nan, math.nan)), "wait"),
        (evidence(agreement=(0.8, 0.7, 0.85)), "abandon"),
        (evidence(frames=499, agreement=(0.8, 0.7, 0.85)), "wait"),
        (evidence(agreement=(0.85, 0.7, 0.91)), "wait"),
        (Evidence(10**6, {}), "wait"),
    ],
)
def test_decisions(known, what):
    decision = decide(parse_rule(RULE), parse_rule("agreement < 0.9 over 500 frames"), known)
    assert decision.what == what
    assert decision.why


def test_without_rules_nothing_is_decided():
    assert decide(None, None, evidence()).what == "wait"


ends = st.floats(-2, 2, allow_nan=False).map(lambda value: round(value, 3))
intervals = st.lists(ends, min_size=3, max_size=3).map(sorted).map(lambda v: Interval(v[1], v[0], v[2]))
conditions = st.builds(
    Condition, st.sampled_from(sorted(METRICS)), st.sampled_from([">=", ">", "<=", "<"]), ends, st.just("")
)


@given(conditions, intervals, st.floats(0, 1))
def test_a_condition_that_holds_holds_for_every_truth_in_the_interval(condition, interval, where):
    truth = min(interval.high, interval.low + where * (interval.high - interval.low))
    if condition.holds(interval):
        assert condition.holds(Interval(truth, truth, truth))


@given(conditions, intervals, st.floats(0, 1), st.floats(0, 1))
def test_less_uncertainty_never_unmakes_a_decision(condition, interval, left, right):
    value, low, high = interval
    narrower = Interval(value, low + left * (value - low), high - right * (high - value))
    if condition.holds(interval):
        assert condition.holds(narrower)


@given(conditions, intervals)
def test_a_condition_and_its_opposite_never_both_hold(condition, interval):
    opposite = {">=": "<", ">": "<=", "<=": ">", "<": ">="}[condition.comparison]
    assert not (condition.holds(interval) and condition._replace(comparison=opposite).holds(interval))


@given(st.lists(conditions, min_size=1, max_size=4), st.data(), st.integers(0, 3000))
def test_a_rule_holds_with_enough_frames_and_all_conditions_alone(parts, data, frames):
    rule = Rule(tuple(parts), 1000)
    known = {(c.metric, c.unit): data.draw(intervals) for c in parts if data.draw(st.booleans())}
    expected = all((c.metric, c.unit) in known and c.holds(known[c.metric, c.unit]) for c in parts)
    assert rule.holds(Evidence(frames, known)) == (expected and frames >= 1000)


def read(table):
    fields = Fields(table)
    config = CandidateConfig.read(fields)
    return config, fields.finish()


def test_a_candidate_in_run_json():
    config, problems = read({"bundle": "/b.ferry", "promote": RULE, "share": 0.1, "keep": 4})
    assert problems == []
    assert (config.mode, config.share, config.keep) == ("shadow", 0.1, 4)
    promote, abandon = config.rules()
    assert promote.frames == 5000
    assert abandon is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"bundle": ""}, "bundle: is '', must be one line"),
        ({"mode": "shadw"}, "did you mean 'shadow'"),
        ({"share": 0}, "share: is 0.0, must be greater than 0"),
        ({"share": 1.5}, "share: is 1.5, must be at most 1"),
        ({"part": 1}, "part: is 1.0, must be less than 1: promote"),
        ({"by": "chance"}, "by: is 'chance'"),
        ({"promote": "agrement > 1"}, "promote: 'agrement' is no metric, did you mean 'agreement'"),
        ({"promote": 5}, "promote: must be a string"),
        ({"promote": "abandon when agreement < 0.9"}, "promote: begins with the other one's word"),
        ({"mode": "ab", "promote": RULE}, "promote: asks for agreement, which only mode shadow measures"),
        ({"keep_gb": 1}, "keep_gb: is unknown"),
    ],
)
def test_what_is_wrong_with_a_candidate_is_said(change, problem):
    _, problems = read({"bundle": "/b.ferry", **change})
    assert len(problems) == 1
    assert problem in problems[0]

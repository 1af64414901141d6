"""Rules that promote or abandon a candidate: read at load, decided on figures with their uncertainty.

    rule      = ["promote when" | "abandon when"] condition {"and" condition}
    condition = metric comparison number [unit] ["over" N "frames"]

A metric is agreement (0 to 1, or with %), confidence (the candidate's mean less the current model's), p50 or p90
(of preprocessing, interpreter and answer: x for candidate / current, ms), rss (x, or MB).  Comparisons are >=, >,
<= and <.  The largest N holds for the whole rule, 1000 where there is none.

A condition holds when the whole interval of its figure does, not when the figure alone does: what is unfavourable
to the rule decides.  Looking again and again would find what it waits for by chance sooner or later, so a rule is
looked at after N frames, after 2 N, after 3 N.
"""

from __future__ import annotations

import math
import re
from typing import Mapping, NamedTuple, Tuple

from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.fields import did_you_mean

__all__ = ["METRICS", "Condition", "Decision", "Evidence", "Interval", "Rule", "decide", "parse_rule"]

# The units each metric may have; "" is a plain number.
METRICS = {
    "agreement": ("", "%"),
    "confidence": ("",),
    "p50": ("x", "ms"),
    "p90": ("x", "ms"),
    "rss": ("x", "mb"),
}
_RANGES = {"agreement": (0.0, 1.0), "confidence": (-1.0, 1.0)}
_FRAMES = 1000  # where a rule does not say over how many
_MOST_FRAMES = 10**9
_LONGEST = 500
_GRAMMAR = 'Write for example "agreement >= 0.98 over 5000 frames and p90 <= 1.1x".'
_CONDITION = re.compile(
    r"(\S+?)\s*(>=|<=|>|<)\s*(-?[0-9]*\.?[0-9]+)\s*(x|ms|mb|%)?(?:\s+over\s+([0-9]+)\s+frames?)?\Z"
)
_SIGNS = {"x": "x", "ms": " ms", "mb": " MB", "": ""}


class Interval(NamedTuple):
    """A figure and what it may be in truth, with 95 % confidence.

    Attributes:
        value: what was measured.
        low, high: the ends of the two-sided interval.
    """

    value: float
    low: float
    high: float


Key = Tuple[str, str]  # a metric and its unit, as in METRICS without "%"


class Evidence(NamedTuple):
    """What is known of a candidate so far.

    Attributes:
        frames: it was compared on.
        intervals: by metric and unit; one that nothing is known of is missing.
    """

    frames: int
    intervals: Mapping[Key, Interval]


class Condition(NamedTuple):
    """One comparison of a rule; a share in % is already a plain number."""

    metric: str
    comparison: str
    limit: float
    unit: str

    def holds(self, interval: Interval) -> bool:
        """Whether the whole interval is on the right side of the limit."""
        value = interval.low if self.comparison[0] == ">" else interval.high
        if math.isnan(value):
            return False
        outcomes = {">=": value >= self.limit, ">": value > self.limit, "<=": value <= self.limit}
        return outcomes.get(self.comparison, value < self.limit)

    def __str__(self) -> str:
        return "{} {} {:g}{}".format(self.metric, self.comparison, self.limit, _SIGNS[self.unit])


class Rule(NamedTuple):
    """Conditions that must all hold.

    Attributes:
        frames: how many it takes at least.
    """

    conditions: tuple[Condition, ...]
    frames: int

    def looks(self, frames: int) -> int:
        """How often it was due to be looked at after so many frames."""
        return frames // self.frames

    def holds(self, evidence: Evidence) -> bool:
        """Whether it holds: enough frames, and every condition."""
        return evidence.frames >= self.frames and not self.open(evidence)

    def open(self, evidence: Evidence) -> list[Condition]:
        """The conditions that do not hold (yet), those nothing is known of among them."""
        known = [evidence.intervals.get((c.metric, c.unit)) for c in self.conditions]
        return [c for c, interval in zip(self.conditions, known) if interval is None or not c.holds(interval)]

    def __str__(self) -> str:
        return "{} over {} frames".format(" and ".join(map(str, self.conditions)), self.frames)


class Decision(NamedTuple):
    """What is to happen with a candidate: "promote", "abandon" or "wait", and why in words."""

    what: str
    why: str


def decide(promote: Rule | None, abandon: Rule | None, evidence: Evidence) -> Decision:
    """What the rules say; where both hold, the candidate is abandoned."""
    for what, rule in (("abandon", abandon), ("promote", promote)):
        if rule is not None and rule.holds(evidence):
            figures = ", ".join(_figure(c, evidence.intervals[c.metric, c.unit]) for c in rule.conditions)
            return Decision(what, "{} after {} frames: {}".format(rule, evidence.frames, figures))
    if promote is None:
        return Decision("wait", "the rule to abandon it does not hold" if abandon else "there is no rule")
    if evidence.frames < promote.frames:
        return Decision("wait", "{} of {} frames".format(evidence.frames, promote.frames))
    return Decision("wait", "not proven: {}".format(", ".join(map(str, promote.open(evidence)))))


def _figure(condition: Condition, interval: Interval) -> str:
    return "{} {:.4g} ({:.4g} to {:.4g})".format(condition.metric, *interval)


def parse_rule(text: str) -> Rule:
    """A rule as it is written in run.json.

    Raises:
        UsageError: it is no rule; the message says where and why.
    """
    if len(text) > _LONGEST:
        raise UsageError("the rule is longer than {} characters".format(_LONGEST), _GRAMMAR)
    words = re.sub(r"\s+", " ", text.strip().lower())
    words = re.sub(r"\A(promote|abandon) when ", "", words)
    conditions, counts = [], []
    for part in re.split(r" and ", words):
        condition, frames = _condition(part.strip())
        conditions.append(condition)
        counts += [frames] if frames else []
    if len({(c.metric, c.unit, c.comparison[0]) for c in conditions}) < len(conditions):
        raise UsageError("the rule limits one metric twice on the same side", _GRAMMAR)
    return Rule(tuple(conditions), max(counts, default=_FRAMES))


def _condition(part: str) -> tuple[Condition, int]:
    found = _CONDITION.match(part)
    name = re.split(r"[\s<>=]", part, maxsplit=1)[0]
    if name not in METRICS:
        close = did_you_mean(name, list(METRICS))
        raise UsageError("{!r} is no metric{}; there are {}".format(name, close, ", ".join(METRICS)), _GRAMMAR)
    if found is None:
        raise UsageError("{!r} is no condition".format(part), _GRAMMAR)
    metric, comparison, number, unit, frames = found.groups()
    unit = unit or ""
    if unit not in METRICS[metric]:
        units = " or ".join(u or "nothing" for u in METRICS[metric])
        raise UsageError("{}: behind the number of {} goes {}".format(part, metric, units), _GRAMMAR)
    limit, unit = (float(number) / 100, "") if unit == "%" else (float(number), unit)
    _check_limit(part, metric, comparison, limit)
    count = int(frames[:12]) if frames else 0
    if frames and not 1 <= count <= _MOST_FRAMES:
        raise UsageError("{}: must be over 1 to {} frames".format(part, _MOST_FRAMES), _GRAMMAR)
    return Condition(metric, comparison, limit, unit), count


def _check_limit(part: str, metric: str, comparison: str, limit: float) -> None:
    low, high = _RANGES.get(metric, (0.0, math.inf))
    if not low <= limit <= high:
        raise UsageError("{}: {} is from {:g} to {:g}".format(part, metric, low, high), _GRAMMAR)
    if metric == "agreement" and ((comparison[0] == ">" and limit == 1) or (comparison[0] == "<" and limit == 0)):
        raise UsageError(
            "{}: can never be proven, however many frames there are".format(part),
            "Write for example agreement >= 0.999.",
        )

"""Which frames are a candidate's, and how long it rests between them; no chance is in it."""

from __future__ import annotations

from fractions import Fraction

from edgeferry_runtime.candidate_config import CandidateConfig

__all__ = ["Turns", "rest_s"]


def rest_s(busy_s: float, share: float) -> float:
    """How long to rest after working for ``busy_s`` so that no more than ``share`` of the time is work."""
    return max(0.0, busy_s / share - busy_s)


class Turns:
    """Which frames are the candidate's, by the config's ``part``: no chance is in it.

    By frame they are spread evenly: of any n frames in a row n * part are the candidate's, give or take one.  By
    time the candidate has the first ``part`` of each period.
    """

    def __init__(self, config: CandidateConfig) -> None:
        part = Fraction(config.part).limit_denominator(10000)
        self._part, self._of = part.numerator, part.denominator
        self._by_time = config.by == "time"
        self._period_s, self._share = config.period_s, config.part
        self._count = 0

    def next(self, now_s: float) -> bool:
        """Whether the next frame is the candidate's."""
        if self._by_time:
            return now_s % self._period_s < self._share * self._period_s
        before, self._count = self._count, self._count + 1
        return self._count * self._part // self._of > before * self._part // self._of

"""What run.json says of a candidate: another version of the model, tried beside the one that runs.

Part of the contract: the workstation writes it and the board reads it, both through this module.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.fields import Fields
from edgeferry_runtime.promotion import Rule, parse_rule

__all__ = ["MODES", "SPLITS", "CandidateConfig"]

MODES = ("shadow", "ab")
SPLITS = ("frame", "time")
_LINE = re.compile("[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+\\Z")


@dataclass(frozen=True)
class CandidateConfig:
    """A candidate and how it is tried.

    Attributes:
        bundle: a ``.ferry`` file or a folder, on the board.
        mode: "shadow" runs it on frames the current model has answered, and publishes nothing; "ab" lets it
            answer a part of the frames in the current model's place.
        share: shadow: of one processor core, 0 to 1.
        part: ab: of the frames or of the time, 0 to 1, both excluded.
        by: ab: "frame" spreads its frames evenly, "time" lets the two take turns.
        period_s: ab by time: seconds for one turn of both.
        failures: after so many frames on which it failed it is abandoned.
        keep: so many of the frames the two disagreed most about are kept in memory.
        keep_mb: and so many megabytes (10^6 bytes) of them at most.
        promote, abandon: rules, see ``promotion.parse_rule``; None leaves it to people.
    """

    bundle: str
    mode: str = "shadow"
    share: float = 0.2
    part: float = 0.5
    by: str = "frame"
    period_s: float = 60.0
    failures: int = 3
    keep: int = 16
    keep_mb: float = 16.0
    promote: str | None = None
    abandon: str | None = None

    @classmethod
    def read(cls, fields: Fields) -> CandidateConfig:
        """Read it, noting every problem in ``fields``."""
        mode = fields.choice("mode", MODES, "shadow")
        return cls(
            bundle=fields.text("bundle", pattern=_LINE, means="one line, and not empty"),
            mode=mode,
            share=fields.number("share", 0.2, above=0, maximum=1),
            part=_part(fields),
            by=fields.choice("by", SPLITS, "frame"),
            period_s=fields.number("period_s", 60.0, minimum=0.1, maximum=86400),
            failures=fields.integer("failures", 3, minimum=1),
            keep=fields.integer("keep", 16, minimum=0, maximum=1000),
            keep_mb=fields.number("keep_mb", 16.0, minimum=0, maximum=4096),
            promote=fields.optional("promote", lambda key: _rule(fields, key, mode)),
            abandon=fields.optional("abandon", lambda key: _rule(fields, key, mode)),
        )

    def rules(self) -> tuple[Rule | None, Rule | None]:
        """The rules to promote and to abandon.

        Raises:
            UsageError: one is no rule; never where it was read without problems.
        """
        promote = parse_rule(self.promote) if self.promote else None
        return promote, parse_rule(self.abandon) if self.abandon else None


def _part(fields: Fields) -> float:
    part = fields.number("part", 0.5, above=0)
    if part >= 1:
        fields.problem("part", "is {}, must be less than 1: promote the candidate instead".format(part))
    return part


def _rule(fields: Fields, key: str, mode: str) -> str:
    text = fields.text(key)
    if not isinstance(text, str) or not text:
        return ""
    try:
        rule = parse_rule(text)
    except UsageError as error:
        fields.problem(key, "{}. {}".format(error.message, error.remedy))
        return text
    if re.match(r"\s*(promote|abandon)\b", text.lower()) and not text.strip().lower().startswith(key):
        fields.problem(key, "begins with the other one's word")
    if mode == "ab" and any(condition.metric == "agreement" for condition in rule.conditions):
        fields.problem(key, "asks for agreement, which only mode shadow measures: in ab one model sees each frame")
    return text

"""The governor's part of run.json: the ladder it goes down, and what makes it go."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeferry_runtime.fields import Fields

__all__ = ["GovernorConfig", "Rung"]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")  # as the manifest has them


@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    Attributes:
        variant: of the bundle; None for the one the loop began with.
        fps: frames a second at most; None for the loop's own.
    """

    variant: str | None = None
    fps: float | None = None

    @classmethod
    def read(cls, fields: Fields) -> Rung:
        """Read it, noting every problem in ``fields``."""
        return cls(
            variant=fields.optional("variant", lambda key: fields.text(key, pattern=_NAME, means="a name")),
            fps=fields.optional("fps", lambda key: fields.number(key, above=0)),
        )

    def __str__(self) -> str:
        parts = [self.variant] if self.variant else []
        parts += ["{:g} frames/s".format(self.fps)] if self.fps else []
        return ", ".join(parts) or "full quality"


@dataclass(frozen=True)
class GovernorConfig:
    """When to do less, and when to do more again.

    Attributes:
        ladder: the first is full quality, each one after it less; two at least.
        max_temperature_c: above it less is done; None looks at no thermometer.
        hysteresis_c: so much below that it must be before more is done.
        throttle: less is done while the board says that it holds its clock down.
        max_missed: share of frames that may miss their deadline; above it less is done, and at half of it or below
            more.  Missed are those that were skipped as too old, and those whose result is older than
            ``max_age_ms``: with 0.1 that is a 90th percentile of the age above it.
        max_age_ms: None counts only what was skipped.
        window_s: over which deadlines are counted.
        step_s: the least between two steps down, so that one can show what it does.
        hold_s: all must have been well for so long before one step up.
    """

    ladder: tuple[Rung, ...]
    max_temperature_c: float | None = 75.0
    hysteresis_c: float = 5.0
    throttle: bool = True
    max_missed: float = 0.1
    max_age_ms: float | None = None
    window_s: float = 10.0
    step_s: float = 10.0
    hold_s: float = 60.0

    @classmethod
    def read(cls, fields: Fields) -> GovernorConfig:
        """Read it, noting every problem in ``fields``.

        ``"max_temperature_c": null`` takes the default; 0 looks at no thermometer.
        """
        ladder = fields.parts("ladder", Rung.read, minimum_length=2)
        for i, (before, after) in enumerate(zip(ladder, ladder[1:]), 1):
            if before == after:
                fields.problem("ladder[{}]".format(i), "is the same as the one before")
        limit = fields.optional("max_temperature_c", lambda key: fields.number(key, minimum=0.0, maximum=150.0))
        return cls(
            ladder=ladder,
            max_temperature_c=cls.max_temperature_c if limit is None else limit or None,
            hysteresis_c=fields.number("hysteresis_c", cls.hysteresis_c, minimum=0.5, maximum=50.0),
            throttle=fields.boolean("throttle", cls.throttle),
            max_missed=fields.number("max_missed", cls.max_missed, above=0.0, maximum=1.0),
            max_age_ms=fields.optional("max_age_ms", lambda key: fields.number(key, above=0)),
            window_s=fields.number("window_s", cls.window_s, minimum=1.0, maximum=3600.0),
            step_s=fields.number("step_s", cls.step_s, minimum=1.0, maximum=3600.0),
            hold_s=fields.number("hold_s", cls.hold_s, minimum=1.0, maximum=86400.0),
        )

"""The drift alarm's part of run.json: over how many frames it looks, and from where on it says so."""

from __future__ import annotations

from dataclasses import dataclass

from edgeferry_runtime.fields import Fields

__all__ = ["DriftConfig"]


@dataclass(frozen=True)
class DriftConfig:
    """When what a model sees and says has parted from what it was calibrated with.

    The thresholds are of the population stability index and the usual ones: below 0.1 nothing to speak of, above
    0.25 another population.  Source: N. Siddiqi, Credit Risk Scorecards (2006), chapter 9.

    Attributes:
        window: the last so many frames are compared.
        every_s: of a live source one frame in so many seconds counts; frames that follow each other are alike, and
            10 minutes tell more than 20 seconds of each frame.  0 takes all.  Of files every frame counts.
        warn, alarm: an index above this is named in the state, and raises the alarm.  An alarm ends when the index
            is no longer above ``warn``.
    """

    window: int = 600
    every_s: float = 1.0
    warn: float = 0.1
    alarm: float = 0.25

    @classmethod
    def read(cls, fields: Fields) -> DriftConfig:
        """Read it, noting every problem in ``fields``."""
        config = cls(
            window=fields.integer("window", cls.window, minimum=20, maximum=1_000_000),
            every_s=fields.number("every_s", cls.every_s, minimum=0.0, maximum=86400.0),
            warn=fields.number("warn", cls.warn, above=0.0, maximum=100.0),
            alarm=fields.number("alarm", cls.alarm, above=0.0, maximum=100.0),
        )
        if config.warn > config.alarm:
            fields.problem("warn", "is {}, above alarm ({})".format(config.warn, config.alarm))
        return config

"""The flight recorder's part of run.json: how much it remembers, and how much it may write."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeferry_runtime.fields import Fields

__all__ = ["RecorderConfig"]

_LINE = re.compile("[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+\\Z")


@dataclass(frozen=True)
class RecorderConfig:
    """What is remembered, and what of it is written when something happens.

    Attributes:
        folder: where recordings go, a folder each; made when it is absent.
        seconds: so much of what was before a trigger.
        after_s: and so much of what came after it.
        max_mb: of RAM, results included; what is older gives way.
        fps: of raw frames at most so many a second; JPEG frames are all kept, as they came.
        small: raw frames in the size of the model's input, from which it gets the same tensor; boxes of a replay
            are then in the small frame's pixels.
        write_mb_per_day: what may be written in a day, over restarts.
        keep: so many recordings; the oldest goes.
        pause_s: after a trigger, others than a request are not heard for so long.
    """

    folder: str
    seconds: float = 10.0
    after_s: float = 3.0
    max_mb: float = 32.0
    fps: float = 5.0
    small: bool = True
    write_mb_per_day: float = 200.0
    keep: int = 10
    pause_s: float = 60.0

    @classmethod
    def read(cls, fields: Fields) -> RecorderConfig:
        """Read it, noting every problem in ``fields``."""
        return cls(
            folder=fields.text("folder", pattern=_LINE, means="one line, and not empty"),
            seconds=fields.number("seconds", cls.seconds, minimum=0.1, maximum=3600.0),
            after_s=fields.number("after_s", cls.after_s, minimum=0.0, maximum=600.0),
            max_mb=fields.number("max_mb", cls.max_mb, minimum=0.1, maximum=1e5),
            fps=fields.number("fps", cls.fps, above=0.0, maximum=1000.0),
            small=fields.boolean("small", cls.small),
            write_mb_per_day=fields.number("write_mb_per_day", cls.write_mb_per_day, above=0.0, maximum=1e7),
            keep=fields.integer("keep", cls.keep, minimum=1, maximum=100_000),
            pause_s=fields.number("pause_s", cls.pause_s, minimum=0.0, maximum=86400.0),
        )

"""Frames that lie ready: read one after the other, or played at their own rate as a live source would."""

from __future__ import annotations

import time
from typing import Callable

from edgeferry_runtime.errors import SourceError
from edgeferry_runtime.sources.base import WAITING, Frame, FrameSource

__all__ = ["Clip", "InOrder", "Looped", "Paced"]


class Clip:
    """Base of all frames that lie ready: asked for by index, which only ever rises.

    Attributes:
        rate: frames a second at which it plays by itself; 0 for no rate of its own.
        skipped: damaged frames it passed over, so far.
    """

    rate = 0.0
    skipped = 0
    _at = 0  # index of the next frame in the file; behind the last one the number of frames

    def load(self, index: int) -> Frame | None:
        """The frame of an index, or the next sound one that was not given yet; None behind the last one.

        Raises:
            SourceError: it cannot be read.
        """
        raise NotImplementedError  # abstract: every clip has its own

    def time_ns(self, index: int) -> int:
        """When a frame is due, from the first one on."""
        return int(index * 1e9 / self.rate)

    def due(self, elapsed_ns: int) -> int:
        """Index of the newest frame that is due."""
        return int(elapsed_ns * self.rate / 1e9)

    def close(self) -> None:
        """Let go of the file; harmless twice."""


class Looped(Clip):
    """A clip that starts over at its end, for ever; indices and frame numbers go on rising.

    Args:
        reopen: opens the clip at its first frame.

    Raises:
        SourceError: it cannot be opened; while reading also: it cannot be opened again.
    """

    def __init__(self, reopen: Callable[[], Clip]) -> None:
        self._reopen = reopen
        self._clip = reopen()
        self._begin = 0  # index of the round's first frame
        self._length = 0  # frames of a round; 0 before the first end
        self._skipped_before = 0
        self.rate = self._clip.rate

    def load(self, index: int) -> Frame | None:
        while True:
            frame = self._load(index)
            self.skipped = self._skipped_before + self._clip.skipped
            if frame is not None:
                return frame._replace(number=frame.number + self._begin)
            self._length = max(1, self._clip._at)
            self._start_over(index)

    def _load(self, index: int) -> Frame | None:
        try:
            return self._clip.load(index - self._begin)
        except SourceError:
            # "No frame at all" is true of a round that was begun behind its last sound frame, too.
            if not self._length or index <= self._begin:
                raise
            return None

    def _start_over(self, index: int) -> None:
        self._begin += max(1, (index - self._begin) // self._length) * self._length
        self._skipped_before += self._clip.skipped
        self._clip.close()
        self._clip = self._reopen()

    def close(self) -> None:
        self._clip.close()


class InOrder(FrameSource):
    """Every frame of a clip, as fast as it is asked for."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._next = 0

    def _read(self, timeout_s: float | None) -> Frame | None:
        skipped = self._clip.skipped
        frame = self._clip.load(self._next)
        self._next += 1
        self.skipped += self._clip.skipped - skipped
        return frame

    def close(self) -> None:
        self._clip.close()


class Paced(FrameSource):
    """The newest frame of a clip that is due by the clock; what nobody read in time is dropped and counted.

    Frames carry the moment at which they were due.  No thread: which frame is due is a matter of the clock.  A
    clip that cannot be read as fast as it plays is played slower.
    """

    live = True

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._next = 0
        self._start_ns = 0

    def _read(self, timeout_s: float | None) -> Frame | None:
        now = time.monotonic_ns()
        if not self._start_ns:
            self._start_ns = now  # not when it was opened: a model may have been loaded since
        wait_s = (self._start_ns + self._clip.time_ns(self._next) - now) / 1e9
        if wait_s > 0:
            if timeout_s is not None and wait_s > timeout_s:
                time.sleep(timeout_s)
                return WAITING
            time.sleep(wait_s)
            now = time.monotonic_ns()
        index = max(self._next, self._clip.due(now - self._start_ns))
        skipped = self._clip.skipped
        frame = self._clip.load(index)
        if frame is None:
            return None
        due_ns = self._start_ns + self._clip.time_ns(index)
        self.dropped += index - self._next
        self.skipped += self._clip.skipped - skipped
        # Reading past dropped frames takes time, too: when it takes longer than they would have played, falling
        # further behind each time would never end.
        behind_ns = time.monotonic_ns() - now - (self._clip.time_ns(index + 1) - self._clip.time_ns(self._next))
        if index > self._next and behind_ns > 0:
            self._start_ns += behind_ns
        self._next = index + 1
        return frame._replace(captured_ns=due_ns)

    def close(self) -> None:
        self._clip.close()

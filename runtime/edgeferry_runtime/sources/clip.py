"""Frames that lie ready: read one after the other, or played at their own rate as a live source would."""

from __future__ import annotations

import time

from edgeferry_runtime.sources.base import WAITING, Frame, FrameSource

__all__ = ["Clip", "InOrder", "Paced"]


class Clip:
    """Base of all frames that lie ready: asked for by index, which only ever rises.

    Attributes:
        rate: frames a second at which it plays by itself; 0 for no rate of its own.
        skipped: damaged frames it passed over, so far.
    """

    rate = 0.0
    skipped = 0

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

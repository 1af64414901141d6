"""One source for several readers: each frame is read once and shared by as many taps as there are loops.

A live source is read as fast as it gives frames, and a tap hands out the newest one at the moment it is asked, as
the source itself would: nothing waits in a queue and no frame grows older on the way.  From files every frame
counts: the next one is read when every tap has taken the last.
"""

from __future__ import annotations

import threading
import time

from edgeferry_runtime import pixels as formats
from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.sources.base import WAITING, Frame, FrameSource

__all__ = ["Hub", "Tap"]

_POLL_S = 0.25  # how soon a stop is noticed by a thread that waits for the source


class _Shared:
    """A frame on its way to several readers; a JPEG is decoded by the first who wants pixels, for all of them."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self._lock = threading.Lock()
        self._decoded = frame if frame.color != "jpeg" else None
        self._damaged = False

    def decoded(self) -> Frame | None:
        """With pixels; None for a JPEG that is damaged inside.

        Raises:
            DependencyError: it is a JPEG, and OpenCV is absent.
        """
        with self._lock:  # who comes second waits for the pixels, which takes no longer than decoding
            if self._decoded is None and not self._damaged:
                try:
                    self._decoded = self.frame._replace(
                        pixels=formats.to_bgr(self.frame.pixels, "jpeg"), color="bgr"
                    )
                except FrameError:
                    self._damaged = True
            return self._decoded


class _Group:
    """Taps that are given the same frames: the newest one there is when the last of them asks."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.taps: list[Tap] = []
        self.newest: _Shared | None = None
        self._turn = self._number = -1

    def chooses(self, frame: Frame) -> bool:
        """Whether it is the first frame of its ``every``; so all groups of one rhythm choose alike."""
        turn = frame.number // self.every
        if turn != self._turn:
            self._turn, self._number = turn, frame.number
        return frame.number == self._number  # several parts of one frame have its number

    def offer(self, shared: _Shared) -> None:
        present = [tap for tap in self.taps if not tap.resting]
        if self.newest is not None or not present:
            self._count_unread(self.taps)
        self.newest = shared if present else None
        self.serve()

    def serve(self) -> bool:
        """Give the frame out where everybody asks for one; returns whether it was."""
        present = [tap for tap in self.taps if not tap.resting]
        if self.newest is None or not present or not all(tap.asking for tap in present):
            return False
        for tap in present:
            tap.given, tap.asking = self.newest, False
        self._count_unread([tap for tap in self.taps if tap.resting])
        self.newest = None
        return True

    def settle(self) -> None:
        """One tap fewer: the others may all have asked, or there is nobody left to wait for the frame."""
        if self.newest is not None and all(tap.resting for tap in self.taps):
            self._count_unread(self.taps)
            self.newest = None
        self.serve()

    @staticmethod
    def _count_unread(taps: list[Tap]) -> None:
        for tap in taps:
            tap.unread += 1


class Tap(FrameSource):
    """What one loop reads of a hub's source; make one with :meth:`Hub.tap`.

    Every frame the source gave is counted by every tap: it was taken, was ``unread``, or was ``passed`` over; or
    the source had counted it itself, among those it ``dropped`` or ``skipped``.

    Attributes:
        taken: frames that were read here.
        unread: frames that were there and not read in time.
        passed: frames that were not asked for, see ``every``.
        resting: see :meth:`set_resting`.
        given, asking: of the hub.
    """

    def __init__(self, hub: Hub, group: _Group) -> None:
        self.live = hub.live
        self.taken = self.unread = self.passed = 0
        self.resting = False
        self.given: _Shared | None = None
        self.asking = False
        self._hub = hub
        self._group = group
        self._damaged = 0
        self._closed = False

    # All but ``live`` is told by the source, and by both.

    @property
    def dropped(self) -> int:  # type: ignore[override]
        return self._hub.source.dropped + self.unread

    @property
    def skipped(self) -> int:  # type: ignore[override]
        return self._hub.source.skipped + self._damaged

    @property
    def reopened(self) -> int:  # type: ignore[override]
        return self._hub.source.reopened

    @property
    def outage(self) -> str:  # type: ignore[override]
        return self._hub.source.outage

    @property
    def over(self) -> bool:
        """The source has ended; the last frame may still wait."""
        return self._hub.ended

    def read(self, timeout_s: float | None = None) -> Frame | None:
        """The next frame, or None at the end.

        Args:
            timeout_s: gives ``WAITING`` when there is none within this time, from files as well: another reader
                may be slow.

        Raises:
            Whatever the source raised: every tap raises it.
            DependencyError: frames are JPEG and not wanted so, and OpenCV is absent.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            shared = self._take(deadline)
            if shared is None:
                return None
            if shared is _NONE_YET:
                return WAITING
            frame = shared.frame if self.encoded else shared.decoded()
            if frame is not None:
                return frame
            self._damaged += 1

    def _take(self, deadline: float | None) -> _Shared | None:
        hub, group = self._hub, self._group
        with hub.changed:
            while self.given is None:
                if self._closed or (hub.ended and group.newest is None):
                    if hub.error is not None and not self._closed:
                        raise hub.error
                    return None
                self.asking = True
                if group.serve():
                    hub.changed.notify_all()
                    break
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    self.asking = False
                    return _NONE_YET
                hub.changed.wait(left)
            shared, self.given = self.given, None
            self.taken += 1
            return shared

    def set_resting(self, resting: bool) -> None:
        """Hold nobody up for a while: frames that come are counted as unread, and the group goes on without it."""
        with self._hub.changed:
            self.resting = resting
            if resting:
                self.asking = False
                self._step_back()

    def close(self) -> None:
        """Leave: neither source nor group waits any more; harmless twice."""
        with self._hub.changed:
            if self._closed:
                return
            self._closed = True
            self._group.taps.remove(self)
            if self._group.newest is not None:
                self.unread += 1
            self._step_back()

    def _step_back(self) -> None:
        if self.given is not None:
            self.given = None
            self.unread += 1
        self._group.settle()
        self._hub.changed.notify_all()


_NONE_YET = _Shared(WAITING)


class Hub:
    """Reads a source in a thread of its own, from :meth:`start` on.

    Args:
        source: opened by the caller, who also closes it, after the hub.
        waits: whether the source waits until every tap has taken the last frame; None: files do, live sources do
            not.
        owned: close the source when no more of it is wanted.

    Attributes:
        live: of the source.
        frames: what the source gave so far.
        error: what ended it; None while there was none.
        ended: no frame will come any more.
        changed: of taps and hub.
    """

    def __init__(self, source: FrameSource, waits: bool | None = None, owned: bool = False) -> None:
        self.source = source
        self.live = source.live
        self.frames = 0
        self.error: BaseException | None = None
        self.ended = False
        self.changed = threading.Condition()
        self._waits = not source.live if waits is None else waits
        self._owned = owned
        self._groups: list[_Group] = []
        self._named: dict[str, _Group] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="edgeferry-hub", daemon=True)
        source.encoded = True  # each tap decides for itself

    def tap(self, every: int = 1, group: str | None = None, encoded: bool = False) -> Tap:
        """One more reader; before :meth:`start`, or it misses frames.

        Args:
            every: one frame in so many.
            group: taps of one name are given the same frames; the slowest sets their pace.
            encoded: JPEG frames as they came; otherwise they are decoded, once for all taps.

        Raises:
            ValueError: the group has another rhythm.
        """
        with self.changed:
            chosen = self._named.get(group) if group is not None else None
            if chosen is None:
                chosen = _Group(every)
                self._groups.append(chosen)
                if group is not None:
                    self._named[group] = chosen
            if chosen.every != every:
                raise ValueError("group {!r} takes one frame in {}, not in {}".format(group, chosen.every, every))
            tap = Tap(self, chosen)
            tap.encoded = encoded
            chosen.taps.append(tap)
            return tap

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """End: taps hand out what is there, and then nothing; harmless twice, and without a start."""
        with self.changed:
            self._closing = self.ended = True
            self.changed.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(4 * _POLL_S)  # one that hangs in its source is a daemon: it goes with the process

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # In the hub's thread.

    def _run(self) -> None:
        try:
            while self._wait_for_room():
                frame = self.source.read(_POLL_S)
                if frame is None:
                    break
                if frame is not WAITING:
                    self._hand_out(frame)
        except BaseException as error:
            self.error = error
        finally:
            if self._owned:
                self.source.close()
            with self.changed:
                self.ended = True
                self.changed.notify_all()

    def _wait_for_room(self) -> bool:
        """Where frames must not be lost, wait until the last one was taken; False when no more are wanted."""
        with self.changed:
            while self._waits and not self._closing and any(group.newest is not None for group in self._groups):
                self.changed.wait()
            # From a source that waits for nobody a tap may come back, see ``Tap.set_resting``.
            return not self._closing and (not self._waits or any(group.taps for group in self._groups))

    def _hand_out(self, frame: Frame) -> None:
        shared = _Shared(frame)
        with self.changed:
            self.frames += 1
            for group in self._groups:
                if group.chooses(frame):
                    group.offer(shared)
                else:
                    for tap in group.taps:
                        tap.passed += 1
            self.changed.notify_all()

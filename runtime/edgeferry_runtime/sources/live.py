"""Newest frames of a device: a capture thread, one slot, and opening the device again whenever it is lost."""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable

from edgeferry_runtime.errors import EdgeferryError, SourceError
from edgeferry_runtime.mailbox import Mailbox
from edgeferry_runtime.sources.base import WAITING, Frame, FrameSource
from edgeferry_runtime.sources.damage import BlackWatch, damage
from edgeferry_runtime.sources.device import Device, Grab

__all__ = ["LiveSource"]

_LOG = logging.getLogger("edgeferry")
_OPEN_S = 10.0  # opening may take longer than a frame: sensors start, streams are negotiated
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0  # between two tries to open; doubling, until a good frame
_DAMAGED_IN_A_ROW = 3  # one torn frame is a glitch on the cable; so many are a device that must be opened anew
_LOOK_S = 0.1  # how often a waiting reader looks whether the device hangs
_NEVER = 1 << 63


class _Capture:
    """One capture thread, as the source sees it.

    Attributes:
        hung_ns: from this moment on (``time.monotonic_ns``) it has been waiting for the device for too long.
        frames: good ones it delivered.
    """

    def __init__(self, run: Callable[[_Capture], None]) -> None:
        self.hung_ns = _NEVER
        self.frames = 0
        self.black = BlackWatch()
        self.thread = threading.Thread(target=run, args=(self,), name="capture", daemon=True)

    def expect(self, seconds: float) -> None:
        self.hung_ns = time.monotonic_ns() + int(seconds * 1e9)


class LiveSource(FrameSource):
    """Hands over the newest frame of a device; older ones are dropped and counted, never queued.

    A device that stalls, fails, ends or delivers nothing but damaged frames is closed and opened again, with
    pauses of 0.1 s that double up to the time-out (5 s at most), for as long as it takes.  Outages are logged
    when they begin and when they end.  A thread that hangs in a device cannot be stopped: it is left behind, and
    lets go of its device if it ever wakes.  There is at most one of them: while it hangs, a second hang waits.

    Args:
        name: of the device, for messages; without secrets.
        connect: opens the device.
        timeout_s: after so long without a frame the device is taken for dead.
        heals: False for what cannot be opened again, as standard input: its failure is the end, and time without
            frames is no failure.

    Raises:
        SourceError: the device cannot be opened.  Only at the start: a later failure to open it is tried again.
    """

    live = True

    def __init__(
        self, name: str, connect: Callable[[], Device], timeout_s: float = 2.0, heals: bool = True
    ) -> None:
        self._name = name
        self._connect = connect
        self._timeout_s = timeout_s
        self._heals = heals
        self._slot: Mailbox[Frame] = Mailbox(1, drop_oldest=True)
        self._lock = threading.Lock()
        self._opened = threading.Event()  # the first opening is over, well or badly
        self._closing = threading.Event()
        self._error: Exception | None = None
        self._count = 0
        self._last_ns = time.monotonic_ns()  # of the last good frame
        self._left_behind: _Capture | None = None
        self._current: _Capture | None = _Capture(self._run)
        self._current.thread.start()
        self._await_first_opening()

    def _await_first_opening(self) -> None:
        if not self._opened.wait(_OPEN_S + self._timeout_s):
            self._error = SourceError(
                "{}: does not open; gave up after {:.0f} s".format(self._name, _OPEN_S + self._timeout_s),
                "Check cable, power and network, and whether another program holds it.",
            )
        if self._error is not None:
            self.close()
            raise _explained(self._name, self._error)

    def _read(self, timeout_s: float | None) -> Frame | None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = _LOOK_S if deadline is None else min(_LOOK_S, max(0.0, deadline - time.monotonic()))
            frame = self._slot.get(left)
            if frame is None and self._slot.closed:
                frame = self._slot.get(0)  # put in just before it was closed
                if frame is None and self._error is not None:
                    raise _explained(self._name, self._error)
                return frame
            if frame is not None:
                return frame
            self._relieve_hung()
            if deadline is not None and time.monotonic() >= deadline:
                return WAITING

    def close(self) -> None:
        with self._lock:
            captures = [self._current, self._left_behind]
            self._current = None
            self._closing.set()
            self._slot.close()
        for capture in captures:
            if capture is not None and capture.thread is not threading.current_thread():
                capture.thread.join(1.0)  # one that hangs is a daemon: it goes with the process

    # In the reader's thread.

    def _relieve_hung(self) -> None:
        capture = self._current
        if capture is None or not self._heals or time.monotonic_ns() < capture.hung_ns:
            return
        with self._lock:
            if self._current is not capture:
                return
            self._begin_outage("no frame for {:.1f} s".format(self._timeout_s))
            if self._left_behind is None or not self._left_behind.thread.is_alive():
                self._left_behind = capture
                self._current = _Capture(self._run)
                self._current.thread.start()

    # In the capture thread.

    def _run(self, me: _Capture) -> None:
        pause_s = _FIRST_PAUSE_S
        while self._current is me:
            frames = me.frames
            try:
                self._capture(me)
                return
            except Exception as error:  # whatever a driver raises: the camera is lost, the loop is not
                me.hung_ns = _NEVER
                if not self._lose(me, error):
                    return
            if me.frames > frames:
                pause_s = _FIRST_PAUSE_S
            self._closing.wait(pause_s)
            # Never longer than the time-out, so that frames come within a time-out of the device being well.
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S, self._timeout_s)

    def _capture(self, me: _Capture) -> None:
        """Open the device and publish what it delivers, until it ends or is wanted no more."""
        me.expect(_OPEN_S)
        device = self._connect()
        try:
            self._opened.set()
            damaged = 0
            while self._current is me:
                me.expect(self._timeout_s)
                grab = device.grab()
                if grab is None:
                    self._end(me)
                    return
                fault = damage(grab.pixels, grab.color)
                damaged = damaged + 1 if fault else 0
                if damaged == _DAMAGED_IN_A_ROW:
                    raise SourceError("{} damaged frames in a row, the last {}".format(damaged, fault))
                self._publish(me, grab, fault)
        finally:
            device.close()

    def _publish(self, me: _Capture, grab: Grab, fault: str) -> None:
        with self._lock:
            if self._current is not me:
                return
            number = self._count
            self._count += 1
            if fault:
                self.skipped += 1
                _LOG.debug("%s: frame %d is %s", self._name, number, fault)
                return
            me.frames += 1
            self._slot.put(Frame(grab.pixels, grab.color, number, grab.captured_ns))
            self.dropped = self._slot.dropped
            self._end_outage()
            self._last_ns = grab.captured_ns
        seen = me.black.look(grab.pixels, grab.color, grab.captured_ns)
        if seen == "black":
            _LOG.warning("%s: shows nothing but black; is the lens covered?", self._name)
        elif seen == "light":
            _LOG.warning("%s: sees again", self._name)

    def _lose(self, me: _Capture, error: Exception) -> bool:
        """Note why the device was lost.

        Returns:
            Whether to open it again.
        """
        with self._lock:
            if self._current is not me:
                return False
            if self._heals and self._opened.is_set():
                self._begin_outage(error.message if isinstance(error, EdgeferryError) else repr(error))
                return True
            self._error = error
            self._slot.close()
            self._opened.set()
            return False

    def _end(self, me: _Capture) -> None:
        with self._lock:
            if self._current is me:
                self._slot.close()

    def _begin_outage(self, reason: str) -> None:
        if not self.outage:
            _LOG.warning("%s: lost, will be opened again: %s", self._name, reason)
        self.outage = reason

    def _end_outage(self) -> None:
        if self.outage:
            self.outage = ""
            self.reopened += 1
            _LOG.warning("%s: back after %.1f s", self._name, (time.monotonic_ns() - self._last_ns) / 1e9)


def _explained(name: str, error: Exception) -> EdgeferryError:
    if isinstance(error, EdgeferryError):
        return error
    return SourceError("{}: cannot be read: {!r}".format(name, error), "Check cable and power, then start again.")

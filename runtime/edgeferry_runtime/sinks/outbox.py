"""Results on their way over a network: bounded, in order, sent by a thread of its own, with back-off."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from typing import Callable, Deque

__all__ = ["Outbox"]


class Outbox:
    """Keeps payloads until they are sent, oldest first.

    While sending works a full outbox makes :meth:`put` wait; while it does not, the oldest payload is dropped
    for the new one and counted.

    Args:
        send: takes one payload; True when it is done with (sent, or given up for good), False to be given it
            again later.  Called from the outbox' thread alone.
        limit: how many payloads wait, at most.
        first_s, longest_s: the pause after the first failure, doubled after each further one up to the longest.
            Pauses vary at random down to half, so that a thousand boards do not return in the same second.

    Attributes:
        dropped: payloads given up for want of room or time, so far.
    """

    def __init__(
        self, send: Callable[[bytes], bool], limit: int, first_s: float = 1.0, longest_s: float = 60.0
    ) -> None:
        self.dropped = 0
        self._send = send
        self._limit = limit
        self._first_s, self._longest_s = first_s, longest_s
        self._waiting: Deque[bytes] = deque()
        self._failures = 0
        self._nudged = False
        self._deadline: float | None = None  # set when closing
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="edgeferry-outbox", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, payload: bytes) -> None:
        """Hand over one payload; after :meth:`close` it is dropped."""
        with self._changed:
            while len(self._waiting) >= self._limit and not self._failures and self._deadline is None:
                self._changed.wait()
            self._waiting.append(payload)
            while len(self._waiting) > self._limit:
                self._waiting.popleft()
                self.dropped += 1
            self._changed.notify_all()

    def nudge(self) -> None:
        """End the pause: sending may work again."""
        with self._changed:
            self._nudged = True
            self._changed.notify_all()

    def close(self, seconds: float) -> None:
        """Send what waits for that long, or until it fails; what is left then is dropped.  Harmless twice."""
        with self._changed:
            self._deadline = self._deadline or time.monotonic() + seconds
            self._changed.notify_all()
        self._thread.join(seconds)
        with self._changed:
            self.dropped += len(self._waiting)
            self._waiting.clear()
            self._limit = 0  # what the thread still puts back is dropped as well

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and self._deadline is None:
                    self._changed.wait()
                if not self._waiting or (self._deadline is not None and time.monotonic() > self._deadline):
                    return
                payload = self._waiting.popleft()
                self._changed.notify_all()
            sent = self._send(payload)
            with self._changed:
                self._failures = 0 if sent else self._failures + 1
                if not sent:
                    self._put_back(payload)
                    if self._deadline is not None:
                        return
                self._changed.notify_all()
                if not sent:
                    self._changed.wait_for(lambda: self._nudged or self._deadline is not None, self._pause())
                    self._nudged = False

    def _put_back(self, payload: bytes) -> None:
        if len(self._waiting) >= self._limit:
            self.dropped += 1
        else:
            self._waiting.appendleft(payload)

    def _pause(self) -> float:
        longest = min(max(self._first_s, self._longest_s), self._first_s * 2 ** min(self._failures - 1, 30))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret hangs on it

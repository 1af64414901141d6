"""Handing things from one thread to the next: bounded, with a policy for when the next one is too slow."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Deque, Generic, TypeVar

__all__ = ["Mailbox"]

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A queue between two threads that never grows beyond its capacity.

    Args:
        capacity: how many items wait in it, at most.
        drop_oldest: a full mailbox drops its oldest item for a new one, and counts it; otherwise ``put`` waits
            until there is room.

    Attributes:
        dropped: items that nobody took, so far.
        closed: nothing more will be put in.
    """

    def __init__(self, capacity: int, drop_oldest: bool = False) -> None:
        self.dropped = 0
        self.closed = False
        self._capacity = capacity
        self._drop_oldest = drop_oldest
        self._items: Deque[T] = deque()
        self._takers = 0
        lock = threading.Lock()
        self._filled = threading.Condition(lock)  # takers wait here
        self._emptied = threading.Condition(lock)  # givers wait here

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> bool:
        """Hand an item over.

        Returns:
            False when the mailbox is closed: the item was not taken.
        """
        with self._filled:
            while not self.closed and len(self._items) >= self._capacity:
                if self._drop_oldest:
                    self._items.popleft()
                    self.dropped += 1
                else:
                    self._emptied.wait()
            if self.closed:
                return False
            self._items.append(item)
            self._filled.notify()
            return True

    def get(self, timeout_s: float | None = None) -> T | None:
        """The oldest item, waiting for one; None when there is none within the time, or none will come.

        Args:
            timeout_s: None waits as long as it takes.
        """
        with self._filled:
            if not self._items:
                self._wait_for_item(timeout_s)
            if not self._items:
                return None
            item = self._items.popleft()
            self._emptied.notify()
            return item

    def _wait_for_item(self, timeout_s: float | None) -> None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._takers += 1
        self._emptied.notify()  # a giver may be waiting to be wanted
        while not self._items and not self.closed:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            self._filled.wait(left)
        self._takers -= 1

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait until the last item was taken (or the mailbox is closed), or the time is over.

        One giver only.

        Returns:
            Whether the mailbox is empty.
        """
        deadline = time.monotonic() + timeout_s
        with self._filled:
            while self._items and not self.closed:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._emptied.wait(left)
            return not self._items

    def wait_until_wanted(self, timeout_s: float) -> bool:
        """Wait until somebody waits in ``get`` for an item (or the mailbox is closed), or the time is over.

        One giver only.

        Returns:
            Whether somebody waits.
        """
        deadline = time.monotonic() + timeout_s
        with self._filled:
            while not self.closed and not self._takers:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._emptied.wait(left)
            return self._takers > 0

    def close(self) -> None:
        """Let everybody who waits go; what is in the mailbox can still be taken."""
        with self._filled:
            self.closed = True
            self._filled.notify_all()
            self._emptied.notify_all()

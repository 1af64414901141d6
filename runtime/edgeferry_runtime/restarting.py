"""A model that failed is opened anew, again and again, ever more patiently; the loop goes on meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Callable

from edgeferry_runtime.errors import BackendError, EdgeferryError, ModelAwayError
from edgeferry_runtime.model import Model
from edgeferry_runtime.opening import open_warm
from edgeferry_runtime.roster import Roster
from edgeferry_runtime.sources.base import Frame

__all__ = ["RestartingRoster", "back_off_s"]

_LOG = logging.getLogger("edgeferry")
_FIRST_S, _LONGEST_S = 0.1, 5.0
_DOUBLINGS = 6  # past the longest
_SETTLED_S = 30.0  # a model that ran for so long starts over at once when it fails


def back_off_s(failures: int) -> float:
    """Seconds to wait before a model is opened anew: 0, 0.1, 0.2, 0.4 ... 5.

    Args:
        failures: in a row before this one.
    """
    return min(_FIRST_S * 2 ** min(failures - 1, _DOUBLINGS), _LONGEST_S) if failures else 0.0


class RestartingRoster(Roster):
    """Opens a model anew when it failed, in a thread; frames that come meanwhile are lost, or wait.

    Args:
        reopen: opens the model as it was.
        wait_s: how long a frame may wait for the model to be back: 0 for a camera, whose next frame is younger;
            long for a file, of which every frame counts.
        tries: failures in a row after which it is given up, and the failure ends the loop; None for never.
        clock: seconds; another one in tests.
        sleep: waits so many seconds and says whether it was closed meanwhile; another one in tests.
    """

    def __init__(
        self,
        reopen: Callable[[], Model],
        wait_s: float = 0.0,
        tries: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], bool] | None = None,
    ) -> None:
        self._reopen = reopen
        self._wait_s = wait_s
        self._tries = tries
        self._clock = clock
        self._closing = threading.Event()
        self._sleep = sleep or self._closing.wait
        self._lock = threading.Lock()  # of what follows, held for microseconds
        self._current: Model | None = None  # None: whatever runs
        self._up = threading.Event()
        self._up.set()
        self._since_s = clock()
        self._failures = 0  # in a row
        self._restarts = 0
        self._error = ""
        self._given_up = False

    def choose(self, running: Model, frame: Frame) -> Model:
        """The model that was opened last; one that is away fails at once, and then it is ``replace``'s turn."""
        return self._current or running

    def replace(self, failed: Model, error: BackendError) -> Model:
        """The model that was opened anew meanwhile.

        Raises:
            ModelAwayError: it is not back yet.
            BackendError: it was given up.
        """
        with self._lock:
            if self._up.is_set() and not self._given_up and (self._current is None or failed is self._current):
                self._begin(failed, error)
        back = self._up.wait(self._wait_s)
        if self._given_up:
            raise BackendError(
                "the model failed {} times in a row: {}".format(self._failures, self._error), error.remedy
            )
        if not back or self._closing.is_set() or self._current is None:
            raise ModelAwayError("the model is being opened anew: " + self._error, "Frames are lost meanwhile.")
        return self._current

    def state(self) -> dict[str, Any]:
        """Whether it is up, since how many seconds, how often it was opened anew, and the last error."""
        with self._lock:
            return {
                "up": self._up.is_set() and not (self._closing.is_set() or self._given_up),
                "since_s": round(self._clock() - self._since_s, 1),
                "restarts": self._restarts,
                "failures_in_a_row": self._failures,
                "last_error": self._error,
            }

    def close(self) -> None:
        """Open nothing more, and let no frame wait; what was opened belongs to the loop."""
        self._closing.set()
        self._up.set()

    def _begin(self, failed: Model, error: BackendError) -> None:
        now = self._clock()
        if now - self._since_s >= _SETTLED_S:
            self._failures = 0
        self._up.clear()
        self._since_s, self._error = now, error.message
        # It is not let go of before the loop has another: the loop asks with it who takes its place.
        self._current = failed
        _LOG.error("%s failed and is opened anew: %s", failed.identity, error.message)
        threading.Thread(target=self._bring_back, args=(failed,), name="edgeferry-restart", daemon=True).start()

    def _bring_back(self, failed: Model) -> None:
        failed.close()
        while not self._sleep(back_off_s(self._failures)):
            if self._tries is not None and self._failures >= self._tries:
                self._given_up = True
                self._up.set()
                return
            try:
                model = open_warm(self._reopen)
            except Exception as error:  # no memory, no file, no delegate: the next time may be another
                self._failed_again(error)
                continue
            if not self._take(model):
                model.close()
            return

    def _failed_again(self, error: Exception) -> None:
        with self._lock:
            self._failures += 1
            self._error = error.message if isinstance(error, EdgeferryError) else repr(error)
            _LOG.warning("it could not be opened anew: %s", self._error)

    def _take(self, model: Model) -> bool:
        """Run it from now on; False where it is no longer wanted."""
        with self._lock:
            if self._closing.is_set():
                return False
            self._current = model
            self._failures += 1  # until it has run for a while
            self._restarts += 1
            self._since_s = self._clock()
            self._up.set()
        _LOG.warning("%s is back", model.identity)
        return True

"""A sink behind a thread of its own: however slow or broken it is, inference goes on."""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np

from edgeferry_runtime.errors import SinkError
from edgeferry_runtime.mailbox import Mailbox
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks.base import Sink
from edgeferry_runtime.sources.base import Frame

__all__ = ["Outlet"]

_LOG = logging.getLogger("edgeferry")
_WAITING = 64  # results that wait for a slow sink
_FEW = 4  # where frames wait with them (a 1080p frame takes 6 MB), and where a full queue holds the loop anyway
_NO_PIXELS = np.empty(0, np.uint8)


class Outlet:
    """Gives results to a sink in their order.

    From a live source a full queue drops its oldest result, and a failed write is counted and named once until
    writing works again.  From files a full queue holds the loop, and the first failure ends it: every result
    counts there.

    Args:
        sink: opened and closed by somebody else.
        live: of the source.

    Attributes:
        error: what ended it; live sources never do.
    """

    def __init__(self, sink: Sink, live: bool) -> None:
        self.sink = sink
        self.error: SinkError | None = None
        self._live = live
        self._written = self._failed = 0
        self._failing = False
        self._queue: Mailbox[tuple[Frame, Result]] = Mailbox(
            _WAITING if live and not sink.wants_pixels else _FEW, drop_oldest=live
        )
        self._thread = threading.Thread(target=self._write, name="edgeferry-sink", daemon=True)
        self._thread.start()

    def put(self, frame: Frame, result: Result) -> None:
        """Hand over one result.

        Raises:
            SinkError: an earlier one could not be written and the source is not live.
        """
        if self.error is not None and not self._live:
            raise self.error
        if not self.sink.wants_pixels:
            frame = frame._replace(pixels=_NO_PIXELS)
        self._queue.put((frame, result))

    def finish(self, timeout_s: float = 5.0) -> None:
        """Write what waits, then stop: within the time for live sources, however long it takes for files."""
        self._queue.close()
        self._thread.join(timeout_s if self._live else None)
        if self._thread.is_alive():
            _LOG.warning("%s is too slow: %d results were not written", self.sink.uri, len(self._queue))

    def counts(self) -> dict[str, Any]:
        """What became of the results, and what the sink itself says."""
        state = dict(self.sink.state())
        state["written"] = self._written
        state["failed"] = self._failed
        state["dropped"] = self._queue.dropped + state.get("dropped", 0)
        return state

    def _write(self) -> None:
        while True:
            item = self._queue.get()
            if item is None:
                return
            try:
                self.sink.write(*item)
            except Exception as error:  # a sink of one's own may raise anything; the loop goes on
                self._failed += 1
                if not isinstance(error, SinkError):
                    error = SinkError("{}: {!r}".format(self.sink.uri, error))
                if not self._live:
                    self.error = error
                    self._queue.close()
                    return
                if not self._failing:
                    _LOG.error("%s (results are lost until it works again)", error.message)
                self._failing = True
            else:
                if self._failing:
                    _LOG.warning("%s works again; %d results were lost", self.sink.uri, self._failed)
                self._failing = False
                self._written += 1

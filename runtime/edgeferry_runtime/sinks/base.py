"""What every sink is: it takes each frame with its result, then is closed."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from edgeferry_runtime.results import Result
from edgeferry_runtime.sources.base import Frame

__all__ = ["Sink"]


class Sink:
    """Base of all sinks; use as a context manager.

    A sink is called from one thread of its own, in the order of the frames; it may be slow, it may not be wrong.
    A sink that raises loses that result and is given the next one: it recovers by itself where it can.
    """

    uri = ""  # what it was opened with, for messages and the state file; open_sink sets it
    wants_pixels = False  # whether write() looks at frame.pixels; else it may be given a frame without any

    def write(self, frame: Frame, result: Result) -> None:
        """Take one result and the very frame it came from.

        Raises:
            SinkError: it cannot be written.
        """
        raise NotImplementedError  # abstract: every sink has its own

    def state(self) -> dict[str, Any]:
        """Plain values for the state file, from any thread; ``dropped`` counts results that were given up."""
        return {}

    def close(self) -> None:
        """Flush and let go; harmless twice."""

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

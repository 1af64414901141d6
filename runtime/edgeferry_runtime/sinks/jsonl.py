"""Results as JSON, one object a line."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Callable

from edgeferry_runtime.errors import SinkError
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks.base import Sink
from edgeferry_runtime.sinks.linefile import LineFile, read_file_uri
from edgeferry_runtime.sources.base import Frame

__all__ = ["JsonlSink", "json_text"]


class JsonlSink(Sink):
    """Writes to a file (appending: earlier results are never lost) or to standard output.

    Args:
        uri: "jsonl:-", or "jsonl:FILE?rotate_mb=N&keep=K&hourly_mb=N".
        clock: seconds, never going back.

    Raises:
        UsageError: an option is unknown or wrong.
        SinkError: the file cannot be opened.
    """

    def __init__(self, uri: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._file: LineFile | None = None
        if uri != "jsonl:-":
            path, options = read_file_uri(uri)
            self._file = LineFile(path, note=_note, clock=clock, **options)

    def write(self, frame: Frame, result: Result) -> None:
        line = json_text(result.to_json()) + "\n"
        if self._file is not None:
            self._file.write(line)
            return
        try:
            sys.stdout.write(line)
            sys.stdout.flush()  # whoever reads the pipe wants the result now
        except OSError as error:
            raise SinkError("-: cannot be written: {}".format(error.strerror or error)) from None

    def state(self) -> dict[str, Any]:
        return {} if self._file is None else {"dropped": self._file.dropped}

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def json_text(value: dict[str, Any]) -> str:
    """Compact JSON in ASCII, on one line."""
    return json.dumps(value, separators=(",", ":"))


def _note(dropped: int) -> str:
    return json_text({"dropped_for_budget": dropped, "time": round(time.time(), 6)}) + "\n"

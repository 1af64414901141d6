"""Results as JSON, one object a line."""

from __future__ import annotations

import json
import sys
from typing import IO

from edgeferry_runtime.errors import SinkError
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks.base import Sink
from edgeferry_runtime.sources.base import Frame

__all__ = ["JsonlSink"]


class JsonlSink(Sink):
    """Writes to a file (appending: earlier results are never lost) or, as "-", to standard output.

    Raises:
        SinkError: the file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: IO[str]
        if path == "-":
            self._file = sys.stdout
            return
        try:
            self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - closed in close()
        except OSError as error:
            raise SinkError(
                "{}: cannot be written: {}".format(path, error.strerror), "Choose another path."
            ) from None

    def write(self, frame: Frame, result: Result) -> None:
        try:
            self._file.write(json.dumps(result.to_json(), separators=(",", ":")) + "\n")
            if self._file is sys.stdout:
                self._file.flush()  # whoever reads the pipe wants the result now
        except OSError as error:
            raise SinkError("{}: cannot be written: {}".format(self._path, error.strerror or error)) from None

    def close(self) -> None:
        if self._file is not sys.stdout:
            self._file.close()

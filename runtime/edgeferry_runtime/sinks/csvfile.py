"""Results as a table: a row for every class or box, as spreadsheets and databases read them."""

from __future__ import annotations

import csv
import io
import os
import time
from typing import Any, Callable, Iterator, Sequence

from edgeferry_runtime.errors import SinkError
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks.base import Sink
from edgeferry_runtime.sinks.jsonl import json_text
from edgeferry_runtime.sinks.linefile import LineFile, read_file_uri
from edgeferry_runtime.sources.base import Frame

__all__ = ["COLUMNS", "CsvSink"]

_OF_RESULT = ("time", "frame", "name", "age_ms", "bundle", "variant")
_OF_ROW = ("label", "score", "x", "y", "width", "height")
COLUMNS = (*_OF_RESULT, *_OF_ROW, "answer")


class CsvSink(Sink):
    """Writes RFC 4180 rows, lines ended by a newline alone; values stand as they are, formulas included.

    A result has a row for each of its classes or boxes, and one row without them when it has none.  Answers of
    other tasks stand as JSON in the last column.  A class without a label has its index there.

    Args:
        uri: "csv:FILE?rotate_mb=N&keep=K&hourly_mb=N".
        clock: seconds, never going back.

    Raises:
        UsageError: an option is unknown or wrong.
        SinkError: the file cannot be opened, or is another table.
    """

    def __init__(self, uri: str, clock: Callable[[], float] = time.monotonic) -> None:
        path, options = read_file_uri(uri)
        header = _line(COLUMNS)
        _check(path, header.encode())
        self._file = LineFile(path, header=header, note=_note, mend=_mend, clock=clock, **options)

    def write(self, frame: Frame, result: Result) -> None:
        self._file.write("".join(_line(row) for row in _rows(result)))

    def state(self) -> dict[str, Any]:
        return {"dropped": self._file.dropped}

    def close(self) -> None:
        self._file.close()


def _rows(result: Result) -> Iterator[Sequence[Any]]:
    values = result.to_json()
    answer = result.answer.to_json()
    start = [values.get(name, "") for name in _OF_RESULT]
    found = answer.get("classes", answer.get("boxes"))
    if found is None:
        yield [*start, *[""] * len(_OF_ROW), json_text(answer)]
    for entry in found or ():
        labelled = dict(entry, label=entry["label"] or entry["index"])
        yield [*start, *(labelled.get(name, "") for name in _OF_ROW), ""]
    if found is not None and not found:
        yield [*start, *[""] * len(_OF_ROW), ""]


def _line(row: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue()


def _note(dropped: int) -> str:
    blank = [""] * (len(COLUMNS) - 2)
    return _line([round(time.time(), 6), *blank, json_text({"dropped_for_budget": dropped})])


def _mend(half_line: bytes) -> bytes:
    """An open quote would swallow the rows that follow."""
    return b'"\n' if half_line.count(b'"') % 2 else b"\n"


def _check(path: str, header: bytes) -> None:
    """Refuse a file that is another table; empty one that a power cut left with half a header.

    Raises:
        SinkError: see above.
    """
    if not os.path.isfile(path):
        return
    try:
        with open(path, "rb") as file:
            first = file.readline(len(header))
        if first != header and header.startswith(first):
            os.truncate(path, 0)
            return
    except OSError as error:
        raise SinkError("{}: cannot be read: {}".format(path, error.strerror), "Choose another path.") from None
    if first != header:
        raise SinkError(
            "{}: its header is not that of results: {!r}".format(path, first[:80].decode("utf-8", "replace")),
            "Choose another file; nothing was written to this one.",
        )

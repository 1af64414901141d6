"""Which pictures are done, kept in a file, so that a run that was interrupted goes on where it was."""

from __future__ import annotations

import json
from collections import deque
from typing import Deque

from edgeferry_runtime.errors import SourceError

__all__ = ["DoneList"]

# So many pictures may be under way in the loop when the next one is read: they are not done yet.  After a power
# cut they are done again, which is better than never.
_UNDER_WAY = 8


class DoneList:
    """Names in a file, one JSON string a line, appended.

    Args:
        path: of the file; made when it is absent.

    Raises:
        SourceError: it cannot be read or written.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._under_way: Deque[str] = deque()
        self._finished = False
        try:
            self._file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (closed by close)
            self._file.seek(0)
            text = self._file.read()
            self._names = set(_names(text))
            if text and not text.endswith("\n"):  # cut off by a power cut: that name is not known to be done
                self._file.write("\n")
        except (OSError, ValueError) as error:
            raise self._failed(error) from None

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def add(self, name: str) -> None:
        """Note that a picture was handed over; the one before the last eight is then done.

        Raises:
            SourceError: the file cannot be written.
        """
        self._under_way.append(name)
        if len(self._under_way) > _UNDER_WAY:
            self._write(1)

    def finish(self) -> None:
        """Note that there are no more: when this is closed, all are done."""
        self._finished = True

    def close(self) -> None:
        """Harmless twice."""
        if not self._file.closed:
            if self._finished:
                self._write(len(self._under_way))
            self._file.close()

    def _write(self, count: int) -> None:
        try:
            for _ in range(count):
                self._file.write(json.dumps(self._under_way.popleft()) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> SourceError:
        return SourceError(
            "{}: cannot keep what is done: {}".format(self._path, error),
            "Give ?resume= a file that may be written; delete it to begin anew.",
        )


def _names(text: str) -> list[str]:
    names = []
    for line in text.splitlines():
        try:
            name = json.loads(line)
        except ValueError:
            continue
        if isinstance(name, str):
            names.append(name)
    return names

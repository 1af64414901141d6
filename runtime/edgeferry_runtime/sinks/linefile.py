"""A file that grows by lines: whole ones only, rotated by size, and with a budget so that SD cards live."""

from __future__ import annotations

import os
import stat
import time
from typing import Any, BinaryIO, Callable

from edgeferry_runtime.errors import SinkError, UsageError
from edgeferry_runtime.sinks.options import Option, read_options

__all__ = ["LineFile", "read_file_uri"]

_OPTIONS = {
    "rotate_mb": Option(float, None, 0.001, 1e6),
    "keep": Option(int, 5, 1, 1000),
    "hourly_mb": Option(float, None, 0.001, 1e6),
}
_MB = 1000000
_TAIL = 65536  # bytes; how far back the begin of a half line is looked for


def newline(half_line: bytes) -> bytes:
    """What ends a half line: a newline."""
    return b"\n"


class LineFile:
    """Appends lines to a file.

    A line is written whole or, when the disk is full, not at all; a half one that a power cut left is ended
    before the next.  The file is opened again when it was moved or deleted, and after every failure.

    Args:
        path: of the file; what it holds already stays.
        rotate_mb: before it would grow beyond that many million bytes it becomes ``path.1``, ``path.1`` becomes
            ``path.2`` and so on.  Only regular files are rotated.
        keep: how many rotated files stay; the oldest one makes room.
        hourly_mb: how many million bytes may be written in each hour since the file was opened; further lines
            are dropped and counted.
        header: stands at the top of every new file, newline included.
        note: the line that tells how many lines were dropped, written before the next one that is not.
        mend: what ends a half line.
        clock: seconds, never going back.

    Attributes:
        dropped: lines the budget had no room for, so far.

    Raises:
        SinkError: it cannot be opened.
    """

    def __init__(
        self,
        path: str,
        rotate_mb: float | None = None,
        keep: int = 5,
        hourly_mb: float | None = None,
        header: str = "",
        note: Callable[[int], str] = "{} lines dropped\n".format,
        mend: Callable[[bytes], bytes] = newline,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dropped = 0
        self._path = path
        self._rotate = None if rotate_mb is None else int(rotate_mb * _MB)
        self._keep = keep
        self._budget = None if hourly_mb is None else int(hourly_mb * _MB)
        self._header = header.encode()
        self._note = note
        self._mend = mend
        self._clock = clock
        self._hour = clock()
        self._spent = 0
        self._unsaid = 0  # dropped lines no note tells of yet
        self._file: BinaryIO | None = None
        try:
            self._open()
        except OSError as error:
            self.close()
            raise SinkError(
                "{}: cannot be written: {}".format(path, error.strerror), "Choose another path."
            ) from None

    def write(self, line: str) -> None:
        """Append one line, its newline included; drop it when the budget is spent.

        Raises:
            SinkError: it cannot be written; nothing of it is in the file.
        """
        # File names that are no UTF-8 come as surrogates, and go back to the bytes they were.
        data = line.encode("utf-8", "surrogateescape")
        if self._unsaid:
            data = self._note(self._unsaid).encode() + data
        if self._budget is not None:
            now = self._clock()
            if now - self._hour >= 3600:
                self._hour, self._spent = now, 0
            if self._spent + len(data) > self._budget:
                self.dropped += 1
                self._unsaid += 1
                return
        try:
            self._append(data)
        except OSError as error:
            self.close()
            raise SinkError(
                "{}: cannot be written: {}".format(self._path, error.strerror or error),
                "Free some space, or limit it with rotate_mb and keep.",
            ) from None
        self._spent += len(data)
        self._unsaid = 0

    def close(self) -> None:
        """Let go of the file; the next line opens it again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _open(self) -> BinaryIO:
        """The file, with nothing or a newline at its end."""
        self._file = file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed in close()
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            with open(self._path, "rb") as reader:
                size = reader.seek(0, os.SEEK_END)
                reader.seek(max(0, size - _TAIL))
                half_line = reader.read().rpartition(b"\n")[2]
            if half_line:
                _write_whole(file, self._mend(half_line))
        return file

    def _append(self, data: bytes) -> None:
        file = self._file
        if file is not None and not self._is_there(file):
            self.close()
            file = None
        if file is None:
            file = self._open()
        facts = os.fstat(file.fileno())
        if stat.S_ISREG(facts.st_mode):
            if self._rotate is not None and len(self._header) < facts.st_size > self._rotate - len(data):
                self.close()
                self._shift()
                file = self._open()
                facts = os.fstat(file.fileno())
            if facts.st_size == 0:
                data = self._header + data
        _write_whole(file, data)

    def _is_there(self, file: BinaryIO) -> bool:
        """Whether the path still names the open file: log rotation moves it, people delete it."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False

    def _shift(self) -> None:
        """Rename FILE to FILE.1, FILE.1 to FILE.2 and so on, from the first number that is free downwards.

        So a power cut between two renames costs no file: the gap it leaves is filled by the next rotation.
        """
        names = [self._path] + ["{}.{}".format(self._path, i) for i in range(1, self._keep + 1)]
        free = next((i for i in range(1, self._keep) if not os.path.lexists(names[i])), self._keep)
        for i in range(free, 0, -1):
            os.replace(names[i - 1], names[i])


def _write_whole(file: BinaryIO, data: bytes) -> None:
    """Write all of it or, to a regular file, nothing of it.

    Raises:
        OSError: it cannot be written.
    """
    view = memoryview(data)
    try:
        while view:
            view = view[file.write(view) or 0 :]
    except OSError:
        written = len(data) - len(view)
        facts = os.fstat(file.fileno())
        if written and stat.S_ISREG(facts.st_mode):
            os.ftruncate(file.fileno(), facts.st_size - written)
        raise


def read_file_uri(uri: str) -> tuple[str, dict[str, Any]]:
    """The path and the options of ``KIND:FILE?rotate_mb=N&keep=K&hourly_mb=N``, as :class:`LineFile` takes them.

    Raises:
        UsageError: there is no file, or an option is unknown or wrong.
    """
    sink, _, text = uri.partition("?")
    kind, _, path = sink.partition(":")
    options = read_options(text, _OPTIONS, sink)
    if path in ("", "-"):
        raise UsageError(
            "{}: these results and options need a file".format(uri), "Write {}:FILE?rotate_mb=10.".format(kind)
        )
    if "keep=" in text and options["rotate_mb"] is None:
        raise UsageError("{}: keep means nothing without rotate_mb".format(uri), "Add rotate_mb=10, or drop keep.")
    return path, options

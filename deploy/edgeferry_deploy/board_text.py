"""What a board prints as lines that are safe on a terminal: no escapes, no endless ones, no broken UTF-8."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator

from edgeferry_deploy.streaming import STDERR, STDOUT

__all__ = ["LINE_LIMIT", "Lines", "Show", "Terminal", "safe_line", "show"]

LINE_LIMIT = 4000  # characters
TAB = 8  # columns

# ECMA-48: control sequences (colours, cursor), strings with their end (titles, links), and two-character escapes.
ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]")

# Takes STDOUT or STDERR, and a line without its end.
Show = Callable[[int, str], None]


def safe_line(raw: bytes, limit: int = LINE_LIMIT) -> str:
    """One line, decoded, without escape sequences; other control characters become U+FFFD."""
    text = ESCAPE.sub("", raw.decode("utf-8", errors="replace")).rstrip("\r\n").expandtabs(TAB)
    shown = "".join(char if char.isprintable() else "\ufffd" for char in text[: limit + 1])
    return shown if len(shown) <= limit else shown[:limit] + "…"


class Lines:
    """Bytes in any pieces as lines, in bounded memory: what a line has beyond its limit is dropped.

    Args:
        limit: characters of a line that are kept.
    """

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._held = bytearray()

    def feed(self, piece: bytes) -> Iterator[str]:
        """The lines that end in this piece."""
        *ended, rest = piece.split(b"\n")
        for part in ended:
            self._keep(part)
            yield from self.end() if self._held else ("",)
        self._keep(rest)

    def end(self) -> Iterator[str]:
        """The last line, when it has no end."""
        if self._held:
            line = safe_line(bytes(self._held), self._limit)
            self._held.clear()
            yield line

    def _keep(self, part: bytes) -> None:
        # A character takes up to four bytes; one more tells that the line was cut.
        self._held += part[: max(0, 4 * self._limit + 4 - len(self._held))]


def show(stream: int, line: str) -> None:
    """Print a line on this process's stdout or stderr, in whatever characters that can show."""
    out = sys.stdout if stream == STDOUT else sys.stderr
    encoding = out.encoding or "ascii"
    print(line.encode(encoding, errors="replace").decode(encoding), file=out, flush=True)


class Terminal:
    """Where streamed output goes: safe lines to a terminal; into a file or a pipe the very bytes.

    Args:
        print_line: where lines go.
        raw: which of STDOUT and STDERR take bytes; by default those that are no terminal.
    """

    def __init__(self, print_line: Show = show, raw: frozenset[int] | None = None) -> None:
        outputs = {STDOUT: sys.stdout, STDERR: sys.stderr}
        self._print = print_line
        self._raw = raw if raw is not None else frozenset(key for key, out in outputs.items() if not out.isatty())
        self._lines = {key: Lines() for key in outputs}

    def write(self, stream: int, piece: bytes) -> None:
        """Take what came."""
        if stream in self._raw:
            out = sys.stdout if stream == STDOUT else sys.stderr
            out.buffer.write(piece)
            out.buffer.flush()
            return
        for line in self._lines[stream].feed(piece):
            self._print(stream, line)

    def end(self) -> None:
        """Print what had no end."""
        for stream, lines in self._lines.items():
            for line in lines.end():
                self._print(stream, line)

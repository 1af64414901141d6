"""What a person sees while a command works: steps on stdout, a bar on a terminal, or one JSON object."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["Console", "size_text"]

WORTH_A_BAR = 1_000_000  # bytes; less is sent before a bar could be read
MARKS = {"ok": "✓", "warn": "!", "none": " "}


class Console:
    """Where a command reports.

    Args:
        quiet: print no steps; with --json only the object goes out.
        name: stands before each step when several devices report at once; there are no bars then.
    """

    def __init__(self, *, quiet: bool = False, name: str = "") -> None:
        self.quiet = quiet
        self.name = name

    def step(self, text: str, mark: str = "ok") -> None:
        """One thing that was done."""
        if not self.quiet:
            encoding = sys.stdout.encoding or "ascii"
            sign = MARKS[mark].encode(encoding, errors="replace").decode(encoding)
            text = f"{self.name}: {text}" if self.name else text
            print(f"{sign} {text}".encode(encoding, errors="replace").decode(encoding), flush=True)

    def result(self, found: Mapping[str, Any]) -> None:
        """The object that --json promises."""
        print(json.dumps(found, indent=2, sort_keys=True))

    @contextmanager
    def waiting(self, what: str) -> Iterator[Callable[[str], None]]:
        """Something that takes its time: a spinner with the latest word on a terminal; elsewhere nothing."""
        if self.quiet or self.name or not sys.stdout.isatty():
            yield lambda said: None
            return
        from rich.console import Console as Terminal

        with Terminal().status(f"  {what}") as shown:
            yield lambda said: shown.update(f"  {what}: {said}")

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int], None] | None]:
        """A progress bar in bytes, on a terminal and when there is something to wait for; elsewhere None."""
        if self.quiet or self.name or total < WORTH_A_BAR or not sys.stdout.isatty():
            yield None
            return
        from rich import progress  # a third of a second that only a terminal has to pay

        columns = (
            progress.TextColumn("  {task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, transient=True) as shown:
            task = shown.add_task(what, total=total)
            yield lambda count: shown.advance(task, count)


def size_text(size: int) -> str:
    """Bytes for a reader: 12 B, 3.4 kB, 5.6 MB."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"

"""Progress of a conversion, shown on a terminal and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

__all__ = ["Progress"]

T = TypeVar("T")


class Progress:
    """One line that says what is going on; silent where the console is no terminal."""

    def __init__(self, console: Console) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)

    def step(self, description: str) -> None:
        """Name what goes on now, of unknown length."""
        self._bar.reset(self._task, description=description, total=None)

    def track(self, items: Iterator[T], total: int, description: str) -> Iterator[T]:
        """Pass items through and count them."""
        self._bar.reset(self._task, description=description, total=total)
        for item in items:
            yield item
            self._bar.advance(self._task)

    def at(self, done: int, total: int, description: str) -> None:
        """Say how far something is that counts by itself."""
        self._bar.update(self._task, completed=done, total=total, description=description)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

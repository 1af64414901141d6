"""How much memory models may hold, and what has to go so that another fits."""

from __future__ import annotations

import math
import os
import threading
from dataclasses import dataclass, field
from typing import Callable, Iterable, Sequence

from edgeferry_runtime.conditions import parse_meminfo
from edgeferry_runtime.errors import BackendError, UsageError
from edgeferry_runtime.model import Model
from edgeferry_runtime.remote import RemoteInterpreter

__all__ = ["Budget", "Entry", "note_held", "sum_mb", "victims"]


@dataclass
class Entry:
    """A model by its name.

    Attributes:
        name: as it is asked for.
        open_model: opens it.
        held_mb: memory it was measured to hold, MiB; before the first load, the least it will.
        measured: "" before the first load, then "alone", "worker" (both exact) or "together": its share, by the
            sizes of the files, of what models that were loaded at once hold.
        model: None while it is not loaded.
        loads: how often it was loaded.
        users: who has it, or waits for it; such a model is not evicted.
        turn: when it was used last; larger is later.
        alone: held by who runs it.
    """

    name: str
    open_model: Callable[[], Model]
    held_mb: float = 0.0
    measured: str = ""
    model: Model | None = None
    loads: int = 0
    users: int = 0
    turn: int = 0
    alone: threading.Lock = field(default_factory=threading.Lock)


def sum_mb(entries: Iterable[Entry]) -> float:
    """What the loaded ones hold together."""
    return sum(entry.held_mb for entry in entries if entry.model is not None)


def victims(entries: Iterable[Entry], too_much_mb: float) -> list[Entry] | None:
    """Which idle models to evict, least recently used first, so that so much memory is given back.

    Returns:
        None where evicting all of them would not do.
    """
    chosen: list[Entry] = []
    for entry in sorted((e for e in entries if e.model is not None and not e.users), key=lambda e: e.turn):
        if too_much_mb <= 0:
            break
        chosen.append(entry)
        too_much_mb -= entry.held_mb
    return chosen if too_much_mb <= 0 else None


def note_held(opened: Sequence[tuple[Entry, Model]], grown_mb: float) -> None:
    """Note what models hold that were loaded while this process grew by so much."""
    here = []
    for entry, model in opened:
        worker_mb = model.interpreter.rss_mb() if isinstance(model.interpreter, RemoteInterpreter) else None
        if worker_mb is not None:
            entry.held_mb, entry.measured = worker_mb, "worker"
        else:
            here.append((entry, os.path.getsize(model.interpreter.model_path)))
    total = sum(size for _, size in here)
    for entry, size in here:
        share_mb = max(grown_mb, 0.0) * size / total
        if len(here) > 1 and entry.measured == "alone":
            continue
        # A heap that was not given back makes a model that is loaded once more look smaller than it is.
        entry.held_mb = max(share_mb, entry.held_mb) if entry.measured else share_mb
        entry.measured = "alone" if len(here) == 1 else "together"


class Budget:
    """What all loaded models may hold together, and what must stay available to the system.

    Args:
        limit_mb: for all models, MiB; None for no limit.
        reserve_mb: MiB of the kernel's MemAvailable: below it a board swaps.
        root: where proc is; another one in tests.

    Raises:
        UsageError: no model can be held in so little.
    """

    def __init__(self, limit_mb: float | None, reserve_mb: float, root: str = "/") -> None:
        if limit_mb is not None and not limit_mb > 0:
            raise UsageError("a budget of {:g} MB holds no model".format(limit_mb), "Give more, or leave it out.")
        self.limit_mb, self.reserve_mb = limit_mb, reserve_mb
        self._root = root

    def over_mb(self, held_mb: float) -> float:
        """By how much the limit is exceeded when models hold so much; negative where it is not."""
        return -math.inf if self.limit_mb is None else held_mb - self.limit_mb

    def short_mb(self, to_take_mb: float = 0.0) -> float:
        """What the system lacks when so much more is taken; negative where there is enough."""
        available = self.available_mb()
        return -math.inf if available is None else self.reserve_mb + to_take_mb - available

    def available_mb(self) -> int | None:
        """The kernel's estimate of what can be taken without swapping; None where it gives none."""
        try:
            with open(os.path.join(self._root, "proc", "meminfo"), encoding="ascii", errors="replace") as file:
                return parse_meminfo(file.read()).get("MemAvailable")
        except OSError:  # not Linux
            return None

    def that_fit(self, entries: Sequence[Entry]) -> list[Entry]:
        """Of what is not loaded, what there is room for by all that is known of the sizes; first come first."""
        room_mb = -max(self.over_mb(sum_mb(entries)), self.short_mb())
        fitting = []
        for entry in entries:
            if entry.model is None and entry.held_mb <= room_mb:
                fitting.append(entry)
                room_mb -= entry.held_mb
        return fitting

    def too_small_for(self, entry: Entry) -> UsageError | None:
        """The error for a model that could not even run alone, None for others."""
        if self.over_mb(entry.held_mb) <= 0:
            return None
        return UsageError(
            "the memory budget of {:g} MB is too small for model {!r}, which holds {:.1f} MB".format(
                self.limit_mb or 0, entry.name, entry.held_mb
            ),
            "Give the models more, or take a smaller one.",
        )

    def refusal(self, wanted: Entry | None, entries: Iterable[Entry], system: bool) -> BackendError:
        """The error for a model there is no room for, with who holds what.

        Args:
            wanted: which one; None for several.
            entries: all of them.
            system: whether it is the system's memory that is short, and not the budget.
        """
        loaded = ", ".join(
            "{} {:.1f} MB{}".format(entry.name, entry.held_mb, " (in use)" if entry.users else "")
            for entry in entries
            if entry.model is not None and entry is not wanted
        )
        if system:
            why = "{} MB are available, and {:g} MB must stay so".format(self.available_mb(), self.reserve_mb)
        else:
            why = "the budget is {:g} MB".format(self.limit_mb or 0)
        what = "model {!r} ({:.1f} MB)".format(wanted.name, wanted.held_mb) if wanted else "the models"
        return BackendError(
            "no room for {}: {}; loaded: {}".format(what, why, loaded or "nothing"),
            "Run fewer models, or smaller ones.",
        )

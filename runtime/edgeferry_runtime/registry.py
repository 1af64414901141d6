"""Models by name, each loaded once, within a budget of memory that is measured and not guessed.

A model has one set of tensors, so whoever runs it has it alone for that time (:meth:`Registry.use`), and two names
never share one.  What two loads of the same file do share is the file itself: both map it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import logging
import sys
import threading
from typing import Any, Callable, Iterator, Sequence

from edgeferry_runtime import opencv
from edgeferry_runtime.backend import installed_backends
from edgeferry_runtime.budget import Budget, Entry, note_held, sum_mb, victims
from edgeferry_runtime.conditions import rss_mb
from edgeferry_runtime.errors import BackendError, EdgeferryError, UsageError
from edgeferry_runtime.fields import did_you_mean
from edgeferry_runtime.model import Model
from edgeferry_runtime.opening import open_warm

__all__ = ["Registry"]

_LOG = logging.getLogger("edgeferry")
_HOLD_S = 5.0  # how long somebody may take to give back a model that a loop wants
_COUNTS = ("loads", "evictions", "reloads", "refusals")


class Registry:
    """Loads models when they are asked for, and evicts the least recently used ones to stay within its budget.

    What a model holds is how much this process grows while it is loaded and run once, or what its worker process
    has in RAM then.

    Args:
        budget_mb: memory all loaded models may hold together, MiB; None for no limit.
        reserve_mb: memory that must stay available to the system, MiB: below it a board swaps.
        root: where proc is; another one in tests.
        rss: memory of this process in MiB, None where the system does not tell.

    Raises:
        UsageError: a budget of nothing, or one on a system that does not tell what a process holds.
    """

    def __init__(
        self,
        budget_mb: float | None = None,
        reserve_mb: float = 0.0,
        root: str = "/",
        rss: Callable[[], float | None] = rss_mb,
    ) -> None:
        self._budget = Budget(budget_mb, reserve_mb, root)
        if budget_mb is not None and rss() is None:
            raise UsageError("this system does not tell what a process holds", "Leave the memory budget out.")
        self._rss = rss
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()  # of the entries and counts; held for microseconds
        self._loading = threading.Lock()  # held while a model is loaded and measured, or evicted
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._turn = 0

    def add(self, name: str, open_model: Callable[[], Model], least_mb: float = 0.0) -> None:
        """Make a model known; nothing is loaded.

        Args:
            name: what it is asked for by.
            open_model: opens it; called again after it was evicted.
            least_mb: what it will hold at the least, as the size of its file.

        Raises:
            UsageError: the name is taken, or the budget is smaller than ``least_mb``.
        """
        if name in self._entries:
            raise UsageError("two models are called {!r}".format(name), "Give each a name of its own.")
        entry = Entry(name, open_model, least_mb)
        self._check_alone(entry)
        self._entries[name] = entry

    def get(self, name: str) -> Model:
        """The model, loaded now where it is not yet.  It may be evicted unless it is held with :meth:`use`.

        Raises:
            UsageError: there is no such name, or the budget is too small for this model alone.
            BackendError: there is no memory for it; the message says who holds what.
            EdgeferryError: it cannot be opened.
        """
        with self._held(name) as entry:
            return self._loaded(entry)

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[Model]:
        """The model, for oneself alone until the end of the block; it is not evicted meanwhile.

        Raises:
            As :meth:`get`.
        """
        with self._held(name) as entry, entry.alone:
            yield self._loaded(entry)

    def hold(self, name: str) -> Model:
        """The model, for oneself until :meth:`release`; for a loop that runs nothing else.

        Raises:
            As :meth:`get`; BackendError also when somebody else holds it.
        """
        entry = self._entry(name)
        if not entry.alone.acquire(timeout=_HOLD_S):
            raise BackendError("model {!r} is held by another loop".format(name), "Give each loop its own name.")
        self._begin_use(entry)
        try:
            return self._loaded(entry)
        except BaseException:
            self.release(name)
            raise

    def release(self, name: str) -> None:
        """Give back what :meth:`hold` gave: it stays loaded until its memory is wanted."""
        entry = self._entry(name)
        self._end_use(entry)
        entry.alone.release()

    def renew(self, name: str) -> Model:
        """Load a model anew that failed while it was held; it stays held.

        Raises:
            As :meth:`get`.
        """
        entry = self._entry(name)
        with self._loading:
            failed, entry.model = entry.model, None
            if failed is not None:
                failed.close()
            del failed
            return self._load(entry)

    def load_all(self) -> dict[str, EdgeferryError]:
        """Load every model there is room for, all at once; of what proves too much, the last are evicted again.

        Returns:
            Errors by name; the other models are loaded.

        Raises:
            UsageError: the budget is too small for one of the models alone.
            BackendError: too little memory is available, even for one.
        """
        with self._loading:
            entries = list(self._entries.values())
            group = self._budget.that_fit(entries)
            if not group and not any(entry.model for entry in entries):
                self._refuse(None, self._budget.short_mb() > 0)
            before = self._base_mb()
            outcomes = _at_once([functools.partial(open_warm, entry.open_model) for entry in group])
            opened = [(entry, outcome) for entry, outcome in zip(group, outcomes) if isinstance(outcome, Model)]
            note_held(opened, (self._rss() or 0.0) - before)
            for entry, model in reversed(opened):  # the first ones named are the last to be evicted
                self._keep(entry, model)
            try:
                for entry, _ in opened:
                    self._check_alone(entry)
                self._make_room(None)
                return _errors(group, outcomes)
            except BaseException:
                for entry, _ in opened:
                    self._evict(entry)
                raise

    def measure_all(self) -> dict[str, EdgeferryError]:
        """Load one model after the other, to know what each holds; what there is no room for is evicted again.

        For models that are loaded when they are needed: what can never run is known at the start.

        Returns:
            Errors by name.

        Raises:
            UsageError: the budget is too small for one of the models alone.
        """
        errors: dict[str, EdgeferryError] = {}
        for name in self._entries:
            try:
                self.get(name)
            except UsageError:
                raise
            except EdgeferryError as error:
                errors[name] = error
        return errors

    def evict(self, name: str) -> bool:
        """Let a model go; False where it is not loaded, or somebody has it."""
        entry = self._entry(name)
        with self._loading:
            return self._evict(entry)

    def state(self) -> dict[str, Any]:
        """Budget, counts, and each model with what it holds, as plain JSON values."""
        with self._lock:
            models = {
                entry.name: {
                    "loaded": entry.model is not None,
                    "held_mb": round(entry.held_mb, 1),
                    "measured": entry.measured,
                    "loads": entry.loads,
                    "in_use": entry.users > 0,
                }
                for entry in self._entries.values()
            }
            return dict(
                self._counts,
                budget_mb=self._budget.limit_mb,
                reserve_mb=self._budget.reserve_mb,
                held_mb=round(sum_mb(self._entries.values()), 1),
                models=models,
            )

    def close(self) -> None:
        """Close every model; nobody may have one any more."""
        for entry in self._entries.values():
            model, entry.model = entry.model, None
            if model is not None:
                model.close()

    # Names, and who has what.

    def _entry(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise UsageError(
                "there is no model {!r}{}".format(name, did_you_mean(name, list(self._entries))),
                "There are: {}.".format(", ".join(self._entries)),
            ) from None

    @contextlib.contextmanager
    def _held(self, name: str) -> Iterator[Entry]:
        """An entry that is not evicted until the end of the block."""
        entry = self._entry(name)
        self._begin_use(entry)
        try:
            yield entry
        finally:
            self._end_use(entry)

    def _begin_use(self, entry: Entry) -> None:
        with self._lock:
            self._turn += 1
            entry.turn = self._turn
            entry.users += 1

    def _end_use(self, entry: Entry) -> None:
        with self._lock:
            entry.users -= 1

    # Loading and evicting, under the lock for that.

    def _loaded(self, entry: Entry) -> Model:
        model = entry.model
        if model is not None:
            return model
        with self._loading:
            return entry.model or self._load(entry)

    def _load(self, entry: Entry) -> Model:
        """Make room, load, measure, and make room for what it really holds."""
        self._check_alone(entry)
        self._make_room(entry, entry.held_mb, entry.held_mb)
        before = self._base_mb()
        model = open_warm(entry.open_model)
        try:
            note_held([(entry, model)], (self._rss() or 0.0) - before)
            self._check_alone(entry)
            self._make_room(entry, entry.held_mb)  # what it takes of the system's, it has taken by now
        except BaseException:
            model.close()
            raise
        return self._keep(entry, model)

    def _keep(self, entry: Entry, model: Model) -> Model:
        with self._lock:
            self._counts["reloads" if entry.loads else "loads"] += 1
            self._turn += 1
            entry.model, entry.turn = model, self._turn
            entry.loads += 1
        return model

    def _evict(self, entry: Entry) -> bool:
        with self._lock:
            model = entry.model
            if model is None or entry.users:
                return False
            entry.model = None
            self._counts["evictions"] += 1
        _LOG.info("model %s is evicted; it held %.0f MB", entry.name, entry.held_mb)
        model.close()
        del model
        _give_back()
        return True

    def _make_room(self, wanted: Entry | None, more_mb: float = 0.0, to_take_mb: float = 0.0) -> None:
        """Evict what has to go.

        Args:
            wanted: for whom.
            more_mb: what comes on top of what all loaded models hold.
            to_take_mb: what will be taken of the memory that is available now.

        Raises:
            BackendError: that is not enough; nothing is evicted where this is known before.
        """
        entries = list(self._entries.values())
        over_mb = self._budget.over_mb(sum_mb(entries) + more_mb)
        short_mb = self._budget.short_mb(to_take_mb)
        with self._lock:
            going = victims(entries, max(over_mb, short_mb))
        if going is None:
            self._refuse(wanted, short_mb > over_mb)
            return
        for entry in going:
            self._evict(entry)
        if going and self._budget.short_mb(to_take_mb) > 0:
            self._refuse(wanted, True)

    def _base_mb(self) -> float:
        """Memory before a model is loaded, with what any model needs: those packages are no model's own."""
        installed_backends()
        opencv.available()
        return self._rss() or 0.0

    def _check_alone(self, entry: Entry) -> None:
        error = self._budget.too_small_for(entry)
        if error is not None:
            self._counts["refusals"] += 1
            raise error

    def _refuse(self, wanted: Entry | None, system: bool) -> None:
        self._counts["refusals"] += 1
        raise self._budget.refusal(wanted, self._entries.values(), system)


def _errors(group: Sequence[Entry], outcomes: Sequence[Model | BaseException]) -> dict[str, EdgeferryError]:
    """The known failures by name.

    Raises:
        BaseException: the first that is none.
    """
    errors = {}
    for entry, outcome in zip(group, outcomes):
        if isinstance(outcome, EdgeferryError):
            errors[entry.name] = outcome
        elif isinstance(outcome, BaseException):
            raise outcome
    return errors


def _at_once(openers: Sequence[Callable[[], Model]]) -> list[Model | BaseException]:
    """What each gives, or raises, in a thread of its own."""
    outcomes: list[Model | BaseException] = [RuntimeError("not opened")] * len(openers)

    def run(i: int) -> None:
        try:
            outcomes[i] = openers[i]()
        except BaseException as error:
            outcomes[i] = error

    threads = [threading.Thread(target=run, args=(i,), name="edgeferry-load") for i in range(len(openers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def _give_back() -> None:
    """Hand freed memory to the system, or the next model would seem to need none."""
    gc.collect()
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)

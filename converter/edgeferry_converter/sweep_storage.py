"""A sweep on disk: what it is a sweep of, whose turn it is, and its trials; the one door to Optuna."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgeferry_runtime.errors import DependencyError

from edgeferry_converter.sweep_front import Limits, SweepError, Tried
from edgeferry_converter.sweep_space import Space, impossible, suggest

if TYPE_CHECKING:
    import optuna

__all__ = ["Asked", "FolderLock", "Study", "need_optuna"]

JOURNAL = "study.journal"
LOCK = "lock"
ASKED_IN_VAIN = 200  # recipes in a row that were tried already or cannot be: the space holds no more
STUCK = 30  # of them, after which chance chooses
LOST = "lost"  # attributes of a trial
REPEAT = "repeat"
RECIPE = "recipe"
FIGURES = "figures"
REASON = "reason"
RETRY_OF = "retry_of"


@dataclass(frozen=True)
class Asked:
    """A recipe that is to be tried.

    Attributes:
        number: of the trial.
        recipe: its tables.
        retry_of: the trial that was ended before it finished, whose checkpoints still count; None for a first try.
    """

    number: int
    recipe: dict[str, Any]
    retry_of: int | None = None


class FolderLock:
    """One sweep at a time in a folder; the system takes the lock away from a process that dies.

    Raises:
        SweepError: another process has it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK

    def __enter__(self) -> FolderLock:
        self._file = self._path.open("a+b")
        try:
            _lock(self._file.fileno())
        except OSError:
            self._file.close()
            raise SweepError(
                f"another sweep works in {self._path.parent}", "Wait for it, or give --output another folder."
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def need_optuna() -> None:
    """Raises DependencyError where Optuna is absent."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise DependencyError(
            "a sweep needs Optuna, which is not installed", "pip install 'edgeferry-converter[sweep]'"
        ) from None


class Study:
    """The trials of a folder; whoever opens it holds its FolderLock.

    Trials that were running when their sweep was ended are marked as failed and asked for again.

    Args:
        folder: where the journal lies.
        space: what is searched.
        seed: of the choice; the same seed and the same order of results give the same trials.
        limits: trials within them are looked for first.
    """

    def __init__(self, folder: Path, space: Space, seed: int, limits: Limits) -> None:
        need_optuna()
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._space, self._limits = optuna, space, limits
        path = folder / JOURNAL
        _repair(path)
        backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study = optuna.create_study(
                storage=optuna.storages.JournalStorage(backend),
                study_name="sweep",
                directions=["minimize"] * 3,
                load_if_exists=True,
            )
        found = self._study.get_trials(deepcopy=False)
        # What was chosen before an interruption is not chosen once more after it.
        self._samplers = (
            optuna.samplers.TPESampler(seed=seed + len(found)),
            optuna.samplers.RandomSampler(seed=seed + len(found)),
        )
        self._running: dict[int, optuna.Trial] = {}
        self._tried = {_key(t.user_attrs[RECIPE]) for t in found if RECIPE in t.user_attrs}
        self._end_running(found)
        self._retries = self._lost()

    def baseline(self) -> Tried | None:
        """Trial 0: int8 of the source; None before it was measured."""
        return next((trial for trial in self.trials() if trial.number == 0), None)

    def add_baseline(self, figures: Tried) -> None:
        """Measure everything else against this; the first trial there is."""
        frozen = self._optuna.trial.create_trial(
            values=list(figures.goals), user_attrs={FIGURES: asdict(figures), RECIPE: {}}
        )
        self._study.add_trial(frozen)

    def trials(self) -> list[Tried]:
        """Those that ended by themselves, the baseline among them; the ended and the impossible are left out."""
        return [
            Tried(**trial.user_attrs[FIGURES])
            for trial in self._study.get_trials(deepcopy=False)
            if FIGURES in trial.user_attrs
        ]

    def ask(self) -> Asked | None:
        """What to try next; None when the space holds nothing new that is possible."""
        state = self._optuna.trial.TrialState
        if self._retries:
            return self._again(self._retries.pop(0))
        for attempt in range(ASKED_IN_VAIN):
            self._study.sampler = self._samplers[attempt >= STUCK]
            trial = self._study.ask()
            recipe = suggest(self._space, trial)
            repeat = _key(recipe) in self._tried and RETRY_OF not in trial.user_attrs
            reason = impossible(recipe) or (REPEAT if repeat else "")
            if reason:  # counts as bad, so that the sampler leaves a corner with nothing new in it
                trial.set_user_attr(REASON, reason)
                self._study.tell(trial, state=state.PRUNED)
            else:
                return self._start(trial, recipe)
        return None

    def tell(self, found: Tried) -> None:
        """What a trial gave, its failure included."""
        state = self._optuna.trial.TrialState
        trial = self._running.pop(found.number)
        trial.set_user_attr(FIGURES, asdict(found))
        if found.reason:
            self._study.tell(trial, state=state.FAIL)
            return
        for name, (value, most) in self._against_limits(found).items():
            trial.set_constraint(name, value - most)
        self._study.tell(trial, list(found.goals))

    def give_back(self, number: int) -> None:
        """A trial that cannot be ended now: it is tried again when the sweep goes on."""
        self._running.pop(number)

    def _against_limits(self, found: Tried) -> dict[str, tuple[float, float]]:
        pairs = {
            "drop": (found.drop, self._limits.max_drop),
            "latency": (found.latency_ms, self._limits.max_latency_ms),
            "bytes": (float(found.bytes), self._limits.max_bytes),
        }
        return {name: (value, float(most)) for name, (value, most) in pairs.items() if most is not None}

    def _start(self, trial: optuna.Trial, recipe: dict[str, Any]) -> Asked:
        trial.set_user_attr(RECIPE, recipe)
        self._running[trial.number] = trial
        self._tried.add(_key(recipe))
        return Asked(trial.number, recipe, trial.user_attrs.get(RETRY_OF))

    def _again(self, lost: optuna.trial.FrozenTrial) -> Asked:
        self._study.enqueue_trial(lost.params, user_attrs={RETRY_OF: lost.number})
        trial = self._study.ask()
        return self._start(trial, suggest(self._space, trial))

    def _end_running(self, found: list[optuna.trial.FrozenTrial]) -> None:
        """Mark trials that nobody runs any more: only one process works in a folder."""
        for trial in found:
            if trial.state == self._optuna.trial.TrialState.RUNNING:
                self._study._storage.set_trial_user_attr(trial._trial_id, REASON, LOST)
                self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)

    def _lost(self) -> list[optuna.trial.FrozenTrial]:
        """Trials that were ended before they finished, whose recipes were not tried again since."""
        found = self._study.get_trials(deepcopy=False)
        again = {trial.user_attrs.get(RETRY_OF) for trial in found}
        return [
            trial
            for trial in found
            if trial.user_attrs.get(REASON) == LOST and RECIPE in trial.user_attrs and trial.number not in again
        ]


def _key(recipe: Mapping[str, Any]) -> str:
    return json.dumps(recipe, sort_keys=True)


def _repair(path: Path) -> None:
    """A process that was killed while it wrote leaves a lock, or half a line: neither may stop the next one."""
    for left in path.parent.glob(f"{path.name}.lock*"):
        left.unlink(missing_ok=True)
    if not path.exists():
        return
    with path.open("r+b") as file:
        whole = file.read()
        if whole and not whole.endswith(b"\n"):
            file.truncate(whole.rfind(b"\n") + 1)


def _lock_posix(descriptor: int) -> None:
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_windows(descriptor: int) -> None:
    import msvcrt

    msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]


_lock: Callable[[int], None] = _lock_windows if os.name == "nt" else _lock_posix

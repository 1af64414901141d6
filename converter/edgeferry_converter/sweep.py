"""sweep, top to bottom: check, measure the baseline, try recipes, find the front, report, pick."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeferry_runtime.errors import EdgeferryError

from edgeferry_converter.errors import OptionError
from edgeferry_converter.progress import Progress
from edgeferry_converter.request import ConversionRequest
from edgeferry_converter.sweep_front import Limits, SweepError, Tried, choose, nearest
from edgeferry_converter.sweep_identity import check_same, sweep_identity
from edgeferry_converter.sweep_latency import BoardMeter, LatencyMeter, LocalMeter
from edgeferry_converter.sweep_report import sweep_figures, trial_line, write_page
from edgeferry_converter.sweep_running import DaskRunner, LocalRunner, Runner, cores, default_jobs
from edgeferry_converter.sweep_space import default_space, load_space
from edgeferry_converter.sweep_storage import Asked, FolderLock, Study, need_optuna
from edgeferry_converter.sweep_trial import Job, Ran, bundle_path, job_of, kept, tried_of

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["BEST", "SweepRequest", "search", "sweep", "trial_folder"]

BEST = -1  # as the trial to pick: the best within the limits
FAILED_FIRST = 5  # trials of which none succeeds: then what is wrong is not the recipes
PATIENCE = 1.0  # seconds; Windows notices Ctrl-C between waits only


@dataclass(frozen=True)
class SweepRequest:
    """What the user asks for; see ``edgeferry sweep --help``.

    Attributes:
        conversion: of each trial; its recipe, schemes, gate and output are the sweep's.
        space: the file of the search space; None for the shipped one.
        trials: how many recipes are tried, those of earlier runs in the folder among them.
        jobs: trials at once; None for half of the cores, or one a Dask worker.
        pick: the trial whose bundle is wanted, BEST for the best within the limits, None for none.
        dask: address of a scheduler.
        measure_on: the board that tells latency; None for this machine.
        zipped: look for small transfers, not small files.
    """

    conversion: ConversionRequest
    output: Path
    space: Path | None = None
    limits: Limits = field(default_factory=Limits)
    trials: int = 20
    jobs: int | None = None
    seed: int = 0
    pick: int | None = None
    dask: str | None = None
    measure_on: str | None = None
    zipped: bool = False


def sweep(request: SweepRequest, console: Console) -> dict[str, Any]:
    """Search recipes; what was found before in the folder counts.

    Returns:
        The figures that `edgeferry sweep --json` prints.

    Raises:
        SweepError: every trial failed, or nothing that may be picked is within the limits; the page is written.
        OptionError: the folder holds a sweep of something else.
        EdgeferryError: with what is at fault.
    """
    need_optuna()
    space = load_space(request.space or default_space())
    identity = sweep_identity(request.conversion, space, request.measure_on, request.zipped)
    folder = request.output
    _make(folder)
    with FolderLock(folder), Progress(console) as progress:
        check_same(folder, identity)
        study = Study(folder, space, request.seed, request.limits)
        meter: LatencyMeter = BoardMeter(request.measure_on) if request.measure_on else LocalMeter()
        exhausted = False
        if len(study.trials()) <= request.trials:  # the baseline is one of them
            with closing(_runner(request)) as runner:
                exhausted = _Work(request, study, runner, meter, console, progress).go_on()
        trials = study.trials()
        figures = sweep_figures(folder, trials, request.limits, meter.where, request.zipped, exhausted)
        write_page(folder, figures)
        _raise_when_all_failed(trials, folder)
        if request.pick is not None:
            figures["picked"] = _pick(request, trials)
        return figures


def search(
    study: Study, wanted: int, slots: Callable[[], int], start: Callable[[Asked], Future[Ran]],
    finish: Callable[[Asked, Ran], Tried],
) -> bool:  # fmt: skip
    """Keep every slot busy until enough trials are finished.

    Args:
        wanted: finished trials, the baseline and trials that were interrupted not counted.
        slots: how many run at once, now.
        start: begins a trial.
        finish: measures one that ended; one at a time.

    Returns:
        Whether the space held no more.

    Raises:
        SweepError: what runs trials is gone; those that ran are tried again the next time.
    """
    running: dict[Future[Ran], Asked] = {}
    exhausted = False
    while True:
        finished = [trial for trial in study.trials() if trial.number]
        hopeless = len(finished) >= FAILED_FIRST and all(trial.reason for trial in finished)
        while not exhausted and not hopeless and len(running) < slots() and len(finished) + len(running) < wanted:
            asked = study.ask()
            if asked is None:
                exhausted = True
            else:
                running[start(asked)] = asked
        if not running:
            return exhausted
        ended, _ = wait(running, timeout=PATIENCE, return_when=FIRST_COMPLETED)
        for future in ended:
            asked = running.pop(future)
            study.tell(finish(asked, future.result()))


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial's files are."""
    return folder / "trials" / f"{number:04d}"


class _Work:
    """A sweep's trials between the study and whoever runs them."""

    def __init__(
        self, request: SweepRequest, study: Study, runner: Runner, meter: LatencyMeter, console: Console,
        progress: Progress,
    ) -> None:  # fmt: skip
        self._request, self._study, self._runner, self._meter = request, study, runner, meter
        self._console, self._progress = console, progress
        self._running: set[int] = set()

    def go_on(self) -> bool:
        """Try what is missing; whether the space held no more."""
        base = self._study.baseline() or self._baseline()
        self._base = base
        self._tell()
        return search(self._study, self._request.trials, lambda: self._runner.slots, self._start, self._finish)

    def _baseline(self) -> Tried:
        """Trial 0, alone: everything else is compared with it."""
        self._progress.step("trial 0: int8 of the source")
        folder = trial_folder(self._request.output, 0)
        job = self._job({})
        ran = self._runner.submit(job, folder).result()
        found = tried_of(0, {}, ran, self._request.zipped)
        if found.reason:
            raise SweepError(f"int8 of the source cannot be made: {found.reason}", ran.remedy or f"See {folder}.")
        self._progress.step("trial 0: latency")
        bundle = bundle_path(folder, job)
        found = replace(found, latency_ms=self._meter.measure(bundle, bundle).ms, ratio=1.0)
        self._study.add_baseline(found)
        self._console.print(trial_line(found), highlight=False, soft_wrap=True)
        return found

    def _start(self, asked: Asked) -> Future[Ran]:
        folder, job = trial_folder(self._request.output, asked.number), self._job(asked.recipe)
        self._running.add(asked.number)
        self._tell()
        if asked.retry_of is not None:
            _take_over(trial_folder(self._request.output, asked.retry_of), folder)
            ran = kept(job, folder)
            if ran is not None:
                future: Future[Ran] = Future()
                future.set_result(ran)
                return future
        return self._runner.submit(job, folder)

    def _finish(self, asked: Asked, ran: Ran) -> Tried:
        found = tried_of(asked.number, asked.recipe, ran, self._request.zipped)
        if not found.reason:
            found = self._measured(found)
        self._running.discard(asked.number)
        self._console.print(trial_line(found), highlight=False, soft_wrap=True)
        self._tell(1)
        return found

    def _measured(self, found: Tried) -> Tried:
        """With its latency; a failure is the trial's unless the baseline fails, too."""
        job = self._job(found.recipe)
        bundle = bundle_path(trial_folder(self._request.output, found.number), job)
        baseline = bundle_path(trial_folder(self._request.output, 0), job)
        try:
            timing = self._meter.measure(bundle, baseline)
        except EdgeferryError as error:
            self._meter.measure(baseline, baseline)
            return Tried(found.number, found.recipe, seconds=found.seconds, reason=error.message)
        ratio = timing.ms / (timing.baseline_ms or self._base.latency_ms)
        return replace(found, ratio=ratio, latency_ms=ratio * self._base.latency_ms)

    def _job(self, recipe: Any) -> Job:
        threads = 0 if self._request.dask else max(1, cores() // self._runner.slots)
        return job_of(self._request.conversion, recipe, threads)

    def _tell(self, more: int = 0) -> None:
        """How far it is; ``more`` have finished that the study does not know yet."""
        names = ", ".join(str(number) for number in sorted(self._running))
        self._progress.step("")
        self._progress.at(
            len(self._study.trials()) - 1 + more, self._request.trials, f"trials {names}" if names else "trials"
        )


def _runner(request: SweepRequest) -> Runner:
    if request.dask:
        return DaskRunner(request.dask, request.jobs)
    return LocalRunner(request.jobs or default_jobs())


def _take_over(old: Path, new: Path) -> None:
    """Checkpoints of a trial that was ended, for the one that goes on with its recipe."""
    if old.is_dir() and not new.exists():
        old.rename(new)


def _raise_when_all_failed(trials: list[Tried], folder: Path) -> None:
    failed = [trial for trial in trials if trial.number]
    if not failed or not all(trial.reason for trial in failed):
        return
    reasons = dict.fromkeys(trial.reason for trial in failed)
    raise SweepError(
        "\n".join([f"all {len(failed)} trials failed:", *(f"  {reason}" for reason in reasons)]),
        f"{folder / 'trials'} has the log of each; mend what is wrong and give --output another folder.",
    )


def _pick(request: SweepRequest, trials: list[Tried]) -> dict[str, Any]:
    """Copy the bundle that was chosen into the folder.

    Raises:
        OptionError: there is no such trial, or it failed.
        SweepError: none is within the limits.
    """
    by_number = {trial.number: trial for trial in trials}
    if request.pick == BEST:
        chosen = choose(trials, request.limits)
        if chosen is None:
            raise nearest(trials, request.limits)
    else:
        found = by_number.get(request.pick or 0)
        if found is None or found.reason:
            good = ", ".join(str(number) for number, trial in sorted(by_number.items()) if not trial.reason)
            how = "failed" if found else "does not exist"
            raise OptionError(f"--pick {request.pick}: that trial {how}", f"These have a bundle: {good}.")
        chosen = found
    folder = trial_folder(request.output, chosen.number)
    source = bundle_path(folder, job_of(request.conversion, chosen.recipe))
    target = request.output / source.name
    part = target.with_suffix(".part")
    shutil.copyfile(source, part)
    part.replace(target)
    return {
        "trial": chosen.number,
        "bundle": str(target),
        "recipe": str(folder / "recipe.toml") if chosen.recipe else None,
        "outside": sorted(request.limits.excess(chosen)),
    }


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{folder} cannot be made: {error.strerror}", "Give --output another folder.") from None

"""The self-check: goldens replayed in a child process, because a bad model can kill the process that loads it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.errors import BackendError, EdgeferryError
from edgeferry_runtime.golden import GoldenReport, replay
from edgeferry_runtime.model import Model

__all__ = ["check_here", "check_in_child"]

TIMEOUT_S = 300.0  # a Zero 2 W needs seconds; only a hung delegate needs minutes


def check_here(path: str, variant: str | None, backend: str | None, threads: int | None) -> GoldenReport:
    """Verify every member of a bundle and replay its goldens in this process.

    Raises:
        BundleError, BackendError: the bundle is damaged, or cannot run here.
    """
    with Bundle.open(path) as bundle:
        bundle.verify()
        with Model.open(bundle, variant, backend, threads) as model:
            return replay(model)


def check_in_child(
    path: str, variant: str | None, backend: str | None, threads: int | None, timeout_s: float = TIMEOUT_S,
    nice: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """The same in a child process; what kills the child is reported, not suffered.

    Args:
        path, variant, backend, threads: as for ``Model.open``.
        timeout_s: how long it may take.
        nice: how much the child's priority is lowered, 0 to 19, where the system knows that.

    Returns:
        ``GoldenReport.to_json()``, or ``{"ok": False, "error": ..., "remedy": ...}`` where it came to no report.
    """
    argv = [sys.executable, "-m", "edgeferry_runtime", "check", "--in-process", "--json", "--bundle", path]
    options = (("--variant", variant), ("--backend", backend), ("--threads", threads), ("--nice", nice or None))
    for option, value in options:
        if value is not None:
            argv += [option, str(value)]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout_s,
            env=_child_environment(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        error: EdgeferryError = BackendError(
            "the self-check of {} did not end within {:.0f} s".format(path, timeout_s),
            "The interpreter or its delegate hangs; try another with --backend.",
        )
        return failure(error)
    if done.returncode < 0:
        error = BackendError(
            "the interpreter crashed while it loaded or ran {} ({})".format(path, _signal_name(-done.returncode)),
            "Use another interpreter or another version of it on this device.",
        )
        return failure(error)
    try:
        report = json.loads(done.stdout.decode("utf-8").splitlines()[-1])
        if isinstance(report, dict) and isinstance(report.get("ok"), bool):
            return report
    except (ValueError, IndexError):
        pass
    tail = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    return failure(
        BackendError("the self-check of {} ended with {}: {}".format(path, done.returncode, "".join(tail)))
    )


def failure(error: EdgeferryError) -> dict[str, Any]:
    """A report for a check that came to none."""
    return {"ok": False, "error": error.message, "remedy": error.remedy or None}


def _child_environment() -> dict[str, str]:
    """This process's environment, with the very package that runs here first in the child's path."""
    package_parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [package_parent] + [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return dict(os.environ, PYTHONPATH=os.pathsep.join(paths))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "signal {}".format(number)

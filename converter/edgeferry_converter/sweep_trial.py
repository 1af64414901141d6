"""One trial: a recipe becomes a judged bundle in a process of its own, whatever happens to that process."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from edgeferry_converter.report import report_path
from edgeferry_converter.request import ConversionRequest
from edgeferry_converter.sweep_front import Tried
from edgeferry_converter.sweep_space import STEM, recipe_toml

__all__ = ["Job", "Ran", "bundle_path", "job_of", "kept", "run_anywhere", "run_job", "tried_of"]

JOB = "job.json"
RESULT = "result.json"
LOG = "log.txt"
RECIPE = f"{STEM}.toml"
SCHEME = "int8"
LOG_SHOWN = 300  # characters of its end


@dataclass(frozen=True)
class Job:
    """A trial as plain values, which any process and any machine with the same files can run.

    Attributes:
        options: of the conversion, as ``sweep_child`` reads them.
        recipe: the text of its file; empty for the baseline.
        name: of the bundle, without ending.
        cwd: the folder that relative paths and modules are looked for in.
        threads: that TensorFlow may use.
    """

    options: Mapping[str, Any]
    recipe: str
    name: str
    cwd: str
    threads: int = 0


@dataclass(frozen=True)
class Ran:
    """How a trial ended.

    Attributes:
        reason: why it failed; empty when it did not.
        seconds: what it took.
        remedy: what helps against the reason, where somebody knows.
        report: what report.json says; empty when it failed.
        files: what lies in the trial's folder, where that is on another machine.
    """

    reason: str
    seconds: float
    remedy: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


def job_of(request: ConversionRequest, recipe: Mapping[str, Any], threads: int = 0) -> Job:
    """The job that tries a recipe; an empty one is the baseline.

    The gate is off: a bundle outside the limits is a point of the front as well.
    """
    options = {one.name: getattr(request, one.name) for one in fields(request)}
    options |= {"schemes": (SCHEME,), "max_drop": 0.0, "load": vars(request.load)}
    for unused in ("recipe", "output"):
        del options[unused]
    plain = json.loads(json.dumps(options, default=str))
    name = request.model.name.split(".")[0]
    return Job(plain, recipe_toml(recipe) if recipe else "", name, str(Path.cwd()), threads)


def bundle_path(folder: Path, job: Job) -> Path:
    """Where a trial's bundle lies."""
    return folder / f"{job.name}.ferry"


def run_job(job: Job, folder: Path, started: Callable[[subprocess.Popen[bytes]], None] = lambda _: None) -> Ran:
    """Run a trial and wait for it; never raises for what happens inside it.

    Args:
        folder: where its files go; made when absent.
        started: gets the process, to end it.
    """
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    if job.recipe:
        (folder / RECIPE).write_text(job.recipe, encoding="utf-8")
    (folder / RESULT).unlink(missing_ok=True)
    (folder / JOB).write_text(json.dumps({"options": job.options, "name": job.name}, indent=1), encoding="utf-8")
    # A pipe as standard input: when this process dies, however it does, the child reads its end and ends as well.
    # -P: a keras.py in the working folder is no concern of ours.
    with (folder / LOG).open("wb") as log:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgeferry_converter.sweep_child", str(folder.absolute())],
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, cwd=job.cwd,
                env=_environment(job.threads), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return Ran(f"its process did not start: {error}", 0.0)
        started(process)
        with process:
            status = process.wait()
    seconds = time.monotonic() - began
    reason, remedy = _reason(folder, status)
    if reason:
        return Ran(reason, seconds, remedy)
    return Ran("", seconds, report=_report(folder, job))


def kept(job: Job, folder: Path) -> Ran | None:
    """What a trial gave that had ended when the sweep was ended before it took notice; None when there is none."""
    try:
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if found["reason"] or (folder / RECIPE).read_text(encoding="utf-8") != job.recipe:
            return None
        return Ran("", float(found["seconds"]), report=_report(folder, job))
    except (OSError, ValueError, KeyError):
        return None


def _report(folder: Path, job: Job) -> dict[str, Any]:
    return dict(json.loads(report_path(bundle_path(folder, job)).read_text(encoding="utf-8")))


def run_anywhere(job: Job) -> Ran:
    """Run a trial in a scratch folder and bring its files along, for a worker on another machine."""
    with tempfile.TemporaryDirectory(prefix="edgeferry-trial-") as scratch:
        folder = Path(scratch)
        ran = run_job(job, folder)
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return replace(ran, files=files)


def tried_of(number: int, recipe: Mapping[str, Any], ran: Ran, zipped: bool) -> Tried:
    """The figures of a trial, its latency not yet among them.

    Args:
        zipped: bytes are those of the compressed file.
    """
    if ran.reason:
        return Tried(number, recipe, seconds=ran.seconds, reason=ran.reason)
    ((name, verdict),) = ran.report["gate"].items()
    variant = ran.report["evaluation"]["variants"][name]
    drop = verdict["drop"]
    if not all(math.isfinite(drop[key]) for key in ("value", "low", "high")):
        return Tried(number, recipe, seconds=ran.seconds, reason="its metric is no number")
    return Tried(
        number=number,
        recipe=recipe,
        metric=variant["metric"],
        drop=drop["value"],
        low=drop["low"],
        high=drop["high"],
        bytes=variant["compressed_bytes"] if zipped else variant["bytes"],
        zipped=variant["compressed_bytes"],
        overlap=int(ran.report.get("compression", {}).get("overlap") or 0),
        seconds=ran.seconds,
    )


def _environment(threads: int) -> dict[str, str]:
    chosen = {"TF_CPP_MIN_LOG_LEVEL": "2"}
    if threads:
        names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
        chosen |= dict.fromkeys(names, str(threads))
    return {**os.environ, **chosen}


def _reason(folder: Path, status: int) -> tuple[str, str]:
    """Why a trial failed and what helps, from what its process left; empty when it did not."""
    try:
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        end = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip()[-LOG_SHOWN:]
        how = f"was ended by {_signal(-status)}" if status < 0 else f"ended with {status}"
        lines = [line.strip() for line in end.splitlines() if line.strip()]
        return f"its process {how}" + (f": {lines[-1]}" if lines else ""), ""
    return str(found["reason"]), str(found.get("remedy", ""))


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"{name} (often: not enough memory)" if name == "SIGKILL" else name

"""`edgeferry-run profile`: where a frame's time goes: the loop's stages in both shapes, and each operation."""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from typing import Any, Mapping

from edgeferry_runtime.conditions import conditions
from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.model import Model
from edgeferry_runtime.op_times import operation_times
from edgeferry_runtime.opening import Choices, open_for_loop
from edgeferry_runtime.pipeline import Pipeline
from edgeferry_runtime.profile_html import page
from edgeferry_runtime.profile_text import to_text
from edgeferry_runtime.running import choices_of
from edgeferry_runtime.sources import open_source
from edgeferry_runtime.sources.options import redacted
from edgeferry_runtime.summary import Summary
from edgeferry_runtime.thread_choice import choose_threads

__all__ = ["SECONDS", "SOURCE", "bound", "profile", "profile_bundle", "profile_file", "write_page"]

SECONDS = 6.0
SOURCE = "synthetic:1280x720"
_BUSY = 0.75  # a thread that works less is not what the loop waits for
_LOOP, _PREPARE, _NOBODY = "loop", "prepare", ""
# Which thread a stage runs in, by the loop's shape.  A frame that waits keeps no thread busy.
_THREADS = {
    "sequential": dict.fromkeys(("capture", "decode", "preprocess", "invoke", "postprocess"), _LOOP),
    "pipelined": dict(
        dict.fromkeys(("capture", "decode", "preprocess"), _PREPARE), invoke=_LOOP, postprocess=_LOOP
    ),
}


def profile(arguments: argparse.Namespace) -> int:
    """Measure, and print or write what came out."""
    report = profile_bundle(choices_of(arguments), arguments.threads, arguments.source, arguments.seconds)
    if arguments.html:
        write_page(report, arguments.html)
    print(json.dumps({"profile": report}) if arguments.json else to_text(report))
    return 0


def profile_bundle(
    choices: Choices, threads: int | str | None = None, source: str = SOURCE, seconds: float = SECONDS
) -> dict[str, Any]:
    """A bundle's loop on a source, and its operations.

    Args:
        choices: the bundle and how it is run.
        threads: a number, "auto" or None, as for ``choose_threads``.
        source: as ``open_source`` takes it; opened three times.
        seconds: how long all of it measures: a third each for the operations and the loop's two shapes.

    Returns:
        Plain values: ``bundle``, ``variant``, ``backend``, ``delegate``, ``threads``, ``source``; ``loop``, one
        for each shape: ``shape``, ``fps``, ``frames``, ``stages``, ``threads`` with the share of the time each is
        busy, ``bound``; none for a model that takes no frames; ``operations`` as ``operation_times`` gives them;
        and ``conditions``.

    Raises:
        UsageError, BundleError, BackendError, SourceError, DependencyError.
    """
    before = conditions()
    report, used = _loop(choices, threads, source, seconds / 3)
    gc.collect()  # an accelerator is free for the next process when the last reference to its model goes
    operations = operation_times(used, seconds / 3)
    return dict(report, operations=operations, conditions={"before": before, "after": conditions()})


def profile_file(path: str, seconds: float = SECONDS, threads: int | None = None) -> dict[str, Any]:
    """The operations of a .tflite file, run on random numbers; it has no loop."""
    operations = operation_times(Choices("", threads=threads), seconds, model_path=path)
    return {
        "bundle": os.path.basename(path),
        "variant": "",
        "backend": operations["backend"],
        "delegate": "",
        "threads": operations["threads"],
        "source": "random numbers",
        "loop": [],
        "operations": operations,
        "conditions": {"after": conditions()},
    }


def write_page(report: Mapping[str, Any], path: str) -> None:
    """The report as a page.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(page(report))
    except OSError as error:
        raise UsageError("{} cannot be written: {}".format(path, error.strerror), "Name another file.") from None


def _loop(choices: Choices, threads: int | str | None, uri: str, seconds: float) -> tuple[dict[str, Any], Choices]:
    """What the loop takes, and the choices with all that was left open in them decided."""
    model, standby = open_for_loop(choices)
    try:
        if model.preprocessor is not None and standby is None:
            with open_source(uri, want=model.frame_size, encoded=True) as source:
                model, _ = choose_threads(choices, threads, uri, model, source)
        report = {
            "bundle": model.identity,
            "variant": model.variant.name,
            "backend": model.backend_name,
            "delegate": model.delegate,
            "threads": model.interpreter.threads,
            "source": redacted(uri),
            "loop": [] if model.preprocessor is None else [_shape(model, uri, p, seconds) for p in (False, True)],
        }
        used = choices._replace(
            variant=model.variant.name, backend=model.interpreter.backend.name, threads=model.interpreter.threads
        )
    finally:
        model.close()
        if standby is not None:
            standby.close()
    return report, used


def _shape(model: Model, uri: str, pipelined: bool, seconds: float) -> dict[str, Any]:
    """The loop in one of its shapes for so long."""
    model.warm_up()
    with open_source(uri, want=model.frame_size, encoded=True) as source:
        pipeline = Pipeline(source, model, pipelined=pipelined)
        until = time.monotonic() + seconds
        for _ in pipeline:
            if time.monotonic() >= until:
                pipeline.stop()
        return _stages(pipeline.summary(), source.live)


def _stages(summary: Summary, live: bool) -> dict[str, Any]:
    elapsed_us = max(summary.seconds * 1e6, 1e-9)
    threads = _THREADS[summary.shape]
    rows = []
    for name, stats in summary.stages.items():
        values = stats.to_json()
        rows.append(
            {
                "stage": name,
                "thread": threads.get(name, _NOBODY),
                "p50_us": values["p50"],
                "p90_us": values["p90"],
                "p99_us": values["p99"],
                "mean_us": values["mean"],
                "share": stats.total_us / elapsed_us,
            }
        )
    return {
        "shape": summary.shape,
        "live": live,
        "frames": summary.frames,
        "seconds": round(summary.seconds, 3),
        "fps": round(summary.fps, 2),
        "stages": rows,
        "threads": _busy(rows),
        "bound": bound(rows, live),
    }


def _busy(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The share of the time that each thread works or waits for its source."""
    busy: dict[str, float] = {}
    for row in rows:
        if row["thread"] != _NOBODY:
            busy[row["thread"]] = busy.get(row["thread"], 0.0) + row["share"]
    return busy


def bound(rows: list[dict[str, Any]], live: bool) -> dict[str, Any]:
    """What keeps the loop from being faster: the largest stage of the busiest thread, if one is busy.

    Args:
        rows: each with ``stage``, ``thread`` and ``share`` of the loop's time, 0 to 1.
        live: whether the source gives frames at its own rate.
    """
    busy = _busy(rows)
    thread = max(busy, key=lambda name: busy[name])
    row = max((row for row in rows if row["thread"] == thread), key=lambda row: float(row["share"]))
    found = {"thread": thread, "stage": row["stage"], "share": row["share"]}
    if len(busy) > 1 and busy[thread] < _BUSY:
        text = "bound by the handing over between threads: none works more than {:.0f} % of the time"
        return dict(found, stage="", share=1 - busy[thread], text=text.format(100 * busy[thread]))
    waiting = "the source: the loop waits for its frames" if live else "reading the source"
    what = waiting if row["stage"] == "capture" else row["stage"]
    return dict(found, text="bound by {}, {:.0f} % of the time".format(what, 100 * row["share"]))

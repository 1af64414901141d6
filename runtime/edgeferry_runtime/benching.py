"""`edgeferry-run bench`: what this device does with a bundle: cold start, stages, ages, memory, heat."""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

from edgeferry_runtime.conditions import conditions, rss_mb
from edgeferry_runtime.opening import open_for_loop
from edgeferry_runtime.pipeline import Pipeline
from edgeferry_runtime.running import choices_of
from edgeferry_runtime.sources import open_source
from edgeferry_runtime.sources.options import redacted
from edgeferry_runtime.thread_choice import choose_threads

__all__ = ["bench", "process_started_ns"]

_LOADED_NS = time.monotonic_ns()  # the imports above are all that a loop needs


def bench(arguments: argparse.Namespace) -> int:
    """Run the loop for a while and print what it took."""
    started_ns = process_started_ns()
    choices = choices_of(arguments)
    before = conditions()
    began = time.monotonic_ns()
    model, standby = open_for_loop(choices)
    opened = time.monotonic_ns()
    try:
        model.invoke()
        first = time.monotonic_ns()
        interpreter = model.interpreter
        cold_start = {
            "import": (_LOADED_NS - started_ns) / 1000,
            "open": (opened - began) / 1000 - interpreter.load_us - interpreter.allocate_us,
            "load": interpreter.load_us,
            "allocate": interpreter.allocate_us,
            "first invoke": (first - opened) / 1000,
        }
        with open_source(arguments.source, want=model.frame_size, encoded=True) as source:
            model, _ = choose_threads(choices, arguments.threads, arguments.source, model, source)
        with open_source(arguments.source, want=model.frame_size, encoded=True) as source:
            pipeline = Pipeline(source, model, frames=arguments.frames)
            until = time.monotonic() + arguments.seconds
            for _ in pipeline:
                if time.monotonic() >= until:
                    pipeline.stop()
            summary = pipeline.summary()
    finally:
        model.close()
        if standby is not None:
            standby.close()
    report = {
        "source": redacted(arguments.source),
        "cold_start_us": {name: round(us, 1) for name, us in cold_start.items()},
        "rss_mb": rss_mb(),
        "before": before,
        "after": conditions(),
        **summary.to_json(),
    }
    if arguments.json:
        print(json.dumps({"bench": report}))
    else:
        print(_to_text(report, summary.to_text()))
    return 0


def _to_text(report: dict[str, Any], loop: str) -> str:
    """A table for people."""
    cold = report["cold_start_us"]
    after = report["after"]
    lines = [loop, "{:<18}{:>10}".format("cold start", "ms")]
    lines += ["{:<18}{:>10.1f}".format(name, us / 1000) for name, us in cold.items()]
    lines.append("{:<18}{:>10.1f}".format("to first answer", sum(cold.values()) / 1000))
    if report["rss_mb"]:
        lines.append("memory (RSS)      {:>10.1f} MB".format(report["rss_mb"]))
    shown = ("machine", "cpu", "temperature_c", "throttled", "load")
    lines += ["{:<18}{}".format(name, after[name]) for name in shown if after.get(name)]
    return "\n".join(lines)


def process_started_ns() -> int:
    """When this process began, on the monotonic clock; now, where the system does not tell."""
    now = time.monotonic_ns()
    try:
        with open("/proc/self/stat", encoding="ascii") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])  # starttime, proc(5)
        with open("/proc/uptime", encoding="ascii") as file:
            uptime = float(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        return now
    age_s = uptime - ticks / os.sysconf("SC_CLK_TCK")
    return now - int(max(0.0, age_s) * 1e9)

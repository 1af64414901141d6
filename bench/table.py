"""What every bench prints and writes: a table, and bench/out/NAME.json beside it."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("edgeferry-runtime", "ai-edge-litert", "numpy", "opencv-python-headless", "paramiko", "tensorflow")


@dataclass(frozen=True)
class Row:
    """One figure: its samples, and the goal it has to meet (None: shown without one)."""

    name: str
    samples: list[float]
    unit: str
    goal: float | None
    better: str  # "lower" or "higher"

    @property
    def value(self) -> float:
        return statistics.median(self.samples)

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value <= self.goal if self.better == "lower" else self.value >= self.goal


def report(name: str, rows: list[Row]) -> None:
    """Print the table and write the JSON."""
    width = max(len(row.name) for row in rows)
    print(f"{'':{width}}  {'median':>9} {'min':>9} {'max':>9} {'goal':>9}")
    for row in rows:
        goal = "-" if row.goal is None else f"{'<=' if row.better == 'lower' else '>='} {row.goal:g}"
        mark = {None: "", True: "met", False: "MISSED"}[row.met]
        spread = f"{row.value:9.3f} {min(row.samples):9.3f} {max(row.samples):9.3f}"
        print(f"{row.name:{width}}  {spread} {goal:>9} {mark}")
    data = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {"python": platform.python_version(), **versions()},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": f"make bench-{name}",
        "rows": [
            {
                "name": row.name,
                "value": round(row.value, 4),
                "min": round(min(row.samples), 4),
                "max": round(max(row.samples), 4),
                "unit": row.unit,
                "goal": row.goal,
                "better": row.better,
                "met": row.met,
            }
            for row in rows
        ],
    }
    out = Path(__file__).parent / "out" / f"{name}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    print(f"written to {out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out}", file=sys.stderr)


def versions() -> dict[str, str]:
    """Installed versions of what is measured."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

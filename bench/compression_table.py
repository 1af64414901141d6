"""The figures of the compression bench: paired differences, latencies side by side, rows and markdown."""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from compression_rows import INT8, Made
from edgeferry_converter.material import Material
from edgeferry_converter.variants import ConvertedVariant, VariantRunner
from table import Row

CONTROL = "dense"
RESAMPLES = 2000
ROUNDS, RUNS = 60, 10  # latency: rounds of so many runs of each file in turn


@dataclass(frozen=True)
class Goal:
    """What a row has to reach, against its control; None where nothing was asked.

    Attributes:
        points: at most so many below, in accuracy of the int8 file.
        zipped, latency: at most this share of the control's.
    """

    points: float | None = None
    zipped: float | None = None
    latency: float | None = None


GOALS = {
    "channels 75 %": Goal(points=1),
    "channels 75 %, distilled": Goal(points=1),
    "channels 50 %": Goal(points=2, latency=0.65),
    "channels 50 %, distilled": Goal(points=2, latency=0.65),
    "magnitude 80 %, distilled": Goal(points=1, zipped=0.45),
    "QAT int4 weights": Goal(points=1),
}


@dataclass(frozen=True)
class Line:
    """One line of the table; shares and points are against ``control``, latency with its spread."""

    name: str
    control: str
    accuracy: tuple[float, float]
    points: tuple[float, float, float]
    macs: float
    size: int
    zipped: float
    latency: tuple[float, float, float]

    @property
    def goal(self) -> Goal:
        return GOALS.get(self.name, Goal())

    def verdicts(self) -> list[tuple[str, bool]]:
        """Each goal as it is written, and whether it was met."""
        goal = self.goal
        asked = (
            (goal.points, -self.points[0], "at most {:g} below"),
            (goal.zipped, self.zipped, "at most {:g} zipped"),
            (goal.latency, self.latency[0], "latency at most {:g}"),
        )
        return [(text.format(limit), found <= limit) for limit, found, text in asked if limit is not None]


def latencies(files: Sequence[Path], material: Material) -> dict[Path, list[float]]:
    """Milliseconds of one invoke on one thread, each round's mean; all files in turn, A B A B."""
    sample = next(material.evaluation())
    runners = {}
    for file in files:
        runner = VariantRunner(ConvertedVariant(INT8, file, file.stat().st_size), material.feed, threads=1)
        runner(sample)
        runners[file] = runner.interpreter.invoke
    times: dict[Path, list[float]] = {file: [] for file in files}
    for _ in range(ROUNDS):
        for file, invoke in runners.items():
            began = time.perf_counter()
            for _ in range(RUNS):
                invoke()
            times[file].append(1000 * (time.perf_counter() - began) / RUNS)
    return times


def lines(made: Mapping[str, Made], times: Mapping[Path, list[float]]) -> list[Line]:
    """All lines, in the order they were made in."""
    return [_line(one, made, times) for one in made.values()]


def control_of(name: str) -> tuple[str, str]:
    """The row that was trained as long, and which of its models: rounding is held against float."""
    if name.startswith("QAT "):
        return f"PTQ {name.removeprefix('QAT ')}, trained as long", "float"
    return (name, "float") if name.startswith("PTQ ") else (CONTROL, "int8")


def _line(one: Made, made: Mapping[str, Made], times: Mapping[Path, list[float]]) -> Line:
    dense = made[CONTROL]
    control, kind = control_of(one.name)
    ratios = [a / b for a, b in zip(times[one.file], times[dense.file], strict=True)]
    zipped = [len(zlib.compress(each.file.read_bytes(), 6)) for each in (one, dense)]
    low, high = np.quantile(ratios, [0.1, 0.9])
    return Line(
        one.name,
        f"{control}, {kind}",
        (100 * float(one.right["float"].mean()), 100 * float(one.right["int8"].mean())),
        difference(one.right["int8"], made[control].right[kind]),
        one.macs / dense.macs,
        one.file.stat().st_size,
        zipped[0] / zipped[1],
        (statistics.median(ratios), float(low), float(high)),
    )


def difference(right: np.ndarray, control: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Points above the control and the 95 % interval of a paired bootstrap over the images."""
    each = 100 * (right.astype(float) - control.astype(float))
    random = np.random.default_rng(seed)
    means = [each[random.integers(0, len(each), len(each))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(each.mean()), float(low), float(high)


def rows_of(table: Sequence[Line], seconds: float) -> list[Row]:
    """The rows of the JSON; min and max are the interval of a difference, or the spread of a latency."""
    rows = []
    for line in table:
        goal = line.goal
        below = None if goal.points is None else -goal.points
        rows += [
            Row(f"{line.name}: accuracy, float", [line.accuracy[0]], "%", None, "higher"),
            Row(f"{line.name}: accuracy, int8", [line.accuracy[1]], "%", None, "higher"),
            Row(f"{line.name}: int8 against {line.control}", _around(line.points), "points", below, "higher"),
            Row(f"{line.name}: MACs", [line.macs], "of dense", None, "lower"),
            Row(f"{line.name}: int8 file", [line.size], "bytes", None, "lower"),
            Row(f"{line.name}: compressed int8 file", [line.zipped], "of dense", goal.zipped, "lower"),
            Row(f"{line.name}: int8 latency", _around(line.latency), "of dense", goal.latency, "lower"),
        ]
    found = {line.name: line for line in table}
    for name, line in found.items():
        plain = found.get(name.removesuffix(", distilled"))
        if plain is not None and plain is not line:
            gained = line.accuracy[1] - plain.accuracy[1]
            rows.append(Row(f"{name}: int8 against without", [gained], "points", 0.0, "higher"))
    return [*rows, Row("making these rows", [seconds / 60], "min", 40.0, "lower")]


def _around(figure: tuple[float, float, float]) -> list[float]:
    """Value, lower and upper end as samples whose median is the value."""
    value, low, high = figure
    return [min(low, value), value, max(high, value)]


def markdown(table: Sequence[Line]) -> str:
    """The table of docs/compression.md."""
    titles = [
        "",
        "float",
        "int8",
        "int8 against control",
        "MACs",
        "int8 bytes",
        "compressed",
        "latency",
        "goal",
    ]
    found = ["| " + " | ".join(titles) + " |", "| --- |" + " --: |" * 7 + " --- |"]
    for line in table:
        value, low, high = line.points
        told = "; ".join(f"{text}: {'met' if met else 'MISSED'}" for text, met in line.verdicts()) or "-"
        against = "-" if line.name == CONTROL else f"{value:+.1f} ({low:+.1f} to {high:+.1f})"
        middle, fast, slow = line.latency
        found.append(
            f"| {line.name} | {line.accuracy[0]:.1f} % | {line.accuracy[1]:.1f} % | {against} | {line.macs:.2f} "
            f"| {line.size:,} | {line.zipped:.2f} | {middle:.2f} ({fast:.2f} to {slow:.2f}) | {told} |"
        )
    return "\n".join(found)

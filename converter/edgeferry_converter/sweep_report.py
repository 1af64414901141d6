"""What a sweep found: figures for --json, a table for a terminal, and the page."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeferry_converter.sweep_front import Limits, Tried, choose, pareto_front
from edgeferry_converter.sweep_page import milliseconds, sweep_page
from edgeferry_converter.sweep_space import describe

__all__ = ["page_file", "sweep_figures", "sweep_text", "trial_line", "write_page"]

BASELINE = "int8 of the source"
HEAD = ("trial", "drop", "95 % interval", "metric", "latency", "ms", "bytes", "zipped", "recipe")


def page_file(folder: Path) -> Path:
    """Where a sweep's page is."""
    return folder / "report.html"


def sweep_figures(
    folder: Path, trials: Sequence[Tried], limits: Limits, where: str, zipped: bool, exhausted: bool
) -> dict[str, Any]:
    """Everything the report says, as plain values.

    Args:
        where: latency comes from.
        zipped: bytes are those of the compressed file.
        exhausted: the space held no more recipes.
    """
    front = pareto_front(trials)
    best = choose(trials, limits)
    same = never_varied(trials)
    return {
        "folder": str(folder),
        "page": str(page_file(folder)),
        "limits": asdict(limits),
        "latency": where,
        "bytes": "file, zipped" if zipped else "file",
        "trials": [
            {
                **asdict(trial),
                "what": what(trial, same),
                "within_limits": not trial.reason and not limits.excess(trial),
                "report": trial_report(folder, trial.number),
            }
            for trial in trials
        ],
        "front": [trial.number for trial in front],
        "best": best.number if best else None,
        "exhausted": exhausted,
        "warnings": warnings(trials, exhausted),
    }


def trial_report(folder: Path, number: int) -> str | None:
    """The page of a trial's conversion, from the folder on."""
    found = sorted((folder / "trials" / f"{number:04d}").glob("*.report.html"))
    return found[0].relative_to(folder).as_posix() if found else None


def warnings(trials: Sequence[Tried], exhausted: bool) -> list[str]:
    """What a reader must know before believing the table."""
    found = []
    overlap = max((trial.overlap for trial in trials), default=0)
    if overlap:
        found.append(
            f"{overlap} samples that judge were trained on, so the drops flatter: give --eval-data of its own"
        )
    good = [trial for trial in trials if not trial.reason]
    if len(good) > 2:
        found.append(
            f"the best of {len(good)} trials was chosen on the samples that judged it, so its drop flatters:"
            " convert its recipe with other --eval-data before you rely on it"
        )
    if exhausted:
        found.append("the space holds no more recipes: widen it for more trials")
    return found


def what(trial: Tried, known: Collection[str] = ()) -> str:
    """A trial in words, without what is known of all."""
    return describe(trial.recipe, known) if trial.recipe else BASELINE


def never_varied(trials: Sequence[Tried]) -> set[str]:
    """Paths that have one value in all of several recipes that have them."""
    seen: dict[str, list[str]] = {}
    for trial in trials:
        for part, keys in trial.recipe.items():
            for key, value in keys.items():
                seen.setdefault(f"{part}.{key}", []).append(json.dumps(value))
    return {path for path, values in seen.items() if len(values) > 1 and len(set(values)) == 1}


def sweep_text(figures: dict[str, Any]) -> str:
    """The table a person reads: the front, the other trials by latency, then those that failed."""
    trials = {trial["number"]: trial for trial in figures["trials"]}
    failed = [trial for trial in trials.values() if trial["reason"]]
    good = sorted((t for t in trials.values() if not t["reason"]), key=lambda t: (t["ratio"], t["drop"]))
    front = set(figures["front"])
    rows = [_row(trial, trial["number"] in front) for trial in good]
    lines = [*_aligned([HEAD, *rows]), "* on the Pareto front: no other trial is as good in everything", ""]
    lines += [f"trial {trial['number']} failed: {trial['reason']}" for trial in failed]
    limits = [f"--{name.replace('_', '-')} {most}" for name, most in figures["limits"].items() if most is not None]
    if limits:
        best = figures["best"]
        lines.append(f"within {', '.join(limits)}: " + ("none" if best is None else f"best is trial {best}"))
    lines.append(f"latency of int8 {figures['latency']}; bytes of its {figures['bytes']}")
    lines += [f"warning: {warning}" for warning in figures["warnings"]]
    picked = figures.get("picked")
    if picked:
        lines.append(f"picked trial {picked['trial']}: {picked['bundle']}")
        lines += [f"warning: it is outside {name}" for name in picked["outside"]]
        lines += [f"its recipe: {picked['recipe']}"] if picked["recipe"] else []
    lines.append(f"report: {figures['page']}")
    return "\n".join(lines)


def trial_line(trial: Tried) -> str:
    """What is said when a trial ends."""
    if trial.reason:
        return f"trial {trial.number} failed: {trial.reason}"
    return (
        f"trial {trial.number}: drop {trial.drop:+.4f}, latency x{trial.ratio:.2f}, {trial.bytes:,} bytes, "
        f"{trial.seconds:.0f} s: {what(trial)}"
    )


def write_page(folder: Path, figures: dict[str, Any]) -> None:
    """Write report.html, whole or not at all."""
    path = page_file(folder)
    handle, partial = tempfile.mkstemp(prefix=".", suffix=".part", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(sweep_page(figures))
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _row(trial: dict[str, Any], on_front: bool) -> tuple[str, ...]:
    metric = trial["metric"]
    return (
        f"{trial['number']}{'*' if on_front else ' '}",
        f"{trial['drop']:+.4f}",
        f"{trial['low']:+.3f} to {trial['high']:+.3f}",
        "-" if metric is None else f"{metric:.4f}",
        f"x{trial['ratio']:.2f}",
        milliseconds(trial["latency_ms"]),
        f"{trial['bytes']:,}",
        f"{trial['zipped']:,}",
        trial["what"],
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns under each other, numbers to the right; the last one is text."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]) - 1)]
    return ["  ".join([*(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]

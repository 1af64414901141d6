"""Figures of boards as this workstation keeps them: one file a measurement, by device, and how two compare."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgeferry_deploy.errors import TargetError, printable

__all__ = [
    "cleaned",
    "data_folder",
    "device_folder",
    "differences",
    "figures",
    "last_record",
    "ratio_lines",
    "ratios",
    "store_record",
    "write_record",
]

DEEPEST = 12  # of what a board says in JSON


def data_folder() -> Path:
    """Where edgeferry keeps what cannot be made again; EDGEFERRY_DATA_DIR overrides the system's place.

    Not `edgeferry`: that is a board's root, and a workstation can be its own board.
    """
    chosen = os.environ.get("EDGEFERRY_DATA_DIR")
    if chosen:
        return Path(chosen)
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "edgeferry-workstation"


def device_folder(device: str) -> Path:
    """Where the figures of a device are; two devices never share one."""
    plain = re.sub(r"[^A-Za-z0-9._@-]", "_", device)[:80]
    if plain != device or plain.endswith("."):
        plain = f"{plain.rstrip('.')}-{hashlib.sha256(device.encode(errors='replace')).hexdigest()[:8]}"
    return data_folder() / "bench" / plain


def store_record(record: Mapping[str, Any]) -> Path:
    """Keep a record among those of its device; the file.

    Raises:
        TargetError: it cannot be written.
    """
    at = re.sub(r"[^0-9TZ]", "", record["at"])
    return write_record(device_folder(record["device"]) / f"{record['release']}-{at}.json", record)


def write_record(path: Path, record: Mapping[str, Any]) -> Path:
    """Write a record to a file in one rename.

    Raises:
        TargetError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".bench-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise TargetError(
            f"{path} cannot be written: {error.strerror}", "choose another --output, or set EDGEFERRY_DATA_DIR"
        ) from None
    return path


def last_record(device: str) -> dict[str, Any] | None:
    """The newest record of a device, with its `file`; those that cannot be read are passed over."""
    newest: dict[str, Any] | None = None
    for path in device_folder(device).glob("*.json"):
        found: Any = None
        with suppress(OSError, ValueError, RecursionError):
            found = json.loads(path.read_text(encoding="utf-8"))
        texts = isinstance(found, dict) and all(isinstance(found.get(key), str) for key in ("at", "release"))
        if texts and isinstance(found.get("bench"), dict) and (newest is None or found["at"] > newest["at"]):
            newest = {**found, "file": str(path)}
    return newest


def cleaned(value: Any, depth: int = DEEPEST) -> Any:
    """JSON a board sent, safe to show and to keep: texts printable, no NaN or infinity, not too deep.

    Raises:
        ValueError: it is too deep.
    """
    if depth == 0:
        raise ValueError("is too deep")
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {printable(key, 100): cleaned(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item, depth - 1) for item in value]
    return value


def figures(record: Mapping[str, Any]) -> dict[str, tuple[float, float, str]]:
    """What two records are compared by: name -> (figure, its 99th percentile or 0, unit).

    Latencies are medians; what is absent, no number or 0 is left out.
    """
    bench = record["bench"]
    found: dict[str, tuple[float, float, str]] = {}
    rows = {**part(bench, "stages_us"), "capture to invoke": part(bench, "capture_to_invoke_us")}
    for name, stats in {**rows, "frame age": part(bench, "age_us")}.items():
        if isinstance(stats, dict) and number(stats.get("p50")):
            found[name] = (number(stats["p50"]) / 1000, number(stats.get("p99")) / 1000, "ms")
    cold = sum(map(number, part(bench, "cold_start_us").values())) / 1000
    single = (("to first answer", cold, "ms"), ("memory", number(bench.get("rss_mb")), "MB"),
              ("frames a second", number(bench.get("fps")), "/s"))  # fmt: skip
    return {**found, **{name: (figure, 0.0, unit) for name, figure, unit in single if figure}}


def ratios(record: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, float]:
    """Each figure by that of the record before; empty when there is none."""
    old = figures(before) if before else {}
    return {name: round(row[0] / old[name][0], 3) for name, row in figures(record).items() if name in old}


def ratio_lines(record: Mapping[str, Any], before: Mapping[str, Any] | None) -> Iterator[str]:
    """A record for a reader, beside the one before."""
    bench, old, compared = record["bench"], figures(before) if before else {}, ratios(record, before)
    how = [bench.get("variant"), bench.get("backend"), bench.get("delegate"), bench.get("shape")]
    count = "1 thread" if bench.get("threads") == 1 else f"{bench.get('threads')} threads"
    yield f"{record['release']} on {record['device']}" + (
        f", for {record['profile']}" if record["profile"] else ""
    )
    yield ", ".join(str(word) for word in [*how, count, bench.get("source")] if word)
    yield f"{'':18}{'median':>10}{'p99':>10}" + (f"{'before':>10}{'ratio':>8}" if before else "")
    for name, (figure, p99, unit) in figures(record).items():
        tail = f"{old[name][0]:10.3f}{compared[name]:8.2f}" if name in old else ""
        yield f"{name:18}{figure:10.3f}{f'{p99:.3f}' if p99 else '':>10}{tail}  {unit}"
    after = part(bench, "after")
    shown = ("machine", "cpu", "temperature_c", "governor", "throttled", "load")
    yield ", ".join(f"{key} {text(after[key])}" for key in shown if after.get(key))


def differences(record: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[str]:
    """What else differs between two records, in words: a ratio means little without it."""
    for key in ("release", "profile", "service"):
        if before.get(key, "") != record[key]:
            yield f"{key} was {text(before.get(key)) or 'none'} and is {record[key] or 'none'}"
    for key in ("source", "variant", "backend", "delegate", "threads", "shape", "preprocessing"):
        was, now = before["bench"].get(key), record["bench"].get(key)
        if was != now:
            yield f"{key} was {text(was) or 'none'} and is {text(now) or 'none'}"


def part(found: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A mapping in a mapping; empty for anything else."""
    value = found.get(key)
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float:
    """A finite number above 0; 0 for anything else."""
    is_one = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e15
    return float(value) if is_one else 0.0


def text(value: Any) -> str:
    """A value out of a record, for a message."""
    return printable(", ".join(map(str, value)) if isinstance(value, list) else str(value or ""), 120)

"""How long a trial's int8 variant takes: here, in turns with the baseline, or on a board by `edgeferry bench`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.manifest import Variant

from edgeferry_converter.errors import ConversionError, ConverterError
from edgeferry_converter.latency import measure_latency

__all__ = ["BoardMeter", "LatencyMeter", "LocalMeter", "MeasurementError", "Timing"]

BOARD_ROOT = "~/.local/share/edgeferry-sweep"  # beside what the board is there for
BOARD_SECONDS = 10
DEADLINE = 1800.0  # of one command; the first push may carry an environment over a slow link
SCHEME = "int8"


class MeasurementError(ConverterError):
    """A latency cannot be measured."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one invoke, median.

    Attributes:
        ms: of the bundle.
        baseline_ms: of the baseline in the same minute; None where it was not measured again.
    """

    ms: float
    baseline_ms: float | None = None


class LatencyMeter(Protocol):
    """Where latency comes from."""

    where: str
    """In a report: after "latency of int8"."""

    def measure(self, bundle: Path, baseline: Path) -> Timing:
        """Measure a bundle; nothing else is measured meanwhile.

        Raises:
            EdgeferryError: it cannot be measured.
        """


class LocalMeter:
    """This machine, one thread, in turns with the baseline: what else runs slows both alike."""

    where = "on this machine, 1 thread, in turns with int8 of the source"

    def measure(self, bundle: Path, baseline: Path) -> Timing:
        """See LatencyMeter; the baseline by itself is measured alone."""
        from edgeferry_runtime.backend import Interpreter

        names = {"bundle": bundle} | ({} if bundle == baseline else {"baseline": baseline})
        opened = {name: Bundle.open(path) for name, path in names.items()}
        try:
            ways = {
                name: Interpreter(one.file_path(int8_variant(one).file), threads=1).invoke
                for name, one in opened.items()
            }
            found = measure_latency(ways)
        finally:
            ways = {}  # Windows removes no file that an interpreter has mapped
            for one in opened.values():
                one.close()
        other = found.get("baseline")
        return Timing(found["bundle"].p50_ms, other.p50_ms if other else None)


class BoardMeter:
    """A board: the bundle is pushed to a folder of its own there and measured by `edgeferry bench`.

    What the board runs otherwise stays as it is, and takes its share of the CPU if it runs.

    Args:
        target: as `edgeferry push` takes it.
        seconds: how long each bench runs.
    """

    def __init__(self, target: str, seconds: int = BOARD_SECONDS) -> None:
        self.where = f"on {target}, by `edgeferry bench`"
        self._target, self._seconds = target, seconds

    def measure(self, bundle: Path, baseline: Path) -> Timing:
        """See LatencyMeter; the baseline is not measured again."""
        root = ["--root", BOARD_ROOT, "--json"]
        self._run(["push", str(bundle), self._target, "--service", "none", "--keep", "2", *root])
        found = self._run(["bench", self._target, "--seconds", str(self._seconds), *root])
        return Timing(invoke_ms(found, self._target))

    def _run(self, words: list[str]) -> dict[str, Any]:
        """A command of edgeferry, which another distribution brings; the object that it prints."""
        shown = f"edgeferry {words[0]}"
        try:
            done = subprocess.run(
                [sys.executable, "-m", "edgeferry_deploy", *words],
                capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=DEADLINE,
                stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise MeasurementError(
                f"{shown} did not end within {DEADLINE:g} s", f"Look at {self._target} with edgeferry doctor."
            ) from None
        found = _object(done.stdout)
        if done.returncode:
            said = str(found.get("error") or (done.stderr.strip().splitlines() or ["it said nothing"])[-1])
            remedy = str(found.get("remedy") or f"Try {shown} by hand.")
            if "No module named edgeferry_deploy" in done.stderr:
                remedy = "pip install edgeferry-deploy"
            raise MeasurementError(f"latency on {self._target}: {shown}: {said}", remedy)
        return found


def invoke_ms(record: dict[str, Any], target: str) -> float:
    """The median of the invoke stage in what `edgeferry bench --json` prints."""
    try:
        value = float(record["bench"]["stages_us"]["invoke"]["p50"]) / 1000
    except (KeyError, TypeError, ValueError):
        value = 0.0
    if not value > 0:
        raise MeasurementError(
            f"edgeferry bench {target} says nothing of the invoke stage", "Try it by hand with --json."
        )
    return value


def int8_variant(bundle: Bundle) -> Variant:
    """The variant that the CPU runs."""
    for variant in bundle.manifest.variants:
        if variant.scheme == SCHEME and not variant.delegate:
            return variant
    raise ConversionError(f"{bundle.path}: has no int8 variant", "Sweeps are made of int8.")


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text[text.index("{") :])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

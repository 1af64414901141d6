"""How many threads the interpreter should have here: measured once in the loop itself, then remembered.

More threads are not faster by themselves: reading and preprocessing want cores too, and small operations cost more
to share out than to run.  So each count runs the very loop for a moment, and the smallest that is nearly as fast
as the best is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from typing import Callable

from edgeferry_runtime.backend import available_cores
from edgeferry_runtime.conditions import cpu_model
from edgeferry_runtime.model import Model
from edgeferry_runtime.pipeline import Pipeline
from edgeferry_runtime.sources.base import Frame, FrameSource

__all__ = ["Again", "Choice", "Repeated", "board", "loop_key", "measure", "recall", "remember"]

BUDGET_S = 2.0
_NEARLY = 0.95  # of the best rate: as good as it, with fewer threads
_FILE = "threads.json"


@dataclass(frozen=True)
class Choice:
    """A thread count and what it was chosen by.

    Attributes:
        threads: of the interpreter.
        rates: results a second by thread count, as text (JSON has no number keys).
    """

    threads: int
    rates: dict[str, float]

    def __str__(self) -> str:
        """As in "1 thread (measured here: 1: 81/s, 2: 62/s)"."""
        rates = ", ".join("{}: {:.0f}/s".format(count, rate) for count, rate in sorted(self.rates.items()))
        return "{} thread{} (measured here: {})".format(self.threads, "" if self.threads == 1 else "s", rates)


class Repeated(FrameSource):
    """One frame, again and again, as fast as it is asked for."""

    encoded = True

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def _read(self, timeout_s: float | None) -> Frame | None:
        return self._frame._replace(captured_ns=time.monotonic_ns())


class Again(FrameSource):
    """A source whose first frame was read to measure with, and is given once more."""

    encoded = True

    def __init__(self, first: Frame | None, source: FrameSource) -> None:
        self._first = first
        self._source = source

    def _read(self, timeout_s: float | None) -> Frame | None:
        first, self._first = self._first, None
        if first is not None:
            return first._replace(captured_ns=time.monotonic_ns())  # its age begins now: it waited for us
        return self._source.read(timeout_s)

    def close(self) -> None:
        self._source.close()


def measure(
    open_model: Callable[[int], Model], make_source: Callable[[], FrameSource], budget_s: float = BUDGET_S
) -> Choice:
    """Run the loop with 1, 2, ... threads up to the cores there are, and choose.

    Args:
        open_model: opens the model with so many threads.
        make_source: frames to measure with, without an end or long enough.
        budget_s: for all counts together; a slow model is given a few frames each, however long they take.

    Raises:
        EdgeferryError: the model cannot run.
    """
    counts = range(1, available_cores() + 1)
    rates: dict[str, float] = {}
    for threads in counts:
        with open_model(threads) as model, make_source() as source:
            rates[str(threads)] = _rate(Pipeline(source, model), budget_s / len(counts))
    best = max(rates.values())
    return Choice(min(int(count) for count, rate in rates.items() if rate >= _NEARLY * best), rates)


def _rate(pipeline: Pipeline, budget_s: float) -> float:
    """Results a second once the loop has found its shape."""
    began = time.monotonic()
    steady, count = began, 0
    for number, _ in enumerate(pipeline):
        now = time.monotonic()
        # The first frames decide the loop's shape and warm the caches; a slow model has no time for that.
        if number < 10 and now - began < budget_s / 3:
            steady, count = now, 0
            continue
        count += 1
        if now - began >= budget_s:
            break
    seconds = time.monotonic() - steady
    return count / seconds if count and seconds > 0 else 0.0


def loop_key(model: Model) -> tuple[str, str]:
    """What a choice is remembered by, beside the board: the model file's SHA-256, and what runs it."""
    sha256 = model.bundle.manifest.files[model.variant.file].sha256
    return sha256, "{} {}".format(model.backend_name, model.delegate)


def board() -> str:
    """What a choice holds for: this machine's processor and how much of it this process may use."""
    return "{} {} x{}".format(platform.machine(), cpu_model(), available_cores())


def recall(model_sha256: str, backend: str) -> Choice | None:
    """What was chosen for a model file on this board before, None where nothing (or nothing readable) is kept."""
    try:
        with open(_path(), encoding="utf-8") as file:
            kept = json.load(file)[_key(model_sha256, backend)]
        choice = Choice(kept["threads"], {str(count): float(rate) for count, rate in kept["rates"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return choice if isinstance(choice.threads, int) and 1 <= choice.threads <= available_cores() else None


def remember(model_sha256: str, backend: str, choice: Choice) -> bool:
    """Keep a choice for the next start.

    Returns:
        False where it cannot be kept (a read-only file system): it is measured again then.
    """
    import tempfile

    path = _path()
    try:
        with open(path, encoding="utf-8") as file:
            kept = json.load(file)
        if not isinstance(kept, dict):
            kept = {}
    except (OSError, ValueError):
        kept = {}
    kept[_key(model_sha256, backend)] = asdict(choice)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=os.path.dirname(path))
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(kept, file, indent=1, sort_keys=True)
        os.replace(partial, path)
    except OSError:
        return False
    return True


def _key(model_sha256: str, backend: str) -> str:
    return hashlib.sha256("\n".join((model_sha256, backend, board())).encode("utf-8")).hexdigest()


def _path() -> str:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "edgeferry", _FILE)

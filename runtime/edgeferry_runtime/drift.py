"""Drift: whether what a model sees and says is still like what it was calibrated with.

Two numbers a frame, from 0 to 1: how bright the picture is as the model sees it, and how sure the answer is.
Their histograms over the last frames are compared with those in the bundle by the population stability index.

Cost of a counted frame of 224x224: 7 us in all, 11 us with letterboxed JPEG frames (x86-64).  The picture is read
where the interpreter read it, so a JPEG is not decoded again.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, NamedTuple, Sequence

import numpy as np

from edgeferry_runtime.drift_config import DriftConfig
from edgeferry_runtime.errors import EdgeferryError, FrameError
from edgeferry_runtime.manifest import BINS, Histogram, TensorSpec
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.pixels import frame_size
from edgeferry_runtime.preprocessing import Placement, Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor

if TYPE_CHECKING:
    from edgeferry_runtime.model import Model
    from edgeferry_runtime.results import Result
    from edgeferry_runtime.sources.base import Frame

__all__ = ["Brightness", "Drift", "bin_of", "next_level", "stability_index"]

_LOG = logging.getLogger("edgeferry")
_ROWS, _COLUMNS = 28, 56  # of the grid of pixels that brightness is taken from; long rows are read faster
_LEAST = 20  # samples of a baseline; fewer tell nothing
_MANY = 100  # samples from which on 10 groups are told apart, else 5
_MODELS = 4  # versions that are looked at by turns
_VERDICTS = ("ok", "no baseline", "collecting", "warn", "alarm")  # of two the later one is the whole's


def bin_of(value: float) -> int:
    """Which of the manifest's bins a number from 0 to 1 is in."""
    return min(max(0, int(value * BINS)), BINS - 1)


class Brightness:
    """How bright the picture in a model's input is, black 0 and white 1, from a grid of its pixels.

    Args:
        declared: the model's preprocessing, which is undone.
        spec: the input.
    """

    def __init__(self, declared: Preprocessing, spec: TensorSpec) -> None:
        # level = ((stored - zero) * step * std + mean) / scale, a channel; linear, so the mean may go through it.
        quantization = spec.quantization
        step, zero = (quantization.scales[0], quantization.zero_points[0]) if quantization else (1.0, 0)
        channels = declared.channels
        std, mean = (values * channels if len(values) == 1 else values for values in (declared.std, declared.mean))
        self._channels = [
            (c, step * std[c] / declared.scale, (mean[c] - zero * step * std[c]) / declared.scale)
            for c in range(channels)
        ]
        self._tied: tuple[np.ndarray | None, Placement | None] = (None, None)
        self._grids: list[tuple[np.ndarray, float, float]] = []

    def __call__(self, tensor: np.ndarray, placement: Placement) -> float:
        """
        Args:
            tensor: of the input's shape and dtype.
            placement: where the picture is in it; padding does not count.
        """
        if self._tied[0] is not tensor or self._tied[1] != placement:
            self._tie(tensor, placement)
        level = 0.0
        for grid, factor, constant in self._grids:
            level += factor * float(np.add.reduce(grid, axis=None, dtype=np.float32)) + constant
        return min(1.0, max(0.0, level))

    def _tie(self, tensor: np.ndarray, placement: Placement) -> None:
        (x, y), (width, height) = placement.offset, placement.size
        rows = slice(y, y + height, max(1, height // _ROWS))
        columns = slice(x, x + width, max(1, width // _COLUMNS))
        whole = 255.0 * len(self._channels)
        grids = ((tensor[0, rows, columns, c], factor, constant) for c, factor, constant in self._channels)
        self._grids = [(grid, factor / (grid.size * whole), constant / whole) for grid, factor, constant in grids]
        self._tied = (tensor, placement)


def stability_index(live: Sequence[int], baseline: Sequence[int], below: float = 0.0) -> float:
    """How far two histograms part: the population stability index, less what chance alone gives.

    The sum over groups of (a - b) ln(a / b), a and b being the shares of each side.  Bins are put together to 10
    groups of equal width, 5 for a baseline below 100 samples, and each share is smoothed by half a sample.  Two
    samples of one population differ as well, by (groups - 1)(1 / n + 1 / m) in the mean, which is taken off.

    Sources: N. Siddiqi, Credit Risk Scorecards (2006), chapter 9; B. Yurdakul, Statistical Properties of
    Population Stability Index (2018), for the mean.

    Args:
        live, baseline: counts of the ``BINS`` bins, neither empty.
        below: numbers up to this are one group, as where a threshold makes them 0.

    Returns:
        0 or more.
    """
    by = BINS // (10 if sum(baseline) >= _MANY else 5)
    first = bin_of(below) // by + 1
    pairs = []
    for start in (0, *range(first * by, BINS, by)):
        end = first * by if start == 0 else start + by
        pair = sum(live[start:end]), sum(baseline[start:end])
        if any(pair):
            pairs.append(pair)
    n, m = (sum(side) + len(pairs) / 2 for side in zip(*pairs))
    index = 0.0
    for a, b in (((count + 0.5) / n, (normal + 0.5) / m) for count, normal in pairs):
        index += (a - b) * math.log(a / b)
    return max(0.0, index - (len(pairs) - 1) * (1 / sum(live) + 1 / sum(baseline)))


def next_level(level: str, index: float, config: DriftConfig) -> str:
    """ "ok", "warn" or "alarm"; an alarm ends only when nothing is left to warn of."""
    if index > config.alarm:
        return "alarm"
    if index <= config.warn:
        return "ok"
    return "alarm" if level == "alarm" else "warn"


class _Quantity:
    """The last values of one number, and how they compare with what was normal."""

    def __init__(self, name: str, baseline: Histogram | None, config: DriftConfig, below: float = 0.0) -> None:
        self.verdict = "collecting"
        self._name = name
        self._config = config
        self._below = below
        self._baseline = baseline
        if baseline is None or sum(baseline.counts) < _LEAST:
            self.verdict, self._baseline = "no baseline", None
        self._values: Deque[float] = deque()
        self._counts = [0] * BINS
        self._total = 0.0
        self._index: float | None = None

    def add(self, value: float) -> None:
        values, counts = self._values, self._counts
        values.append(value)
        counts[bin_of(value)] += 1
        self._total += value
        if len(values) > self._config.window:
            old = values.popleft()
            counts[bin_of(old)] -= 1
            self._total -= old

    @property
    def mean(self) -> float:
        return self._total / max(1, len(self._values))

    def judge(self) -> None:
        """Compare; say so when an alarm begins or ends."""
        counts = list(self._counts)
        if self._baseline is None or sum(counts) < self._config.window:
            return
        self._index = stability_index(counts, self._baseline.counts, self._below)
        before, self.verdict = self.verdict, next_level(self.verdict, self._index, self._config)
        if (before == "alarm") == (self.verdict == "alarm"):
            return
        if self.verdict == "alarm":
            _LOG.warning(
                "%s has parted from what the model was calibrated with: mean %.2f, there %.2f (stability index"
                " %.2f, alarm above %g)",
                self._name, self.mean, self._baseline.mean, self._index, self._config.alarm,
            )  # fmt: skip
        else:
            _LOG.warning("%s is again like what the model was calibrated with", self._name)

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {
            "verdict": self.verdict,
            "samples": len(self._values),
            "mean": round(self.mean, 4),
            "histogram": list(self._counts),
        }
        if self._baseline is not None:
            value["baseline_mean"] = self._baseline.mean
            value["baseline_histogram"] = list(self._baseline.counts)
        if self._index is not None:
            value["psi"] = round(self._index, 4)
        return value


class _Watched(NamedTuple):
    """One version of a model."""

    brightness: _Quantity
    confidence: _Quantity
    measure: Callable[[Frame], float | None] | None


class Drift(Observer):
    """Counts results and compares once a second.

    Args:
        config: window and thresholds.
        live: of a live source ``every_s`` holds.
        threshold: lowest score that is reported, where it is not the bundle's.
    """

    name = "drift"

    def __init__(self, config: DriftConfig, live: bool = True, threshold: float | None = None) -> None:
        self._config = config
        self._every_ns = int(config.every_s * 1e9) if live else 0
        self._threshold = threshold
        self._due_ns = 0
        self._watched: dict[str, _Watched] = {}
        self._last = ""

    def saw(self, frame: Frame, result: Result, model: Model) -> None:
        """Count it."""
        if self._every_ns:
            now = time.monotonic_ns()
            if now < self._due_ns:
                return
            self._due_ns = now + self._every_ns
        watched = self._watched.get(model.identity) or self._begin(frame, model)
        self._last = model.identity
        sure = result.answer.confidence()
        if sure is not None:
            watched.confidence.add(sure)
        bright = watched.measure(frame) if watched.measure is not None else None
        if bright is not None:
            watched.brightness.add(bright)

    def tick(self) -> None:
        """Compare."""
        for watched in list(self._watched.values()):
            watched.brightness.judge()
            watched.confidence.judge()

    def state(self) -> dict[str, Any]:
        """Of the model that ran last: the verdict ("no baseline", "collecting", "ok", "warn", "alarm") and both
        numbers with verdict, mean, histogram and index."""
        watched = self._watched.get(self._last)
        if watched is None:
            return {"verdict": "collecting", "alarm": False}
        parts = {"brightness": watched.brightness, "confidence": watched.confidence}
        kept = {name: part for name, part in parts.items() if part._values or part._baseline is not None}
        verdicts = [part.verdict for part in kept.values()] or ["no baseline"]
        if all(verdict == "no baseline" for verdict in verdicts):
            whole = "no baseline"
        else:
            whole = max((v for v in verdicts if v != "no baseline"), key=_VERDICTS.index)
        state: dict[str, Any] = {"bundle": self._last, "verdict": whole, "alarm": whole == "alarm"}
        state.update({name: part.to_json() for name, part in kept.items()})
        return state

    def close(self) -> None:
        """Compare once more: a file may be over before the first second."""
        self.tick()

    def _begin(self, frame: Frame, model: Model) -> _Watched:
        manifest = model.bundle.manifest
        normal = manifest.baseline
        below = max(manifest.postprocessing.threshold, self._threshold or 0.0)
        measure = _measure(frame, model)
        watched = _Watched(
            _Quantity("brightness", normal.brightness if normal and measure else None, self._config),
            _Quantity("confidence", normal.confidence if normal else None, self._config, below),
            measure,
        )
        if len(self._watched) >= _MODELS:
            del self._watched[next(iter(self._watched))]
        self._watched[model.identity] = watched
        return watched


def _measure(frame: Frame, model: Model) -> Callable[[Frame], float | None] | None:
    """How to find the brightness of a frame that was just run; None where it cannot be found.

    It is read from the interpreter's input, which both interpreters leave as it is.  One that does not (a delegate
    may do as it likes) is found out here, on the first frame.
    """
    declared, tensor, spec = model.bundle.manifest.preprocessing, model.frame_input, model.variant.inputs[0]
    if declared is None:
        return None
    try:
        preprocessor = Preprocessor(declared, spec)
        same = np.array_equal(preprocessor(frame.pixels, frame.color), tensor)
    except EdgeferryError:
        same = False
    if not same:
        _LOG.info("%s: the interpreter does not keep its input, brightness is not watched", model.identity)
        return None
    brightness = Brightness(declared, spec)
    whole = preprocessor.placement
    assert whole is not None  # noqa: S101 - it has just placed a frame
    if declared.geometry != "letterbox":
        return lambda frame: brightness(tensor, whole)

    def letterboxed(frame: Frame) -> float | None:
        try:
            size = frame_size(frame.pixels, frame.color)
        except FrameError:  # a JPEG that OpenCV decodes although its header cannot be read
            return None
        return brightness(tensor, declared.placement(*size))

    return letterboxed

"""The baseline: how bright the data's pictures are, and how sure the answers, for a device to compare with.

What the device compares is measured here by the very same code, on its picture and its answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from edgeferry_runtime.drift import Brightness, bin_of
from edgeferry_runtime.errors import BackendError, FrameError
from edgeferry_runtime.manifest import BINS, Baseline, Histogram
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor
from edgeferry_runtime.tasks import make_task
from edgeferry_runtime.tasks.base import Task

from edgeferry_converter.data.dataset import Sample
from edgeferry_converter.feeding import Feed
from edgeferry_converter.material import Material
from edgeferry_converter.variants import VariantRunner

__all__ = ["MOST", "histogram", "measure_baseline", "spread"]

MOST = 512  # samples of each kind; more would tell the same
_SCORED = ("classify", "detect", "keypoints")  # tasks whose answers have scores
_DIGITS = 4  # of a mean: what another processor rounds otherwise does not show


def measure_baseline(
    material: Material, post: Postprocessing, labels: Sequence[str], runner: VariantRunner
) -> Baseline | None:
    """What is normal: brightness of the samples that calibrate and judge, confidence on those that judge.

    Args:
        material: model and data.
        post: the task.
        labels: one a class; may be empty.
        runner: the variant whose answers count, the first of the bundle.

    Returns:
        None where there is nothing to measure.
    """
    declared = material.feed.declared
    picture = _Picture(material.feed, declared, runner) if declared is not None else None
    size = (declared.width, declared.height) if declared is not None else None
    task = make_task(post, labels, size) if post.task in _SCORED else None
    bright: list[float] = []
    sure: list[float] = []
    if picture is not None:
        bright = [picture(material.dataset.load(i)) for i in spread(material.division.calibration)]
    for number in spread(material.division.evaluation) if picture or task else ():
        sample = material.judging.load(number)
        if picture is not None:
            bright.append(picture(sample))
        found = _confidence(task, material, runner, sample) if task is not None else None
        if found is not None:
            sure.append(found)
    if not bright and not sure:
        return None
    return Baseline(histogram(bright) if bright else None, histogram(sure) if sure else None)


def histogram(values: Sequence[float]) -> Histogram:
    """Numbers from 0 to 1, at least one."""
    counts = [0] * BINS
    for value in values:
        counts[bin_of(value)] += 1
    return Histogram(round(math.fsum(values) / len(values), _DIGITS), tuple(counts))


def spread(numbers: Sequence[int]) -> list[int]:
    """At most ``MOST`` of them, evenly over all."""
    if len(numbers) <= MOST:
        return list(numbers)
    return [numbers[i * len(numbers) // MOST] for i in range(MOST)]


def _confidence(task: Task, material: Material, runner: VariantRunner, sample: Sample) -> float | None:
    try:
        return task(runner(sample), *material.feed.place(sample)).confidence()
    except (BackendError, FrameError):  # a device counts it as invalid, too
        return None


class _Picture:
    """Brightness of a sample as the model sees it."""

    def __init__(self, feed: Feed, declared: Preprocessing, runner: VariantRunner) -> None:
        spec = runner.inputs[0]
        self._feed = feed
        self._preprocessor = Preprocessor(declared, spec)
        self._tensor = np.empty(spec.shape, spec.dtype)
        self._brightness = Brightness(declared, spec)

    def __call__(self, sample: Sample) -> float:
        self._preprocessor(*self._feed.delivered(sample), out=self._tensor)
        placement = self._preprocessor.placement
        assert placement is not None  # noqa: S101 - it has just placed a frame
        return self._brightness(self._tensor, placement)

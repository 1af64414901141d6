"""What every metric is, and whether one model's is worse than another's.

A metric takes one sample after another and keeps a few numbers of each, so that its value can be computed for
any weights of the samples: all ones give the value itself, how often a bootstrap draws each gives its spread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from edgeferry_runtime.preprocessing import Placement

from edgeferry_converter.errors import DataError

__all__ = ["Drop", "MeanMetric", "Metric", "Outputs", "blocks", "mean_where", "paired_drop"]

RESAMPLES = 2000  # 50 of them beyond each end of a 95 % interval
BLOCK = 1 << 22  # numbers computed at a time: 32 MB, however many samples there are

Outputs = Mapping[str, np.ndarray]


class Metric(ABC):
    """Base of all metrics.

    Attributes:
        name: as people call it, "top-1".
        better: which way is better.
    """

    name: str
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    @abstractmethod
    def __len__(self) -> int:
        """How many samples were added."""

    @abstractmethod
    def add(
        self,
        outputs: Outputs,
        label: Any,
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> None:
        """Judge one sample.

        Args:
            outputs: the model's, real numbers with batch 1, by name.
            label: what is true; the subclass says of which kind.
            placement, frame_size: how the frame went into the model's input, where labels are in its pixels.

        Raises:
            BackendError: the outputs are not what the bundle declares, or not finite.
            DataError: the label does not serve.
        """

    @abstractmethod
    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """The value over samples that count as often as ``weights`` says.

        Args:
            weights: float64 [n, samples], not negative.

        Returns:
            float64 [n]; NaN where the weighted samples define none.
        """

    @property
    def per_sample(self) -> np.ndarray | None:
        """float32 [samples] where the value is their mean, else None."""
        return None

    def value(self) -> float:
        """The metric over all samples.

        Raises:
            DataError: there are no samples, or nothing in them to judge by.
        """
        value = float(self.weighted(np.ones((1, len(self))))[0]) if len(self) else np.nan
        if np.isnan(value):
            raise DataError(f"{self.name} has no value: no sample has anything to judge by")
        return value


class MeanMetric(Metric):
    """A metric that is the mean of one score a sample."""

    def __init__(self) -> None:
        self._scores = array("f")

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def per_sample(self) -> np.ndarray:
        return np.array(self._scores, np.float32)

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        return weights @ self.per_sample.astype(np.float64) / weights.sum(axis=1)


class Drop(NamedTuple):
    """How much worse the other model is, in the metric's unit: below 0 it is better.

    ``low`` and ``high`` are the ends of the 95 % confidence interval of ``value``.
    """

    value: float
    low: float
    high: float


def paired_drop(reference: Metric, other: Metric, seed: int) -> Drop:
    """What ``other`` loses against ``reference`` on the same samples, with a 95 % confidence interval.

    Percentile bootstrap over the samples, ``RESAMPLES`` times, each draw taken for both models, so that samples
    both find hard do not widen the interval.  Source: Efron and Tibshirani, An Introduction to the Bootstrap
    (1993), chapter 13.  Where no sample tells the models apart the interval has no width: what so few samples
    could not show is not in it.

    Args:
        reference, other: one metric over the same samples in the same order.
        seed: of the draws.

    Raises:
        DataError: the metrics differ, or their numbers of samples do, or there is no value.
    """
    if (type(reference), reference.name) != (type(other), other.name):
        raise DataError(f"{reference.name} cannot be compared with {other.name}")
    if len(reference) != len(other):
        raise DataError(f"{reference.name} over {len(reference)} and {len(other)} samples cannot be compared")
    sign = 1.0 if reference.better == "higher" else -1.0
    value = sign * (reference.value() - other.value())
    random = np.random.default_rng(seed)
    drops = []
    for rows in blocks(RESAMPLES, len(reference)):
        weights = _draws(random, rows.stop - rows.start, len(reference))
        drops.append(sign * (reference.weighted(weights) - other.weighted(weights)))
    # A draw without a single true box has no mAP and says nothing.
    low, high = np.nanquantile(np.concatenate(drops), [0.025, 0.975])
    return Drop(value, float(low), float(high))


def mean_where(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean of each row over what counts, NaN where nothing does: [n, k], bool [n, k] -> [n]."""
    number = counts.sum(axis=1)
    mean = np.where(counts, values, 0.0).sum(axis=1) / np.maximum(number, 1)
    return np.where(number > 0, mean, np.nan)


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of ``rows`` rows of ``width`` numbers, each of ``BLOCK`` numbers at most."""
    step = max(1, BLOCK // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _draws(random: np.random.Generator, rows: int, samples: int) -> np.ndarray:
    """How often each of ``samples`` draws with replacement took each sample: float64 [rows, samples]."""
    taken = random.integers(0, samples, (rows, samples)) + samples * np.arange(rows)[:, None]
    return np.bincount(taken.ravel(), minlength=rows * samples).reshape(rows, samples).astype(np.float64)

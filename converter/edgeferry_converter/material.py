"""What a conversion works on: the model, the data and the way from one to the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgeferry_converter.data.dataset import Dataset, Sample
from edgeferry_converter.data.split import Split
from edgeferry_converter.feeding import Feed
from edgeferry_converter.loading.source import SourceModel

__all__ = ["Material"]


@dataclass(frozen=True)
class Material:
    """Model, data, feed.

    Attributes:
        source: the loaded model.
        dataset: what calibrates; and judges, unless there is data of its own for that.
        judging: what judges.
        division: which samples do what.
        feed: samples to inputs.
        made: the model that a recipe made of the source; None without one.
        control: trained as long as ``qat``, without rounding; None without QAT.
        qat: the same with its roundings, whose int8 file needs no calibration; None without QAT.
    """

    source: SourceModel
    dataset: Dataset
    judging: Dataset
    division: Split
    feed: Feed
    made: SourceModel | None = None
    qat: Any = None
    control: SourceModel | None = None

    @property
    def model(self) -> SourceModel:
        """What is converted; the source is what it is judged against."""
        return self.made or self.source

    def calibration(self) -> Iterator[Sample]:
        """The samples to calibrate with, one at a time."""
        return (self.dataset.load(i) for i in self.division.calibration)

    def evaluation(self) -> Iterator[Sample]:
        """The samples to judge by, one at a time."""
        return (self.judging.load(i) for i in self.division.evaluation)

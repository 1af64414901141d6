"""Regression: numbers as they are, with their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

import numpy as np

from edgeferry_runtime.preprocessing import Placement
from edgeferry_runtime.tasks.base import Answer, Task, Tensor, significant, unusable

__all__ = ["Regress", "Regression"]


@dataclass(frozen=True)
class Regression(Answer):
    """The values of one frame, in the order of the output, with one label each, or none at all."""

    values: tuple[float, ...]
    labels: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """6 significant digits: ``{"values": [...]}``, and ``"labels"`` where there are any."""
        value: dict[str, Any] = {"values": [significant(v) for v in self.values]}
        if self.labels:
            value["labels"] = list(self.labels)
        return value

    def headline(self) -> str:
        """The first three values: "angle 12.5, speed 3"."""
        labels = self.labels or ("",) * len(self.values)
        pairs = zip(labels[:3], self.values[:3])
        return ", ".join("{} {:.4g}".format(label, value).strip() for label, value in pairs)


class Regress(Task):
    """Decodes a vector of numbers; arguments as in :class:`Task`."""

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> Regression:
        """The values of one frame; ``outputs`` holds [1, k], where axes of length 1 do not matter.

        Raises:
            BackendError: the output is missing, a value is NaN or infinite, or their number is not the labels'.
        """
        name = self.declared.outputs["values"]
        output = self.output(outputs, "values")
        if output.size != max(output.shape, default=1):
            raise unusable(name, "has shape {}, not [1, values]".format([1, *output.shape]))
        if not np.isfinite(output).all():
            raise unusable(name, "is NaN or infinite")
        if self.labels and len(self.labels) != output.size:
            raise unusable(name, "has {} values for {} labels".format(output.size, len(self.labels)))
        return Regression(tuple(output.ravel().tolist()), tuple(self.labels))

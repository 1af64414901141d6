"""Raw: the outputs as they are, for models whose meaning is the program's own affair."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Mapping

import numpy as np

from edgeferry_runtime.preprocessing import Placement
from edgeferry_runtime.tasks.base import Answer, Task, Tensor, significant
from edgeferry_runtime.tensors import Stored

__all__ = ["LISTED_MAX", "Outputs", "Raw"]

LISTED_MAX = 4096  # values of an output; what is larger is summed up, or one frame would fill the log


@dataclass(frozen=True, eq=False)
class Outputs(Answer):
    """All outputs of one frame: real numbers, float32 with batch 1, by name; copies, read-only."""

    outputs: dict[str, np.ndarray]

    def to_json(self) -> dict[str, Any]:
        """Nested lists with 6 significant digits, null for NaN and infinity; large ones summed up.

        An output of more than ``LISTED_MAX`` values is ``{"shape", "min", "max", "mean", "not_finite"}``, the
        figures over its finite values and null where there are none.
        """
        return {"outputs": {name: _plain(array) for name, array in self.outputs.items()}}

    def headline(self) -> str:
        """Names and shapes: "scores 1x4, boxes 1x10x4"."""
        return ", ".join(
            "{} {}".format(name, "x".join(map(str, array.shape))) for name, array in self.outputs.items()
        ) or "-"  # fmt: skip


class Raw(Task):
    """Hands the outputs out; arguments as in :class:`Task`."""

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> Outputs:
        """All outputs of one frame, whatever they hold."""
        copies = {
            name: np.array(tensor.real() if isinstance(tensor, Stored) else tensor, np.float32)
            for name, tensor in outputs.items()
        }
        for array in copies.values():
            array.flags.writeable = False
        return Outputs(copies)


def _plain(array: np.ndarray) -> Any:
    if array.size <= LISTED_MAX:
        return _rounded(array.tolist())
    finite = array[np.isfinite(array)].astype(np.float64)
    figures = {"min": finite.min, "max": finite.max, "mean": finite.mean}
    summary: dict[str, Any] = {"shape": list(array.shape)}
    for name, figure in figures.items():
        summary[name] = significant(float(figure())) if finite.size else None
    summary["not_finite"] = array.size - finite.size
    return summary


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return significant(value) if math.isfinite(value) else None

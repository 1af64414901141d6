"""Embedding: a vector that stands for the frame, to compare with the vectors of other frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping

import numpy as np

from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.preprocessing import Placement
from edgeferry_runtime.tasks.base import Answer, Task, Tensor, significant, unusable

__all__ = ["Embed", "Embedding"]


@dataclass(frozen=True, eq=False)
class Embedding(Answer):
    """The vector of one frame: float32 [k], read-only."""

    vector: np.ndarray = field(repr=False)

    def similarity(self, other: Embedding | np.ndarray) -> float:
        """Cosine of the angle between two vectors, -1 to 1; 0 where one of them is nothing but zeros.

        Args:
            other: of another frame, or a vector [k] that was stored.

        Raises:
            FrameError: the other one has another length, or is not finite.
        """
        there = np.asarray(other.vector if isinstance(other, Embedding) else other, np.float64)
        here = self.vector.astype(np.float64)
        if there.shape != here.shape or not np.isfinite(there).all():
            raise FrameError("an embedding of {} cannot be compared with {:.60}".format(here.size, str(there)))
        lengths = float(np.sqrt(here.dot(here))) * float(np.sqrt(there.dot(there)))
        return min(1.0, max(-1.0, float(here.dot(there)) / lengths)) if lengths else 0.0

    def to_json(self) -> dict[str, Any]:
        """6 significant digits: ``{"embedding": [...]}``."""
        return {"embedding": [significant(v) for v in self.vector.tolist()]}

    def headline(self) -> str:
        """How long it is: "128 numbers"; what they say shows only beside another's."""
        return "{} numbers".format(self.vector.size)


class Embed(Task):
    """Decodes an embedding; arguments as in :class:`Task`.

    Where the bundle declares ``normalize`` the vector is divided by its Euclidean length, computed in double
    precision; one of nothing but zeros stays as it is.
    """

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> Embedding:
        """The vector of one frame; ``outputs`` holds [1, k], where axes of length 1 do not matter.

        Raises:
            BackendError: the output is missing, has another shape, or a value is NaN or infinite.
        """
        name = self.declared.outputs["embedding"]
        output = self.output(outputs, "embedding")
        if output.size != max(output.shape, default=1):
            raise unusable(name, "has shape {}, not [1, values]".format([1, *output.shape]))
        if not np.isfinite(output).all():
            raise unusable(name, "is NaN or infinite")
        vector = output.astype(np.float64).ravel()
        length = float(np.sqrt(vector.dot(vector)))
        if self.declared.normalize and length:
            vector /= length
        single = vector.astype(np.float32)
        single.flags.writeable = False
        return Embedding(single)

"""What every task is: the outputs of one frame go in, an answer comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Mapping, Sequence

import numpy as np

from edgeferry_runtime.errors import BackendError
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Placement

__all__ = ["Answer", "Task", "significant", "unusable"]


class Answer(ABC):
    """What a model says of one frame; immutable, and valid after the next frame."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Plain values for a line of JSON: no NaN, no infinity, no arrays."""

    @abstractmethod
    def headline(self) -> str:
        """A few words to draw on the frame; "-" when there is nothing to say."""


class Task(ABC):
    """Base of all tasks; make one with :func:`edgeferry_runtime.tasks.make_task`.

    Args:
        declared: the bundle's postprocessing.
        labels: one a class, or empty.
        input_size: (width, height) of the model's input in pixels, None where it takes no picture.
    """

    def __init__(
        self, declared: Postprocessing, labels: Sequence[str] = (), input_size: tuple[int, int] | None = None
    ) -> None:
        self.declared = declared
        self.labels = list(labels)
        self.input_size = input_size

    @abstractmethod
    def __call__(
        self,
        outputs: Mapping[str, np.ndarray],
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> Answer:
        """The answer for one frame.

        Args:
            outputs: real numbers, float32 with batch 1, by output name.
            placement: how the frame went into the model's input, to map the answer back; None leaves it in
                the input's coordinates.
            frame_size: (width, height) of the frame in pixels; None where there is none.

        Raises:
            BackendError: the outputs are not what the bundle declares, or not finite.
            FrameError: the answer cannot be mapped back to the frame.
        """

    def output(self, outputs: Mapping[str, np.ndarray], role: str) -> np.ndarray:
        """The output that plays a role, float32 without its batch dimension; not copied, not checked for NaN.

        Raises:
            BackendError: it is missing, or its batch is not 1.
        """
        name = self.declared.outputs[role]
        if name not in outputs:
            raise unusable(name, "is missing: the model has {}".format(", ".join(sorted(outputs)) or "none"))
        array = np.asarray(outputs[name], np.float32)
        if array.ndim == 0 or len(array) != 1:
            raise unusable(name, "has shape {}, its batch must be 1".format(list(array.shape)))
        batchless: np.ndarray = array[0, ...]
        return batchless

    def label(self, index: int) -> str:
        """A class's label, "" where it has none."""
        return self.labels[index] if 0 <= index < len(self.labels) else ""


def unusable(name: str, what: str) -> BackendError:
    """The error to raise when an output cannot be decoded: ``raise unusable(name, "is NaN")``."""
    return BackendError("output {!r} {}".format(name, what), "Run: edgeferry-run check --bundle BUNDLE")


def significant(value: float) -> float:
    """A number rounded to 6 significant digits, more than float32 carries through a model."""
    return float("{:.6g}".format(value))

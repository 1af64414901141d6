"""What every task is: the outputs of one frame go in, an answer comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Callable, Mapping, NamedTuple, Sequence, Union

import numpy as np

from edgeferry_runtime.errors import BackendError
from edgeferry_runtime.manifest import TensorSpec
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Placement
from edgeferry_runtime.tensors import UNSIGNED, Stored, level_values

__all__ = ["Answer", "Numbers", "Task", "Tensor", "significant", "to_frame", "unusable"]

# An output: real numbers (float32), or what the interpreter stores for them.  Both give the same answer.
Tensor = Union[np.ndarray, Stored]


class Answer(ABC):
    """What a model says of one frame; immutable, and valid after the next frame."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Plain values for a line of JSON: no NaN, no infinity, no arrays."""

    @abstractmethod
    def headline(self) -> str:
        """A few words to draw on the frame; "-" when there is nothing to say."""

    def confidence(self) -> float | None:
        """How sure it is, 0 to 1: its best score, 0 where nothing reaches the threshold; None without scores."""
        return None


class Numbers(NamedTuple):
    """An output's numbers without their batch dimension: real ones, or levels that are ordered as those are.

    The largest level is the largest number, so a task can search among levels and dequantise what it found.

    Attributes:
        array: float32, or integers.
        values: what each level stands for, see ``tensors.level_values``; None for real numbers.
    """

    array: np.ndarray
    values: np.ndarray | None

    def real(self, part: np.ndarray) -> np.ndarray:
        """Some of ``array``'s numbers as real ones, float32 of the same shape."""
        if self.values is None:
            return part
        return self.values.take(part.view(UNSIGNED[part.itemsize]))

    def apply(self, function: Callable[[np.ndarray], np.ndarray], part: np.ndarray) -> np.ndarray:
        """An elementwise function of some of the real numbers, computed once a level where there are fewer."""
        if self.values is None or part.size < self.values.size:
            return function(self.real(part))
        return function(self.values).take(part.view(UNSIGNED[part.itemsize]))

    def greater(self, edge: float, part: np.ndarray) -> np.ndarray:
        """Where some of the real numbers are greater than ``edge``, bool of the same shape."""
        if self.values is None:
            return part > edge
        beyond = int((self.values > edge).sum())  # so many of the highest levels are
        return part > np.iinfo(part.dtype).max - beyond


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
        self._levels: dict[str, tuple[TensorSpec, np.ndarray | None]] = {}  # role -> level_values of its tensor

    @abstractmethod
    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> Answer:
        """The answer for one frame.

        Args:
            outputs: by output name, batch 1 first: real numbers, float32, or stored ones.
            placement: how the frame went into the model's input, to map the answer back; None leaves it in
                the input's coordinates.
            frame_size: (width, height) of the frame in pixels; None where there is none.

        Raises:
            BackendError: the outputs are not what the bundle declares, or not finite.
            FrameError: the answer cannot be mapped back to the frame.
        """

    def output(self, outputs: Mapping[str, Tensor], role: str) -> np.ndarray:
        """The output that plays a role, float32 without its batch dimension; not copied, not checked for NaN.

        Raises:
            BackendError: it is missing, or its batch is not 1.
        """
        name, tensor = self._find(outputs, role)
        real = tensor.real() if isinstance(tensor, Stored) else np.asarray(tensor, np.float32)
        return _batchless(name, real)

    def numbers(self, outputs: Mapping[str, Tensor], role: str) -> Numbers:
        """The same, left as levels where they can be compared in the place of what they stand for.

        Raises:
            BackendError: it is missing, or its batch is not 1.
        """
        name, tensor = self._find(outputs, role)
        if isinstance(tensor, Stored):
            known = self._levels.get(role)
            if known is None or known[0] is not tensor.spec:
                known = self._levels[role] = (tensor.spec, level_values(tensor.spec))
            if known[1] is not None:
                return Numbers(_batchless(name, tensor.array), known[1])
        return Numbers(self.output(outputs, role), None)

    def _find(self, outputs: Mapping[str, Tensor], role: str) -> tuple[str, Tensor]:
        name = self.declared.outputs[role]
        if name not in outputs:
            raise unusable(name, "is missing: the model has {}".format(", ".join(sorted(outputs)) or "none"))
        return name, outputs[name]

    def label(self, index: int) -> str:
        """A class's label, "" where it has none."""
        return self.labels[index] if 0 <= index < len(self.labels) else ""


def unusable(name: str, what: str) -> BackendError:
    """The error to raise when an output cannot be decoded: ``raise unusable(name, "is NaN")``."""
    return BackendError("output {!r} {}".format(name, what), "Run: edgeferry-run check --bundle BUNDLE")


def to_frame(points: np.ndarray, placement: Placement) -> np.ndarray:
    """Pixels of the model's input -> pixels of the frame, the way back through crop, resize and padding.

    Args:
        points: float64 [..., 2 n], x and y by turns.
        placement: how the frame went into the input.
    """
    (x, y, width, height), size, offset = placement
    pairs = points.shape[-1] // 2
    ratio = np.array([width / size[0], height / size[1]] * pairs)
    mapped: np.ndarray = (points - np.array(offset * pairs)) * ratio + np.array([x, y] * pairs)
    return mapped


def significant(value: float) -> float:
    """A number rounded to 6 significant digits, more than float32 carries through a model."""
    return float("{:.6g}".format(value))


def _batchless(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 0 or len(array) != 1:
        raise unusable(name, "has shape {}, its batch must be 1".format(list(array.shape)))
    batchless: np.ndarray = array[0, ...]
    return batchless

"""Feeding: a sample becomes the model's inputs, through the board's preprocessing where there is one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from edgeferry_runtime.manifest import TensorSpec
from edgeferry_runtime.preprocessing import Placement, Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor

from edgeferry_converter.data.dataset import Sample
from edgeferry_converter.errors import DataError

__all__ = ["COLOR", "Feed", "FrameFeed", "TensorFeed"]

COLOR = "bgr"  # order of a sample's pixels, as OpenCV decodes


class Feed(ABC):
    """Turns samples into real numbers for the float model and for calibration."""

    declared: Preprocessing | None

    def place(self, sample: Sample) -> tuple[Placement | None, tuple[int, int] | None]:
        """Where a frame's pixels go in the model's input, and its (width, height); None without frames."""
        if self.declared is None:
            return None, None
        height, width = sample.frame.shape[:2]
        return self.declared.placement(width, height), (width, height)

    @abstractmethod
    def real(self, sample: Sample) -> dict[str, np.ndarray]:
        """The model's inputs, float32 [1, ...] each, by name; the caller's own."""


class FrameFeed(Feed):
    """Frames through the declared preprocessing.

    Args:
        declared: the preprocessing.
        name: of the model's one input.
    """

    def __init__(self, declared: Preprocessing, name: str) -> None:
        self.declared = declared
        self.name = name
        shape = (1, declared.height, declared.width, declared.channels)
        self._preprocessor = Preprocessor(declared, TensorSpec(name, name, shape, "float32", "NHWC"))

    def real(self, sample: Sample) -> dict[str, np.ndarray]:
        return {self.name: self._preprocessor(sample.frame, COLOR).copy()}


class TensorFeed(Feed):
    """Arrays as they are.

    Args:
        shapes: fixed shape, batch 1 first, by input name.
    """

    declared = None

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}

    def real(self, sample: Sample) -> dict[str, np.ndarray]:
        inputs = {}
        for name, shape in self._shapes.items():
            values = np.asarray(sample.inputs[name])
            if values.shape != shape[1:]:
                raise DataError(
                    f"{sample.name}: input {name!r} is {list(values.shape)}, the model's is {list(shape[1:])}",
                    "Give arrays of the model's shape, without the batch; --input-shape fixes open dimensions.",
                )
            if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
                raise DataError(f"{sample.name}: input {name!r} holds NaN or infinity", "Remove the sample.")
            inputs[name] = np.array(values, np.float32)[None]
        return inputs

"""What a model takes and answers, held against training samples: inputs prepared, labels checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeferry_converter.data.dataset import Sample, TaskHint
from edgeferry_converter.data.tensors import as_frame, as_label_kind, is_frame
from edgeferry_converter.errors import DataError
from edgeferry_converter.feeding import Feed, FrameFeed, TensorFeed
from edgeferry_converter.loading.source import SourceModel

__all__ = ["Intake"]


class Intake:
    """The way of samples into one model.

    Args:
        source: the model.
        feed: frames to inputs, the same as in calibration; ready tensors need none.
        classes: how many the model tells apart, None where it tells none apart.
    """

    def __init__(self, source: SourceModel, feed: Feed, classes: int | None) -> None:
        self.shapes = source.shapes()
        self.inputs = [(tensor.name, tensor.shape[1:]) for tensor in source.inputs]
        self.classes = classes
        self._feed = feed
        self._tensors = TensorFeed(self.shapes)
        outputs = source.outputs
        self._width = outputs[0].shape[-1] if len(outputs) == 1 and len(outputs[0].shape) == 2 else None

    def sample_bytes(self) -> int:
        """Of one sample's inputs as float32."""
        return sum(4 * math.prod(shape) for shape in self.shapes.values())

    def room(self, count: int) -> list[np.ndarray]:
        """Uninitialised float32 [count, ...] for each input."""
        return [np.empty((count, *self.shapes[name][1:]), np.float32) for name, _ in self.inputs]

    def sample(self, sample: Sample, kind: str) -> list[np.ndarray]:
        """The inputs in the model's order, float32 [1, ...] each.

        Raises:
            DataError: the sample does not fit.
        """
        if kind == "tensors":
            real = self._tensors.real(sample)
        elif isinstance(self._feed, FrameFeed):
            real = self._feed.real(sample)
        else:
            raise DataError(
                f"{sample.name}: is a picture, but the model is calibrated with ready tensors",
                "Train with what it is calibrated with, or calibrate with pictures and declare the preprocessing.",
            )
        return [real[name] for name, _ in self.inputs]

    def batch(self, x: Any, where: str) -> list[np.ndarray]:
        """A batch of frames (uint8) or ready tensors, one array or several, in the model's order as float32."""
        names = [name for name, _ in self.inputs]
        if isinstance(x, Mapping):
            strange = set(names) ^ set(x)
            if strange:
                told = ", ".join(sorted(map(str, strange)))
                raise DataError(f"{where}: input {told} is not in both model and batch", "Name all inputs.")
            arrays = [np.asarray(x[name]) for name in names]
        else:
            arrays = [np.asarray(array) for array in (x if isinstance(x, tuple | list) else [x])]
        if len(arrays) != len(names):
            raise DataError(
                f"{where}: has {len(arrays)} inputs, the model takes {', '.join(names)}",
                "Give one array an input.",
            )
        first = arrays[0]
        if isinstance(self._feed, FrameFeed) and is_frame(first.shape[1:], first.dtype, self.inputs):
            rows = [self.sample(Sample(as_frame(row), name=where), "frames")[0] for row in first]
            return [np.concatenate(rows)]
        return [self._tensor(name, array, where) for name, array in zip(names, arrays, strict=True)]

    def check_task(self, task: TaskHint, where: str) -> None:
        """Refuse labels that training here cannot use.

        Raises:
            DataError: they are boxes, masks, or classes of a model that tells none apart.
        """
        if task in ("detect", "segment"):
            raise DataError(
                f"{where}: has labels to {task}, whose loss and targets depend on the model",
                "Give --train-data module:function that returns a tf.data.Dataset of (inputs, targets), and a"
                " model that is compiled with its loss.",
            )
        if task == "classify" and self.classes is None:
            raise DataError(
                f"{where}: its labels are classes, the model tells none apart",
                "Give values of the output's shape, or pictures without labels.",
            )

    def labels(self, values: Sequence[Any], task: str, where: str) -> np.ndarray | None:
        """Labels as training takes them: int32 [n], [n, 1] for a single output, float32 [n, k]; None without."""
        if not task:
            return None
        if task == "classify":
            classes = np.asarray(values, np.int32)
            return classes.reshape(-1, 1) if self._width == 1 else classes
        rows = np.asarray(values, np.float32).reshape(len(values), -1)
        if self._width is not None and rows.shape[1] != self._width:
            raise DataError(
                f"{where}: has {rows.shape[1]} values a sample, the model answers {self._width}",
                "Give one value for each of the model's outputs.",
            )
        return rows

    def batch_labels(self, y: Any, where: str) -> tuple[str, Any]:
        """A batch's labels and their task; of another task than these they pass as they are."""
        if isinstance(y, Mapping | tuple | list):  # targets of several outputs are the model's own affair
            return "", y
        array = np.asarray(y)
        if self._width is None or array.ndim > 2:
            return "", array
        task, read = as_label_kind(array, self.classes, where)
        self.check_task(task, where)
        return task, self.labels([read(i) for i in range(len(array))], task, where)

    def _tensor(self, name: str, array: np.ndarray, where: str) -> np.ndarray:
        shape = self.shapes[name]
        if array.shape[1:] != shape[1:]:
            raise DataError(
                f"{where}: input {name!r} is {list(array.shape[1:])} a sample, the model's is {list(shape[1:])}",
                "Give the model's shape; only uint8 pictures are resized, by the declared preprocessing.",
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{where}: input {name!r} holds NaN or infinity", "Repair or remove the sample.")
        return array.astype(np.float32)

"""What every data set is to the converter: samples by number, decoded when asked for, never all in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

__all__ = ["FRAME", "Box", "Dataset", "Kind", "Sample", "Shape", "TaskHint", "listed", "takes_frames"]

Kind = Literal["frames", "tensors"]
TaskHint = Literal["classify", "detect", "segment", "regress", ""]
Shape = tuple[int | None, ...]  # of one input, without the batch; None where the model takes any size

FRAME = "frame"  # the one entry of a frame sample's inputs

# A file with a thousand faults has one cause; the first few and their number tell it.
PROBLEMS_SHOWN = 10


class Box(NamedTuple):
    """Where an object is, in pixels of the image as it is decoded.

    Attributes:
        label: index of its class.
        x, y: of the upper left corner.
        w, h: width and height, greater than 0.
    """

    label: int
    x: float
    y: float
    w: float
    h: float


@dataclass(frozen=True)
class Sample:
    """One sample, its arrays the caller's own.

    Attributes:
        inputs: of a frame data set {"frame": uint8 [h, w, 3] BGR}, pixels as a camera gives them, which go through
            the preprocessing later, beside "jpeg", uint8 [bytes], the file they were decoded from if it is a JPEG;
            of a tensor data set input name -> array of that input's shape without the batch, of float32 or an
            integer type.
        label: class index (int); boxes (tuple of ``Box``); mask, uint8 [h, w] of class indices, 255 where no class
            counts; float32 [k] for a regression; None where there is none.
        name: for messages: a file's path below the data set, or ``NAME[number]``.
    """

    inputs: dict[str, np.ndarray]
    label: Any = field(default=None)
    name: str = ""

    @property
    def frame(self) -> np.ndarray:
        """The pixels of a frame sample, uint8 [h, w, 3] BGR."""
        return self.inputs[FRAME]


class Dataset(ABC):
    """Samples of one kind, by number.

    Attributes:
        kind: "frames", which still go through the preprocessing, or "tensors", which the model takes as they are.
        task_hint: what the labels are for; "" without labels.
        labels: name of each class in the order of the model's outputs; may be empty.
        description: in words, for reports: what, and how many.
        notes: what was taken for granted on reading, for the user to see.
        keyed_by: what ``content_key`` hashes: a file's "bytes", or "arrays".
    """

    kind: Kind = "frames"
    task_hint: TaskHint = ""
    labels: tuple[str, ...] = ()
    description: str = ""
    notes: tuple[str, ...] = ()
    keyed_by: Literal["bytes", "arrays"] = "arrays"

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def content_key(self, i: int) -> str:
        """SHA-256 (hex) of sample ``i``'s content, without its label: samples with one key are copies."""

    @abstractmethod
    def load(self, i: int) -> Sample:
        """Sample ``i``, decoded now; nothing of it is kept.

        Raises:
            DataError: it cannot be decoded, or is not what the data set says.
        """

    def name(self, i: int) -> str:
        """What sample ``i`` is called in messages, without decoding it."""
        return f"{self.description}[{i}]"

    def label_key(self, i: int) -> int | None:
        """The class that the split shares out evenly; None where there is none."""
        return None

    def image_path(self, i: int) -> Path | None:
        """The picture file of sample ``i``; None where it is none."""
        return None

    def samples(self, indices: Iterable[int]) -> Iterator[Sample]:
        """Samples one after the other."""
        return (self.load(i) for i in indices)


def takes_frames(inputs: Sequence[tuple[str, Shape]]) -> bool:
    """Whether a model with these inputs takes a camera's frames: one input [h, w, 1 or 3]."""
    return len(inputs) == 1 and len(inputs[0][1]) == 3 and inputs[0][1][2] in (1, 3)


def listed(problems: Sequence[str]) -> str:
    """Problems as the lines below a message, the first few and how many more."""
    more = len(problems) - PROBLEMS_SHOWN
    lines = [*problems[:PROBLEMS_SHOWN], *([f"and {more} more"] if more > 0 else [])]
    return "".join(f"\n    {line}" for line in lines)

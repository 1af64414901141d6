"""Segmentation: a class for every pixel, and how much of the picture each class covers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping

import numpy as np

from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.preprocessing import MAX_SIDE, Placement
from edgeferry_runtime.tasks.base import Answer, Numbers, Task, Tensor, significant, unusable

__all__ = ["Area", "Segment", "Segmentation"]


@dataclass(frozen=True)
class Area:
    """How much of the picture a class covers: ``share`` from 0 to 1, padding not counted."""

    index: int
    label: str
    share: float


@dataclass(frozen=True, eq=False)
class Segmentation(Answer):
    """The classes of one frame's pixels.

    Attributes:
        mask: class of each pixel at the model's resolution, padding included: uint8 [h, w], uint16 from 256
            classes on.
        areas: the classes that occur in the picture, largest first; of equal ones the lower index.
        placement: how the frame went into the model's input; None: the mask covers the frame as it is.
        input_size: (width, height) of the model's input in pixels; the mask may be smaller.
        frame_size: (width, height) of the frame in pixels, None where it is not known.
    """

    mask: np.ndarray = field(repr=False)
    areas: tuple[Area, ...]
    placement: Placement | None
    input_size: tuple[int, int]
    frame_size: tuple[int, int] | None

    @property
    def outside(self) -> int:
        """What a mask for the frame holds where the model did not look: 255, or 65535 with uint16."""
        return int(np.iinfo(self.mask.dtype).max)

    def mask_for_frame(self, width: int, height: int) -> np.ndarray:
        """The mask in the frame's coordinates, nearest neighbour by pixel centres, whole numbers only.

        Args:
            width, height: of the result; the frame's own, or any other to have the frame's content in that size.

        Returns:
            [height, width] of the mask's dtype, :attr:`outside` where centre-crop cut the frame.

        Raises:
            FrameError: a side is below 1 or beyond ``MAX_SIDE``.
        """
        if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            raise FrameError("a mask of {}x{} pixels cannot be made".format(width, height))
        columns, seen_x = self._positions(0, width)
        rows, seen_y = self._positions(1, height)
        mask: np.ndarray = self.mask[rows][:, columns]
        mask[~seen_y] = self.outside
        mask[:, ~seen_x] = self.outside
        return mask

    def _positions(self, axis: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """For ``count`` pixels along the frame: the mask's pixel, int64, and whether the model saw it."""
        side = self.mask.shape[1 - axis]
        # Centres are halves, so everything is doubled; int64 holds 2^62, which MAX_SIDE = 2^15 just reaches.
        centres = 2 * np.arange(count, dtype=np.int64) + 1
        if self.placement is None:
            return centres * side // (2 * count), np.ones(count, bool)
        crop, cut = self.placement.crop[axis], self.placement.crop[axis + 2]
        size, offset = self.placement.size[axis], self.placement.offset[axis]
        frame = self.frame_size[axis] if self.frame_size else count
        in_crop = centres * frame - 2 * count * crop  # (x - crop) * 2 count
        seen = (in_crop >= 0) & (in_crop < 2 * count * cut)
        in_input = in_crop * size + 2 * count * cut * offset  # x * 2 count cut
        found = in_input * side // (2 * count * cut * self.input_size[axis])
        return np.clip(found, 0, side - 1), seen

    def to_json(self) -> dict[str, Any]:
        """The shares by class, never the mask: ``{"areas": [{"index", "label", "share"}]}``."""
        return {"areas": [{"index": a.index, "label": a.label, "share": significant(a.share)} for a in self.areas]}

    def headline(self) -> str:
        """The three largest classes: "road 61%, sky 30%, car 5%"."""
        return ", ".join("{} {:.0%}".format(a.label or a.index, a.share) for a in self.areas[:3]) or "-"


class Segment(Task):
    """Decodes a segmenter's output; arguments as in :class:`Task`.

    With one channel there are two classes: 1 where its probability is greater than 0.5 (a logit greater than
    0), as Keras' ``BinaryAccuracy`` has it.  Otherwise the class is the largest channel, of equal ones the first.
    """

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> Segmentation:
        """The mask of one frame; ``outputs`` holds [1, h, w, C].

        Raises:
            BackendError: the output is missing, has another shape, or holds NaN.
        """
        name = self.declared.outputs["mask"]
        numbers = self.numbers(outputs, "mask")
        output = numbers.array
        if output.ndim != 3:
            raise unusable(name, "has shape {}, not [1, h, w, classes]".format([1, *output.shape]))
        if numbers.values is None and np.isnan(output).any():
            raise unusable(name, "is NaN")
        classes = max(2, output.shape[2])
        mask = self._classes(numbers).astype(np.uint8 if classes < 256 else np.uint16)
        input_size = self.input_size or (mask.shape[1], mask.shape[0])
        areas = self._areas(_picture(mask, placement, input_size), classes)
        return Segmentation(mask, areas, placement, input_size, frame_size)

    def _classes(self, numbers: Numbers) -> np.ndarray:
        if numbers.array.shape[2] > 1:
            best: np.ndarray = numbers.array.argmax(axis=2)
            return best
        edge = 0.0 if self.declared.scores in ("logits", "binary-logit") else 0.5
        return numbers.greater(edge, numbers.array[:, :, 0])

    def _areas(self, picture: np.ndarray, classes: int) -> tuple[Area, ...]:
        counts = np.bincount(picture.ravel(), minlength=classes)
        order = np.argsort(-counts, kind="stable")
        return tuple(
            Area(int(i), self.label(int(i)), float(counts[i] / picture.size)) for i in order if counts[i] > 0
        )


def _picture(mask: np.ndarray, placement: Placement | None, input_size: tuple[int, int]) -> np.ndarray:
    """The part of the mask whose pixel centres lie in the picture, not in the padding; a view."""
    if placement is None:
        return mask
    parts = []
    for axis in (1, 0):
        side, whole = mask.shape[1 - axis], input_size[axis]
        begin, size = placement.offset[axis], placement.size[axis]
        # Smallest i with (2 i + 1) / (2 side) >= edge / whole, for both edges.
        first, end = (-((whole - 2 * side * edge) // (2 * whole)) for edge in (begin, begin + size))
        if first >= end:  # a picture thinner than a pixel of the mask: take the one that holds its middle
            first = min(side - 1, (2 * begin + size) * side // (2 * whole))
            end = first + 1
        parts.append(slice(first, end))
    return mask[tuple(parts)]

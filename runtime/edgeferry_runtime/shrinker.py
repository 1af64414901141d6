"""Raw frames made as small as the model sees them, without loss for the model: its tensor is the same."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgeferry_runtime.manifest import TensorSpec
from edgeferry_runtime.pixels import frame_size
from edgeferry_runtime.preprocessing import Placement, Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor

if TYPE_CHECKING:
    from edgeferry_runtime.sources.base import Frame

__all__ = ["Shrinker"]


class Shrinker:
    """Raw frames in the size of the model's input.

    The preprocessor does all it does to pixels but the arithmetic.  Where what comes out would be placed elsewhere
    than the frame itself (padding that even numbers move), the frame stays as it is.
    """

    def __init__(self, declared: Preprocessing) -> None:
        self.declared = declared
        shape = (1, declared.height, declared.width, declared.channels)
        # Recordings hold bgr; the order of the channels changes none of their levels.
        color = "gray" if declared.color == "gray" else "bgr"
        plain = replace(declared, color=color, scale=1.0, mean=(0.0,), std=(1.0,))
        self._preprocessor = Preprocessor(plain, TensorSpec("picture", "picture", shape, "uint8", "NHWC"))

    def __call__(self, frame: Frame) -> Frame | None:
        """The smaller frame, "bgr" or "gray", in memory of its own; None where it had better stay as it is.

        Raises:
            FrameError: the pixels are no frame.
        """
        declared, pixels = self.declared, frame.pixels
        size = declared.placement(*frame_size(pixels, frame.color)).size
        if size[0] * size[1] * declared.channels >= pixels.nbytes:
            return None
        canvas = self._preprocessor(pixels, frame.color)[0]
        placement = self._preprocessor.placement
        assert placement is not None  # noqa: S101 - it has just placed a frame
        (x, y), (width, height) = placement.offset, placement.size
        if declared.placement(width, height) != Placement((0, 0, width, height), placement.size, placement.offset):
            return None
        picture = canvas[y : y + height, x : x + width]
        if declared.color == "gray":
            return frame._replace(pixels=picture[..., 0].copy(order="C"), color="gray")
        return frame._replace(pixels=picture.copy(order="C"), color="bgr")

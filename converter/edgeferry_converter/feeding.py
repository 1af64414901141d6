"""Feeding: a sample becomes the model's inputs, through the board's preprocessing where there is one.

Where the declaration takes a shortcut that depends on what a camera delivers (JPEG files decoded reduced, planes
resized first), a sample's picture first becomes what that camera would have delivered.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from edgeferry_runtime import opencv
from edgeferry_runtime.manifest import TensorSpec
from edgeferry_runtime.pixels import PLANAR
from edgeferry_runtime.preprocessing import Placement, Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor

from edgeferry_converter.data.dataset import Sample
from edgeferry_converter.errors import DataError

__all__ = ["COLOR", "JPEG", "Feed", "Fed", "FrameFeed", "TensorFeed", "as_delivered", "delivered_format"]

COLOR = "bgr"  # order of a sample's pixels, as OpenCV decodes
JPEG = "jpeg"  # entry of a frame sample's inputs: uint8 [bytes], the file its pixels were decoded from, if a JPEG
JPEG_QUALITY = 95  # of pictures that are no JPEG files; about what cameras' own encoders are set to

Fed = tuple[np.ndarray, str]  # a frame as a source delivers it: pixels and their format


def delivered_format(declared: Preprocessing) -> str:
    """In which pixel format frames go through a declaration while a model is converted."""
    if declared.decode == "reduced":
        return "jpeg"
    return "i420" if declared.planes == "resize-first" else COLOR


def as_delivered(declared: Preprocessing, pixels: np.ndarray, encoded: np.ndarray | None = None) -> Fed:
    """A picture as a camera would have delivered it, so that the declared shortcut has something to shorten.

    Args:
        pixels: uint8 [h, w, 3] BGR.
        encoded: the JPEG file they were decoded from, uint8 [bytes]; None for any other picture.

    Raises:
        DataError: the picture has no planes.
        DependencyError: a shortcut needs OpenCV, which is absent.
    """
    color = delivered_format(declared)
    if color == COLOR:
        return pixels, color
    cv2 = opencv.load(f"preparing {color} frames")
    if color == "jpeg":
        if encoded is None:
            _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        return np.asarray(encoded).reshape(-1), color
    height, width = (side & ~1 for side in pixels.shape[:2])
    if not height or not width:
        raise DataError(
            f"a picture of {pixels.shape[1]}x{pixels.shape[0]} pixels has no planes of half its size",
            'Remove it, or take planes = "convert-first".',
        )
    return np.asarray(cv2.cvtColor(pixels[:height, :width], cv2.COLOR_BGR2YUV_I420)), color


class Feed(ABC):
    """Turns samples into real numbers for the float model and for calibration."""

    declared: Preprocessing | None

    def place(self, sample: Sample) -> tuple[Placement | None, tuple[int, int] | None]:
        """Where a frame's pixels go in the model's input, and its (width, height); None without frames."""
        if self.declared is None:
            return None, None
        height, width = sample.frame.shape[:2]
        if delivered_format(self.declared) in PLANAR:
            height, width = height & ~1, width & ~1
        return self.declared.placement(width, height), (width, height)

    def delivered(self, sample: Sample) -> Fed:
        """A sample's frame as a source on the board would deliver it: pixels and their format."""
        return sample.frame, COLOR

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
        self._last: tuple[Sample, Fed] | None = None

    def delivered(self, sample: Sample) -> Fed:
        # The float model and every variant ask for the same sample in turn, and encoding takes its time.
        if self._last is None or self._last[0] is not sample:
            assert self.declared is not None  # noqa: S101 - given to __init__
            fed = as_delivered(self.declared, sample.frame, sample.inputs.get(JPEG))
            self._last = (sample, fed)
        return self._last[1]

    def real(self, sample: Sample) -> dict[str, np.ndarray]:
        return {self.name: self._preprocessor(*self.delivered(sample)).copy()}


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

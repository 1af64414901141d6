"""Preprocessing as the bundle declares it: which pixels of a frame become which numbers of a tensor.

A declaration, never code.  It begins at the sensor (how a picture is decoded) and ends at real numbers; the
tensor's own scale and zero point then make integers of them.  ``preprocessor.py`` carries it out.

    decode -> crop -> resize -> pad -> colour order -> (pixel * scale - mean) / std
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.fields import Fields

__all__ = ["COLORS", "DECODES", "GEOMETRIES", "KERNELS", "PLANES", "PRESETS", "Placement", "Preprocessing"]

COLORS = ("rgb", "bgr", "gray")
GEOMETRIES = ("stretch", "letterbox", "center-crop")
# "bilinear" is OpenCV's INTER_LINEAR_EXACT, the same bytes on every architecture and version;
# "bilinear-fast" is INTER_LINEAR, which differs between builds, by at most one level.
KERNELS = ("bilinear", "bilinear-fast", "nearest")
DECODES = ("full", "reduced")
PLANES = ("convert-first", "resize-first")
REDUCTIONS = (8, 4, 2)  # by which JPEG decoders make a picture smaller for less than the price of the whole

# Keras' preprocess_input modes (keras.applications.imagenet_utils) and the two everybody writes by hand.
PRESETS: dict[str, dict[str, object]] = {
    "raw": {"color": "rgb", "scale": 1.0, "mean": (0.0,), "std": (1.0,)},
    "unit": {"color": "rgb", "scale": 1 / 255, "mean": (0.0,), "std": (1.0,)},
    "tf": {"color": "rgb", "scale": 1 / 127.5, "mean": (1.0,), "std": (1.0,)},
    "torch": {"color": "rgb", "scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "caffe": {"color": "bgr", "scale": 1.0, "mean": (103.939, 116.779, 123.68), "std": (1.0,)},
}

MAX_SIDE = 1 << 15  # of model input and of frames; OpenCV's own limits begin near it


class Placement(NamedTuple):
    """Where a frame's pixels go: cut ``crop`` out of it, resize that to ``size``, put it at ``offset``.

    Attributes:
        crop: (x, y, width, height) in the frame.
        size: (width, height) after resizing.
        offset: (x, y) of the resized picture in the model's input; what it does not cover is padding.
    """

    crop: tuple[int, int, int, int]
    size: tuple[int, int]
    offset: tuple[int, int]


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a frame before the model sees it.

    Attributes:
        width, height: of the model's input, in pixels.
        color: channel order the model was trained on.
        resize: kernel, one of ``KERNELS``.
        geometry: "stretch" fills the input and distorts, "letterbox" keeps the aspect ratio and pads,
            "center-crop" keeps it and cuts the longer side.
        pad_value: level of the padding, 0 to 255, in all channels.
        scale, mean, std: ``(pixel * scale - mean) / std``; mean and std have one value, or one a channel in
            the order of ``color``.
        layout: "NHWC".
        decode: of JPEG frames.  "full": at their full size; "reduced": at the largest :meth:`reduction`, in gray
            where ``color`` is gray.
        planes: of i420 and nv12 frames.  "convert-first": the whole picture becomes colours (BT.601, limited
            range), then is resized; "resize-first": each plane is resized, then the small picture is converted
            (for gray: the Y plane alone, spread to full range).  Placements then have even numbers only.
    """

    width: int
    height: int
    color: str = "rgb"
    resize: str = "bilinear"
    geometry: str = "stretch"
    pad_value: int = 114
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "NHWC"
    decode: str = "full"
    planes: str = "convert-first"

    @property
    def channels(self) -> int:
        return 1 if self.color == "gray" else 3

    @classmethod
    def read(cls, fields: Fields) -> Preprocessing:
        declared = cls(
            width=fields.integer("width", minimum=1, maximum=MAX_SIDE),
            height=fields.integer("height", minimum=1, maximum=MAX_SIDE),
            color=fields.choice("color", COLORS, default="rgb"),
            resize=fields.choice("resize", KERNELS, default="bilinear"),
            geometry=fields.choice("geometry", GEOMETRIES, default="stretch"),
            pad_value=fields.integer("pad_value", default=114, minimum=0, maximum=255),
            scale=fields.number("scale", default=1.0),
            mean=fields.numbers("mean", default=(0.0,)),
            std=fields.numbers("std", default=(1.0,)),
            layout=fields.choice("layout", ("NHWC",), default="NHWC"),
            decode=fields.choice("decode", DECODES, default="full"),
            planes=fields.choice("planes", PLANES, default="convert-first"),
        )
        for key, values in (("mean", declared.mean), ("std", declared.std)):
            if len(values) not in (1, declared.channels):
                needs = "1 or 3" if declared.channels == 3 else "1, as gray has one channel"
                fields.problem(key, "has {} values, needs {}".format(len(values), needs))
        if declared.scale == 0:
            fields.problem("scale", "is 0: every pixel would become the same number")
        if any(value <= 0 for value in declared.std):
            fields.problem("std", "must be greater than 0")
        if declared.planes == "resize-first":
            for key, side in (("width", declared.width), ("height", declared.height)):
                if side % 2:
                    fields.problem(key, "is {}, must be even where planes are resized first".format(side))
            if declared.decode == "reduced":
                # A model is judged on what its board sees: pictures become JPEG files or planes, not both.
                fields.problem("planes", '"resize-first" and decode "reduced" exclude each other')
        return declared

    def placement(self, width: int, height: int) -> Placement:
        """Where the pixels of a frame of ``width`` x ``height`` go; whole-number arithmetic only.

        Raises:
            FrameError: a side is below 1 or beyond ``MAX_SIDE``.
        """
        if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            raise FrameError(
                "a frame of {}x{} pixels cannot be preprocessed".format(width, height),
                "Sides may be 1 to {} pixels long.".format(MAX_SIDE),
            )
        placement = self._place(width, height)
        return placement if self.planes == "convert-first" else _evened(placement, width, height)

    def reduction(self, width: int, height: int) -> int:
        """By how much a JPEG of ``width`` x ``height`` is made smaller while it is decoded: 1, 2, 4 or 8.

        The largest at which what is cut out of the frame still has as many pixels as it is resized to.
        """
        placement = self.placement(width, height)
        if self.decode == "reduced":
            for by in REDUCTIONS:
                if all(cut // by >= side for cut, side in zip(placement.crop[2:], placement.size)):
                    return by
        return 1

    def _place(self, width: int, height: int) -> Placement:
        wider = width * self.height >= height * self.width
        if self.geometry == "letterbox":
            if wider:
                size = (self.width, max(1, _divide(height * self.width, width)))
            else:
                size = (max(1, _divide(width * self.height, height)), self.height)
            offset = ((self.width - size[0]) // 2, (self.height - size[1]) // 2)
            return Placement((0, 0, width, height), size, offset)
        crop = (0, 0, width, height)
        if self.geometry == "center-crop":
            if wider:
                cut = min(width, max(1, _divide(height * self.width, self.height)))
                crop = ((width - cut) // 2, 0, cut, height)
            else:
                cut = min(height, max(1, _divide(width * self.height, self.width)))
                crop = (0, (height - cut) // 2, width, cut)
        return Placement(crop, (self.width, self.height), (0, 0))


def _evened(placement: Placement, width: int, height: int) -> Placement:
    """A placement whose numbers are even, so that planes of half the size have whole ones, rounded down."""
    (x, y, cut_width, cut_height), size, offset = placement
    # A frame one pixel wide stays so: it has no planes.
    crop = (x & ~1, y & ~1, min(width, max(2, cut_width & ~1)), min(height, max(2, cut_height & ~1)))
    return Placement(crop, (max(2, size[0] & ~1), max(2, size[1] & ~1)), (offset[0] & ~1, offset[1] & ~1))


def _divide(numerator: int, denominator: int) -> int:
    """Nearest whole number, halves up; floats would round differently on other machines."""
    return (2 * numerator + denominator) // (2 * denominator)

"""What is done to a frame before its levels become numbers: a list of steps, by numpy and by OpenCV."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import numpy as np

from edgeferry_runtime.pixels import LUMA_LEVELS, PLANAR, convert, opencv_code, planes
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.resize import resize

__all__ = ["Stage", "Step", "numpy_stage", "opencv_stage", "steps_for"]

Stage = Callable[[np.ndarray], np.ndarray]


class Step(NamedTuple):
    """One thing done to a picture.

    Attributes:
        kind: "crop", "resize", "convert", or "planes": crop and resize of each plane.
        color, wanted: format before and after.
        crop: what is taken, (x, y, width, height).
        size: (width, height) afterwards.
    """

    kind: str
    color: str
    wanted: str
    crop: tuple[int, int, int, int]
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        width, height = self.size
        if self.wanted in PLANAR:
            return height * 3 // 2, width
        return (height, width) if self.wanted in ("gray", "luma") else (height, width, 3)

    def __str__(self) -> str:
        if self.kind == "convert":
            return "{} to {}".format(self.color, self.wanted)
        return "resize planes" if self.kind == "planes" else self.kind


def steps_for(
    declared: Preprocessing,
    color: str,
    picture: tuple[int, int],
    crop: tuple[int, int, int, int],
    size: tuple[int, int],
) -> list[Step]:
    """What is done to a frame, in order: the definition.

    Args:
        color: its raw format.
        picture: its (width, height).
        crop, size: of the placement, crop in the picture's own pixels.
    """
    wanted, steps = declared.color, []
    whole = (0, 0, *picture)
    if color in PLANAR and declared.planes == "resize-first":
        small = "luma" if wanted == "gray" else color
        if small == "luma" or (crop, size) != (whole, picture):
            steps.append(Step("planes", color, small, crop, size))
        return [*steps, Step("convert", small, wanted, crop, size)]
    if color in PLANAR:
        # Gray is what becomes of colours, as in the pictures that a model is calibrated with.
        full = "bgr" if wanted == "gray" else wanted
        steps.append(Step("convert", color, full, whole, picture))
        color = full
    if crop != whole:
        steps.append(Step("crop", color, color, crop, crop[2:]))
    if size != crop[2:]:
        steps.append(Step("resize", color, color, crop, size))
    if color != wanted:
        steps.append(Step("convert", color, wanted, crop, size))
    return steps


def _cut(crop: tuple[int, ...]) -> tuple[slice, slice]:
    x, y, width, height = crop
    return slice(y, y + height), slice(x, x + width)


def _plane_cuts(crop: tuple[int, ...]) -> tuple[tuple[slice, slice], ...]:
    """Of the Y plane, then of the chroma planes, which have half its size."""
    half = _cut(tuple(number // 2 for number in crop))
    return _cut(crop), half, half


def numpy_stage(step: Step, kernel: str) -> Stage:
    """The step as numpy defines it."""
    (width, height), cuts = step.size, _plane_cuts(step.crop)

    def resize_planes(pixels: np.ndarray) -> np.ndarray:
        found = planes(pixels, step.color)
        luma = resize(found[0][cuts[0]], width, height, kernel)
        if step.wanted == "luma":
            return luma
        small = [resize(plane[cuts[1]], width // 2, height // 2, kernel) for plane in found[1:]]
        return np.concatenate([plane.reshape(-1) for plane in (luma, *small)]).reshape(step.shape)

    stages: dict[str, Stage] = {
        "crop": lambda pixels: pixels[cuts[0]],
        "resize": lambda pixels: resize(pixels, width, height, kernel),
        "convert": lambda pixels: convert(pixels, step.color, step.wanted),
        "planes": resize_planes,
    }
    return stages[step.kind]


def opencv_stage(cv2: Any, step: Step, kernel: str, target: np.ndarray) -> Stage:
    """The same by OpenCV, written into ``target``."""
    method = {
        "bilinear": cv2.INTER_LINEAR_EXACT,
        "bilinear-fast": cv2.INTER_LINEAR,
        "nearest": cv2.INTER_NEAREST,
    }[kernel]
    cuts = _plane_cuts(step.crop)

    def resize_planes(pixels: np.ndarray) -> np.ndarray:
        for plane, cut, part in zip(planes(pixels, step.color), cuts, parts):
            cv2.resize(plane[cut], part.shape[1::-1], dst=part, interpolation=method)
        return target

    def resize_whole(pixels: np.ndarray) -> np.ndarray:
        cv2.resize(pixels, step.size, dst=target, interpolation=method)
        return target

    def spread(pixels: np.ndarray) -> np.ndarray:
        cv2.LUT(pixels, LUMA_LEVELS, dst=target)
        return target

    def convert_colors(pixels: np.ndarray) -> np.ndarray:
        cv2.cvtColor(pixels, code, dst=target)
        return target

    if step.kind == "planes":
        parts = (target,) if step.wanted == "luma" else planes(target, step.color)
        return resize_planes
    if step.kind == "convert" and step.color == "luma":
        return spread
    if step.kind == "convert":
        code = opencv_code(cv2, step.color, step.wanted)
        return convert_colors
    return resize_whole if step.kind == "resize" else numpy_stage(step, kernel)

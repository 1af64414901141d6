"""Frames into tensors, the same bytes on a workstation and on a board.

numpy is the definition; OpenCV resizes and reorders faster where it is installed, and the tests hold the two
equal bit by bit.  What happens to a pixel's level is a table of 256 entries a channel, computed once; a shorter
way (copy, exclusive or, multiply) is taken only after it gave the whole table.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.manifest import TensorSpec
from edgeferry_runtime.preprocessing import COLORS, Placement, Preprocessing
from edgeferry_runtime.resize import resize
from edgeferry_runtime.tensors import quantize

__all__ = ["Preprocessor", "level_table", "to_gray"]

_LEVELS = np.arange(256, dtype=np.uint8)


def level_table(declared: Preprocessing, spec: TensorSpec) -> np.ndarray:
    """What each of a pixel's 256 levels becomes: [256, channels] in the tensor's dtype.

    The arithmetic is single precision, one rounded step after the other:
    ``(level * scale - mean) / std``; a quantised tensor's scale and zero point follow in double precision.
    """
    levels = np.repeat(_LEVELS[:, None], declared.channels, axis=1).astype(np.float32)
    scale, mean, std = _constants(declared)
    real = (levels * scale - mean) / std
    return quantize(real, spec)


def to_gray(pixels: np.ndarray, color: str) -> np.ndarray:
    """Luma of a colour picture, uint8 [h, w, 3] to [h, w].

    ITU-R BT.601 weights with 15 fractional bits, rounded half up: OpenCV's integer arithmetic
    (modules/imgproc/src/color_rgb.simd.hpp), equal to it for all 2^24 colours.
    """
    red, blue = (0, 2) if color == "rgb" else (2, 0)
    wide = pixels.astype(np.uint32)
    luma = wide[..., red] * 9798 + wide[..., 1] * 19235 + wide[..., blue] * 3735
    return ((luma + (1 << 14)) >> 15).astype(np.uint8)


class _Plan(NamedTuple):
    """What one size and colour order of frame needs, worked out once."""

    placement: Placement
    canvas: np.ndarray  # [H, W, c] in the frame's own colours, padding already in it
    target: np.ndarray  # the part of canvas that the frame's pixels fill


class Preprocessor:
    """Carries out a :class:`Preprocessing` for one input tensor.

    Buffers are made once for each size of frame and used again, so results must be used (or copied) before the
    next call unless ``out`` is given.

    Args:
        declared: what the bundle asks for.
        spec: the model's input, [1, height, width, channels] of float32, int8 or uint8.
        use_opencv: None takes OpenCV where it is installed; both give the same bytes.

    Attributes:
        path: how it is done, in words, for ``edgeferry-run info``.
        placement: where the last frame's pixels went; boxes and masks are mapped back with it.

    Raises:
        FrameError: declaration and tensor do not fit each other.
    """

    def __init__(self, declared: Preprocessing, spec: TensorSpec, use_opencv: bool | None = None) -> None:
        shape = (1, declared.height, declared.width, declared.channels)
        if spec.shape != shape or spec.dtype not in ("float32", "int8", "uint8"):
            raise FrameError(
                "preprocessing makes {} of float32, int8 or uint8, the model's input {!r} is {} of {}".format(
                    list(shape), spec.name, list(spec.shape), spec.dtype
                ),
                "Give --preprocess the size and colour order the model was trained with.",
            )
        self.declared = declared
        self.spec = spec
        self._cv2 = (
            opencv.load("preprocessing") if use_opencv or (use_opencv is None and opencv.available()) else None
        )
        self._dtype = np.dtype(spec.dtype)
        self._out = np.empty(shape, self._dtype)
        self._plans: dict[tuple[tuple[int, ...], str], _Plan] = {}
        self.placement: Placement | None = None
        self._map, way = _level_mapping(declared, spec, self._cv2)
        self.path = "{} {} {}, {}, {}".format(
            "OpenCV" if self._cv2 else "numpy", declared.resize, declared.geometry, declared.color, way
        )

    def __call__(self, pixels: np.ndarray, color: str, out: np.ndarray | None = None) -> np.ndarray:
        """One frame as the model's input.

        Args:
            pixels: uint8 [h, w, 3] or, for gray, [h, w].
            color: order of its channels, "bgr", "rgb" or "gray".
            out: where to write, of the tensor's shape and dtype (the interpreter's own memory, say).

        Returns:
            ``out``, or a buffer that the next call overwrites.

        Raises:
            FrameError: the pixels are no frame.
        """
        plan = self._plan(pixels, color)
        self.placement = plan.placement
        self._place(pixels, plan)
        tensor = self._out if out is None else out
        self._map(self._recolor(plan.canvas, color), tensor[0])
        return tensor

    def _plan(self, pixels: np.ndarray, color: str) -> _Plan:
        key = (pixels.shape, color)
        plan = self._plans.get(key)
        if pixels.dtype != np.uint8:
            raise FrameError("a frame holds uint8 levels, this one {}".format(pixels.dtype))
        if plan is None:
            _check_frame(pixels, color)
            placement = self.declared.placement(pixels.shape[1], pixels.shape[0])
            shape = (self.declared.height, self.declared.width, *pixels.shape[2:])
            canvas = np.full(shape, self.declared.pad_value, np.uint8)
            (x, y), (width, height) = placement.offset, placement.size
            plan = _Plan(placement, canvas, canvas[y : y + height, x : x + width])
            if len(self._plans) >= 64:  # a folder of pictures, no two of one size
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def _place(self, pixels: np.ndarray, plan: _Plan) -> None:
        x, y, width, height = plan.placement.crop
        if (width, height) != (pixels.shape[1], pixels.shape[0]):
            pixels = pixels[y : y + height, x : x + width]
        if self._cv2 is None or plan.placement.size == (width, height):
            # numpy's resize hands back pixels that already have their size.
            np.copyto(plan.target, resize(pixels, *plan.placement.size, kernel=self.declared.resize))
            return
        cv2 = self._cv2
        kernel = {
            "bilinear": cv2.INTER_LINEAR_EXACT,
            "bilinear-fast": cv2.INTER_LINEAR,
            "nearest": cv2.INTER_NEAREST,
        }[self.declared.resize]
        cv2.resize(pixels, plan.placement.size, dst=plan.target, interpolation=kernel)

    def _recolor(self, picture: np.ndarray, color: str) -> np.ndarray:
        wanted = self.declared.color
        if color == wanted:
            return picture if picture.ndim == 3 else picture[..., None]
        if wanted == "gray":
            if self._cv2 is None:
                return to_gray(picture, color)[..., None]
            code = self._cv2.COLOR_RGB2GRAY if color == "rgb" else self._cv2.COLOR_BGR2GRAY
            return self._cv2.cvtColor(picture, code)[..., None]
        if color == "gray":
            return np.broadcast_to(picture.reshape((*picture.shape[:2], 1)), (*picture.shape[:2], 3))
        if self._cv2 is not None:
            return self._cv2.cvtColor(picture, self._cv2.COLOR_BGR2RGB)  # its own inverse
        return picture[..., ::-1]


def _constants(declared: Preprocessing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale, mean and std in single precision; one value each, or one a channel."""
    return (
        np.array(declared.scale, np.float32),
        np.array(declared.mean, np.float32),
        np.array(declared.std, np.float32),
    )


_Mapping = Callable[[np.ndarray, np.ndarray], None]


def _level_mapping(declared: Preprocessing, spec: TensorSpec, cv2: Any) -> tuple[_Mapping, str]:
    """The shortest way from levels to the tensor that gives the whole table, and its name."""
    table = level_table(declared, spec)
    levels = np.repeat(_LEVELS[:, None], declared.channels, axis=1)
    ways: list[tuple[str, _Mapping]] = [("copy", _copy), ("xor 0x80", _xor), ("multiply", _affine(declared))]
    for name, way in ways:
        if (name == "multiply") == (spec.dtype == "float32"):
            result = np.empty_like(table)
            way(levels, result)
            if np.array_equal(result, table):
                return way, name
    return _lookup(table), "table"


def _copy(levels: np.ndarray, out: np.ndarray) -> None:
    np.copyto(out.view(np.uint8), levels)


def _xor(levels: np.ndarray, out: np.ndarray) -> None:
    np.bitwise_xor(levels, np.uint8(0x80), out=out.view(np.uint8))


def _affine(declared: Preprocessing) -> _Mapping:
    scale, mean, std = _constants(declared)

    def way(levels: np.ndarray, out: np.ndarray) -> None:
        # dtype is said outright: older numpy would multiply uint8 by a float scalar in half precision.
        np.multiply(levels, scale, out=out, dtype=np.float32)
        if np.any(mean != 0):
            np.subtract(out, mean, out=out)
        if np.any(std != 1):
            np.divide(out, std, out=out)

    return way


def _lookup(table: np.ndarray) -> _Mapping:
    columns = [np.ascontiguousarray(table[:, c]) for c in range(table.shape[1])]

    def way(levels: np.ndarray, out: np.ndarray) -> None:
        for c, column in enumerate(columns):
            # mode is said because "raise" makes take() buffer its output.
            np.take(column, levels[..., c], out=out[..., c], mode="clip")

    return way


def _check_frame(pixels: np.ndarray, color: str) -> None:
    gray = color == "gray"
    if color not in COLORS:
        raise FrameError("a frame's colour order is one of {}, not {!r}".format(", ".join(COLORS), color))
    if pixels.ndim != (2 if gray else 3) or (not gray and pixels.shape[2] != 3):
        raise FrameError(
            "a {} frame has the shape {}, this one {}".format(
                color, "[height, width]" if gray else "[height, width, 3]", list(pixels.shape)
            )
        )

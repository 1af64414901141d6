"""Frames into tensors, the same bytes on a workstation and on a board.

numpy is the definition; OpenCV resizes and converts faster where it is installed, and the tests hold the two
equal bit by bit.  What is done to a frame is a short list of steps, worked out once for each format and size; with
OpenCV each step writes into memory that was taken then, the last one into the tensor itself where its bytes allow.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.levels import Way, level_table, level_way
from edgeferry_runtime.manifest import TensorSpec
from edgeferry_runtime.pixels import PLANAR, check_frame, decode_jpeg, frame_size, jpeg_size
from edgeferry_runtime.preprocessing import Placement, Preprocessing
from edgeferry_runtime.steps import Stage, Step, numpy_stage, opencv_stage, steps_for

__all__ = ["Picture", "Preprocessor"]

MAX_PLANS = 16  # a folder of pictures may have no two of one size
_UINT8 = np.dtype(np.uint8)


class _Plan:
    """What one format and size of frame needs.

    Attributes:
        placement, frame_size: of the frame.
        steps: what is done.
        buffers: what each step writes into; None where that is the tensor, or where there is nothing to write.
        words: steps for people.
    """

    def __init__(self, placement: Placement, frame: tuple[int, int], steps: list[Step], words: str) -> None:
        self.placement = placement
        self.frame_size = frame
        self.steps = steps
        self.words = words
        self.buffers: list[np.ndarray | None] = [None] * len(steps)


class Picture(NamedTuple):
    """A frame in pixels.

    Attributes:
        pixels, color: as ``pixels.FORMATS`` has them; never "jpeg".
        full: (width, height) of the JPEG it was decoded from, at its full size; None for raw frames.
    """

    pixels: np.ndarray
    color: str
    full: tuple[int, int] | None


class Preprocessor:
    """Carries out a :class:`Preprocessing` for one input tensor; for one thread at a time.

    Memory is taken once for each format and size of frame and used again: with OpenCV no frame but a JPEG costs an
    allocation.  Results must be used (or copied) before the next call unless ``out`` is given.

    Args:
        declared: what the bundle asks for.
        spec: the model's input, [1, height, width, channels] of float32, int8 or uint8.
        use_opencv: None takes OpenCV where it is installed; both give the same bytes.

    Attributes:
        path: how the last frame was done, in words, for ``edgeferry-run info``.
        placement: where the last frame's pixels went; boxes and masks are mapped back with it.
        frame_size: (width, height) of the last frame, of a JPEG at its full size; None before the first.
        decoded_ns: ``time.monotonic_ns()`` when the last frame, a JPEG, was decoded; 0 for raw frames.

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
        self._way: Way = level_way(declared, spec, self._cv2)
        self._pad = level_table(declared, spec)[declared.pad_value]
        if self._way.bytewise:
            self._pad = self._pad.view(np.uint8)
        self._own = np.empty(shape, spec.dtype)
        self._plans: dict[tuple[object, ...], _Plan] = {}
        # The last frame's plan, tied to the memory it wrote to.
        self._key: tuple[object, ...] = ()
        self._tensor: np.ndarray | None = None
        self._plan: _Plan
        self._stages: list[Stage] = []
        self._pads: list[tuple[np.ndarray, np.ndarray]] = []
        self.placement: Placement | None = None
        self.frame_size: tuple[int, int] | None = None
        self.decoded_ns = 0
        self.path = self._words("")

    def __call__(self, pixels: np.ndarray, color: str, out: np.ndarray | None = None) -> np.ndarray:
        """One frame as the model's input.

        Args:
            pixels: uint8, of the shape that ``pixels.FORMATS`` gives for ``color``.
            color: its format, one of ``pixels.FORMATS``.
            out: where to write, contiguous, of the tensor's shape and dtype (the interpreter's own memory, say).

        Returns:
            ``out``, or memory that the next call overwrites.

        Raises:
            FrameError: the pixels are no frame of that format.
            DependencyError: a JPEG, and OpenCV is absent.
        """
        if color == "jpeg":
            return self.place(self.decode(pixels), out)
        self.decoded_ns = 0
        return self.place(Picture(pixels, color, None), out)

    def place(self, picture: Picture, out: np.ndarray | None = None) -> np.ndarray:
        """The second half of a call: a decoded frame as the model's input; arguments and errors as there."""
        pixels, color, full = picture
        tensor = self._own if out is None else out
        key = (color, pixels.shape, full)
        if key != self._key or tensor is not self._tensor:
            self._prepare(pixels, color, full, key, tensor)
        elif pixels.dtype != _UINT8:
            check_frame(pixels, color)
        for block, values in self._pads:
            np.copyto(block, values)
        for stage in self._stages:
            pixels = stage(pixels)
        self.placement = self._plan.placement
        self.frame_size = self._plan.frame_size
        return tensor

    def decode(self, data: np.ndarray) -> Picture:
        """The first half of a call, for a JPEG: decoded as the bundle declares.

        Args:
            data: uint8 [bytes].

        Raises:
            FrameError: it cannot be decoded.
            DependencyError: OpenCV is absent.
        """
        check_frame(data, "jpeg")
        if self.declared.decode == "full":
            pixels = decode_jpeg(data)
            color, full = "bgr", frame_size(pixels, "bgr")
        else:
            full = jpeg_size(data)
            color = "gray" if self.declared.color == "gray" else "bgr"
            by = self.declared.reduction(*full)
            pixels = decode_jpeg(data, by, gray=color == "gray")
            if frame_size(pixels, color) != tuple(-(-side // by) for side in full):
                raise FrameError(
                    "a JPEG of {}x{} pixels, decoded at 1/{}, came out as {}x{}".format(
                        *full, by, *frame_size(pixels, color)
                    ),
                    'Save the picture again, or convert the model with decode = "full".',
                )
        self.decoded_ns = time.monotonic_ns()
        return Picture(pixels, color, full)

    def _prepare(
        self,
        pixels: np.ndarray,
        color: str,
        full: tuple[int, int] | None,
        key: tuple[object, ...],
        tensor: np.ndarray,
    ) -> None:
        """Find or make the plan, and tie it to the tensor's memory."""
        check_frame(pixels, color)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._make_plan(pixels, color, full)
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        spec = self.spec
        if tensor.shape != spec.shape or tensor.dtype != spec.dtype or not tensor.flags.c_contiguous:
            raise FrameError(
                "input {!r} is contiguous {} of {}, not {} of {}".format(
                    spec.name, spec.dtype, list(spec.shape), tensor.dtype, list(tensor.shape)
                )
            )
        canvas = tensor[0] if self.declared.channels == 3 else tensor[0, ..., 0]
        if self._way.bytewise:
            canvas = canvas.view(np.uint8)
        (x, y), (width, height) = plan.placement.offset, plan.placement.size
        rows = canvas[y : y + height]
        region = rows[:, x : x + width]
        self._stages = [*self._tied(plan, region), self._way.tie(region, rows)]
        beside = np.uint8(self.declared.pad_value) if self._way.in_rows else self._pad
        blocks = (
            (canvas[:y], self._pad),
            (canvas[y + height :], self._pad),
            (rows[:, :x], beside),
            (rows[:, x + width :], beside),
        )
        # Written with each frame: the interpreter may use its input's memory for something else.
        self._pads = [
            (block, np.broadcast_to(pad, block.shape).astype(block.dtype, order="C"))
            for block, pad in blocks
            if block.size
        ]
        self._plan, self._key, self._tensor = plan, key, tensor
        self.path = self._words(plan.words)

    def _make_plan(self, pixels: np.ndarray, color: str, full: tuple[int, int] | None) -> _Plan:
        declared = self.declared
        picture = frame_size(pixels, color)
        frame = full or picture
        placement = declared.placement(*frame)
        by, words = 1, "{} frames".format(color)
        if full:
            by = declared.reduction(*full)
            words = "jpeg frames decoded at 1/{}".format(by) if by > 1 else "jpeg frames"
        x, y, width, height = (side // by for side in placement.crop)
        steps = steps_for(declared, color, picture, (x, y, width, height), placement.size)
        if declared.planes == "resize-first" and color not in PLANAR:
            words += " (no planes to resize first)"
        plan = _Plan(placement, frame, steps, ", ".join([words, *map(str, steps)]))
        if self._cv2 is not None:
            for i, step in enumerate(steps):
                # The last step may write into the tensor itself.
                if step.kind != "crop" and not (self._way.bytewise and i == len(steps) - 1):
                    plan.buffers[i] = np.empty(step.shape, np.uint8)
        return plan

    def _tied(self, plan: _Plan, region: np.ndarray) -> list[Stage]:
        if self._cv2 is None:
            return [numpy_stage(step, self.declared.resize) for step in plan.steps]
        return [
            opencv_stage(self._cv2, step, self.declared.resize, region if buffer is None else buffer)
            for step, buffer in zip(plan.steps, plan.buffers)
        ]

    def _words(self, steps: str) -> str:
        declared = self.declared
        parts = [
            "{} {} {}".format("OpenCV" if self._cv2 else "numpy", declared.resize, declared.geometry),
            declared.color,
            steps,
            self._way.name,
        ]
        return ", ".join(part for part in parts if part)

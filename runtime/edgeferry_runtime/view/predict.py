"""A picture sent in, its result out: on a model of its own, so that the loop's interpreter is never touched."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any, Callable

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.model import Model
from edgeferry_runtime.pixels import jpeg_size
from edgeferry_runtime.results import Result

__all__ = ["BusyError", "MAX_BYTES", "Predictor", "read_picture"]

MAX_BYTES = 8 << 20
MAX_PIXELS = 25000000  # 75 MB once decoded
_QUEUE = 4  # that wait for the one under way
_PNG = b"\x89PNG\r\n\x1a\n"


class BusyError(Exception):
    """So many wait that one more is refused."""


class Predictor:
    """One model for pictures that are sent in; loaded with the first, loaded anew when another version runs.

    Args:
        open_model: opens what the lane runs just now.
        outdated: whether a model of this identity no longer is what the lane runs.
    """

    def __init__(self, open_model: Callable[[], Model], outdated: Callable[[str], bool]) -> None:
        self._open, self._outdated = open_model, outdated
        self._model: Model | None = None
        self._one = threading.Lock()  # at a time; the loop never takes it
        self._places = threading.BoundedSemaphore(1 + _QUEUE)
        self._count = 0

    def enter(self) -> None:
        """Take a place; whoever did calls :meth:`predict`, which gives it back.

        Raises:
            BusyError: all are taken.
        """
        if not self._places.acquire(blocking=False):
            raise BusyError

    def predict(self, data: bytes) -> dict[str, Any]:
        """The result for a JPEG or PNG file, as sinks write it; waits for those before it.

        Raises:
            FrameError: it is no picture that can be decoded.
            EdgeferryError: the model cannot be opened, or fails.
        """
        try:
            began = time.monotonic_ns()
            pixels, color = read_picture(data)
            with self._one:
                return self._run(pixels, color, began).to_json()
        finally:
            self._places.release()

    def close(self) -> None:
        """Let go of the model, unless it is at work."""
        if self._one.acquire(blocking=False):
            self._forget()
            self._one.release()

    def _run(self, pixels: np.ndarray, color: str, began: int) -> Result:
        clock = time.monotonic_ns
        if self._model is not None and self._outdated(self._model.identity):
            self._forget()
        if self._model is None:
            self._model = self._open()
        model, start = self._model, clock()
        try:
            model.preprocess(pixels, color)
            ready = clock()
            model.invoke()
            invoked = clock()
            answer = model.decode()
        except FrameError:
            raise
        except Exception:
            self._forget()  # whatever state it is in, the next picture begins with a new one
            raise
        done = clock()
        decoded = model.preprocessor.decoded_ns if model.preprocessor is not None and color == "jpeg" else 0
        in_pixels = decoded or start
        stages = (0, in_pixels - start, ready - in_pixels, start - began, invoked - ready, done - invoked)
        self._count += 1
        return Result(
            self._count - 1,
            "",
            model.identity,
            model.variant.name,
            model.backend_name,
            began,
            time.time(),
            (done - began) / 1000,
            tuple(ns / 1000 for ns in stages),
            0,
            answer,
        )

    def _forget(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            with suppress(Exception):
                model.close()


def read_picture(data: bytes) -> tuple[np.ndarray, str]:
    """A picture file as a frame: a JPEG stays one, and is decoded as the model declares; a PNG becomes BGR.

    Returns:
        pixels and their format, as ``sources.base.Frame`` has them.

    Raises:
        FrameError: it is neither, is damaged, or has more than ``MAX_PIXELS`` pixels.
        DependencyError: OpenCV is absent.
    """
    array = np.frombuffer(data, np.uint8)
    if data[:2] == b"\xff\xd8":
        _check_size(*jpeg_size(array))
        return array, "jpeg"
    if data[:8] != _PNG or len(data) < 24:
        raise FrameError("the body is neither a JPEG nor a PNG picture", "Send the file's bytes as they are.")
    _check_size(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
    cv2 = opencv.load("reading pictures")
    try:
        pixels = cv2.imdecode(array, cv2.IMREAD_COLOR)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise FrameError("{} bytes are no PNG picture that can be decoded".format(len(data)), "Check the file.")
    return np.asarray(pixels), "bgr"


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise FrameError(
            "the picture has {}x{} pixels, {} million are the most".format(width, height, MAX_PIXELS // 1000000),
            "Send a smaller one; the model sees few of them.",
        )

"""Frames of a Raspberry Pi's ribbon-cable camera through picamera2."""

from __future__ import annotations

import importlib
import re
import time
from typing import Any, NamedTuple

import numpy as np

from edgeferry_runtime.errors import DependencyError, SourceError, UsageError
from edgeferry_runtime.sources.base import FrameSource, Request
from edgeferry_runtime.sources.device import Device, Grab, captured
from edgeferry_runtime.sources.live import LiveSource
from edgeferry_runtime.sources.options import one_of, positive, read_options, size

__all__ = ["PicameraDevice", "compact_i420", "main_size", "lores_size", "open_picamera"]

_URI = re.compile(r"picamera2?:(\d{0,2})\Z")
_OPTIONS = {"size": size, "fps": positive, "stream": one_of("lores", "main")}
_MAIN = (1280, 720)  # smaller ones make libcamera take modes of the sensor that see less
_STEP = 64  # widths that the hardware of a Pi 4 and older stores without padding


class Settings(NamedTuple):
    """What is asked of a camera.

    Attributes:
        size: of the frames, (width, height), or None: covers ``want``.
        want: the size that frames should cover, or None.
        fps: frames a second.
        stream: "lores" gives i420 at a small size, scaled by the hardware; "main" gives rgb.
        timeout_s: how long to wait for a frame.
    """

    size: tuple[int, int] | None = None
    want: tuple[int, int] | None = None
    fps: float = 30.0
    stream: str = "lores"
    timeout_s: float = 2.0


def open_picamera(uri: str, request: Request) -> FrameSource:
    """A ribbon-cable camera, live.

    Args:
        uri: "picamera2:0" or "picamera2:0?size=640x480&fps=30&stream=lores".

    Raises:
        UsageError: the uri is malformed, or an option wrong.
        SourceError: there is no such camera, or another program holds it.
        DependencyError: picamera2 is absent.
    """
    what, options = read_options(uri, _OPTIONS)
    match = _URI.match(what)
    if not match:
        raise UsageError("{!r} names no camera".format(uri), "Write picamera2:0, or another number.")
    settings = Settings(want=request.want, timeout_s=request.timeout_s)._replace(**options)
    if settings.size and (settings.size[0] % 2 or settings.size[1] % 2):
        raise UsageError("{}: sides of a camera's frames are even".format(uri), "Round them up.")
    index = int(match.group(1) or 0)
    _load()
    return LiveSource("picamera2:{}".format(index), lambda: PicameraDevice(index, settings), request.timeout_s)


def main_size(settings: Settings) -> tuple[int, int]:
    """Size of the main stream: the frames' own, or a larger one of the same shape to scale them down from."""
    if settings.size is None:
        want = settings.want or (1, 1)
        half = _MAIN[0] // 2, _MAIN[1] // 2
        factor = max(2, _up(want[0], half[0]), _up(want[1], half[1]))
        return half[0] * factor, half[1] * factor
    if settings.stream == "main":
        return settings.size
    factor = _up(_MAIN[0], settings.size[0])
    return settings.size[0] * factor, settings.size[1] * factor


def lores_size(main: tuple[int, int], want: tuple[int, int]) -> tuple[int, int]:
    """The smallest size that covers ``want`` and has the shape of ``main``, in widths the hardware likes.

    Another shape would be a distorted picture: the hardware stretches.
    """
    for width in range(_STEP, main[0], _STEP):
        height = width * main[1] // main[0] // 2 * 2
        if width >= want[0] and height >= want[1]:
            return width, height
    return main


def _up(wanted: int, unit: int) -> int:
    return -(-wanted // unit)


def compact_i420(padded: np.ndarray, width: int, height: int) -> np.ndarray:
    """A YUV420 buffer without the padding of its rows, as a new array.

    Args:
        padded: uint8 [height * 3/2, stride]; chroma rows are half a stride long, two of them in each row.

    Returns:
        uint8 [height * 3/2, width], format "i420".
    """
    stride = padded.shape[1]
    if stride == width:
        return padded.copy()
    frame = np.empty((height * 3 // 2, width), np.uint8)
    frame[:height] = padded[:height, :width]
    chroma = padded[height:].reshape(height, stride // 2)  # the rows of U, then those of V
    frame[height:].reshape(height, width // 2)[:] = chroma[:, : width // 2]
    return frame


class PicameraDevice(Device):
    """A camera that has been started.

    Raises:
        SourceError: there is no such camera, or another program holds it.
    """

    def __init__(self, index: int, settings: Settings) -> None:
        self._picamera2 = _load()
        self._name = "picamera2:{}".format(index)
        self._settings = settings
        there = self._picamera2.Picamera2.global_camera_info()
        if index >= len(there):
            names = ["{}: {}".format(i, camera.get("Model", "?")) for i, camera in enumerate(there)]
            raise SourceError(
                "{}: no such camera; there is {}".format(self._name, ", ".join(names) or "none"),
                "Check the ribbon cable with the power off, then: rpicam-hello --list-cameras",
            )
        try:
            self._camera = self._picamera2.Picamera2(index)
        except Exception as error:  # its own kinds of error, and libcamera's
            raise self._failed("cannot be opened", error) from None
        try:
            self._start()
        except Exception as error:
            self.close()
            raise self._failed("cannot be started", error) from None

    def _start(self) -> None:
        settings = self._settings
        main = main_size(settings)
        microseconds = int(1e6 / settings.fps)
        lores = None
        if settings.stream == "lores":
            lores = {"size": settings.size or lores_size(main, settings.want or main), "format": "YUV420"}
        self._camera.configure(
            self._camera.create_video_configuration(
                main={"size": main, "format": "BGR888"},  # R, G, B in memory: the names count from the other end
                lores=lores,
                raw=None,
                buffer_count=4,
                queue=False,  # the next frame, not one that is over
                controls={"FrameDurationLimits": (microseconds, microseconds)},
            )
        )
        self._width, self._height = self._camera.camera_configuration()[settings.stream]["size"]
        self._camera.start()

    def grab(self) -> Grab:
        try:
            request = self._camera.capture_request(wait=self._settings.timeout_s)
        except Exception as error:
            raise self._failed("gives no frames", error) from None
        try:
            now = time.monotonic_ns()
            stamp = request.get_metadata().get("SensorTimestamp", 0)
            with self._picamera2.MappedArray(request, self._settings.stream, write=False) as mapped:
                if self._settings.stream == "lores":
                    pixels, color = compact_i420(mapped.array, self._width, self._height), "i420"
                else:
                    pixels, color = mapped.array.copy(), "rgb"
        finally:
            request.release()  # the camera starves without its buffers
        return Grab(pixels, color, captured(stamp, now))

    def _failed(self, what: str, error: Exception) -> SourceError:
        return SourceError(
            "{}: {}: {}".format(self._name, what, error or type(error).__name__),
            "Another program may hold it; else check the ribbon cable: rpicam-hello --list-cameras",
        )

    def close(self) -> None:
        try:
            self._camera.stop()
        finally:
            self._camera.close()


def _load() -> Any:
    try:
        return importlib.import_module("picamera2")
    except ImportError:
        raise DependencyError(
            "reading a ribbon-cable camera needs picamera2, which is not installed for this Python",
            "sudo apt install python3-picamera2 --no-install-recommends; a virtual environment sees it when it was"
            " made with --system-site-packages",
        ) from None

"""Frames of a V4L2 or USB camera through OpenCV."""

from __future__ import annotations

import glob
import os
import sys
import time
from typing import Any, Callable, NamedTuple

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import SourceError
from edgeferry_runtime.sources.base import FrameSource, Request
from edgeferry_runtime.sources.damage import is_whole_jpeg, without_padding
from edgeferry_runtime.sources.device import Device, Grab, captured
from edgeferry_runtime.sources.live import LiveSource
from edgeferry_runtime.sources.options import one_of, positive, read_options, size

__all__ = ["SIZES", "CameraDevice", "open_camera", "smallest_size"]

# What cameras usually offer, by the number of pixels.
SIZES = (
    (160, 120), (320, 240), (352, 288), (424, 240), (640, 360), (640, 480), (800, 600), (960, 540), (1024, 768),
    (1280, 720), (1280, 960), (1600, 1200), (1920, 1080), (2560, 1440), (3840, 2160),
)  # fmt: skip
_OPTIONS = {"size": size, "fps": positive, "format": one_of("mjpg", "yuyv")}
_TRIES = 3  # frames a camera may spoil when it starts


class Settings(NamedTuple):
    """What is asked of a camera.

    Attributes:
        size: exactly this one, or None.
        want: the smallest size that covers this one; of no account where ``size`` is given.
        fps: frames a second; 0 leaves it to the camera.
        format: "mjpg" or "yuyv"; "" tries mjpg and takes what comes.
        timeout_s: how long the driver may wait for a frame.
    """

    size: tuple[int, int] | None = None
    want: tuple[int, int] | None = None
    fps: float = 0.0
    format: str = ""
    timeout_s: float = 2.0


def open_camera(uri: str, request: Request) -> FrameSource:
    """A V4L2 camera, live.

    Args:
        uri: "/dev/video0", "0" or "v4l2:/dev/video0?size=640x480&fps=30&format=mjpg"; any link to the device, as
            below /dev/v4l/by-id, is followed anew whenever the camera is opened.

    Raises:
        UsageError: an option is wrong.
        SourceError: there is no such camera, this user may not open it, or it gives no frames.
        DependencyError: OpenCV is absent.
    """
    path, options = read_options(uri, _OPTIONS)
    if path.startswith("v4l2:"):
        path = path[len("v4l2:") :]
    path = "/dev/video" + path if path.isdigit() else path
    opencv.load("reading a camera")
    settings = Settings(want=request.want, timeout_s=request.timeout_s)._replace(**options)
    return LiveSource(path, lambda: CameraDevice(path, settings), request.timeout_s)


def smallest_size(want: tuple[int, int], confirm: Callable[[tuple[int, int]], tuple[int, int]]) -> tuple[int, int]:
    """The smallest size a camera offers that covers another one.

    Args:
        want: (width, height) to cover.
        confirm: asks the camera for a size and says which one it took.

    Returns:
        The first of ``SIZES``, in ascending order, that covers ``want`` and is confirmed; where none is, the
        smallest the camera took instead that covers it; where none covers it, the largest it took.  The camera
        is left at that size.
    """
    taken = []
    for wanted in (*[s for s in SIZES if _covers(s, want)], SIZES[-1]):
        got = confirm(wanted)
        if got == wanted and _covers(got, want):
            return got
        taken.append(got)
    serving = [s for s in taken if _covers(s, want)]
    best = min(serving, key=_area) if serving else max(taken, key=_area)
    return confirm(best)


def _covers(size: tuple[int, int], want: tuple[int, int]) -> bool:
    return size[0] >= want[0] and size[1] >= want[1]


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


class CameraDevice(Device):
    """An open camera that has delivered a frame.

    MJPEG comes undecoded (color "jpeg") where driver and OpenCV hand it over; all else is made "bgr".

    Raises:
        SourceError: there is no such camera, this user may not open it, or it gives no frames.
    """

    def __init__(self, path: str, settings: Settings) -> None:
        self._path = path
        self._cv2 = cv2 = opencv.load("reading a camera")
        if os.name == "posix" and os.path.isdir("/dev"):
            _check_access(path)
        self._capture = _open(cv2, path, settings.timeout_s)
        if not self._capture.isOpened():
            raise SourceError(
                "{}: cannot be opened as a camera".format(path),
                "Another program may hold it, or it may be a metadata node: try the other /dev/video numbers.",
            )
        try:
            self._set_up(settings)
        except BaseException:
            self.close()
            raise

    def _set_up(self, settings: Settings) -> None:
        cv2, capture = self._cv2, self._capture
        # Format before size (it decides which sizes there are), rate after both.
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*(settings.format or "mjpg").upper()))
        if settings.size:
            got = self._ask_size(settings.size)
            if got != settings.size:
                raise SourceError(
                    "{}: has no size of {}x{}, the nearest is {}x{}".format(self._path, *settings.size, *got),
                    "List its sizes: v4l2-ctl --list-formats-ext -d {}".format(self._path),
                )
        elif settings.want:
            smallest_size(settings.want, self._ask_size)
        if settings.fps:
            capture.set(cv2.CAP_PROP_FPS, settings.fps)
        # One to fill while the other is read: the capture thread empties them as they come, so none grows old.
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 2)
        self._raw = self._fourcc() == "MJPG"
        if self._raw:
            self._raw = bool(capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)) and self._gives_jpeg()
            if not self._raw:
                capture.set(cv2.CAP_PROP_CONVERT_RGB, 1)
        if not self._raw:
            self.grab()  # a metadata node opens like a camera, and never gives a frame

    def _ask_size(self, size: tuple[int, int]) -> tuple[int, int]:
        cv2, capture = self._cv2, self._capture
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
        return int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))

    def _fourcc(self) -> str:
        code = int(self._capture.get(self._cv2.CAP_PROP_FOURCC))
        return bytes(code >> shift & 0xFF for shift in (0, 8, 16, 24)).decode("ascii", "replace")

    def _gives_jpeg(self) -> bool:
        return any(is_whole_jpeg(_bytes(self._take()[0])) for _ in range(_TRIES))

    def grab(self) -> Grab:
        pixels, captured_ns = self._take()
        if self._raw:
            return Grab(_bytes(pixels), "jpeg", captured_ns)
        return Grab(pixels, "gray" if pixels.ndim == 2 else "bgr", captured_ns)

    def _take(self) -> tuple[np.ndarray, int]:
        ok = self._capture.grab()
        now = time.monotonic_ns()
        if ok:
            ok, pixels = self._capture.retrieve()
        if not ok:
            raise SourceError(
                "{}: gives no frames".format(self._path), "Check cable and power; it may be a metadata node."
            )
        return pixels, captured(int(self._capture.get(self._cv2.CAP_PROP_POS_MSEC) * 1e6), now)

    def close(self) -> None:
        self._capture.release()


def _open(cv2: Any, path: str, timeout_s: float) -> Any:
    if sys.platform != "linux":
        return cv2.VideoCapture(int(path[len("/dev/video") :]), cv2.CAP_ANY)
    # OpenCV would wait 10 s for a frame; it reads this once, when the first camera is opened.
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(max(1, int(timeout_s))))
    return cv2.VideoCapture(os.path.realpath(path), cv2.CAP_V4L2)


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """A raw buffer as bytes; OpenCV wraps it in one row."""
    return without_padding(np.ascontiguousarray(pixels).reshape(-1))


def _check_access(path: str) -> None:
    if not os.path.exists(path):
        there = sorted(glob.glob("/dev/video*"))
        raise SourceError(
            "{}: no such camera".format(path),
            "There is {}.".format(", ".join(there))
            if there
            else "There is no /dev/video at all: check the cable; a Pi's ribbon camera is picamera2:0.",
        )
    if not os.access(path, os.R_OK | os.W_OK):
        raise SourceError(
            "{}: this user may not open it".format(path),
            "Add the user to the group video, then log in again: sudo usermod -aG video $USER",
        )

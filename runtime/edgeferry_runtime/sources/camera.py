"""Frames of a V4L2 or USB camera through OpenCV."""

from __future__ import annotations

import os
import time

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import SourceError
from edgeferry_runtime.sources.base import Frame, FrameSource

__all__ = ["CameraSource"]


class CameraSource(FrameSource):
    """Reads a camera.

    Args:
        device: "/dev/video0", or its number.

    Raises:
        SourceError: there is no such camera, or this user may not open it.
    """

    def __init__(self, device: str) -> None:
        self._device = "/dev/video" + device if device.isdigit() else device
        if os.name == "posix" and os.path.isdir("/dev"):
            _check_access(self._device)
        cv2 = opencv.load("reading a camera")
        self._capture = cv2.VideoCapture(int(self._device[len("/dev/video") :]))
        self._count = 0
        if not self._capture.isOpened():
            raise SourceError(
                "{}: cannot be opened as a camera".format(self._device),
                "Another program may hold it, or it may be a metadata node: try the other /dev/video numbers.",
            )
        # Honoured by some drivers only; where it is, the camera's own queue adds no age.
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def read(self) -> Frame | None:
        ok = self._capture.grab()
        captured = time.monotonic_ns()
        if ok:
            ok, pixels = self._capture.retrieve()
        if not ok:
            raise SourceError(
                "{}: gives no more frames".format(self._device), "Check cable and power, then restart."
            )
        self._count += 1
        return Frame(pixels, "bgr", self._count - 1, captured)

    def close(self) -> None:
        self._capture.release()


def _check_access(device: str) -> None:
    if not os.path.exists(device):
        raise SourceError(
            "{}: no such camera".format(device),
            "List what is there: ls /dev/video*; a Pi camera needs libcamera.",
        )
    if not os.access(device, os.R_OK | os.W_OK):
        raise SourceError(
            "{}: this user may not open it".format(device),
            "Add the user to the group video, then log in again: sudo usermod -aG video $USER",
        )

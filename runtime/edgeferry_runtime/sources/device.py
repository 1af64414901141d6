"""What a live source reads from: a camera, opened, that hands over frame after frame."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Device", "Grab", "captured"]

_OLDEST_NS = 10 * 10**9


class Grab(NamedTuple):
    """One picture a device delivered; fields as in ``Frame``."""

    pixels: np.ndarray
    color: str
    captured_ns: int


class Device:
    """Base of all devices: whoever makes one has opened it.

    One thread uses it.  ``grab`` may block for ever when the hardware hangs; the source then leaves the device
    to the thread that hangs in it, and opens another.
    """

    def grab(self) -> Grab | None:
        """The next picture, waiting for it; None at the end, which cameras do not have.

        Raises:
            SourceError: there are no more pictures until the device is opened anew.
        """
        raise NotImplementedError  # abstract: every device has its own

    def close(self) -> None:
        """Let go of the hardware; harmless twice."""


def captured(stamp_ns: int, now_ns: int) -> int:
    """When a frame was captured: what the driver says, where that is on the clock we use, else now.

    The driver's time counts what the frame waited in buffers.

    Args:
        stamp_ns: the driver's word; 0 for none.
        now_ns: ``time.monotonic_ns()`` when the frame was had.
    """
    return stamp_ns if 0 < now_ns - stamp_ns < _OLDEST_NS else now_ns

"""The frames two models disagreed most about, in bounded memory, with both answers."""

from __future__ import annotations

import heapq
import threading
from typing import Any, NamedTuple

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.pixels import to_bgr
from edgeferry_runtime.results import Result
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.tasks.base import Answer

__all__ = ["Disagreement", "Disagreements"]

JPEG_QUALITY = 95


class Disagreement(NamedTuple):
    """One frame.

    Attributes:
        difference: how far the answers are apart, 0 to 1.
        order: counts what was kept, so that of two equal ones the later stays.
        number, captured_ns: of the frame.
        pixels, color: a JPEG, or the frame as it was where OpenCV is absent; read-only.
        current, candidate: the answers, as plain values.
    """

    difference: float
    order: int
    number: int
    captured_ns: int
    pixels: np.ndarray
    color: str
    current: dict[str, Any]
    candidate: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values without the picture."""
        return {
            "frame": self.number,
            "difference": round(self.difference, 4),
            "current": self.current,
            "candidate": self.candidate,
        }


class Disagreements:
    """Keeps the most telling ones.

    Args:
        keep: so many at most.
        keep_mb: so many megabytes (10^6 bytes) of pictures at most.
    """

    def __init__(self, keep: int, keep_mb: float) -> None:
        self._keep = keep
        self._max_bytes = int(keep_mb * 1e6)
        self._bytes = 0
        self._order = 0
        self._heap: list[Disagreement] = []  # the least telling one first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def nbytes(self) -> int:
        """Of all pictures."""
        return self._bytes

    def offer(self, difference: float, frame: Frame, result: Result, candidate: Answer) -> bool:
        """Keep a frame if it tells more than one that is kept; returns whether it was.

        For one thread at a time; takes milliseconds where a raw frame has to be compressed.
        """
        if self._keep == 0 or (len(self._heap) >= self._keep and difference < self._heap[0].difference):
            return False
        pixels, color = _packed(frame)
        if pixels.nbytes > self._max_bytes:
            return False
        self._order += 1
        new = Disagreement(
            difference, self._order, frame.number, frame.captured_ns, pixels, color,
            result.answer.to_json(), candidate.to_json(),
        )  # fmt: skip
        with self._lock:
            heapq.heappush(self._heap, new)
            self._bytes += pixels.nbytes
            while len(self._heap) > self._keep or self._bytes > self._max_bytes:
                self._bytes -= heapq.heappop(self._heap).pixels.nbytes
        return True

    def all(self) -> list[Disagreement]:
        """What is kept, the most telling first."""
        with self._lock:
            return sorted(self._heap, key=lambda kept: (-kept.difference, -kept.order))


def _packed(frame: Frame) -> tuple[np.ndarray, str]:
    """A copy of a frame's picture, compressed where that is possible."""
    if frame.color == "jpeg":
        return _frozen(frame.pixels), "jpeg"
    if opencv.available():
        cv2 = opencv.load("keeping frames")
        try:
            done, jpeg = cv2.imencode(
                ".jpg", to_bgr(frame.pixels, frame.color), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
            )
        except (FrameError, cv2.error):
            done = False
        if done:
            return _frozen(jpeg.reshape(-1)), "jpeg"
    return _frozen(frame.pixels), frame.color


def _frozen(pixels: np.ndarray) -> np.ndarray:
    copy = np.array(pixels)  # what is shared may be a view of something larger
    copy.flags.writeable = False
    return copy

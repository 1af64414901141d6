"""What every frame source is: read until None, then close."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple

import numpy as np

__all__ = ["PICTURES", "Frame", "FrameSource"]

# Endings of the picture files that OpenCV decodes in every build.
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")


class Frame(NamedTuple):
    """One picture; whoever holds it owns it, no source writes into it again.

    Attributes:
        pixels: uint8, shaped as its format says.
        color: pixel format, one of ``pixels.FORMATS``: "bgr", "rgb", "gray", "i420", "nv12" or "jpeg".
        number: counts from 0; a gap means that frames were dropped.
        captured_ns: when the source had it, ``time.monotonic_ns()``; a frame's age counts from here.
        name: where it came from (a file's name), "" for streams.
    """

    pixels: np.ndarray
    color: str
    number: int
    captured_ns: int
    name: str = ""


class FrameSource:
    """Base of all sources; use as a context manager.

    Attributes:
        live: frames happen whether or not anybody reads them: what is not read in time is dropped, and a frame
            is worth less the older it is.  Files wait; every one of their frames counts.
        dropped: frames that came and were never read, so far.
        reopened: how often the source was lost and found again, so far.
    """

    live = False
    dropped = 0
    reopened = 0

    def read(self) -> Frame | None:
        """The next frame, or None at the end.

        Raises:
            SourceError: the source failed.
        """
        raise NotImplementedError  # abstract: every source has its own

    def close(self) -> None:
        """Let go of the device or file; harmless twice."""

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

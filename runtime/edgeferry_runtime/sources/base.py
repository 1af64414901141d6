"""What every frame source is: read until None, then close."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from edgeferry_runtime import pixels as formats
from edgeferry_runtime.errors import FrameError

__all__ = ["PICTURES", "WAITING", "Frame", "FrameSource", "Region", "Request"]

# Endings of the picture files that OpenCV decodes in every build.
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")


class Region(NamedTuple):
    """Which part of a frame a picture was cut out of, for which box.

    Attributes:
        box: its place in the answer that named it, counted from 0.
        label: the box's class, "" without labels.
        score: the box's, 0 to 1.
        x, y: upper left corner of the part, in pixels of the whole frame.
        width, height: of the part, in pixels; with the margin, and clipped to the frame.
        within: what the box was found in, where that was a part of the frame itself.
    """

    box: int
    label: str
    score: float
    x: int
    y: int
    width: int
    height: int
    within: Region | None = None

    @property
    def boxes(self) -> tuple[int, ...]:
        """The boxes' places from the whole frame inwards: no two parts of one frame have the same."""
        return (*(self.within.boxes if self.within else ()), self.box)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a line of JSON."""
        value: dict[str, Any] = dict(self._asdict(), score=round(self.score, 6))
        value.pop("within")
        if self.within is not None:
            value["within"] = self.within.to_json()
        return value


class Frame(NamedTuple):
    """One picture.  Whoever holds it may read it, as long as it likes; nobody writes into it.

    Attributes:
        pixels: uint8, shaped as its format says; may be read-only, and its rows may have gaps between them.
        color: pixel format, one of ``pixels.FORMATS``: "bgr", "rgb", "gray", "i420", "nv12" or "jpeg".
        number: counts from 0 what the source was given; a gap means frames that were dropped or damaged.
        captured_ns: when the source had it, ``time.monotonic_ns()``; a frame's age counts from here.
        name: where it came from (a file's name), "" for streams.
        region: which part of the source's frame of this number it is; None for the whole.
    """

    pixels: np.ndarray
    color: str
    number: int
    captured_ns: int
    name: str = ""
    region: Region | None = None


# What ``read`` gives when the time is over and there is no frame yet; compare with ``is``.
WAITING = Frame(np.empty(0, np.uint8), "", -1, 0)


class Request(NamedTuple):
    """What the reader of a source would like; each kind of source takes what concerns it.

    Attributes:
        want: (width, height) in pixels that a frame should cover, or None: cameras then choose the smallest
            size that does.
        timeout_s: after so long without a frame a live source is taken for dead, and opened anew.
    """

    want: tuple[int, int] | None = None
    timeout_s: float = 2.0


class FrameSource:
    """Base of all sources; use as a context manager.

    Attributes:
        live: frames happen whether or not anybody reads them: what is not read in time is dropped, and a frame
            is worth less the older it is.  Files wait; every one of their frames counts.
        encoded: JPEG frames are handed over as they came (color "jpeg"), not decoded.
        dropped: frames that came and were never read, so far.
        skipped: frames that were damaged and never handed over, so far.
        reopened: how often the source was lost and found again, so far.
        outage: why there are no frames just now; "" while all is well.
    """

    live = False
    encoded = False
    dropped = 0
    skipped = 0
    reopened = 0
    outage = ""

    def read(self, timeout_s: float | None = None) -> Frame | None:
        """The next frame, or None at the end.

        Args:
            timeout_s: live sources give ``WAITING`` when there is no frame within this time; None waits as long
                as it takes.  Files ignore it.

        Raises:
            SourceError: the source failed, for good.
            DependencyError: frames are JPEG, and OpenCV is absent.
        """
        while True:
            frame = self._read(timeout_s)
            if frame is None or frame.color != "jpeg" or self.encoded:
                return frame
            try:
                return frame._replace(pixels=formats.to_bgr(frame.pixels, "jpeg"), color="bgr")
            except FrameError:  # whole by its markers, and damaged inside
                self.skipped += 1

    def _read(self, timeout_s: float | None) -> Frame | None:
        """As ``read``; JPEG frames may be left undecoded."""
        raise NotImplementedError  # abstract: every source has its own

    def close(self) -> None:
        """Let go of the device or file; harmless twice."""

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""A cascade: what one model's boxes show is cut out of the frame and becomes the frames of the next model."""

from __future__ import annotations

import math
import threading
import time
from typing import NamedTuple, Sequence

from edgeferry_runtime import pixels as formats
from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.model import Model
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.results import Result
from edgeferry_runtime.sources.base import WAITING, Frame, FrameSource, Region
from edgeferry_runtime.tasks.detect import Box

__all__ = ["Crops", "Cutting", "chosen_boxes", "cut"]


class Cutting(NamedTuple):
    """Which boxes are cut out, and how.

    Attributes:
        classes: labels; none takes all.
        min_score: lowest score, 0 to 1.
        margin: added on each side, as a share of the box's side there, from 0.
        max_crops: so many boxes of a frame at most, the best ones.
        every: one frame in so many.
    """

    classes: tuple[str, ...] = ()
    min_score: float = 0.0
    margin: float = 0.0
    max_crops: int = 5
    every: int = 1


class _Chosen(NamedTuple):
    """A frame, and the boxes to cut out of it, each with its place in its answer."""

    frame: Frame
    boxes: Sequence[tuple[int, Box]]


class Crops(FrameSource, Observer):
    """Observes the first model's loop; is the source of the next one's.

    A crop has the number and the time of the frame it was cut from, and a region that names its box.  From a live
    source the first loop never waits: while the crops of one frame are run, those of the newest frame wait, and
    replace older ones, which are counted as dropped.  So the crops of a frame are run all or not at all.  From
    files the first loop waits.

    Args:
        cutting: which boxes, and how.
        live: of the source of the first loop.
        source: of the first loop, whose outages are this one's; None for none.

    Attributes:
        offered: boxes that were chosen so far: each became a crop that was taken, or was dropped, or skipped (its
            frame is a JPEG that cannot be decoded), or still waits.
        taken: crops that were read.
    """

    name = ""

    def __init__(self, cutting: Cutting, live: bool, source: FrameSource | None = None) -> None:
        self.live = live
        self.offered = self.taken = 0
        self._cutting = cutting
        self._source = source
        self._changed = threading.Condition()
        self._newest: list[_Chosen] = []  # of one frame: more than one where that frame's own crops were looked at
        self._turn = self._number = -1
        self._cut: list[Frame] = []  # of one frame, the next one last
        self._finished = self._closed = False

    @property
    def reopened(self) -> int:  # type: ignore[override]
        return self._source.reopened if self._source else 0

    @property
    def outage(self) -> str:  # type: ignore[override]
        return self._source.outage if self._source else ""

    # In the first loop's thread.

    def saw(self, frame: Frame, result: Result, model: Model) -> None:
        """Choose among the answer's boxes; nothing is cut here."""
        turn = frame.number // self._cutting.every
        if turn != self._turn:
            self._turn, self._number = turn, frame.number
        if frame.number != self._number or self._closed:
            return
        boxes = chosen_boxes(getattr(result.answer, "boxes", ()), self._cutting)
        if not boxes:
            return
        with self._changed:
            while self._newest and not self.live and not self._closed:
                self._changed.wait()
            if self._closed:
                return
            if self._newest and self._newest[0].frame.number != frame.number:
                self._drop_newest()
            self.offered += len(boxes)
            self._newest.append(_Chosen(frame, boxes))
            self._changed.notify_all()

    def finish(self) -> None:
        """The first loop has ended: what waits is the rest."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        """No crop will come any more."""
        return self._closed or (self._finished and not self._newest and not self._cut)

    # In the next loop's thread.

    def wait(self, timeout_s: float) -> bool:
        """Wait until there are crops, or it is over; returns whether that is so, False after the time."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._newest) or self.over, timeout_s)

    def read(self, timeout_s: float | None = None) -> Frame | None:
        """The next crop, best boxes first, or None at the end; ``WAITING`` after the time, from files as well."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self._changed:
                if self._cut:
                    self.taken += 1
                    return self._cut.pop()
                while not self._newest:
                    left = None if deadline is None else deadline - time.monotonic()
                    if self._finished or self._closed:
                        return None
                    if left is not None and left <= 0:
                        return WAITING
                    self._changed.wait(left)
                newest, self._newest = self._newest, []
                self._changed.notify_all()
            crops = [crop for chosen in newest for crop in self._crops_of(chosen)]
            with self._changed:
                self._cut = crops[::-1]

    def _crops_of(self, chosen: _Chosen) -> list[Frame]:
        try:
            picture = _plain(chosen.frame)
        except FrameError:
            self.skipped += len(chosen.boxes)
            return []
        return [cut(picture, index, box, self._cutting.margin) for index, box in chosen.boxes]

    def _drop_newest(self) -> None:
        self.dropped += sum(len(chosen.boxes) for chosen in self._newest)
        self._newest = []

    def close(self) -> None:
        """Let the first loop go on without; harmless twice."""
        with self._changed:
            self._closed = True
            self._drop_newest()
            self.dropped += len(self._cut)
            self._cut = []
            self._changed.notify_all()


def chosen_boxes(boxes: Sequence[Box], cutting: Cutting) -> list[tuple[int, Box]]:
    """The boxes to cut out, best first, each with its place among all; of equal scores the earlier one."""
    wanted = [
        (index, box)
        for index, box in enumerate(boxes)
        if box.score >= cutting.min_score and (not cutting.classes or box.label in cutting.classes)
    ]
    wanted.sort(key=lambda item: -item[1].score)
    return wanted[: cutting.max_crops]


def cut(frame: Frame, index: int, box: Box, margin: float) -> Frame:
    """The part of a frame that a box shows: a view, with every pixel the box touches.

    Args:
        frame: of color "bgr", "rgb" or "gray".
        index: the box's place in its answer.
        box: in pixels of the frame; what lies outside is clipped, and at least one pixel remains.
        margin: see :class:`Cutting`.

    Returns:
        A view; its region is in pixels of the whole frame, also where the frame given is a part itself.
    """
    height, width = frame.pixels.shape[:2]
    left, right = _span(box.x, box.width, margin, width)
    top, bottom = _span(box.y, box.height, margin, height)
    outer = frame.region
    x, y = (outer.x, outer.y) if outer else (0, 0)
    region = Region(index, box.label, box.score, x + left, y + top, right - left, bottom - top, outer)
    return frame._replace(pixels=frame.pixels[top:bottom, left:right], region=region)


def _span(start: float, length: float, margin: float, limit: int) -> tuple[int, int]:
    first = math.floor(start - margin * length)
    last = math.ceil(start + length + margin * length)
    first = min(max(first, 0), limit - 1)
    return first, max(first + 1, min(last, limit))


def _plain(frame: Frame) -> Frame:
    """The frame in a format that parts can be cut out of.

    Raises:
        FrameError: it is a JPEG that cannot be decoded.
    """
    if frame.color in ("bgr", "rgb", "gray"):
        return frame
    return frame._replace(pixels=formats.to_bgr(frame.pixels, frame.color), color="bgr")

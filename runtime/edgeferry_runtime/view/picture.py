"""The live picture: the newest frame with its answer on it, small, encoded once for all who look."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from dataclasses import replace
from typing import Any, Callable, Iterator, Mapping, NamedTuple

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.drawing import draw
from edgeferry_runtime.errors import EdgeferryError
from edgeferry_runtime.pixels import decode_jpeg, frame_size, to_bgr
from edgeferry_runtime.results import Result
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.tasks.base import Answer
from edgeferry_runtime.tasks.detect import Detection
from edgeferry_runtime.tasks.keypoints import Poses
from edgeferry_runtime.view.watching import LaneView, Seen

__all__ = ["Picture", "Pictures", "encode", "shrink"]

_LOG = logging.getLogger("edgeferry")
WIDTH = 640  # pixels at most
FPS = 10.0  # pictures a second at most
QUALITY = 75  # of the JPEG
# At most a fifth of one core goes into pictures: after each, four times as long as it took is left to others.
_REST = 4


class Picture(NamedTuple):
    """One encoded picture: which of its lane's, and a JPEG file."""

    number: int
    data: bytes


class Pictures:
    """Draws and encodes in a thread that sleeps while nobody looks.

    Its priority is the loop's: a thread that waits for a processor while it holds Python's lock may keep the loop
    waiting, too (not seen in measurements, in which a lower priority made no difference).

    All but the thread belongs to the event loop: methods are called there.

    Args:
        lanes: asked anew each time.
    """

    def __init__(self, lanes: Callable[[], Mapping[str, LaneView]]) -> None:
        self._lanes = lanes
        self._latest: dict[str, Picture] = {}
        self._watchers: dict[str, int] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._wanted = threading.Event()
        self._closing = False
        self._loop: Any = None
        self._failing = False

    @contextlib.contextmanager
    def watch(self, lane: str) -> Iterator[None]:
        """Within it the lane's pictures are made."""
        self._start()
        if not self._watchers.get(lane):
            self._latest.pop(lane, None)  # of when somebody looked last
        self._watchers = dict(self._watchers, **{lane: self._watchers.get(lane, 0) + 1})
        self._wanted.set()
        try:
            yield
        finally:
            left = dict(self._watchers)
            left[lane] -= 1
            self._watchers = {name: count for name, count in left.items() if count}

    async def after(self, lane: str, number: int, seconds: float) -> Picture | None:
        """The first picture of a watched lane with another number, None when there is none in time."""
        picture = self._latest.get(lane)
        if picture is not None and picture.number != number:
            return picture
        event = self._changed.setdefault(lane, asyncio.Event())
        try:
            await asyncio.wait_for(event.wait(), seconds)
        except asyncio.TimeoutError:
            return None
        return self._latest.get(lane)

    def close(self) -> None:
        """End the thread; from any thread."""
        self._closing = True
        self._wanted.set()

    def _start(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_event_loop()
            threading.Thread(target=self._run, name="edgeferry-picture", daemon=True).start()

    def _run(self) -> None:
        drawn: dict[str, tuple[Seen, int]] = {}
        while not self._closing:
            watched = self._watchers
            if not watched:
                self._wanted.wait()
                self._wanted.clear()
                continue
            began = time.monotonic()
            for lane in watched:
                self._renew(lane, drawn)
            took = time.monotonic() - began
            time.sleep(max(1 / FPS - took, _REST * took))

    def _renew(self, lane: str, drawn: dict[str, tuple[Seen, int]]) -> None:
        """Make the lane's next picture, unless the last one still holds and somebody has it."""
        view = self._lanes().get(lane)
        seen = view.seen if view is not None else None
        last, number = drawn.get(lane, (None, 0))
        if seen is None or (seen is last and lane in self._latest):
            return
        try:
            picture = Picture(number + 1, encode(seen.frame, seen.result))
        except Exception as error:  # whatever a frame holds, the next one may be drawn
            if not self._failing:
                _LOG.warning("the live picture cannot be drawn: %s", _message(error))
            self._failing = True
            return
        self._failing = False
        drawn[lane] = seen, number + 1
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._publish, lane, picture)

    def _publish(self, lane: str, picture: Picture) -> None:
        if lane not in self._watchers:
            return
        self._latest[lane] = picture
        event = self._changed.pop(lane, None)
        if event is not None:
            event.set()


def encode(frame: Frame, result: Result, width: int = WIDTH) -> bytes:
    """A JPEG of the frame with its answer on it, at most ``width`` pixels wide.

    Raises:
        FrameError: the pixels are no frame.
        DependencyError: OpenCV is absent.
    """
    cv2 = opencv.load("the live picture")
    done, data = cv2.imencode(".jpg", draw(*shrink(frame, result, width)), (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
    if not done:
        raise EdgeferryError("OpenCV cannot encode a picture")
    encoded: bytes = data.tobytes()
    return encoded


def shrink(frame: Frame, result: Result, width: int) -> tuple[Frame, Result]:
    """The frame as BGR and no wider than ``width``, and its result in the new pixels.

    Made small before anything is drawn: texts stay readable, and a large frame costs little.
    """
    whole = frame_size(frame.pixels, frame.color)
    if frame.color == "jpeg":
        reduction = next(r for r in (8, 4, 2, 1) if r == 1 or whole[0] // r >= width)
        pixels = decode_jpeg(frame.pixels, reduction)
    else:
        pixels = to_bgr(frame.pixels, frame.color)
    if pixels.shape[1] > width:
        cv2 = opencv.load("the live picture")
        size = width, max(1, round(whole[1] * width / whole[0]))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    ratios = pixels.shape[1] / whole[0], pixels.shape[0] / whole[1]
    if ratios != (1.0, 1.0):
        result = result._replace(answer=_scaled(result.answer, *ratios))
    return frame._replace(pixels=pixels, color="bgr"), result


def _scaled(answer: Answer, x: float, y: float) -> Answer:
    """The answer for a frame of other sides; masks fit any."""
    scale = _SCALED.get(type(answer))
    return scale(answer, x, y) if scale is not None else answer


def _scale_boxes(answer: Detection, x: float, y: float) -> Answer:
    boxes = (
        replace(box, x=box.x * x, y=box.y * y, width=box.width * x, height=box.height * y) for box in answer.boxes
    )
    return replace(answer, boxes=tuple(boxes))


def _scale_poses(answer: Poses, x: float, y: float) -> Answer:
    poses = (
        replace(pose, keypoints=tuple(replace(point, x=point.x * x, y=point.y * y) for point in pose.keypoints))
        for pose in answer.poses
    )
    return replace(answer, poses=tuple(poses))


_SCALED: dict[type, Callable[[Any, float, float], Answer]] = {Detection: _scale_boxes, Poses: _scale_poses}


def _message(error: Exception) -> str:
    return error.message if isinstance(error, EdgeferryError) else repr(error)

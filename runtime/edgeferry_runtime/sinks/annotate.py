"""Frames with their answer drawn on them, as numbered JPEG files: all of them, or one in N."""

from __future__ import annotations

import os
import re

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import SinkError, UsageError
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks.base import Sink
from edgeferry_runtime.sources.base import Frame

__all__ = ["AnnotateSink", "draw"]


class AnnotateSink(Sink):
    """Writes FOLDER/frame-000000.jpg and so on.

    Args:
        where: "FOLDER", or "FOLDER?every=30" for one frame in thirty (an SD card lasts longer so).

    Raises:
        UsageError: the part behind "?" is malformed.
        SinkError: the folder cannot be made.
    """

    def __init__(self, where: str) -> None:
        folder, _, option = where.partition("?")
        match = re.match(r"every=([1-9]\d{0,8})\Z", option)
        if option and not match:
            raise UsageError(
                "annotate:{}: {!r} is no option".format(where, option), "Write annotate:FOLDER?every=30."
            )
        opencv.load("annotating frames")
        self._folder = folder
        self._every = int(match.group(1)) if match else 1
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise SinkError(
                "{}: cannot be made: {}".format(folder, error.strerror), "Choose another folder."
            ) from None

    def write(self, frame: Frame, result: Result) -> None:
        if frame.number % self._every:
            return
        path = os.path.join(self._folder, "frame-{:06d}.jpg".format(frame.number))
        ok, data = opencv.load("annotating frames").imencode(".jpg", draw(frame, result))
        try:
            if not ok:
                raise OSError("OpenCV cannot encode it")
            with open(path, "wb") as file:
                file.write(data.tobytes())
        except OSError as error:
            raise SinkError("{}: cannot be written: {}".format(path, error.strerror or error)) from None


def draw(frame: Frame, result: Result) -> np.ndarray:
    """A BGR copy of the frame with label, score, frame number, age and bundle on it.

    Returns:
        uint8 [height, width, 3].
    """
    cv2 = opencv.load("annotating frames")
    picture = frame.pixels
    if frame.color != "bgr":
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR if frame.color == "rgb" else cv2.COLOR_GRAY2BGR)
    else:
        picture = picture.copy()
    headline = result.answer.headline()
    footer = "#{} {:.1f} ms {}".format(frame.number, result.age_us / 1000, result.bundle)
    height = picture.shape[0]
    font, thickness, margin = cv2.FONT_HERSHEY_SIMPLEX, max(1, height // 240), max(2, height // 60)
    for text, scale in ((headline, height / 300), (footer, height / 600)):
        (width, tall), below = cv2.getTextSize(text, font, scale, thickness)
        box = tall + below + 2 * margin
        y = 0 if text is headline else height - box
        # A filled ground keeps it readable on any picture.
        cv2.rectangle(picture, (0, y), (width + 2 * margin, y + box), (0, 0, 0), cv2.FILLED)
        cv2.putText(picture, text, (margin, y + margin + tall), font, scale, (80, 255, 80), thickness, cv2.LINE_AA)
    return picture

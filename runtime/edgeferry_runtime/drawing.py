"""Drawing: a frame with its answer on it, for people to look at."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.pixels import to_bgr
from edgeferry_runtime.results import Result
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.tasks.base import Answer
from edgeferry_runtime.tasks.detect import Box, Detection
from edgeferry_runtime.tasks.keypoints import COCO, Pose, Poses
from edgeferry_runtime.tasks.segment import Segmentation

__all__ = ["PALETTE", "SKELETON", "draw"]

# BGR, by class index modulo 7: Okabe and Ito's colours without black, which people of every colour vision tell
# apart.  Source: M. Okabe, K. Ito, Color Universal Design (2002); B. Wong, Nature Methods 8, 441 (2011).
PALETTE = (
    (0, 159, 230),  # orange
    (233, 180, 86),  # sky blue
    (115, 158, 0),  # bluish green
    (66, 228, 240),  # yellow
    (178, 114, 0),  # blue
    (0, 94, 213),  # vermilion
    (167, 121, 204),  # reddish purple
)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
# Pairs of COCO's keypoints that a line joins.  Source: KEYPOINT_EDGE_INDS_TO_COLOR in TensorFlow Hub's MoveNet
# tutorial (tensorflow/hub, examples/colab/movenet.ipynb).
SKELETON = (
    (0, 1), (0, 2), (1, 3), (2, 4), (0, 5), (0, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 6), (5, 11), (6, 12),
    (11, 12), (11, 13), (13, 15), (12, 14), (14, 16),
)  # fmt: skip
MASK_OPACITY = 0.45
FAR = 1 << 16
HEADLINE = 1.4  # its size, as a multiple of other texts
LABEL_SHARE = 0.6  # of the picture's width that the label of a box may take


class _Place(NamedTuple):
    """A rectangle in whole pixels."""

    left: int
    top: int
    width: int
    height: int

    def meets(self, other: _Place) -> bool:
        return (
            self.left < other.left + other.width
            and other.left < self.left + self.width
            and self.top < other.top + other.height
            and other.top < self.top + self.height
        )


class _Canvas:
    """A picture, how large its texts and lines are, and where texts are already."""

    def __init__(self, picture: np.ndarray) -> None:
        self.cv2 = opencv.load("annotating frames")
        self.picture = picture
        self.height, self.width = picture.shape[:2]
        side = (self.width * self.height) ** 0.5
        self.scale = max(0.36, side / 1200)  # below it OpenCV's letters cannot be read
        self.line = max(1, round(side / 400))
        self.taken: list[_Place] = []

    def size(self, text: str, zoom: float = 1.0) -> tuple[int, int]:
        """(width, height) of a text with the ground around it, in pixels; the height is every text's."""
        return self._measure(text, zoom)[0] + 2 * self._margin, self._letters(zoom) + 3 * self._margin

    def fitting(self, text: str, width: int, zoom: float = 1.0, tail: str = "") -> str:
        """Text and tail, with two dots for the end of a text that would make them wider than ``width`` pixels."""
        if self.size(text + tail, zoom)[0] <= width:
            return text + tail
        text = text[:width]  # no letter is narrower than a pixel
        while text and self.size(text + ".." + tail, zoom)[0] > width:
            text = text[:-1]
        return text + ".." + tail

    def text(self, text: str, place: _Place, ground: tuple[int, int, int], zoom: float = 1.0) -> None:
        """A text on a filled ground, which keeps it readable on any picture."""
        self.taken.append(place)
        corners = (place.left, place.top), (place.left + place.width - 1, place.top + place.height - 1)
        self.cv2.rectangle(self.picture, *corners, ground, self.cv2.FILLED)
        blue, green, red = ground
        color = BLACK if 0.114 * blue + 0.587 * green + 0.299 * red > 110 else WHITE  # by luma, ITU-R BT.601
        start = place.left + self._margin, place.top + self._margin + self._letters(zoom)
        self.cv2.putText(self.picture, text, start, *self._font(zoom), color, self._pen(zoom), self.cv2.LINE_AA)

    def _measure(self, text: str, zoom: float) -> tuple[int, int]:
        (width, height), _ = self.cv2.getTextSize(text, *self._font(zoom), self._pen(zoom))
        return width, height

    def _letters(self, zoom: float) -> int:
        """Height of capital letters, in pixels."""
        return self._measure("H", zoom)[1]

    def _font(self, zoom: float) -> tuple[int, float]:
        return self.cv2.FONT_HERSHEY_SIMPLEX, zoom * self.scale

    def _pen(self, zoom: float) -> int:
        return max(1, round(1.8 * zoom * self.scale))

    @property
    def _margin(self) -> int:
        return max(2, round(6 * self.scale))


def draw(frame: Frame, result: Result) -> np.ndarray:
    """A copy of the frame with its answer, frame number, age and bundle on it.

    Boxes with label and score; masks as translucent colours with each class's share; keypoints, joined where
    they are COCO's; of all other tasks the answer's headline.

    Returns:
        uint8 [height, width, 3], BGR.

    Raises:
        FrameError: the frame's pixels are not what its format says.
        DependencyError: OpenCV is absent.
    """
    canvas = _Canvas(np.array(to_bgr(frame.pixels, frame.color), order="C"))
    shapes, texts = _DRAWERS.get(type(result.answer), (None, _write_headline))
    if shapes is not None:
        shapes(canvas, result.answer)
    footer = "#{} {:.1f} ms {}".format(frame.number, result.age_us / 1000, result.bundle)
    footer = canvas.fitting(footer, canvas.width)
    width, height = canvas.size(footer)
    canvas.text(footer, _Place(0, canvas.height - height, width, height), BLACK)
    texts(canvas, result.answer)
    return canvas.picture


def _write_headline(canvas: _Canvas, answer: Answer) -> None:
    text = canvas.fitting(answer.headline(), canvas.width, HEADLINE)
    canvas.text(text, _Place(0, 0, *canvas.size(text, HEADLINE)), BLACK, HEADLINE)


def _draw_boxes(canvas: _Canvas, answer: Detection) -> None:
    for box in reversed(answer.boxes):  # the best lie on top
        left, top, right, bottom = _edges(box)
        canvas.cv2.rectangle(canvas.picture, (left, top), (right, bottom), _color(box.index), canvas.line)


def _write_labels(canvas: _Canvas, answer: Detection) -> None:
    _write_headline(canvas, answer)
    for box in answer.boxes:
        text, score = box.label or str(box.index), " {:.0%}".format(box.score)
        text = canvas.fitting(text, round(canvas.width * LABEL_SHARE), tail=score)
        canvas.text(text, _place_label(canvas, box, *canvas.size(text)), _color(box.index))


def _place_label(canvas: _Canvas, box: Box, width: int, height: int) -> _Place:
    """Above the box, or in it, or below it, or further down: the first where no other text is."""
    left, top, _, bottom = _edges(box)
    left = max(0, min(left, canvas.width - width))
    lowest = max(0, canvas.height - height)
    tops = [min(max(0, y), lowest) for y in (top - height, top, bottom - height, bottom)]
    tops += range(tops[1], lowest, height)
    places = [_Place(left, y, width, height) for y in tops]
    return next((p for p in places if not any(p.meets(other) for other in canvas.taken)), places[0])


def _edges(box: Box) -> tuple[int, int, int, int]:
    return _pixel(box.x), _pixel(box.y), _pixel(box.x + box.width), _pixel(box.y + box.height)


def _pixel(position: float) -> int:
    """The nearest pixel, or one far outside: OpenCV takes no larger numbers, and an answer may hold any."""
    return round(max(-FAR, min(FAR, position)))


def _color(index: int) -> tuple[int, int, int]:
    return PALETTE[index % len(PALETTE)]


def _draw_mask(canvas: _Canvas, answer: Segmentation) -> None:
    mask = answer.mask_for_frame(canvas.width, canvas.height)
    seen = mask != answer.outside
    colors = np.array(PALETTE, np.uint8)[mask % len(PALETTE)]
    mixed = canvas.cv2.addWeighted(canvas.picture, 1 - MASK_OPACITY, colors, MASK_OPACITY, 0)
    canvas.picture[seen] = mixed[seen]


def _write_legend(canvas: _Canvas, answer: Segmentation) -> None:
    """A line a class, largest first, as many as there is room for above the footer."""
    top, room = 0, canvas.height - canvas.taken[0].height
    for area in answer.areas:
        share = " {:.0%}".format(area.share)
        text = canvas.fitting(area.label or str(area.index), canvas.width, tail=share)
        width, height = canvas.size(text)
        if top + height > room:
            break
        canvas.text(text, _Place(0, top, width, height), _color(area.index))
        top += height


def _draw_poses(canvas: _Canvas, answer: Poses) -> None:
    cv2, line = canvas.cv2, canvas.line
    for number, pose in reversed(list(enumerate(answer.poses))):
        color = _color(number)
        points = {point.index: (_pixel(point.x), _pixel(point.y)) for point in pose.keypoints}
        for first, second in SKELETON if _is_coco(pose) else ():
            if first in points and second in points:
                cv2.line(canvas.picture, points[first], points[second], color, line, cv2.LINE_AA)
        for point in points.values():
            for radius, fill in ((2 * line + 1, BLACK), (2 * line, color)):
                cv2.circle(canvas.picture, point, radius, fill, cv2.FILLED, cv2.LINE_AA)


def _is_coco(pose: Pose) -> bool:
    return all(p.index < len(COCO) and p.label == COCO[p.index] for p in pose.keypoints)


# What is drawn below all texts, and the texts, by the type of answer.
_DRAWERS: dict[type, tuple[Callable[[_Canvas, Any], None], Callable[[_Canvas, Any], None]]] = {
    Detection: (_draw_boxes, _write_labels),
    Poses: (_draw_poses, _write_headline),
    Segmentation: (_draw_mask, _write_legend),
}

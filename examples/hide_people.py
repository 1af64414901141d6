"""A copy of a video in which the people that are found are a few large squares each.

python examples/hide_people.py detector.ferry street.mp4 hidden.avi person
"""

from __future__ import annotations

import signal
import sys
from math import ceil

import cv2
from edgeferry_runtime import Pipeline
from edgeferry_runtime.pixels import to_bgr


def main(bundle: str, source: str, video: str, label: str = "person") -> None:
    writer = cv2.VideoWriter()
    with Pipeline.open(source, bundle) as pipeline:
        signal.signal(signal.SIGINT, lambda *_: pipeline.stop())  # Ctrl-C leaves a whole file
        for frame, result in pipeline:
            picture = to_bgr(frame.pixels, frame.color).copy()  # a frame is not ours to write into
            for box in result.answer.boxes:
                if box.label == label:
                    part = picture[int(box.y) : ceil(box.y + box.height), int(box.x) : ceil(box.x + box.width)]
                    size = part.shape[1], part.shape[0]
                    part[:] = cv2.resize(cv2.resize(part, (4, 4)), size, interpolation=cv2.INTER_NEAREST)
            if not writer.isOpened():
                writer.open(video, cv2.VideoWriter_fourcc(*"MJPG"), 25, (picture.shape[1], picture.shape[0]))
            writer.write(picture)
    writer.release()


if __name__ == "__main__":
    main(*sys.argv[1:])

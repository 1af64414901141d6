"""Every box that is found, cut out of its frame and saved: pictures to label, or to look at.

python examples/crop_detections.py detector.ferry /dev/video0 crops
"""

from __future__ import annotations

import sys
from math import ceil
from pathlib import Path

import cv2
from edgeferry_runtime import Pipeline
from edgeferry_runtime.pixels import to_bgr


def main(bundle: str, source: str, folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    with Pipeline.open(source, bundle) as pipeline:
        for frame, result in pipeline:
            picture = to_bgr(frame.pixels, frame.color)  # many cameras send JPEG, or YUV
            for number, box in enumerate(result.answer.boxes):
                part = picture[int(box.y) : ceil(box.y + box.height), int(box.x) : ceil(box.x + box.width)]
                path = Path(folder) / f"{frame.number:06}-{number}.jpg"
                cv2.imwrite(str(path), part)
                print(f"{path}  {box.label or box.index} {box.score:.0%}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Two models, one after the other: a detector finds boxes, a classifier says what is in each.

python examples/two_models.py detector.ferry classifier.ferry /dev/video0
"""

from __future__ import annotations

import sys
from math import ceil

from edgeferry_runtime import Model, Pipeline
from edgeferry_runtime.pixels import to_bgr


def main(detector: str, classifier: str, source: str) -> None:
    with Pipeline.open(source, detector) as pipeline, Model.open(classifier) as classify:
        for frame, result in pipeline:
            picture = to_bgr(frame.pixels, frame.color)
            for box in result.answer.boxes:
                part = picture[int(box.y) : ceil(box.y + box.height), int(box.x) : ceil(box.x + box.width)]
                print(f"{frame.number:6}  {box.label or box.index} at {box.x:.0f},{box.y:.0f}: ", end="")
                print(classify(part).headline())


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A camera (or a video, or a folder) to one line a frame, with the frame's age.

python examples/watch_source.py digits.ferry /dev/video0
"""

from __future__ import annotations

import sys
import time

from edgeferry_runtime.model import Model
from edgeferry_runtime.sources import open_source


def main(bundle: str, uri: str) -> None:
    with Model.open(bundle) as model, open_source(uri) as source:
        while (frame := source.read()) is not None:
            answer = model(frame.pixels, frame.color)
            age_ms = (time.monotonic_ns() - frame.captured_ns) / 1e6
            best = answer.classes[0] if answer.classes else None
            print(f"{frame.number:6} {age_ms:7.2f} ms  {best.label if best else '-'}")


if __name__ == "__main__":
    main(*sys.argv[1:])

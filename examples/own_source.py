"""A source of one's own: the frames of a numpy file, uint8 [frames, height, width, 3], RGB.

python examples/own_source.py digits.ferry frames.npy
"""

from __future__ import annotations

import sys
import time

import numpy as np
from edgeferry_runtime import Pipeline
from edgeferry_runtime.sources import Frame, FrameSource


class ArraySource(FrameSource):
    def __init__(self, path: str) -> None:
        self._frames = enumerate(np.load(path, mmap_mode="r"))  # read as they are asked for

    def read(self, timeout_s: float | None = None) -> Frame | None:
        number, pixels = next(self._frames, (0, None))
        return None if pixels is None else Frame(pixels, "rgb", number, time.monotonic_ns())


def main(bundle: str, path: str) -> None:
    with Pipeline.open(ArraySource(path), bundle) as pipeline:
        for frame, result in pipeline:
            print(f"{frame.number:6}  {result.answer.headline()}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Whether the loop's memory grows: 100,000 frames through it, and the slope of the resident set.

make bench-runtime_soak
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from edgeferry_runtime.bundle import write_bundle
from edgeferry_runtime.model import Model
from edgeferry_runtime.pipeline import Pipeline
from edgeferry_runtime.sinks import open_sink
from edgeferry_runtime.sources.base import Frame, FrameSource
from table import Row, report

TESTS = Path(__file__).resolve().parent.parent / "tests"
FRAMES = 100_000
GOAL = 1.0  # MB
EVERY = 250
WARM = 0.2  # share of the run that the fit leaves out
PAGE = os.sysconf("SC_PAGE_SIZE")


class Fresh(FrameSource):
    """A new array for each frame, as a camera gives them."""

    def __init__(self, width: int, height: int) -> None:
        self._picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        self._number = -1

    def read(self, timeout_s: float | None = None) -> Frame:
        self._number += 1
        return Frame(self._picture.copy(), "bgr", self._number, time.monotonic_ns())


def resident() -> float:
    """MB of memory this process holds."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * PAGE / 1e6


def slope(samples: list[tuple[int, float]]) -> float:
    """MB a 100,000 frames, by least squares over what follows the warm-up."""
    frames, megabytes = np.array(samples[int(WARM * len(samples)) :]).T
    return float(np.polyfit(frames, megabytes, 1)[0] * FRAMES)


def soak(bundle: Path, lines: Path, pipelined: bool) -> list[tuple[int, float]]:
    samples = []
    with Model.open(str(bundle), threads=1) as model, open_sink(f"jsonl:{lines}") as sink:
        pipeline = Pipeline(Fresh(320, 240), model, [sink], FRAMES, pipelined=pipelined)
        for count, _ in enumerate(pipeline):
            if count % EVERY == 0:
                samples.append((count, resident()))
    print(pipeline.summary().to_text(), file=sys.stderr)
    return samples


def main() -> None:
    sys.path.insert(0, str(TESTS))
    from conftest import tiny_contents

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "tiny.ferry"
        write_bundle(bundle, *tiny_contents())  # a real model would spend the time in invoke, which cannot leak
        for shape in ("pipelined", "sequential"):
            lines = Path(folder) / f"{shape}.jsonl"
            samples = soak(bundle, lines, shape == "pipelined")
            rows.append(Row(f"{shape}: resident set, MB a 100,000 frames", [slope(samples)], "MB", GOAL, "lower"))
            rows.append(Row(f"{shape}: resident set at the end", [samples[-1][1]], "MB", None, "lower"))
    report("runtime_soak", rows)


if __name__ == "__main__":
    main()

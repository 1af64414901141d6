"""What the loop costs beside invoke: CPU time of frames through a Pipeline against that of as many bare invokes.

python bench/runtime_overhead.py MATERIAL ROUNDS       samples as JSON
python bench/runtime_overhead.py MATERIAL ROUNDS CASE  where the time goes in one case, for people

CPU time of the process, so that work in every thread counts, Python's and OpenCV's.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import sys
import threading
import time
from pathlib import Path

import numpy as np
from edgeferry_runtime.model import Model
from edgeferry_runtime.pipeline import Pipeline
from edgeferry_runtime.sinks import open_sink
from edgeferry_runtime.sources.base import Frame, FrameSource
from runtime_material import Material, scenes

FRAMES = 200
LEAD_IN = 20  # first results: the loop finds its shape, threads start, pages are touched
CASES = {  # name: (bundle, width, height, colour order of the source, sinks)
    "720p": ("letterbox", 1280, 720, "bgr", []),
    "720p-fast": ("letterbox-fast", 1280, 720, "bgr", []),
    "ready": ("letterbox", 224, 224, "bgr", []),
    "ready-rgb": ("letterbox", 224, 224, "rgb", []),
    "1080p": ("letterbox", 1920, 1080, "bgr", []),
    "720p-jsonl": ("letterbox", 1280, 720, "bgr", [f"jsonl:{os.devnull}"]),
}


class Still(FrameSource):
    """The same picture again and again, at no cost."""

    def __init__(self, pixels: np.ndarray, color: str) -> None:
        self._pixels, self._color, self._number = pixels, color, -1

    def read(self, timeout_s: float | None = None) -> Frame:
        self._number += 1
        return Frame(self._pixels, self._color, self._number, time.monotonic_ns())


class Case:
    """One kind of frame, on an interpreter of its own."""

    def __init__(self, material: Material, name: str) -> None:
        bundle, width, height, self.color, sinks = CASES[name]
        self.model = Model.open(str(material.bundle(bundle)), threads=1)
        self.sinks = [open_sink(uri) for uri in sinks]
        self.pixels = next(scenes(width, height))

    def pipeline(self) -> Pipeline:
        return Pipeline(Still(self.pixels, self.color), self.model, self.sinks, LEAD_IN + FRAMES)

    def loop(self) -> float:
        """CPU seconds a frame from one result to a later one: start and end of the loop do not count."""
        results = iter(self.pipeline())
        for _ in range(LEAD_IN):
            next(results)
        started = time.process_time()  # only here: it costs microseconds itself
        for _ in range(FRAMES):
            next(results)
        seconds = time.process_time() - started
        results.close()
        return seconds / FRAMES

    def bare(self) -> float:
        invoke = self.model.interpreter.invoke
        started = time.process_time()
        for _ in range(FRAMES):
            invoke()
        return (time.process_time() - started) / FRAMES


def measure(material: Material, rounds: int) -> dict[str, list[float]]:
    """Bare, loop, bare for each case in turn: what the machine does to the loop, it does to its neighbours."""
    cases = {name: Case(material, name) for name in CASES}
    samples: dict[str, list[float]] = {name: [] for name in CASES}
    for number in range(rounds + 1):
        for name, case in cases.items():
            before, loop, after = case.bare(), case.loop(), case.bare()
            if number:  # the first round warms up
                samples[name].append(2 * loop / (before + after) - 1)
    return samples


def explain(case: Case) -> None:
    """The stages as the loop itself times them, and a profile of all its threads."""
    print(case.pipeline().run().to_text())
    profiles: list[cProfile.Profile] = []

    def start(*_: object) -> None:
        profiles.append(cProfile.Profile())  # takes this function's place in the thread that just began
        profiles[-1].enable()

    threading.setprofile(start)
    start()
    case.loop()
    profiles[0].disable()
    threading.setprofile(None)
    pstats.Stats(*profiles).sort_stats("tottime").print_stats(15)


def main() -> None:
    material, rounds, names = Material(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3:]
    for name in names:
        explain(Case(material, name))
    if not names:
        print(json.dumps(measure(material, rounds)))


if __name__ == "__main__":
    main()

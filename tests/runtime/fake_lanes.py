"""Sources, sinks and a detector whose frames, results and boxes a test decides.

Load it by its path: tests/ is no package.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
from edgeferry_runtime import Model
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks.base import Sink
from edgeferry_runtime.sources.base import WAITING, Frame, FrameSource
from edgeferry_runtime.tasks.classify import Classification, ClassScore
from edgeferry_runtime.tasks.detect import Box, Detection


def pictures(count, size=(20, 30), color="bgr"):
    """Frames of noise, no two alike."""
    random = np.random.default_rng(1)
    shape = size if color == "gray" else (*size, 3)
    return [Frame(random.integers(0, 256, shape, dtype=np.uint8), color, i, 0) for i in range(count)]


class Given(FrameSource):
    """Frames of a list; an exception in the list is raised in its place.

    A live one gives a frame each time it is released, or each ``period_s``; ``asked`` counts its reads.
    """

    encoded = True

    def __init__(self, items, live=False, period_s=None):
        self.items = list(items)
        self.live = live
        self.asked = 0
        self.closed = False
        self._period_s = period_s
        self._released = threading.Semaphore(0)

    def release(self, count=1):
        for _ in range(count):
            self._released.release()

    def _read(self, timeout_s):
        self.asked += 1
        if self.live and self._period_s is None and not self._released.acquire(timeout=timeout_s):
            return WAITING
        if not self.items:
            return None
        if self.live and self._period_s:
            time.sleep(self._period_s)
        item = self.items.pop(0)
        if isinstance(item, Exception):
            raise item
        return item._replace(captured_ns=time.monotonic_ns())

    def close(self):
        self.closed = True


class Kept(Sink):
    """Keeps what it is given; may fail."""

    def __init__(self, uri="kept:", failing=lambda number: False, wants_pixels=False):
        self.uri = uri
        self.results = []
        self.closed = False
        self.failing, self.wants_pixels = failing, wants_pixels

    def write(self, frame, result):
        if self.failing(result.frame):
            raise OSError("no room")
        self.results.append(result)

    @property
    def numbers(self):
        return [result.frame for result in self.results]

    def close(self):
        self.closed = True


def box(score=0.9, x=2, y=3, width=10, height=8, label="cat", index=0):
    return Box(index, label, score, x, y, width, height)


def result(number, answer=None, region=None, bundle="a-1", **more):
    """A result of a frame, as a pipeline makes it."""
    answer = answer or Classification((ClassScore(0, "alpha", 0.5),))
    stages = (1.0, 0, 1.0, 1.0, 2.0, 1.0)
    made = Result(number, "", bundle, "int8", "fake 1", time.monotonic_ns(), 0.0, 5.0, stages, 0, answer)
    return made._replace(region=region, **more)


def open_detector(bundle, boxes_of=lambda: ()):
    """The tiny model, which says of every frame that these boxes were in it."""
    model = Model.open(bundle, threads=1)
    declared = replace(model.bundle.manifest.postprocessing, task="detect", labels="")
    model.bundle.manifest = replace(model.bundle.manifest, postprocessing=declared)
    model._task = lambda outputs, placement, size: Detection(tuple(boxes_of()))
    return model


def wait_until(condition, timeout_s=30.0):
    """Wait for another thread, but not for ever; returns whether it came true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True

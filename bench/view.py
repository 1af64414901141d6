"""What the live page costs inference: results a second with nobody, and with two viewers looking, in turns.

make bench-view    or bench/view.py --quick for a first look

The viewers are a process of their own at a low priority, as two browsers are on another machine: each reads the
pictures and asks for state, history and results once a second.  What they need of this machine's processors is not
the page's cost; on two cores it still takes some.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from edgeferry_runtime.model import Model
from edgeferry_runtime.pipeline import Pipeline
from edgeferry_runtime.runner import Runner
from edgeferry_runtime.sources import open_source
from edgeferry_runtime.view.server import View
from edgeferry_runtime.view_config import ViewConfig
from runtime_material import Material, material
from table import Row, report

VIEWERS = 2
GOAL = 0.95  # of the throughput without a viewer
SECONDS = 2.0  # a measurement
SETTLE = 0.5  # after viewers came or went
CASES = {  # source: what it is, and its bundle
    "video": ("720p MJPEG video", "stretch"),
    "synthetic:1280x720": ("raw 720p", "letterbox"),
    "synthetic:224x224": ("224x224", "letterbox"),
}


def look(host: str, port: str, seconds: str) -> None:
    """One viewer: what page.js does, without drawing it."""
    if hasattr(os, "nice"):
        os.nice(10)
    stream = http.client.HTTPConnection(host, int(port), timeout=30)
    stream.request("GET", "/stream.mjpg")
    picture, asked = stream.getresponse(), http.client.HTTPConnection(host, int(port), timeout=30)
    ends, next_at, read, since = time.monotonic() + float(seconds), 0.0, 0, 0.0
    while time.monotonic() < ends:
        read += picture.read1(1 << 16).count(b"content-type: image/jpeg")
        if time.monotonic() >= next_at:
            next_at = time.monotonic() + 1
            for path in ("/api/state", "/api/results?lane=", f"/api/history?lane=&since={since}"):
                asked.request("GET", path)
                said = asked.getresponse().read()
            since = max([row[0] for row in json.loads(said)["lanes"][""]], default=since)
    print(json.dumps({"pictures": read / float(seconds)}))


class Shown:
    """A loop with the page on it, run from here: the figures are of its own results."""

    def __init__(self, source: str, bundle: Path) -> None:
        self.view = View(ViewConfig(listen="127.0.0.1:0"))
        self.model = Model.open(str(bundle), threads=1)
        self.source = open_source(source, want=self.model.frame_size, encoded=True)
        lane = self.view.lane("")
        self.pipeline = Pipeline(self.source, self.model, observers=[lane])
        self.runner = Runner({"": self.pipeline}, [lane])
        self.runner.ready = True
        self.view.start(self.runner)
        self.results: Iterator = iter(self.pipeline)
        self.seen: list[float] = []  # pictures a second, by each viewer
        self._ticked = time.monotonic()

    def fps(self, seconds: float) -> tuple[float, float]:
        """Results a second, and CPU seconds of this process a result, the page's threads included."""
        frames, cpu, began = 0, time.process_time(), time.monotonic()
        while time.monotonic() - began < seconds:
            next(self.results)
            frames += 1
            if time.monotonic() - self._ticked >= 1:  # the state thread's part
                self._ticked = time.monotonic()
                self.runner.tick()
        took = time.monotonic() - began
        return frames / took, (time.process_time() - cpu) / frames

    def with_viewers(self, seconds: float) -> tuple[float, float]:
        host, port = self.view.address
        words = [sys.executable, __file__, "--look", host, str(port), str(seconds + 2 * SETTLE + 1)]
        viewers = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(VIEWERS)]
        while self.view._app.streams < VIEWERS:
            next(self.results)
        self.fps(SETTLE)
        measured = self.fps(seconds)
        for viewer in viewers:
            while viewer.poll() is None:
                next(self.results)
            said, _ = viewer.communicate()
            self.seen.append(json.loads(said)["pictures"])
        return measured

    def close(self) -> None:
        self.results.close()
        self.view.close()
        self.source.close()
        self.model.close()


def measure(source: str, what: str, bundle: Path, rounds: int) -> list[Row]:
    shown = Shown(source, bundle)
    kept, alone, watched, costs = [], [], [], []
    try:
        shown.fps(SETTLE)
        for _ in range(rounds):
            before, with_viewers, after = shown.fps(SECONDS), shown.with_viewers(SECONDS), shown.fps(SECONDS)
            middle = statistics.mean((before[0], after[0]))
            kept.append(with_viewers[0] / middle)
            alone.append(middle)
            watched.append(with_viewers[0])
            costs.append(with_viewers[1] / statistics.mean((before[1], after[1])))
    finally:
        shown.close()
    return [
        Row(f"{what}, results/s: {VIEWERS} viewers / nobody", kept, "ratio", GOAL, "higher"),
        Row(f"{what}: nobody looks", alone, "results/s", None, "higher"),
        Row(f"{what}: {VIEWERS} viewers", watched, "results/s", None, "higher"),
        Row(f"{what}: pictures/s that a viewer sees", shown.seen, "pictures/s", None, "higher"),
        Row(f"{what}, CPU a result, page included: {VIEWERS} viewers / nobody", costs, "ratio", None, "lower"),
    ]


def endless(material: Material) -> str:
    return f"{material.video}?loop=1"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--look", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.look:
        look(*arguments.look)
        return
    made = material()
    rows: list[Row] = []
    for source, (what, bundle) in CASES.items():
        uri = endless(made) if source == "video" else source
        rows += measure(uri, what, made.bundle(bundle), 3 if arguments.quick else 9)
    report("view", rows)


if __name__ == "__main__":
    main()

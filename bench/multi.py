"""Several models, another version in service, and what looks on: rates, memory, gaps, costs.

make bench-multi    or bench/multi.py --quick for a first look

All rates are of int8 MobileNetV2 with one interpreter thread, ratios from runs that take turns.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from edgeferry_runtime.candidate import Candidate
from edgeferry_runtime.candidate_config import CandidateConfig
from edgeferry_runtime.check import check_in_child
from edgeferry_runtime.drift import Drift
from edgeferry_runtime.drift_config import DriftConfig
from edgeferry_runtime.model import Model
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.opening import Choices, open_model
from edgeferry_runtime.pipeline import Pipeline
from edgeferry_runtime.recorder import Recorder
from edgeferry_runtime.recorder_config import RecorderConfig
from edgeferry_runtime.registry import Registry
from edgeferry_runtime.remote import open_remote_model
from edgeferry_runtime.roster import Roster
from edgeferry_runtime.sources import open_source
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.tuning import Repeated
from edgeferry_runtime.versions import Versions
from runtime_material import Material, material
from table import Row, report

MODELS = (1, 2, 4)
PERIOD_MS = 1000 / 30
SOUND = {"ok": True}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rounds, seconds = (1, 0.5) if quick else (4, 1.0)
    made = material()
    rows = [*rates(made, rounds, seconds), *memory(made), *loading(made, rounds)]
    rows += swap_gaps(made, 3 if quick else 12)
    rows += costs(made, rounds, seconds)
    report("multi", rows)


def rates(made: Material, rounds: int, seconds: float) -> Iterator[Row]:
    """Results a second of all models together, against the same models one after the other in one thread."""
    choices = Choices(str(made.bundle("stretch")), threads=1)
    openers: dict[str, Callable[[Choices], Model]] = {"threads": open_model, "workers": open_remote_model}
    frame = a_frame("synthetic:1280x720")
    for count in MODELS:
        with ExitStack() as stack:
            here = [stack.enter_context(open_model(choices)) for _ in range(count)]
            placed = {
                place: [stack.enter_context(opener(choices)) for _ in range(count)]
                for place, opener in openers.items()
            }
            found: dict[str, list[float]] = {place: [] for place in placed}
            for _ in range(rounds):
                base = in_turn(here, frame, seconds)
                for place, models in placed.items():
                    found[place].append(together(models, frame, seconds) / base)
        for place, samples in found.items():
            name = f"{count} model{'s' * (count > 1)} as {place}: results/s against one after the other"
            yield Row(name, samples, "times", None, "higher")


def a_frame(uri: str) -> Frame:
    with open_source(uri) as source:
        frame = source.read()
    assert frame is not None
    return frame


def in_turn(models: list[Model], frame: Frame, seconds: float) -> float:
    """Results a second of the plain loop anybody would write."""
    count, began = 0, time.monotonic()
    while time.monotonic() - began < seconds:
        for model in models:
            model(frame.pixels, frame.color)
            count += 1
    return count / (time.monotonic() - began)


def together(models: list[Model], frame: Frame, seconds: float) -> float:
    """Results a second of a loop a model, all at once."""
    pipelines = [Pipeline(Repeated(frame), model, pipelined=len(models) == 1) for model in models]
    threads = [threading.Thread(target=pipeline.run) for pipeline in pipelines]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    before, began = [p.tally.frames for p in pipelines], time.monotonic()
    time.sleep(seconds)
    done = sum(p.tally.frames for p in pipelines) - sum(before)
    taken = time.monotonic() - began
    for pipeline in pipelines:
        pipeline.stop()
    for thread in threads:
        thread.join()
    return done / taken


def memory(made: Material) -> Iterator[Row]:
    """MiB a model holds, each loaded alone."""
    choices = Choices(str(made.bundle("stretch")), threads=1)
    for place, opener in (("thread", open_model), ("worker", open_remote_model)):
        registry = Registry()
        for i in range(4):
            registry.add(str(i), lambda opener=opener: opener(choices))
        registry.measure_all()
        held = [model["held_mb"] for model in registry.state()["models"].values()]
        registry.close()
        yield Row(f"memory of a model as {place}", held[1:], "MiB", None, "lower")


def loading(made: Material, rounds: int) -> Iterator[Row]:
    """Four models at once against one by one."""
    choices = Choices(str(made.bundle("stretch")), threads=1)
    for place, opener in (("threads", open_model), ("workers", open_remote_model)):
        samples = []
        for _ in range(rounds):
            times = []
            for at_once in (False, True):
                registry = Registry()
                for i in range(4):
                    registry.add(str(i), lambda opener=opener: opener(choices))
                began = time.monotonic()
                if at_once:
                    registry.load_all()
                else:
                    registry.measure_all()
                times.append(time.monotonic() - began)
                registry.close()
            samples.append(times[1] / times[0])
        yield Row(f"loading 4 models as {place}: at once against one by one", samples, "times", 1.0, "lower")


class Gaps(Observer):
    """When each result was ready, and which version gave it."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, str]] = []

    def saw(self, frame: Frame, result: object, model: Model) -> None:
        self.seen.append((time.monotonic() * 1000, model.identity))


def swap_gaps(made: Material, swaps: int) -> Iterator[Row]:
    """The longest pause between two results around each change of version, from a 30 fps source."""
    paths = [str(made.bundle(name)) for name in ("stretch", "letterbox")]
    gaps = Gaps()

    def opened(path: str) -> tuple[Model, Roster | None]:
        return open_model(Choices(path, threads=1)), None

    model, _ = opened(paths[0])
    versions = Versions(paths[0], model, opened, lambda path: check_in_child(path, None, None, 1, nice=10))
    with open_source("synthetic:1280x720@30", want=model.frame_size) as source:
        pipeline = Pipeline(source, model, roster=versions, observers=[versions, gaps])
        thread = threading.Thread(target=pipeline.run)
        thread.start()
        time.sleep(1)
        losses, windows = [], []
        for i in range(swaps):
            at_rest = lost_in(pipeline, lambda: time.sleep(1))
            began = time.monotonic() * 1000
            swap = versions.reload(paths[(i + 1) % 2])
            losses.append(lost_in(pipeline, lambda swap=swap: (swap.wait(120), time.sleep(0.3))) - at_rest)
            windows.append((began, time.monotonic() * 1000))
            assert swap.stage == "swapped", swap.why
        pipeline.stop()
        thread.join()
    versions.close()
    times = [at for at, _ in gaps.seen]
    pauses = [max(b - a for a, b in itertools.pairwise(times) if begin <= b <= end) for begin, end in windows]
    name = "swap at 30 frames/s: longest pause between results, in frame periods"
    yield Row(name, [pause / PERIOD_MS for pause in pauses], "periods", 1.5, "lower")
    yield Row("frames lost a second while swapping, less those at rest", losses, "frames/s", 0, "lower")


def lost_in(pipeline: Pipeline, what: Callable[[], object]) -> float:
    """Frames a second that came to no result meanwhile."""
    before, began = sum(pipeline.summary().losses.values()), time.monotonic()
    what()
    return (sum(pipeline.summary().losses.values()) - before) / (time.monotonic() - began)


def costs(made: Material, rounds: int, seconds: float) -> Iterator[Row]:
    """Results a second with what looks on against without, each run with both by turns."""
    bundle = str(made.bundle("stretch"))
    cases: dict[str, Callable[[Path], object]] = {
        "nothing (what two equal loops differ by)": lambda folder: plain(bundle),
        "drift": lambda folder: looked_on(bundle, [Drift(DriftConfig(every_s=0.0), live=False)]),
        "flight recorder": lambda folder: looked_on(bundle, [Recorder(RecorderConfig(str(folder)))]),
        "shadow, 20 % of a core": lambda folder: shadowed(bundle, str(made.bundle("letterbox"))),
    }
    for name, make in cases.items():
        samples = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                with plain(bundle) as first:
                    without = rate(first, seconds)
                with make(Path(folder)) as second:  # type: ignore[attr-defined]
                    samples.append(rate(second, seconds) / without)
        yield Row(f"throughput of raw 720p with {name}", samples, "times", None, "higher")


def rate(pipeline: Pipeline, seconds: float) -> float:
    thread = threading.Thread(target=pipeline.run)
    thread.start()
    time.sleep(0.5)
    before, began = pipeline.tally.frames, time.monotonic()
    time.sleep(seconds)
    found = (pipeline.tally.frames - before) / (time.monotonic() - began)
    pipeline.stop()
    thread.join()
    return found


@contextmanager
def looked_on(bundle: str, observers: list[Observer]) -> Iterator[Pipeline]:
    with open_model(Choices(bundle, threads=1)) as model, open_source("synthetic:1280x720") as source:
        pipeline = Pipeline(source, model, observers=observers)
        for observer in observers:
            if isinstance(observer, Recorder):
                observer.attach(pipeline)
        yield pipeline
        for observer in observers:
            observer.close()


def plain(bundle: str) -> object:
    return looked_on(bundle, [])


@contextmanager
def shadowed(bundle: str, other: str) -> Iterator[Pipeline]:
    with open_model(Choices(bundle, threads=1)) as model, open_source("synthetic:1280x720") as source:
        candidate = Candidate(
            CandidateConfig(other, share=0.2),
            lambda path: open_remote_model(Choices(path, threads=1), nice=10),
            lambda path: SOUND,
            lambda path: None,  # type: ignore[arg-type, return-value]
        ).start()
        pipeline = Pipeline(source, model, roster=candidate, observers=[candidate])
        while candidate.stage in ("checking", "loading"):
            time.sleep(0.05)
        yield pipeline
        assert candidate.stage == "running", candidate.why
        candidate.close()


if __name__ == "__main__":
    main()

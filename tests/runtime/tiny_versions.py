"""Two versions of the tiny classifier that answer differently, and what looks on while they run.

Load it by its path: tests/ is no package.
"""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from edgeferry_runtime.backend import Interpreter
from edgeferry_runtime.bundle import file_entry, write_bundle
from edgeferry_runtime.golden import probe_frame, tensor_sha256
from edgeferry_runtime.model import Model
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.roster import Roster
from edgeferry_runtime.sources.base import WAITING, Frame, FrameSource


def write_version(path, contents, color="rgb", labels="abcd", broken=False, mean=0.0, model=None):
    """A version of the tiny model whose goldens are its own; ``broken`` ones are not.

    Args:
        color, mean: of its preprocessing; other values, other answers.
        labels: one letter a class.
        model: another file of tests/contract/data in the place of the int8 one.
    """
    manifest, members = contents
    declared = replace(manifest.preprocessing, color=color, mean=(mean,))
    members = dict(members, **{"labels.txt": "\n".join(labels).encode() + b"\n"})
    variant = replace(manifest.variants[0], input_sha256=())
    if model is not None:
        file = Path(__file__).resolve().parent.parent / "contract" / "data" / model
        interpreter = Interpreter(str(file), threads=1)
        inputs = tuple(replace(spec, name="image") for spec in interpreter.inputs)
        outputs = tuple(replace(spec, name="scores", layout="") for spec in interpreter.outputs)
        variant = replace(variant, name="other", scheme="float32", inputs=inputs, outputs=outputs)
        members[variant.file] = file.read_bytes()

    def write():
        files = {name: file_entry(data) for name, data in members.items()}
        write_bundle(path, replace(manifest, preprocessing=declared, variants=(variant,), files=files), members)

    write()
    with Model.open(path, threads=1) as model:
        answers, hashes = [], []
        for i in range(manifest.golden.count):
            frame = np.load(io.BytesIO(members[f"golden/frame-{i:02d}.npy"]))
            model.preprocess(frame, "bgr")
            hashes.append(tensor_sha256(model.frame_input))
            model.invoke()
            answers.append(model.outputs()["scores"])
        model.preprocess(probe_frame(), "bgr")
        hashes.append(tensor_sha256(model.frame_input))
    buffer = io.BytesIO()
    np.save(buffer, 1 - np.concatenate(answers) if broken else np.concatenate(answers))
    members["golden/int8.npy"] = members["golden/reference.npy"] = buffer.getvalue()
    variant = replace(variant, input_sha256=tuple(hashes))
    write()
    return path


def pictures(count, size=(20, 30)):
    random = np.random.default_rng(1)
    frames = random.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return [Frame(pixels // (1 + i % 5), "bgr", i, 0) for i, pixels in enumerate(frames)]


class Paced(FrameSource):
    """Pictures without end, one every ``period_s``, until ``stop``; a live one drops what is not read in time."""

    def __init__(self, frames, period_s, live=False):
        self.frames, self.period_s, self.live = frames, period_s, live
        self.given = 0
        self.stopped = False
        self._due = None

    def _read(self, timeout_s):
        if self.stopped:
            return None
        now = time.monotonic()
        self._due = now + self.period_s if self._due is None else self._due + self.period_s
        while self.live and self._due < now - self.period_s:  # nobody came for it
            self._due += self.period_s
            self.given += 1
            self.dropped += 1
        if timeout_s is not None and self._due - now > timeout_s:
            self._due -= self.period_s
            time.sleep(timeout_s)
            return WAITING
        time.sleep(max(0.0, self._due - now))
        number = self.given
        self.given += 1
        frame = self.frames[number % len(self.frames)]
        return frame._replace(number=number, captured_ns=time.monotonic_ns())


class Seen(Observer):
    """Keeps every frame with its result."""

    def __init__(self):
        self.pairs = []

    def saw(self, frame, result, model):
        self.pairs.append((frame, result))


class Drive:
    """A loop by hand, one frame at a time: what a pipeline asks of roster and observers, without its threads."""

    def __init__(self, roster: Roster, model: Model, frames):
        self.roster, self.model, self.frames = roster, model, frames
        self.number = 0

    def step(self, count=1):
        results = []
        for _ in range(count):
            frame = self.frames[self.number % len(self.frames)]._replace(number=self.number)
            self.number += 1
            results.append(self.run(frame))
        return results

    def run(self, frame):
        from edgeferry_runtime.errors import BackendError
        from edgeferry_runtime.results import Result

        captured = time.monotonic_ns()
        model = self.roster.choose(self.model, frame)
        try:
            answer = model(frame.pixels, frame.color)
        except BackendError as error:
            model = self.roster.replace(model, error)
            answer = model(frame.pixels, frame.color)
        self.model = model
        age = (time.monotonic_ns() - captured) / 1000
        result = Result(
            frame.number, "", model.identity, model.variant.name, model.backend_name, captured, time.time(), age,
            (0.0, 0.0, 10.0, 0.0, age, 5.0), 0, answer,
        )  # fmt: skip
        self.roster.saw(frame, result, model)
        return result


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)

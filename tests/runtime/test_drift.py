"""Drift: how far two histograms part, and an alarm when pictures are no longer like those of the calibration."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from edgeferry_runtime import Model, Pipeline, opencv
from edgeferry_runtime.drift import Brightness, Drift, bin_of, next_level, stability_index
from edgeferry_runtime.drift_config import DriftConfig
from edgeferry_runtime.fields import Fields
from edgeferry_runtime.manifest import BINS, Baseline, Histogram, Manifest, Quantization, TensorSpec
from edgeferry_runtime.preprocessing import PRESETS, Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor
from edgeferry_runtime.sources.base import Frame, FrameSource
from edgeferry_runtime.tasks.base import Answer
from edgeferry_runtime.tasks.classify import Classification, ClassScore
from edgeferry_runtime.tasks.detect import Box, Detection
from edgeferry_runtime.tasks.embed import Embedding
from edgeferry_runtime.tasks.regress import Regression
from hypothesis import given, settings
from hypothesis import strategies as st

WINDOW = 60
CONFIG = DriftConfig(window=WINDOW, every_s=0)


class Given(FrameSource):
    encoded = True

    def __init__(self, frames):
        self._frames = list(frames)

    def _read(self, timeout_s):
        return self._frames.pop(0)._replace(captured_ns=time.monotonic_ns()) if self._frames else None


def scenes(count, factor=1.0, color="bgr", seed=5):
    """Noisy pictures of many brightnesses, in gray as far as any average can tell."""
    random = np.random.default_rng(seed)
    frames = []
    for number in range(count):
        pixels = random.integers(0, 100, (40, 60, 3)) + random.integers(40, 150)
        pixels = (pixels * factor).astype(np.uint8)
        if color == "jpeg":
            pixels = opencv.load("tests").imencode(".jpg", pixels)[1].reshape(-1)
        frames.append(Frame(pixels, color, number, 0))
    return frames


def normal_of(path, frames):
    """What the converter would have measured, from the pixels themselves."""
    brightness, sure = [], []
    with Model.open(path, threads=1) as model:
        for frame in frames:
            answer = model(frame.pixels, frame.color)
            sure.append(answer.confidence())
            pixels = frame.pixels if frame.color == "bgr" else opencv.load("tests").imdecode(frame.pixels, 1)
            brightness.append(pixels.mean() / 255)
    counts = [np.bincount([bin_of(v) for v in values], minlength=BINS).tolist() for values in (brightness, sure)]
    return Baseline(*(Histogram(0.5, tuple(c)) for c in counts))


@pytest.fixture
def watched(make_bundle):
    """A bundle with the baseline of some scenes."""

    def make(color="bgr", **declared):
        def geometry(manifest, members):
            return replace(manifest, preprocessing=replace(manifest.preprocessing, **declared)), members

        plain = make_bundle(change=geometry)
        normal = normal_of(plain, scenes(150, color=color, seed=9))
        changed = lambda m, members: (replace(geometry(m, members)[0], baseline=normal), members)  # noqa: E731
        return make_bundle(name="watched", change=changed)

    return make


def run(path, frames, drift, pipelined=False):
    with Model.open(path, threads=1) as model:
        Pipeline(Given(frames), model, pipelined=pipelined, observers=[drift]).run()
    drift.tick()
    return drift.state()


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("color", ["bgr", "jpeg"])
@pytest.mark.parametrize("geometry", ["stretch", "letterbox"])
def test_a_darkened_video_raises_the_alarm_and_the_same_video_does_not(
    watched, caplog, color, geometry, pipelined
):
    path = watched(color, geometry=geometry)
    state = run(path, scenes(2 * WINDOW, color=color), Drift(CONFIG), pipelined)
    assert state["verdict"] in ("ok", "warn")
    assert state["alarm"] is False
    assert state["brightness"]["samples"] == WINDOW
    assert sum(state["brightness"]["histogram"]) == WINDOW
    assert state["brightness"]["mean"] == pytest.approx(0.55, abs=0.05)
    assert not caplog.records
    drift = Drift(CONFIG)
    state = run(path, scenes(2 * WINDOW, 0.3, color), drift, pipelined)
    assert state["alarm"] is True
    assert state["brightness"]["verdict"] == "alarm"
    assert state["brightness"]["psi"] > 1
    assert state["brightness"]["mean"] == pytest.approx(0.165, abs=0.02)
    drift.tick()
    said = [record.message for record in caplog.records if record.message.startswith("brightness")]
    assert len(said) == 1
    assert "mean 0.1" in said[0]
    json.dumps(state)


def test_an_alarm_ends_when_the_light_is_back(watched, caplog):
    path, drift = watched(), Drift(CONFIG)
    with Model.open(path, threads=1) as model:
        for factor in (0.3, 1.0):
            Pipeline(Given(scenes(2 * WINDOW, factor)), model, pipelined=False, observers=[drift]).run()
            drift.tick()
    assert drift.state()["brightness"]["verdict"] != "alarm"
    said = [record.message for record in caplog.records if record.message.startswith("brightness")]
    assert [words for words in ("has parted", "is again") if any(words in line for line in said)] == [
        "has parted", "is again",
    ]  # fmt: skip


def test_before_the_window_is_full_nothing_is_said(watched):
    state = run(watched(), scenes(WINDOW - 1, 0.3), Drift(CONFIG))
    assert (state["verdict"], state["alarm"]) == ("collecting", False)
    assert "psi" not in state["brightness"]


def test_a_bundle_without_baseline_says_so(bundle):
    state = run(bundle, scenes(2 * WINDOW), Drift(CONFIG))
    assert (state["verdict"], state["alarm"]) == ("no baseline", False)
    assert state["brightness"]["mean"] == pytest.approx(0.55, abs=0.05)
    assert Drift(CONFIG).state() == {"verdict": "collecting", "alarm": False}


def test_of_a_live_source_one_frame_in_a_while_counts(watched, monkeypatch):
    with Model.open(watched(), threads=1) as model:
        for live, expected in ((True, 4), (False, 40)):
            drift, now = Drift(DriftConfig(window=WINDOW, every_s=1.0), live), 10**12
            for frame in scenes(40):
                now += 10**8
                monkeypatch.setattr(time, "monotonic_ns", lambda now=now: now)
                result = type("R", (), {"answer": model(frame.pixels, frame.color)})
                drift.saw(frame, result, model)
            monkeypatch.undo()
            assert drift.state()["brightness"]["samples"] == expected


def test_an_interpreter_that_overwrites_its_input_is_found_out(watched):
    with Model.open(watched(), threads=1) as model:
        invoke = model.interpreter.invoke
        model.interpreter.invoke = lambda: (invoke(), model.frame_input.fill(0))
        drift = Drift(CONFIG)
        Pipeline(Given(scenes(2 * WINDOW)), model, pipelined=False, observers=[drift]).run()
    drift.tick()
    assert "brightness" not in drift.state()
    assert drift.state()["confidence"]["samples"] == WINDOW


def test_two_versions_by_turns_are_counted_apart(watched, make_bundle):
    drift = Drift(CONFIG)
    with Model.open(watched(), threads=1) as one, Model.open(make_bundle(name="two"), threads=1) as two:
        for number, frame in enumerate(scenes(40)):
            model = (one, two)[number % 2]
            drift.saw(frame, type("R", (), {"answer": model(frame.pixels, frame.color)}), model)
            assert drift.state()["bundle"] == model.identity
            assert drift.state()["brightness"]["samples"] == number // 2 + 1


def box(score):
    return Box(0, "", score, 0, 0, 1, 1)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Classification((ClassScore(1, "a", 0.75), ClassScore(0, "b", 0.2))), 0.75),
        (Classification(()), 0.0),
        (Detection((box(0.9), box(0.5))), 0.9),
        (Detection(()), 0.0),
        (Regression((3.0,)), None),
        (Embedding(np.zeros(3, np.float32)), None),
    ],
)
def test_confidence(answer: Answer, expected):
    assert answer.confidence() == expected


SPECS = {
    "float32": TensorSpec("x", "x", (1, 30, 40, 3), "float32"),
    "uint8": TensorSpec("x", "x", (1, 30, 40, 3), "uint8", quantization=Quantization((1 / 128,), (128,))),
    "int8": TensorSpec("x", "x", (1, 30, 40, 3), "int8", quantization=Quantization((0.02,), (-5,))),
}


@pytest.mark.parametrize("geometry", ["stretch", "letterbox", "center-crop"])
@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("dtype", list(SPECS))
@settings(max_examples=10, deadline=None)
@given(level=st.integers(0, 255), width=st.integers(8, 80), height=st.integers(8, 80))
def test_brightness_is_the_level_whatever_becomes_of_it(dtype, preset, geometry, level, width, height):
    declared = Preprocessing(width=40, height=30, geometry=geometry, pad_value=255, **PRESETS[preset])
    spec = SPECS[dtype]
    if dtype != "float32":  # a scale that holds the whole range, as calibration finds them
        ends = (np.array([[0], [255]]) * declared.scale - np.array(declared.mean)) / np.array(declared.std)
        step = float(ends.max() - ends.min()) / 255
        zero = round(float(-ends.min()) / step) + np.iinfo(dtype).min
        spec = replace(spec, quantization=Quantization((step,), (int(zero),)))
    preprocessor = Preprocessor(declared, spec)
    tensor = preprocessor(np.full((height, width, 3), level, np.uint8), "bgr")
    found = Brightness(declared, spec)(tensor, preprocessor.placement)
    assert found == pytest.approx(level / 255, abs=0.006)


def test_brightness_of_a_large_picture_is_its_mean():
    declared = Preprocessing(width=224, height=224)
    pixels = scenes(1)[0].pixels
    spec = TensorSpec("x", "x", (1, 224, 224, 3), "int8", quantization=Quantization((1.0,), (-128,)))
    preprocessor = Preprocessor(declared, spec)
    tensor = preprocessor(pixels, "bgr")
    measured = Brightness(declared, spec)
    assert measured(tensor, preprocessor.placement) == pytest.approx(pixels.mean() / 255, abs=0.02)


counts = st.lists(st.integers(0, 500), min_size=BINS, max_size=BINS).filter(lambda c: sum(c) >= 20)


@settings(max_examples=200, deadline=None)
@given(counts, counts, st.floats(0, 1))
def test_the_index_of_any_two_histograms(live, baseline, below):
    index = stability_index(live, baseline, below)
    assert 0 <= index < 50
    assert stability_index(live, live, below) == 0
    if bin_of(below) == BINS - 1:
        assert index == 0  # one group: nothing can part


def test_the_index_as_it_is_defined():
    live, baseline = [0] * BINS, [0] * BINS
    baseline[0], baseline[-1] = 5000, 5000
    live[0], live[-1] = 2000, 8000
    # (0.2 - 0.5) ln(0.2 / 0.5) + (0.8 - 0.5) ln(0.8 / 0.5)
    assert stability_index(live, baseline) == pytest.approx(0.41589, abs=1e-3)


def test_what_a_threshold_hides_does_not_count():
    baseline, live = [0] * BINS, [0] * BINS
    baseline[5], baseline[15] = 100, 100
    live[0], live[15] = 100, 100  # scores below 0.5 are reported as nothing
    assert stability_index(live, baseline) > 1
    assert stability_index(live, baseline, 0.5) == 0


@pytest.mark.parametrize(("threshold", "verdict"), [(None, "alarm"), (0.5, "ok")])
def test_a_threshold_of_the_users_own_is_no_drift(threshold, verdict):
    scores = np.random.default_rng(1).random(400)
    baseline = Histogram(0.5, tuple(np.bincount((scores * BINS).astype(int), minlength=BINS).tolist()))
    manifest = SimpleNamespace(
        baseline=Baseline(None, baseline), preprocessing=None, postprocessing=SimpleNamespace(threshold=0.1)
    )
    model = SimpleNamespace(
        identity="m-1", bundle=SimpleNamespace(manifest=manifest), frame_input=None,
        variant=SimpleNamespace(inputs=[None]),
    )  # fmt: skip
    drift = Drift(DriftConfig(window=400, every_s=0), threshold=threshold)
    for score in scores:
        found = (box(score),) if score >= 0.5 else ()
        drift.saw(Frame(np.empty(0), "bgr", 0, 0), SimpleNamespace(answer=Detection(found)), model)
    drift.tick()
    assert drift.state()["confidence"]["verdict"] == verdict


def test_chance_alone_raises_no_alarm():
    random = np.random.default_rng(3)
    alarms = 0
    for _ in range(200):
        baseline, live = (
            np.bincount((random.beta(2, 2, n) * BINS).astype(int), minlength=BINS).tolist() for n in (60, 600)
        )
        alarms += stability_index(live, baseline) > DriftConfig.alarm
    assert alarms <= 4


def test_an_alarm_has_hysteresis():
    levels, level = [], "collecting"
    for index in (0.05, 0.2, 0.3, 0.2, 0.11, 0.3, 0.1, 0.2, 0.25):
        level = next_level(level, index, DriftConfig())
        levels.append(level)
    assert levels == ["ok", "warn", "alarm", "alarm", "alarm", "alarm", "ok", "warn", "warn"]


def test_the_manifest_carries_a_baseline_and_need_not(contents):
    manifest, _ = contents
    assert b"baseline" not in manifest.to_bytes()
    assert Manifest.from_bytes(manifest.to_bytes()).baseline is None
    normal = Baseline(Histogram(0.4, tuple(range(BINS))), None)
    again = Manifest.from_bytes(replace(manifest, baseline=normal).to_bytes())
    assert again.baseline == normal
    assert again.version != Manifest.from_bytes(manifest.to_bytes()).version


def read(value):
    fields = Fields(value)
    config = DriftConfig.read(fields)
    return config, fields.finish()


def test_the_config():
    assert read({}) == (DriftConfig(), [])
    assert read({"window": 100, "every_s": 0, "warn": 0.2, "alarm": 0.5}) == (DriftConfig(100, 0.0, 0.2, 0.5), [])
    assert read({"window": 5})[1] == ["window: is 5, must be at least 20"]
    assert read({"warn": 0.5})[1] == ["warn: is 0.5, above alarm (0.25)"]

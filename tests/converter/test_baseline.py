"""The baseline in a bundle: what the device will compare with, measured by the device's own code."""

from __future__ import annotations

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from edgeferry_converter.baseline import MOST, histogram, spread
from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.drift import Drift
from edgeferry_runtime.drift_config import DriftConfig
from edgeferry_runtime.manifest import BINS
from edgeferry_runtime.model import Model
from edgeferry_runtime.sources.base import Frame
from hypothesis import given
from hypothesis import strategies as st


def test_a_bundle_carries_what_was_normal(convert, color_model, image_folders):
    result = convert(color_model, image_folders)
    with Bundle.open(result.bundle) as bundle:
        baseline = bundle.manifest.baseline
        text = json.dumps(json.loads(bundle.manifest_bytes)["baseline"])
    pictures = [cv2.imread(str(path)) for path in image_folders.rglob("*.png")]
    assert sum(baseline.brightness.counts) == len(pictures)  # calibration and judgement
    assert baseline.brightness.mean == pytest.approx(np.mean(pictures) / 255, abs=0.02)
    assert sum(baseline.confidence.counts) == result.figures["evaluation"]["frames"]
    assert 0.4 < baseline.confidence.mean <= 1
    assert len(text) <= 1024
    assert convert(color_model, image_folders).version == result.version


@pytest.fixture
def embedder(keras, save_model):
    return save_model(lambda x: keras.layers.Dense(8)(keras.layers.GlobalAveragePooling2D()(x)), (16, 16, 3))


def test_a_task_without_scores_has_no_confidence(convert, embedder, image_folders):
    with Bundle.open(convert(embedder, image_folders, task="embed").bundle) as bundle:
        assert sum(bundle.manifest.baseline.brightness.counts) == 60
        assert bundle.manifest.baseline.confidence is None


def test_the_device_finds_the_same_pictures_normal_and_dark_ones_not(convert, color_model, image_folders):
    path = convert(color_model, image_folders).bundle
    pictures = [cv2.imread(str(path)) for path in sorted(image_folders.rglob("*.png"))]
    verdicts = []
    for factor in (1.0, 0.3):
        drift = Drift(DriftConfig(window=len(pictures), every_s=0))
        with Model.open(path, threads=1) as model:
            for number, picture in enumerate(pictures):
                frame = Frame((picture * factor).astype(np.uint8), "bgr", number, 0)
                drift.saw(frame, SimpleNamespace(answer=model(frame.pixels)), model)
        drift.tick()
        verdicts.append(drift.state()["brightness"]["verdict"])
    assert verdicts == ["ok", "alarm"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200))
def test_histograms_count_everything(values):
    found = histogram(values)
    assert len(found.counts) == BINS
    assert sum(found.counts) == len(values)
    assert found.mean == pytest.approx(sum(values) / len(values), abs=1e-4)


@given(st.integers(0, 3 * MOST))
def test_samples_are_spread_over_all(count):
    chosen = spread(range(count))
    assert len(chosen) == min(count, MOST)
    assert len(set(chosen)) == len(chosen)
    if count:
        assert chosen[-1] >= count - 1 - count // MOST

"""Goldens: tolerances come from measured error, frames cover the classes, a dead model cannot pass."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from edgeferry_converter.evaluation import VariantScore, scores_kind
from edgeferry_converter.goldens import GoldenFrames, tells_a_dead_model, tolerance
from edgeferry_converter.quantization import QuantizationScheme
from edgeferry_runtime.manifest import Quantization, TensorSpec, Tolerance


def runner(scheme: str, quantization: Quantization | None = None) -> SimpleNamespace:
    spec = TensorSpec("y", "y", (1, 3), "int8" if quantization else "float32", "", quantization)
    return SimpleNamespace(outputs=[spec], variant=SimpleNamespace(name=scheme, scheme=QuantizationScheme(scheme)))


def golden(error: float = 0.0, name: str = "int8") -> GoldenFrames:
    reference = np.eye(3, dtype=np.float32)
    return GoldenFrames((), reference, {name: reference + np.float32(error)}, {})


STEP = Quantization((1 / 256,), (-128,))


def test_tolerance_follows_the_measured_error():
    score = VariantScore(squared_error=100 * 0.01**2, values=100, max_error=0.2)
    found = tolerance(score, runner("int8", STEP), golden(), span=1.0)
    assert found.rms == pytest.approx(0.02)
    assert found.max_abs == pytest.approx(0.4)
    twice = VariantScore(squared_error=100 * 0.02**2, values=100, max_error=0.4)
    assert tolerance(twice, runner("int8", STEP), golden(), span=1.0).rms == pytest.approx(0.04)


def test_golden_frames_harder_than_the_average_count():
    score = VariantScore(squared_error=100 * 0.01**2, values=100, max_error=0.2)
    assert tolerance(score, runner("int8", STEP), golden(0.3), span=1.0).rms == pytest.approx(0.6)


def test_where_nothing_is_lost_a_step_remains():
    none = VariantScore(values=100)
    assert tolerance(none, runner("int8", STEP), golden(), span=1.0) == Tolerance(2 / 256, 2 / 256)
    assert tolerance(none, runner("float32"), golden(name="float32"), span=4.0).rms == pytest.approx(2 * 4 / 65536)


def test_a_dead_model_is_told_or_said_to_be_missed():
    assert tells_a_dead_model(golden(), "int8", Tolerance(0.4, 0.05))
    assert not tells_a_dead_model(golden(), "int8", Tolerance(0.9, 0.9))


@pytest.mark.parametrize(
    ("activation", "outputs", "kind"),
    [
        ("softmax", [[0.2, 0.8]], "probabilities"),
        ("sigmoid", [[0.9, 0.8]], "probabilities"),
        ("linear", [[0.25, 0.75]], "probabilities"),  # a Softmax layer of its own came before
        ("linear", [[0.9, 0.8]], "logits"),
        ("linear", [[-3.0, 8.0]], "logits"),
        ("sigmoid", [[0.9]], "binary-probability"),
        ("linear", [[4.0]], "binary-logit"),
    ],
)
def test_kind_of_scores(activation, outputs, kind):
    function = SimpleNamespace(__name__=activation)
    model = SimpleNamespace(layers=[SimpleNamespace(activation=function)])
    assert scores_kind(model, np.array(outputs, np.float32)) == kind

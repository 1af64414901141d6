"""Goldens: tolerances come from measured error, samples cover the classes, a dead model cannot pass."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from edgeferry_converter.evaluation import Judgement, OutputError, scores_kind
from edgeferry_converter.goldens import Goldens, golden_numbers, tells_a_dead_model, tolerances
from edgeferry_converter.quantization import QuantizationScheme
from edgeferry_runtime.manifest import Quantization, TensorSpec, Tolerance


def runner(scheme: str, quantization: Quantization | None = None) -> SimpleNamespace:
    spec = TensorSpec("y", "y", (1, 3), "int8" if quantization else "float32", "", quantization)
    return SimpleNamespace(outputs=[spec], variant=SimpleNamespace(name=scheme, scheme=QuantizationScheme(scheme)))


def golden(error: float = 0.0, name: str = "int8") -> Goldens:
    reference = np.eye(3, dtype=np.float32)
    return Goldens((), {}, {"y": reference}, {name: {"y": reference + np.float32(error)}}, {})


def measured(rms: float, largest: float) -> Judgement:
    return Judgement(None, None, {"y": OutputError(squared=100 * rms**2, values=100, largest=largest)})


STEP = Quantization((1 / 256,), (-128,))


def test_tolerance_follows_the_measured_error():
    found = tolerances(measured(0.01, 0.2), runner("int8", STEP), golden(), {"y": 1.0})["y"]
    assert found.rms == pytest.approx(0.02)
    assert found.max_abs == pytest.approx(0.4)
    twice = tolerances(measured(0.02, 0.4), runner("int8", STEP), golden(), {"y": 1.0})["y"]
    assert twice.rms == pytest.approx(0.04)


def test_goldens_harder_than_the_average_count():
    found = tolerances(measured(0.01, 0.2), runner("int8", STEP), golden(0.3), {"y": 1.0})["y"]
    assert found.rms == pytest.approx(0.6)


def test_where_nothing_is_lost_a_step_remains():
    int8 = tolerances(measured(0, 0), runner("int8", STEP), golden(), {"y": 1.0})["y"]
    assert int8 == Tolerance(2 / 256, 2 / 256)
    plain = tolerances(measured(0, 0), runner("float32"), golden(name="float32"), {"y": 4.0})["y"]
    assert plain.rms == pytest.approx(2 * 4 / 65536)
    silent = tolerances(measured(0, 0), runner("float32"), golden(name="float32"), {"y": 0.0})["y"]
    assert silent.max_abs > 0  # a tolerance of nothing could not be written


def test_a_dead_model_is_told_or_said_to_be_missed():
    outputs = golden().outputs["int8"]
    assert tells_a_dead_model(outputs, {"y": Tolerance(0.4, 0.05)})
    assert not tells_a_dead_model(outputs, {"y": Tolerance(0.9, 0.9)})


@pytest.mark.parametrize(
    ("classes", "count"),
    [([0] * 5 + [1] * 5, 8), (list(range(12)) * 2, 12), (list(range(100)), 16), ([None] * 30, 8), ([0, 1, 2], 8)],
)
def test_goldens_are_of_as_many_classes_as_fit(classes, count):
    numbers = golden_numbers(range(len(classes)), classes.__getitem__)
    assert len(numbers) == count
    assert len({classes[n] for n in numbers}) == min(count, len(set(classes)))
    assert numbers == golden_numbers(range(len(classes)), classes.__getitem__)


@pytest.mark.parametrize(
    ("activation", "outputs", "kind"),
    [
        ("softmax", [[0.2, 0.8]], "probabilities"),
        ("sigmoid", [[0.9, 0.8]], "probabilities"),
        ("", [[0.25, 0.75]], "probabilities"),  # a Softmax layer of its own came before
        ("linear", [[0.9, 0.8]], "logits"),
        ("linear", [[-3.0, 8.0]], "logits"),
        ("sigmoid", [[0.9]], "binary-probability"),
        ("linear", [[4.0]], "binary-logit"),
    ],
)
def test_kind_of_scores(activation, outputs, kind):
    assert scores_kind(activation, np.array(outputs, np.float32)) == kind

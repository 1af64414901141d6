"""Keeping layers float: the fewest that open the gate, found with few attempts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from edgeferry_converter.keep_float import keep_as_few_as_needed
from edgeferry_converter.quantization import LayerError, QuantizationScheme


class FakeWorkshop:
    def __init__(self, layers: int) -> None:
        self.layers = [LayerError("CONV_2D", f"layer{i}", 1.0 / (i + 1), 1.0) for i in range(layers)]

    def errors(self, scheme: QuantizationScheme) -> list[LayerError]:
        assert scheme.keep_float == ()
        return self.layers


@pytest.mark.parametrize(("layers", "needed"), [(1, 1), (10, 1), (10, 2), (10, 5), (10, 10), (100, 37), (7, 6)])
def test_the_fewest_that_pass(layers, needed):
    attempts = []

    def attempt(schemes):
        (scheme, other) = schemes
        assert other == QuantizationScheme("float16")
        attempts.append(len(scheme.keep_float))
        assert set(scheme.keep_float) == {f"layer{i}" for i in range(attempts[-1])}  # the worst ones first
        return SimpleNamespace(passed=attempts[-1] >= needed, count=attempts[-1])

    schemes = [QuantizationScheme("int8"), QuantizationScheme("float16")]
    best = keep_as_few_as_needed(SimpleNamespace(passed=False), schemes, attempt, FakeWorkshop(layers))
    assert best.passed
    assert best.count == needed
    assert len(attempts) <= 2 * layers.bit_length() + 1


def test_when_nothing_helps_the_last_attempt_is_told():
    def attempt(schemes):
        return SimpleNamespace(passed=False, count=len(schemes[0].keep_float))

    best = keep_as_few_as_needed(
        SimpleNamespace(passed=False), [QuantizationScheme("int8")], attempt, FakeWorkshop(5)
    )
    assert (best.passed, best.count) == (False, 5)


def test_without_an_int8_variant_there_is_nothing_to_keep():
    first = SimpleNamespace(passed=False)
    assert keep_as_few_as_needed(first, [QuantizationScheme("float16")], None, FakeWorkshop(5)) is first

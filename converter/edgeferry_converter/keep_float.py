"""Keeping layers float: as few as the gate needs, those that lose most first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from edgeferry_converter.quantization import QuantizationScheme
from edgeferry_converter.workshop import Workshop

__all__ = ["keep_as_few_as_needed"]


class Judged(Protocol):
    """What an attempt gives."""

    @property
    def passed(self) -> bool: ...


P = TypeVar("P", bound=Judged)


def keep_as_few_as_needed(
    first: P,
    schemes: Sequence[QuantizationScheme],
    attempt: Callable[[Sequence[QuantizationScheme]], P],
    workshop: Workshop,
) -> P:
    """Double the number of float layers until the gate opens, then halve the step back to the fewest.

    Layers are taken in the order of their own error in quantisation steps.

    Args:
        first: the attempt without any float layer, returned when there is nothing to keep float.
        schemes: the variants of the bundle.
        attempt: makes and judges the variants of some schemes.
        workshop: knows the layers' errors.

    Returns:
        The attempt with the fewest float layers that passes; the one with all of them when none does.
    """
    plain = next((scheme for scheme in schemes if scheme.name == "int8" and not scheme.keep_float), None)
    layers = [error.tensor for error in workshop.errors(plain)] if plain else []
    if plain is None or not layers:
        return first

    def keeping(count: int) -> P:
        kept = replace(plain, keep_float=tuple(sorted(layers[:count])))
        return attempt([kept if scheme == plain else scheme for scheme in schemes])

    few, many = 0, 1  # few does not pass
    best = keeping(many)
    while not best.passed and many < len(layers):
        few, many = many, min(2 * many, len(layers))
        best = keeping(many)
    if not best.passed:
        return best
    while many - few > 1:
        middle = (few + many) // 2
        tried = keeping(middle)
        if tried.passed:
            best, many = tried, middle
        else:
            few = middle
    return best

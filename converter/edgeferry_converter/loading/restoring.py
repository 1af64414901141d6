"""Which stored array lands in which variable: found out by restoring numbers instead of weights.

Keras and TensorFlow skip what they cannot match, some of it without a word.  So a copy of the file is made whose
arrays hold their own number, the real restoring code reads it, and afterwards every variable says where it was
fed from.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeferry_converter.errors import ModelError

__all__ = ["Entry", "Matching", "match", "mismatch"]

# Numbers are written digit by digit in base 100, so that they fit even int8; no digit is 127.
BASE = 100
UNTOUCHED = 127
SHOWN = 5
OTHER_ARCHITECTURE = "Is the builder's architecture the one that was trained, layer by layer?"


@dataclass(frozen=True)
class Entry:
    """An array in a file of weights."""

    name: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name.removesuffix('/.ATTRIBUTES/VARIABLE_VALUE')} {list(self.shape)}"


@dataclass(frozen=True)
class Matching:
    """What fits what.

    Attributes:
        pairs: the model's variables with the entry each is fed from, None for those that nothing feeds.
        unused: entries that feed nothing.
        required: how many variables there are without those that Keras makes up anew (random generators).
    """

    pairs: tuple[tuple[Any, Entry | None], ...]
    unused: tuple[Entry, ...]
    required: int

    @property
    def missing(self) -> list[Any]:
        """The model's variables that nothing feeds; states of random generators do not count."""
        return [variable for variable, entry in self.pairs if entry is None and not _is_seed(variable)]

    def check(self, path: Path, strict: bool) -> None:
        """Refuse a partial match.

        Args:
            path: of the weights, for the message.
            strict: refuse entries that feed nothing as well.

        Raises:
            ModelError: with the first names and the counts of both sides.
        """
        missing = [f"{v.path} {list(v.shape)}" for v in self.missing]
        unused = [str(entry) for entry in self.unused]
        total = len(unused) + sum(entry is not None for _, entry in self.pairs)
        if missing:
            message = f"{path}: {len(missing)} of {self.required} variables of the model are not in the file"
            message += f" ({_some(missing)}); {len(unused)} of {total} arrays in the file fit no variable"
            message += f" ({_some(unused)})" if unused else ""
            raise ModelError(message, OTHER_ARCHITECTURE)
        if strict and unused:
            raise ModelError(
                f"{path}: {len(unused)} of {total} arrays in the file fit no variable ({_some(unused)})",
                "Leave --strict out if that is the optimizer, or a part you do not need.",
            )


def match(model: Any, entries: Sequence[Entry], restore: Callable[[Sequence[int]], None]) -> Matching:
    """Find out what restoring would do; the model's values are as before afterwards.

    Args:
        model: a built keras.Model.
        entries: the file's arrays.
        restore: restores the model from a copy of the file whose i-th entry is filled with the i-th number.
    """
    variables = [v for v in model.variables if 0 not in v.shape and str(v.dtype) not in ("bool", "string")]
    before = [np.asarray(variable).copy() for variable in variables]
    numbers = np.zeros(len(variables), np.int64)
    touched = np.ones(len(variables), bool)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about everything that does not match: it is what is asked here
            for place in range(_digits(len(entries))):
                _fill(variables)
                restore([i // BASE**place % BASE for i in range(len(entries))])
                digits = np.array([int(np.asarray(variable).flat[0]) for variable in variables], np.int64)
                touched &= digits != UNTOUCHED
                numbers += digits * BASE**place
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
    pairs = tuple(
        (variable, entries[int(number)] if fed else None)
        for variable, number, fed in zip(variables, numbers, touched, strict=True)
    )
    fed = {entry.name for _, entry in pairs if entry is not None}
    unused = tuple(entry for entry in entries if entry.name not in fed)
    return Matching(pairs, unused, sum(not _is_seed(variable) for variable in variables))


def mismatch(model: Any, entries: Sequence[Entry], path: Path, reason: str) -> ModelError:
    """The error for weights that Keras or TensorFlow refuse as a whole: nothing is known to match."""
    wanted = [f"{variable.path} {list(variable.shape)}" for variable in model.weights]
    return ModelError(
        f"{path}: the weights do not fit the builder's model: {reason}; the model has {len(wanted)} variables"
        f" ({_some(wanted)}), the file has {len(entries)} arrays ({_some([str(entry) for entry in entries])})",
        OTHER_ARCHITECTURE,
    )


def _fill(variables: Sequence[Any]) -> None:
    for variable in variables:
        variable.assign(np.full(variable.shape, UNTOUCHED, np.float32))


def _digits(count: int) -> int:
    places = 1
    while count > BASE**places:
        places += 1
    return places


def _is_seed(variable: Any) -> bool:
    return "seed_generator" in variable.path


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")

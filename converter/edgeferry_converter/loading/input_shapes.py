"""``--input-shape``: read it, and fix the free dimensions of a model's inputs with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from edgeferry_converter.errors import OptionError

__all__ = ["InputShape", "fix_shapes", "parse_input_shape"]

# The input's name ("" where the only one is meant) and the sizes.
InputShape = tuple[str, tuple[int, ...]]

Shape = tuple[int | None, ...]
LARGEST = 1 << 28
EXAMPLE = "Write --input-shape NAME=1,224,224,3, or 224,224,3 when there is one input."


def parse_input_shape(text: str) -> InputShape:
    """Read ``NAME=1,224,224,3`` or ``224,224,3``.

    Raises:
        OptionError: it is neither.
    """
    name, equals, sizes = text.rpartition("=")
    if equals and not name.strip():
        raise OptionError(f"--input-shape {text!r}: the name before '=' is empty", EXAMPLE)
    values = []
    for size in sizes.split(","):
        if not re.fullmatch(r"[0-9]{1,9}", size.strip(), re.ASCII) or not 1 <= int(size) <= LARGEST:
            raise OptionError(
                f"--input-shape {text!r}: {size.strip()!r} is no size (a whole number from 1 on)", EXAMPLE
            )
        values.append(int(size))
    return name.strip(), tuple(values)


def fix_shapes(inputs: Mapping[str, Shape], given: Sequence[InputShape]) -> dict[str, tuple[int, ...]]:
    """Fix every dimension: the batch to 1, the others as given.

    Args:
        inputs: shapes by name as the model has them; an empty one for an input of unknown rank.
        given: what ``parse_input_shape`` read.

    Raises:
        OptionError: a name is unknown, a size contradicts the model, or a dimension stays free.
    """
    wanted = _by_name(inputs, given)
    fixed, free = {}, []
    for name, shape in inputs.items():
        sizes = _merge(name, shape, wanted[name]) if name in wanted else _batch_of_one(shape)
        fixed[name] = tuple(size for size in sizes if size is not None)
        if None in sizes:
            free.append(f"{name} {text(shape)}")
    if free:
        name, shape = next((n, s) for n, s in inputs.items() if None in _batch_of_one(s) and n not in wanted)
        example = ",".join("?" if size is None else str(size) for size in _batch_of_one(shape))
        raise OptionError(
            f"the model leaves dimensions free: {'; '.join(free)}",
            f"Say how large they are on the board, with numbers for '?': --input-shape '{name}={example}'.",
        )
    return fixed


def text(shape: Shape) -> str:
    """A shape for people, "[?, 224, 224, 3]"."""
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _by_name(inputs: Mapping[str, Shape], given: Sequence[InputShape]) -> dict[str, tuple[int, ...]]:
    wanted: dict[str, tuple[int, ...]] = {}
    for name, sizes in given:
        if not name and len(inputs) != 1:
            raise OptionError(
                f"--input-shape {','.join(map(str, sizes))}: which input? The model has {', '.join(inputs)}",
                EXAMPLE,
            )
        name = name or next(iter(inputs))
        if name not in inputs:
            raise OptionError(
                f"--input-shape: {name!r} is no input of the model, it has {', '.join(inputs)}", EXAMPLE
            )
        if name in wanted:
            raise OptionError(f"--input-shape: {name!r} is given twice", "Give it once.")
        wanted[name] = sizes
    return wanted


def _batch_of_one(shape: Shape) -> Shape:
    return (1, *shape[1:]) if shape and shape[0] is None else shape


def _merge(name: str, shape: Shape, sizes: tuple[int, ...]) -> Shape:
    """The given sizes, with the batch in front where it was left out."""
    asked = ",".join(map(str, sizes))
    if len(sizes) == len(shape) - 1:
        sizes = (shape[0] or 1, *sizes)
    if len(sizes) != len(shape) and shape:
        raise OptionError(
            f"--input-shape {name}={asked}: has {len(sizes)} dimensions, the model's input is {text(shape)}",
            EXAMPLE,
        )
    if shape and any(mine not in (None, size) for mine, size in zip(shape, sizes, strict=True)):
        raise OptionError(
            f"--input-shape {name}={asked}: contradicts the model, whose input is {text(shape)}",
            "Only the dimensions shown as '?' are free.",
        )
    if shape and shape[0] is None and sizes[0] != 1:
        raise OptionError(
            f"--input-shape {name}={asked}: the batch is {sizes[0]}, a board takes one frame at a time",
            "Give 1 as the first size, or leave it out.",
        )
    return sizes

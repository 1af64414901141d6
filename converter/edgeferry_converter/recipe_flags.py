"""Common recipe choices as flags of `edgeferry convert`, in place of a file or on top of one."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from edgeferry_converter.errors import RecipeError
from edgeferry_converter.recipe import Distill, Prune, Qat, Recipe, contradictions, reference_recipe
from edgeferry_converter.schema import Problem, validate

__all__ = ["FLAGS", "add_recipe_flags", "with_flags"]

NAME = "flags"
# Attribute -> flag, as it is said.
FLAGS = {
    "prune_channels": "--prune-channels",
    "prune_magnitude": "--prune-magnitude",
    "distill": "--distill",
    "qat": "--qat",
}


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add = parser.add_mutually_exclusive_group().add_argument
    add("--prune-channels", type=float, metavar="SHARE", help="a recipe of one word: remove channels, keep this "
        "share of the MACs")  # fmt: skip
    add("--prune-magnitude", type=float, metavar="SPARSITY", help="or: make this share of the weights zero")
    parser.add_argument(
        "--distill", nargs="?", const="source", metavar="TEACHER",
        help="beside them: learn from this Keras model, too (default: the source)",
    )  # fmt: skip
    parser.add_argument(
        "--qat", nargs="?", const=8, type=int, choices=(8, 4), help="train with the rounding of 8 or 4 bits"
    )


def with_flags(recipe: Recipe | None, arguments: argparse.Namespace) -> Recipe | None:
    """A recipe with what the flags say in place of its own; without flags the recipe that was given.

    Args:
        recipe: of --recipe; None without one.

    Raises:
        RecipeError: the flags contradict each other or the recipe, or a value is out of range.
    """
    said = {flag: getattr(arguments, name) for name, flag in FLAGS.items() if getattr(arguments, name) is not None}
    if not said:
        return recipe
    words = " ".join(f"{flag} {value}" for flag, value in said.items())
    base = recipe or Recipe(NAME, words)
    made = replace(
        base,
        name=NAME,
        description=f"{recipe.name} with {words}" if recipe else words,
        prune=_prune(base.prune, arguments),
        distill=_distill(base.distill, arguments.distill),
        qat=replace(base.qat or Qat(), bits=arguments.qat) if arguments.qat else base.qat,
    )
    _check(made, words)
    return made


def _prune(given: Prune | None, arguments: argparse.Namespace) -> Prune | None:
    if arguments.prune_channels is not None:
        base = given if given and given.kind == "channels" else Prune("channels")
        return replace(base, measure="macs", target=arguments.prune_channels)
    if arguments.prune_magnitude is not None:
        base = given if given and given.kind == "magnitude" else Prune("magnitude")
        return replace(base, sparsity=arguments.prune_magnitude)
    return given


def _distill(given: Distill | None, teacher: str | None) -> Distill | None:
    return given if teacher is None else replace(given or Distill(), teacher=teacher)


def _check(recipe: Recipe, words: str) -> None:
    """Hold it against the schema of a file."""
    reference = tomllib.loads(reference_recipe().read_text(encoding="utf-8"))
    values = recipe.values()
    data = {key: value for key, value in values.items() if key in ("name", "description", "train")}
    data |= {
        key: _complete(values[key], asdict(recipe)[key]) for key in ("prune", "distill", "qat") if key in values
    }
    problems = validate(data, reference, words) or [Problem(words, *fault) for fault in contradictions(data, NAME)]
    if recipe.qat is not None and recipe.prune is not None and recipe.prune.kind == "magnitude":
        problems.append(Problem(words, "qat", "would train the zeros of magnitude pruning away; take channels"))
    if problems:
        raise RecipeError(
            f"{words} cannot be:", f"Every key is explained in {reference_recipe()}.", tuple(problems)
        )


def _complete(values: Mapping[str, Any], every: Mapping[str, Any]) -> dict[str, Any]:
    """A table as a file would have it: without the names of layers where there are none."""
    return {key: value for key, value in values.items() if every[key] != ()}

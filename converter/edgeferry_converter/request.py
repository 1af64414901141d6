"""What a user asks of a conversion."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgeferry_converter.gate import DEFAULT_MAX_DROP
from edgeferry_converter.loading.source import LoadOptions
from edgeferry_converter.recipe import Recipe

__all__ = ["ConversionRequest"]


@dataclass(frozen=True)
class ConversionRequest:
    """What the user asks for; see ``edgeferry convert --help``.

    Attributes:
        schemes: the variants of the bundle, preferred first; empty for the profile's default.
        keep_float: regular expression over layer names; what it finds is computed in float in the int8 variant.
        auto_keep_float: keep as few layers float as the gate needs.
        max_drop: of the task's metric; 0 turns the gate off.
        strict: warnings of the linter fail the conversion.
        recipe: what makes the model smaller before it is quantised; None quantises it as it is.
        train_data: what the recipe trains on.
    """

    model: Path
    profile: str
    data: Path | str
    eval_data: str | None = None
    labels: Path | None = None
    preprocess: str | None = None
    task: str | None = None
    schemes: tuple[str, ...] = ()
    keep_float: str | None = None
    auto_keep_float: bool = False
    max_drop: float = DEFAULT_MAX_DROP
    strict: bool = False
    output: Path | None = None
    seed: int = 0
    recipe: Recipe | None = None
    train_data: str | None = None
    load: LoadOptions = field(default_factory=LoadOptions)

"""Recipes: how a model is made smaller before it is quantised, read from TOML and held against one reference."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeferry_converter.errors import RecipeError
from edgeferry_converter.schema import Problem, did_you_mean, parse, validate

__all__ = [
    "Distill",
    "Prune",
    "Qat",
    "Recipe",
    "Train",
    "available_recipes",
    "load_recipe",
    "recipes_folder",
    "reference_recipe",
]

_REFERENCE = "reference"
_LARGEST = 1 << 20  # bytes
_OF_CHANNELS = (
    "measure",
    "target",
    "importance",
    "start_epochs",
    "rounds",
    "round_epochs",
    "reconstruct",
    "align",
)
_OF_MAGNITUDE = ("sparsity", "schedule", "initial_sparsity", "until", "pattern", "include", "exclude")


@dataclass(frozen=True)
class Train:
    """How weights are trained again; see the reference for each key."""

    epochs: int = 15
    learning_rate: float = 0.001
    optimizer: str = "adam"
    batch_size: int = 64
    patience: int = 0
    augment: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Prune:
    """What goes: channels (measure to align) or single weights (sparsity to pattern)."""

    kind: str
    measure: str = "macs"
    target: float = 0.5
    importance: str = "taylor"
    start_epochs: int = 4
    rounds: int = 4
    round_epochs: int = 1
    reconstruct: bool = True
    align: int = 8
    sparsity: float = 0.8
    schedule: str = "polynomial"
    initial_sparsity: float = 0.0
    until: float = 0.7
    pattern: str = "unstructured"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Distill:
    """Whose answers train the smaller model beside the labels."""

    teacher: str = "source"
    teacher_epochs: int = 10
    teacher_learning_rate: float = 0.001
    temperature: float = 4.0
    alpha: float = 0.5
    allow_weak: bool = False


@dataclass(frozen=True)
class Qat:
    """Training with the rounding of int8 in the loop."""

    weights: str = "per-channel"
    bits: int = 8
    float_epochs: int = 10
    epochs: int = 5
    learning_rate: float = 0.00003


@dataclass(frozen=True)
class Recipe:
    """One way from a model to its variants; a part that is None is left out.

    Attributes:
        recalibrate: whether BatchNorm's statistics are measured anew where nothing is trained; training always
            begins with that.
        schemes: the bundle's variants, preferred first; empty for the profile's default.
        max_drop: what a variant may lose; None for the default.
    """

    name: str
    description: str
    train: Train = Train()
    prune: Prune | None = None
    distill: Distill | None = None
    qat: Qat | None = None
    recalibrate: bool = False
    schemes: tuple[str, ...] = ()
    max_drop: float | None = None

    @property
    def trains(self) -> bool:
        """Whether it changes weights."""
        return self.prune is not None or self.qat is not None or self.distill is not None

    @property
    def needs_data(self) -> bool:
        """Whether it needs training data."""
        return self.trains or self.recalibrate

    def with_epochs(self, epochs: int) -> Recipe:
        """The same with so many epochs in each of its trainings; those that only prepare get no more than that."""

        def fewer(part: Any, *keys: str, **changes: int) -> Any:
            return part and replace(part, **{key: min(getattr(part, key), epochs) for key in keys}, **changes)

        return replace(
            self,
            train=replace(self.train, epochs=epochs),
            prune=fewer(self.prune, "start_epochs", "round_epochs"),
            distill=fewer(self.distill, "teacher_epochs"),
            qat=fewer(self.qat, "float_epochs", epochs=epochs),
        )

    def values(self) -> dict[str, Any]:
        """Plain values for the manifest and the report: the parts there are, complete."""
        found = asdict(self)
        if not self.trains:
            del found["train"]
        return {key: _plain(value) for key, value in found.items() if value not in (None, (), False)}


def recipes_folder() -> Path:
    """The folder of the shipped recipes."""
    return Path(__file__).resolve().parent / "recipes"


def reference_recipe() -> Path:
    """The file that explains every key and is the schema."""
    return recipes_folder() / f"{_REFERENCE}.toml"


def available_recipes() -> list[str]:
    """The names of the shipped recipes, sorted; the reference is none."""
    return sorted(file.stem for file in recipes_folder().glob("*.toml") if file.stem != _REFERENCE)


def load_recipe(name_or_path: str) -> Recipe:
    """Load a shipped recipe by name, or one of your own by its path.

    Args:
        name_or_path: a name such as ``channels-50``; anything with a folder in it or ending in .toml is a path.

    Raises:
        RecipeError: there is none, or it breaks the schema; all its problems are listed.
    """
    path = _find(name_or_path)
    data = _read(path)
    reference = _read(reference_recipe())
    if path.samefile(reference_recipe()):
        raise RecipeError(f"{path} explains the keys; it is no recipe.", "Copy what you need of it.")
    problems = validate(data, reference, path.name)
    if not problems:  # rules between keys would trip over values of the wrong type
        problems = [Problem(path.name, *fault) for fault in contradictions(data, path.stem)]
    if problems:
        raise _broken(path, problems)
    return _build(data)


def contradictions(data: Mapping[str, Any], stem: str) -> list[tuple[str, str]]:
    """Rules between keys of a recipe whose single values are right: dotted path, and what is wrong there."""
    faults = []
    if data["name"] != stem:
        faults.append(("name", f'is "{data["name"]}", but the file is called "{stem}"; make them equal'))
    prune = data.get("prune")
    if prune is not None:
        faults += _prune_faults(prune)
    if "distill" in data and prune is None and "qat" not in data:
        faults.append(("distill", "nothing makes the model smaller: add [prune] or [qat]"))
    if "quantize" in data and not data["quantize"].get("schemes", ["int8"]):
        faults.append(("quantize.schemes", "is empty; leave it out for the profile's default"))
    return faults


def _prune_faults(prune: Mapping[str, Any]) -> list[tuple[str, str]]:
    kind = prune["kind"]
    idle = _OF_MAGNITUDE if kind == "channels" else _OF_CHANNELS
    faults = [(f"prune.{key}", f'means nothing when prune.kind is "{kind}"') for key in idle if key in prune]
    for key in ("include", "exclude"):
        if not all(isinstance(pattern, str) and pattern for pattern in prune.get(key, ())):
            faults.append((f"prune.{key}", "must be a list of names, with * and ?"))
    if prune.get("pattern") == "2:4" and prune.get("sparsity", 0.5) != 0.5:
        faults.append(("prune.sparsity", "2:4 is always 0.5"))
    if prune.get("initial_sparsity", 0.0) > prune.get("sparsity", 0.8):
        faults.append(("prune.initial_sparsity", "is more than prune.sparsity"))
    return faults


def _find(name_or_path: str) -> Path:
    marks = (os.sep, os.altsep or os.sep)
    known = available_recipes()
    if not name_or_path.lower().endswith(".toml") and not any(mark in name_or_path for mark in marks):
        if name_or_path in known:
            return recipes_folder() / f"{name_or_path}.toml"
        hint = did_you_mean(name_or_path, known).removeprefix("; ").capitalize()
        raise _not_found(f"There is no recipe named {name_or_path!r}. {hint}".rstrip())
    try:
        path = Path(name_or_path).expanduser()
        found = path.is_file()
    except (ValueError, RuntimeError, OSError) as error:  # a NUL in it; ~nobody; a folder closed to us
        raise _not_found(f"The recipe {name_or_path!r} cannot be looked up: {error}") from None
    if not found:
        raise _not_found(f"The recipe {path} does not exist.")
    return path


def _not_found(message: str) -> RecipeError:
    return RecipeError(message, f"Known: {', '.join(available_recipes())}; or the path of a .toml file.")


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from None
    if len(raw) > _LARGEST:
        raise RecipeError(f"{path} is larger than a recipe can be (1 MiB).", "Name a recipe's file.")
    data, problems = parse(raw, path.name)
    if problems:
        raise _broken(path, problems)
    return data


def _broken(path: Path, problems: list[Problem]) -> RecipeError:
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return RecipeError(
        f"The recipe {path} has {count}:", f"Every key is explained in {reference_recipe()}.", tuple(problems)
    )


def _build(data: Mapping[str, Any]) -> Recipe:
    prune = data.get("prune")
    if prune is not None:
        prune = {key: tuple(value) if isinstance(value, list) else value for key, value in prune.items()}
        if prune.get("pattern") == "2:4":
            prune["sparsity"] = 0.5
    return Recipe(
        name=data["name"],
        description=data["description"],
        train=Train(**data.get("train", {})),
        prune=Prune(**prune) if prune is not None else None,
        distill=Distill(**data["distill"]) if "distill" in data else None,
        qat=Qat(**data["qat"]) if "qat" in data else None,
        recalibrate=data.get("recalibrate", False),
        schemes=tuple(data.get("quantize", {}).get("schemes", ())),
        max_drop=data.get("gate", {}).get("max_drop"),
    )


def _plain(value: Any) -> Any:
    """Tuples as the lists that JSON will make of them; of prune, the keys of its kind."""
    if isinstance(value, dict):
        idle = {"channels": _OF_MAGNITUDE, "magnitude": _OF_CHANNELS}.get(value.get("kind", ""), ())
        return {key: _plain(entry) for key, entry in value.items() if key not in idle}
    return list(value) if isinstance(value, tuple) else value

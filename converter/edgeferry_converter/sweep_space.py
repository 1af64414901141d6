"""The space of a sweep: a TOML of recipe keys with choices and ranges, held against the recipe's reference."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgeferry_converter.errors import SchemaError
from edgeferry_converter.recipe import contradictions, reference_recipe
from edgeferry_converter.schema import RULES_TABLE, Problem, did_you_mean, parse, validate

__all__ = [
    "Space",
    "SpaceError",
    "Suggests",
    "default_space",
    "describe",
    "impossible",
    "load_space",
    "recipe_toml",
    "suggest",
]

PARTS = "parts"
STEM = "recipe"  # of every trial's file, so that the same recipe finds the checkpoints of a trial that was ended
_ALWAYS = "train"  # needed by every part
_NOT_SEARCHED = ("name", "description", "quantize", "gate", RULES_TABLE)
_RANGE_KEYS = ("low", "high", "step", "log")
_LARGEST = 1 << 20  # bytes


class SpaceError(SchemaError):
    """A search space cannot be used."""


class Suggests(Protocol):
    """What chooses values: a trial of Optuna, or a test."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None,
                      log: bool = False) -> float: ...  # fmt: skip

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both among them; whole ones where the recipe's key is whole."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    def suggest(self, path: str, trial: Suggests) -> Any:
        """One of them."""
        if self.whole:
            return trial.suggest_int(path, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        value = trial.suggest_float(path, float(self.low), float(self.high), step=self.step, log=self.log)
        return float(f"{value:.4g}")  # a recipe is read by people


@dataclass(frozen=True)
class Space:
    """What may be tried.

    Attributes:
        parts: the tables of a recipe that go together; a trial has one of these.
        keys: dotted path -> the value, its choices (a tuple) or its range, in the reference's order.
    """

    parts: tuple[tuple[str, ...], ...]
    keys: Mapping[str, Any] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """As plain values, to tell one space from another."""
        plain = {path: vars(entry) if isinstance(entry, Range) else entry for path, entry in self.keys.items()}
        return dict(json.loads(json.dumps({PARTS: self.parts, **plain})))


def default_space() -> Path:
    """The space that is searched when nobody says otherwise."""
    return Path(__file__).resolve().parent / "spaces" / "default.toml"


def load_space(path: Path) -> Space:
    """Read a space.

    Raises:
        SpaceError: it cannot be read or breaks the schema; all its problems are listed.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
    except OSError as error:
        raise SpaceError(f"the space {path} cannot be read: {error.strerror}", "Check --space.") from None
    if len(raw) > _LARGEST:
        raise SpaceError(f"{path} is larger than a space can be (1 MiB)", "Name the file of a space.")
    data, problems = parse(raw, path.name)
    if not problems:
        space, problems = _read(data, path.name, _reference())
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise SpaceError(f"the space {path} has {count}:", f"{default_space()} is an example.", tuple(problems))
    return space


def suggest(space: Space, trial: Suggests) -> dict[str, Any]:
    """A recipe's tables, without its name: those of one of the parts, with the keys that mean something."""
    reference = _reference()
    names = [" + ".join(part) for part in space.parts]
    chosen = names[0] if len(names) == 1 else trial.suggest_categorical(PARTS, names)
    parts = (_ALWAYS, *space.parts[names.index(chosen)])
    data: dict[str, Any] = {}
    for path, entry in space.keys.items():
        part, key = path.split(".")
        if part not in parts or _means_nothing(data, part, key, reference):
            continue
        data.setdefault(part, {})[key] = _pick(path, entry, trial)
    return {part: data.get(part, {}) for part in parts}


def impossible(data: Mapping[str, Any]) -> str:
    """Why a recipe's tables contradict each other; empty when they do not."""
    faults = [f"{path} {message}" for path, message in _contradictions(data)]
    if "qat" in data and data.get("prune", {}).get("kind") == "magnitude":
        faults.append("qat would train the zeros of magnitude pruning away")
    return "; ".join(faults)


def recipe_toml(data: Mapping[str, Any]) -> str:
    """The file of a recipe: its tables as TOML, with a name and a description that tell what it does."""
    lines = [f'name = "{STEM}"', f"description = {json.dumps(describe(data))}"]
    for part, keys in data.items():
        lines += ["", f"[{part}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    return "\n".join(lines) + "\n"


def describe(data: Mapping[str, Any], known: Collection[str] = ()) -> str:
    """A recipe in a line.

    Args:
        known: paths that need not be said.
    """
    parts = []
    for part, keys in data.items():
        said = {key: value for key, value in keys.items() if f"{part}.{key}" not in known}
        values = ", ".join(f"{key} {value}" if key != "kind" else str(value) for key, value in said.items())
        if values or part != _ALWAYS:
            parts.append(f"{part}({values})" if values else part)
    return " ".join(parts)


def _reference() -> dict[str, Any]:
    return tomllib.loads(reference_recipe().read_text(encoding="utf-8"))


def _read(data: Mapping[str, Any], file: str, reference: Mapping[str, Any]) -> tuple[Space, list[Problem]]:
    sections = [key for key, value in reference.items() if isinstance(value, dict) and key not in _NOT_SEARCHED]
    found: dict[str, Any] = {}
    problems: list[Problem] = []
    parts = _parts(data.get(PARTS), file, [name for name in sections if name != _ALWAYS], problems)
    for path, value in _flat({key: value for key, value in data.items() if key != PARTS}, sections):
        part, _, key = path.partition(".")
        if part in _NOT_SEARCHED:
            problems.append(Problem(file, path, "is not searched; every trial is judged by its int8 variant"))
        elif part not in sections:
            problems.append(Problem(file, path, f"unknown key{did_you_mean(part, [PARTS, *sections])}"))
        elif not key:
            problems.append(Problem(file, path, f"must be a table; whether it is used is said by {PARTS}"))
        else:
            found[path] = _entry(path, value, reference[part].get(key), file, problems)
    used = {_ALWAYS, *(name for part in parts for name in part)}
    if parts:
        for path in found:
            if path.split(".")[0] not in used:
                problems.append(Problem(file, path, f"no entry of {PARTS} uses [{path.split('.')[0]}]"))
    problems += _by_the_recipe(found, used, reference, file)
    order = [f"{part}.{key}" for part in sections for key in reference[part]]
    keys = {path: found[path] for path in order if path in found}
    return Space(parts, keys), problems


def _parts(value: Any, file: str, known: Sequence[str], problems: list[Problem]) -> tuple[tuple[str, ...], ...]:
    if value is None:
        example = f'{PARTS} = [["prune"], ["prune", "distill"]]'
        problems.append(Problem(file, PARTS, f"missing; it says which tables go together: {example}"))
        return ()
    lists = isinstance(value, list) and all(isinstance(part, list) and part for part in value)
    if not lists or not value:
        problems.append(Problem(file, PARTS, 'must be a list of lists of tables, such as [["prune"], ["qat"]]'))
        return ()
    good = True
    for index, part in enumerate(value):
        for name in part:
            if name not in known:
                hint = did_you_mean(str(name), list(known))
                problems.append(
                    Problem(file, f"{PARTS}[{index}]", f"must be one of {', '.join(known)}, is {name!r}{hint}")
                )
                good = False
    # The order in which a recipe is carried out is fixed: these are sets.
    sorted_parts = [tuple(name for name in known if name in part) for part in value]
    return tuple(dict.fromkeys(sorted_parts)) if good else ()


def _flat(data: Mapping[str, Any], sections: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Tables and quoted dotted keys alike as (path, value)."""
    for key, value in data.items():
        if key in sections and isinstance(value, dict):
            yield from ((f"{key}.{name}", entry) for name, entry in value.items())
        else:
            yield key, value


def _entry(path: str, value: Any, example: Any, file: str, problems: list[Problem]) -> Any:
    """A value, a tuple of choices, or a range."""
    if isinstance(value, dict):
        return _range(path, value, example, file, problems)
    is_choice = isinstance(value, list) and (
        not isinstance(example, list) or (bool(value) and all(isinstance(one, list) for one in value))
    )
    if is_choice and not value:
        problems.append(Problem(file, path, "has no choice in it"))
    return tuple(value) if is_choice else value


def _range(path: str, value: Mapping[str, Any], example: Any, file: str, problems: list[Problem]) -> Any:
    before = len(problems)
    for key in value:
        if key not in _RANGE_KEYS:
            hint = did_you_mean(key, list(_RANGE_KEYS))
            problems.append(Problem(file, f"{path}.{key}", f"unknown key of a range{hint}"))
    for key in ("low", "high", "step"):
        if key not in value:
            if key != "step":
                problems.append(Problem(file, path, f"a range needs {key}"))
        elif isinstance(value[key], bool) or not isinstance(value[key], int | float):
            problems.append(Problem(file, f"{path}.{key}", "must be a number"))
    if not isinstance(value.get("log", False), bool):
        problems.append(Problem(file, f"{path}.log", "must be true or false"))
    if isinstance(example, bool) or not isinstance(example, int | float | None):
        problems.append(Problem(file, path, "is no number: give a list of choices"))
    if len(problems) > before:
        return None
    low, high, step, log = value["low"], value["high"], value.get("step"), value.get("log", False)
    whole = isinstance(example, int)
    if whole and not all(isinstance(one, int) for one in (low, high, step or 1)):
        problems.append(Problem(file, path, "must have whole low, high and step"))
    if not low < high:
        problems.append(Problem(file, path, f"low ({low}) must be less than high ({high})"))
    if step is not None and (log or not step > 0):
        problems.append(Problem(file, path, "step must be more than 0, and none goes with log"))
    if log and not low > 0:
        problems.append(Problem(file, path, "log needs a low above 0"))
    return Range(low, high, step, log, whole) if len(problems) == before else None


def _by_the_recipe(
    found: Mapping[str, Any], used: set[str], reference: Mapping[str, Any], file: str
) -> list[Problem]:
    """What the recipe's own schema says of every value that could be tried, each fault once."""
    first: dict[str, Any] = {"name": STEM, "description": "x", **{part: {} for part in used}}
    for path, entry in found.items():
        part, key = path.split(".")
        first.setdefault(part, {})[key] = _ends(entry)[0]
    problems: dict[str, Problem] = {}
    for path, entry in found.items():
        part, key = path.split(".")
        for value in _ends(entry):
            one = {**first, part: {**first[part], key: value}}
            for problem in validate(one, reference, file):
                problems.setdefault(str(problem), problem)
    if not found:
        problems = {str(problem): problem for problem in validate(first, reference, file)}
    return list(problems.values())


def _ends(entry: Any) -> list[Any]:
    """Values that stand for all of an entry."""
    if isinstance(entry, Range):
        return [entry.low, entry.high]
    return list(entry) or [None] if isinstance(entry, tuple) else [entry]


def _means_nothing(data: Mapping[str, Any], part: str, key: str, reference: Mapping[str, Any]) -> bool:
    """Whether a key is idle beside those that were chosen before it, told by the recipe's own rules."""
    with_it = {**data, part: {**data.get(part, {}), key: reference[part][key]}}
    return any(path == f"{part}.{key}" for path, _ in _contradictions(with_it))


def _contradictions(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    return contradictions({"name": STEM, "description": "x", **data}, STEM)


def _pick(path: str, entry: Any, trial: Suggests) -> Any:
    if isinstance(entry, Range):
        return entry.suggest(path, trial)
    if not isinstance(entry, tuple):
        return entry
    if len(entry) == 1:
        return entry[0]
    if any(isinstance(choice, list) for choice in entry):  # which Optuna does not store
        return json.loads(trial.suggest_categorical(path, [json.dumps(choice) for choice in entry]))
    return trial.suggest_categorical(path, list(entry))

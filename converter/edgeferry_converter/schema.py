"""Validates a parsed TOML file by walking a commented reference file, which is documentation and schema in one.

The reference is an ordinary example whose values give the types.  What an example cannot say stands in its
table ``[reference]``, which no other file may have; every key is a dotted path:

    optional = ["board.mhz"]                     keys (or whole tables) that may be left out
    open = ["sources"]                           tables whose keys are free; the values' type is the example's
    [reference.choices]  "board.arch" = [...]    the only values allowed
    [reference.ranges]   "board.cores" = [1, 8]  smallest and largest number allowed
    [reference.patterns] "board.glibc_min" = ''  regular expression that the whole text must match

A list is described by its first element, whose path ends in ``[]`` (``steps[].kind``); rules on a list's path
hold for each of its elements when these are plain values.  Other keys of [reference] are the caller's own.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["RULES_TABLE", "Problem", "did_you_mean", "dotted", "lookup", "parse", "validate"]

RULES_TABLE = "reference"
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_KINDS = {
    "dict": "a table",
    "list": "a list",
    "str": "text",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "datetime": "a date and time",
    "date": "a date",
    "time": "a time",
}


@dataclass(frozen=True)
class Problem:
    """One fault of one file: where it lies, and what is wrong there."""

    file: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


def parse(raw: bytes, file: str) -> tuple[dict[str, Any], list[Problem]]:
    """Read TOML; whatever stops the reading becomes the one problem of an otherwise empty answer."""
    try:
        # Windows editors put a byte order mark first, which TOML itself refuses.
        data = tomllib.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return {}, [Problem(file, "", f"not a text file: byte {error.start} is not UTF-8")]
    except tomllib.TOMLDecodeError as error:
        return {}, [Problem(file, "", f"not valid TOML: {error}")]
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets without end
        return {}, [Problem(file, "", f"not readable as TOML: {error}")]
    return data, [] if data else [Problem(file, "", "the file holds no keys")]


def validate(data: Mapping[str, Any], reference: Mapping[str, Any], file: str) -> list[Problem]:
    """Compare ``data`` with the reference and list every difference that matters.

    Args:
        data: the parsed file.
        reference: the parsed reference file, its table [reference] included.
        file: the name that the problems carry.

    Returns:
        All problems, in the order of the reference's keys, unknown keys after the known ones of their table;
        empty when the file is valid.
    """
    walk = _Walk(file, reference)
    walk.table(data, walk.example, "", "")
    return walk.problems


def dotted(*keys: str) -> str:
    """Join keys into a path as TOML writes it: a key that is not a bare word is quoted."""
    return ".".join(key if _BARE_KEY.fullmatch(key) else json.dumps(key) for key in keys)


def lookup(data: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path of bare keys, or None where there is none."""
    value: Any = data
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return `; did you mean "x"?` for the nearest known word, or nothing."""
    lowered = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6)
    return f'; did you mean "{lowered[near[0]]}"?' if near else ""


class _Walk:
    """One pass over one file: the rules and the problems found so far.

    Two paths go along: ``shown`` is what a person reads (``steps[2].kind``), ``rule`` is what [reference]
    calls it (``steps[].kind``).
    """

    def __init__(self, file: str, reference: Mapping[str, Any]) -> None:
        rules = reference.get(RULES_TABLE, {})
        self.file = file
        self.example = {key: value for key, value in reference.items() if key != RULES_TABLE}
        self.optional = frozenset(rules.get("optional", ()))
        self.open = frozenset(rules.get("open", ()))
        self.choices: Mapping[str, list[Any]] = rules.get("choices", {})
        self.ranges: Mapping[str, list[float]] = rules.get("ranges", {})
        self.patterns: Mapping[str, str] = rules.get("patterns", {})
        self.problems: list[Problem] = []

    def note(self, path: str, message: str) -> None:
        self.problems.append(Problem(self.file, path, message))

    def table(self, data: Mapping[str, Any], example: Mapping[str, Any], shown: str, rule: str) -> None:
        for key, wanted in example.items():
            here, rule_here = _join(shown, key), _join(rule, key)
            if key in data:
                self.value(data[key], wanted, here, rule_here)
            elif rule_here not in self.optional:
                self.missing(wanted, here, rule_here)
        for key in data:
            if key not in example:
                self.unknown(key, example, shown)

    def missing(self, wanted: Any, shown: str, rule: str) -> None:
        if not isinstance(wanted, dict):
            self.note(shown, f"missing; it is {_kind(wanted)}, for example {_show(wanted)}")
        elif rule in self.open:
            self.note(shown, f"missing table [{shown}]")
        else:
            required = [key for key in wanted if _join(rule, key) not in self.optional]
            if required:  # a table that asks for nothing may be absent
                self.note(shown, f"missing table [{shown}]; it needs {', '.join(required)}")

    def unknown(self, key: str, example: Mapping[str, Any], shown: str) -> None:
        if not shown and key == RULES_TABLE:
            self.note(key, "only the reference file itself has this table; delete it")
            return
        # A key that another table has was put into the wrong one: surer than any likeness.
        elsewhere = [path for path in _paths(self.example) if path.rsplit(".", 1)[-1] == key]
        hint = f'; did you mean "{elsewhere[0]}"?' if elsewhere else did_you_mean(key, list(example))
        self.note(_join(shown, key), f"unknown key{hint}")

    def value(self, value: Any, wanted: Any, shown: str, rule: str) -> None:
        if not _same_kind(value, wanted):
            given = _kind(value) if isinstance(value, dict | list) else f"{_kind(value)} ({_show(value)})"
            self.note(shown, f"must be {_kind(wanted)}, is {given}")
        elif isinstance(wanted, dict) and rule in self.open:
            self.open_table(value, wanted, shown)
        elif isinstance(wanted, dict):
            self.table(value, wanted, shown, rule)
        elif isinstance(wanted, list):
            self.elements(value, wanted, shown, rule)
        else:
            self.rules(value, shown, rule)

    def open_table(self, value: dict[str, Any], example: dict[str, Any], shown: str) -> None:
        wanted = next(iter(example.values()), None)
        for key, entry in value.items():
            if wanted is not None and not _same_kind(entry, wanted):
                self.note(_join(shown, key), f"must be {_kind(wanted)}, is {_kind(entry)}")

    def elements(self, value: list[Any], wanted: list[Any], shown: str, rule: str) -> None:
        if not wanted:
            return
        plain = not isinstance(wanted[0], dict | list)
        for index, element in enumerate(value):
            self.value(element, wanted[0], f"{shown}[{index}]", rule if plain else f"{rule}[]")

    def rules(self, value: Any, shown: str, rule: str) -> None:
        if rule in self.choices and value not in self.choices[rule]:
            known = [str(choice) for choice in self.choices[rule]]
            hint = did_you_mean(value, known) if isinstance(value, str) else ""
            self.note(shown, f"must be one of {', '.join(known)}, is {_show(value)}{hint}")
        if rule in self.ranges:
            least, most = self.ranges[rule]
            if not least <= value <= most:  # nan is outside every range
                self.note(shown, f"must lie between {least} and {most}, is {_show(value)}")
        if rule in self.patterns and not re.fullmatch(self.patterns[rule], value):
            example = lookup(self.example, rule.replace("[]", ""))
            example = example[0] if isinstance(example, list) and example else example
            self.note(shown, f"must look like {_show(example)}, is {_show(value)}")


def _join(path: str, key: str) -> str:
    return f"{path}.{dotted(key)}" if path else dotted(key)


def _paths(example: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in example.items():
        path = _join(prefix, key)
        yield path
        if isinstance(value, dict):
            yield from _paths(value, path)


def _same_kind(value: Any, wanted: Any) -> bool:
    # A bool is an int to Python but not to a reader; a whole number is a fine float.
    return type(value) is type(wanted) or (type(wanted) is float and type(value) is int)


def _kind(value: Any) -> str:
    return _KINDS.get(type(value).__name__, type(value).__name__)


def _show(value: Any) -> str:
    """The value as TOML would write it, short, with control characters escaped (it goes to a terminal)."""
    try:
        text = json.dumps(value, default=str)
    except ValueError:  # hexadecimal notation lets in numbers too long for Python to print
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Typed reading of parsed JSON that notes every problem with its path instead of stopping at the first.

Each getter returns a value of the type it promises even when the input is wrong (a neutral one, after noting
the problem), so that the readers above it stay straight lines.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Pattern, Sequence, TypeVar

T = TypeVar("T")

_MISSING: Any = object()
_KINDS = {
    str: "a string",
    int: "an integer",
    float: "a number",
    list: "a list",
    dict: "an object",
    bool: "true or false",
}


class Fields:
    """The keys of one JSON object.

    Args:
        value: the parsed object; anything but a dict is noted as a problem.
        path: dotted path of the object inside the file, "" at the top.
        problems: the list all parts of one file share.
    """

    def __init__(self, value: Any, path: str = "", problems: list[str] | None = None) -> None:
        self.problems: list[str] = [] if problems is None else problems
        self.path = path
        self._known: list[str] = []
        self._value: dict[str, Any] = value if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            self.problems.append("{}: must be an object, is {}".format(path or "top level", _kind(value)))
            self._broken = True
        else:
            self._broken = False

    def problem(self, key: str, message: str) -> None:
        """Note that the value at ``key`` is wrong."""
        self.problems.append("{}: {}".format(self._at(key), message))

    def finish(self) -> list[str]:
        """Note every key nobody asked for and return all problems so far."""
        for key in self._value:
            if key not in self._known:
                self.problem(key, "is unknown" + did_you_mean(key, self._known))
        return self.problems

    def text(
        self,
        key: str,
        default: str = _MISSING,
        pattern: Pattern[str] | None = None,
        means: str = "",
    ) -> str:
        value: str = self._get(key, str, default, "")
        if pattern is not None and self._sound(key, value) and not pattern.match(value):
            self.problem(key, "is {!r}, must be {}".format(value, means))
        return value

    def choice(self, key: str, allowed: Sequence[str], default: str = _MISSING) -> str:
        value: str = self._get(key, str, default, allowed[0])
        self._check_choice(key, value, allowed)
        return value

    def choices(self, key: str, allowed: Sequence[str], minimum_length: int = 1) -> tuple[str, ...]:
        values = self.texts(key, minimum_length)
        for value in values:
            self._check_choice(key, value, allowed)
        return values

    def integer(
        self, key: str, default: int = _MISSING, minimum: int | None = None, maximum: int | None = None
    ) -> int:
        value: int = self._get(key, int, default, minimum or 0)
        self._check_range(key, value, minimum, maximum)
        return value

    def optional_integer(self, key: str, minimum: int | None = None) -> int | None:
        if self._is_null(key):
            return None
        return self.integer(key, minimum=minimum)

    def number(
        self, key: str, default: float = _MISSING, above: float | None = None,
        minimum: float | None = None, maximum: float | None = None,
    ) -> float:  # fmt: skip
        value = float(self._get(key, float, default, 1.0))
        self._check_range(key, value, minimum, maximum)
        if above is not None and not value > above:
            self.problem(key, "is {}, must be greater than {}".format(value, above))
        return value

    def share(self, key: str, default: float = _MISSING) -> float:
        """A number from 0 to 1."""
        return self.number(key, default, minimum=0, maximum=1)

    def optional(self, key: str, read: Callable[[str], T]) -> T | None:
        """What ``read`` makes of the key; None where the key is absent or null."""
        return None if self._is_null(key) else read(key)

    def boolean(self, key: str, default: bool = _MISSING) -> bool:
        value: bool = self._get(key, bool, default, False)
        return value

    def integers(
        self, key: str, minimum_length: int = 0, minimum: int | None = None, maximum: int | None = None
    ) -> tuple[int, ...]:
        values: tuple[int, ...] = self._list(key, int, minimum_length)
        for value in values:
            self._check_range(key, value, minimum, maximum)
        return values

    def numbers(self, key: str, minimum_length: int = 0, default: Sequence[float] = _MISSING) -> tuple[float, ...]:
        if default is not _MISSING and key not in self._value:
            self._known.append(key)
            return tuple(default)
        return tuple(float(value) for value in self._list(key, float, minimum_length))

    def texts(self, key: str, minimum_length: int = 0) -> tuple[str, ...]:
        values: tuple[str, ...] = self._list(key, str, minimum_length)
        return values

    def table(self, key: str) -> dict[str, Any]:
        """A free JSON object, kept as it is."""
        value: dict[str, Any] = self._get(key, dict, _MISSING, {})
        return value

    def texts_by_name(self, key: str) -> dict[str, str]:
        table = self.table(key)
        for name, value in table.items():
            if not isinstance(value, str):
                self.problem("{}.{}".format(key, name), "must be a string, is {}".format(_kind(value)))
        return {name: value for name, value in table.items() if isinstance(value, str)}

    def part(self, key: str, read: Callable[[Fields], T]) -> T:
        return self._read(key, self._get(key, dict, _MISSING, _MISSING), read)

    def optional_part(self, key: str, read: Callable[[Fields], T]) -> T | None:
        return None if self._is_null(key) else self.part(key, read)

    def parts(self, key: str, read: Callable[[Fields], T], minimum_length: int = 0) -> tuple[T, ...]:
        values = self._list(key, dict, minimum_length)
        return tuple(self._read("{}[{}]".format(key, i), value, read) for i, value in enumerate(values))

    def parts_by_name(self, key: str, read: Callable[[Fields], T]) -> dict[str, T]:
        table = self.table(key)
        return {name: self._read("{}.{}".format(key, name), value, read) for name, value in table.items()}

    # What the getters above are made of.

    def _at(self, key: str) -> str:
        return "{}.{}".format(self.path, key) if self.path else key

    def _is_null(self, key: str) -> bool:
        if self._value.get(key) is not None:
            return False
        self._known.append(key)
        return True

    def _sound(self, key: str, value: Any) -> bool:
        return key in self._value and self._value[key] is value

    def _get(self, key: str, kind: type, default: Any, neutral: Any) -> Any:
        self._known.append(key)
        if key not in self._value:
            if default is not _MISSING:
                return default
            if not self._broken:  # one problem for an object that is none, not one for each of its keys
                self.problem(key, "is missing")
            return neutral
        value = self._value[key]
        if not _is(value, kind):
            self.problem(key, "must be {}, is {}".format(_KINDS[kind], _kind(value)))
            return neutral
        return value

    def _list(self, key: str, kind: type, minimum_length: int) -> tuple[Any, ...]:
        values = self._get(key, list, _MISSING, _MISSING)
        if values is _MISSING:
            return ()
        for i, value in enumerate(values):
            if not _is(value, kind):
                self.problem("{}[{}]".format(key, i), "must be {}, is {}".format(_KINDS[kind], _kind(value)))
        if len(values) < minimum_length:
            self.problem(key, "has {} entries, needs at least {}".format(len(values), minimum_length))
        return tuple(value for value in values if _is(value, kind))

    def _read(self, key: str, value: Any, read: Callable[[Fields], T]) -> T:
        missing = value is _MISSING
        part = Fields({} if missing else value, self._at(key), self.problems)
        part._broken = part._broken or missing
        result = read(part)
        part.finish()
        return result

    def _check_choice(self, key: str, value: str, allowed: Sequence[str]) -> None:
        if value not in allowed:
            names = ", ".join(repr(name) for name in allowed)
            self.problem(key, "is {!r}, must be one of {}".format(value, names) + did_you_mean(value, allowed))

    def _check_range(self, key: str, value: float, minimum: float | None, maximum: float | None) -> None:
        if minimum is not None and value < minimum:
            self.problem(key, "is {}, must be at least {}".format(value, minimum))
        if maximum is not None and value > maximum:
            self.problem(key, "is {}, must be at most {}".format(value, maximum))


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """ ", did you mean 'x'?" or nothing."""
    import difflib  # only a message needs it, a good start does not

    close = difflib.get_close_matches(word, [name for name in known if name], n=1)
    return ", did you mean {!r}?".format(close[0]) if close else ""


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        # 1e999 parses to infinity, and an integer past the range of a double cannot be converted.
        return isinstance(value, (int, float)) and abs(value) < 1e300 and math.isfinite(value)
    return isinstance(value, kind)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    return _KINDS.get(type(value), type(value).__name__)

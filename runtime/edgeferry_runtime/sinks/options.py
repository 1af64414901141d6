"""Options in a sink's URI, ``name=value&name=value``: typed, in range, and none that nobody knows."""

from __future__ import annotations

import re
from typing import Any, Mapping, NamedTuple

from edgeferry_runtime.errors import SinkError, UsageError
from edgeferry_runtime.fields import did_you_mean

__all__ = ["REQUIRED", "Option", "read_options", "read_secret"]

REQUIRED: Any = object()
_PATTERNS = {
    int: r"-?[0-9]{1,18}\Z",
    float: r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,2})?\Z",
    bool: r"(0|1|false|true)\Z",
    str: r"(?s).",
}
_MEANS = {int: "a whole number", float: "a number", bool: "1 or 0", str: "not empty"}


class Option(NamedTuple):
    """What one option may be.

    Attributes:
        kind: int, float, bool or str.
        default: what it is when it is not given; REQUIRED when it must be.
        minimum, maximum: of a number, both included.
    """

    kind: type
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None


def read_options(text: str, known: Mapping[str, Option], sink: str) -> dict[str, Any]:
    """A value for every known option.

    Args:
        text: "name=value&name=value" or ""; values are percent-decoded (``%26`` is "&").
        known: by name.
        sink: what the options belong to, for messages; without secrets.

    Raises:
        UsageError: with every fault at once; never repeats a value that was meant for an unknown option, which
            may be a password.
    """
    values: dict[str, Any] = {}
    problems = []
    if text:
        from urllib.parse import unquote  # takes longer to import than all sinks without options
    for item in text.split("&") if text else ():
        name, _, value = item.partition("=")
        if name not in known:
            shown = repr(name) if re.match(r"[a-z_]{1,30}\Z", name) else "one of them"
            problems.append("{} is no option{}".format(shown, did_you_mean(name, list(known))))
        elif name in values:
            problems.append("{!r} is given twice".format(name))
        else:
            values[name], problem = _read(unquote(value), known[name])
            if problem:
                problems.append("{!r} is no option: {} must be {}".format(item, name, problem))
    for name, option in known.items():
        if name not in values and option.default is REQUIRED:
            problems.append("{!r} is missing".format(name))
    if problems:
        raise UsageError(
            "{}: {}".format(sink, "; ".join(problems)),
            "Options are {}.".format(", ".join("{}={}".format(n, o.kind.__name__) for n, o in known.items())),
        )
    return {name: values.get(name, option.default) for name, option in known.items()}


def _read(text: str, option: Option) -> tuple[Any, str]:
    """The value, and what it must be instead, "" when it is right."""
    kind, _, minimum, maximum = option
    if not re.match(_PATTERNS[kind], text):
        return None, _MEANS[kind]
    value = text in ("1", "true") if kind is bool else kind(text)
    if minimum is not None and value < minimum:
        return None, "at least {:g}".format(minimum)
    if maximum is not None and value > maximum:
        return None, "at most {:g}".format(maximum)
    return value, ""


def read_secret(path: str, what: str) -> str:
    """The one line a file holds, a password or a token; no message ever shows it.

    Raises:
        SinkError: it cannot be read, or holds anything but one line of printable characters.
    """
    try:
        with open(path, encoding="utf-8") as file:
            secret = file.read(4097).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SinkError("{}: the {} cannot be read: {}".format(path, what, reason), "Check the path.") from None
    if not secret.isprintable() or not 0 < len(secret) <= 4096:
        raise SinkError(
            "{}: holds no {}".format(path, what), "Write the {} into it, as its only line.".format(what)
        )
    return secret

"""Options of a source, written behind a question mark: ?size=640x480&fps=30."""

from __future__ import annotations

import re
from typing import Any, Callable, Mapping

from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.fields import did_you_mean
from edgeferry_runtime.preprocessing import MAX_SIDE

__all__ = ["flag", "one_of", "positive", "read_options", "redacted", "size"]


def read_options(uri: str, known: Mapping[str, Callable[[str], Any]]) -> tuple[str, dict[str, Any]]:
    """Part what stands before the question mark from the options behind it.

    Args:
        uri: "WHAT?name=value&name=value".
        known: for each option what makes a value of its text; it raises ValueError with what is wanted.

    Returns:
        WHAT, and the options that were given.

    Raises:
        UsageError: an option is unknown, given twice, or has a wrong value.
    """
    what, mark, tail = uri.partition("?")
    options: dict[str, Any] = {}
    for part in tail.split("&") if mark else ():
        name, _, text = part.partition("=")
        if name not in known:
            raise UsageError(
                "{}: {!r} is no option{}".format(what, name, did_you_mean(name, list(known))),
                "Options here: {}.".format(", ".join(known)) if known else "This kind of source has none.",
            )
        if name in options:
            raise UsageError("{}: {} is given twice".format(what, name), "Keep one of them.")
        try:
            options[name] = known[name](text)
        except ValueError as error:
            raise UsageError("{}: {} is {!r}, must be {}".format(what, name, text, error), "Correct it.") from None
    return what, options


def redacted(uri: str) -> str:
    """A uri without user, password and query, for messages, logs and state."""
    return re.sub(r"(://[^?]*)\?.*", r"\1?***", re.sub(r"://.*@", "://***@", uri))


def size(text: str) -> tuple[int, int]:
    """(width, height) of "640x480"."""
    match = re.match(r"(\d{1,5})x(\d{1,5})\Z", text)
    if not match or not all(1 <= int(side) <= MAX_SIDE for side in match.groups()):
        raise ValueError("a size such as 640x480, sides of 1 to {}".format(MAX_SIDE))
    return int(match.group(1)), int(match.group(2))


def positive(text: str) -> float:
    """A number above 0, and finite."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise ValueError("a number above 0")
    return number


def flag(text: str) -> bool:
    """1 or 0."""
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def one_of(*names: str) -> Callable[[str], str]:
    """One of these words."""

    def read(text: str) -> str:
        if text not in names:
            raise ValueError("one of {}".format(", ".join(names)))
        return text

    return read

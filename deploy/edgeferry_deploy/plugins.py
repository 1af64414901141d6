"""Verbs that other distributions bring through the entry-point group `edgeferry.commands`."""

from __future__ import annotations

import argparse
import difflib
from importlib.metadata import entry_points
from typing import Protocol, cast

from edgeferry_runtime.errors import DependencyError, UsageError

from edgeferry_deploy.errors import printable
from edgeferry_deploy.verbs import ELSEWHERE, VERBS

__all__ = ["Command", "load"]


class Command(Protocol):
    """What an entry point loads to."""

    summary: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; the exit code."""


def load(group: str, verb: str) -> Command:
    """The command behind a verb.

    Raises:
        DependencyError: the distribution that brings it is not installed, or is broken.
        UsageError: nobody knows the verb; names those that come close.
    """
    found = {point.name: point for point in entry_points(group=group)}
    if verb in found:
        try:
            return cast(Command, found[verb].load())
        except (ImportError, AttributeError) as error:
            raise DependencyError(
                f"'edgeferry {verb}' cannot be loaded: {error}", f"pip install {owner(verb)} again"
            ) from error
    if verb in ELSEWHERE:
        raise DependencyError(f"'edgeferry {verb}' is not installed", f"pip install {owner(verb)}")
    close = difflib.get_close_matches(verb, [*VERBS, *ELSEWHERE, *found], n=2)
    hint = f"did you mean {' or '.join(repr(name) for name in close)}?" if close else "see: edgeferry --help"
    raise UsageError(f"there is no verb {printable(verb, 40)!r}", hint)


def owner(verb: str) -> str:
    """The distribution that brings a verb."""
    return ELSEWHERE[verb][0] if verb in ELSEWHERE else "its distribution"

"""The converter's commands, which `edgeferry` finds through the entry-point group ``edgeferry.commands``.

Nothing here imports TensorFlow before a command runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from edgeferry_converter import cli_convert, cli_inspect, cli_lint, cli_profiles, cli_recipes, cli_sweep

__all__ = ["Command", "convert", "inspect", "lint", "profiles", "recipes", "sweep"]


@dataclass(frozen=True)
class Command:
    """One verb of the command line.

    Attributes:
        summary: one line for the overview.
        configure: adds the arguments.
        run: does it and returns the exit code.
    """

    summary: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


convert = Command(cli_convert.SUMMARY, cli_convert.configure, cli_convert.run)
inspect = Command(cli_inspect.SUMMARY, cli_inspect.configure, cli_inspect.run)
lint = Command(cli_lint.SUMMARY, cli_lint.configure, cli_lint.run)
recipes = Command(cli_recipes.SUMMARY, cli_recipes.configure, cli_recipes.run)
profiles = Command(cli_profiles.SUMMARY, cli_profiles.configure, cli_profiles.run)
sweep = Command(cli_sweep.SUMMARY, cli_sweep.configure, cli_sweep.run)

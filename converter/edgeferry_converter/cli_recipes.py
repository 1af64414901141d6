"""`edgeferry recipes`: list the recipes, show or validate one."""

from __future__ import annotations

import argparse
import json
import sys

from edgeferry_converter.recipe import available_recipes, load_recipe, reference_recipe

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "list ways to make a model smaller before it is quantised"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="NAME_OR_FILE",
        help="the recipe to show, complete: a name from the list, or your own .toml file, which this validates",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON instead of text")
    output.add_argument(
        "--reference", action="store_true", help="print the reference file, which explains every key"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments ask; returns the exit code.

    Raises:
        RecipeError: the recipe is unknown or broken.
    """
    if arguments.reference:
        sys.stdout.write(reference_recipe().read_text(encoding="utf-8"))
        return 0
    if arguments.recipe is not None:
        print(json.dumps(load_recipe(arguments.recipe).values(), indent=1))
        return 0
    recipes = [load_recipe(name) for name in available_recipes()]
    if arguments.json:
        print(json.dumps([recipe.values() for recipe in recipes], indent=1))
        return 0
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        print(f"{recipe.name:{width}}  {recipe.description}")
    return 0

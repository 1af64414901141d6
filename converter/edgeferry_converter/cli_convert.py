"""`edgeferry convert`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from edgeferry_runtime.postprocessing import TASKS

from edgeferry_converter.recipe_flags import add_recipe_flags, with_flags

if TYPE_CHECKING:
    from edgeferry_converter.recipe import Recipe

__all__ = ["SUMMARY", "add_data", "add_loading", "configure", "loading_options", "run"]

SUMMARY = "turn a Keras model into a bundle for one kind of board"
SCHEMES = ("int8", "float16", "float32", "dynamic", "int16x8")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help=".keras, .h5, SavedModel, .tflite, or weights with --builder")
    add("--profile", required=True, metavar="NAME", help="the board it is for; `edgeferry profiles` lists them")
    add_data(parser)
    add("--quantize", metavar="SCHEMES", help=f"{', '.join(SCHEMES)}; several by commas, preferred first")
    add("--keep-float", metavar="REGEX", help="layers of the int8 model that stay float")
    add("--auto-keep-float", action="store_true", help="keep as few layers float as the gate needs")
    add("--max-drop", type=float, metavar="X", help="what a variant may lose (0.01, or the recipe's); 0: gate off")
    add("--recipe", metavar="NAME|FILE", help="make it smaller first; `edgeferry recipes` lists them")
    add_recipe_flags(parser)
    add("--train-data", metavar="DATA", help="what the recipe trains on: folder a class, .npz or module:function")
    add("--epochs", type=int, metavar="N", help="instead of the recipe's, for each of its trainings")
    add("--strict", action="store_true", help="warnings about the data, and unused parts of a checkpoint, fail")
    add("-o", "--output", type=Path, metavar="FILE", help="the bundle; default: the model's name with .ferry")
    add_loading(parser)
    add("--json", action="store_true", help="print the report as JSON")
    add("--verbose", action="store_true", help="show tracebacks and TensorFlow's own messages")


def add_data(parser: argparse.ArgumentParser) -> None:
    """What calibrates and judges, and how it reaches the model."""
    add = parser.add_argument
    add("--data", required=True, metavar="DATA", help="folder a class, .npz, COCO, YOLO, masks or module:function")
    add("--eval-data", metavar="DATA", help="judge with this; --data then only calibrates")
    add("--labels", type=Path, metavar="FILE", help="one label a line in the order of the model's outputs")
    add("--task", choices=TASKS, help="default: told by the labels of the data")
    add(
        "--preprocess",
        metavar="PRESET|FILE[,KEY=VALUE...]",
        help="raw (default), unit, tf, torch or caffe, or a .toml file: what the model was trained with; keys as "
        "geometry=letterbox or decode=reduced",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the division into calibration and evaluation")


def add_loading(parser: argparse.ArgumentParser) -> None:
    """What a person may have to say about a model file."""
    add = parser.add_argument
    add("--builder", metavar="MODULE:FUNCTION", help="returns the keras.Model the weights belong to")
    add("--signature", metavar="KEY", help="of a SavedModel with several")
    add("--custom-objects", metavar="MODULE", help="module that holds your own layers and functions")
    add("--allow-unsafe", action="store_true", help="run code that the model file carries (Lambda layers)")
    add(
        "--input-shape",
        action="append",
        default=[],
        metavar="[NAME=]DIMS",
        help="fix free dimensions: 224,224,3 or image=1,224,224,3",
    )


def loading_options(arguments: argparse.Namespace):  # type: ignore[no-untyped-def]  # LoadOptions is imported late
    """The options of ``add_loading`` as LoadOptions."""
    from edgeferry_converter.loading.input_shapes import parse_input_shape
    from edgeferry_converter.loading.source import LoadOptions

    return LoadOptions(
        builder=arguments.builder,
        strict=getattr(arguments, "strict", False),
        signature=arguments.signature,
        custom_objects=arguments.custom_objects,
        allow_unsafe=arguments.allow_unsafe,
        input_shapes=tuple(parse_input_shape(text) for text in arguments.input_shape),
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert."""
    from edgeferry_converter.quiet import quiet

    with quiet(arguments.verbose) as console:
        from edgeferry_converter.convert import convert
        from edgeferry_converter.report import to_text
        from edgeferry_converter.request import ConversionRequest

        recipe = recipe_of(arguments)
        result = convert(
            ConversionRequest(
                model=arguments.model,
                profile=arguments.profile,
                data=arguments.data,
                eval_data=arguments.eval_data,
                labels=arguments.labels,
                preprocess=arguments.preprocess,
                task=arguments.task,
                schemes=parse_schemes(arguments.quantize) or (recipe.schemes if recipe else ()),
                keep_float=arguments.keep_float,
                auto_keep_float=arguments.auto_keep_float,
                max_drop=max_drop_of(arguments, recipe),
                strict=arguments.strict,
                output=arguments.output,
                seed=arguments.seed,
                recipe=recipe,
                train_data=arguments.train_data,
                load=loading_options(arguments),
            ),
            console,
        )
    print(json.dumps(result.figures, indent=1) if arguments.json else to_text(result.figures))
    return 0


def recipe_of(arguments: argparse.Namespace) -> Recipe | None:
    """The recipe that was asked for, with the epochs of the command line.

    Raises:
        RecipeError: there is none, or it is broken.
        OptionError: options that mean nothing without one, or epochs that are none.
    """
    from edgeferry_converter.errors import OptionError
    from edgeferry_converter.recipe import load_recipe

    recipe = with_flags(load_recipe(arguments.recipe) if arguments.recipe else None, arguments)
    if recipe is None:
        idle = [name for name in ("train_data", "epochs") if getattr(arguments, name) is not None]
        if idle:
            option = idle[0].replace("_", "-")
            raise OptionError(f"--{option} means nothing without --recipe", "`edgeferry recipes` lists them.")
        return None
    if arguments.epochs is None:
        return recipe
    if arguments.epochs < 1:
        raise OptionError(f"--epochs is {arguments.epochs}, must be 1 or more", "Say how often data is seen.")
    return recipe.with_epochs(arguments.epochs)


def max_drop_of(arguments: argparse.Namespace, recipe: Recipe | None) -> float:
    """The command line's, else the recipe's, else the default."""
    from edgeferry_converter.gate import DEFAULT_MAX_DROP

    said = (arguments.max_drop, recipe.max_drop if recipe else None)
    return next((value for value in said if value is not None), DEFAULT_MAX_DROP)


def parse_schemes(text: str | None) -> tuple[str, ...]:
    """ "int8,float16" as ("int8", "float16").

    Raises:
        OptionError: a name is no scheme, or stands twice.
    """
    from edgeferry_runtime.fields import did_you_mean

    from edgeferry_converter.errors import OptionError

    names = tuple(name.strip() for name in text.split(",")) if text else ()
    for name in names:
        if name not in SCHEMES:
            hint = did_you_mean(name, SCHEMES)
            raise OptionError(f"--quantize {name!r} is no scheme{hint}", f"Schemes are {', '.join(SCHEMES)}.")
    if len(set(names)) != len(names):
        raise OptionError(f"--quantize {text!r} names a scheme twice", "Name each variant of the bundle once.")
    return names

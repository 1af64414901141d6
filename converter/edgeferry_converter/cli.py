"""The converter's commands, which `edgeferry` finds through the entry-point group ``edgeferry.commands``.

Nothing here imports TensorFlow before a command runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeferry_converter import cli_profiles

__all__ = ["Command", "convert", "profiles"]


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


def _configure_convert(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="a .keras or .h5 file")
    add("--profile", required=True, metavar="NAME", help="the board it is for; `edgeferry profiles` lists them")
    add(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="images to calibrate and judge with, a folder a class",
    )
    add("--labels", type=Path, metavar="FILE", help="one label a line in the order of the model's outputs")
    add(
        "--preprocess",
        metavar="PRESET|FILE",
        help="raw (default), unit, tf, torch or caffe, or a .toml file: what the model was trained with",
    )
    add("--quantize", choices=("int8", "float16", "float32"), help="default: the profile's")
    add("-o", "--output", type=Path, metavar="FILE", help="the bundle; default: the model's name with .ferry")
    add("--seed", type=int, default=0, metavar="N", help="of the division into calibration and evaluation")
    add("--json", action="store_true", help="print the report as JSON")
    add("--verbose", action="store_true", help="show tracebacks and TensorFlow's own messages")


def _run_convert(arguments: argparse.Namespace) -> int:
    from edgeferry_converter.quiet import quiet

    with quiet(arguments.verbose) as console:
        from edgeferry_converter.convert import ConversionRequest, convert
        from edgeferry_converter.report import to_text

        result = convert(
            ConversionRequest(
                model=arguments.model,
                profile=arguments.profile,
                data=arguments.data,
                labels=arguments.labels,
                preprocess=arguments.preprocess,
                quantize=arguments.quantize,
                output=arguments.output,
                seed=arguments.seed,
            ),
            console,
        )
    print(json.dumps(result.figures, indent=1) if arguments.json else to_text(result.figures))
    return 0


convert = Command("convert a Keras model into a bundle for one kind of board", _configure_convert, _run_convert)
profiles = Command(cli_profiles.SUMMARY, cli_profiles.configure, cli_profiles.run)

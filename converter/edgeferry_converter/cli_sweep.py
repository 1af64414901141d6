"""`edgeferry sweep`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from edgeferry_converter.cli_convert import add_data, add_loading, loading_options

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "search recipes for the ones that pay, and show what each costs"
BEST = "best"
TRIALS = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="a Keras model")
    add("--profile", required=True, metavar="NAME", help="the board it is for; `edgeferry profiles` lists them")
    add_data(parser)
    add("--train-data", required=True, metavar="DATA", help="what recipes train on, as for convert")
    add("--space", type=Path, metavar="FILE", help="recipe keys with choices and ranges (docs/sweep.md)")
    add("--max-drop", type=float, metavar="X", help="what int8 may lose (0.01); 0: anything")
    add("--max-latency-ms", type=float, metavar="MS", help="what one invoke may take")
    add("--max-bytes", type=int, metavar="N", help="what the int8 .tflite may weigh")
    add("--bytes", choices=("file", "zipped"), default="file", help="which bytes count (default: %(default)s)")
    add("--trials", type=int, default=TRIALS, metavar="N",
        help="recipes to try, those of earlier runs in the folder among them (default: %(default)s)")  # fmt: skip
    add("--jobs", type=int, metavar="N", help="trials at once (default: half of the cores; one a Dask worker)")
    add("--dask", metavar="ADDRESS", help="run trials on this Dask cluster, whose workers see the same files")
    add("--measure-on", metavar="TARGET", help="latency from a board, through `edgeferry push` and `bench`")
    add("--pick", nargs="?", const=BEST, metavar="TRIAL",
        help="write the fastest bundle within the limits, or this trial's")  # fmt: skip
    add(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="the sweep's folder; default: the model's name with .sweep",
    )
    add_loading(parser)
    add("--json", action="store_true", help="print everything as JSON")
    add("--verbose", action="store_true", help="show tracebacks")


def run(arguments: argparse.Namespace) -> int:
    """Search."""
    from edgeferry_converter.quiet import quiet

    with quiet(arguments.verbose) as console:
        from edgeferry_converter.request import ConversionRequest
        from edgeferry_converter.sweep import SweepRequest, sweep
        from edgeferry_converter.sweep_report import sweep_text

        check_numbers(arguments)
        figures = sweep(
            SweepRequest(
                conversion=ConversionRequest(
                    model=arguments.model,
                    profile=arguments.profile,
                    data=arguments.data,
                    eval_data=arguments.eval_data,
                    labels=arguments.labels,
                    preprocess=arguments.preprocess,
                    task=arguments.task,
                    seed=arguments.seed,
                    train_data=arguments.train_data,
                    load=loading_options(arguments),
                ),
                output=arguments.output or Path(arguments.model.name.split(".")[0] + ".sweep"),
                space=arguments.space,
                limits=limits_of(arguments),
                trials=arguments.trials,
                jobs=arguments.jobs,
                seed=arguments.seed,
                pick=pick_of(arguments.pick),
                dask=arguments.dask,
                measure_on=arguments.measure_on,
                zipped=arguments.bytes == "zipped",
            ),
            console,
        )
    print(json.dumps(figures, indent=1) if arguments.json else sweep_text(figures))
    return 0


def limits_of(arguments: argparse.Namespace):  # type: ignore[no-untyped-def]  # Limits is imported late
    """The limits of the command line; the drop has the gate's default."""
    from edgeferry_converter.gate import DEFAULT_MAX_DROP
    from edgeferry_converter.sweep_front import Limits

    drop = DEFAULT_MAX_DROP if arguments.max_drop is None else arguments.max_drop
    return Limits(drop or None, arguments.max_latency_ms, arguments.max_bytes)


def pick_of(text: str | None) -> int | None:
    """The trial that --pick names.

    Raises:
        OptionError: it is no number.
    """
    from edgeferry_converter.errors import OptionError
    from edgeferry_converter.sweep import BEST as BEST_TRIAL

    if text is None or text == BEST:
        return None if text is None else BEST_TRIAL
    if not text.isascii() or not text.isdigit():
        raise OptionError(f"--pick {text!r} is no trial", "Give a trial's number, or nothing for the best one.")
    return int(text)


def check_numbers(arguments: argparse.Namespace) -> None:
    """Raises OptionError for numbers that mean nothing."""
    from edgeferry_converter.errors import OptionError

    least = {"trials": 0, "jobs": 1, "max_drop": 0, "max_latency_ms": 0, "max_bytes": 1}
    for name, low in least.items():
        value = getattr(arguments, name)
        if value is not None and not value >= low:
            raise OptionError(
                f"--{name.replace('_', '-')} is {value}, must be {low} or more", "Give another number."
            )

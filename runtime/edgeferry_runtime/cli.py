"""edgeferry-run: the command on the device."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from typing import Any, Sequence

from edgeferry_runtime import __version__
from edgeferry_runtime.errors import EdgeferryError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 a known failure, 2 bad usage.
    """
    # The start of numpy is most of a cold start; its thread pool is never used here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
    except EdgeferryError as error:
        if arguments.verbose:
            raise
        if getattr(arguments, "json", False):
            print(json.dumps({"ok": False, "error": error.message, "remedy": error.remedy or None}))
        print("edgeferry-run: error: {}".format(error), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of standard output went away, as `| head` does; the interpreter would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgeferry-run",
        description="Run a bundle on this device: check it, look at it, loop over frames.",
    )
    parser.add_argument("--version", action="version", version="edgeferry-run " + __version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--bundle", required=True, metavar="PATH", help="a .ferry file or a folder (a release)")
    common.add_argument("--variant", metavar="NAME", help="take this variant, not the first that can run here")
    common.add_argument("--backend", metavar="NAME", help="ai-edge-litert or tflite-runtime")
    common.add_argument("--threads", type=_count, metavar="N", help="threads of the interpreter")
    common.add_argument("--json", action="store_true", help="print machine-readable JSON")
    common.add_argument("--verbose", action="store_true", help="show tracebacks")

    run = commands.add_parser("run", parents=[common], help="run the camera loop")
    run.add_argument(
        "--source",
        required=True,
        metavar="SOURCE",
        help="/dev/video0, a video, a folder of pictures, synthetic:640x480",
    )
    run.add_argument(
        "--sink",
        action="append",
        default=[],
        metavar="SINK",
        help="jsonl:-, jsonl:FILE or annotate:FOLDER; repeatable",
    )
    run.add_argument("--frames", type=_count, metavar="N", help="end after N frames")
    run.set_defaults(run=_run)

    check = commands.add_parser("check", parents=[common], help="replay the bundle's golden frames on this device")
    check.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    check.set_defaults(run=_check)

    info = commands.add_parser("info", parents=[common], help="show what a bundle is and how it would run here")
    info.set_defaults(run=_info)
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more, is {}".format(number))
    return number


def _run(arguments: argparse.Namespace) -> int:
    from contextlib import ExitStack

    from edgeferry_runtime.model import Model
    from edgeferry_runtime.pipeline import Pipeline
    from edgeferry_runtime.sinks import open_sink
    from edgeferry_runtime.sources import open_source

    with ExitStack() as stack:
        model = stack.enter_context(
            Model.open(arguments.bundle, arguments.variant, arguments.backend, arguments.threads)
        )
        source = stack.enter_context(open_source(arguments.source))
        sinks = [stack.enter_context(open_sink(uri)) for uri in arguments.sink]
        pipeline = Pipeline(source, model, sinks, arguments.frames)
        _stop_on_signals(pipeline.stop)
        summary = pipeline.run()
    if arguments.json:
        print(json.dumps({"summary": summary.to_json()}))
    else:
        print(summary.to_text(), file=sys.stderr)
    return 0


def _stop_on_signals(stop: Any) -> None:
    """The first Ctrl-C or SIGTERM ends the loop after its frame; the second one ends the process."""

    def handler(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop()

    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)


def _check(arguments: argparse.Namespace) -> int:
    from edgeferry_runtime.check import check_here, check_in_child

    options = (arguments.bundle, arguments.variant, arguments.backend, arguments.threads)
    report = check_here(*options).to_json() if arguments.in_process else check_in_child(*options)
    if arguments.json:
        print(json.dumps(report))
    elif report["ok"]:
        print(
            "{}: {} golden frames within tolerance on {}".format(
                report["variant"], report["frames"], report["backend"]
            )
        )
        for output in report["outputs"]:
            print(
                "  {name}: max {max_abs:.3g} (allowed {max_abs_tolerance:.3g}),"
                " rms {rms:.3g} (allowed {rms_tolerance:.3g})".format(**output)
            )
    if not report["ok"]:
        print("edgeferry-run: error: {}\n  {}".format(report["error"], report["remedy"] or ""), file=sys.stderr)
    return 0 if report["ok"] else 1


def _info(arguments: argparse.Namespace) -> int:
    from edgeferry_runtime.info import describe, to_text

    description = describe(arguments.bundle, arguments.variant, arguments.backend, arguments.threads)
    print(json.dumps(description, indent=1) if arguments.json else to_text(description))
    return 0

"""edgeferry-run: the command on the device."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Sequence

from edgeferry_runtime import __version__
from edgeferry_runtime.errors import EdgeferryError

__all__ = ["main"]

_ACTIONS = ("state", "models", "reload", "compare", "promote", "abandon", "record")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 a known failure, 2 bad usage.
    """
    # The start of numpy is most of a cold start; its thread pool is never used here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    words, command = _parted(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(words, argparse.Namespace(command_line=command))
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
    add = common.add_argument
    add("--bundle", required=True, metavar="PATH", help="a .ferry file or a folder (a release)")
    add("--variant", metavar="NAME", help="take this variant, not the first that can run here")
    add("--backend", metavar="NAME", help="ai-edge-litert or tflite-runtime")
    add("--threads", type=_threads, metavar="N|auto", help="threads of the interpreter; auto measures once")
    add("--json", action="store_true", help="print machine-readable JSON")
    add("--verbose", action="store_true", help="show tracebacks and more of the log")

    engine = argparse.ArgumentParser(add_help=False)
    add = engine.add_argument
    add("--delegate", metavar="DELEGATE", help="xnnpack, edgetpu[:usb:N], or PATH.so[?key=value&...]")
    add("--no-xnnpack", dest="xnnpack", action="store_const", const=False,
        help="keep the interpreter from using XNNPACK")  # fmt: skip
    add("--require-delegate", type=float, metavar="SHARE", help="fail when fewer operations are delegated, 0 to 1")
    add("--threshold", type=float, metavar="SCORE", help="lowest score to report, 0 to 1; else the bundle's")
    add("--top-k", type=_count, metavar="N", help="so many classes or boxes at most; else the bundle's")
    add("--any-arch", action="store_const", const=True, help="also run what was made for another architecture")

    run = commands.add_parser("run", parents=[common, engine], help="run the camera loop")
    add = run.add_argument
    # What a file may say, too, is None unless it is given here: then it overrides the file.
    add("--config", metavar="FILE", help="a run.json: source, sinks and choices; flags override it")
    add(
        "--source",
        metavar="SOURCE",
        help="/dev/video0, picamera2:0, rtsp://..., a video, a folder, synthetic:640x480",
    )
    add(
        "--sink",
        action="append",
        metavar="SINK",
        help="jsonl:-, jsonl:FILE, csv:FILE, mqtt://HOST/TOPIC, webhook:URL, gpio:...; repeatable",
    )
    add("--annotate", action="append", default=[], metavar="WHERE", help="draw on frames: a folder, or FILE.avi")
    add("--frames", type=_count, metavar="N", help="end after N results")
    add("--fps", type=_positive, metavar="N", help="take at most N frames a second")
    add("--max-age-ms", type=_positive, metavar="MS", help="skip frames that are older before they are run")
    add("--motion", type=float, nargs="?", const=0.005, metavar="SHARE",
        help="skip frames in which no more than this share of the picture changed (0.005)")  # fmt: skip
    add(
        "--realtime", action="store_const", const=True, help="play a video file at its own rate, as a camera would"
    )
    add("--pipelined", choices=("auto", "on", "off"), help="read frames beside the interpreter")
    add(
        "--view",
        nargs="?",
        const="127.0.0.1:8080",
        metavar="ADDRESS:PORT",
        help="show a live page (127.0.0.1:8080)",
    )
    add("--view-token-file", metavar="FILE", help="with the page's secret; addresses but this machine's need one")
    add("--state", metavar="FILE", help="where to tell how it goes; else in the system's runtime folder")
    run.set_defaults(run=_run)

    bench = commands.add_parser("bench", parents=[common, engine], help="measure cold start, stages, ages, memory")
    bench.add_argument("--source", default="synthetic:1280x720", metavar="SOURCE", help="synthetic:1280x720")
    bench.add_argument("--seconds", type=_positive, default=10.0, metavar="S", help="how long the loop runs (10)")
    bench.add_argument("--frames", type=_count, metavar="N", help="end after N results")
    bench.set_defaults(run=_bench)

    profile = commands.add_parser(
        "profile", parents=[common, engine], help="show what each stage and each operation takes"
    )
    add = profile.add_argument
    add("--source", default="synthetic:1280x720", metavar="SOURCE", help="synthetic:1280x720")
    add("--seconds", type=_positive, default=6.0, metavar="S", help="how long all of it measures (6)")
    add("--html", metavar="FILE", help="write a page with the frame as a flame graph")
    profile.set_defaults(run=_profile)

    ask = commands.add_parser("ctl", help="ask a loop that runs: another version, a comparison, its state")
    add = ask.add_argument
    add("action", choices=_ACTIONS, metavar="ACTION", help=", ".join(_ACTIONS))
    add(
        "bundle", nargs="?", metavar="BUNDLE", help="of reload: a .ferry file or a folder; else what it began with"
    )
    add("--model", metavar="NAME", help="which of several models")
    add(
        "--socket",
        metavar="PATH",
        help="of the loop; else beside the state file of a loop that was not told where",
    )
    add("--wait-s", type=_positive, metavar="S", help="of reload and promote: how long to wait for the end (300)")
    add("--json", action="store_true", help="print machine-readable JSON")
    add("--verbose", action="store_true", help="show tracebacks")
    ask.set_defaults(run=_ctl)

    check = commands.add_parser("check", parents=[common], help="replay the bundle's golden frames on this device")
    check.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    check.add_argument("--nice", type=int, default=0, help=argparse.SUPPRESS)
    check.set_defaults(run=_check)

    info = commands.add_parser("info", parents=[common], help="show what a bundle is and how it would run here")
    info.set_defaults(run=_info)

    install = commands.add_parser("install", help="install a folder of `edgeferry wheelhouse`, offline")
    add = install.add_argument
    add("folder", metavar="DIR", help="the folder with lock.json")
    add("--into", required=True, metavar="ENV", help="the environment to make; PYTHONPATH=ENV/lib uses it")
    add("--compile", action="store_true", help="write .pyc files too: a faster first start, more space")
    add("--json", action="store_true", help="print machine-readable JSON")
    add("--verbose", action="store_true", help="show tracebacks")
    install.set_defaults(run=_install)

    keep = commands.add_parser(
        "supervise",
        usage="edgeferry-run supervise --runtime DIR [options] -- COMMAND ...",
        help="keep a command running where there is no systemd",
    )
    add = keep.add_argument
    add("--runtime", required=True, metavar="DIR", help="folder for state, log, lock and socket, best in memory")
    add("--watchdog", type=_positive, metavar="S", help="start it again without a sign of life for so long")
    add(
        "--start-timeout",
        type=_positive,
        default=120.0,
        metavar="S",
        help="how long it may take to be ready (120)",
    )
    add("--detach", action="store_true", help="run in the background; return once the supervisor is at work")
    what = keep.add_mutually_exclusive_group()
    what.add_argument("--stop", action="store_true", help="end the supervisor of DIR and its command")
    what.add_argument("--status", action="store_true", help="show how it is; exit code 3 when there is none")
    add("--json", action="store_true", help="print machine-readable JSON")
    add("--verbose", action="store_true", help="show tracebacks")
    keep.set_defaults(run=_supervise)
    return parser


def _parted(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The words of `supervise`, and the command behind its "--", which each argparse takes in its own way."""
    if "supervise" not in argv[:1] or "--" not in argv:
        return argv, ()
    at = list(argv).index("--")
    return argv[:at], argv[at + 1 :]


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more, is {}".format(number))
    return number


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("must be more than 0, is {}".format(text))
    return number


def _threads(text: str) -> int | str:
    return text if text == "auto" else _count(text)


def _log_to_stderr(verbose: bool) -> None:
    import logging

    logging.basicConfig(
        stream=sys.stderr, level=logging.DEBUG if verbose else logging.INFO, format="edgeferry-run: %(message)s"
    )


def _run(arguments: argparse.Namespace) -> int:
    _log_to_stderr(arguments.verbose)
    from edgeferry_runtime.memory import keep_freed_memory
    from edgeferry_runtime.running import run

    keep_freed_memory()
    return run(arguments)


def _bench(arguments: argparse.Namespace) -> int:
    _log_to_stderr(arguments.verbose)
    from edgeferry_runtime.benching import bench
    from edgeferry_runtime.memory import keep_freed_memory

    keep_freed_memory()
    return bench(arguments)


def _profile(arguments: argparse.Namespace) -> int:
    _log_to_stderr(arguments.verbose)
    from edgeferry_runtime.memory import keep_freed_memory
    from edgeferry_runtime.profiling import profile

    keep_freed_memory()
    return profile(arguments)


def _ctl(arguments: argparse.Namespace) -> int:
    from edgeferry_runtime.ctl import run

    return run(arguments)


def _check(arguments: argparse.Namespace) -> int:
    from edgeferry_runtime.check import check_here, check_in_child

    if arguments.nice and hasattr(os, "nice"):
        os.nice(arguments.nice)
    threads = arguments.threads if isinstance(arguments.threads, int) else None
    options = (arguments.bundle, arguments.variant, arguments.backend, threads)
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

    threads = arguments.threads if isinstance(arguments.threads, int) else None
    description = describe(arguments.bundle, arguments.variant, arguments.backend, threads)
    print(json.dumps(description, indent=1) if arguments.json else to_text(description))
    return 0


def _install(arguments: argparse.Namespace) -> int:
    from edgeferry_runtime.installing import install, to_text

    done = install(arguments.folder, arguments.into, arguments.compile)
    print(json.dumps(done.to_dict(), indent=1) if arguments.json else to_text(done))
    return 0


def _supervise(arguments: argparse.Namespace) -> int:
    from edgeferry_runtime.supervising import Limits, stop_supervisor, supervise, supervisor_status

    if arguments.stop:
        found = stop_supervisor(arguments.runtime)
        if arguments.json:
            print(json.dumps({"ok": True, "stopped": found}))
        elif not found:
            print("there is no supervisor in {}".format(arguments.runtime))
        return 0
    if arguments.status:
        status = supervisor_status(arguments.runtime)
        lines = ["{}: {}".format(key, "" if value is None else value) for key, value in status.items()]
        print(json.dumps(status) if arguments.json else "\n".join(lines))
        return 0 if status["supervised"] else 3
    limits = Limits(start_s=arguments.start_timeout, watchdog_s=arguments.watchdog)
    supervise(arguments.runtime, arguments.command_line, limits, arguments.detach)
    return 0

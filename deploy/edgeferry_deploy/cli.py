"""The `edgeferry` command: finds the verb, imports that verb's module only, turns errors into sentences."""

from __future__ import annotations

import argparse
import sys

from edgeferry_deploy.verbs import ELSEWHERE, VERBS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["main"]

GROUP = "edgeferry.commands"  # commands of other distributions; a name loads to summary, configure, run
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run `edgeferry`.

    Args:
        argv: the arguments; by default those of the process.

    Returns:
        0 when done, 1 for a known failure, 2 for bad usage, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return dispatch(words)
    except KeyboardInterrupt:
        print("edgeferry: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe is gone; without this Python complains once more at exit.
        sys.stdout = None
        return 1
    except Exception as error:
        from edgeferry_deploy.failure import report

        return report(error, words)


def dispatch(words: list[str]) -> int:
    """Hand the arguments to their verb."""
    verb = words[0] if words else ""
    if not verb or verb.startswith("-"):
        parser = top_parser()
        if not words:
            parser.print_help(sys.stderr)
            return 2
        parser.parse_args(words)  # ends the process for --help, --version and anything unknown
        parser.error(f"unrecognized arguments: {' '.join(words)}")
    # "resolve": a plugin that brings a --verbose of its own keeps it.
    parser = argparse.ArgumentParser(prog=f"edgeferry {verb}", conflict_handler="resolve")
    parser.add_argument(
        "--verbose", action="store_true", help="show the session, and a traceback when something fails"
    )
    if verb in VERBS:
        module, parser.description, arguments = VERBS[verb]
        for name, options in arguments:
            add(parser, name, options)
        own, behind = words[1:], []
        if "--" in own and any(name == "rest" for name, _ in arguments):
            # What stands behind the first `--` is handed on as it is.
            at = own.index("--")
            own, behind = own[:at], own[at + 1 :]
        parsed = parser.parse_args(own)
        if hasattr(parsed, "rest"):
            parsed.rest = [*parsed.rest, *behind]
        from importlib import import_module

        return int(import_module(module).run(parsed))
    from edgeferry_deploy.plugins import load

    command = load(GROUP, verb)
    parser.description = command.summary
    command.configure(parser)
    return int(command.run(parser.parse_args(words[1:])))


def add(parser: argparse.ArgumentParser, name: str, options: dict[str, Any]) -> None:
    """Add one argument of the verb table."""
    kind = options.get("type")
    parser.add_argument(name, **{**options, "type": TYPES[kind]} if kind else options)


def whole_number(least: int, most: int, what: str) -> Any:
    """A parser for a number in a range."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text[:9]) <= most):
            raise argparse.ArgumentTypeError(f"{what} is a whole number from {least} to {most}, not '{text}'")
        return int(text)

    return parse


TYPES = {
    "seconds": whole_number(1, 86400, "it"),
    "keep": whole_number(2, 1000, "it"),
    "age": whole_number(0, 86_400_000, "it"),
    "lines": whole_number(1, 100_000, "it"),
}


class Version(argparse.Action):
    """Prints the version; package metadata is slow to read, so only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"edgeferry {version('edgeferry-deploy')}")
        parser.exit()


def top_parser() -> argparse.ArgumentParser:
    """The parser behind `edgeferry --help`."""
    listed = {verb: summary for verb, (_, summary, _) in VERBS.items()}
    listed |= {verb: summary for verb, (_, summary) in ELSEWHERE.items()}
    width = max(map(len, listed)) + 2
    parser = argparse.ArgumentParser(
        prog="edgeferry",
        usage="edgeferry VERB ...",
        description="Convert a Keras model for one kind of board, push it over SSH, run the camera loop there.",
        epilog="verbs:\n"
        + "".join(f"  {verb:{width}}{summary}\n" for verb, summary in sorted(listed.items()))
        + "\n`edgeferry VERB --help` tells the rest.  Exit codes: 0 done, 1 a known failure, 2 bad usage.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

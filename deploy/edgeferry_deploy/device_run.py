"""`edgeferry run`: the runtime of a board's current release, run there and watched from here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeferry_deploy.board_text import Terminal
from edgeferry_deploy.commands import Argv, script
from edgeferry_deploy.errors import NoReleaseError, TargetError
from edgeferry_deploy.release import Record
from edgeferry_deploy.snippets import START
from edgeferry_deploy.streaming import Write
from edgeferry_deploy.survey import look
from edgeferry_deploy.target import DEFAULT_ROOT, check_root
from edgeferry_deploy.transport import Transport

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["Current", "current_release", "device_run", "run", "runtime_command", "with_bundle"]

TAKES_BUNDLE = ("run", "bench", "check", "info")

# ctl asks the service's own loop, unless another socket is named.
RUN = (
    START
    + r"""
root=$1
launcher=$1/env/$2/edgeferry-run
shift 2
if [ ! -x "$launcher" ]; then echo "$launcher is missing" >&2; exit 127; fi
if [ "$1" = ctl ] && [ -f "$root/service/control" ]; then
  case " $* " in
    *" --so"*) ;;
    *)
      folder=$(cd -- "$root" && sh service/control runtime "$root") || exit
      set -- "$@" --socket "$folder/control.sock"
      ;;
  esac
fi
exec "$launcher" "$@"
"""
)


@dataclass(frozen=True)
class Current:
    """What a device runs.

    Attributes:
        root: absolute path of edgeferry's folder there.
        release: its id.
        record: what it was made of, and with what it was checked.
    """

    root: str
    release: str
    record: Record

    @property
    def bundle(self) -> str:
        """The release's folder: `current` may be switched while it is in use."""
        return f"{self.root}/releases/{self.release}"


def current_release(transport: Transport, root: str = DEFAULT_ROOT) -> Current:
    """What is current on a device: one round trip.

    Raises:
        NoReleaseError: nothing is, or its record cannot be read.
        CommandError, ConnectError: the device cannot be asked.
    """
    survey = look(transport, check_root(root))
    if not survey.current:
        raise NoReleaseError(f"nothing has been pushed to {transport.name}", "edgeferry push BUNDLE TARGET")
    record = survey.releases.get(survey.current)
    if record is None:
        raise NoReleaseError(
            f"{survey.current}, which is current on {transport.name}, has no record that can be read",
            "push its bundle again, or go back: edgeferry rollback TARGET",
        )
    return Current(survey.root, survey.current, record)


def runtime_command(current: Current, words: Sequence[str]) -> Argv:
    """Run a release's `edgeferry-run` with these arguments; it has the user's home as its folder."""
    return script("run", RUN, current.root, current.record.env, *words)


def with_bundle(words: Sequence[str], bundle: str) -> list[str]:
    """The arguments of `edgeferry-run`, with --bundle when the command takes one and none is named.

    Raises:
        TargetError: there are none.
    """
    if not words:
        raise TargetError(
            "it is not said what to run on the board", "edgeferry run TARGET -- run --source /dev/video0"
        )
    command, *options = words
    # argparse takes beginnings of an option's name as well; --b could be --backend.
    named = any(word.split("=")[0] in ("--bu", "--bun", "--bund", "--bundl", "--bundle") for word in options)
    if command not in TAKES_BUNDLE or named:
        return list(words)
    return [command, "--bundle", bundle, *options]


def device_run(transport: Transport, words: Sequence[str], write: Write, *, root: str = DEFAULT_ROOT) -> int:
    """Run `edgeferry-run WORDS` of the current release on a device; its exit status, -1 when it was killed.

    On KeyboardInterrupt it gets SIGINT there, and its last words are handed over before the exception goes on.

    Args:
        words: a command of `edgeferry-run` and its options.
        write: called with STDOUT or STDERR and bytes, as they come.

    Raises:
        TargetError: no words.
        NoReleaseError: nothing was pushed.
        CommandError, ConnectError: the device cannot be asked.
    """
    with_bundle(words, "")  # before anybody is asked
    current = current_release(transport, root)
    return transport.stream(runtime_command(current, with_bundle(words, current.bundle)), write)


def run(arguments: Namespace) -> int:
    """The command."""
    from edgeferry_deploy.connect import open_transport

    with_bundle(arguments.rest, "")  # before anybody is called
    terminal = Terminal()
    with open_transport(arguments.target, arguments.identity) as transport:
        try:
            status = device_run(transport, arguments.rest, terminal.write, root=arguments.root)
        finally:
            terminal.end()
        name = transport.name
    if status < 0:
        print(f"edgeferry: error: it was killed on {name}", file=sys.stderr)
        return 1
    return status

"""`edgeferry logs`: what the service on a board printed, as it is kept there, or as it comes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edgeferry_deploy.board_text import Show, Terminal, show
from edgeferry_deploy.commands import Argv, name_of, script
from edgeferry_deploy.errors import CommandError, printable
from edgeferry_deploy.snippets import START
from edgeferry_deploy.streaming import STDERR, STDOUT
from edgeferry_deploy.target import DEFAULT_ROOT, check_root
from edgeferry_deploy.transport import DEADLINE, Transport

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["log_command", "logs", "run"]

LINES = 100
LAST_WORDS = 2.0  # seconds; a log that is followed has none

# journalctl is silent about what it may not read: whoever is in none of these groups sees a part and takes it for
# all (systemd-journald.service(8), "Access Control").  A unit of the user's own manager is asked for by field,
# because --user finds nothing where the journal is kept in memory.
LOGS = (
    START
    + r"""
root=$1 lines=$2 follow=$3
case $root in "~/"*) root=$HOME/${root#"~/"} ;; esac
manager='' unit=''
read -r manager unit _ 2>/dev/null <"$root/service/manager"
case $unit in '' | -* | *[!A-Za-z0-9_.@-]*) exit 90 ;; esac
reads_journal() {
  if [ "$(id -u)" = 0 ]; then return; fi
  for group in $(id -nG); do
    case $group in systemd-journal | adm | wheel) return ;; esac
  done
  return 1
}
case $manager in
  system | user)
    if ! command -v journalctl >/dev/null; then exit 92; fi
    set -- -q --no-pager -o short-iso -n "$lines"
    if [ -n "$follow" ]; then set -- "$@" -f; fi
    if [ "$manager" = user ]; then exec journalctl "$@" --user-unit "$unit.service"; fi
    if reads_journal; then exec journalctl "$@" -u "$unit.service"; fi
    if sudo -n journalctl -q --no-pager -n 1 -u "$unit.service" >/dev/null 2>&1; then
      exec sudo -n journalctl "$@" -u "$unit.service"
    fi
    exit 91 ;;
  supervised)
    runtime=$(sh "$root/service/control" runtime "$root" 2>/dev/null)
    file=$runtime/service.log
    case $file in /*) ;; *) exit 93 ;; esac
    if [ ! -f "$file" ]; then exit 93; fi
    have=$(($(wc -l <"$file")))
    if [ "$have" -lt "$lines" ] && [ -f "$file.1" ]; then tail -n "$((lines - have))" -- "$file.1"; fi
    if [ -n "$follow" ]; then exec tail -n "$lines" -F -- "$file"; fi
    exec tail -n "$lines" -- "$file" ;;
esac
exit 90
"""
)

# exit status of the script -> what is wrong, what to do next
REFUSALS = {
    90: (
        "no service is set up on {device}",
        "say what to run in a run.toml, and `edgeferry push` it with the bundle",
    ),
    91: (
        "this user may not read the log of the service on {device}, which belongs to the system",
        "on the board: sudo usermod -aG systemd-journal $USER; it counts from the next login on",
    ),
    92: (
        "{device} has systemd and no journalctl",
        "look there for a syslog: /var/log/syslog or /var/log/messages",
    ),
    93: (
        "the service on {device} has printed nothing since the board started",
        "`edgeferry status` tells how it is",
    ),
}


def log_command(root: str, lines: int = LINES, *, follow: bool = False) -> Argv:
    """Print the last lines of the service's log, and with `follow` those that come."""
    return script("logs", LOGS, root, str(lines), "-f" if follow else "")


def logs(
    transport: Transport, show: Show, *, root: str = DEFAULT_ROOT, lines: int = LINES, follow: bool = False
) -> int:
    """Hand over what the service printed, line by line; how many lines that were.

    Args:
        show: called with STDOUT or STDERR and a line that is safe to print.
        lines: how many of the last ones.
        follow: go on with those that come, until KeyboardInterrupt.

    Raises:
        CommandError: there is no service, no right to read its log, or no log.
        ConnectError: the device cannot be asked.
    """
    count = 0

    def line_of(stream: int, line: str) -> None:
        nonlocal count
        count += stream == STDOUT
        last[stream] = line
        show(stream, line)

    last: dict[int, str] = {}
    argv = log_command(check_root(root), lines, follow=follow)
    terminal = Terminal(line_of, raw=frozenset())
    status = transport.stream(argv, terminal.write, timeout=None if follow else DEADLINE, stop_seconds=LAST_WORDS)
    terminal.end()
    if status in REFUSALS:
        message, remedy = REFUSALS[status]
        device = transport.name
        raise CommandError(message.format(device=device), remedy, command=name_of(argv), exit_status=status)
    if status:
        said = printable(last.get(STDERR, "")) or "it printed nothing"
        raise CommandError(
            f"the log of the service on {transport.name} cannot be read (exit status {status}): {said}",
            "look at it on the board: edgeferry shell TARGET",
            command=name_of(argv),
            exit_status=status,
        )
    return count


def run(arguments: Namespace) -> int:
    """The command."""
    from edgeferry_deploy.connect import open_transport

    def show_json(stream: int, line: str) -> None:
        show(STDOUT, json.dumps({"line": line, "stream": "stdout" if stream == STDOUT else "stderr"}))

    shown = show_json if arguments.json else show
    options = {"root": arguments.root, "lines": arguments.lines, "follow": arguments.follow}
    with open_transport(arguments.target, arguments.identity) as transport:
        try:
            count = logs(transport, shown, **options)
        except KeyboardInterrupt:
            if not arguments.follow:
                raise
            return 0  # Ctrl-C is how following ends
    if not count and not arguments.json:
        show(STDERR, f"the service on {transport.name} has printed nothing that is kept")
    return 0

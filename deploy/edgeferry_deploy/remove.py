"""`edgeferry remove`: take everything of edgeferry's off a device, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeferry_deploy import upkeep
from edgeferry_deploy.console import Console, size_text
from edgeferry_deploy.errors import RemoveError, TargetError, printable
from edgeferry_deploy.lock import hold
from edgeferry_deploy.survey import look, reply_lines
from edgeferry_deploy.target import DEFAULT_ROOT, check_root
from edgeferry_deploy.transport import Transport, checked, reply_error

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["Contents", "parse_contents", "remove", "require_own", "run"]

Ask = Callable[[str], bool]
MARKS = {"blobs", "releases", "lock"}  # no folder without one of these was made by edgeferry
REMOVE_SECONDS = 300.0  # a slow card unlinks a few hundred files a second
WRONG = {
    "file": "is no folder",
    "link": "is a link, and links are not followed",
    "home": "is the user's home",
}


@dataclass(frozen=True)
class Contents:
    """What a root is: its kind (folder, absent, link, file, home), and the names in it, known and not."""

    root: str
    kind: str
    own: tuple[str, ...]
    foreign: tuple[str, ...]


def parse_contents(raw: bytes) -> Contents:
    """The contents in a reply.

    Raises:
        ValueError: it is no reply of the inspect command; says why.
    """
    root = kind = ""
    names: dict[str, list[str]] = {"own": [], "foreign": []}
    for words in reply_lines(raw, "edgeferry-root 1"):
        if len(words) >= 3 and words[0] == "root":
            kind, root = words[1], words[2]
        elif len(words) >= 3 and words[0] == "entry" and words[1] in names:
            names[words[1]].append(printable(words[2], 100))
        else:
            raise ValueError(f"has a line it should not have: {printable(words[0], 40)!r}")
    if not root.startswith("/") or not root.isprintable() or kind not in ("folder", "absent", *WRONG):
        raise ValueError("names no root")
    return Contents(root, kind, tuple(names["own"]), tuple(names["foreign"]))


def require_own(contents: Contents, device: str) -> None:
    """Refuse a root that edgeferry did not make.

    Raises:
        RemoveError: what it is instead; nothing was touched.
    """
    root = f"{contents.root} on {device}"
    if contents.kind in WRONG:
        raise RemoveError(f"{root} {WRONG[contents.kind]}: nothing was removed", "give --root the folder itself")
    if not MARKS.intersection(contents.own):
        raise RemoveError(
            f"{root} was not made by edgeferry: it has neither releases nor blobs; nothing was removed",
            "check --root; `edgeferry status` shows what is there",
        )
    if contents.foreign:
        shown = ", ".join(contents.foreign[:5]) + (", ..." if len(contents.foreign) > 5 else "")
        raise RemoveError(
            f"{root} holds what edgeferry did not put there: {shown}; nothing was removed",
            "move it elsewhere, then remove again",
        )


def remove(
    transport: Transport, *, root: str = DEFAULT_ROOT, yes: bool = False, ask: Ask | None = None
) -> dict[str, Any]:
    """Remove the root of a device with all releases, environments and logs.

    Args:
        yes: do not ask.
        ask: puts a question to a person; None when there is nobody to ask.

    Returns:
        What --json prints: device, root, `removed`, the names, and the bytes they took.

    Raises:
        TargetError: there is nobody to ask, and `yes` was not given.
        RemoveError: the root is not edgeferry's, or the person said no.
        LockedError: somebody is changing the device.
    """
    argv = upkeep.inspect(check_root(root))
    done = checked(transport, argv)
    try:
        contents = parse_contents(done.stdout)
    except ValueError as error:
        raise reply_error(argv, transport.name, done.stdout, str(error)) from None
    shown = {"device": transport.name, "root": contents.root}
    if contents.kind == "absent":
        return {**shown, "removed": False, "entries": [], "bytes": 0}
    require_own(contents, transport.name)
    survey = look(transport, contents.root)
    size = survey.used_kib * 1024
    if not yes:
        what = (
            f"remove {contents.root} from {transport.name}: {size_text(size)}, {len(survey.releases)} releases"
            + (f", current is {survey.current}" if survey.current else "")
            + (", and the Python environment in venv" if "venv" in contents.own else "")
        )
        if ask is None:
            raise TargetError(
                f"cannot ask whether to {what}: there is no terminal", "add --yes when that is meant"
            )
        if not ask(f"{what}?"):
            raise RemoveError(f"{contents.root} on {transport.name} was not removed", "nothing changed")
    with hold(transport, contents.root, "remove", expected=survey.current) as lease:
        lease.settle()
        checked(transport, upkeep.remove(contents.root, lease.token), None, REMOVE_SECONDS)
        lease.given = True
    return {**shown, "removed": True, "entries": list(contents.own), "bytes": size}


def run(arguments: Namespace) -> int:
    """The command."""
    from edgeferry_deploy.connect import open_transport
    from edgeferry_deploy.enrol import ask_on_terminal

    terminal = sys.stdin.isatty() and sys.stdout.isatty() and not arguments.json
    with open_transport(arguments.target, arguments.identity) as transport:
        found = remove(
            transport, root=arguments.root, yes=arguments.yes, ask=ask_on_terminal if terminal else None
        )
    console = Console(quiet=arguments.json)
    if found["removed"]:
        console.step(f"removed {found['root']} from {found['device']}: {size_text(found['bytes'])}")
    else:
        console.step(f"{found['device']} has no {found['root']}", "none")
    if arguments.json:
        console.result(found)
    return 0

"""`edgeferry history`: what was done to a device, when, by whom and why, from its audit log."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgeferry_deploy import upkeep
from edgeferry_deploy.console import Console
from edgeferry_deploy.errors import printable
from edgeferry_deploy.target import DEFAULT_ROOT, check_root
from edgeferry_deploy.transport import Transport, checked

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["Event", "history", "parse_history", "run"]

LINES = 200  # of the log are asked for
KEYS = ("at", "by", "action", "release", "before", "result", "reason")


@dataclass(frozen=True)
class Event:
    """One line of the audit log; every text is safe to show, and empty when the line does not have it.

    Attributes:
        at: UTC, ISO 8601, by the workstation's clock.
        by: user@host of the workstation.
        action: push, rollback, unlock.
        release: what was to become current.
        before: what was current.
        result: `switched`, or `refused: ` and why.
        reason: what --reason said.
    """

    at: str = ""
    by: str = ""
    action: str = ""
    release: str = ""
    before: str = ""
    result: str = ""
    reason: str = ""

    def __str__(self) -> str:
        why = f"  ({self.reason})" if self.reason else ""
        return f"{self.at[:19]}Z  {self.action:8}  {self.release or '-'}  {self.result}  by {self.by}{why}"


def history(transport: Transport, *, root: str = DEFAULT_ROOT) -> tuple[list[Event], int]:
    """The newest events, oldest first, and how many lines could not be read: one round trip.

    Raises:
        DeployError: the device cannot be asked.
    """
    return parse_history(checked(transport, upkeep.history(check_root(root), LINES)).stdout)


def parse_history(raw: bytes) -> tuple[list[Event], int]:
    """The events in an audit log, and how many lines are none: a power cut tears the last one, or adds zeros."""
    events, unreadable = [], 0
    for line in raw.replace(b"\0", b"").decode("utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        found: Any = None
        with suppress(ValueError, RecursionError):
            found = json.loads(line)
        if isinstance(found, dict) and isinstance(found.get("action"), str):
            texts = {key: found[key] for key in KEYS if isinstance(found.get(key), str)}
            events.append(Event(**{key: printable(text, 600) for key, text in texts.items()}))
        else:
            unreadable += 1
    return events, unreadable


def run(arguments: Namespace) -> int:
    """The command."""
    from edgeferry_deploy.connect import open_transport

    with open_transport(arguments.target, arguments.identity) as transport:
        events, unreadable = history(transport, root=arguments.root)
        name = transport.name
    console = Console(quiet=arguments.json)
    for event in events:
        console.step(str(event), "ok" if event.result == "switched" else "warn")
    if not events:
        console.step(f"{name} remembers nothing yet", "none")
    if unreadable:
        console.step(f"{unreadable} lines of the log cannot be read", "warn")
    if arguments.json:
        console.result(
            {"device": name, "events": [asdict(event) for event in events], "unreadable_lines": unreadable}
        )
    return 0

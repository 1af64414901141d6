"""Who has a device in hand: what a lease says of its owner, and whether that process still lives here."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeferry_deploy.activation import who
from edgeferry_deploy.errors import printable

__all__ = ["HELD", "Holder", "machine", "owner_json"]

HELD: set[str] = set()  # tokens of the leases this process holds


@dataclass(frozen=True)
class Holder:
    """A running lease, in the words of its owner, made safe to show.

    Attributes:
        token: names the lease.
        by: user@host of the workstation.
        machine: names that workstation's system, see `machine`.
        reason: "push digits-0123456789ab".
        age: seconds since it was taken.
        left: seconds until it ends by itself.
    """

    token: str
    by: str
    pid: int
    machine: str
    reason: str
    age: int
    left: int

    @classmethod
    def parse(cls, words: Sequence[str]) -> Holder:
        """From TOKEN, SECONDS LEFT, AGE, OWNER; what is missing or odd becomes 'somebody'."""
        token, left, age, text = [*words, "", "", "", ""][:4]
        found: Any = None
        with suppress(ValueError, RecursionError):
            found = json.loads(text)
        found = found if isinstance(found, dict) else {}
        pid = found.get("pid")
        return cls(
            token=printable(token, 40),
            by=text_of(found, "by") or "somebody",
            pid=pid if isinstance(pid, int) and 0 < pid < 2**31 else 0,
            machine=text_of(found, "machine"),
            reason=text_of(found, "reason") or "something",
            age=number(age),
            left=number(left),
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "by": self.by,
            "pid": self.pid,
            "reason": self.reason,
            "age_seconds": self.age,
            "left_seconds": self.left,
        }

    def __str__(self) -> str:
        return f"{self.by} (process {self.pid}) for '{self.reason}', {self.age} s ago, for {self.left} s more"

    def gone(self) -> bool:
        """Whether the owner was a process of this system that has ended; False when that cannot be known."""
        if not self.pid or self.machine != machine():
            return False
        if self.pid == os.getpid():
            return self.token not in HELD
        if sys.platform == "win32":  # os.kill would end the process there instead of asking
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


def owner_json(reason: str) -> str:
    """What a lease says of this process: one line, ASCII."""
    found = {"by": who(), "pid": os.getpid(), "machine": machine(), "reason": printable(reason, 200)}
    return json.dumps(found, sort_keys=True, separators=(",", ":"))


def machine() -> str:
    """A name for the system whose process numbers count here: host, boot, and the container on Linux."""
    try:
        booted = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    except (OSError, ValueError):
        booted, space = str(uuid.getnode()), ""
    return hashlib.sha256(f"{socket.gethostname()}\n{booted}\n{space}".encode()).hexdigest()[:16]


def text_of(found: dict[str, Any], key: str) -> str:
    """A text out of an owner, safe to show."""
    value = found.get(key)
    return printable(value, 200) if isinstance(value, str) else ""


def number(text: str) -> int:
    """A device's count of seconds; 0 when it is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else 0

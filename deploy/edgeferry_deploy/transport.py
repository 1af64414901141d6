"""How a command or a file reaches a device: six methods, an SSH and a local twin."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from edgeferry_deploy import commands
from edgeferry_deploy.errors import CommandError, CommandTimeoutError, DeviceReplyError, printable
from edgeferry_deploy.streaming import STOP_SECONDS, Running, Write, guarded, pump

__all__ = ["DEADLINE", "OUTPUT_LIMIT", "SLICE", "Completed", "Transport", "checked", "reply_error", "too_long"]

# Bytes: one SSH packet of paramiko's, which keeps 64 of its 32 KiB back; with 32 KiB each slice was two packets.
SLICE = 32 * 1024 - 64
OUTPUT_LIMIT = 1024 * 1024  # bytes of stdout or of stderr; a reply is a few KiB
DEADLINE = 60.0  # seconds; every command has one


@dataclass(frozen=True)
class Completed:
    """What a finished command left.

    Attributes:
        exit_status: 0 to 255; -1 when it was killed and said nothing.
    """

    argv: tuple[str, ...]
    exit_status: int
    stdout: bytes
    stderr: bytes


class Transport(ABC):
    """A session with one device.

    Attributes:
        name: the device as the user wrote it, for messages.
        round_trips: commands sent so far.
        bytes_sent: bytes given to commands' stdin so far.
    """

    name: str
    round_trips: int = 0
    bytes_sent: int = 0

    @abstractmethod
    def run(
        self,
        argv: Sequence[str],
        stdin: bytes | Iterable[bytes] | None = None,
        timeout: float = DEADLINE,
        limit: int = OUTPUT_LIMIT,
    ) -> Completed:
        """Run a command to its end.

        Args:
            argv: program and arguments; no shell sees them.
            stdin: bytes, or chunks of them, fed while output is drained.
            timeout: seconds until the command is given up.
            limit: bytes of stdout (and of stderr) that are accepted.

        Raises:
            CommandTimeoutError: the deadline passed.
            DeviceReplyError: there was more output than `limit`.
            LinkLostError: the session broke.
        """

    def stream(
        self,
        argv: Sequence[str],
        write: Write,
        *,
        timeout: float | None = None,
        stop_seconds: float = STOP_SECONDS,
    ) -> int:
        """Run a command whose output is handed over as it comes, however much it is; the exit status.

        Its stdin is empty.  Ctrl-C here is Ctrl-C there: what it still prints is handed over, then the
        KeyboardInterrupt goes on.  However this ends, the command does not live on, see `streaming`.

        Args:
            argv: program and arguments; no shell sees them.
            write: called with STDOUT or STDERR and bytes; what it raises ends the command.
            timeout: seconds until the command is given up; None for as long as it takes.
            stop_seconds: how long its last words are waited for once it was told to end.

        Raises:
            CommandTimeoutError: the deadline passed.
            LinkLostError: the session broke.
        """
        with self.start(guarded(argv)) as running:
            try:
                if pump(running, write, time.monotonic() + (math.inf if timeout is None else timeout)):
                    return running.exit_status()
            except KeyboardInterrupt:
                running.let_go()
                pump(running, write, time.monotonic() + stop_seconds)
                raise
            running.let_go()
            pump(running, write, time.monotonic() + stop_seconds)
        name = commands.name_of(argv)
        raise CommandTimeoutError(
            f"'{name}' did not end within {timeout:.0f} s on {self.name}, and was ended",
            "see what keeps the device busy, then run this again",
            command=name,
        )

    @abstractmethod
    def start(self, argv: Sequence[str]) -> Running:
        """Start a command with an open stdin, for `stream`.

        Raises:
            LinkLostError: the session broke.
        """

    def upload(self, chunks: Iterable[bytes], path: str, offset: int = 0, timeout: float = DEADLINE) -> None:
        """Write chunks to a file on the device, from `offset` on when that much of it is already there.

        Raises:
            CommandError: the device could not write; its own words are in the message.
        """
        checked(self, commands.receive(path, offset, round(timeout) + 15), chunks, timeout)

    def download(self, path: str, timeout: float = DEADLINE, limit: int = 64 * OUTPUT_LIMIT) -> bytes:
        """The bytes of a file on the device.

        Raises:
            CommandError: the device could not read it.
            DeviceReplyError: the file is larger than `limit`.
        """
        return checked(self, commands.send(path), None, timeout, limit).stdout

    @abstractmethod
    def close(self) -> None:
        """End the session; a second call does nothing."""

    @abstractmethod
    def describe(self) -> str:
        """The session in one line, for `--verbose`."""

    def __enter__(self) -> Transport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def checked(
    transport: Transport,
    argv: Sequence[str],
    stdin: bytes | Iterable[bytes] | None = None,
    timeout: float = DEADLINE,
    limit: int = OUTPUT_LIMIT,
) -> Completed:
    """Run a command that must end with 0.

    Raises:
        CommandError: it did not; the message carries what the device printed.
    """
    done = transport.run(argv, stdin, timeout, limit)
    if done.exit_status == 0:
        return done
    name = commands.name_of(argv)
    said = printable(done.stderr or done.stdout) or "it printed nothing"
    how = "was killed" if done.exit_status < 0 else f"ended with {done.exit_status}"
    raise CommandError(
        f"'{name}' {how} on {transport.name}: {said}",
        commands.remedy_for(said),
        command=name,
        exit_status=done.exit_status,
    )


def reply_error(argv: Sequence[str], device: str, raw: bytes, why: str) -> DeviceReplyError:
    """The error for a reply that is not what the command prints; shows its first bytes."""
    name = commands.name_of(argv)
    began = printable(raw[:200], 80)
    return DeviceReplyError(
        f"the reply of '{name}' on {device} {why}; it began: {began!r}",
        "run the command with --verbose, and look at what the login shell on the device prints",
        command=name,
    )


def too_long(argv: Sequence[str], device: str, limit: int, head: bytes) -> DeviceReplyError:
    """The error for a command whose output was cut."""
    name = commands.name_of(argv)
    return DeviceReplyError(
        f"'{name}' on {device} printed more than {limit} bytes and was cut; it began: {printable(head, 80)!r}",
        "look at what the login shell prints: ssh runs it for every command",
        command=name,
    )

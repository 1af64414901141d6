"""A command on a device whose output is handed over as it comes, and which never outlives who watches it.

Without a terminal sshd ends nothing when a connection goes: what runs goes on until it writes, or for ever.  So a
streamed command has a lifeline, its stdin: the workstation holds it open and sends nothing.  A process beside the
command reads it; when it ends, because the workstation let go, was killed or lost the link, the command gets
SIGINT, after 5 s SIGTERM and after 10 s SIGKILL.  The command itself reads an empty stdin.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from edgeferry_deploy.commands import Argv, script

__all__ = ["STDERR", "STDOUT", "STOP_SECONDS", "Running", "Write", "guarded", "pump"]

STDOUT, STDERR = 1, 2
STOP_SECONDS = 15.0  # what a command that was told to end may still print is waited for

# Takes STDOUT or STDERR, and bytes in pieces of any size.
Write = Callable[[int, bytes], None]

# The shell becomes the command, so that it has no shell's ways with signals and $$ is its process.  The one beside
# it is its child: with another parent the command is gone, and its number may be somebody else's.
GUARD = r"""
exec 3<&0 </dev/null
(
  exec >/dev/null 2>&1
  alive() {
    parent=$$
    if [ -r /proc/self/stat ]; then read -r _ _ _ parent _ </proc/self/stat; fi
    [ "$parent" = "$$" ] && kill -0 "$$"
  }
  cat <&3
  if alive; then kill -INT "$$"; fi
  for second in 1 2 3 4 5 6 7 8 9 10; do
    sleep 1
    alive || exit
    if [ "$second" = 5 ]; then kill -TERM "$$"; fi
  done
  kill -KILL "$$"
) &
exec 3<&-
exec "$@"
"""


def guarded(argv: Sequence[str]) -> Argv:
    """A command that ends soon after its stdin does."""
    return script("stream", GUARD, *argv)


class Running(ABC):
    """A command that was started; `close` may be called at any time, and again."""

    @abstractmethod
    def read(self, seconds: float) -> list[tuple[int, bytes]] | None:
        """What it printed, after waiting for at most `seconds`; None when it ended and all was read."""

    @abstractmethod
    def let_go(self) -> None:
        """End its stdin."""

    @abstractmethod
    def exit_status(self) -> int:
        """0 to 255 once `read` gave None; -1 when it was killed and said nothing.

        Raises:
            LinkLostError: nobody knows, the session broke.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go, and read no more."""

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pump(running: Running, write: Write, deadline: float) -> bool:
    """Hand over what a command prints until it ends; False when the deadline (monotonic seconds) came first."""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        pieces = running.read(min(left, 0.2))
        if pieces is None:
            return True
        for stream, piece in pieces:
            write(stream, piece)

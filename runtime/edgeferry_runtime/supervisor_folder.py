"""The folder a supervisor works in: its lock, its state, the service's log, the socket the service talks to."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import sys
import time
from types import TracebackType
from typing import Any, Mapping

from edgeferry_runtime.errors import EdgeferryError

__all__ = ["BoundedLog", "Folder", "NotifySocket"]

_LONGEST_ADDRESS = 107 if sys.platform.startswith("linux") else 103  # bytes of sun_path, see unix(7)
_OPEN = os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_LOOK_S, _TRIES = 0.05, 6
_MESSAGES = 64  # read at once; a service that floods the socket must not hold the supervisor


class Folder:
    """The folder, of this user alone.

    Args:
        path: of the folder; ``make`` makes it.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.log_path = os.path.join(self.path, "service.log")
        self._state_path = os.path.join(self.path, "supervisor.json")
        self._lock_path = os.path.join(self.path, "supervisor.lock")
        self._child_lock_path = os.path.join(self.path, "service.lock")

    @classmethod
    def make(cls, path: str) -> Folder:
        """Make the folder where it is not there.

        Raises:
            EdgeferryError: it cannot be made, or somebody else may write there.
        """
        folder = cls(path)
        try:
            os.makedirs(os.path.dirname(folder.path), exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder.path, 0o700)
        except OSError as error:
            raise EdgeferryError(
                "{}: cannot be made: {}".format(folder.path, error.strerror or error), "Choose another --runtime."
            ) from None
        folder.check()
        return folder

    def check(self) -> None:
        """Refuse a folder that somebody else could have prepared.

        Raises:
            EdgeferryError: it is a link, none at all, another user's, or open to others for writing.
        """
        try:
            found = os.lstat(self.path)
        except OSError as error:
            raise EdgeferryError("{}: {}".format(self.path, error.strerror or error), "Check --runtime.") from None
        if not stat.S_ISDIR(found.st_mode):
            problem = "is a link" if stat.S_ISLNK(found.st_mode) else "is no folder"
        elif found.st_uid != os.geteuid():
            problem = "belongs to another user"
        elif found.st_mode & 0o022:
            problem = "may be written by others"
        else:
            return
        raise EdgeferryError(
            "{}: {}".format(self.path, problem), "Choose another --runtime, one that this user alone can write."
        )

    # The lock, and who has it.

    def lock(self) -> int:
        """Take the supervisor's lock: a file descriptor that holds it.

        Raises:
            EdgeferryError: another supervisor holds it, or it cannot be written.
        """
        import fcntl

        try:
            descriptor = os.open(self._lock_path, _OPEN | os.O_RDWR, 0o600)
        except OSError as error:
            raise EdgeferryError(
                "{}: {}".format(self._lock_path, error.strerror or error), "Choose another --runtime."
            ) from None
        for _ in range(_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                time.sleep(_LOOK_S)  # somebody who only looks has it for a moment, too
            except OSError as error:
                os.close(descriptor)
                raise EdgeferryError(
                    "{}: cannot be locked: {}".format(self._lock_path, error.strerror), "Choose another --runtime."
                ) from None
        os.close(descriptor)
        raise EdgeferryError(
            "another supervisor (process {}) holds {}".format(self._signed() or "unknown", self.path),
            "End it: edgeferry-run supervise --runtime {} --stop".format(self.path),
        )

    def sign(self, descriptor: int) -> None:
        """Write this process into the lock it holds."""
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)

    def holder(self) -> int | None:
        """The supervisor's process; 0 where it has not signed yet, None where there is none."""
        return (self._signed() or 0) if _is_locked(self._lock_path) else None

    def _signed(self) -> int:
        try:
            with open(self._lock_path, encoding="ascii") as file:
                return int(file.read(32))
        except (OSError, ValueError):
            return 0

    def child_lock(self) -> int:
        """A file descriptor for a service to inherit: it is locked while anything of the service lives."""
        import fcntl

        descriptor = os.open(self._child_lock_path, _OPEN | os.O_RDWR, 0o600)
        with contextlib.suppress(OSError):  # what an earlier one left in another process group
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor

    def end_orphan(self, stop_s: float) -> None:
        """End the service of a supervisor that was killed, which still has the camera.

        It is known by its lock, which says that it lives, and by the number the state file has of it.
        """
        if not _is_locked(self._child_lock_path):
            return
        try:
            child = self.read_state().get("child")
        except EdgeferryError:
            return
        if not isinstance(child, int) or isinstance(child, bool) or child < 2:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(OSError):
                os.killpg(child, number)
            until = time.monotonic() + stop_s
            while time.monotonic() < until:
                if not _is_locked(self._child_lock_path):
                    return
                time.sleep(_LOOK_S)

    # The state.

    def write_state(self, values: Mapping[str, Any]) -> None:
        """Replace supervisor.json as a whole.

        Raises:
            OSError: it cannot be written.
        """
        new = self._state_path + ".new"
        descriptor = os.open(new, _OPEN | os.O_WRONLY | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        os.replace(new, self._state_path)

    def read_state(self) -> dict[str, Any]:
        """What supervisor.json says; "stopped" where there is none.

        Raises:
            EdgeferryError: it cannot be read, or is no state.
        """
        try:
            with open(self._state_path, "rb") as file:
                values = json.loads(file.read(1 << 16).decode("utf-8"))
        except FileNotFoundError:
            return {"state": "stopped"}
        except (OSError, ValueError, RecursionError) as error:
            raise EdgeferryError("{}: is no state: {}".format(self._state_path, error), "Start it anew.") from None
        if not isinstance(values, dict):
            raise EdgeferryError("{}: is no state".format(self._state_path), "Start it anew.")
        return values


def _is_locked(path: str) -> bool:
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


class NotifySocket:
    """Where a service says how it is, as sd_notify(3) has it; use as a context manager.

    Args:
        folder: of the socket; where its path is too long for a socket, a short folder of this user stands in.

    Attributes:
        address: for NOTIFY_SOCKET.
    """

    def __init__(self, folder: str) -> None:
        self._short = ""
        self.address = os.path.join(folder, "notify")
        if len(os.fsencode(self.address)) > _LONGEST_ADDRESS:
            import tempfile

            # Not an abstract name: anybody on the machine could send to it.
            self._short = tempfile.mkdtemp(prefix="edgeferry-", dir="/tmp")
            self.address = os.path.join(self._short, "notify")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> list[str]:
        """The messages that wait, oldest first; only so many at once."""
        messages: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while len(messages) < _MESSAGES:
                messages.append(self._socket.recv(4096).decode("utf-8", "replace"))
        return messages

    def __enter__(self) -> NotifySocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self.address)
            if self._short:
                os.rmdir(self._short)


class BoundedLog:
    """A log that never takes more than twice its limit: FILE, and FILE.1 before it.

    What cannot be written is lost: a full disk must not stop the service.
    """

    def __init__(self, path: str, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._descriptor = -1
        self._size = 0

    def write(self, data: bytes) -> None:
        """Append, in pieces where it is more than fits."""
        for begin in range(0, len(data), self._limit):
            piece = data[begin : begin + self._limit]
            with contextlib.suppress(OSError):
                self._make_room(len(piece))
                self._size += os.write(self._descriptor, piece)

    def _make_room(self, count: int) -> None:
        if self._descriptor >= 0 and self._size + count > self._limit:
            self.close()
            os.replace(self._path, self._path + ".1")
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, _OPEN | os.O_WRONLY | os.O_APPEND, 0o600)
            self._size = os.fstat(self._descriptor).st_size
            if self._size + count > self._limit and self._size:
                self._make_room(count)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

"""The loop's control socket: one line of JSON asks, one line answers; nothing that is asked harms the loop.

    {"command": "reload", "bundle": "/path"}        ->  {"ok": true, ...}
                                                        {"ok": false, "error": ..., "remedy": ..., "exit_code": 1}

A Unix socket that only its user may use (mode 0600, and the kernel is asked who is there), so there is no secret.
Next to it lies a lock: it tells a socket that a dead process left behind from one that is used.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
import struct
import sys
import threading
import time
from types import TracebackType
from typing import Any, Callable, Mapping

from edgeferry_runtime.errors import EdgeferryError, ManifestError, UsageError
from edgeferry_runtime.fields import did_you_mean
from edgeferry_runtime.strict_json import parse_json

__all__ = ["MAX_BYTES", "NAME", "Command", "ControlServer", "read_line", "socket_path"]

_LOG = logging.getLogger("edgeferry")
NAME = "control.sock"
MAX_BYTES = 64 << 10  # of a request
_CONNECTIONS = 8
_WAITING = 64  # connections the system holds until they are answered or refused
_DEADLINE_S = 10.0  # for a request to come, and for an answer to be taken
_POLL_S = 0.5
_LONGEST_PATH = 107  # sun_path of unix(7), without its NUL; macOS has 103
_ELSEWHERE = "Choose another place with --state (the socket lies in its folder)."
Command = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def socket_path(state: str) -> str:
    """Where the socket of a loop lies: in the folder of its state file."""
    return os.path.join(os.path.dirname(os.path.abspath(state)), NAME)


class ControlServer:
    """Answers commands in threads of its own.

    Args:
        path: of the socket; its folder is made, for this user alone.
        commands: by name; each gets the request and returns plain JSON values.  They run in several threads.
        deadline_s: for a whole request to come, and for its answer to be taken.

    Raises:
        UsageError: another loop uses the path, or it cannot be used.
    """

    def __init__(self, path: str, commands: Mapping[str, Command], deadline_s: float = _DEADLINE_S) -> None:
        if not hasattr(socket, "AF_UNIX") or sys.platform == "win32":
            raise UsageError(
                "this system has no Unix sockets for `edgeferry-run ctl`", "Restart the loop instead."
            )
        self.path = path
        self._commands = commands
        self._deadline_s = deadline_s
        self._closing = threading.Event()
        self._places = threading.Semaphore(_CONNECTIONS)
        self._lock = _locked(path)
        try:
            self._socket = _bound(path)
        except BaseException:
            os.close(self._lock)
            raise
        self._thread = threading.Thread(target=self._accept, name="edgeferry-control", daemon=True)

    def start(self) -> ControlServer:
        """Begin to listen."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Listen no more, and remove the socket; a command under way ends by itself.  Harmless twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._thread.is_alive():
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
                knock.setblocking(False)
                knock.connect(self.path)  # or it would wait for the next one who asks
            self._thread.join()
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        os.close(self._lock)

    def __enter__(self) -> ControlServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def answer(self, line: bytes) -> dict[str, Any]:
        """The answer to one request, whatever it is."""
        try:
            request = _parsed(line)
            if not isinstance(request, dict) or not isinstance(request.get("command"), str):
                raise UsageError('a request is {"command": NAME, ...}')
            name = request["command"]
            command = self._commands.get(name)
            if command is None:
                raise UsageError(
                    "there is no command {!r} here{}".format(
                        name[:80], did_you_mean(name[:80], list(self._commands))
                    ),
                    "This loop knows {}.".format(", ".join(sorted(self._commands))),
                )
            answer = dict(command(request), ok=True)
            json.dumps(answer, allow_nan=False)
            return answer
        except EdgeferryError as error:
            return _failure(error.message, error.remedy, error.exit_code)
        except Exception as error:  # a command's own fault is told, and the loop goes on
            _LOG.exception("a command failed")
            return _failure("the command failed: {!r}".format(error), "See the loop's log.")

    def _accept(self) -> None:
        self._socket.settimeout(_POLL_S)
        while not self._closing.is_set():
            try:
                connection, _ = self._socket.accept()
            except socket.timeout:
                continue
            except OSError as error:  # no more file descriptors, say: they may come back
                if not self._closing.wait(_POLL_S):
                    _LOG.debug("no connection was accepted: %s", error)
                continue
            if self._closing.is_set():
                connection.close()
                return
            if not self._places.acquire(blocking=False):
                _refuse(connection, "{} commands are under way".format(_CONNECTIONS))
                continue
            try:
                threading.Thread(
                    target=self._serve, args=(connection,), name="edgeferry-command", daemon=True
                ).start()
            except RuntimeError:  # no more threads
                self._places.release()
                _refuse(connection, "the system has no room for a command")

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, contextlib.suppress(OSError):
                try:
                    self._talk(connection, _trusted(connection))
                except UsageError as error:
                    _send(connection, _failure(error.message, exit_code=error.exit_code))
        finally:
            self._places.release()

    def _talk(self, connection: socket.socket, trusted: bool) -> None:
        rest = b""
        while not self._closing.is_set():
            line, rest = read_line(connection, rest, self._deadline_s)
            if not line:
                return
            # Read all the same: who is cut off while sending never sees why.
            answer = self.answer(line) if trusted else _failure("this loop belongs to another user")
            _send(connection, answer, self._deadline_s)


def read_line(
    connection: socket.socket, rest: bytes = b"", deadline_s: float = _DEADLINE_S, limit: int = MAX_BYTES
) -> tuple[bytes, bytes]:
    """One line, without its end, and what was read of the next one.

    Args:
        rest: what was read of it before.
        deadline_s: for the whole line.
        limit: bytes it may have.

    Returns:
        b"" in the place of the line when the other side has closed the connection.

    Raises:
        UsageError: it is too long, or did not come in time.
        OSError: the connection broke.
    """
    until = time.monotonic() + deadline_s
    while b"\n" not in rest:
        left_s = until - time.monotonic()
        if len(rest) > limit:
            break
        if left_s <= 0:
            raise UsageError("no line came within {:g} s".format(deadline_s))
        connection.settimeout(left_s)
        try:
            data = connection.recv(65536)
        except socket.timeout:
            continue
        if not data:
            return b"", b""
        rest += data
    line, _, rest = rest.partition(b"\n")
    if len(line) > limit:
        raise UsageError("a line has more than {} bytes".format(limit))
    return line or b" ", rest


def _parsed(line: bytes) -> Any:
    try:
        return parse_json(line, "the request")
    except ManifestError as error:  # its words are about bundles
        raise UsageError(error.message.replace(" to be a manifest", "")) from None


def _failure(error: str, remedy: str = "", exit_code: int = 1) -> dict[str, Any]:
    return {"ok": False, "error": error, "remedy": remedy or None, "exit_code": exit_code}


def _send(connection: socket.socket, answer: Mapping[str, Any], timeout_s: float = 1.0) -> None:
    connection.settimeout(timeout_s)
    connection.sendall(json.dumps(answer, allow_nan=False).encode("utf-8") + b"\n")


def _refuse(connection: socket.socket, why: str) -> None:
    with connection, contextlib.suppress(OSError):
        _send(connection, _failure(why, "Try again in a moment."), 0.1)


def _trusted(connection: socket.socket) -> bool:
    """Whether the other side is this user or root, where the system tells; elsewhere the socket's mode decides."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return user in (0, os.geteuid())


def _locked(path: str) -> int:
    """The lock beside the socket, held as long as the returned descriptor is open."""
    import fcntl

    if len(os.fsencode(path)) > (103 if sys.platform == "darwin" else _LONGEST_PATH):
        raise UsageError("{}: the path is too long for a socket".format(path), _ELSEWHERE)
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path + ".lock", flags, 0o600)
    except OSError as error:
        raise UsageError("{}: cannot be made: {}".format(path, error.strerror), _ELSEWHERE) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UsageError("{}: another loop is using it".format(path), _ELSEWHERE) from None
    return descriptor


def _bound(path: str) -> socket.socket:
    """A listening socket; what a dead process left there is replaced, anything but a socket is not."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(_WAITING)
    except OSError as error:
        listener.close()
        raise UsageError("{}: cannot be made: {}".format(path, error.strerror or error), _ELSEWHERE) from None
    return listener

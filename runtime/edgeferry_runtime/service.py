"""What makes the loop a good service: readiness and watchdog for systemd, a state file, an eye on the clock.

Sources: sd_notify(3) and sd_watchdog_enabled(3) of systemd for the messages and the environment, systemd.exec(5)
for RUNTIME_DIRECTORY.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from typing import Any, Callable, Mapping

from edgeferry_runtime.errors import EdgeferryError, SinkError
from edgeferry_runtime.strict_json import parse_json

__all__ = [
    "ClockWatch",
    "Heartbeat",
    "Notifier",
    "StateFile",
    "StateThread",
    "read_state",
    "state_path",
]

_LOG = logging.getLogger("edgeferry")
_SEND_TIMEOUT_S = 1.0  # systemd's queue can be full for a moment; a loop must not wait for it
STATE_VERSION = 1
_NO_STATE = "It was not written by edgeferry-run; look at --state."


class Notifier:
    """Tells systemd how the service is; does nothing where nobody listens, and never raises.

    Args:
        environment: where NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are looked for.

    Attributes:
        watchdog_period_s: a sign of life must come at least this often; None for no watchdog.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = _socket_address(environment.get("NOTIFY_SOCKET", ""))
        self.watchdog_period_s = _watchdog_period(environment) if self._address else None

    def ready(self) -> bool:
        """Start-up is over.  All four return whether the message was taken."""
        return self._send("READY=1")

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._send("STATUS=" + " ".join(text.split()))

    def watchdog(self) -> bool:
        """A sign of life."""
        return self._send("WATCHDOG=1")

    def stopping(self) -> bool:
        """The service ends on purpose."""
        return self._send("STOPPING=1")

    def _send(self, message: str) -> bool:
        if self._address is None:
            return False
        import socket

        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_SEND_TIMEOUT_S)
                sender.connect(self._address)
                sender.sendall(message.encode("utf-8", "replace"))
        except OSError:
            return False
        return True


def _socket_address(text: str) -> str | None:
    """A path, or a name in Linux's abstract namespace, written with "@" for the NUL it begins with."""
    if len(text) < 2 or text[0] not in "/@":
        return None
    import socket

    if not hasattr(socket, "AF_UNIX"):
        return None
    return "\0" + text[1:] if text[0] == "@" else text


def _watchdog_period(environment: Mapping[str, str]) -> float | None:
    pid = environment.get("WATCHDOG_PID", "")
    if pid and pid != str(os.getpid()):  # meant for a parent that handed its environment down
        return None
    text = environment.get("WATCHDOG_USEC", "")
    microseconds = int(text) if text.isdigit() and len(text) < 20 else 0
    return microseconds / 1e6 if 0 < microseconds < 2**64 - 1 else None


class Heartbeat:
    """Beats systemd's watchdog only while results come, or the loop says that none is due.

    ``advance`` and ``idle`` belong to the loop and cost a fraction of a microsecond; ``tick`` belongs to the
    state thread.  A source that is waited for or reopened is no reason to call either: then the beats stop, and
    systemd restarts the service when it takes longer than WatchdogSec.

    Args:
        notifier: where the beats go.
        clock: monotonic seconds.
    """

    def __init__(self, notifier: Notifier, clock: Callable[[], float] = time.monotonic) -> None:
        self._notifier = notifier
        self._clock = clock
        self._moves = 0
        self._seen = 0
        self._moved_at = clock()

    # Two threads of the loop may call these: an increment lost between them costs one beat, not a restart.

    def advance(self) -> None:
        """A result went out."""
        self._moves += 1

    def idle(self) -> None:
        """No result is due now: nothing moves before the camera, or the next frame is not yet wanted."""
        self._moves += 1

    @property
    def interval_s(self) -> float:
        """How often to call ``tick``: each second, or twice in a shorter watchdog period."""
        period = self._notifier.watchdog_period_s
        return 1.0 if period is None else min(1.0, period / 2)

    @property
    def still_s(self) -> float:
        """Seconds since a tick last saw the loop move, or since the start."""
        return self._clock() - self._moved_at

    def tick(self) -> bool:
        """Beat if the loop moved or was idle since the last tick; returns whether it did."""
        moves = self._moves
        if moves == self._seen:
            return False
        self._seen = moves
        self._moved_at = self._clock()
        self._notifier.watchdog()
        return True


class ClockWatch:
    """Notices when the wall clock jumps, so that the log explains the times in the results.

    Nothing in the loop depends on the wall clock: intervals are taken on the monotonic one.  A Pi without a
    battery starts in the past and jumps when the network tells the time.

    Args:
        wall, monotonic: the two clocks, in seconds.
        threshold_s: what counts as a jump; slower corrections are not seen.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        threshold_s: float = 1.0,
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._threshold_s = threshold_s
        self._offset = wall() - monotonic()

    def check(self) -> float | None:
        """Seconds the wall clock jumped since the last check, forward positive; None when it did not."""
        offset = self._wall() - self._monotonic()
        jump, self._offset = offset - self._offset, offset
        return jump if abs(jump) > self._threshold_s else None


class StateThread:
    """Calls ``callback`` every ``period_s`` in a daemon thread, from one period after ``start``.

    A callback that fails is logged once, and again only after it has worked in between; it is called on.
    """

    def __init__(self, period_s: float, callback: Callable[[], object]) -> None:
        self._period_s = period_s
        self._callback = callback
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgeferry-state", daemon=True)

    def start(self) -> StateThread:
        """Begin; a thread starts once."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End and wait for a callback under way; harmless when it never began or has ended."""
        self._stopping.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        failing = False
        while not self._stopping.wait(self._period_s):
            try:
                self._callback()
                failing = False
            except Exception as error:  # whatever it is, the loop it watches goes on
                if not failing:
                    _LOG.error("the state cannot be told: %s", error)
                failing = True


def state_path(environment: Mapping[str, str] = os.environ) -> str:
    """Where the state goes when nobody says: always in memory, where the system has such a place.

    $RUNTIME_DIRECTORY (systemd's RuntimeDirectory=), $XDG_RUNTIME_DIR/edgeferry, /run/edgeferry where this user
    may write, else a folder of this user in the system's temporary one.
    """
    given = environment.get("RUNTIME_DIRECTORY", "").split(":")[0]
    user = environment.get("XDG_RUNTIME_DIR", "")
    if given:
        folder = given
    elif user and os.path.isdir(user):
        folder = os.path.join(user, "edgeferry")
    elif os.access("/run/edgeferry", os.W_OK):
        folder = "/run/edgeferry"
    else:
        import tempfile

        name = "edgeferry-{}".format(os.getuid()) if hasattr(os, "getuid") else "edgeferry"
        folder = os.path.join(tempfile.gettempdir(), name)
    return os.path.join(folder, "state.json")


class StateFile:
    """The loop's state as a JSON object, replaced as a whole so that no reader sees half of it.

    It stays when the service ends, and says "stopped".  It is not synchronised to the medium: after a power cut
    there is no loop for it to tell of.

    Args:
        path: the file; its folder is made, for this user alone.
        clock: monotonic seconds.
        period_s: the least time between two writes.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic, period_s: float = 1.0) -> None:
        self.path = path
        self._clock = clock
        self._period_s = period_s
        self._next = clock()

    def write(self, values: Mapping[str, Any]) -> bool:
        """Replace the file, unless it was written less than ``period_s`` ago; returns whether it was.

        Args:
            values: plain JSON values; schema_version, pid and time (of writing, since 1970) are added, and state
                is "running" unless they say otherwise.

        Raises:
            SinkError: it cannot be written.
        """
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._period_s
        self._replace(dict({"state": "running"}, **values))
        return True

    def close(self, values: Mapping[str, Any]) -> None:
        """Write for the last time, with state "stopped" unless ``values`` say otherwise.

        Raises:
            SinkError: it cannot be written.
        """
        self._replace(dict({"state": "stopped"}, **values))

    def _replace(self, values: dict[str, Any]) -> None:
        content = dict(values, schema_version=STATE_VERSION, pid=os.getpid(), time=round(time.time(), 3))
        text = json.dumps(content, allow_nan=False)
        new = "{}.{}.new".format(self.path, os.getpid())
        try:
            os.makedirs(os.path.dirname(os.path.abspath(self.path)), mode=0o700, exist_ok=True)
            with open(new, "w", encoding="utf-8") as file:
                file.write(text + "\n")
            os.replace(new, self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(new)
            raise SinkError(
                "the state file {} cannot be written: {}".format(self.path, error.strerror or error),
                "Choose another place with --state, in memory (under /run) rather than on the SD card.",
            ) from None


def read_state(path: str) -> dict[str, Any]:
    """What a loop wrote last.

    Raises:
        EdgeferryError: there is no such file, it cannot be read, or it is no state this version knows.
    """
    try:
        with open(path, "rb") as file:
            content = parse_json(file.read(1 << 20), path)
    except OSError as error:
        raise EdgeferryError(
            "no state at {}: {}".format(path, error.strerror or error),
            "Is the loop running, as this user? `edgeferry-run run --state FILE` says where it writes.",
        ) from None
    except EdgeferryError as error:
        raise EdgeferryError(error.message, _NO_STATE) from None
    if not isinstance(content, dict) or not isinstance(content.get("state"), str):
        raise EdgeferryError("{}: is no state".format(path), _NO_STATE)
    if content.get("schema_version") != STATE_VERSION:
        raise EdgeferryError(
            "{}: schema_version {!r} is not {}".format(path, content.get("schema_version"), STATE_VERSION),
            "Read it with the version of edgeferry-runtime that wrote it.",
        )
    return content

"""`edgeferry-run supervise`, for where there is no systemd: starts, shows and ends a supervisor.

There is one supervisor a folder: it holds a lock there, tells its state in supervisor.json and keeps the service's
output in service.log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import Any, Callable, NoReturn, Sequence

from edgeferry_runtime.errors import EdgeferryError, UsageError
from edgeferry_runtime.supervisor import Limits, Supervisor
from edgeferry_runtime.supervisor_folder import Folder

__all__ = ["Limits", "stop_supervisor", "supervise", "supervisor_status"]


def supervise(runtime: str, argv: Sequence[str], limits: Limits = Limits(), detach: bool = False) -> None:  # noqa: B008
    """Keep a command running until SIGTERM.

    Args:
        runtime: the folder of socket, state, lock and log; made for this user alone.
        argv: the command; it speaks systemd's protocol.
        limits: see there.
        detach: run in the background, in a session of its own; returns when the supervisor is at work.

    Raises:
        UsageError: no command.
        EdgeferryError: the folder is not safe or cannot be written, another supervisor holds it, or this system
            has none of what is needed.
    """
    if not argv:
        raise UsageError(
            "there is no command to supervise", "Write it behind --: supervise --runtime DIR -- COMMAND"
        )
    _require_posix()
    folder = Folder.make(runtime)
    lock = folder.lock()
    if detach:
        _detach(folder, argv, limits, lock)
        return
    try:
        _hold(folder, lock, argv, limits)
    finally:
        os.close(lock)


def _hold(
    folder: Folder, lock: int, argv: Sequence[str], limits: Limits, started: Callable[[], None] = lambda: None
) -> None:
    folder.sign(lock)
    folder.end_orphan(limits.stop_s)
    Supervisor(folder, argv, limits).run(started)


def _detach(folder: Folder, argv: Sequence[str], limits: Limits, lock: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _in_background(folder, argv, limits, lock, writer)
    os.close(writer)
    os.close(lock)  # the supervisor's copy holds it
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        problem = pipe.read(4096).decode("utf-8", "replace")
    if problem:
        raise EdgeferryError(
            "the supervisor did not start: {}".format(problem), "Start it without --detach to see."
        )


def _in_background(folder: Folder, argv: Sequence[str], limits: Limits, lock: int, writer: int) -> NoReturn:
    """The two processes on the way to a supervisor without a terminal; neither ever returns."""
    waiting = True

    def started() -> None:
        nonlocal waiting
        waiting = False
        os.close(writer)

    try:
        os.setsid()
        if os.fork() > 0:
            os._exit(0)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        _close_all_but(lock, writer)  # a lock or a connection that whoever started this left open
        _hold(folder, lock, argv, limits, started)
        os._exit(0)
    except BaseException as error:
        if waiting:
            os.write(writer, (str(error) or type(error).__name__).encode("utf-8", "replace")[:4000])
    finally:
        os._exit(1)


def _close_all_but(*kept: int) -> None:
    low = 3
    for number in sorted(kept):
        os.closerange(low, number)
        low = number + 1
    os.closerange(low, max(low, min(os.sysconf("SC_OPEN_MAX"), 4096)))


def supervisor_status(runtime: str) -> dict[str, Any]:
    """What supervisor.json says, and "supervised": whether there is a supervisor.

    One that was killed left a state behind that is not true any more; it is "stopped" then.

    Raises:
        EdgeferryError: the folder is not safe, or its state is none.
    """
    _require_posix()
    folder = Folder(runtime)
    if not os.path.lexists(folder.path):
        return {"state": "stopped", "supervised": False}
    folder.check()
    held = folder.holder() is not None
    values = folder.read_state()
    if not held:
        values.update(state="stopped", pid=None, child=None)
    return dict(values, supervised=held)


def stop_supervisor(runtime: str, timeout_s: float = 30.0) -> bool:
    """End a supervisor and its service; returns whether there was one.

    Raises:
        EdgeferryError: the folder is not safe, or it has not ended in time.
    """
    _require_posix()
    folder = Folder(runtime)
    if not os.path.lexists(folder.path):
        return False
    folder.check()
    until = time.monotonic() + timeout_s
    signalled = None
    while True:
        holder = folder.holder()
        if holder is None:
            return signalled is not None
        if holder and signalled is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(holder, signal.SIGTERM)
            signalled = holder
        if time.monotonic() > until:
            raise EdgeferryError(
                "the supervisor of {} (process {}) has not ended within {:g} s".format(
                    folder.path, holder, timeout_s
                ),
                "Look at {}; kill -KILL ends it at once.".format(folder.log_path),
            )
        time.sleep(0.05)


def _require_posix() -> None:
    if not sys.platform.startswith(("linux", "darwin")):
        raise EdgeferryError(
            "supervise runs on Linux and macOS only",
            "Here the system's own service manager can run `edgeferry-run run`.",
        )

"""Starts a service again and again and watches it, as systemd does with Type=notify and Restart=always.

The service is told where to say that it is ready and alive by sd_notify(3)'s NOTIFY_SOCKET and WATCHDOG_USEC.
Standard library alone: this process stays for as long as the board runs.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from typing import Any, Callable, NamedTuple, Sequence

from edgeferry_runtime.supervisor_folder import BoundedLog, Folder, NotifySocket

__all__ = ["Limits", "Supervisor", "uptime"]

_NEVER = float("inf")
_STATUS_S = 2.0  # a new status is told after so long at the latest, and no more often
_CHUNK = 1 << 16
_LAST_OUTPUT = 16  # chunks of a pipe read after its process ended; a straggler may go on writing


class Limits(NamedTuple):
    """How long things may take, in seconds, and how much is kept.

    Attributes:
        start_s: from the start of the service to its READY=1.
        watchdog_s: between two of its WATCHDOG=1; None for no watchdog.
        stop_s: between SIGTERM and SIGKILL, and from STOPPING=1 to SIGTERM.
        pauses_s: before the first, second, ... start in a row; the last one stays.
        calm_s: a service that ran for so long begins with the first pause again.
        log_bytes: of service.log, before it becomes service.log.1.
    """

    start_s: float = 120.0
    watchdog_s: float | None = None
    stop_s: float = 10.0
    pauses_s: tuple[float, ...] = (1, 2, 4, 8, 16, 30)
    calm_s: float = 60.0
    log_bytes: int = 1000000


class Supervisor:
    """Starts a command again and again, and watches it; the folder's lock is held by whoever calls ``run``."""

    def __init__(self, folder: Folder, argv: Sequence[str], limits: Limits) -> None:
        self._folder = folder
        self._argv = list(argv)
        self._limits = limits
        self._log = BoundedLog(folder.log_path, limits.log_bytes)
        self._values: dict[str, Any] = {
            "state": "starting", "pid": os.getpid(), "child": None, "restarts": 0, "since": uptime(), "exit": None,
            "status": "",
        }  # fmt: skip
        self._told = 0.0  # when the file was written
        self._untold = False  # there is a new status
        self._ending = False
        self._output = -1  # the service's output, while there is one
        self._calm = False  # the last service ran for calm_s

    def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Keep the command running until SIGTERM, SIGINT or SIGHUP.

        Args:
            started: called once all is in place.
        """
        try:
            self._run(started)
        except Exception as error:
            self._say("ends: {}: {}".format(type(error).__name__, error))
            raise
        finally:
            self._change(state="stopped", pid=None, child=None, status="")
            self._log.close()

    def _run(self, started: Callable[[], None]) -> None:
        with _Signals(self._end) as self._wake, NotifySocket(self._folder.path) as self._notify:
            self._change(state="starting")
            started()
            pauses = 0
            while not self._ending:
                text = self._run_once()
                if self._ending:
                    break
                pauses = 0 if self._calm else pauses
                pause_s = self._limits.pauses_s[min(pauses, len(self._limits.pauses_s) - 1)]
                pauses += 1
                self._say("{}; starting again in {:g} s".format(text, pause_s))
                self._change(state="back-off", exit=text, child=None, status="")
                self._sleep(pause_s)
                if not self._ending:
                    self._values["restarts"] += 1  # told with the start

    def _end(self) -> None:
        self._ending = True

    # One life of the service.

    def _run_once(self) -> str:
        """Start the service and watch it until its end; returns how it ended."""
        self._notify.receive()  # what the one before it said last
        self._calm = False
        try:
            process = self._start()
        except OSError as error:
            self._change(state="starting", child=None)
            return "{} cannot be started: {}".format(self._argv[0], os.strerror(error.errno or 0))
        self._change(state="starting", child=process.pid)
        life = _Life(process.pid, self._limits)
        try:
            self._watch(process, life)
        finally:
            _kill(process.pid, signal.SIGKILL)  # what it left behind; before its number can become another's
            process.wait()
        self._calm = life.ran_s() >= self._limits.calm_s
        self._drain()
        text = "; ".join(part for part in (life.why, _exit_text(process.returncode)) if part)
        self._change(exit=text, child=None)
        return text

    def _watch(self, process: subprocess.Popen[bytes], life: _Life) -> None:
        while not _has_ended(process):
            self._wait(life.deadline)
            for message in self._notify.receive():
                self._hear(life, message)
            if self._ending:
                life.terminate("")
            life.check()
            if life.state != self._values["state"]:
                self._change(state=life.state)

    def _start(self) -> subprocess.Popen[bytes]:
        environment = dict(os.environ, NOTIFY_SOCKET=self._notify.address)
        environment.pop("WATCHDOG_PID", None)
        environment.pop("WATCHDOG_USEC", None)
        if self._limits.watchdog_s is not None:
            environment["WATCHDOG_USEC"] = str(int(self._limits.watchdog_s * 1e6))
        child_lock = self._folder.child_lock()
        try:
            process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                bufsize=0, env=environment, start_new_session=True, pass_fds=(child_lock,),
            )  # fmt: skip
        finally:
            os.close(child_lock)  # the child's copy holds it
        assert process.stdout is not None  # noqa: S101 - for mypy: it is a pipe
        self._output = os.dup(process.stdout.fileno())
        process.stdout.close()
        os.set_blocking(self._output, False)
        return process

    def _hear(self, life: _Life, message: str) -> None:
        for line in message.split("\n"):
            if line.startswith("STATUS="):
                text = line[len("STATUS=") :][:200]
                self._values["status"] = "".join(char if char.isprintable() else " " for char in text)
                self._untold = True
            else:
                life.hear(line)

    # Waiting.

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._ending and time.monotonic() < until:
            self._wait(until)
            self._notify.receive()

    def _wait(self, until: float) -> None:
        """Until then, a signal, or something to read; output is written to the log meanwhile."""
        readers = [self._wake, self._notify.fileno()] + ([self._output] if self._output >= 0 else [])
        timeout = min(max(0.0, until - time.monotonic()), _STATUS_S)
        ready, _, _ = select.select(readers, [], [], timeout)
        if self._wake in ready:
            os.read(self._wake, 512)
        if self._output in ready:
            self._pump()
        if self._untold and time.monotonic() - self._told >= _STATUS_S:
            self._tell()

    def _pump(self) -> bool:
        """Move a piece of output into the log; returns whether there may be more."""
        try:
            data = os.read(self._output, _CHUNK)
        except BlockingIOError:
            return False
        if data:
            self._log.write(data)
            return True
        os.close(self._output)
        self._output = -1
        return False

    def _drain(self) -> None:
        for _ in range(_LAST_OUTPUT):
            if self._output < 0 or not self._pump():
                break
        if self._output >= 0:
            os.close(self._output)
            self._output = -1

    # Telling.

    def _say(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._log.write("{} supervisor: {}\n".format(stamp, text).encode("utf-8", "replace"))

    def _change(self, **values: Any) -> None:
        if values.get("state", self._values["state"]) != self._values["state"]:
            values["since"] = uptime()
        self._values.update(values)
        self._tell()

    def _tell(self) -> None:
        self._told, self._untold = time.monotonic(), False
        try:
            self._folder.write_state(self._values)
        except OSError as error:  # a full disk is no reason to end the service
            self._say("supervisor.json cannot be written: {}".format(error.strerror or error))


class _Life:
    """What is due from one run of the service, and when.

    Attributes:
        state: "starting", "running" or "stopping".
        deadline: on the monotonic clock, when `check` has something to do.
        why: it is ended; "" while it is not, or when it was asked for.
    """

    def __init__(self, group: int, limits: Limits) -> None:
        self.state = "starting"
        self.why = ""
        self._group = group
        self._limits = limits
        self._ready_at = 0.0
        self._terminated = False
        self.deadline = time.monotonic() + limits.start_s

    def hear(self, line: str) -> None:
        """A line the service sent."""
        now = time.monotonic()
        if line == "READY=1" and self.state == "starting":
            self.state, self._ready_at = "running", now
            self.deadline = now + (self._limits.watchdog_s or _NEVER)
        elif line == "WATCHDOG=1" and self.state == "running" and self._limits.watchdog_s:
            self.deadline = now + self._limits.watchdog_s
        elif line == "WATCHDOG=trigger" and self.state != "stopping":
            self.terminate("asked to be started again")
        elif line == "STOPPING=1" and self.state != "stopping":
            self.state, self.deadline = "stopping", now + self._limits.stop_s

    def check(self) -> None:
        """Do what is due."""
        if time.monotonic() < self.deadline:
            return
        if self._terminated:
            _kill(self._group, signal.SIGKILL)
            self.deadline = _NEVER
        elif self.state == "starting":
            self.terminate("not ready within {:g} s".format(self._limits.start_s))
        elif self.state == "running":
            self.terminate("no sign of life for {:g} s".format(self._limits.watchdog_s or 0))
        else:
            self.terminate("stopping took longer than {:g} s".format(self._limits.stop_s))

    def terminate(self, why: str) -> None:
        """SIGTERM now, SIGKILL after a while; once."""
        if self._terminated:
            return
        self._terminated = True
        self.why, self.state = why, "stopping"
        self.deadline = time.monotonic() + self._limits.stop_s
        _kill(self._group, signal.SIGTERM)

    def ran_s(self) -> float:
        """Seconds since it was ready."""
        return time.monotonic() - self._ready_at if self._ready_at else 0.0


class _Signals:
    """Signals as bytes in a pipe, for `select`; what was before is restored."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end

    def __enter__(self) -> int:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(self._writer)
        endings = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        self._before = [(number, signal.signal(number, lambda *_: self._end())) for number in endings]
        self._before.append((signal.SIGCHLD, signal.signal(signal.SIGCHLD, lambda *_: None)))
        return self._reader

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._reader)
        os.close(self._writer)


def uptime() -> float:
    """Seconds since the machine started, sleep included, as /proc/uptime has it."""
    clock = getattr(time, "CLOCK_BOOTTIME", None) or time.CLOCK_MONOTONIC
    return int(time.clock_gettime(clock) * 100) / 100  # cut as the kernel does: never later than now


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it ended; where possible it is not reaped, so that its number stays its own."""
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        os.killpg(group, number)


def _exit_text(code: int) -> str:
    if code >= 0:
        return "exit status {}".format(code)
    try:
        return "ended by {}".format(signal.Signals(-code).name)
    except ValueError:
        return "ended by signal {}".format(-code)

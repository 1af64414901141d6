"""The local twin: the same commands, run by this machine in a folder that plays the device's home."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from edgeferry_deploy import commands
from edgeferry_deploy.errors import CommandTimeoutError, TargetError
from edgeferry_deploy.streaming import STDERR, STDOUT, Running
from edgeferry_deploy.transport import DEADLINE, OUTPUT_LIMIT, Completed, Transport, too_long

__all__ = ["LocalTransport"]


class LocalTransport(Transport):
    """A folder on this machine as a device.

    Args:
        folder: becomes HOME and the working directory of every command; made when absent.
        path: PATH for the commands; by default this Python's folder, then the user's PATH.

    Raises:
        TargetError: the folder cannot be made, or this system has no POSIX shell.
    """

    def __init__(self, folder: str | Path, *, path: str | None = None) -> None:
        if os.name != "posix":
            raise TargetError("local:DIR needs a POSIX shell, which this system lacks", "push over SSH instead")
        self.folder = Path(folder).expanduser().absolute()
        self.name = f"local:{self.folder}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TargetError(f"{self.folder} cannot be made: {error.strerror}", "name another folder") from None
        own = str(Path(sys.executable).parent)
        self._environment = {
            "HOME": str(self.folder),
            "PATH": path if path is not None else os.pathsep.join((own, os.environ.get("PATH", os.defpath))),
        }

    def run(
        self,
        argv: Sequence[str],
        stdin: bytes | Iterable[bytes] | None = None,
        timeout: float = DEADLINE,
        limit: int = OUTPUT_LIMIT,
    ) -> Completed:
        """See `Transport.run`."""
        self.round_trips += 1
        started = time.monotonic()
        try:
            process = self._popen(argv)
        except OSError as error:  # as a login shell answers for a program that is not there
            return Completed(tuple(argv), 127, b"", f"{argv[0]}: {error.strerror}".encode())
        outputs = tuple(Drain(pipe, limit, process) for pipe in (process.stdout, process.stderr) if pipe)
        late = threading.Timer(timeout, end, [process])
        late.start()
        try:
            self._feed(process, stdin)
            status = process.wait()
            for output in outputs:
                output.join(5)  # a child that left the session may hold the pipe open
        except BaseException:
            end(process)
            process.wait()
            raise
        finally:
            late.cancel()
            late.join()
            for output in outputs:
                output.join(1)
            if process.stdin:
                with contextlib.suppress(BrokenPipeError):  # what was still buffered has no reader
                    process.stdin.close()
        for output in outputs:
            if output.cut:
                raise too_long(argv, self.name, limit, bytes(output.taken))
        if status < 0 and time.monotonic() - started >= timeout:
            name = commands.name_of(argv)
            raise CommandTimeoutError(
                f"'{name}' did not end within {timeout:.0f} s on {self.name}",
                "see what keeps it busy",
                command=name,
            )
        return Completed(tuple(argv), max(status, -1), bytes(outputs[0].taken), bytes(outputs[1].taken))

    def start(self, argv: Sequence[str]) -> Running:
        """See `Transport.start`; a program that is not there is an OSError, but `stream` starts a shell."""
        self.round_trips += 1
        return LocalRunning(self._popen(argv))

    def _popen(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            env=self._environment,
            start_new_session=True,  # so that a deadline ends the children too, and Ctrl-C here none of them
        )

    def _feed(self, process: subprocess.Popen[bytes], stdin: bytes | Iterable[bytes] | None) -> None:
        pipe = process.stdin
        if pipe is None:
            return
        try:
            for chunk in (stdin,) if isinstance(stdin, bytes) else stdin or ():
                pipe.write(chunk)
                pipe.flush()
                self.bytes_sent += len(chunk)
            pipe.close()
        except BrokenPipeError:
            pass  # the command ended early; its exit status and stderr say why

    def close(self) -> None:
        """Nothing stays open between commands."""

    def describe(self) -> str:
        """The session in one line."""
        return f"{self.name} (this machine, {sys.platform})"


class LocalRunning(Running):
    """See `Running`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._selector = selectors.DefaultSelector()
        for stream, pipe in ((STDOUT, process.stdout), (STDERR, process.stderr)):
            if pipe:
                self._selector.register(pipe, selectors.EVENT_READ, stream)

    def read(self, seconds: float) -> list[tuple[int, bytes]] | None:
        ended = self._process.poll() is not None
        # A child that was left behind may hold the pipes open: then nothing more to read is the end.
        ready = self._selector.select(0 if ended else seconds) if self._selector.get_map() else []
        pieces = []
        for key, _ in ready:
            piece = os.read(key.fd, 65536)
            if piece:
                pieces.append((key.data, piece))
            else:
                self._selector.unregister(key.fileobj)
        if not self._selector.get_map() and not ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        return None if ended and not ready else pieces

    def let_go(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()

    def exit_status(self) -> int:
        return max(self._process.wait(), -1)

    def close(self) -> None:
        """Let go; what ends in time is reaped, what does not ends by its guard."""
        running = self._process.poll() is None
        if not running:
            end(self._process)  # the guard and what was left behind
        self.let_go()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()
        self._selector.close()
        if running:
            try:
                self._process.wait(2)
            except subprocess.TimeoutExpired:
                end(self._process)
                self._process.wait()


class Drain(threading.Thread):
    """Reads a pipe to its end so that the command never blocks; keeps at most `limit` bytes, then ends it."""

    def __init__(self, pipe: IO[bytes], limit: int, process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self.taken = bytearray()
        self.cut = False
        self._pipe, self._limit, self._process = pipe, limit, process
        self.start()

    def run(self) -> None:
        """Drain."""
        with self._pipe:
            while chunk := os.read(self._pipe.fileno(), 65536):
                if self.cut:
                    continue
                self.cut = len(self.taken) + len(chunk) > self._limit
                self.taken += chunk[: self._limit - len(self.taken)]
                if self.cut:
                    end(self._process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and its children."""
    if sys.platform == "win32":
        process.kill()
        return
    import signal

    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)

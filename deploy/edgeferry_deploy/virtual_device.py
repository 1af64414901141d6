"""A board without hardware: an SSH server on loopback that runs commands in a folder, for the demo and the tests.

    python -m edgeferry_deploy.virtual_device --home DIR [--python PATH]

It prints one line of JSON when it listens and ends with its stdin, on SIGTERM or on Ctrl-C, together with
everything it started.  It isolates nothing: commands run as the user who started it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeferry_deploy.errors import DeployError

__all__ = ["VirtualDevice", "virtual_device"]

KEYS = ".virtual-device"  # below the home: host key, the client's key, and the folder with `python3`
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
READY_SECONDS = 30.0
GRACE_SECONDS = 2.0  # between the end of a connection and the end of what it ran


@dataclass(frozen=True)
class VirtualDevice:
    """A running virtual device.

    Attributes:
        identity: file with the private key it accepts.
        host_key_fingerprint: SHA256:... as `edgeferry enrol --fingerprint` takes it.
        home: folder that plays the user's home.
        pid: process id of the server.
    """

    host: str
    port: int
    user: str
    host_key_fingerprint: str
    home: Path
    identity: Path
    pid: int

    @property
    def target(self) -> str:
        """USER@HOST:PORT, as the commands take it."""
        return f"{self.user}@{self.host}:{self.port}"


@contextlib.contextmanager
def virtual_device(
    home: str | Path, *, python: str | None = None, path: str | None = None, port: int = 0
) -> Iterator[VirtualDevice]:
    """Start a virtual device as a process of its own, and end it with everything it started.

    Args:
        home: the device's home; made when absent.  A second start in the same home keeps the host key.
        python: what `python3` is there; by default the Python that runs this.
        path: the whole PATH there, instead of that `python3` and the system's folders.
        port: 0 for any free one.

    Raises:
        DeployError: it did not start; says why.
    """
    if os.name != "posix":
        raise DeployError(
            "a virtual device needs a POSIX shell, which this system lacks", "use WSL, Linux or macOS"
        )
    argv = [sys.executable, "-m", "edgeferry_deploy.virtual_device", "--home", str(home), "--port", str(port)]
    argv += ["--python", python] if python else []
    argv += ["--path", path] if path is not None else []
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield ready(process)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def ready(process: subprocess.Popen[bytes]) -> VirtualDevice:
    """The line a starting device prints, as a `VirtualDevice`."""
    line = process.stdout.readline() if process.stdout else b""
    if not line:
        _, said = process.communicate(timeout=READY_SECONDS)
        last = said.decode(errors="replace").strip().splitlines()[-1:] or ["it printed nothing"]
        raise DeployError(
            f"the virtual device did not start: {last[0]}",
            "pip install 'edgeferry-deploy[demo]' brings what it needs",
        )
    found = json.loads(line)
    return VirtualDevice(
        host=found["host"],
        port=found["port"],
        user=found["user"],
        host_key_fingerprint=found["host_key_fingerprint"],
        home=Path(found["home"]),
        identity=Path(found["identity"]),
        pid=process.pid,
    )


class Children:
    """The processes a device runs, each in a session of its own so that it can be ended with its children."""

    def __init__(self, home: Path, path: str) -> None:
        self._environment = {"HOME": str(home), "PATH": path, "USER": getpass.getuser(), "SHELL": "/bin/sh"}
        self._home = home
        self._running: set[asyncio.subprocess.Process] = set()

    async def serve(self, process: Any) -> None:
        """Run one command, or a shell, to its end, as sshd does."""
        terminal = await Terminal.open(process) if process.term_type is not None else None
        stdio = terminal.device if terminal else asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            "/bin/sh",
            *(() if process.command is None else ("-c", process.command)),
            stdin=stdio,
            stdout=stdio,
            stderr=stdio,
            cwd=self._home,
            env=self._environment | ({"TERM": process.term_type or "dumb"} if terminal else {}),
            start_new_session=True,
            preexec_fn=terminal.take if terminal else None,
        )
        self._running.add(child)
        if terminal:
            os.close(terminal.device)
        sources = (terminal.screen, None) if terminal else (child.stdout, child.stderr)
        feeding = asyncio.ensure_future(feed(process.stdin, terminal.keys if terminal else child.stdin))
        draining = asyncio.gather(drain(sources[0], process.stdout), drain(sources[1], process.stderr))
        gone = asyncio.ensure_future(process.wait_closed())
        try:
            # A client that went away has closed stdin; what still runs after a moment is ended.
            await asyncio.wait({draining, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not draining.done():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(child.wait(), GRACE_SECONDS)
                end(child)
            status = await child.wait()
            await draining
            if status < 0:
                process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
            else:
                process.exit(status)
        finally:
            end(child)
            self._running.discard(child)
            for task in (feeding, gone, draining):
                task.cancel()

    def end(self) -> None:
        """End every command and its children."""
        for child in tuple(self._running):
            end(child)


@dataclass(frozen=True)
class Terminal:
    """A pseudo-terminal; it keeps the size it was opened with.

    Attributes:
        device: the command's end, a file descriptor.
        keys: what is typed.
        screen: what is shown.
    """

    device: int
    keys: asyncio.StreamWriter
    screen: asyncio.StreamReader

    @classmethod
    async def open(cls, process: Any) -> Terminal:
        """One as the client asked for it."""
        import pty
        import termios

        ours, device = pty.openpty()
        columns, rows = process.term_size[:2]
        termios.tcsetwinsize(device, (rows or 24, columns or 80))
        loop = asyncio.get_running_loop()
        screen = asyncio.StreamReader()
        writable = os.fdopen(os.dup(ours), "wb", 0)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(screen), os.fdopen(ours, "rb", 0))
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, writable)
        return cls(device, asyncio.StreamWriter(transport, protocol, None, loop), screen)

    @staticmethod
    def take() -> None:
        """Make it the controlling terminal of this new session: Ctrl-C is for whatever runs in front."""
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def end(child: asyncio.subprocess.Process) -> None:
    """Kill a command's whole session: its group outlives it when something was left in the background."""
    if sys.platform == "win32":  # `serve` never gets there
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


async def feed(source: Any, sink: asyncio.StreamWriter | None) -> None:
    """Carry what the client sends into the command."""
    import asyncssh

    if sink is None:
        return
    events = (asyncssh.BreakReceived, asyncssh.SignalReceived, asyncssh.TerminalSizeChanged)
    try:
        while True:
            try:
                data = await source.read(65536)
            except events:
                continue
            if not data:
                return
            sink.write(data)
            await sink.drain()
    except (BrokenPipeError, ConnectionError, OSError, asyncio.IncompleteReadError):
        pass  # the command stopped reading, or the client is gone: both end the stream
    finally:
        sink.close()


async def drain(source: asyncio.StreamReader | None, sink: Any) -> None:
    """Carry what the command prints to the client; a client that is gone gets nothing more."""
    if source is None:
        return
    lost = False
    with contextlib.suppress(OSError):  # how a terminal ends
        while data := await source.read(65536):
            if lost:
                continue
            try:
                sink.write(data)
                await sink.drain()
            except (BrokenPipeError, ConnectionError, OSError):
                lost = True


def prepare(home: Path, python: str) -> tuple[Path, str]:
    """Make the home, its keys and its `python3`; the folder with the keys, and the PATH."""
    import asyncssh

    folder = home / KEYS
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name in ("host_key", "client_key"):
        if not (folder / name).exists():
            key = asyncssh.generate_private_key("ssh-ed25519")
            key.write_private_key(str(folder / name))
            key.write_public_key(str(folder / f"{name}.pub"))
            (folder / name).chmod(stat.S_IRUSR | stat.S_IWUSR)
    # A link would make a venv's Python forget its venv, so `python3` is a script.
    shim = folder / "bin" / "python3"
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(python)} "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    return folder, f"{folder / 'bin'}:{SYSTEM_PATH}"


async def serve(home: Path, python: str, path: str | None, port: int) -> None:
    """Listen on loopback until stdin closes or a signal comes."""
    import asyncssh

    keys, default_path = prepare(home, python)
    children = Children(home, path if path is not None else default_path)
    host_key = asyncssh.read_private_key(str(keys / "host_key"))
    server = await asyncssh.listen(
        "127.0.0.1",
        port,
        server_host_keys=[host_key],
        authorized_client_keys=str(keys / "client_key.pub"),
        process_factory=children.serve,
        encoding=None,
        line_editor=False,  # the terminal on the device edits lines
        server_version="edgeferry-virtual-device",
        login_timeout=20,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await watch_stdin(loop, stop)
    ready_line = {
        "host": "127.0.0.1",
        "port": server.get_port(),
        "user": getpass.getuser(),
        "host_key_fingerprint": host_key.get_fingerprint(),
        "home": str(home),
        "identity": str(keys / "client_key"),
    }
    print(json.dumps(ready_line), flush=True)
    await stop.wait()
    children.end()
    server.close()


async def watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Set `stop` when stdin ends: the device must not outlive who started it."""
    reader = asyncio.StreamReader()
    try:
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    except ValueError:  # a regular file or /dev/null cannot be watched: signals remain
        return

    async def until_end() -> None:
        while await reader.read(4096):
            pass
        stop.set()

    loop.end_of_stdin = asyncio.ensure_future(until_end())  # type: ignore[attr-defined]  # or it is collected


def main() -> int:
    """Run a virtual device in the foreground."""
    parser = argparse.ArgumentParser(prog="edgeferry_deploy.virtual_device", description=__doc__.splitlines()[0])
    parser.add_argument("--home", required=True, help="folder that plays the device's home")
    parser.add_argument("--python", default=sys.executable, help="what python3 is on the device")
    parser.add_argument("--path", help="the whole PATH on the device")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: any free one)")
    arguments = parser.parse_args()
    try:
        asyncio.run(serve(Path(arguments.home).absolute(), arguments.python, arguments.path, arguments.port))
    except ImportError:
        print("asyncssh is not installed: pip install 'edgeferry-deploy[demo]'", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"cannot listen: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

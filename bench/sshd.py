"""OpenSSH's own server as a board, behind a link or on loopback, with a home, a PATH, and faults put in its way.

Every command of a session goes through a login shell of ours.  It notes the command's name, and runs what the lab
has put in its way: a script `before-NAME` or `after-NAME`, once.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

SSHD = "/usr/sbin/sshd"
SFTP = "/usr/lib/openssh/sftp-server"
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"

# The name follows the quoted script; anything else (scp, rsync) passes without one.
LOGIN = r"""#!/bin/sh
lab={lab} original=$SSH_ORIGINAL_COMMAND
unset SSH_ORIGINAL_COMMAND SSH_CLIENT SSH_CONNECTION
export HOME={home} PATH={path}
cd "$HOME" || exit
rest=${{original#*"' edgeferry-"}}
case $rest in "$original") name= ;; *) name=${{rest%% *}} ;; esac
stage() {{
  if [ -n "$name" ] && [ -f "$lab/$1-$name" ]; then
    mv "$lab/$1-$name" "$lab/did-$1-$name" && . "$lab/did-$1-$name"
  fi
}}
if [ -z "$name" ]; then exec sh -c "$original"; fi
echo "$name" >>"$lab/commands"
stage before
if [ ! -f "$lab/after-$name" ]; then exec sh -c "$original"; fi
sh -c "$original"
status=$?
stage after
exit $status
"""

CONFIG = """
Port {port}
ListenAddress {address}
HostKey {lab}/{host_key}
AuthorizedKeysFile {lab}/client_key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
UseDNS no
MaxStartups 100
MaxSessions 100
SetEnv HOME={home}
ForceCommand {lab}/login
Subsystem sftp {sftp}
"""


class Sshd:
    """A running sshd, until the `with` ends.

    Args:
        lab: folder for keys, the login shell and what is put in its way; made when absent.
        home: the board's home; made when absent.
        address: what it listens on.
        enter: words before a command that is to run where that address is, see `Link.enter`.
        path: PATH of its commands.

    Attributes:
        target: USER@HOST:PORT.
        identity: the private key it accepts.
    """

    def __init__(
        self,
        lab: Path,
        home: Path,
        address: str = "127.0.0.1",
        enter: Sequence[str] = (),
        path: str = f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
    ) -> None:
        self.lab, self.home, self._enter = lab, home, enter
        self.address, self.port = address, free_port() if not enter else 22
        self.target = f"root@{address}:{self.port}"
        self.identity = lab / "client_key"
        self._process: subprocess.Popen[bytes] | None = None
        lab.mkdir(parents=True, exist_ok=True)
        home.mkdir(parents=True, exist_ok=True)
        for name in ("client_key", "host_key", "other_host_key"):
            if not (lab / name).exists():
                keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(lab / name)]
                subprocess.run(keygen, check=True)
        self._path = path
        self.start()

    def restart(self, inside: Sequence[str] = (), *, host_key: str = "host_key", path: str = "") -> None:
        """Stop, and start as `start` does."""
        self.stop()
        self.start(inside, host_key=host_key, path=path)

    def _write_login(self, path: str) -> None:
        places = {"lab": self.lab, "home": self.home, "path": path}
        login = self.lab / "login"
        login.with_suffix(".new").write_text(LOGIN.format(**{k: shlex.quote(str(v)) for k, v in places.items()}))
        login.with_suffix(".new").chmod(0o755)
        login.with_suffix(".new").replace(login)

    def start(self, inside: Sequence[str] = (), *, host_key: str = "host_key", path: str = "") -> None:
        """Listen.

        Args:
            inside: words before the server's command.
            host_key: which of the lab's.
            path: PATH of the commands; by default as at first.
        """
        self._write_login(path or self._path)
        config = self.lab / "sshd_config"
        config.write_text(
            CONFIG.format(
                port=self.port, address=self.address, lab=self.lab, home=self.home, host_key=host_key, sftp=SFTP
            )
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        with (self.lab / "sshd.log").open("ab") as log:
            command = [*self._enter, *inside, SSHD, "-D", "-e", "-f", str(config)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        deadline = time.monotonic() + 10
        while not self._listening():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"sshd does not start: {(self.lab / 'sshd.log').read_text('utf-8', 'replace')}")
            time.sleep(0.01)

    def _listening(self) -> bool:
        # Asked from inside: from outside the link may be cut.
        ask = f"import socket; socket.create_connection(({self.address!r}, {self.port}), 1)"
        if self._enter:
            command = [*self._enter, sys.executable, "-S", "-c", ask]
            return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
        with contextlib.suppress(OSError), socket.create_connection((self.address, self.port), 1):
            return True
        return False

    def put(self, stage: str, name: str, text: str) -> None:
        """Have the login shell run these lines `before` or `after` the next command of that name.

        In them `$lab` is the lab's folder, and `$PPID` the process that serves the session.
        """
        (self.lab / f"{stage}-{name}").write_text(text + "\n")

    def commands(self) -> list[str]:
        """Names of the commands since the last call."""
        noted = self.lab / "commands"
        names = noted.read_text().split() if noted.exists() else []
        noted.unlink(missing_ok=True)
        return names

    def sessions(self) -> list[int]:
        """Processes that serve sessions, and what they run."""
        if self._process is None:
            return []
        return descendants(self._process.pid)

    def end_sessions(self) -> None:
        """Kill them, as a device does that runs out of memory; the server goes on."""
        kill(self.sessions())

    def stop(self) -> None:
        """End the server and its sessions."""
        if self._process is not None:
            sessions = self.sessions()
            self._process.kill()
            self._process.wait()
            kill(sessions)
            self._process = None

    def __enter__(self) -> Sshd:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def obstacle() -> str:
    """Why there can be no sshd on this machine; empty when there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "OpenSSH's server needs root on Linux"
    return next(
        (
            f"{tool} is not installed: apt install openssh-server openssh-client"
            for tool in (SSHD, "ssh-keygen")
            if shutil.which(tool) is None
        ),
        "",
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def descendants(pid: int) -> list[int]:
    """A process' children and theirs."""
    found, parents = [], {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    layer = {pid}
    while layer := {child for child, parent in parents.items() if parent in layer}:
        found += sorted(layer)
    return found


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)

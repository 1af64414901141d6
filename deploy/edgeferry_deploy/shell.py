"""`edgeferry shell`: a terminal on a board, by the system's own ssh, which is better at terminals than we are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeferry_deploy.errors import DeployError, TargetError, UnknownHostKeyError
from edgeferry_deploy.hostkeys import KnownHosts, host_pattern, own_file, read_entries
from edgeferry_deploy.target import LocalTarget, SshTarget, parse_target, split_target

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["known_hosts_files", "local_shell", "run", "ssh_argv"]


def ssh_argv(
    target: SshTarget, known_hosts: Sequence[Path], identity: str | Path | None = None, *, program: str = "ssh"
) -> list[str]:
    """The command that opens a terminal on a device whose key is in one of these files.

    Everything else, hosts in between as well, is as ~/.ssh/config says.  Nothing secret is in it.

    Args:
        known_hosts: the only files whose keys count.
        identity: private key to use alone.

    Raises:
        TargetError: a path cannot be written into an option.
    """
    # ssh finds an alias in its own configuration by the name that was typed.
    host = split_target(target.typed)[1] if target.typed else target.host
    options = {
        "UserKnownHostsFile": " ".join(map(option_path, known_hosts)),
        "GlobalKnownHostsFile": os.devnull,
        "StrictHostKeyChecking": "yes",
        "HostKeyAlias": host_pattern(
            target
        ),  # the name the key was enrolled under, whatever ssh makes of the host
        "UpdateHostKeys": "no",  # enrolling is `edgeferry enrol`
    }
    if identity is not None:
        options["IdentitiesOnly"] = "yes"
        options["IdentityFile"] = option_path(Path(identity).expanduser().absolute())
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return [program, *words, "-l", target.user, "-p", str(target.port), "--", host]


def option_path(path: Path) -> str:
    """A path as a value of ssh's options: quoted, as % begins a token there.

    Raises:
        TargetError: it holds what no quoting of ssh's carries.
    """
    text = path.as_posix()
    if not text.isprintable() or any(special in text for special in ('"', "\\", "${")):
        raise TargetError(f"ssh cannot be told of the file {text!r}", "move it to a path without such characters")
    return '"' + text.replace("%", "%%") + '"'


def known_hosts_files(target: SshTarget) -> tuple[Path, ...]:
    """The files that decide about a device's key: edgeferry's where it knows the device, else the user's.

    Raises:
        UnknownHostKeyError: none knows it.
        RevokedHostKeyError: the user's files revoke the enrolled key.
        TargetError: one cannot be read.
    """
    own, users = (own_file(),), tuple(map(Path, target.known_hosts)) or (Path.home() / ".ssh" / "known_hosts",)
    entries = [[entry for path in files for entry in read_entries(path)] for files in (own, users)]
    both = KnownHosts(*entries)
    keys = both.keys(target)
    if not keys:
        raise UnknownHostKeyError(f"{target} is not enrolled", f"edgeferry enrol {target}")
    for key in keys:
        both.verify(target, key)
    return own if KnownHosts(entries[0]).keys(target) else users


def local_shell(target: LocalTarget, environment: Mapping[str, str]) -> tuple[list[str], Path, dict[str, str]]:
    """A shell in the folder that plays a device: its command, its folder, its environment.

    Raises:
        TargetError: there is no such folder, or no POSIX shell.
    """
    if os.name != "posix":
        raise TargetError(
            "local:DIR needs a POSIX shell, which this system lacks", "name a board over SSH instead"
        )
    folder = Path(target.folder).expanduser().absolute()
    if not folder.is_dir():
        raise TargetError(f"{folder} is no folder", f"`edgeferry push BUNDLE {target}` makes it")
    return [environment.get("SHELL") or "/bin/sh"], folder, {**environment, "HOME": str(folder)}


def run(arguments: Namespace) -> int:
    """The command; its exit code is that of the shell over there."""
    target = parse_target(arguments.target)
    if isinstance(target, LocalTarget):
        argv, folder, environment = local_shell(target, os.environ)
        return hand_over(argv, folder, environment)
    files = known_hosts_files(target)
    program = shutil.which("ssh")
    if program is None:
        raise DeployError(
            "there is no ssh program here to open a terminal with",
            "install OpenSSH's client (Debian: sudo apt install openssh-client), "
            "or run single commands: edgeferry run TARGET -- ...",
        )
    return hand_over(ssh_argv(target, files, arguments.identity, program=program))


def hand_over(
    argv: Sequence[str], folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> int:
    """Become another program, or, where a system cannot, wait for it; does not return where it can.

    Raises:
        DeployError: it cannot be started.
    """
    sys.stdout.flush()
    try:
        if os.name != "posix":
            return subprocess.call(list(argv), cwd=folder, env=environment)
        if folder is not None:
            os.chdir(folder)
        os.execvpe(argv[0], list(argv), dict(os.environ if environment is None else environment))  # noqa: S606
    except OSError as error:
        raise DeployError(f"{argv[0]} cannot be started: {error.strerror}", "look at $SHELL and at PATH") from None

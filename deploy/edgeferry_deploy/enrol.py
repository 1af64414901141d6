"""`edgeferry enrol`: look at a device's host key once, with your own eyes, and trust it from then on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgeferry_deploy.console import Console
from edgeferry_deploy.errors import ChangedHostKeyError, HostKeyError, TargetError, UnknownHostKeyError
from edgeferry_deploy.hostkeys import HostKey, KnownHosts, store
from edgeferry_deploy.target import SshTarget, parse_target

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["enrol", "run"]

Ask = Callable[[str], bool]
ON_THE_DEVICE = "on the device: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"


def enrol(
    target: SshTarget,
    *,
    fingerprint: str = "",
    yes: bool = False,
    replace: bool = False,
    ask: Ask | None = None,
    fetch: Callable[[SshTarget], HostKey] | None = None,
) -> tuple[HostKey, Path | None]:
    """Trust the key a device shows.

    Args:
        fingerprint: SHA256:... that it must have; nobody is asked then.
        yes: trust it without asking.
        replace: allow that another key is trusted now.
        ask: puts a question to a person; None when there is nobody to ask.
        fetch: gets the key; by default over SSH.

    Returns:
        The key, and the file it was written to; None when it was trusted already.

    Raises:
        HostKeyError: the key is revoked, changed without `replace`, not the one expected, or was declined.
        TargetError: there is nobody to ask and neither `fingerprint` nor `yes` was given.
        ConnectError: the device does not answer.
    """
    known = KnownHosts.load()
    key = (fetch or fetch_over_ssh)(target)
    if fingerprint and key.fingerprint != fingerprint:
        raise HostKeyError(
            f"{target} shows {key}, not {fingerprint}",
            f"compare with what the device prints ({ON_THE_DEVICE})",
            offered=key.fingerprint,
            enrolled=(fingerprint,),
        )
    try:
        known.verify(target, key)
        return key, None
    except UnknownHostKeyError:
        question = f"{target} shows the key\n  {key}\ncompare it {ON_THE_DEVICE}\ntrust it?"
    except ChangedHostKeyError as error:
        if not replace:
            raise
        question = f"{error.message}\ntrust the new key and forget the old one?"
    if not (fingerprint or yes):
        if ask is None:
            raise TargetError(
                f"{target} shows the key {key}, and there is no terminal to ask on",
                f"when it is right: edgeferry enrol {target} --fingerprint {key.fingerprint}"
                + (" --replace" if replace else ""),
            )
        if not ask(question):
            raise HostKeyError(f"the key of {target} was declined", "nothing changed", offered=key.fingerprint)
    return key, store(target, key)


def fetch_over_ssh(target: SshTarget) -> HostKey:
    """The key the device shows."""
    from edgeferry_deploy.ssh import fetch_host_key

    return fetch_host_key(target)


def ask_on_terminal(question: str) -> bool:
    """Yes or no from a person; anything but a clear yes is no."""
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def run(arguments: Namespace) -> int:
    """The command."""
    target = parse_target(arguments.target)
    if not isinstance(target, SshTarget):
        raise TargetError(f"{target} is this machine: it has no host key", "push to it directly")
    terminal = sys.stdin.isatty() and sys.stdout.isatty() and not arguments.json
    key, path = enrol(
        target,
        fingerprint=arguments.fingerprint,
        yes=arguments.yes,
        replace=arguments.replace,
        ask=ask_on_terminal if terminal else None,
    )
    console = Console(quiet=arguments.json)
    if path is None:
        console.step(f"{target} is enrolled already: {key}")
    else:
        console.step(f"{target} is enrolled: {key}")
        console.step(f"kept in {path}", "none")
    if arguments.json:
        console.result(
            {"target": str(target), "fingerprint": key.fingerprint, "kind": key.kind, "new": path is not None}
        )
    return 0

"""Where a bundle goes: USER@HOST[:PORT] or a Host of ~/.ssh/config over SSH, or local:DIR on this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from edgeferry_deploy.errors import TargetError, printable
from edgeferry_deploy.ssh_config import HostSettings, SshConfig, local_user

__all__ = ["LocalTarget", "SshTarget", "Target", "check_root", "parse_target"]

DEFAULT_PORT = 22
DEFAULT_ROOT = "~/.local/share/edgeferry"
FORMS = "a target is USER@HOST, USER@HOST:PORT, USER@[IPV6]:PORT, a Host of ~/.ssh/config, or local:DIR"
MOST_HOPS = 8

# Neither part may begin with '-': some program down the line would read it as an option.
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?")
NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})")
IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,32})?")


@dataclass(frozen=True)
class SshTarget:
    """A device reached over SSH.

    Attributes:
        typed: what was typed, when ~/.ssh/config speaks of it; messages and commands to repeat name that.
        jumps: hosts in between, the first first; each is reached through those before it.
        identities: key files to offer in place of the default ones.
        identities_only: the agent's other keys are not offered.
        connect_seconds: how long connecting may take; None for the usual time.
        known_hosts: files in place of ~/.ssh/known_hosts.
    """

    user: str
    host: str
    port: int = DEFAULT_PORT
    typed: str = ""
    jumps: tuple[SshTarget, ...] = ()
    identities: tuple[str, ...] = ()
    identities_only: bool = False
    connect_seconds: float | None = None
    known_hosts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.typed or self.address

    @property
    def address(self) -> str:
        """USER@HOST[:PORT]: where the connection goes."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}" + (f":{self.port}" if self.port != DEFAULT_PORT else "")


@dataclass(frozen=True)
class LocalTarget:
    """A folder on this machine that plays the device's home."""

    folder: str

    def __str__(self) -> str:
        return f"local:{self.folder}"


Target = SshTarget | LocalTarget


def parse_target(text: str, config: SshConfig | None = None) -> Target:
    """The target a person typed, completed by what ~/.ssh/config says of its host; what was typed wins.

    Args:
        config: by default the user's.

    Raises:
        TargetError: the text has none of the known forms, or the configuration cannot be followed.
    """
    if text.startswith("local:"):
        folder = text[len("local:") :]
        if not folder or not folder.isprintable():
            raise TargetError(f"'{printable(text)}' names no folder", FORMS)
        return LocalTarget(folder)
    user, host, port = split_target(text)
    config = config if config is not None else SshConfig.load()
    found = config.settings(host, user)
    if not user and not found.user and not found.named:
        raise TargetError(f"'{printable(text)}' has no user, and ~/.ssh/config has no Host of that name", FORMS)
    return complete(text, user, host, port, found, config)


def complete(
    text: str, user: str, host: str, port: int | None, found: HostSettings, config: SshConfig, depth: int = 0
) -> SshTarget:
    """A target with what the configuration adds.

    Raises:
        TargetError: a name in the configuration is none, or its hops do not end.
    """
    if depth > MOST_HOPS:
        raise TargetError(f"ProxyJump leads from '{printable(text)}' round in a circle", "see ~/.ssh/config")
    login, address = user or found.user or local_user(), (found.host or host).lower()
    if not USER.fullmatch(login):
        raise TargetError(f"'{printable(login)}' is not a user name", f"give USER@{host}")
    if not fits_host(address):
        raise TargetError(
            f"HostName '{printable(address)}' of '{host}' is no name or address", "see ~/.ssh/config"
        )
    jumps: tuple[SshTarget, ...] = ()
    for hop in found.jumps:
        hop_user, hop_host, hop_port = split_target(hop)
        settings = config.settings(hop_host, hop_user)
        reached = complete(hop, hop_user, hop_host, hop_port, settings, config, depth + 1)
        # Only the way to the first hop is the configuration's: the others are reached from the one before.
        jumps = (*(jumps or reached.jumps), replace(reached, jumps=()))
    return SshTarget(
        user=login,
        host=address,
        port=port or found.port or DEFAULT_PORT,
        typed="" if found == HostSettings() else text,
        jumps=jumps,
        identities=found.identities,
        identities_only=found.identities_only,
        connect_seconds=found.connect_seconds,
        known_hosts=found.known_hosts,
    )


def split_target(text: str) -> tuple[str, str, int | None]:
    """User, host and port of `[USER@]HOST[:PORT]`; empty and None where they are not given.

    Raises:
        TargetError: one of them is none.
    """
    user, at, rest = text.rpartition("@")
    if at and not USER.fullmatch(user):
        raise TargetError(f"'{printable(user)}' is not a user name", FORMS)
    host, port = split_port(rest)
    if not fits_host(host):
        raise TargetError(f"'{printable(host)}' is not a host name or an address", FORMS)
    return user, host.lower(), port


def fits_host(text: str) -> bool:
    """Whether this can be a host's name or address."""
    return bool((IPV6 if ":" in text else NAME).fullmatch(text))


def split_port(text: str) -> tuple[str, int | None]:
    """`HOST[:PORT]` or `[IPV6][:PORT]` as host and port; None when there is no port.

    Raises:
        TargetError: a bracket is not closed, or the port is not 1 to 65535.
    """
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or ":" not in host or (rest and not rest.startswith(":")):
            raise TargetError(f"'{printable(text)}' is not a bracketed IPv6 address", FORMS)
        colon, port = bool(rest), rest[1:]
    else:
        host, separator, port = text.partition(":")
        colon = bool(separator)
        if ":" in port:
            raise TargetError(f"'{printable(text)}' needs brackets round its IPv6 address", FORMS)
    if not colon:
        return host, None
    # isdigit alone lets through '²' and other scripts' digits.
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise TargetError(f"'{printable(port)}' is not a port", "a port is a number from 1 to 65535")
    return host, int(port)


def check_root(root: str) -> str:
    """The folder on the device that edgeferry owns, as it was typed.

    Raises:
        TargetError: it is neither absolute nor below `~`, climbs with `..`, or holds control characters.
    """
    inside = root[2:] if root.startswith("~/") else root[1:]
    segments = inside.rstrip("/").split("/")
    if not root.startswith(("/", "~/")) or not root.isprintable() or not all(segments):
        raise TargetError(
            f"'{printable(root)}' cannot be a root", "give --root /opt/edgeferry or --root ~/edgeferry"
        )
    if ".." in segments or "." in segments:
        raise TargetError(f"'{printable(root)}' climbs out of itself", "give --root without '.' and '..'")
    return root.rstrip("/")

"""Where a bundle goes: USER@HOST[:PORT] over SSH, or local:DIR on this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeferry_deploy.errors import TargetError, printable

__all__ = ["LocalTarget", "SshTarget", "Target", "check_root", "parse_target"]

DEFAULT_PORT = 22
DEFAULT_ROOT = "~/.local/share/edgeferry"
FORMS = "a target is USER@HOST, USER@HOST:PORT, USER@[IPV6]:PORT or local:DIR"

# Neither part may begin with '-': some program down the line would read it as an option.
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?")
NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})")
IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,32})?")


@dataclass(frozen=True)
class SshTarget:
    """A device reached over SSH."""

    user: str
    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}" + (f":{self.port}" if self.port != DEFAULT_PORT else "")


@dataclass(frozen=True)
class LocalTarget:
    """A folder on this machine that plays the device's home."""

    folder: str

    def __str__(self) -> str:
        return f"local:{self.folder}"


Target = SshTarget | LocalTarget


def parse_target(text: str) -> Target:
    """The target a person typed.

    Raises:
        TargetError: the text has none of the known forms.
    """
    if text.startswith("local:"):
        folder = text[len("local:") :]
        if not folder or not folder.isprintable():
            raise TargetError(f"'{printable(text)}' names no folder", FORMS)
        return LocalTarget(folder)
    user, at, rest = text.partition("@")
    if not at:
        raise TargetError(f"'{printable(text)}' has no user", FORMS)
    if not USER.fullmatch(user):
        raise TargetError(f"'{printable(user)}' is not a user name", FORMS)
    host, port = split_port(rest)
    if not (IPV6 if ":" in host else NAME).fullmatch(host):
        raise TargetError(f"'{printable(host)}' is not a host name or an address", FORMS)
    return SshTarget(user, host.lower(), port)


def split_port(text: str) -> tuple[str, int]:
    """`HOST[:PORT]` or `[IPV6][:PORT]` as host and port.

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
        return host, DEFAULT_PORT
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

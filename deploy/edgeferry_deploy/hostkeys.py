"""Which host keys this workstation trusts: edgeferry's own known_hosts, then the user's, read only."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeferry_deploy.errors import ChangedHostKeyError, RevokedHostKeyError, TargetError, UnknownHostKeyError
from edgeferry_deploy.target import DEFAULT_PORT, SshTarget

__all__ = ["HostKey", "KnownHosts", "config_folder", "host_pattern", "own_file", "parse_known_hosts", "store"]


@dataclass(frozen=True)
class HostKey:
    """A public key: its type, as in `ssh-ed25519`, and its base64 body."""

    kind: str
    body: str

    @property
    def fingerprint(self) -> str:
        """SHA256:... as OpenSSH prints it."""
        digest = hashlib.sha256(base64.b64decode(self.body)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    def __str__(self) -> str:
        return f"{self.fingerprint} ({self.kind.removeprefix('ssh-')})"


@dataclass(frozen=True)
class Entry:
    """A line of known_hosts."""

    patterns: str
    key: HostKey
    revoked: bool = False

    def covers(self, name: str) -> bool:
        """Whether the line speaks of this host; a negated pattern that fits wins."""
        found = False
        for pattern in self.patterns.split(","):
            negated = pattern.startswith("!")
            if fits(pattern.removeprefix("!"), name):
                if negated:
                    return False
                found = True
        return found


def fits(pattern: str, name: str) -> bool:
    """Whether one pattern of known_hosts, hashed or with * and ?, fits a host."""
    if pattern.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(part, validate=True) for part in pattern[3:].split("|"))
        except ValueError:  # also binascii.Error
            return False
        return hmac.compare_digest(hmac.new(salt, name.encode(), hashlib.sha1).digest(), digest)
    # OpenSSH knows * and ? only: fnmatch's brackets belong to [host]:port here.
    return fnmatch.fnmatchcase(name, pattern.lower().replace("[", "[[]"))


def host_pattern(target: SshTarget) -> str:
    """A target as known_hosts names it: `host`, or `[host]:port` off the usual port."""
    return target.host if target.port == DEFAULT_PORT else f"[{target.host}]:{target.port}"


def parse_known_hosts(text: str) -> Iterator[Entry]:
    """The lines that hold a host key; comments, certificate authorities and broken lines are passed over."""
    for line in text.splitlines():
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#") or marker not in ("", "@revoked"):
            continue
        try:
            base64.b64decode(words[2], validate=True)
        except binascii.Error:
            continue
        yield Entry(words[0], HostKey(words[1], words[2]), revoked=bool(marker))


def config_folder() -> Path:
    """Where edgeferry keeps what belongs to this user on this workstation."""
    chosen = os.environ.get("EDGEFERRY_CONFIG_DIR")
    if chosen:
        return Path(chosen)
    if os.name == "nt":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "edgeferry"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "edgeferry"


def own_file() -> Path:
    """The known_hosts that `edgeferry enrol` writes."""
    return config_folder() / "known_hosts"


def read_entries(path: Path) -> tuple[Entry, ...]:
    """A known_hosts file; none when it is absent.

    Raises:
        TargetError: it is there and cannot be read: an unreadable list must not read as an empty one.
    """
    try:
        return tuple(parse_known_hosts(path.read_text(encoding="utf-8", errors="replace")))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise TargetError(
            f"{path} cannot be read: {error.strerror}", "make it readable, or move it away"
        ) from None


class KnownHosts:
    """The keys this workstation trusts.

    Args:
        own: edgeferry's file; what it says of a host hides what the user's file says of it.
        user: the user's own known_hosts.
    """

    def __init__(self, own: Iterable[Entry] = (), user: Iterable[Entry] = ()) -> None:
        self._own, self._user = tuple(own), tuple(user)

    @classmethod
    def load(cls) -> KnownHosts:
        """Both files of the user who runs this."""
        return cls(read_entries(own_file()), read_entries(Path.home() / ".ssh" / "known_hosts"))

    def keys(self, target: SshTarget) -> tuple[HostKey, ...]:
        """The keys trusted for a target."""
        name = host_pattern(target)
        for entries in (self._own, self._user):
            found = tuple(entry.key for entry in entries if not entry.revoked and entry.covers(name))
            if found:
                return found
        return ()

    def verify(self, target: SshTarget, offered: HostKey) -> None:
        """Accept a key, or say why not.

        Raises:
            UnknownHostKeyError, ChangedHostKeyError, RevokedHostKeyError: with the fingerprints.
        """
        name = host_pattern(target)
        if any(e.revoked and e.key == offered and e.covers(name) for e in self._own + self._user):
            raise RevokedHostKeyError(
                f"{target} shows {offered}, which known_hosts marks as revoked",
                "do not connect: somebody may hold a stolen key; give the device a new one",
                offered=offered.fingerprint,
            )
        known = self.keys(target)
        if offered in known:
            return
        if not known:
            raise UnknownHostKeyError(
                f"{target} is not enrolled; it shows the key {offered}",
                f"compare it with what the device itself prints "
                f"(ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then: edgeferry enrol {target}",
                offered=offered.fingerprint,
            )
        trusted = ", ".join(str(key) for key in known)
        raise ChangedHostKeyError(
            f"{target} shows another key than the enrolled one\n  enrolled: {trusted}\n  shown:    {offered}",
            "either the device was reinstalled, or somebody sits between you and it; "
            f"when you know it was reinstalled: edgeferry enrol {target} --replace",
            offered=offered.fingerprint,
            enrolled=tuple(key.fingerprint for key in known),
        )


def store(target: SshTarget, key: HostKey) -> Path:
    """Trust this key, and only this one, for the target; the file is replaced whole.

    Raises:
        TargetError: the file cannot be written.
    """
    path, name = own_file(), host_pattern(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        old = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        kept = [line for line in old if not any(entry.covers(name) for entry in parse_known_hosts(line))]
        text = "".join(f"{line}\n" for line in [*kept, f"{name} {key.kind} {key.body}"])
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".known_hosts-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise TargetError(f"{path} cannot be written: {error.strerror}", "set EDGEFERRY_CONFIG_DIR") from None
    return path

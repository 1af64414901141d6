"""What a release is called, what it consists of, and which ones may go: pure, no device needed."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeferry_runtime.errors import MemberError

if TYPE_CHECKING:
    from edgeferry_runtime.bundle import Bundle

__all__ = [
    "RUNTIME_MEMBER",
    "Blob",
    "Record",
    "Stale",
    "bundle_blobs",
    "env_hash",
    "wheels_env_hash",
    "launcher_text",
    "member_lines",
    "pack_runtime",
    "release_id",
    "stale",
]

MANIFEST = "manifest.json"
RECORD = "release.json"  # lies beside the members, so no member may be called that
RUNTIME_MEMBER = "-"  # the packed runtime is a blob that belongs to an env, not to the release

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
ENV = re.compile(r"[0-9a-f]{12}")
VERSION = re.compile(r"[0-9a-f]{64}")
MEMBER = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,99}/){0,3}[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Blob:
    """Bytes that must be on the device, by content.

    Attributes:
        member: where they go in the release; `RUNTIME_MEMBER` for the packed runtime.
        size: bytes.
        data: the bytes themselves when they are no member of the bundle's file.
        path: the file of this workstation that holds them, when they are neither: a wheel.
    """

    member: str
    sha256: str
    size: int
    data: bytes | None = None
    path: Path | None = None


@dataclass(frozen=True)
class Record:
    """release.json: what a release was made of, by whom, and what its check said.

    Attributes:
        env: name of the folder in `env/` with the runtime it was checked with.
        pushed_at: UTC, ISO 8601.
        check: backend, variant, frames and outputs of the last self-check.
        health: what the service did in its window; empty when none ran.
    """

    bundle: str
    version: str
    env: str
    python: str
    pushed_by: str
    pushed_at: str
    check: Mapping[str, Any] = field(default_factory=dict)
    health: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Record | None:
        """The record a device keeps; None when it is absent or unreadable."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
        names = ("bundle", "version", "env", "python", "pushed_by", "pushed_at")
        if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in names):
            return None
        if not ENV.fullmatch(found["env"]):  # it becomes a path on the device
            return None
        check, health = found.get("check"), found.get("health")
        return cls(
            **{name: found[name] for name in names},
            check=check if isinstance(check, dict) else {},
            health=health if isinstance(health, dict) else {},
        )


@dataclass(frozen=True)
class Stale:
    """What a switch may remove."""

    releases: tuple[str, ...] = ()
    envs: tuple[str, ...] = ()

    def lines(self) -> bytes:
        """The stdin of the switch command."""
        named = [f"release {name}" for name in self.releases] + [f"env {name}" for name in self.envs]
        return "".join(line + "\n" for line in named).encode()


def release_id(name: str, version: str) -> str:
    """NAME-VERSION12.

    Raises:
        MemberError: the manifest's name or version could leave the folder or confuse the device.
    """
    if not NAME.fullmatch(name) or not VERSION.fullmatch(version):
        raise MemberError(f"the bundle calls itself {name!r}, version {version!r}", "convert the model again")
    return f"{name}-{version[:12]}"


def bundle_blobs(bundle: Bundle) -> tuple[Blob, ...]:
    """Every member of a bundle and its manifest, sorted by member.

    Raises:
        MemberError: a member's name may not be used on the device, or its digest is none.
    """
    data = bundle.manifest_bytes
    blobs = [Blob(MANIFEST, hashlib.sha256(data).hexdigest(), len(data), data)]
    for member, entry in bundle.manifest.files.items():
        if not MEMBER.fullmatch(member) or member in (MANIFEST, RECORD) or not VERSION.fullmatch(entry.sha256):
            raise MemberError(f"the bundle has a member {member!r}, which may not be unpacked", "convert it again")
        blobs.append(Blob(member, entry.sha256, entry.size))
    return tuple(sorted(blobs, key=lambda blob: blob.member))


def pack_runtime(folder: Path) -> Blob:
    """The runtime's own files as a deterministic zip: what the workstation has is what the board runs.

    Args:
        folder: the `edgeferry_runtime` package.
    """
    buffer = io.BytesIO()
    kinds = (".py", ".html", ".css", ".js", ".svg")  # the live page's files among them
    sources = sorted(
        path for path in folder.rglob("*") if path.is_file() and (path.suffix in kinds or path.name == "py.typed")
    )
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in sources:
            name = f"edgeferry_runtime/{path.relative_to(folder).as_posix()}"
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # the same bytes from Windows
            info.external_attr = 0o100644 << 16
            archive.writestr(info, path.read_bytes())
    data = buffer.getvalue()
    return Blob(RUNTIME_MEMBER, hashlib.sha256(data).hexdigest(), len(data), data)


LAUNCHER = """#!/bin/sh
# Runs this folder's edgeferry_runtime with the Python it was checked with.
here=$(cd -- "$(dirname -- "$0")" && pwd) || exit
PYTHONPATH=$here${{PYTHONPATH:+:$PYTHONPATH}}
export PYTHONPATH
exec {python} -m edgeferry_runtime "$@"
"""


def launcher_text(python: str) -> str:
    """The shell script that starts the runtime with `python`."""
    return LAUNCHER.format(python=shlex.quote(python))


def env_hash(runtime_sha256: str, python: str) -> str:
    """The name of the env made of this runtime, this Python and this launcher."""
    return hashlib.sha256(f"{runtime_sha256}\n{launcher_text(python)}".encode()).hexdigest()[:12]


def wheels_env_hash(lock_sha256: str, python: str) -> str:
    """The name of the env that a lock's wheels make with this Python; see `Lock.env_sha256`."""
    return hashlib.sha256(f"{lock_sha256}\n{python}".encode()).hexdigest()[:12]


def member_lines(blobs: Iterable[Blob]) -> bytes:
    """`SHA256 MEMBER` lines, as the commands read them."""
    return "".join(f"{blob.sha256} {blob.member}\n" for blob in blobs).encode()


def stale(
    releases: Mapping[str, Record | None], envs: Sequence[str], protected: Iterable[str], keep: int
) -> Stale:
    """Releases and envs beyond the `keep` newest; what is protected counts and always stays.

    Args:
        releases: what is on the device, by id; None for one that was never finished.
        envs: names of the folders in `env/`.
        protected: ids that stay: current, previous and the one being switched to.
    """
    kept = {name for name in protected if name}
    pushed = {name: record.pushed_at for name, record in releases.items() if record}
    for name in sorted(pushed, key=pushed.__getitem__, reverse=True):
        if len(kept) < keep:
            kept.add(name)
    used = {record.env for name in kept if (record := releases.get(name))}
    return Stale(
        releases=tuple(sorted(name for name in releases if name not in kept)),
        envs=tuple(sorted(name for name in envs if name not in used)),
    )

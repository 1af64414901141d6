"""Wheels on this machine: each is downloaded once, through pip, and known by its SHA-256 from then on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from edgeferry_runtime.wheel_lock import MAX_UNPACKED, LockedWheel, Running, tag_problem

from edgeferry_deploy.errors import DeployError, printable
from edgeferry_deploy.wheels import Requirement, Solution

__all__ = ["CachedWheel", "DownloadError", "Runner", "cache_folder", "fetch", "fetch_all", "pip_argv"]

DEADLINE = 900  # seconds for one wheel: 60 MB at 70 kB/s
CHUNK = 1 << 20

Runner = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]

# What pip prints, and what it means; the first that occurs counts, for pip ends every failure with "No matching
# distribution found".
NETWORK = (
    "NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ReadTimeoutError", "ProxyError",
    "ConnectionResetError", "ProtocolError", "Network is unreachable", "timed out", "SSLError", "ConnectionError",
)  # fmt: skip
SAYS = (
    (
        NETWORK,
        "the package index cannot be reached",
        "connect this machine once; after that the wheels are cached",
    ),
    (("No module named pip",), "this Python has no pip", f"{sys.executable} -m ensurepip"),
    (("No space left",), "the disk is full", "free some space, or let EDGEFERRY_CACHE_DIR name another folder"),
    (
        ("No matching distribution found",),
        "the package index has no such wheel",
        "a mirror may lack it: see `pip config list`; otherwise update edgeferry, whose table names it",
    ),
)


class DownloadError(DeployError, OSError):
    """A wheel could not be downloaded; nothing of it is left in the cache."""


class CachedWheel(NamedTuple):
    """A wheel in the cache.

    Attributes:
        cached: it was there already, no network was used.
    """

    path: Path
    locked: LockedWheel
    cached: bool


def cache_folder() -> Path:
    """Where wheels are kept: EDGEFERRY_CACHE_DIR, else where the system keeps what can be made again."""
    chosen = os.environ.get("EDGEFERRY_CACHE_DIR")
    if chosen:
        return Path(chosen) / "wheels"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "edgeferry" / "wheels"


def pip_argv(wanted: Requirement, folder: Path) -> tuple[str, ...]:
    """The command that downloads one wheel for another machine, and nothing it depends on."""
    options = ["--only-binary=:all:", "--no-deps", "--implementation", "cp", "--python-version", wanted.python]
    for abi in wanted.abis:
        options += ["--abi", abi]
    for platform in wanted.platforms:
        options += ["--platform", platform]
    quiet = ("--quiet", "--no-input", "--disable-pip-version-check", "--retries", "2")
    return (
        sys.executable, "-m", "pip", "download", *quiet, *options,
        "--dest", str(folder), wanted.name + wanted.version,
    )  # fmt: skip


def run_pip(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run pip with a deadline."""
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", timeout=DEADLINE
    )


def fetch_all(solution: Solution, cache: Path | None = None, pip: Runner = run_pip) -> tuple[CachedWheel, ...]:
    """Every wheel of a solution, from the cache or else from the package index.

    Raises:
        DownloadError: one cannot be had.
    """
    target = Running(solution.python.version, solution.arch, solution.glibc, "")
    return tuple(fetch(wheel, target, cache, pip) for wheel in solution.wheels)


def fetch(wanted: Requirement, target: Running, cache: Path | None = None, pip: Runner = run_pip) -> CachedWheel:
    """One wheel, from the cache or else from the package index.

    Args:
        target: what it must run on; the ABI is taken from `wanted`.
        cache: the folder of the cache; by default `cache_folder()`.
        pip: runs an argument list.

    Raises:
        DownloadError: no network, no such version, or pip brought something else.
    """
    cache = cache or cache_folder()
    key = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:32]
    note = cache / "answers" / f"{key}.json"
    known = remembered(note, cache)
    if known:
        return known
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="download-", dir=cache, ignore_cleanup_errors=True) as folder:
            path = download(wanted, target._replace(abi=wanted.abis[0]), Path(folder), pip)
            locked = lock_of(path, wanted)
            kept = wheel_path(cache, locked)
            kept.parent.mkdir(parents=True, exist_ok=True)
            path.replace(kept)
            answer = Path(folder) / "answer"
            answer.write_text(json.dumps(locked.__dict__), encoding="utf-8")
            answer.replace(note)
    except OSError as error:
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(
            f"{wanted.name} {wanted.version} cannot be kept in {cache}: {error.strerror or error}",
            "let EDGEFERRY_CACHE_DIR name a folder with space that you may write",
        ) from None
    return CachedWheel(kept, locked, cached=False)


def wheel_path(cache: Path, locked: LockedWheel) -> Path:
    """Where a wheel lies: two builds of one name do not meet."""
    return cache / locked.sha256[:16] / locked.filename


def remembered(note: Path, cache: Path) -> CachedWheel | None:
    """The wheel an earlier download brought, when its bytes are still the same."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        locked = LockedWheel(**{name: found[name] for name in LockedWheel.__dataclass_fields__})
        # The note is this user's own file, and still no path of its making leaves the cache.
        if Path(locked.filename).name != locked.filename or not re.fullmatch(r"[0-9a-f]{64}", locked.sha256):
            return None
        path = wheel_path(cache, locked)
        return CachedWheel(path, locked, cached=True) if sha256_of(path) == locked.sha256 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def download(wanted: Requirement, target: Running, folder: Path, pip: Runner) -> Path:
    """Let pip bring one wheel into an empty folder."""
    what = f"{wanted.name}{wanted.version} for Python {target.python[0]}.{target.python[1]} on {target.arch}"
    try:
        done = pip(pip_argv(wanted, folder))
    except subprocess.TimeoutExpired:
        raise DownloadError(f"{what}: pip did not end within {DEADLINE} s", "try again") from None
    if done.returncode:
        raise failure(what, f"{done.stderr}\n{done.stdout}")
    found = [path for path in folder.iterdir() if path.is_file()]
    if len(found) != 1:
        raise DownloadError(f"{what}: pip brought {len(found)} files instead of one wheel", "try again")
    path = found[0]
    name, version = [*path.name.split("-"), "", ""][:2]
    if (normal(name), version) != (normal(wanted.name), wanted.version.lstrip("=")):
        raise DownloadError(f"{what}: pip brought {printable(path.name, 80)}", "look at `pip config list`")
    problem = tag_problem(path.name, target) or ("is too large" if path.stat().st_size > MAX_UNPACKED else "")
    if problem:
        raise DownloadError(f"{what}: {printable(path.name, 120)} {problem}", "look at `pip config list`")
    return path


def failure(what: str, output: str) -> DownloadError:
    """The error that pip's words mean."""
    for words, meaning, remedy in SAYS:
        if any(word in output for word in words):
            return DownloadError(f"{what}: {meaning}", remedy)
    errors = [line for line in output.splitlines() if line.startswith("ERROR")] or output.splitlines()
    return DownloadError(
        f"{what}: pip failed: {printable(' '.join(errors), 300)}", "try again with the network up"
    )


def lock_of(path: Path, wanted: Requirement) -> LockedWheel:
    """What the lock says of a file."""
    return LockedWheel(
        filename=path.name,
        size=path.stat().st_size,
        sha256=sha256_of(path),
        name=wanted.name,
        version=wanted.version.lstrip("="),
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def normal(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()

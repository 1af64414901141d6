"""Install a locked folder of wheels into a private environment: offline, without pip, all of it or nothing.

The folder is what `edgeferry wheelhouse` makes: ``lock.json``, the wheels, the packed runtime and the bundle.
Wheels and their ``.data`` folders are read as PEP 427 says.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import struct
import sys
import zlib
from dataclasses import asdict, dataclass
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from edgeferry_runtime.wheel_lock import (
    COPY_AGAIN,
    MAX_UNPACKED,
    InstallError,
    Lock,
    LockedFile,
    LockedWheel,
    Running,
    SystemPackage,
    read_lock,
    tag_problem,
    this_python,
)

__all__ = ["InstallError", "Installed", "install", "site_path", "to_text"]

STAMP = "install.json"  # written last: what this environment was made of
LAUNCHER = "edgeferry-run"
MAX_MEMBERS = 20000
CHUNK = 1 << 20
# What zipfile raises on files that are not what they say.
BROKEN = (BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error, zlib.error)

# The environment is one folder on PYTHONPATH, in front of the distribution's packages.
_LAUNCHER = """#!/bin/sh
# Runs this environment's edgeferry_runtime with the Python it was installed for.
here=$(cd -- "$(dirname -- "$0")" && pwd) || exit
PYTHONPATH=$here/lib${{PYTHONPATH:+:$PYTHONPATH}}
export PYTHONPATH
exec {python} -m edgeferry_runtime "$@"
"""


@dataclass(frozen=True)
class Installed:
    """What an install did.

    Attributes:
        changed: False when the environment was there already.
        files, bytes: what the environment consists of, compiled files not counted.
        missing: modules the distribution must bring and does not.
        launcher: path of ``edgeferry-run``; empty when the lock holds no runtime.
    """

    env: str
    site: str
    changed: bool
    files: int
    bytes: int
    wheels: tuple[str, ...]
    missing: tuple[SystemPackage, ...]
    launcher: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def site_path(env: str) -> str:
    """The folder of an environment that goes on PYTHONPATH."""
    return os.path.join(env, "lib")


def install(folder: str, env: str, compile_files: bool = False, running: Running | None = None) -> Installed:
    """Make an environment out of a locked folder.

    Everything is verified before and while it is unpacked beside ``env``; only a complete environment, safely on
    disk, takes its name.  An environment of the same lock is left alone.

    Args:
        folder: with ``lock.json`` and the files it names.
        env: the folder to make; its parents are made, too.
        compile_files: write .pyc files of everything, not of the runtime alone: more space, a faster first start.
        running: the Python it is for; by default the one that runs this.

    Raises:
        InstallError: a file is missing, altered or not for this Python; ``env`` is something else; no space.
    """
    running = running or this_python()
    env = os.path.abspath(env)
    lock = read_lock(folder)
    _check_target(lock, running)
    changed = not _is_whole(env, lock)
    if changed:
        _build(folder, env, lock, compile_files)
    stamp = _read_stamp(env)
    return Installed(
        env=env,
        site=site_path(env),
        changed=changed,
        files=stamp["files"],
        bytes=stamp["bytes"],
        wheels=tuple(wheel.filename for wheel in lock.wheels),
        missing=tuple(package for package in lock.system_packages if not _has_module(package.module)),
        launcher=os.path.join(env, LAUNCHER) if lock.runtime else "",
    )


def to_text(done: Installed) -> str:
    """The same for people."""
    lines = [
        "{}: {}".format(done.env, "installed" if done.changed else "was there already"),
        "files          {}, {:,} bytes".format(done.files, done.bytes),
        "use it         {}".format(done.launcher or "PYTHONPATH=" + done.site),
    ]
    if done.missing:
        names = " ".join(package.package for package in done.missing)
        lines.append("still missing  sudo apt install --no-install-recommends " + names)
    return "\n".join(lines)


def _check_target(lock: Lock, running: Running) -> None:
    """Every reason at once why the lock is not for this Python."""
    here = ("{}.{}".format(*running.python), running.arch)
    problems = []
    if (lock.python, lock.arch) != here:
        problems.append("the lock is for Python {} on {}, this is {} on {}".format(lock.python, lock.arch, *here))
    for wheel in lock.wheels:
        problem = tag_problem(wheel.filename, running)
        if problem:
            problems.append("{} {}".format(wheel.filename, problem))
    if problems:
        raise InstallError(
            "these wheels do not run here:\n    " + "\n    ".join(problems),
            "make the folder for this board: edgeferry wheelhouse BUNDLE --python {} --arch {}".format(*here),
        )


def _build(folder: str, env: str, lock: Lock, compile_files: bool) -> None:
    """Unpack beside ``env``, make it durable, give it its name."""
    part = "{}.part-{}".format(env, os.getpid())
    try:
        os.makedirs(os.path.dirname(env), exist_ok=True)
        _sweep(env)
        os.makedirs(site_path(part))
        written: dict[str, int] = {}
        for file in lock.wheels + ((lock.runtime,) if lock.runtime else ()):
            _unpack(folder, file, site_path(part), written)
        _finish(part, lock, written, compile_files)
        if _is_whole(env, lock):
            return  # another install was faster
        if os.path.lexists(env):
            shutil.rmtree(env)  # ours, of this lock, and damaged
        os.rename(part, env)
        _sync_folder(os.path.dirname(env))
    except OSError as error:
        raise InstallError(
            "{}: cannot be installed: {}".format(env, error.strerror or error),
            "give it a folder this user may write, with space for a few hundred MB",
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sweep(env: str) -> None:
    """Remove what installs that were killed left behind."""
    parent, start = os.path.dirname(env), os.path.basename(env) + ".part-"
    for name in os.listdir(parent):
        if name.startswith(start) and not _runs(name[len(start) :]):
            shutil.rmtree(os.path.join(parent, name), ignore_errors=True)


def _runs(pid: str) -> bool:
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    if os.name == "nt":
        return True  # there, asking a process by signal would end it
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _unpack(folder: str, locked: LockedFile, site: str, written: dict[str, int]) -> None:
    """Verify one archive and put its files into ``site``; ``written`` gathers them with their sizes."""
    path = os.path.join(folder, locked.filename)
    try:
        # One handle for hash and content: the bytes that were verified are those that are unpacked.
        with open(path, "rb") as file:
            _verify(path, file, locked)
            with ZipFile(file) as archive:
                for info, target in _members(path, archive, locked):
                    if written.setdefault(target, -1) >= 0:
                        raise InstallError("{}: has {}, which came already".format(path, target), COPY_AGAIN)
                    written[target] = _write(archive, info, os.path.join(site, *target.split("/")))
    except BROKEN as error:
        raise InstallError("{}: cannot be unpacked: {}".format(path, error), COPY_AGAIN) from None
    except FileNotFoundError:
        raise InstallError("{}: is missing".format(path), COPY_AGAIN) from None


def _verify(path: str, file: IO[bytes], locked: LockedFile) -> None:
    size = os.fstat(file.fileno()).st_size
    if size != locked.size:
        raise InstallError("{}: has {} bytes, the lock says {}".format(path, size, locked.size), COPY_AGAIN)
    digest = hashlib.sha256()
    for chunk in iter(lambda: file.read(CHUNK), b""):
        digest.update(chunk)
    if digest.hexdigest() != locked.sha256:
        raise InstallError("{}: its bytes are not those of the lock (SHA-256 differs)".format(path), COPY_AGAIN)
    file.seek(0)


def _members(path: str, archive: ZipFile, locked: LockedFile) -> list[tuple[ZipInfo, str]]:
    """Files to unpack and where below ``site``, after every way a zip can lie about them has been ruled out."""
    infos = [info for info in archive.infolist() if not info.filename.endswith("/")]
    if len(infos) > MAX_MEMBERS or sum(info.file_size for info in infos) > MAX_UNPACKED:
        raise InstallError("{}: claims more than a wheel can hold".format(path), COPY_AGAIN)
    for info in infos:
        problem = _member_problem(info)
        if problem:
            raise InstallError("{}: member {!r} {}".format(path, info.filename, problem), COPY_AGAIN)
    if isinstance(locked, LockedWheel) and not any(i.filename.endswith(".dist-info/WHEEL") for i in infos):
        raise InstallError("{}: has no WHEEL file, so it is no wheel".format(path), COPY_AGAIN)
    placed = [(info, _place(info.filename)) for info in infos]
    return [(info, target) for info, target in placed if target]


def _member_problem(info: ZipInfo) -> str:
    name = info.filename
    if not name.isprintable() or "\\" in name or any(p in ("", ".", "..") for p in name.split("/")) or ":" in name:
        return "has a name that could leave the environment"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return "is no regular file"
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        return "is compressed in a way that wheels are not"
    return "is encrypted" if info.flag_bits & 0x1 else ""


def _place(name: str) -> str:
    """Where a member goes below ``site``; empty for scripts, headers and data, which nobody needs here."""
    first, _, rest = name.partition("/")
    if not first.endswith(".data") or not rest:
        return name
    scheme, _, inner = rest.partition("/")
    return inner if scheme in ("purelib", "platlib") else ""


def _write(archive: ZipFile, info: ZipInfo, path: str) -> int:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    size = 0
    # zipfile checks the CRC and never gives more than the size that was counted above.
    with archive.open(info) as source, open(path, "xb") as file:
        for chunk in iter(lambda: source.read(CHUNK), b""):
            size += file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return size


def _finish(part: str, lock: Lock, written: dict[str, int], compile_files: bool) -> None:
    """Launcher and stamp, and every folder on disk."""
    from shlex import quote

    if lock.runtime:
        _write_text(os.path.join(part, LAUNCHER), _LAUNCHER.format(python=quote(sys.executable)), 0o755)
    _compile(site_path(part), compile_files)
    # Compiled files come and go (numpy 2.0.2's wheel even brings one): they are not counted.
    sizes = [size for name, size in written.items() if not name.endswith(".pyc")]
    stamp = {"lock": lock.env_sha256, "files": len(sizes), "bytes": sum(sizes)}
    _write_text(os.path.join(part, STAMP), json.dumps(stamp) + "\n", 0o644)
    for folder, _, _ in os.walk(part):
        _sync_folder(folder)


def _compile(site: str, everything: bool) -> None:
    """Write .pyc files: always the runtime's own, so that a start on a read-only card compiles none of them."""
    import compileall

    folder = site if everything else os.path.join(site, "edgeferry_runtime")
    if not os.path.isdir(folder):
        return
    compileall.compile_dir(folder, quiet=2)
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".pyc"):  # one that a power cut shortened would be believed, and fail
                _sync_file(os.path.join(parent, name))


def _sync_file(path: str) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _write_text(path: str, text: str, mode: int) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(path, mode)


def _sync_folder(path: str) -> None:
    if os.name != "nt":  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read_stamp(env: str) -> dict[str, Any]:
    """What an environment was made of.

    Raises:
        InstallError: the folder is none of ours.
    """
    try:
        with open(os.path.join(env, STAMP), encoding="utf-8") as file:
            stamp = json.loads(file.read(CHUNK))
        return {"lock": str(stamp["lock"]), "files": int(stamp["files"]), "bytes": int(stamp["bytes"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise InstallError(
            "{}: is there and was not made by edgeferry-run install".format(env), "name another folder with --into"
        ) from None


def _is_whole(env: str, lock: Lock) -> bool:
    """Whether the environment is there, of this lock, with all its files.

    Raises:
        InstallError: it was made from another lock, so something may be using it.
    """
    if not os.path.lexists(env):
        return False
    stamp = _read_stamp(env)
    if stamp["lock"] != lock.env_sha256:
        raise InstallError(
            "{}: holds an environment of other wheels".format(env), "name another folder with --into, or remove it"
        )
    sizes = [
        os.lstat(os.path.join(folder, name)).st_size
        for folder, _, names in os.walk(site_path(env))
        for name in names
        if not name.endswith(".pyc")
    ]
    return len(sizes) == stamp["files"] and sum(sizes) == stamp["bytes"]


def _has_module(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None

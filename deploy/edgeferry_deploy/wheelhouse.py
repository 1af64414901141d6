"""`edgeferry wheelhouse`: everything a board needs to run a bundle, in one folder, ready for a USB stick."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeferry_runtime.bundle import Bundle, write_bundle
from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.wheel_lock import LOCK_NAME, Lock, LockedFile

from edgeferry_deploy.console import Console, size_text
from edgeferry_deploy.errors import DeployError
from edgeferry_deploy.release import pack_runtime
from edgeferry_deploy.wheel_cache import CachedWheel, Runner, fetch_all, run_pip, sha256_of
from edgeferry_deploy.wheels import BoardFacts, BoardPython, Solution, Wanted, solve, wanted

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["RUNTIME_NAME", "WheelhouseResult", "board_for", "make_lock", "run", "wheelhouse"]

RUNTIME_NAME = "edgeferry-runtime.zip"
LARGEST_PROFILE = 1 << 20  # bytes
OLDEST_GLIBC = "2.31"  # where nobody says: Debian 11, the oldest that is still looked after


class WheelhouseResult(NamedTuple):
    """What was put together.

    Attributes:
        downloaded: how many wheels the cache did not have.
        install: the command for the board.
    """

    folder: Path
    lock: Lock
    solution: Solution
    downloaded: int
    install: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "folder": str(self.folder),
            "lock": asdict(self.lock),
            "bytes": sum(file.size for file in self.lock.files),
            "downloaded": self.downloaded,
            "notes": list(self.solution.notes),
            "system_packages_command": self.solution.apt_command,
            "install": self.install,
        }


def wheelhouse(
    bundle_path: str | Path,
    output: str | Path,
    *,
    profile: str = "",
    arch: str = "",
    python: str = "",
    glibc: str = "",
    cache: Path | None = None,
    pip: Runner = run_pip,
) -> WheelhouseResult:
    """Put a bundle, the runtime and the wheels it needs into one folder.

    Args:
        output: the folder to make; one that an earlier call made is replaced.
        profile: a device profile's file, or the name of the bundle's own; by default the bundle's own.
        arch: instead of the profile's: "aarch64", "armv7l", "x86_64".
        python: the board's version, "3.11"; by default the profile's, when it allows one only.
        glibc: the board's C library, "2.36"; by default the oldest the profile allows.
        cache: the folder of downloaded wheels.
        pip: runs an argument list.

    Raises:
        UsageError: the board is not said well enough, or `output` holds something else.
        BundleError: the bundle cannot be trusted.
        SolveError: no wheels run there.
        DownloadError: a wheel cannot be had.
    """
    output = Path(output)
    check_output(output)
    with Bundle.open(bundle_path) as bundle:
        bundle.verify()
        values, requires = asked_for(bundle, profile)
        board = board_for(values, bundle.manifest.requires.min_glibc, requires, arch, python, glibc)
        solution = solve(board, requires, f"{board.userland} with Python {board.pythons[0].version[0]}."
                         f"{board.pythons[0].version[1]}")  # fmt: skip
        wheels = fetch_all(solution, cache, pip)
        lock = fill(output, bundle, solution, wheels)
    zip_name, env = f"DIR/{RUNTIME_NAME}", "~/edgeferry-env"
    return WheelhouseResult(
        folder=output,
        lock=lock,
        solution=solution,
        downloaded=sum(not wheel.cached for wheel in wheels),
        install=f"PYTHONPATH={zip_name} python{lock.python} -m edgeferry_runtime install DIR --into {env}",
    )


def asked_for(bundle: Bundle, profile: str) -> tuple[Mapping[str, Any], Wanted]:
    """The profile's values and what bundle and profile ask for."""
    own = bundle.manifest.profile
    if profile and profile != own.get("name"):
        values = read_profile(profile, str(own.get("name", "")))
    else:
        found = own.get("values")
        values = found if isinstance(found, dict) else {}
    return values, wanted(bundle.manifest, values)


def read_profile(profile: str, own: str) -> dict[str, Any]:
    """The values of a profile's file."""
    path = Path(profile)
    if path.suffix != ".toml":
        raise UsageError(
            f"--for {profile}: the bundle was made for {own or 'no profile'}",
            "leave --for out for the bundle's own profile, or name a profile's file: --for boards/mine.toml",
        )
    try:
        with path.open("rb") as file:
            return tomllib.loads(file.read(LARGEST_PROFILE).decode())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", "name a device profile's file") from None
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise UsageError(
            f"{path}: is no TOML: {error}", "compare it with device_profiles/reference.toml"
        ) from None


def board_for(
    values: Mapping[str, Any], min_glibc: str, requires: Wanted, arch: str = "", python: str = "", glibc: str = ""
) -> BoardFacts:
    """The board that options and profile describe; nothing is guessed that decides about wheels.

    Raises:
        UsageError: the architecture or the Python is not said, or said wrongly.
    """
    declared = values.get("board")
    board = declared if isinstance(declared, dict) else {}
    arch = arch or str(board.get("arch", ""))
    if arch in ("", "any"):
        raise UsageError(
            "the bundle's profile names no architecture", "add --arch aarch64, as `uname -m` prints it"
        )
    oldest, newest = requires.pythons
    if not python and oldest != newest:
        until = f"3.{newest}" if newest < 99 else "newer"
        raise UsageError(
            f"the profile allows Python 3.{oldest} to {until}: which one has the board?",
            "add --python 3.11 (Raspberry Pi OS Bookworm) or --python 3.13 (Trixie); `python3 -V` tells",
        )
    libc = glibc or str(board.get("glibc_min") or min_glibc or OLDEST_GLIBC)
    return BoardFacts(
        arch=arch,
        userland_bits=32 if arch in ("armv7l", "armv6l", "armv8l") else 64,
        libc="glibc",
        libc_version=version_of(libc, "--glibc", "2.36"),
        pythons=(BoardPython(version_of(python or f"3.{oldest}", "--python", "3.11")),),
    )


def version_of(text: str, option: str, example: str) -> tuple[int, int]:
    """(3, 11) of "3.11" or "3.11.2"."""
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})(\.\d{1,3})?", text)
    if not found:
        raise UsageError(f"{option} {text!r} is no version", f"such as {option} {example}")
    return int(found.group(1)), int(found.group(2))


def check_output(output: Path) -> None:
    """Only what an earlier call made is replaced."""
    if output.is_dir() and (not any(output.iterdir()) or (output / LOCK_NAME).is_file()):
        return
    if os.path.lexists(output):
        raise UsageError(f"{output}: is there and is no wheelhouse", "name a new folder with --output")


def fill(output: Path, bundle: Bundle, solution: Solution, wheels: tuple[CachedWheel, ...]) -> Lock:
    """Make the folder beside its place, then give it its name."""
    parent = output.absolute().parent
    part: Path | None = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{output.name}.part-", dir=parent))
        for wheel in wheels:
            shutil.copyfile(wheel.path, part / wheel.locked.filename)
        runtime = pack_runtime(runtime_folder()).data or b""
        (part / RUNTIME_NAME).write_bytes(runtime)
        carried = part / f"{bundle.manifest.name}.ferry"
        copy_bundle(bundle, carried)
        lock = make_lock(solution, wheels, file_lock(part / RUNTIME_NAME), file_lock(carried))
        (part / LOCK_NAME).write_text(lock.to_json(), encoding="utf-8", newline="\n")
        part.chmod(0o755)
        if output.exists():
            shutil.rmtree(output)
        part.replace(output)
        return lock
    except OSError as error:
        raise DeployError(
            f"{output}: the wheelhouse cannot be written: {error.strerror or error}",
            "name another folder with --output, with space for some 150 MB",
        ) from None
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def make_lock(
    solution: Solution,
    wheels: tuple[CachedWheel, ...],
    runtime: LockedFile | None = None,
    bundle: LockedFile | None = None,
) -> Lock:
    """The lock of a solution and the wheels it led to."""
    return Lock(
        python="{}.{}".format(*solution.python.version),
        arch=solution.arch,
        wheels=tuple(wheel.locked for wheel in wheels),
        system_packages=solution.system_packages,
        runtime=runtime,
        bundle=bundle,
    )


def file_lock(path: Path) -> LockedFile:
    """What the lock says of a file."""
    return LockedFile(path.name, path.stat().st_size, sha256_of(path))


def copy_bundle(bundle: Bundle, path: Path) -> None:
    """The bundle as one file: a stick's file system may change names in folders."""
    if Path(bundle.path).is_file():
        shutil.copyfile(bundle.path, path)
    else:
        members = {name: bundle.read(name) for name in bundle.manifest.files}
        write_bundle(path, bundle.manifest, members)


def runtime_folder() -> Path:
    """The installed `edgeferry_runtime`: what this workstation has is what the board runs."""
    spec = find_spec("edgeferry_runtime")
    if spec is None or spec.origin is None:
        raise DeployError(
            "edgeferry_runtime is not installed here", f"{sys.executable} -m pip install edgeferry-runtime"
        )
    return Path(spec.origin).parent


def run(arguments: Namespace) -> int:
    """The command."""
    console = Console(quiet=arguments.json)
    result = wheelhouse(
        arguments.bundle,
        arguments.output,
        profile=arguments.profile,
        arch=arguments.arch,
        python=arguments.python,
        glibc=arguments.glibc,
    )
    if arguments.json:
        console.result(result.to_dict())
        return 0
    for wheel in result.lock.wheels:
        console.step(f"{wheel.filename}, {size_text(wheel.size)}")
    for note in result.solution.notes:
        console.step(note, "warn")
    total = sum(file.size for file in result.lock.files)
    console.step(f"{result.folder}: {size_text(total)}, {result.downloaded} wheels downloaded")
    if result.solution.apt_command:
        console.step(f"on the board, once: {result.solution.apt_command}", "none")
    console.step(f"on the board, DIR being this folder: {result.install}", "none")
    return 0

"""The wheels of a folder that `edgeferry wheelhouse` made, for `push --offline`: no pip, no index, no cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgeferry_runtime.wheel_lock import Lock, Running, read_lock, tag_problem

from edgeferry_deploy.errors import DeviceUnfitError
from edgeferry_deploy.wheel_cache import CachedWheel, DownloadError, sha256_of
from edgeferry_deploy.wheels import BoardFacts, BoardPython, Requirement, Solution, Wanted, matches, split

__all__ = ["intact", "solve_offline"]


def solve_offline(folder: Path, board: BoardFacts, requires: Wanted, device: str) -> Solution:
    """The environment a wheelhouse makes, its lock held against the board and the bundle.

    Raises:
        InstallError: there is no lock, or none that can be read.
        DeviceUnfitError: it is for another board or another bundle.
    """
    lock = read_lock(str(folder))
    python = next((one for one in board.pythons if "{}.{}".format(*one.version) == lock.python), board.pythons[0])
    problems = [*mismatches(lock, board, python), *unwanted(lock, requires)]
    if problems:
        arch, glibc = board.userland, "{}.{}".format(*board.libc_version)
        raise DeviceUnfitError(
            f"the wheelhouse {folder} is not for this bundle on {device}:\n    " + "\n    ".join(problems),
            "make one for it: edgeferry wheelhouse BUNDLE --arch {} --python {}.{} --glibc {}".format(
                arch, *python.version, glibc
            ),
        )
    requirements = tuple(
        Requirement(wheel.name, f"=={wheel.version}", lock.python, (), ()) for wheel in lock.wheels
    )
    missing = tuple(package for package in lock.system_packages if package.module not in python.modules)
    return Solution(python, lock.arch, board.libc_version, requirements, lock.system_packages, missing)


def mismatches(lock: Lock, board: BoardFacts, python: BoardPython) -> Iterator[str]:
    """Why a lock's wheels do not run on a board."""
    here = "{}.{}".format(*python.version)
    if (lock.python, lock.arch) != (here, board.userland):
        yield f"its lock is for Python {lock.python} on {lock.arch}, the board has {here} on {board.userland}"
        return
    abi = f"cp3{python.version[1]}" + ("m" if python.version < (3, 8) else "")
    running = Running(python.version, lock.arch, board.libc_version if board.libc == "glibc" else None, abi)
    for wheel in lock.wheels:
        problem = tag_problem(wheel.filename, running)
        if problem:
            yield f"{wheel.filename} {problem}"


def unwanted(lock: Lock, requires: Wanted) -> Iterator[str]:
    """What a bundle asks for and a lock does not hold."""
    has = {split(wheel.name)[0]: wheel.version for wheel in lock.wheels}
    if not any(fits(line, has) for line in requires.interpreters):
        yield f"it has {', '.join(map(' '.join, has.items()))}; the bundle asks for {requires.interpreters[0]}"
    for line in requires.constraints:
        name = split(line)[0]
        if name in has and not fits(line, has):
            yield f"it has {name} {has[name]}; the bundle asks for {line}"


def fits(line: str, has: dict[str, str]) -> bool:
    """Whether a requirement is met."""
    name, specifier = split(line)
    return name in has and matches(has[name], specifier)


def intact(folder: Path) -> Iterator[CachedWheel]:
    """A wheelhouse's wheels, each of them hashed.

    Raises:
        InstallError: there is no lock, or none that can be read.
        DownloadError: a file is missing, or not what the lock says.
    """
    for wheel in read_lock(str(folder)).wheels:
        path, again = folder / wheel.filename, "make the folder again with `edgeferry wheelhouse`"
        try:
            good = path.stat().st_size == wheel.size and sha256_of(path) == wheel.sha256
        except OSError as error:
            raise DownloadError(f"{path}: cannot be read: {error.strerror}", again) from None
        if not good:
            raise DownloadError(f"{path}: its bytes are not those of the lock", again)
        yield CachedWheel(path, wheel, cached=True)

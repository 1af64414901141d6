"""The environment a release runs in: the board's own packages, or wheels from here where it lacks them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.wheel_lock import Lock, LockedFile, Running, read_lock

from edgeferry_deploy.console import Console, size_text
from edgeferry_deploy.errors import DeviceUnfitError
from edgeferry_deploy.offline import intact, solve_offline
from edgeferry_deploy.probe import probe
from edgeferry_deploy.release import Blob, env_hash, launcher_text, wheels_env_hash
from edgeferry_deploy.survey import Python, Survey, require_python
from edgeferry_deploy.transport import Transport
from edgeferry_deploy.wheel_cache import CachedWheel, DownloadError, fetch
from edgeferry_deploy.wheelhouse import RUNTIME_NAME, make_lock
from edgeferry_deploy.wheels import BoardFacts, Solution, board_of, solve, wanted

if TYPE_CHECKING:
    from edgeferry_runtime.manifest import Manifest

    from edgeferry_deploy.fact_types import Facts

__all__ = [
    "MODES",
    "Environment",
    "Sources",
    "check_sources",
    "choose",
    "environment_of_wheels",
    "own_environment",
    "read_wheel",
]

MODES = ("auto", "wheels", "board")
# Measured, files rounded up to blocks of 4 KiB: 2.7 to 3.0 for the five sets of wheels in docs/wheels.md; then
# there are the .pyc files that the self-check brings about.
UNPACKED = 3.3
SLOWEST_CARD = 0.5e6  # bytes a second that a slow card takes up when they are a thousand small files


@dataclass(frozen=True)
class Sources:
    """Where an environment may come from.

    Attributes:
        mode: "auto": wheels where the board's Python lacks something; "wheels": always; "board": never.
        offline: a folder of `edgeferry wheelhouse` to take wheels from; by default the cache and the index.
        python: the Python the user named.
        any_arch: do not compare the bundle's architecture.
    """

    mode: str = "auto"
    offline: str | Path | None = None
    python: str = ""
    any_arch: bool = False


@dataclass(frozen=True)
class Environment:
    """What runs releases on a device.

    Attributes:
        name: of its folder in `env/`.
        python: the device's Python it is for.
        runtime: the packed runtime.
        lock: what it consists of; None when all but the runtime is the board's own.
        wheels: the lock's wheels, each a file of this workstation.
        notes: what the user should know.
    """

    name: str
    python: Python
    runtime: Blob
    lock: Lock | None = None
    wheels: tuple[Blob, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """What has to be on the device to build it."""
        return (self.runtime, *self.wheels)

    @property
    def unpacked(self) -> int:
        """Bytes it takes on the device beside its blobs."""
        return int(UNPACKED * sum(blob.size for blob in self.wheels)) + 2 * self.runtime.size

    @property
    def launcher(self) -> str:
        """The script that starts the runtime; empty when the installer on the device writes it."""
        return "" if self.lock else launcher_text(self.python.path)

    @property
    def lock_text(self) -> str:
        """lock.json, for the installer; empty when there is nothing to install."""
        return self.lock.to_json() if self.lock else ""

    @property
    def files(self) -> str:
        """`SHA256 NAME` lines of what lies beside lock.json."""
        return "".join(f"{file.sha256} {file.filename}\n" for file in self.lock.files) if self.lock else ""

    @property
    def packages(self) -> tuple[str, ...]:
        """Names and versions of its wheels."""
        return tuple(f"{wheel.name} {wheel.version}" for wheel in self.lock.wheels) if self.lock else ()


def check_sources(sources: Sources) -> None:
    """Refuse choices that contradict each other, before anybody is called.

    Raises:
        UsageError: says which.
    """
    if sources.mode not in MODES:
        raise UsageError(f"--env {sources.mode}: is none of {', '.join(MODES)}", "leave it out for auto")
    if sources.offline and sources.mode == "board":
        raise UsageError(
            "--env board takes nothing from --offline", "leave one of the two out; --env wheels uses the folder"
        )
    if sources.offline:
        read_lock(str(sources.offline))


def choose(
    transport: Transport, survey: Survey, manifest: Manifest, runtime: Blob, sources: Sources, console: Console
) -> Environment:
    """Decide what runs the bundle; wheels cost one more round trip and, once, a download to this workstation.

    Raises:
        DeviceUnfitError: neither the board nor any wheels will do; SolveError when that lies at the wheels.
        DownloadError: a wheel cannot be had.
        InstallError, UsageError: the offline folder cannot be used.
        CommandError, ConnectError: the device cannot be asked.
    """
    device = transport.name
    if sources.mode == "board":
        return own_environment(runtime, require_python(survey, device, sources.python))
    lacking: DeviceUnfitError | None = None
    if sources.mode == "auto":
        try:
            python = require_python(survey, device, sources.python)
        except DeviceUnfitError as error:
            if (survey.python is None and sources.python) or (survey.python and not survey.python.version):
                raise  # the one that was named is not there, or what was found is broken: that has to be told
            lacking = error
        else:
            if sources.offline:
                console.step(f"{sources.offline} is not needed: {python.path} has what it takes", "none")
            return own_environment(runtime, python)
    facts = probe(transport, root=survey.root)
    board = board_of(facts, survey.python, only=bool(sources.python))
    if not board.pythons:
        require_python(survey, device, sources.python)
    if lacking:
        console.step(f"{lacking.message}: wheels make up for it", "none")
    found = environment_of_wheels(board, manifest, runtime, sources, device, console)
    return replace(found, python=python_of(found.python.path, survey.python, facts))


def own_environment(runtime: Blob, python: Python) -> Environment:
    """The runtime beside the board's own packages."""
    return Environment(env_hash(runtime.sha256, python.path), python, runtime)


def environment_of_wheels(
    board: BoardFacts, manifest: Manifest, runtime: Blob, sources: Sources, device: str, console: Console
) -> Environment:
    """An environment of wheels, which are on this workstation then; nothing is asked of the device.

    Raises:
        As `choose`.
    """
    requires = wanted(manifest)
    if sources.any_arch:
        requires = requires._replace(arch=())
    if sources.offline:
        folder = Path(sources.offline)
        solution = solve_offline(folder, board, requires, device)
        require_system(solution, device)
        wheels = tuple(intact(folder))
    else:
        solution = solve(board, requires, device)
        require_system(solution, device)
        wheels = tuple(download(solution, device, console))
    for note in solution.notes:
        console.step(note, "warn")
    lock = make_lock(solution, wheels, LockedFile(RUNTIME_NAME, runtime.size, runtime.sha256))
    path = solution.python.path
    return Environment(
        name=wheels_env_hash(lock.env_sha256, path),
        python=Python(path, solution.python.version),
        runtime=runtime,
        lock=lock,
        wheels=tuple(
            Blob(wheel.locked.filename, wheel.locked.sha256, wheel.locked.size, path=wheel.path)
            for wheel in wheels
        ),
        notes=solution.notes,
    )


def require_system(solution: Solution, device: str) -> None:
    """Refuse a board whose distribution has to bring something first.

    Raises:
        DeviceUnfitError: names it, and the command.
    """
    if solution.missing:
        names = " and ".join(package.module for package in solution.missing)
        raise DeviceUnfitError(
            f"{solution.python.path} on {device} has no {names}, and there is no wheel of it for {solution.arch}",
            f"on the board, once: {solution.apt_command}",
        )


def download(solution: Solution, device: str, console: Console) -> Iterator[CachedWheel]:
    """Every wheel of a solution, from the cache or else the index."""
    target = Running(solution.python.version, solution.arch, solution.glibc, "")
    names = ", ".join(f"{wheel.name} {wheel.version.lstrip('=')}" for wheel in solution.wheels)
    console.step("wheels for Python {}.{} on {}: {}".format(*target.python, target.arch, names), "none")
    for requirement in solution.wheels:
        try:
            wheel = fetch(requirement, target)
        except DownloadError as error:
            raise DownloadError(
                f"the environment for {device} cannot be made: {error.message}",
                f"{error.remedy}; or take a folder of `edgeferry wheelhouse` with --offline DIR",
            ) from None
        if not wheel.cached:
            console.step(f"downloaded {wheel.locked.filename}, {size_text(wheel.locked.size)}")
        yield wheel


def read_wheel(path: Path) -> bytes:
    """A wheel's bytes, to send them.

    Raises:
        DownloadError: somebody removed it since it was looked at.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DownloadError(f"{path}: cannot be read: {error.strerror}", "push again") from None


def python_of(path: str, surveyed: Python | None, facts: Facts) -> Python:
    """All that is known of the Python that was chosen."""
    if surveyed and surveyed.path == path:
        return surveyed
    found = next(one for one in facts.pythons or () if one.path == path)
    return Python(
        path=path,
        version=found.version,
        modules=frozenset(found.modules),
        machine=facts.arch or "",
        bits=found.bits,
        glibc=".".join(map(str, facts.libc.version)) if facts.libc and facts.libc.kind == "glibc" else "",
        ram_mb=facts.memory.total_mb if facts.memory else 0,
        edgetpu=None if facts.accelerators is None else bool(facts.accelerators),
    )

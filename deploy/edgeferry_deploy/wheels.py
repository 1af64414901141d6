"""Which interpreter, numpy and OpenCV a board can run: chosen from the table, nothing is asked or sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeferry_runtime.wheel_lock import SystemPackage

from edgeferry_deploy.errors import DeviceUnfitError, printable
from edgeferry_deploy.wheel_table import COMPANIONS, LITERT, NUMPY, OPENCV, SYSTEM, TFLITE, WHEELS, Version, Wheel

if TYPE_CHECKING:
    from edgeferry_runtime.manifest import Manifest

    from edgeferry_deploy.fact_types import Facts, PythonFound
    from edgeferry_deploy.survey import Python

__all__ = [
    "BoardFacts",
    "BoardPython",
    "Requirement",
    "Solution",
    "SolveError",
    "Wanted",
    "board_of",
    "solve",
    "wanted",
]


class BoardPython(NamedTuple):
    """A Python of the board.

    Attributes:
        version: (3, 11).
        path: where it is; empty when only its version is known.
        modules: what it can import already ("numpy", "cv2"): only where no wheel exists does that matter.
    """

    version: Version
    path: str = ""
    modules: frozenset[str] = frozenset()


class BoardFacts(NamedTuple):
    """What decides about wheels.

    Attributes:
        arch: as `uname -m` prints it.
        userland_bits: of its programs: a 64-bit kernel may carry a 32-bit system.
        libc: "glibc" or another name.
        libc_version: (2, 36).
        pythons: in order of preference.
        distribution: "Debian GNU/Linux 12 (bookworm)"; for messages only.
    """

    arch: str
    userland_bits: int
    libc: str
    libc_version: Version
    pythons: tuple[BoardPython, ...]
    distribution: str = ""

    @property
    def userland(self) -> str:
        """The architecture of its programs."""
        narrow = {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}
        arch = {"arm64": "aarch64", "amd64": "x86_64"}.get(self.arch, self.arch)
        return narrow.get(arch, arch) if self.userland_bits == 32 else arch


OLDEST_PYTHON = (3, 7)


def board_of(facts: Facts, python: Python | None = None, *, only: bool = False) -> BoardFacts:
    """What decides about wheels, from a probe and a survey's Python.

    Where both know something, the Python does: its own width and C library are those that wheels meet.

    Args:
        python: the Python that comes first; the others of the facts follow.
        only: no other Python will do, for the user named this one.
    """
    usable = python if python and python.version[:2] >= OLDEST_PYTHON else None
    kind, libc = (facts.libc.kind, facts.libc.version) if facts.libc else ("", ())
    if usable and usable.glibc:
        kind, libc = "glibc", tuple(int(part) for part in usable.glibc.split("."))
    found = facts.pythons or ()
    pythons = []
    if usable:
        twin = twin_of(usable, found)
        modules = usable.modules.union(twin.modules if twin else ())
        pythons.append(BoardPython(pair(usable.version), usable.path, modules))
        found = tuple(one for one in found if one is not twin)
    if not only:
        fitting = (one for one in found if one.version[:2] >= OLDEST_PYTHON)
        pythons += [BoardPython(pair(one.version), one.path, frozenset(one.modules)) for one in fitting]
    return BoardFacts(
        arch=facts.arch or (usable.machine if usable else ""),
        userland_bits=(usable.bits if usable else 0) or facts.userland_bits or 0,
        libc=kind,
        libc_version=pair(libc),
        pythons=tuple(pythons),
        distribution=printable(facts.distribution.name, 80) if facts.distribution else "",
    )


def pair(version: tuple[int, ...]) -> Version:
    """The first two numbers of a version."""
    major, minor, *_ = (*version, 0, 0)
    return major, minor


def twin_of(python: Python, found: Iterable[PythonFound]) -> PythonFound | None:
    """The same Python in the facts, which know more modules: by its path, else (behind a shim) its version."""
    found = tuple(found)
    same = [one for one in found if one.path == python.path]
    return next(iter(same or [one for one in found if one.version == python.version]), None)


class Wanted(NamedTuple):
    """What a bundle asks of an environment.

    Attributes:
        interpreters: requirements such as "ai-edge-litert>=2.1,<2.2", best first.
        constraints: requirements that hold for whatever is chosen: "numpy<2".
        arch: architectures it may run on; empty when that does not matter.
        pythons: oldest and newest minor version of Python 3.
        camera: whether frames are decoded, which takes OpenCV.
    """

    # LiteRT first: tflite-runtime does not delegate int8 to XNNPACK.
    interpreters: tuple[str, ...] = (LITERT, TFLITE)
    constraints: tuple[str, ...] = ()
    arch: tuple[str, ...] = ()
    pythons: tuple[int, int] = (7, 99)
    camera: bool = True


class Requirement(NamedTuple):
    """One wheel to download: exactly one version, for one Python on one platform.

    Attributes:
        version: a specifier, "==2.1.6".
        python: "3.11".
        abis: ABI tags that Python loads, best first.
        platforms: platform tags the board runs, best first.
    """

    name: str
    version: str
    python: str
    abis: tuple[str, ...]
    platforms: tuple[str, ...]


class Solution(NamedTuple):
    """An environment that runs.

    Attributes:
        system_packages: what the distribution has to bring; on the board already unless `missing` names it.
        missing: the part of them the chosen Python cannot import, as far as is known.
        notes: what the user should know.
    """

    python: BoardPython
    arch: str
    glibc: Version
    wheels: tuple[Requirement, ...]
    system_packages: tuple[SystemPackage, ...] = ()
    missing: tuple[SystemPackage, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def apt_command(self) -> str:
        """The one command that brings what is missing; empty when nothing is."""
        names = " ".join(package.package for package in self.missing)
        return f"sudo apt install --no-install-recommends {names}" if names else ""


class SolveError(DeviceUnfitError):
    """No set of wheels runs there; `reasons` says of every candidate why not."""

    def __init__(self, message: str, remedy: str | None = None, *, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(message, remedy)
        self.reasons = reasons


def wanted(manifest: Manifest, values: Mapping[str, Any] | None = None) -> Wanted:
    """What a manifest asks for: its backends, and its profile.

    Args:
        values: of another device profile than the one that was compiled into the manifest.

    Raises:
        SolveError: the profile's interpreters are none the bundle's variants may run on.
    """
    if values is None:
        found = manifest.profile.get("values")
        values = found if isinstance(found, Mapping) else {}
    backends = {backend for variant in manifest.variants for backend in variant.backends}
    asked = of_profile(values, manifest.preprocessing is not None)
    fitting = tuple(line for line in asked.interpreters if split(line)[0] in backends)
    if not fitting:
        raise SolveError(
            f"the bundle runs on {' or '.join(sorted(backends))}, the profile asks for {asked.interpreters[0]}",
            "convert the model again with the board's profile",
        )
    return asked._replace(interpreters=fitting, arch=manifest.requires.arch)


def of_profile(values: Mapping[str, Any], camera: bool = True) -> Wanted:
    """What a device profile's values ask for; what they do not say stays as it is by default."""
    interpreter, python = section(values, "interpreter"), section(values, "python")
    first = str(interpreter.get("package", "")) + str(interpreter.get("version", "")).replace(" ", "")
    lines = tuple(line for line in (first, *texts(interpreter.get("fallback"))) if line)
    return Wanted(
        interpreters=lines or Wanted().interpreters,
        constraints=texts(interpreter.get("constraints")),
        pythons=(minor(python.get("minimum"), 7), minor(python.get("maximum"), 99)),
        camera=camera,
    )


def section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table of a profile; empty when it is absent or no table."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def texts(value: Any) -> tuple[str, ...]:
    """The texts of a list."""
    return tuple(str(line) for line in value) if isinstance(value, (list, tuple)) else ()


def minor(value: Any, default: int) -> int:
    """The 11 of "3.11"."""
    found = re.fullmatch(r"3\.(\d{1,3})", str(value))
    return int(found.group(1)) if found else default


def solve(board: BoardFacts, requires: Wanted | None = None, device: str = "the board") -> Solution:
    """Choose a Python and the wheels for it.

    The first interpreter that fits decides, then the first Python, then the first version without a doubt.

    Args:
        requires: what the bundle asks for; by default any interpreter, with OpenCV.
        device: its name, for messages.

    Raises:
        SolveError: nothing fits; `reasons` has one line for each candidate.
    """
    requires = requires or Wanted()
    reasons = list(unfit(board, requires))
    if not reasons:
        for line in requires.interpreters:
            for python in board.pythons:
                try:
                    return choose(board, requires, line, python)
                except Refused as refused:
                    reasons += [reason for reason in refused.reasons if reason not in reasons]
    where = f" ({board.distribution})" if board.distribution else ""
    raise SolveError(
        f"no set of wheels runs on {device}{where}:\n    " + "\n    ".join(reasons),
        remedy_for(board),
        reasons=tuple(reasons),
    )


class Refused(Exception):  # noqa: N818 - an answer, not a failure: the next candidate is tried
    """Why a candidate does not fit."""

    def __init__(self, reasons: Iterable[str]) -> None:
        self.reasons = tuple(reasons)


def unfit(board: BoardFacts, requires: Wanted) -> Iterator[str]:
    """Why no wheel at all can fit."""
    arch = board.userland
    if board.libc != "glibc":
        yield f"its C library is {board.libc or 'unknown'}; the wheels need glibc"
    if not any(arch in wheel.glibc for wheel in WHEELS):
        yield f"there are no wheels for {arch}"
    if requires.arch and arch not in requires.arch:
        yield f"the bundle is for {', '.join(requires.arch)}, its programs are {arch}"
    if not board.pythons:
        yield "it has no Python 3.7 or newer"


def choose(board: BoardFacts, requires: Wanted, line: str, python: BoardPython) -> Solution:
    """The environment around one interpreter and one Python; raises Refused."""
    name, minor_version = split(line)[0], python.version[1]
    oldest, newest = requires.pythons
    if python.version[0] != 3 or not oldest <= minor_version <= newest:
        allowed = f"3.{oldest}" + (f" to 3.{newest}" if newest < 99 else " or newer")
        raise Refused([f"Python {dotted(python.version)}: the bundle's profile is for Python {allowed}"])
    interpreter = pick(board, python, (line, *requires.constraints), name)
    numpy_limits = [f"{NUMPY}{interpreter.numpy}", *requires.constraints]
    chosen, system = [interpreter], []
    numpy_version = ""
    for package in (NUMPY, *((OPENCV,) if requires.camera else ())):
        if not any(wheel.package == package and board.userland in wheel.glibc for wheel in WHEELS):
            system.append(SYSTEM[package])
            continue
        found = pick(board, python, (line, *numpy_limits), package, numpy_version)
        numpy_version = found.version if package == NUMPY else numpy_version
        chosen.append(found)
    missing = tuple(package for package in system if package.module not in python.modules)
    return Solution(
        python=python,
        arch=board.userland,
        glibc=board.libc_version,
        wheels=tuple(requirement(wheel, board, python) for wheel in (*chosen, *companions(python))),
        system_packages=tuple(system),
        missing=missing,
        notes=tuple(notes(board, chosen, system)),
    )


def companions(python: BoardPython) -> Iterator[Wheel]:
    """What every environment of that Python has beside interpreter, numpy and OpenCV."""
    for wheel in COMPANIONS:
        oldest, newest = wheel.pythons
        if oldest <= python.version[1] <= newest:
            yield wheel


def pick(
    board: BoardFacts, python: BoardPython, limits: Iterable[str], package: str, numpy_version: str = ""
) -> Wheel:
    """The best version of a package, those without a doubt first; raises Refused."""
    arch, here = board.userland, f"Python {dotted(python.version)}"
    specifiers = [specifier for name, specifier in map(split, limits) if name == package and specifier]
    rows = [wheel for wheel in WHEELS if wheel.package == package]
    if not rows:
        raise Refused([f"{package} is not in the table of wheels"])
    if not any(arch in wheel.glibc for wheel in rows):
        raise Refused([f"{package} has no wheel for {arch}"])
    fitting, reasons = [], []
    for wheel in rows:
        first, last = wheel.pythons
        least = wheel.glibc.get(arch)
        if not all(matches(wheel.version, specifier) for specifier in specifiers):
            reasons.append(f"{package} {wheel.version}: {','.join(specifiers)} was asked for")
        elif not first <= python.version[1] <= last:
            reasons.append(f"{package} {wheel.version}: is for Python 3.{first} to 3.{last}, not {here}")
        elif least is None or least > board.libc_version:
            need = f"needs glibc {dotted(least)}" if least else f"has no wheel for {arch}"
            reasons.append(f"{package} {wheel.version}: {need}, the board has {dotted(board.libc_version)}")
        elif numpy_version and wheel.numpy and not matches(numpy_version, wheel.numpy):
            reasons.append(f"{package} {wheel.version}: works with numpy{wheel.numpy}, not {numpy_version}")
        else:
            fitting.append(wheel)
    if not fitting:
        raise Refused(reasons)
    return min(fitting, key=lambda wheel: arch in wheel.doubts)  # min takes the first of equals


def requirement(wheel: Wheel, board: BoardFacts, python: BoardPython) -> Requirement:
    """What pip has to be asked for."""
    own = f"cp3{python.version[1]}" + ("m" if python.version < (3, 8) else "")
    return Requirement(
        wheel.package,
        f"=={wheel.version}",
        dotted(python.version),
        {"abi3": ("abi3", "none"), "none": ("none",)}.get(wheel.abi, (own, "none")),
        ("any",) if wheel.abi == "none" else platform_tags(board.userland, board.libc_version),
    )


def platform_tags(arch: str, glibc: Version) -> tuple[str, ...]:
    """The tags a C library runs, newest first; pip takes none for granted but the ones it is given."""
    tags = [f"manylinux_2_{number}_{arch}" for number in range(glibc[1], 11, -1)]
    place = next((index + 1 for index, tag in enumerate(tags) if "_2_17_" in tag), len(tags))
    return (*tags[:place], f"manylinux2014_{arch}", *tags[place:])


def notes(board: BoardFacts, chosen: Iterable[Wheel], system: Iterable[SystemPackage]) -> Iterator[str]:
    """What the user should know about a choice."""
    for wheel in chosen:
        if board.userland in wheel.doubts:
            yield f"{wheel.package} {wheel.version} {wheel.doubts[board.userland]}: the self-check decides"
        if wheel.package == TFLITE:
            yield "tflite-runtime does not use XNNPACK for int8: a float32 variant may be faster, measure it"
    if board.arch != board.userland and board.userland == "armv7l":
        yield "its kernel is 64-bit, its programs are 32-bit: a 64-bit system runs LiteRT, which has XNNPACK"
    for package in system:
        yield f"{package.module} comes from the distribution ({package.package}): there is no wheel of it"


NEWER = (
    "use a Python that the lines above name, or a system that has one: Debian 12 has Python 3.11 and glibc 2.36"
)
REMEDIES = {
    "x86_64": NEWER,
    "aarch64": NEWER,
    "armv7l": "install a 64-bit system, or Debian 12: there is no 32-bit interpreter for Python 3.12 and newer",
    "i686": "install a 64-bit system",
}


def remedy_for(board: BoardFacts) -> str:
    """What to do when nothing fits."""
    if board.libc != "glibc":
        return "install a system with glibc: Debian, Raspberry Pi OS, Ubuntu"
    return REMEDIES.get(board.userland, "use a board with a 64-bit ARM or x86 processor")


def split(line: str) -> tuple[str, str]:
    """A requirement's name and specifier; ("", "") for what is none."""
    found = re.fullmatch(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*?)\s*([<>=!~][<>=!~0-9., ]*)?", line)
    return (re.sub(r"[-_.]+", "-", found.group(1)).lower(), found.group(2) or "") if found else ("", "")


COMPARE = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}


def matches(version: str, specifier: str) -> bool:
    """Whether a version is one of ">=2.1,<2.2"; a specifier that cannot be read matches nothing."""
    for part in filter(None, (part.strip() for part in specifier.split(","))):
        found = re.fullmatch(r"(==|!=|~=|>=|<=|<|>)\s*(\d+(?:\.\d+)*)", part)
        if not found or not compare(version, *found.groups()):
            return False
    return True


def compare(version: str, sign: str, limit: str) -> bool:
    """One comparison; ~=2.1.3 is PEP 440's >=2.1.3 within 2.1."""
    if sign != "~=":
        return bool(COMPARE[sign](numbers(version), numbers(limit)))
    series = limit.count(".")
    return (
        series > 0 and numbers(version) >= numbers(limit) and numbers(version)[:series] == numbers(limit)[:series]
    )


def numbers(version: str) -> tuple[int, ...]:
    """(2, 1, 6), padded so that 2.1 equals 2.1.0."""
    parts = [int(part) for part in version.split(".")]
    return (*parts, *[0] * (6 - len(parts)))


def dotted(version: Version) -> str:
    """(3, 11) as 3.11."""
    return f"{version[0]}.{version[1]}"

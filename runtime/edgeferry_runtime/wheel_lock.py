"""The lock of an offline environment, and which wheels run on which Python: what workstation and board agree on.

The workstation writes ``lock.json`` beside the wheels, the board obeys it.  Wheel names and tags are read as
PEP 427, 425 and 600 say.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from typing import NamedTuple

from edgeferry_runtime.errors import EdgeferryError, ManifestError
from edgeferry_runtime.fields import Fields
from edgeferry_runtime.strict_json import MAX_BYTES, parse_json

__all__ = [
    "COPY_AGAIN",
    "LOCK_FORMAT",
    "LOCK_NAME",
    "MAX_UNPACKED",
    "InstallError",
    "Lock",
    "LockedFile",
    "LockedWheel",
    "Running",
    "SystemPackage",
    "read_lock",
    "tag_problem",
    "this_python",
]

LOCK_NAME = "lock.json"
LOCK_FORMAT = 1
MAX_UNPACKED = 1 << 30  # bytes of one file, packed or not; the largest real one, OpenCV, unpacks to 150 MB
COPY_AGAIN = "copy the folder again from the workstation, or make it again with `edgeferry wheelhouse`"

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,199}\Z")
_WHEEL = re.compile(r"[A-Za-z0-9][\w.]*-[0-9][\w.+!]*(-[0-9][\w.]*)?(-[a-z0-9_.]+){3}\.whl\Z", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_MANYLINUX = re.compile(r"manylinux_(\d{1,3})_(\d{1,3})_(\w+)\Z")
_LEGACY = {"manylinux1": "manylinux_2_5", "manylinux2010": "manylinux_2_12", "manylinux2014": "manylinux_2_17"}
# 32-bit programs on a 64-bit kernel: what uname says is the kernel's.
_NARROW = {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}


class InstallError(EdgeferryError):
    """The wheels cannot be installed here; the environment is as it was before."""


@dataclass(frozen=True)
class LockedFile:
    """One file beside the lock: its size in bytes and the SHA-256 of its bytes, in hex."""

    filename: str
    size: int
    sha256: str

    @classmethod
    def read(cls, fields: Fields) -> LockedFile:
        return cls(
            fields.text("filename", pattern=_FILE, means="a plain file name"),
            fields.integer("size", minimum=1, maximum=MAX_UNPACKED),
            fields.text("sha256", pattern=_SHA256, means="64 hexadecimal digits"),
        )


@dataclass(frozen=True)
class LockedWheel(LockedFile):
    """A wheel: a file with a package's name and version."""

    name: str
    version: str

    @classmethod
    def read(cls, fields: Fields) -> LockedWheel:
        file = LockedFile.read(fields)
        if not _WHEEL.match(file.filename):
            fields.problem("filename", "is no wheel's name: {!r}".format(file.filename))
        return cls(file.filename, file.size, file.sha256, fields.text("name"), fields.text("version"))


@dataclass(frozen=True)
class SystemPackage:
    """What the distribution has to bring, because there is no wheel of it: a package and the module in it."""

    package: str
    module: str

    @classmethod
    def read(cls, fields: Fields) -> SystemPackage:
        return cls(fields.text("package"), fields.text("module", pattern=re.compile(r"\w+\Z"), means="a module"))


@dataclass(frozen=True)
class Lock:
    """``lock.json``: what an environment consists of, and for which Python it is.

    Attributes:
        python: "3.11".
        arch: "aarch64", of the programs, not of the kernel.
        runtime: the packed edgeferry_runtime; None when it comes another way.
        bundle: the bundle that lies beside it; None when there is none.
    """

    python: str
    arch: str
    wheels: tuple[LockedWheel, ...]
    system_packages: tuple[SystemPackage, ...] = ()
    runtime: LockedFile | None = None
    bundle: LockedFile | None = None

    @classmethod
    def read(cls, fields: Fields) -> Lock:
        fields.integer("format", minimum=LOCK_FORMAT, maximum=LOCK_FORMAT)
        lock = cls(
            python=fields.text("python", pattern=re.compile(r"3\.\d{1,3}\Z"), means='a version such as "3.11"'),
            arch=fields.text("arch"),
            wheels=fields.parts("wheels", LockedWheel.read, minimum_length=1),
            system_packages=fields.parts("system_packages", SystemPackage.read),
            runtime=fields.optional_part("runtime", LockedFile.read),
            bundle=fields.optional_part("bundle", LockedFile.read),
        )
        names = [file.filename for file in lock.files]
        for name in sorted({name for name in names if names.count(name) > 1}):
            fields.problem("wheels", "{} is there twice".format(name))
        return lock

    @property
    def files(self) -> tuple[LockedFile, ...]:
        """Everything that lies beside the lock."""
        return self.wheels + tuple(file for file in (self.runtime, self.bundle) if file)

    def to_json(self) -> str:
        """The file's text: the same lock, the same text."""
        return json.dumps(dict(asdict(self), format=LOCK_FORMAT), indent=1, sort_keys=True) + "\n"

    @property
    def env_sha256(self) -> str:
        """SHA-256 of what the environment is made of; the bundle is not in it."""
        runtime = self.runtime.sha256 if self.runtime else ""
        parts = [self.python, self.arch, runtime, *(wheel.sha256 for wheel in self.wheels)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class Running(NamedTuple):
    """What decides whether a wheel runs: a Python and the C library below it.

    Attributes:
        python: (3, 11).
        arch: "aarch64", of the programs.
        glibc: (2, 36); None with another C library.
        abi: "cp311"; "cp37m" up to Python 3.7.
    """

    python: tuple[int, int]
    arch: str
    glibc: tuple[int, int] | None
    abi: str


def this_python() -> Running:
    """The Python that runs this."""
    import platform
    import struct
    import sysconfig

    version = sys.version_info[:2]
    arch = platform.machine()
    if struct.calcsize("P") == 4:
        arch = _NARROW.get(arch, arch)
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""  # exact, where platform.libc_ver reads a binary
    except (AttributeError, OSError, ValueError):
        libc = " ".join(platform.libc_ver())
    found = re.match(r"glibc (\d+)\.(\d+)", libc)
    abi = "cp{}{}".format(*version)
    if version < (3, 8):
        abi += "m"
    elif sysconfig.get_config_var("Py_GIL_DISABLED"):
        abi += "t"
    return Running(version, arch, (int(found.group(1)), int(found.group(2))) if found else None, abi)


def tag_problem(filename: str, running: Running) -> str:
    """Why a wheel does not run there, from its file name alone; empty when it does."""
    if not _WHEEL.match(filename):
        return "is no wheel's name"
    pythons, abis, platforms = filename[: -len(".whl")].rsplit("-", 3)[1:]
    here = "Python {}.{}".format(*running.python)
    if not any(_python_fits(p, a, running) for p in pythons.split(".") for a in abis.split(".")):
        return "is for {}-{}, this is {}".format(pythons, abis, here)
    if not any(_platform_fits(tag, running) for tag in platforms.split(".")):
        libc = "glibc {}.{}".format(*running.glibc) if running.glibc else "another C library than glibc"
        return "is for {}, this is {} with {}".format(platforms, running.arch, libc)
    return ""


def _python_fits(python: str, abi: str, running: Running) -> bool:
    found = re.match(r"(py|cp)(\d)(\d{0,3})\Z", python)
    if not found or found.group(2) != "3":
        return False
    minor = int(found.group(3) or 0)
    if abi == "abi3":  # the stable ABI of that version and every later one; free-threaded builds have none
        return found.group(1) == "cp" and minor <= running.python[1] and not running.abi.endswith("t")
    if found.group(1) == "py":
        return abi == "none" and minor <= running.python[1]
    return minor == running.python[1] and abi in (running.abi, "none")


def _platform_fits(tag: str, running: Running) -> bool:
    name, _, arch = tag.partition("_")
    if name in _LEGACY:
        tag = "{}_{}".format(_LEGACY[name], arch)
    if tag in ("any", "linux_" + running.arch):
        return True
    found = _MANYLINUX.match(tag)
    if not found or running.glibc is None or found.group(3) != running.arch:
        return False
    return (int(found.group(1)), int(found.group(2))) <= running.glibc


def read_lock(folder: str) -> Lock:
    """Read ``lock.json``.

    Raises:
        InstallError: it is missing or breaks its format; every problem is listed.
    """
    path = os.path.join(folder, LOCK_NAME)
    try:
        with open(path, "rb") as file:
            fields = Fields(parse_json(file.read(MAX_BYTES + 1), path))
    except OSError as error:
        raise InstallError("{}: cannot be read: {}".format(path, error.strerror), COPY_AGAIN) from None
    except ManifestError as error:
        raise InstallError(error.message, COPY_AGAIN) from None
    lock = Lock.read(fields)
    problems = fields.finish()
    if problems:
        raise InstallError("{}: is no lock:\n    {}".format(path, "\n    ".join(problems)), COPY_AGAIN)
    return lock

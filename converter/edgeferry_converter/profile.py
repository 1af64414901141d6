"""Device profiles: one commented TOML file a board, checked against the reference and turned into a typed value.

A profile is read on the workstation only.  Its values travel in the manifest; neither the deployer nor the board
parses a profile.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeferry_converter.errors import ConverterError, ProfileError, ProfileNotFoundError
from edgeferry_converter.profile_rules import contradictions, uncited
from edgeferry_converter.schema import RULES_TABLE, Problem, did_you_mean, parse, validate

__all__ = [
    "Accelerator",
    "Board",
    "CameraDefaults",
    "DeviceProfile",
    "InterpreterRequirement",
    "PythonRange",
    "QuantizationDefaults",
    "ServiceLimits",
    "available_profiles",
    "load_profile",
    "load_reference",
    "profiles_folder",
    "reference_file",
]

_FOLDER = "device_profiles"
_REFERENCE = "reference"
_LARGEST = 1 << 20  # bytes; a path typed wrong must not read a disk image into memory


@dataclass(frozen=True)
class Board:
    """The hardware and its C library; None is what no source was found for."""

    arch: str
    soc: str | None = None
    cpu: str | None = None
    cores: int | None = None
    mhz: int | None = None
    ram_mb: int | None = None
    glibc_min: str | None = None


@dataclass(frozen=True)
class PythonRange:
    """Oldest and newest Python on the board, as text like "3.11"."""

    minimum: str
    maximum: str | None = None


@dataclass(frozen=True)
class Accelerator:
    """The accelerator and what must be on the board for it; kind "none" has nothing else."""

    kind: str
    library: str | None = None
    device: str | None = None
    performance: str | None = None
    runtime: int | None = None
    packages: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    usb_ids: tuple[str, ...] = ()
    current_ma: int | None = None


@dataclass(frozen=True)
class InterpreterRequirement:
    """The interpreter's package and version; threads 0 means measured on the board."""

    package: str
    version: str
    threads: int
    fallback: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        """The line pip takes, such as ``ai-edge-litert>=2.1,<2.2``."""
        return self.package + self.version.replace(" ", "")


@dataclass(frozen=True)
class QuantizationDefaults:
    """What is made when neither the command line nor a recipe says otherwise."""

    default: str
    dense: str
    input_dtype: str
    output_dtype: str


@dataclass(frozen=True)
class CameraDefaults:
    """Where frames come from unless the board's run.json says otherwise."""

    source: str
    width: int
    height: int
    fps: int


@dataclass(frozen=True)
class ServiceLimits:
    """Limits of the systemd unit."""

    memory_max_mb: int
    watchdog_s: int


@dataclass(frozen=True)
class DeviceProfile:
    """One kind of board: what it has, what must be installed there, what is made for it by default.

    Attributes:
        sources: where each hardware fact was read, by dotted key.
        path: the file it came from.
    """

    name: str
    description: str
    board: Board
    python: PythonRange
    accelerator: Accelerator
    interpreter: InterpreterRequirement
    quantization: QuantizationDefaults
    camera: CameraDefaults
    service: ServiceLimits
    sources: Mapping[str, str] = field(hash=False)
    path: Path

    def values(self) -> dict[str, Any]:
        """Return the plain values for the manifest: no sources, no path, nothing for what is not known."""
        values = dataclasses.asdict(self)
        del values["sources"], values["path"]
        return {key: _plain(value) for key, value in values.items()}


def profiles_folder() -> Path:
    """Return the folder of the shipped profiles: inside an installed wheel, else the repository's own."""
    here = Path(__file__).resolve()
    for folder in (here.parent / _FOLDER, here.parents[2] / _FOLDER):
        if (folder / f"{_REFERENCE}.toml").is_file():
            return folder
    raise ConverterError(
        "The shipped device profiles are missing from this installation.",
        "Install edgeferry-converter again, or run it from a complete checkout.",
    )


def reference_file() -> Path:
    """Return the file that explains every key and is the schema."""
    return profiles_folder() / f"{_REFERENCE}.toml"


def load_reference() -> dict[str, Any]:
    """Parse the reference file, its table [reference] included."""
    return _read(reference_file())


def available_profiles() -> list[str]:
    """Return the names of the shipped profiles, sorted; the reference is not a board and is not among them."""
    return sorted(file.stem for file in profiles_folder().glob("*.toml") if file.stem != _REFERENCE)


def load_profile(name_or_path: str) -> DeviceProfile:
    """Load a shipped profile by name, or a profile of your own by its path.

    Args:
        name_or_path: a name such as ``rpi4``; anything with a folder in it or ending in .toml is a path.

    Raises:
        ProfileNotFoundError: no such name, or no such file.
        ProfileError: the file breaks the schema; all its problems are listed.
    """
    path = _find(name_or_path)
    data = _read(path)
    reference = load_reference()
    if path.samefile(reference_file()):
        data.pop(RULES_TABLE, None)
    problems = validate(data, reference, path.name)
    if not problems:  # rules between keys would trip over values of the wrong type
        problems = contradictions(data, path) + uncited(data, reference, path.name)
    if problems:
        raise _broken(path, problems)
    return _build(data, path)


def _find(name_or_path: str) -> Path:
    is_path = name_or_path.lower().endswith(".toml") or any(
        mark in name_or_path for mark in (os.sep, os.altsep or os.sep)
    )
    if not is_path:
        return _find_name(name_or_path)
    try:
        path = Path(name_or_path).expanduser()
        found = path.exists()
    except (ValueError, RuntimeError, OSError) as error:  # a NUL in it; ~nobody; a folder closed to us
        raise _not_found(f"The device profile {name_or_path!r} cannot be looked up: {error}") from error
    if not found:
        raise _not_found(f"The device profile {path} does not exist.")
    return path


def _find_name(name: str) -> Path:
    known = [*available_profiles(), _REFERENCE]
    if name in known:
        return profiles_folder() / f"{name}.toml"
    hint = did_you_mean(name, known).removeprefix("; ").capitalize()
    raise _not_found(f"There is no device profile named {name!r}. {hint}".rstrip())


def _not_found(message: str) -> ProfileNotFoundError:
    known = tuple(available_profiles())
    return ProfileNotFoundError(message, f"Known: {', '.join(known)}; or the path of a .toml file.", known)


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise ProfileError(f"{path} is a folder, not a device profile.", "Name a .toml file inside it.")
    if not path.is_file():
        raise ProfileError(f"{path} is not a regular file.", "Name a .toml file.")
    try:
        if path.stat().st_size > _LARGEST:
            raise ProfileError(f"{path} is larger than a device profile can be (1 MiB).", "Name a .toml file.")
        raw = path.read_bytes()
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    data, problems = parse(raw, path.name)
    if problems:
        raise _broken(path, problems)
    return data


def _broken(path: Path, problems: list[Problem]) -> ProfileError:
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return ProfileError(
        f"The device profile {path} has {count}:",
        "Every key is explained by `edgeferry profiles --reference`.",
        tuple(problems),
    )


def _build(data: dict[str, Any], path: Path) -> DeviceProfile:
    return DeviceProfile(
        name=data["name"],
        description=data["description"],
        board=Board(**data["board"]),
        python=PythonRange(**data["python"]),
        accelerator=Accelerator(**_frozen(data["accelerator"])),
        interpreter=InterpreterRequirement(**_frozen(data["interpreter"])),
        quantization=QuantizationDefaults(**data["quantization"]),
        camera=CameraDefaults(**data["camera"]),
        service=ServiceLimits(**data["service"]),
        sources=dict(data["sources"]),
        path=path,
    )


def _frozen(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def _plain(value: Any) -> Any:
    """Tables without what is not known, tuples as the lists that JSON will make of them anyway."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items() if entry is not None and entry != ()}
    return list(value) if isinstance(value, tuple) else value

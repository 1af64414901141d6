"""A device profile from a device's facts: a first draft that loads, each fact with the place it was read.

The schema is device_profiles/reference.toml, which the converter checks; choices that are not facts are those of
the shipped profiles.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeferry_runtime.errors import UsageError

from edgeferry_deploy.errors import DeviceUnfitError, printable
from edgeferry_deploy.fact_types import Facts, PythonFound
from edgeferry_deploy.wheel_table import WHEELS
from edgeferry_deploy.wheels import BoardFacts, SolveError, Wanted, board_of, solve

__all__ = ["Interpreter", "check_file", "draft", "interpreter_for", "write"]

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
ARCHITECTURES = ("x86_64", "aarch64", "armv7l")
SMALL_MB = 900  # below it a camera of 640x480 and half the memory, as in the shipped profiles


@dataclass(frozen=True)
class Interpreter:
    """An interpreter for a profile.

    Attributes:
        version: versions that a profile accepts, as pip writes them.
        fallback: requirements to try after it.
        constraints: requirements on other packages that hold with it.
    """

    package: str
    version: str
    fallback: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()


# With an Edge TPU the delegate's build decides: the one pairing with a current libedgetpu that anyone reported.
EDGE_TPU_LITERT = {"version": ">=2.2,<2.3", "fallback": ["ai-edge-litert>=2.1,<2.2"]}


def interpreter_for(facts: Facts) -> tuple[Interpreter, PythonFound]:
    """The best interpreter there are wheels for, and the Python it goes with.

    Raises:
        DeviceUnfitError: there is none; says what stands in the way.
    """
    board = board_of(facts)
    try:
        solution = solve(board, device=facts.device)
    except SolveError as error:
        message = f"no interpreter has a wheel for {facts.device}: {obstacle(facts)}"
        raise DeviceUnfitError(message, error.remedy) from None
    chosen = solution.wheels[0]
    first = chosen.version.lstrip("=")
    numpy = next(wheel.numpy for wheel in WHEELS if (wheel.package, wheel.version) == (chosen.name, first))
    interpreter = Interpreter(
        package=chosen.name,
        version=series(first),
        fallback=other_series(board._replace(pythons=(solution.python,)), chosen.name, first),
        constraints=(f"numpy{numpy}",) if numpy else (),
    )
    return interpreter, next(one for one in facts.pythons or () if one.path == solution.python.path)


def series(version: str) -> str:
    """The versions that differ from 2.1.6 in their last part only: ">=2.1,<2.2"."""
    major, minor = version.split(".")[:2]
    return f">={major}.{minor},<{major}.{int(minor) + 1}"


def other_series(board: BoardFacts, package: str, version: str) -> tuple[str, ...]:
    """The next best series of a package that a board runs; empty when there is only one."""
    low, high = series(version).split(",")
    limits = (package + low.replace(">=", "<"), package + high.replace("<", ">="))
    try:
        found = solve(board, Wanted(interpreters=tuple(reversed(limits)))).wheels[0]
    except SolveError:
        return ()
    return (package + series(found.version.lstrip("=")),)


def obstacle(facts: Facts) -> str:
    """What stands in the way of every interpreter."""
    if facts.userland_arch is None or not facts.pythons:
        return "its architecture is not known" if facts.userland_arch is None else "it has no Python"
    if not any(facts.userland_arch in wheel.glibc for wheel in WHEELS):
        return f"there are none for {facts.userland_arch}"
    if facts.libc is None or facts.libc.kind != "glibc":
        return f"its C library is {facts.libc.kind}, not glibc" if facts.libc else "its C library is not known"
    found = ", ".join(".".join(map(str, python.version[:2])) for python in facts.pythons)
    library = ".".join(map(str, facts.libc.version))
    return f"Python {found} with glibc {library} on {facts.userland_arch}"


def check_file(file: Path) -> None:
    """Refuse a file that cannot become a profile.

    Raises:
        UsageError: its name is no profile's, it exists, or its folder does not.
    """
    if file.suffix != ".toml" or not NAME.fullmatch(file.stem):
        raise UsageError(
            f"'{printable(file.name)}' cannot be a profile's file",
            "name it after the board: lower-case letters, digits and hyphens, then .toml",
        )
    if file.exists():
        raise UsageError(f"{file} exists already", "name another file, or move that one away")
    if not file.parent.is_dir():
        raise UsageError(f"{file.parent} is no folder", "make it first, or name another file")


def write(file: Path, text: str) -> None:
    """Write a new file.

    Raises:
        UsageError: it cannot be written; nothing is left behind.
    """
    try:
        with file.open("x", encoding="utf-8", newline="\n") as stream:
            try:
                stream.write(text)
            except BaseException:
                file.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", "name another file") from None


def draft(facts: Facts, name: str, date: str) -> str:
    """The profile as TOML.

    Args:
        name: the file's name without .toml.
        date: of the probe, for [sources].

    Raises:
        DeviceUnfitError: no profile can be written for this device; says why.
    """
    if facts.userland_arch not in ARCHITECTURES:
        raise DeviceUnfitError(
            f"{facts.device} is {facts.userland_arch or 'of unknown architecture'}; profiles know "
            f"{', '.join(ARCHITECTURES)}",
            "run a system of one of these on the board",
        )
    interpreter, python = interpreter_for(facts)
    board, cited = board_table(facts)
    minor = ".".join(map(str, python.version[:2]))
    cited |= {"python.minimum": f"{python.path} -I -c", "python.maximum": f"{python.path} -I -c"}
    accelerator = accelerator_table(facts, cited)
    tables: dict[str, dict[str, Any]] = {
        "board": board,
        "python": {"minimum": minor, "maximum": minor},
        "accelerator": accelerator,
        "interpreter": interpreter_table(interpreter, accelerator["kind"] == "edgetpu-usb", cited),
        "quantization": {
            "default": "int8",
            "dense": "per-tensor",
            "input_dtype": "int8",
            "output_dtype": "int8",
        },
        "camera": camera_table(facts),
        "service": service_table(facts),
        "sources": {key: source(key, text, facts.device, date) for key, text in cited.items()},
    }
    top = {"name": name, "description": facts.model or f"{facts.userland_arch} board"}
    return (
        f"# Drafted by `edgeferry probe` on {date}. `edgeferry profiles --reference` explains every key.\n"
        "# [board], [python] and [accelerator] are this one board's facts; the rest are defaults to look over.\n"
        + pairs(top)
        + "".join(f"\n[{table}]\n{pairs(values)}" for table, values in tables.items())
    )


CHOICE = "the shipped profiles: "  # sources that are no command on the board


def source(key: str, text: str, device: str, date: str) -> str:
    """Where a fact comes from."""
    return text if text.startswith(CHOICE) else f"`{text}` on {device}, {date}"


def board_table(facts: Facts) -> tuple[dict[str, Any], dict[str, str]]:
    """The table [board] and what its facts were read with."""
    glibc = facts.libc.version if facts.libc and facts.libc.kind == "glibc" else ()
    rows = (
        ("cpu", facts.cpu, "cat /proc/cpuinfo"),
        ("arch", facts.userland_arch, ""),
        ("cores", facts.cores, "getconf _NPROCESSORS_ONLN"),
        ("mhz", facts.max_mhz, "cat /sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"),
        ("ram_mb", facts.memory and facts.memory.total_mb, "cat /proc/meminfo"),
        ("glibc_min", ".".join(map(str, glibc[:2])), "getconf GNU_LIBC_VERSION"),
    )
    known = [row for row in rows if row[1]]
    return {key: value for key, value, _ in known}, {f"board.{key}": text for key, _, text in known if text}


def accelerator_table(facts: Facts, cited: dict[str, str]) -> dict[str, Any]:
    """The table [accelerator]; adds what its facts were read with."""
    cited["accelerator.kind"] = "ls /sys/bus/usb/devices /dev/apex_*"
    if not facts.accelerators:
        return {"kind": "none"}
    kind = facts.accelerators[0].kind
    table = {"kind": kind, "library": "libedgetpu.so.1", "device": f"{kind.removeprefix('edgetpu-')}:0"}
    cited["accelerator.library"] = (
        f"ls {facts.edgetpu_library}" if facts.edgetpu_library else CHOICE + "not found on the board, install it"
    )
    return table


def interpreter_table(interpreter: Interpreter, usb_stick: bool, cited: dict[str, str]) -> dict[str, Any]:
    """The table [interpreter]; adds what its version comes from."""
    cited["interpreter.version"] = CHOICE + "what they accept for this architecture and Python"
    table: dict[str, Any] = {"package": interpreter.package, "version": interpreter.version, "threads": 0}
    lists = {"fallback": list(interpreter.fallback), "constraints": list(interpreter.constraints)}
    table |= {key: value for key, value in lists.items() if value}
    return table | (EDGE_TPU_LITERT if usb_stick and interpreter.package == "ai-edge-litert" else {})


def small(facts: Facts) -> bool:
    """Whether memory is short."""
    return facts.memory is not None and facts.memory.total_mb < SMALL_MB


def camera_table(facts: Facts) -> dict[str, Any]:
    """The table [camera]: picamera2 where it is installed, else the first video device that is a camera."""
    picamera2 = any("picamera2" in python.modules for python in facts.pythons or ())
    first = facts.real_cameras[0].device.removeprefix("/dev/video") if facts.real_cameras else "0"
    width, height = (640, 480) if small(facts) else (1280, 720)
    source = "picamera2:0" if picamera2 else f"camera:{first}"
    return {"source": source, "width": width, "height": height, "fps": 30}


def service_table(facts: Facts) -> dict[str, Any]:
    """The table [service]: half the memory, at most 512 MB."""
    half = facts.memory.total_mb // 2 if facts.memory else 256
    return {"memory_max_mb": max(32, min(512, half)), "watchdog_s": 30 if small(facts) else 20}


def pairs(values: dict[str, Any]) -> str:
    """Keys and values as TOML; a JSON text is a TOML text as long as it holds no control characters."""
    return "".join(
        f"{key if NAME.fullmatch(key.replace('_', '-')) else json.dumps(key)} = {toml(value)}\n"
        for key, value in values.items()
    )


def toml(value: Any) -> str:
    """A text, a number or a list as TOML."""
    return json.dumps(printable(value, 300) if isinstance(value, str) else value, ensure_ascii=False)

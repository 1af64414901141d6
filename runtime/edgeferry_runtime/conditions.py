"""What a measurement was made under: the machine, its clocks and temperature, memory, and versions.

Only what is there is given, never guessed: a key is absent where the system does not tell.  Nothing here raises.

Sources: Documentation/admin-guide/pm/cpufreq.rst, Documentation/driver-api/thermal/sysfs-api.rst and
Documentation/filesystems/proc.rst of Linux; raspberrypi/documentation os/graphics-utilities.adoc for the bits of
``vcgencmd get_throttled``.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from typing import Any

from edgeferry_runtime.backend import available_cores, loaded_backends

__all__ = [
    "conditions",
    "cpu_model",
    "parse_cpuinfo",
    "parse_meminfo",
    "parse_temperature",
    "parse_throttled",
    "rss_mb",
    "temperature",
    "throttled",
]

_THROTTLE_BITS = ("undervoltage", "frequency capped", "throttled", "soft temperature limit")
_SINCE_BOOT = 16  # the same four again
_FIRMWARE = "sys/bus/platform/drivers/raspberrypi-firmware"  # its device is called soc:firmware on most boards
_MAX_SANE_CELSIUS = 200.0  # some drivers answer with their error code


def conditions(root: str = "/") -> dict[str, Any]:
    """Everything that is known here, as plain values for JSON.

    Args:
        root: where proc and sys are; another one in tests.

    Returns:
        Of these keys those that are known: machine, cpu, cores, usable_cores, arch, kernel, libc, python, numpy,
        opencv, backends, temperature_c, governor, mhz, max_mhz, throttled, memory_mb, available_mb, load,
        rss_mb.
    """
    memory = parse_meminfo(_read(root, "proc/meminfo"))
    found: dict[str, Any] = {
        "machine": machine(root),
        "cpu": cpu_model(root),
        "cores": os.cpu_count(),
        "usable_cores": available_cores(),
        "arch": platform.machine(),
        "kernel": platform.release(),
        "libc": _libc(),
        "temperature_c": temperature(root),
        "throttled": throttled(root),
        "memory_mb": memory.get("MemTotal"),
        "available_mb": memory.get("MemAvailable"),
        "load": _load(),
        "rss_mb": rss_mb(root),
    }
    found.update(_clocks(root))
    found.update(_versions())
    return {key: value for key, value in found.items() if value not in (None, "", {})}


def machine(root: str = "/") -> str:
    """The board's name from its device tree, or the PC's product name; "" where neither is there."""
    board = _read(root, "proc/device-tree/model") or _read(root, "sys/class/dmi/id/product_name")
    return _clean(board)


def cpu_model(root: str = "/") -> str:
    """The processor's name; "" where nothing tells."""
    return parse_cpuinfo(_read(root, "proc/cpuinfo")) or _clean(platform.processor())


def parse_cpuinfo(text: str) -> str:
    """The processor's name in /proc/cpuinfo.

    x86 writes "model name"; 64-bit ARM writes numbers alone, which are given as "ARM part 0xd08".
    """
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and value.strip():
            fields.setdefault(key.strip(), value.strip())
    if "model name" in fields:
        return _clean(fields["model name"])
    part = fields.get("CPU part", "")
    return "ARM part " + part if re.match(r"0x[0-9a-f]+\Z", part) else ""


def temperature(root: str = "/") -> float | None:
    """Degrees Celsius of the hottest thermal zone; None where there is none."""
    zones = _matching(root, "sys/class/thermal", r"thermal_zone\d+\Z")
    known = [parse_temperature(_read(root, "sys/class/thermal", zone, "temp")) for zone in zones]
    return max((value for value in known if value is not None), default=None)


def parse_temperature(text: str) -> float | None:
    """Degrees Celsius from a thermal zone's millidegrees; None for anything else."""
    number = _integer(text)
    if number is None or not -60.0 < number / 1000 < _MAX_SANE_CELSIUS:
        return None
    return round(number / 1000, 1)


def throttled(root: str = "/") -> dict[str, list[str]] | None:
    """What holds a Raspberry Pi's clock down, as ``parse_throttled`` gives it; None on other machines.

    Reads the firmware's file, and asks ``vcgencmd`` only where that is absent and this is a Raspberry Pi.
    """
    devices = _matching(root, _FIRMWARE, r".*firmware\Z")
    text = _read(root, _FIRMWARE, devices[0], "get_throttled") if devices else ""
    if not text and root == "/" and machine().startswith("Raspberry Pi"):
        text = _vcgencmd()
    return parse_throttled(text)


def parse_throttled(text: str) -> dict[str, list[str]] | None:
    """The flags of "throttled=0x50005" (vcgencmd) or "50005" (the firmware's file, hexadecimal).

    Returns:
        ``{"now": [...], "since_boot": [...]}`` with names of flags; None for text that is neither.
    """
    match = re.match(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]{1,8})\s*\Z", text)
    if not match:
        return None
    bits = int(match.group(1), 16)
    return {
        key: [name for i, name in enumerate(_THROTTLE_BITS) if bits >> (shift + i) & 1]
        for key, shift in (("now", 0), ("since_boot", _SINCE_BOOT))
    }


def parse_meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo in MiB by name."""
    rows = re.findall(r"^(\w+):\s+(\d+) kB\s*$", text, re.MULTILINE)
    return {name: int(kib) // 1024 for name, kib in rows}


def rss_mb(root: str = "/") -> float | None:
    """Memory this process has in RAM, MiB; the largest it ever had where the system tells that alone."""
    fields = _read(root, "proc/self/statm").split()
    pages = _integer(fields[1]) if len(fields) > 1 else None
    if pages is not None:
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(largest / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _clocks(root: str) -> dict[str, Any]:
    """Governor, and current and highest MHz; one value when all clusters agree, else by policy."""
    base = "sys/devices/system/cpu/cpufreq"
    policies = _matching(root, base, r"policy\d+\Z")
    found: dict[str, Any] = {}
    files = (("governor", "scaling_governor"), ("mhz", "scaling_cur_freq"), ("max_mhz", "scaling_max_freq"))
    for key, file in files:
        values: dict[str, Any] = {}
        for policy in policies:
            text = _clean(_read(root, base, policy, file))
            khz = _integer(text)
            value = text if key == "governor" else khz // 1000 if khz is not None else None
            if value not in (None, ""):
                values[policy] = value
        same = len(set(values.values())) == 1
        found[key] = next(iter(values.values())) if same else values
    return found


def _versions() -> dict[str, Any]:
    # What is not loaded played no part in what was measured, and would cost memory to ask.
    numpy, opencv = sys.modules.get("numpy"), sys.modules.get("cv2")
    return {
        "python": platform.python_version(),
        "numpy": getattr(numpy, "__version__", None),
        "opencv": getattr(opencv, "__version__", None),
        "backends": [str(backend) for backend in loaded_backends()],
    }


def _libc() -> str | None:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):  # not glibc
        return None


def _load() -> list[float] | None:
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):  # Windows
        return None


def _vcgencmd() -> str:
    import subprocess

    try:
        done = subprocess.run(
            ["vcgencmd", "get_throttled"],  # noqa: S607  its folder differs from system to system
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=2.0, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("ascii", "replace").strip()


def _read(root: str, *parts: str) -> str:
    """The start of a small file as text, "" where it cannot be read."""
    try:
        with open(os.path.join(root, *parts), "rb") as file:
            return file.read(65536).decode("utf-8", "replace")
    except OSError:  # an unplugged sensor's file is there and gives EIO or ENODATA
        return ""


def _matching(root: str, folder: str, pattern: str) -> list[str]:
    try:
        names = os.listdir(os.path.join(root, folder))
    except OSError:
        return []
    return sorted(name for name in names if re.match(pattern, name))


def _clean(text: str) -> str:
    """One printable line of at most 120 characters: device trees end in NUL, broken ones hold anything."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(line.split())[:120]


def _integer(text: str) -> int | None:
    text = text.strip()
    return int(text) if re.match(r"-?[0-9]{1,18}\Z", text) else None

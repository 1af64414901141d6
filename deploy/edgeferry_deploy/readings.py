"""Parsers of what a device's commands print: text in, a value or None out; nothing here raises.

None means that the device did not tell.  Every text that stays is made safe to show.

Sources: Documentation/admin-guide/pm/cpufreq.rst, Documentation/driver-api/thermal/sysfs-api.rst and
Documentation/filesystems/proc.rst of Linux; os-release(5); POSIX df -P; raspberrypi/documentation
os/graphics-utilities.adoc (bits of get_throttled); arch/arm64/include/asm/cputype.h (CPU parts).
"""

from __future__ import annotations

import re

from edgeferry_deploy.errors import printable
from edgeferry_deploy.fact_types import (
    Accelerator,
    Camera,
    Disk,
    Distribution,
    Libc,
    Memory,
    Mount,
    PythonFound,
    Throttled,
    Version,
)
from edgeferry_deploy.survey import linked

CPU_PARTS = {
    0xC07: "Cortex-A7",
    0xC08: "Cortex-A8",
    0xC09: "Cortex-A9",
    0xC0F: "Cortex-A15",
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
}
THROTTLE_BITS = ("undervoltage", "frequency capped", "throttled", "soft temperature limit")
SINCE_BOOT = 16  # the same four again
# Video devices that decode, encode or convert; a camera is none of them.
CODECS = ("bcm2835-codec", "bcm2835-isp", "pispbe", "pisp_be", "rpivid", "rpi-hevc", "hantro", "vsi_v4l2")
EDGE_TPUS = ("1a6e:089a", "18d1:9302")  # the USB stick before and after its first delegate
SANE_CELSIUS = (-60.0, 200.0)  # some drivers answer with their error code
ELF = ("177", "105", "114", "106")  # od -b of 0x7f E L F
ELF_CLASSES = {"001": 32, "002": 64}
MOST = 64  # entries of any list that are kept: a device may print as many as it likes


def words_of(text: str) -> str | None:
    """The text on one line; None when there is none."""
    return printable(text, 200) or None


def login(text: str) -> str | None:
    """A user name; nothing that a shell could read as more, because remedies are made with it."""
    found = re.fullmatch(r"\s*([A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?)\s*", text, re.ASCII)
    return found[1] if found else None


def names(text: str) -> tuple[str, ...] | None:
    """Words, each once, in their order; None when there are none."""
    return listing(text) or None


def listing(text: str) -> tuple[str, ...]:
    """Words, each once, in their order; none is an answer too."""
    return tuple(dict.fromkeys(printable(text, 4000).split()))


def integer(text: str) -> int | None:
    """A number of at most 18 digits."""
    found = re.fullmatch(r"\s*(\d{1,18})\s*", text, re.ASCII)
    return int(found[1]) if found else None


def yes_no(text: str) -> bool | None:
    """`yes` or `no`, alone or as `Key=yes`."""
    found = re.fullmatch(r"\s*(?:\w+=)?(yes|no)\s*", text)
    return found[1] == "yes" if found else None


def version_of(text: str) -> Version:
    """(3, 11, 2) from "3.11.2" and whatever follows; empty when it begins with no number."""
    found = re.match(r"\d{1,9}(?:\.\d{1,9}){0,3}", text, re.ASCII)
    return tuple(map(int, found[0].split("."))) if found else ()


def machine(text: str) -> str | None:
    """An architecture as `uname -m` prints it."""
    found = re.fullmatch(r"\s*([A-Za-z0-9_]{1,32})\s*", text, re.ASCII)
    return found[1] if found else None


def bits(text: str) -> int | None:
    """32 or 64, from getconf or from `od -b` of a program's first five bytes."""
    if text.strip() in ("32", "64"):
        return int(text)
    words = text.split("\n", 1)[0].split()[1:]
    return ELF_CLASSES.get(words[4]) if len(words) == 5 and tuple(words[:4]) == ELF else None


def libc(text: str) -> Libc | None:
    """The C library, from getconf, ldd or the name of musl's loader."""
    found = re.search(r"^glibc (\d\S*)", text, re.MULTILINE) or re.search(
        r"^ldd \(.*(?:GLIBC|GNU libc).*\) (\d\S*)", text, re.MULTILINE | re.IGNORECASE
    )
    if found:
        return Libc("glibc", version_of(found[1]))
    if "musl" in text:
        found = re.search(r"^Version (\d\S*)", text, re.MULTILINE)
        return Libc("musl", version_of(found[1]) if found else ())
    return None


def distribution(text: str) -> Distribution | None:
    """The keys of os-release that matter."""
    rows = re.findall(r"""^([A-Z_]+)=["']?([^"'\n]*)""", text, re.MULTILINE)
    keys = {key: printable(value, 100) for key, value in rows}
    if not keys.get("ID"):
        return None
    return Distribution(
        keys["ID"], keys.get("VERSION_ID", ""), keys.get("VERSION_CODENAME", ""), keys.get("PRETTY_NAME", "")
    )


def pythons(text: str) -> tuple[PythonFound, ...]:
    """Lines of path, version, bits and modules between tabs; newest first, a private one before all."""
    found = []
    for line in text.split("\n")[:MOST]:
        path, _, rest = line.partition("\t")
        version, _, rest = rest.partition("\t")
        width, _, modules = rest.partition("\t")
        if path.startswith("/") and path.isprintable() and version_of(version):
            known = tuple(sorted(set(re.findall(r"\w{1,32}", modules[:400], re.ASCII))))
            found.append(PythonFound(path, version_of(version), int(width) if width in ("32", "64") else 0, known))
    return tuple(sorted(found, key=lambda one: (not one.path.endswith("/venv/bin/python3"), minus(one.version))))


def minus(version: Version) -> Version:
    """Sorts versions newest first."""
    return tuple(-part for part in version)


def memory(text: str) -> Memory | None:
    """/proc/meminfo."""
    kib = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d{1,15}) kB\s*$", text, re.M | re.A)}
    if "MemTotal" not in kib:
        return None
    available = kib.get("MemAvailable")
    return Memory(kib["MemTotal"] // 1024, None if available is None else available // 1024)


def mount_of(text: str, point: str) -> Mount | None:
    """The last mount at `point` in /proc/mounts: later ones hide earlier ones."""
    found = None
    for line in text.split("\n"):
        words = line.split(" ")
        if len(words) >= 4 and words[1] == point.replace(" ", "\\040"):
            found = Mount(printable(words[2], 40), "ro" in words[3].split(","))
    return found


def system_root(text: str) -> Mount | None:
    """How `/` is mounted."""
    return mount_of(text, "/")


def disk(text: str) -> Disk | None:
    """A path, whether it can be written to, df's line in blocks and in inodes, then /proc/mounts."""
    head, _, rest = text.partition("\n")
    access, _, rest = rest.partition("\n")
    if not head.startswith("/") or not head.isprintable() or access not in ("writable", "unwritable"):
        return None
    rows = {
        kind: (int(total), int(free), point)
        for kind, total, free, point in re.findall(
            r"^(blocks|inodes) .*?\s(\d{1,15})\s+\d+\s+(\d{1,15})\s+(?:\d+%|-)\s+(/.*)$", rest, re.M | re.A
        )
    }
    blocks, inodes = rows.get("blocks"), rows.get("inodes")
    return Disk(
        path=printable(head, 300),
        writable=access == "writable",
        free_mb=blocks and blocks[1] // 1024,
        total_mb=blocks and blocks[0] // 1024,
        # btrfs and vfat count no inodes and say 0 of 0
        free_inodes=inodes[1] if inodes and inodes[0] else None,
        mount=mount_of(rest, blocks[2]) if blocks else None,
    )


def cameras(text: str) -> tuple[Camera, ...]:
    """Lines of device, yes or no for "may be opened", and the driver's name."""
    found = re.findall(r"^(/dev/video\d{1,3})\t(yes|no)\t(.*)$", text, re.MULTILINE | re.ASCII)[:MOST]
    return tuple(
        Camera(device, printable(name, 80), openable == "yes", name.startswith(CODECS))
        for device, openable, name in sorted(found, key=lambda row: int(row[0][len("/dev/video") :]))
    )


def accelerators(text: str) -> tuple[Accelerator, ...]:
    """Lines of a USB id or an apex device, and yes or no for "may be opened"; other USB devices are dropped."""
    found = re.findall(r"^([0-9a-f]{4}:[0-9a-f]{4}|/dev/apex_\d{1,3})\t(yes|no)$", text, re.MULTILINE | re.ASCII)
    return tuple(
        Accelerator("edgetpu-usb" if name in EDGE_TPUS else "edgetpu-pci", name, openable == "yes")
        for name, openable in found
        if name in EDGE_TPUS or name.startswith("/dev/")
    )[:MOST]


def systemd(text: str) -> int | None:
    """The number in "systemd 252 (252.31-1~deb12u1)"."""
    found = re.match(r"systemd (\d{1,4})\b", text, re.ASCII)
    return int(found[1]) if found else None


def temperature(text: str) -> float | None:
    """Degrees Celsius of the hottest zone, from millidegrees on lines."""
    numbers = [int(line) / 1000 for line in text.split() if re.fullmatch(r"-?\d{1,9}", line, re.ASCII)]
    sane = [round(value, 1) for value in numbers if SANE_CELSIUS[0] < value < SANE_CELSIUS[1]]
    return max(sane, default=None)


def megahertz(text: str) -> int | None:
    """MHz from cpufreq's kHz."""
    khz = integer(text)
    return khz // 1000 if khz else None


def throttled(text: str) -> Throttled | None:
    """The flags of "throttled=0x50005" (vcgencmd) or "50005" (the firmware's file, hexadecimal)."""
    found = re.fullmatch(r"\s*(?:throttled=)?(?:0x)?([0-9a-fA-F]{1,8})\s*", text)
    if not found:
        return None
    value = int(found[1], 16)
    now, since_boot = (
        tuple(name for index, name in enumerate(THROTTLE_BITS) if value >> (shift + index) & 1)
        for shift in (0, SINCE_BOOT)
    )
    return Throttled(now, since_boot)


def cpu(text: str) -> str | None:
    """The names of the cores, from the lines "CPU part" or "model name" of /proc/cpuinfo."""
    found = []
    for key, value in re.findall(r"^(CPU part|model name)\s*:\s*(.+)$", text, re.MULTILINE):
        part = re.fullmatch(r"0x([0-9a-f]{1,4})", value.strip())
        if key == "model name" or part is None:
            found.append(("", printable(value, 80)))
        else:
            found.append((value, CPU_PARTS.get(int(part[1], 16), f"ARM part {value.strip()}")))
    parts = [name for part, name in found if part] or [name for _, name in found]  # 32-bit kernels give both
    return " + ".join(dict.fromkeys(parts)) or None


def cpu_features(text: str) -> tuple[str, ...] | None:
    """The words after "Features :" (ARM) or "flags :" (x86)."""
    return names(text.partition(":")[2])


def release(text: str) -> str | None:
    """The release `current` points to; empty for "none"; None when it points elsewhere."""
    return "" if text.strip() == "none" else linked(text.strip()) or None


def path(text: str) -> str | None:
    """An absolute path; empty for "none"."""
    if text.strip() == "none":
        return ""
    return printable(text, 300) if text.startswith("/") else None


def openssh(text: str) -> Version | None:
    """(9, 2) from "OpenSSH_9.2p1 Debian-2+deb12u3"; None for other servers."""
    found = re.match(r"OpenSSH_(\d\S{0,8})", text, re.ASCII)
    return version_of(found[1]) if found else None

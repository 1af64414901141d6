"""What is true of a device, as data: one command and one parser for each fact.

A command is POSIX sh for dash and busybox, gets edgeferry's folder as `$1`, prints its fact on stdout and may
fail: a fact nobody could read is absent, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgeferry_deploy import readings
from edgeferry_deploy.commands import Argv, script
from edgeferry_deploy.fact_types import Clock, Facts

__all__ = ["FACTS", "Clock", "Fact", "Facts", "command", "parse_reply"]

MARK_LENGTH = 32  # hexadecimal digits: no file on the device can contain a mark it was not told

# Python 3.4 and newer; an older one prints nothing and is no Python for us.
PYTHON = (
    "import importlib.util as u, struct, sys\n"
    'm = "venv ensurepip pip numpy cv2 picamera2 ai_edge_litert tflite_runtime".split()\n'
    'v = ".".join(map(str, sys.version_info[:3]))\n'
    'print("%s\\t%d\\t%s" % (v, struct.calcsize("P") * 8, " ".join(n for n in m if u.find_spec(n))))'
)

# Each section is a command of its own with a deadline, an output limit and an end: what hangs, floods or is
# missing costs its own fact only.  `timeout -t` is busybox before 1.30.  busybox ends the child alone, and a
# grandchild would hold the pipe open: so a session for each, whose group ends itself when it is told to.
PROBE = r"""
set -u
export LC_ALL=C
mark=$1 root=$2
shift 2
case $root in "~/"*) root=$HOME/${root#"~/"} ;; esac
if command -v setsid >/dev/null; then last="kill -9 0"; else last=:; setsid() { "$@"; }; fi
if timeout 5 true 2>/dev/null; then limited() { setsid timeout "$@"; }
elif timeout -t 5 true 2>/dev/null; then limited() { setsid timeout -t "$@"; }
else limited() { shift; "$@"; }; fi
if printf x | head -c 1 >/dev/null 2>&1; then bounded() { head -c "$1"; }
else bounded() { cat; }; fi
run='trap "$1" TERM; sh -c "$2" edgeferry-fact "$3" & wait'
while [ $# -ge 4 ]; do
  printf '\n%s %s\n' "$mark" "$1"
  limited "$2" sh -c "$run" edgeferry-limit "$last" "$4" "$root" </dev/null 2>/dev/null | bounded "$3"
  shift 4
done
printf '\n%s end\n' "$mark"
"""


@dataclass(frozen=True)
class Fact:
    """How to read one fact.

    Attributes:
        name: the field of `Facts`.
        command: POSIX sh.
        parse: text to value; None when the text does not tell.
        seconds: deadline of the command.
        limit: bytes of output that are kept.
    """

    name: str
    command: str
    parse: Callable[[str], Any]
    seconds: int = 5
    limit: int = 4096


MAY_OPEN = '[ -r "$f" ] && [ -w "$f" ] && a=yes || a=no; '
HAS_SYSTEMD = "[ -d /run/systemd/system ] && "

FACTS = (
    Fact("model", "cat /proc/device-tree/model || cat /sys/class/dmi/id/product_name", readings.words_of),
    Fact("arch", "uname -m", readings.machine),
    Fact("kernel", "uname -r", readings.words_of),
    Fact("userland_bits", "getconf LONG_BIT || head -c 5 /bin/sh | od -b", readings.bits),
    Fact("libc", "getconf GNU_LIBC_VERSION || { ldd --version; ls /lib/ld-musl-*; } 2>&1", readings.libc),
    Fact("distribution", "cat /etc/os-release || cat /usr/lib/os-release", readings.distribution),
    Fact(
        "pythons",
        'c="' + PYTHON.replace("\\", "\\\\").replace('"', '\\"') + '"\n'
        'IFS=:; set -f; set -- "$1/venv/bin" $PATH /usr/local/bin /usr/bin; set +f; seen=:\n'
        'for d; do for p in "$d"/python3 "$d"/python3.[0-9] "$d"/python3.[0-9][0-9]; do\n'
        '[ -x "$p" ] && [ ! -d "$p" ] || continue\n'
        'r=$p; [ -e "$d/../pyvenv.cfg" ] && r=$d || r=$(readlink -f "$p") || r=$p\n'
        'case $seen in *":$r:"*) continue ;; esac; seen=$seen$r:\n'
        'printf "%s\\t%s\\n" "$p" "$("$p" -I -c "$c" | head -n 1)"; done; done',
        readings.pythons,
        seconds=30,
        limit=8192,
    ),
    Fact("cpu", 'grep -E "^(CPU part|model name)" /proc/cpuinfo | sort -u', readings.cpu),
    Fact("cores", "getconf _NPROCESSORS_ONLN || nproc || grep -c ^processor /proc/cpuinfo", readings.integer),
    Fact("max_mhz", "cat /sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", readings.megahertz),
    Fact("cpu_features", 'grep -m 1 -E "^(Features|flags)" /proc/cpuinfo', readings.cpu_features),
    Fact("memory", "cat /proc/meminfo", readings.memory),
    Fact(
        "disk",
        'b=$1; while [ ! -e "$b" ]; do b=${b%/*}; [ -n "$b" ] || b=/; done; echo "$b"\n'
        '[ -w "$b" ] && echo writable || echo unwritable\n'
        'echo "blocks $(df -Pk "$b" | tail -n 1)"; echo "inodes $(df -Pi "$b" | tail -n 1)"; cat /proc/mounts',
        readings.disk,
        limit=16384,
    ),
    Fact("system_root", 'grep " / " /proc/mounts', readings.system_root),
    Fact(
        "cameras",
        "for d in /sys/class/video4linux/video*; do f=/dev/${d##*/}; "
        '[ -e "$f" ] || continue; ' + MAY_OPEN + 'printf "%s\\t%s\\t%s\\n" "$f" "$a" "$(cat "$d/name")"; done',
        readings.cameras,
    ),
    Fact(
        "camera_programs",
        "for p in rpicam-hello libcamera-hello v4l2-ctl; do command -v $p >/dev/null && echo $p; done",
        readings.listing,
    ),
    Fact(
        "accelerators",
        "for d in /sys/bus/usb/devices/*; do read -r v <$d/idVendor && read -r p <$d/idProduct || continue\n"
        'f=/dev/bus/usb/$(printf %03d/%03d "$(cat $d/busnum)" "$(cat $d/devnum)"); '
        + MAY_OPEN
        + 'case $v:$p in 1a6e:089a|18d1:9302) printf "%s\\t%s\\n" "$v:$p" $a ;; esac; done\n'
        'for f in /dev/apex_*; do [ -e "$f" ] || continue; ' + MAY_OPEN + 'printf "%s\\t%s\\n" "$f" $a; done',
        readings.accelerators,
    ),
    Fact(
        "edgetpu_library",
        "for f in /usr/lib/*/libedgetpu.so.1 /usr/lib/libedgetpu.so.1 /usr/local/lib/libedgetpu.so.1; do "
        '[ -e "$f" ] && echo "$f" && exit; done; echo none',
        readings.path,
    ),
    Fact("user", "id -un", readings.login),
    Fact("groups", "id -Gn", readings.names),
    Fact(
        "sudo",
        '[ "$(id -u)" = 0 ] && echo yes && exit; '
        "command -v sudo >/dev/null && sudo -n true && echo yes || echo no",
        readings.yes_no,
    ),
    Fact("init", "cat /proc/1/comm", readings.words_of),
    Fact("systemd", HAS_SYSTEMD + "systemctl --version | head -n 1", readings.systemd),
    Fact(
        "user_manager",
        HAS_SYSTEMD + "XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)} systemctl --user is-system-running",
        readings.words_of,
    ),
    Fact(
        "linger",
        HAS_SYSTEMD + 'if [ -e "/var/lib/systemd/linger/$(id -un)" ]; then echo yes; else echo no; fi',
        readings.yes_no,
    ),
    Fact("temperature_c", "cat /sys/class/thermal/thermal_zone*/temp", readings.temperature),
    Fact("governor", "cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", readings.words_of),
    Fact(
        "throttled",
        "cat /sys/bus/platform/drivers/raspberrypi-firmware/*firmware/get_throttled || vcgencmd get_throttled",
        readings.throttled,
    ),
    Fact(
        "time_synchronised",
        "timedatectl show -p NTPSynchronized || { [ -e /run/systemd/timesync/synchronized ] && echo yes; }",
        readings.yes_no,
    ),
    Fact("openssh", "ssh -V 2>&1", readings.openssh),
    Fact("release", 'if [ -L "$1/current" ]; then readlink "$1/current"; else echo none; fi', readings.release),
)

# Read first and last: the device's own time between the two tells how much of the round trip was the link.
CLOCK = "date +%s.%N; cat /proc/uptime"
TICK = 0.01  # seconds: what /proc/uptime counts in
SECTIONS = (("began", CLOCK), *((fact.name, fact.command) for fact in FACTS), ("ended", CLOCK))


def command(mark: str, root: str) -> Argv:
    """Look at a device: one script, one round trip, nothing written.

    Args:
        mark: a nonce of MARK_LENGTH hexadecimal digits that separates the answers.
        root: edgeferry's folder there, absolute or below `~`.
    """
    limits = {fact.name: (str(fact.seconds), str(fact.limit)) for fact in FACTS}
    words = [word for name, text in SECTIONS for word in (name, *limits.get(name, ("5", "4096")), text)]
    return script("probe", PROBE, mark, root, *words)


def parse_reply(raw: bytes, mark: str, device: str, asked: float, answered: float) -> Facts:
    """The facts in a reply.

    Args:
        asked, answered: this machine's clock, in seconds, around the round trip.

    Raises:
        ValueError: it is no reply of this command; says why.
    """
    found = sections(raw, mark)
    values = {fact.name: fact.parse(found[fact.name]) for fact in FACTS if fact.name in found}
    return Facts(device=device, clock=clock(found, asked, answered), **values)


def sections(raw: bytes, mark: str) -> dict[str, str]:
    """The answers by name; what a login shell printed before the first is dropped.

    Raises:
        ValueError: there is no mark, or the last one is missing.
    """
    _, first, rest = raw.decode("utf-8", errors="replace").partition(f"{mark} ")
    if not first:
        raise ValueError("does not begin as it should")
    found: dict[str, str] = {}
    for part in rest.split(f"\n{mark} "):
        name, _, text = part.partition("\n")
        found.setdefault(name.strip(), text)
    if "end" not in found:
        raise ValueError("breaks off")
    return found


def clock(found: Mapping[str, str], asked: float, answered: float) -> Clock | None:
    """The device's clock against this one's: its first reading lies between `asked` and the latest start."""
    began, first = moment(found.get("began", ""))
    _, last = moment(found.get("ended", ""))
    if began is None:
        return None
    # Without an uptime all of the round trip might have been the link: less sure, not wrong.
    known = last - first - TICK if first is not None and last is not None else 0.0
    busy = min(max(known, 0.0), answered - asked)
    resolution = 0.0 if began % 1 else 0.5  # a date that knows no %N cuts the fraction off
    half = (answered - asked - busy) / 2
    return Clock(round(began + resolution - asked - half, 3), round(half + resolution, 3))


def moment(text: str) -> tuple[float | None, float | None]:
    """Seconds since 1970 and seconds since boot, of what CLOCK printed."""
    date, _, rest = text.partition("\n")
    return number(date), number(rest.split(" ")[0])


def number(text: str) -> float | None:
    """A positive decimal at the text's beginning; `1700000000.%N` and `1700000000.N` are whole seconds."""
    digits, _, fraction = text.strip().partition(".")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 12):
        return None
    fraction = fraction[:9] if fraction.isascii() and fraction.isdigit() else "0"
    return float(f"{digits}.{fraction}")

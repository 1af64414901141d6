"""The doctor's rules as data: a fact that stands in the way, in words, and the command that removes it.

A rule says nothing about a fact that is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgeferry_deploy.errors import DeviceUnfitError
from edgeferry_deploy.fact_types import Accelerator, Facts
from edgeferry_deploy.profile_draft import interpreter_for

__all__ = ["RULES", "Rule"]

# What is little, hot or late is a choice unless a source is named.
DISK_NEEDED_MB, DISK_WANTED_MB = 100, 500  # a release and its log; and an environment of numpy, LiteRT and OpenCV
INODES_WANTED = 5000  # such an environment has some thousand files
RAM_WANTED_MB = 150  # Python, numpy, OpenCV and an interpreter with one model
HOT_C = 80.0  # the firmware throttles from here on (raspberrypi/documentation)
CLOCK_S = 60.0
OLDEST_OPENSSH = (7, 2)  # before it RSA keys are used with SHA-1 only


@dataclass(frozen=True)
class Rule:
    """A finding that is made when `what` says something; `{user}` and such in the remedy are filled in."""

    severity: str
    code: str
    what: Callable[[Facts], str | None]
    remedy: str


def no_python(facts: Facts) -> str | None:
    if facts.pythons is None or any(python.version >= (3, 7) for python in facts.pythons):
        return None
    newest = ".".join(map(str, facts.pythons[0].version)) if facts.pythons else ""
    return f"the newest Python is {newest}; the runtime needs 3.7" if newest else "there is no python3"


def no_wheel(facts: Facts) -> str | None:
    if no_python(facts) or facts.libc is None or not facts.pythons or facts.userland_arch is None:
        return None
    try:
        interpreter_for(facts)
    except DeviceUnfitError as error:
        return error.message
    return None


def no_venv(facts: Facts) -> str | None:
    usable = [python for python in facts.pythons or () if python.version >= (3, 7)]
    if not usable or any({"venv", "ensurepip"} <= set(python.modules) for python in usable):
        return None
    return "no Python can make a virtual environment: venv or ensurepip is missing"


def narrow_userland(facts: Facts) -> str | None:
    wide = facts.arch in ("aarch64", "x86_64") and facts.userland_bits == 32
    return f"the kernel is 64-bit ({facts.arch}), but the programs are 32-bit" if wide else None


def camera_closed(facts: Facts) -> str | None:
    closed = [camera.device for camera in facts.real_cameras if not camera.openable]
    # Read from the group list and not from the device alone: somebody may have closed it for another reason.
    if not closed or facts.groups is None or "video" in facts.groups:
        return None
    return f"{facts.user or 'the user'} is not in group video and cannot open {', '.join(closed)}"


def camera_refused(facts: Facts) -> str | None:
    closed = [camera.device for camera in facts.real_cameras if not camera.openable]
    inside = facts.groups is not None and "video" in facts.groups
    return (
        f"{', '.join(closed)} cannot be opened, although the user is in group video" if closed and inside else None
    )


def no_camera(facts: Facts) -> str | None:
    return None if facts.cameras is None or facts.real_cameras else "no camera was found"


def closed_edgetpus(facts: Facts, kind: str) -> list[Accelerator]:
    return [one for one in facts.accelerators or () if one.kind == kind and not one.openable]


def stick_closed(facts: Facts) -> str | None:
    closed = closed_edgetpus(facts, "edgetpu-usb")
    if not closed or "plugdev" in (facts.groups or ()):
        return None
    return f"the user is not in group plugdev and cannot open the Edge TPU stick ({closed[0].id})"


def stick_without_rule(facts: Facts) -> str | None:
    closed = closed_edgetpus(facts, "edgetpu-usb")
    inside = "plugdev" in (facts.groups or ())
    return "the Edge TPU stick is closed to group plugdev: its udev rule is missing" if closed and inside else None


def apex_closed(facts: Facts) -> str | None:
    closed = closed_edgetpus(facts, "edgetpu-pci")
    return f"the user cannot open {closed[0].id}" if closed else None


def no_edgetpu_library(facts: Facts) -> str | None:
    missing = facts.accelerators and facts.edgetpu_library == ""
    return "an Edge TPU is there, but libedgetpu.so.1 was not found" if missing else None


def throttling(name: str, *, now: bool) -> Callable[[Facts], str | None]:
    """The rule for one flag of get_throttled; since boot only when it is not so now."""

    def what(facts: Facts) -> str | None:
        if facts.throttled is None:
            return None
        if now:
            return f"{name} now" if name in facts.throttled.now else None
        past = name in facts.throttled.since_boot and name not in facts.throttled.now
        return f"{name} since the last boot" if past else None

    return what


def hot(facts: Facts) -> str | None:
    return f"it is at {facts.temperature_c} C" if (facts.temperature_c or 0.0) >= HOT_C else None


def powersave(facts: Facts) -> str | None:
    return "the governor powersave holds the CPU at its lowest clock" if facts.governor == "powersave" else None


def disk_full(facts: Facts) -> str | None:
    free = facts.disk.free_mb if facts.disk else None
    return (
        f"{free} MiB are free at {facts.disk.path}"
        if facts.disk and free is not None and free < DISK_NEEDED_MB
        else None
    )


def disk_low(facts: Facts) -> str | None:
    free = facts.disk.free_mb if facts.disk else None
    if facts.disk is None or free is None or not DISK_NEEDED_MB <= free < DISK_WANTED_MB:
        return None
    return f"{free} MiB are free at {facts.disk.path}; an environment with OpenCV takes some hundred"


def inodes_low(facts: Facts) -> str | None:
    free = facts.disk.free_inodes if facts.disk else None
    return f"{free} more files can be made there" if free is not None and free < INODES_WANTED else None


def read_only(facts: Facts) -> str | None:
    mounted = facts.disk and facts.disk.mount and facts.disk.mount.read_only
    return f"the file system of {facts.disk.path} is read-only" if facts.disk and mounted else None


def unwritable(facts: Facts) -> str | None:
    if facts.disk is None or facts.disk.writable or read_only(facts):
        return None
    return f"{facts.user or 'the user'} cannot write to {facts.disk.path}"


def forgetful(facts: Facts) -> str | None:
    overlay = facts.system_root is not None and facts.system_root.filesystem in ("overlay", "overlayroot", "aufs")
    here = facts.disk is None or facts.disk.mount is None or facts.disk.mount == facts.system_root
    return "the system lies in an overlay: what is deployed is gone after a reboot" if overlay and here else None


def ram_low(facts: Facts) -> str | None:
    free = facts.memory.available_mb if facts.memory else None
    return f"{free} MiB of memory are available" if free is not None and free < RAM_WANTED_MB else None


def clock_off(facts: Facts) -> str | None:
    clock = facts.clock
    # Only what is off beyond the measurement's own doubt.
    if clock is None or abs(clock.skew_s) - clock.uncertainty_s <= CLOCK_S:
        return None
    return f"its clock is {abs(clock.skew_s):.0f} s {'ahead of' if clock.skew_s > 0 else 'behind'} this machine's"


def clock_free(facts: Facts) -> str | None:
    return "its clock is not synchronised" if facts.time_synchronised is False and not clock_off(facts) else None


def no_systemd(facts: Facts) -> str | None:
    return (
        f"its init is {facts.init}, not systemd"
        if facts.init not in (None, "systemd") and facts.systemd is None
        else None
    )


def no_linger(facts: Facts) -> str | None:
    if facts.linger is not False or facts.user == "root":
        return None
    return f"services of {facts.user or 'the user'} end at logout and do not start at boot"


def no_sudo(facts: Facts) -> str | None:
    return "sudo asks for a password, or is not there" if facts.sudo is False else None


def openssh_old(facts: Facts) -> str | None:
    if facts.openssh is None or facts.openssh >= OLDEST_OPENSSH:
        return None
    return f"OpenSSH {'.'.join(map(str, facts.openssh))} signs with RSA and SHA-1 only"


SUPPLY = "use the board's own supply and a short cable; power hungry sticks through a powered hub"
COOLING = "give it a heat sink or a fan, or fewer frames a second"
RULES = (
    Rule("error", "no-python", no_python, "sudo apt install python3 python3-venv"),
    Rule("error", "no-wheel", no_wheel, "install a 64-bit system with Python 3.9 to 3.14 and glibc 2.27 or newer"),
    Rule("error", "camera-group", camera_closed, "sudo usermod -aG video {user}    # then log in again"),
    Rule(
        "error",
        "camera-closed",
        camera_refused,
        "ls -l /dev/video*    # and look for the rule in /etc/udev/rules.d",
    ),
    Rule("error", "edgetpu-group", stick_closed, "sudo usermod -aG plugdev {user}    # then log in again"),
    Rule(
        "error", "edgetpu-rule", stick_without_rule, "sudo apt install libedgetpu1-std    # then plug it in again"
    ),
    Rule("error", "apex-group", apex_closed, "sudo usermod -aG apex {user}    # then log in again"),
    Rule("error", "edgetpu-library", no_edgetpu_library, "sudo apt install libedgetpu1-std"),
    Rule("error", "undervoltage", throttling("undervoltage", now=True), SUPPLY),
    Rule("error", "read-only", read_only, "sudo mount -o remount,rw /    # or --root on another file system"),
    Rule(
        "error",
        "root-closed",
        unwritable,
        "sudo install -d -o {user} /opt/edgeferry    # then --root /opt/edgeferry",
    ),
    Rule("error", "disk-full", disk_full, "sudo apt clean; du -xh / 2>/dev/null | sort -h | tail"),
    Rule("warning", "disk-low", disk_low, "sudo apt clean; du -xh / 2>/dev/null | sort -h | tail"),
    Rule("warning", "inodes-low", inodes_low, "remove folders with many small files"),
    Rule("warning", "overlay", forgetful, "sudo raspi-config nonint disable_overlayfs && sudo reboot"),
    Rule(
        "warning",
        "ram-low",
        ram_low,
        "sudo systemctl set-default multi-user.target && sudo reboot    # no desktop",
    ),
    Rule("warning", "throttled", throttling("throttled", now=True), COOLING),
    Rule("warning", "frequency-capped", throttling("frequency capped", now=True), SUPPLY),
    Rule("warning", "soft-limit", throttling("soft temperature limit", now=True), COOLING),
    Rule("warning", "undervoltage-past", throttling("undervoltage", now=False), SUPPLY),
    Rule("note", "throttled-past", throttling("throttled", now=False), COOLING),
    Rule("warning", "hot", hot, COOLING),
    Rule(
        "warning",
        "powersave",
        powersave,
        "echo ondemand | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor    # until the next boot",
    ),
    Rule(
        "warning",
        "userland-32",
        narrow_userland,
        "install the 64-bit image: the faster interpreter has no 32-bit wheel",
    ),
    Rule("warning", "no-venv", no_venv, "sudo apt install python3-venv"),
    Rule("warning", "clock-off", clock_off, "sudo timedatectl set-ntp true"),
    Rule("note", "clock-free", clock_free, "sudo timedatectl set-ntp true"),
    Rule(
        "warning",
        "no-systemd",
        no_systemd,
        "nothing restarts a service there after a reboot: start it from its init",
    ),
    Rule("warning", "no-linger", no_linger, "sudo loginctl enable-linger {user}"),
    Rule("note", "no-sudo", no_sudo, "nothing, as long as services of the user will do"),
    Rule(
        "note", "no-camera", no_camera, "plug one in, then: v4l2-ctl --list-devices, rpicam-hello --list-cameras"
    ),
    Rule(
        "note",
        "openssh-old",
        openssh_old,
        "sudo apt install --only-upgrade openssh-server; log in with an ed25519 key",
    ),
)

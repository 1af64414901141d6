"""What may be known of a device: one type for each fact that is more than a text or a number."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = [
    "Accelerator",
    "Camera",
    "Clock",
    "Disk",
    "Distribution",
    "Facts",
    "Libc",
    "Memory",
    "Mount",
    "PythonFound",
    "Throttled",
    "Version",
]

Version = tuple[int, ...]


@dataclass(frozen=True)
class Libc:
    """The C library: kind "glibc" or "musl"; the version is empty when only the kind is known."""

    kind: str
    version: Version = ()


@dataclass(frozen=True)
class Distribution:
    """What os-release says; texts are empty where it says nothing."""

    id: str
    version: str = ""
    codename: str = ""
    name: str = ""


@dataclass(frozen=True)
class PythonFound:
    """A Python on the device.

    Attributes:
        bits: 32 or 64; 0 when it did not say.
        modules: which of venv, ensurepip, pip, numpy, cv2, picamera2, ai_edge_litert, tflite_runtime it can find.
    """

    path: str
    version: Version
    bits: int = 0
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Memory:
    """MiB; available is None on kernels before 3.14."""

    total_mb: int
    available_mb: int | None = None


@dataclass(frozen=True)
class Mount:
    """How a file system is mounted."""

    filesystem: str
    read_only: bool


@dataclass(frozen=True)
class Disk:
    """The file system edgeferry's folder is, or would be, on; None for what the device did not say.

    Attributes:
        path: the folder, or the nearest one above it that exists.
        writable: whether the user may write to `path`.
    """

    path: str
    writable: bool
    free_mb: int | None = None
    total_mb: int | None = None
    free_inodes: int | None = None
    mount: Mount | None = None


@dataclass(frozen=True)
class Camera:
    """A video device; `openable`: this user may read and write it.  `codec`: it is no camera."""

    device: str
    name: str
    openable: bool
    codec: bool = False


@dataclass(frozen=True)
class Accelerator:
    """An Edge TPU: kind "edgetpu-usb" or "edgetpu-pci", and its USB id or its device file."""

    kind: str
    id: str
    openable: bool


@dataclass(frozen=True)
class Throttled:
    """What holds, or has held, a Raspberry Pi's clock down; names as in THROTTLE_BITS."""

    now: tuple[str, ...]
    since_boot: tuple[str, ...]


@dataclass(frozen=True)
class Clock:
    """How far the device's clock is ahead of this machine's, and how far that figure may be off; seconds."""

    skew_s: float
    uncertainty_s: float


@dataclass(frozen=True)
class Facts:
    """What is known of a device; None is what it did not tell.

    Attributes:
        device: its name, as the user wrote it.
        arch: as `uname -m` prints it, which is the kernel's.
        userland_bits: 32 or 64, of the programs.
        max_mhz: highest clock the kernel may set.
        pythons: newest first, but the one in ROOT/venv before all.
        disk: where edgeferry's folder is.
        system_root: how `/` is mounted.
        camera_programs: which of rpicam-hello, libcamera-hello and v4l2-ctl there are.
        edgetpu_library: path of libedgetpu.so.1, empty when it was not found.
        sudo: whether sudo works without a password.
        systemd: its version.
        user_manager: what `systemctl --user is-system-running` says.
        linger: whether the user's services run without a login.
        release: the id of the current release, empty when there is none.
    """

    device: str
    model: str | None = None
    arch: str | None = None
    kernel: str | None = None
    userland_bits: int | None = None
    libc: Libc | None = None
    distribution: Distribution | None = None
    pythons: tuple[PythonFound, ...] | None = None
    cpu: str | None = None
    cores: int | None = None
    max_mhz: int | None = None
    cpu_features: tuple[str, ...] | None = None
    memory: Memory | None = None
    disk: Disk | None = None
    system_root: Mount | None = None
    cameras: tuple[Camera, ...] | None = None
    camera_programs: tuple[str, ...] | None = None
    accelerators: tuple[Accelerator, ...] | None = None
    edgetpu_library: str | None = None
    user: str | None = None
    groups: tuple[str, ...] | None = None
    sudo: bool | None = None
    init: str | None = None
    systemd: int | None = None
    user_manager: str | None = None
    linger: bool | None = None
    temperature_c: float | None = None
    governor: str | None = None
    throttled: Throttled | None = None
    clock: Clock | None = None
    time_synchronised: bool | None = None
    openssh: Version | None = None
    release: str | None = None

    @property
    def userland_arch(self) -> str | None:
        """The architecture of its programs, which decides about wheels: "armv7l" on a 32-bit Raspberry Pi OS."""
        narrow = {"aarch64": "armv7l", "x86_64": "i686"}
        return narrow.get(self.arch or "", self.arch) if self.userland_bits == 32 else self.arch

    @property
    def real_cameras(self) -> tuple[Camera, ...]:
        """Video devices that are no codecs."""
        return tuple(camera for camera in self.cameras or () if not camera.codec)

    def to_dict(self) -> dict[str, Any]:
        """What is known, for JSON, and the names of what is not; versions are texts."""
        known = {key: plain(value) for key, value in asdict(self).items() if value is not None}
        known["unknown"] = [field.name for field in fields(self) if getattr(self, field.name) is None]
        if self.userland_arch:
            known["userland_arch"] = self.userland_arch
        return known


def plain(value: Any) -> Any:
    """A value for JSON: versions as texts, nothing for what is not known."""
    if isinstance(value, dict):
        said = {
            key: item for key, item in value.items() if item is not None and not (key == "version" and not item)
        }
        return {key: plain(item) for key, item in said.items()}
    if isinstance(value, tuple) and value and all(isinstance(part, int) for part in value):
        return ".".join(map(str, value))
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value

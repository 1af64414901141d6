"""What a bundle asks of a device, held against what the device said, before anything is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeferry_deploy.errors import DeviceUnfitError
from edgeferry_deploy.survey import Python

if TYPE_CHECKING:
    from edgeferry_runtime.manifest import Requires

__all__ = ["require_fit", "unmet"]

# A 64-bit kernel with a 32-bit userland is a real Raspberry Pi: what its programs are is what counts.
NARROW = {"aarch64": "armv7l", "x86_64": "i686"}


def require_fit(requires: Requires, python: Python, device: str, bundle: str, *, any_arch: bool = False) -> None:
    """Refuse a device that cannot run a bundle; what the device did not say is left to its self-check.

    Args:
        any_arch: do not look at the architecture.

    Raises:
        DeviceUnfitError: says all that is missing, what the device has, and what to do about each.
    """
    found = unmet(requires, python, any_arch=any_arch)
    if found:
        raise DeviceUnfitError(
            f"{bundle} does not fit {device}: {'; '.join(what for what, _ in found)}; nothing was sent",
            "; ".join(remedy for _, remedy in found),
        )


def unmet(requires: Requires, python: Python, *, any_arch: bool = False) -> list[tuple[str, str]]:
    """Each requirement the device does not meet, and its remedy."""
    found = []
    narrow = python.bits == 32 and python.machine in NARROW
    arch = NARROW[python.machine] if narrow else python.machine
    if requires.arch and arch and arch not in requires.arch and not any_arch:
        is_what = f"{arch} (a 32-bit Python on {python.machine})" if narrow else arch
        found.append(
            (
                f"it was made for {' or '.join(requires.arch)}, the device is {is_what}",
                f"convert it with a profile for {arch}, or try it all the same with --any-arch",
            )
        )
    if requires.min_glibc and python.glibc and version(python.glibc) < version(requires.min_glibc):
        found.append(
            (
                f"it needs glibc {requires.min_glibc}, the device has {python.glibc}",
                "install a newer system on the device, or convert it with a profile for this one",
            )
        )
    if python.ram_mb and python.ram_mb < requires.min_ram_mb:
        found.append(
            (
                f"it needs {requires.min_ram_mb} MiB of RAM, the device has {python.ram_mb}",
                "convert a smaller model, or take a board with more memory",
            )
        )
    if requires.accelerator == "edgetpu" and python.edgetpu is False:
        found.append(
            (
                "it needs an Edge TPU, the device shows none on USB or PCI",
                "plug one in (`lsusb` shows 1a6e:089a or 18d1:9302), or convert it with a profile without one",
            )
        )
    return found


def version(text: str) -> tuple[int, ...]:
    """2.36 as (2, 36)."""
    return tuple(int(part) for part in text.split("."))

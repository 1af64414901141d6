"""Every failure of a deployment that has a name, as a branch of the contract's error tree.

    EdgeferryError
    ├── TargetError                    USER@HOST, --root or another argument is unusable   (UsageError: exit 2)
    └── DeployError                    exit code 1
        ├── ConnectError               no session with the device                         (ConnectionError)
        │   ├── UnreachableError       name, port or network does not answer
        │   ├── NotSshError            something answers, and it is not an SSH server
        │   └── LinkLostError          the session broke while it was in use
        ├── HostKeyError               the device did not prove who it is
        │   ├── UnknownHostKeyError    never enrolled
        │   ├── ChangedHostKeyError    enrolled with another key
        │   └── RevokedHostKeyError    the user's known_hosts revokes this key
        ├── AuthenticationError        the device refused the user                        (PermissionError)
        ├── CommandError               a command on the device failed                     (RuntimeError)
        │   ├── CommandTimeoutError    its deadline passed                                (TimeoutError)
        │   └── DeviceReplyError       its reply is not what the command prints           (ValueError)
        ├── DeviceUnfitError           the device lacks what a bundle needs
        │   └── SolveError             no set of wheels runs there                        (in wheels)
        ├── DownloadError              a wheel cannot be had                              (in wheel_cache; OSError)
        ├── TransferError              bytes did not arrive as they were sent             (OSError)
        ├── SelfCheckError             the goldens replayed on the device fail
        ├── HealthError                the service does not hold
        ├── NoReleaseError             there is no release to go to                       (LookupError)
        ├── LockedError                somebody else is changing the device
        ├── RemoveError                the root is not edgeferry's to remove
        ├── ConversionFailedError      `edgeferry up` could not convert the model
        └── DemoError                  a step of the demo failed that is no deployment

What a device says is shown only through `printable`: cut, decoded and without control characters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeferry_runtime.errors import EdgeferryError, UsageError

if TYPE_CHECKING:
    from edgeferry_deploy.health import Health
    from edgeferry_deploy.owner import Holder

__all__ = [
    "AuthenticationError",
    "ChangedHostKeyError",
    "CommandError",
    "CommandTimeoutError",
    "ConnectError",
    "ConversionFailedError",
    "DemoError",
    "DeployError",
    "DeviceReplyError",
    "DeviceUnfitError",
    "HealthError",
    "HostKeyError",
    "LinkLostError",
    "LockedError",
    "NoReleaseError",
    "NotSshError",
    "RemoveError",
    "RevokedHostKeyError",
    "SelfCheckError",
    "TargetError",
    "TransferError",
    "UnknownHostKeyError",
    "UnreachableError",
    "printable",
]


class TargetError(UsageError):
    """An argument names a target, a root or a key that cannot be used."""


class DeployError(EdgeferryError):
    """A deployment failed for a reason edgeferry can name."""


class ConnectError(DeployError, ConnectionError):
    """There is no session with the device."""


class UnreachableError(ConnectError):
    """The name does not resolve, the port refuses, or nothing answers in time."""


class NotSshError(ConnectError):
    """What answers on that port does not speak SSH."""


class LinkLostError(ConnectError):
    """The session broke while it was in use."""


class HostKeyError(DeployError):
    """The device did not prove that it is the one that was enrolled.

    Attributes:
        offered: SHA-256 fingerprint of the key the device showed.
        enrolled: fingerprints this workstation trusts for that address.
    """

    def __init__(
        self, message: str, remedy: str | None = None, *, offered: str = "", enrolled: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message, remedy)
        self.offered = offered
        self.enrolled = enrolled


class UnknownHostKeyError(HostKeyError):
    """The address was never enrolled."""


class ChangedHostKeyError(HostKeyError):
    """The address is enrolled with another key."""


class RevokedHostKeyError(HostKeyError):
    """The user's known_hosts marks the key as revoked."""


class AuthenticationError(DeployError, PermissionError):
    """The device knows none of the keys that were offered."""


class CommandError(DeployError, RuntimeError):
    """A command on the device failed.

    Attributes:
        command: the short name of the command.
        exit_status: what it returned; None when it did not end.
    """

    def __init__(
        self, message: str, remedy: str | None = None, *, command: str = "", exit_status: int | None = None
    ) -> None:
        super().__init__(message, remedy)
        self.command = command
        self.exit_status = exit_status


class CommandTimeoutError(CommandError, TimeoutError):
    """A command on the device did not end before its deadline."""


class DeviceReplyError(CommandError, ValueError):
    """A command on the device printed something it never prints."""


class DeviceUnfitError(DeployError):
    """The device lacks a Python, numpy, an interpreter, space or permission."""


class TransferError(DeployError, OSError):
    """Bytes did not arrive on the device as they were sent."""


class SelfCheckError(DeployError):
    """The device's own interpreter does not reproduce the bundle's goldens."""


class HealthError(DeployError):
    """A service did not hold over its window.

    Attributes:
        health: what was seen of it.
    """

    def __init__(self, message: str, remedy: str | None = None, *, health: Health | None = None) -> None:
        super().__init__(message, remedy)
        self.health = health


class NoReleaseError(DeployError, LookupError):
    """The release that was asked for is not on the device."""


class LockedError(DeployError):
    """Somebody else is changing the device.

    Attributes:
        holder: who, for what, since when and for how long; None when this run's own lease ended.
    """

    def __init__(self, message: str, remedy: str | None = None, *, holder: Holder | None = None) -> None:
        super().__init__(message, remedy)
        self.holder = holder


class RemoveError(DeployError):
    """The root is not edgeferry's to remove, or its owner said no."""


class ConversionFailedError(DeployError):
    """The conversion that `edgeferry up` began said no; in its own words."""


class DemoError(DeployError):
    """A step of the demo failed that is no deployment: its data, or the conversion's process."""


def printable(raw: bytes | str, limit: int = 400) -> str:
    """What a device said, safe to show: cut at `limit` characters, on one line, no control characters."""
    text = raw if isinstance(raw, str) else raw[: limit * 4].decode("utf-8", errors="replace")
    words = "".join(char if char.isprintable() else " " for char in text).split()
    line = " ".join(words)
    return line if len(line) <= limit else line[:limit] + "…"

"""The systemd unit that keeps a release running: its text, from what the profile allows; nothing is asked or sent.

Sources: systemd.service(5), systemd.exec(5), systemd.syntax(7) for quoting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeferry_deploy.target import DEFAULT_ROOT

__all__ = ["Limits", "limits_of", "system_unit", "unit_name", "user_unit"]


@dataclass(frozen=True)
class Limits:
    """What a service may take.

    Attributes:
        memory_mb: beyond it the kernel ends the service, not the board; 0 for no limit.
        watchdog_s: so long without a finished frame, and it is restarted.
        start_s: so long until its first result.
    """

    memory_mb: int = 0
    watchdog_s: int = 20
    start_s: int = 120

    @property
    def words(self) -> str:
        """For the supervisor: watchdog and start, in seconds."""
        return f"{self.watchdog_s} {self.start_s}"


def limits_of(profile: Mapping[str, Any], start_s: int = 120) -> Limits:
    """The limits in a manifest's profile; what it does not say, or says wrongly, stays as it is by default."""
    values = profile.get("values")
    service = values.get("service") if isinstance(values, Mapping) else None
    found = service if isinstance(service, Mapping) else {}
    memory, watchdog = found.get("memory_max_mb"), found.get("watchdog_s")
    return Limits(
        memory_mb=memory if isinstance(memory, int) and 0 < memory < 1 << 20 else 0,
        watchdog_s=watchdog if isinstance(watchdog, int) and 0 < watchdog < 3600 else Limits.watchdog_s,
        start_s=start_s,
    )


def unit_name(root: str) -> str:
    """`edgeferry` for the default root; other roots have their own, so that two can live on one board."""
    if root.endswith(DEFAULT_ROOT.removeprefix("~")):
        return "edgeferry"
    return f"edgeferry-{hashlib.sha256(root.encode()).hexdigest()[:8]}"


UNIT = """\
# Written by edgeferry; the next push writes it again.
# root {root}
[Unit]
Description=edgeferry camera loop
Documentation=man:systemd.service(5)
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart=/bin/sh {control} start {quoted}
WorkingDirectory={directory}
RuntimeDirectory={unit}
RuntimeDirectoryPreserve=restart
Restart=always
RestartSec=2
RestartPreventExitStatus=77
SuccessExitStatus=77
TimeoutStartSec={start_s}
TimeoutStopSec=15
WatchdogSec={watchdog_s}
{memory}{own}NoNewPrivileges=yes

[Install]
WantedBy={target}
"""

# The loop reads a camera and writes where its sinks point; all else of the system is none of its business.
SYSTEM = """\
User=@USER@
SupplementaryGroups=@GROUPS@
ProtectSystem=full
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
"""


def system_unit(root: str, limits: Limits) -> str:
    """For the system's manager; @USER@ and @GROUPS@ are filled in on the board."""
    # After nothing: what is not there yet is tried again, and a camera must not wait for a network.
    return unit(root, limits, SYSTEM, "multi-user.target")


def user_unit(root: str, limits: Limits) -> str:
    """For the user's own manager."""
    return unit(root, limits, "", "default.target")


def unit(root: str, limits: Limits, own: str, target: str) -> str:
    """The text of a unit."""
    return UNIT.format(
        root=root,
        control=quoted(f"{root}/service/control"),
        quoted=quoted(root),
        directory=root.replace("%", "%%"),  # takes no quotes
        unit=unit_name(root),
        start_s=limits.start_s,
        watchdog_s=limits.watchdog_s,
        memory=f"MemoryMax={limits.memory_mb}M\n" if limits.memory_mb else "",
        own=own,
        target=target,
    )


def quoted(text: str) -> str:
    """An argument of ExecStart: quotes, backslashes, % and $ mean something there."""
    for char, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        text = text.replace(char, escaped)
    return f'"{text}"'

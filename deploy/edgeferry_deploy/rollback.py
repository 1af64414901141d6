"""`edgeferry rollback`: the release before or one that is named, checked again on the device, then the switch."""

from __future__ import annotations

import difflib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeferry_deploy import upkeep
from edgeferry_deploy.activation import CHECK_SECONDS, Check, audit_line, check_release, switch_release
from edgeferry_deploy.console import Console
from edgeferry_deploy.errors import CommandError, DeployError, NoReleaseError, SelfCheckError, printable
from edgeferry_deploy.health import Bounds, Health
from edgeferry_deploy.lock import hold
from edgeferry_deploy.push import bounds_of, check_text
from edgeferry_deploy.release import Record, Stale
from edgeferry_deploy.service import Change, Service, activate, take_back_unproven
from edgeferry_deploy.survey import Survey, look
from edgeferry_deploy.target import DEFAULT_ROOT, check_root
from edgeferry_deploy.transport import Transport, checked

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["RollbackResult", "plan_rollback", "rollback", "run"]


@dataclass(frozen=True)
class RollbackResult:
    """What a rollback did.

    Attributes:
        release: what is current now.
        previous: what was current before, and what another rollback would go to.
        health: what the service did in its window; None when nothing is set to run there.
    """

    release: str
    previous: str
    root: str
    check: Check
    health: Health | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "release": self.release,
            "previous": self.previous,
            "root": self.root,
            "check": self.check.to_dict(),
            "health": self.health and self.health.to_dict(),
        }


def plan_rollback(survey: Survey, device: str, wanted: str = "") -> tuple[str, Record]:
    """The release to go to, and its record.

    Args:
        wanted: a release, or the beginning of its name or of its version; '' for the one before.

    Raises:
        NoReleaseError: there is none; says which others there are.
    """
    if wanted:
        return named(survey, device, wanted)
    release = survey.previous
    record = survey.releases.get(release)
    if release and release != survey.current and record is not None:
        return release, record
    what = f"'previous' is {release}, which is not usable" if release else "nothing was current before"
    others = ready(survey)
    raise NoReleaseError(
        f"{device} has no release to go back to: {what}",
        f"name one of those it still has: edgeferry rollback {device} {others[0]}"
        + (f" (also {', '.join(others[1:])})" if others[1:] else "")
        if others
        else "push the bundle you want",
    )


def named(survey: Survey, device: str, wanted: str) -> tuple[str, Record]:
    """The one release a person meant.

    Raises:
        NoReleaseError: none or several match, or it is current already.
    """
    wanted, others = printable(wanted, 80), ready(survey)
    names = [*others, *([survey.current] if survey.current else [])]
    found = [wanted] if wanted in names else [name for name in names if begins(name, wanted)]
    if len(found) > 1:
        raise NoReleaseError(f"'{wanted}' could be {', '.join(found)} on {device}", "type more of the name")
    if found == [survey.current]:
        raise NoReleaseError(f"{found[0]} is current on {device} already", "nothing to do")
    record = survey.releases.get(found[0]) if found else None
    if record is None:
        close = difflib.get_close_matches(wanted, others, 1, 0.6)
        kept = f"it keeps {', '.join(others)}" if others else "it keeps no other; push the bundle you want"
        raise NoReleaseError(
            f"{device} has no release '{wanted}'" + (f"; did you mean '{close[0]}'?" if close else ""), kept
        )
    return found[0], record


def begins(name: str, wanted: str) -> bool:
    """Whether a release's name or its version begins like this."""
    return name.startswith(wanted) or name.rpartition("-")[2].startswith(wanted)


def ready(survey: Survey) -> list[str]:
    """The releases a rollback can go to."""
    return [name for name, record in sorted(survey.releases.items()) if record and name != survey.current]


def rollback(
    transport: Transport,
    release: str = "",
    *,
    root: str = DEFAULT_ROOT,
    check_seconds: int = CHECK_SECONDS,
    reason: str = "",
    bounds: Bounds | None = None,
    console: Console | None = None,
) -> RollbackResult:
    """Go back to the release before, or to another one the device keeps.

    Args:
        release: the release to go to, or the beginning of its name or of its version.
        reason: why, for the device's audit log.
        bounds: what the service must stay within, where one runs.

    Raises:
        NoReleaseError: there is none.
        HealthError: its service does not hold; the release that was current is so again.
        LockedError: somebody else is changing the device.
        SelfCheckError: it no longer passes on the device; nothing changed.
        DeployError: anything else that has a name.
    """
    console = console or Console(quiet=True)
    survey = look(transport, check_root(root))
    if take_back_unproven(transport, survey):
        console.step(f"{survey.trial} was on trial and never proven: taken back", "warn")
        survey = look(transport, check_root(root))
    target, record = plan_rollback(survey, transport.name, release)
    before = survey.current
    with hold(transport, survey.root, f"roll back to {target}", expected=before) as lease:
        try:
            check = check_release(transport, survey.root, target, record.env, record.version, check_seconds)
        except (SelfCheckError, CommandError) as error:
            line = audit_line("rollback", target, before, f"refused: {error.message[:300]}", reason)
            with suppress(DeployError):  # what failed first is what the user has to hear
                checked(transport, upkeep.note(survey.root, line))
            raise
        console.step(check_text(check))
        health: Health | None = None
        service = Service(None, survey.manager or "none", bounds or Bounds(), limits=None)
        if service.wanted(survey):
            change = Change(target, before, record.python, None, False, Stale(), "rollback", reason)
            health = activate(transport, survey, change, service, lease, console)
        else:
            lease.settle()
            switch_release(
                transport,
                survey.root,
                target,
                expected=before,
                python=record.python,
                action="rollback",
                reason=reason,
                token=lease.token,
            )
            lease.given = True
    console.step(f"current is {target}; before: {before or 'nothing'}")
    return RollbackResult(target, before, survey.root, check, health)


def run(arguments: Namespace) -> int:
    """The command."""
    from edgeferry_deploy.connect import open_transport

    console = Console(quiet=arguments.json)
    with open_transport(arguments.target, arguments.identity) as transport:
        result = rollback(
            transport,
            arguments.release,
            root=arguments.root,
            check_seconds=arguments.check_seconds,
            reason=arguments.reason,
            bounds=bounds_of(arguments),
            console=console,
        )
    if arguments.json:
        console.result(result.to_dict())
    return 0

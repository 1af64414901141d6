"""`edgeferry rollback`: the release before, checked again on the device, then the same switch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeferry_deploy.activation import CHECK_SECONDS, Check, check_release, switch_release
from edgeferry_deploy.console import Console
from edgeferry_deploy.errors import NoReleaseError
from edgeferry_deploy.push import check_text
from edgeferry_deploy.release import Record
from edgeferry_deploy.survey import Survey, look
from edgeferry_deploy.target import DEFAULT_ROOT, check_root
from edgeferry_deploy.transport import Transport

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["RollbackResult", "plan_rollback", "rollback", "run"]


@dataclass(frozen=True)
class RollbackResult:
    """What a rollback did.

    Attributes:
        release: what is current now.
        previous: what was current before, and what another rollback would go to.
    """

    release: str
    previous: str
    root: str
    check: Check

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "release": self.release,
            "previous": self.previous,
            "root": self.root,
            "check": self.check.to_dict(),
        }


def plan_rollback(survey: Survey, device: str) -> tuple[str, Record]:
    """The release to go to, and its record.

    Raises:
        NoReleaseError: there is none; says which others there are.
    """
    release = survey.previous
    record = survey.releases.get(release)
    if release and release != survey.current and record is not None:
        return release, record
    others = [name for name in sorted(survey.releases) if name != survey.current]
    what = f"'previous' is {release}, which is not usable" if release else "nothing was current before"
    raise NoReleaseError(
        f"{device} has no release to go back to: {what}",
        f"push one of those it still has, nothing is sent again: {', '.join(others)}"
        if others
        else "push the bundle you want",
    )


def rollback(
    transport: Transport,
    *,
    root: str = DEFAULT_ROOT,
    check_seconds: int = CHECK_SECONDS,
    console: Console | None = None,
) -> RollbackResult:
    """Go back to the release before.

    Raises:
        NoReleaseError: there is none.
        SelfCheckError: it no longer passes on the device; nothing changed.
        DeployError: anything else that has a name.
    """
    console = console or Console(quiet=True)
    survey = look(transport, check_root(root))
    release, record = plan_rollback(survey, transport.name)
    check = check_release(transport, survey.root, release, record.env, record.version, check_seconds)
    console.step(check_text(check))
    switch_release(
        transport, survey.root, release, expected=survey.current, python=record.python, action="rollback"
    )
    console.step(f"current is {release}; before: {survey.current or 'nothing'}")
    return RollbackResult(release, survey.current, survey.root, check)


def run(arguments: Namespace) -> int:
    """The command."""
    from edgeferry_deploy.connect import open_transport

    console = Console(quiet=arguments.json)
    with open_transport(arguments.target, arguments.identity) as transport:
        result = rollback(transport, root=arguments.root, check_seconds=arguments.check_seconds, console=console)
    if arguments.json:
        console.result(result.to_dict())
    return 0

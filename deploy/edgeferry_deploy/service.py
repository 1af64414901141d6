"""A release in service: rollback armed, switched, restarted, watched over a window, then proven or taken back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from edgeferry_deploy import commands, control
from edgeferry_deploy.activation import audit_line, suffix
from edgeferry_deploy.console import Console
from edgeferry_deploy.errors import CommandError, ConnectError, DeployError, HealthError, printable
from edgeferry_deploy.health import DEADLINE_SECONDS, Bounds, Health, Sample, ask, watch
from edgeferry_deploy.lock import Lease
from edgeferry_deploy.release import Record, Stale
from edgeferry_deploy.service_setup import setup
from edgeferry_deploy.service_unit import Limits, system_unit, unit_name, user_unit
from edgeferry_deploy.survey import Survey, look
from edgeferry_deploy.transport import Transport, checked

__all__ = ["Change", "Service", "activate", "keep_running", "set_up", "take_back_unproven"]

RETURN = Bounds(window_s=3.0, start_s=90.0)  # how long the release before may take to run again


@dataclass(frozen=True)
class Service:
    """How a release is to run.

    Attributes:
        config: the run.json to send; None keeps the board's own.
        manager: who keeps it running: auto, system, user, supervised; none to switch without running anything.
        bounds: what it must stay within to be proven.
        limits: what its unit allows it; None leaves the unit as it is.
    """

    config: bytes | None = None
    manager: str = "auto"
    bounds: Bounds = field(default_factory=Bounds)
    limits: Limits | None = field(default_factory=Limits)

    def wanted(self, survey: Survey) -> bool:
        """Whether something is to run on that board."""
        return self.manager != "none" and (self.config is not None or bool(survey.config))

    def new_config(self, survey: Survey) -> bytes | None:
        """The run.json to send, when the board has another."""
        if self.config is None or hashlib.sha256(self.config).hexdigest() == survey.config:
            return None
        return self.config


@dataclass(frozen=True)
class Change:
    """What a trial is about.

    Attributes:
        before: the release that is current.
        record: the new release.json; None leaves it.
        created: the release is new, and goes when it is taken back.
        stale: what may go once it is proven.
        action: push, rollback or config, for the audit log.
    """

    release: str
    before: str
    python: str
    record: Record | None
    created: bool
    stale: Stale
    action: str
    reason: str = ""


def set_up(transport: Transport, survey: Survey, service: Service) -> None:
    """Have the board keep a service running: its script, its unit; one round trip, nothing is restarted.

    Raises:
        CommandError: it cannot; says what it needs.
    """
    if service.limits is None:
        return
    root, limits = survey.root, service.limits
    manager = survey.manager if service.manager == "auto" and survey.manager else service.manager
    units = system_unit(root, limits), user_unit(root, limits)
    checked(transport, setup(root, manager, unit_name(root), limits.words, *units))


def activate(
    transport: Transport, survey: Survey, change: Change, service: Service, lease: Lease, console: Console
) -> Health:
    """Switch to a release, restart the service and prove it; what does not hold is taken back.

    Raises:
        HealthError: it did not hold; what was there before is current and runs again.
        ConnectError: the link broke; the board goes back by itself.
        CommandError: the board could not; nothing changed.
    """
    root = survey.root
    config = service.new_config(survey)
    try:
        set_up(transport, survey, service)
        before = ask(transport, root)
        if config is not None:
            transport.upload([config], f"{root}/shared/run.json.new")
    except DeployError as error:
        discard(transport, root, change, error, lease)
        raise
    trial = f"{int(change.created)} {DEADLINE_SECONDS} {int(config is not None)}"
    record = change.record.to_json() if change.record else ""
    try:
        argv = commands.switch(
            root, change.release, change.before, suffix(), change.python, record, "", lease.token, trial
        )
        checked(transport, argv)
        with console.waiting(f"watching the service for {service.bounds.window_s:.0f} s") as tell:
            health, last = watch(
                transport, root, service.bounds,
                token=lease.token, trial=change.release, old_pid=before.pid, tell=hear(tell),
            )  # fmt: skip
    except ConnectError as error:
        raise type(error)(
            f"{error.message}; {change.release} was on trial: the board goes back to "
            f"{change.before or 'nothing'} by itself within {DEADLINE_SECONDS} s",
            error.remedy,
        ) from error
    except BaseException:  # Ctrl-C, too: nobody proves it any more
        with suppress(DeployError):
            checked(transport, control.revert(root, "the workstation gave up"))
        raise
    if not health.ok:
        raise taken_back(transport, root, change, health, last)
    prove(transport, root, change, health, lease)
    console.step(str(health))
    return health


def discard(transport: Transport, root: str, change: Change, error: DeployError, lease: Lease) -> None:
    """Remove a new release that never came to its trial, and say so in the audit log."""
    if not change.created:
        return
    result = f"refused: {error.message[:300]}"
    line = audit_line(change.action, change.release, change.before, result, change.reason)
    with suppress(DeployError):  # what failed first is what the user has to hear
        checked(transport, commands.discard(root, change.release, line, lease.token))


def hear(tell: Callable[[str], None]) -> Callable[[Health], None]:
    """What a person sees of a judgement on the way."""
    return lambda health: tell(str(health) if health.results else health.why)


def prove(transport: Transport, root: str, change: Change, health: Health, lease: Lease) -> None:
    """End the trial: from here on the board keeps the release."""
    lease.settle()
    record = replace(change.record, health=health.to_dict()).to_json() if change.record else ""
    line = audit_line(change.action, change.release, change.before, "switched", change.reason)
    argv = commands.commit(root, change.release, suffix(), record, line, lease.token)
    checked(transport, argv, change.stale.lines())
    lease.given = True


def taken_back(transport: Transport, root: str, change: Change, health: Health, last: Sample) -> HealthError:
    """Take an unproven release back, see what was there before run again, and say all of it."""
    said = printable(transport.run(control.log(root, 6)).stdout[-1500:], 600)
    try:
        checked(transport, control.revert(root, health.why[:200].translate(JSON_SAFE)))
        back = runs_again(transport, root, change, last)
    except DeployError as error:
        back = f"the board could not be told to go back ({error.message}); it does so by itself"
    what = "the new run.json" if change.action == "config" else change.release
    return HealthError(
        f"{what} does not hold on {transport.name}: {health.why}; {back}",
        (f"it said: {said}\n  " if said else "") + f"all it said: edgeferry logs {transport.name}",
        health=health,
    )


JSON_SAFE = str.maketrans({'"': "'", "\\": "/"})  # it becomes a text in the board's audit log


def runs_again(transport: Transport, root: str, change: Change, last: Sample) -> str:
    """Whether what was there before does its work again, in words."""
    if not change.before:
        return "nothing was current before, so nothing runs"
    if not look(transport, root).config:
        return "no run.json was there before, so nothing runs"
    found, _ = watch(transport, root, RETURN, old_pid=last.pid)
    back = "the one before is back" if change.action == "config" else f"{change.before} is current again"
    return f"{back} and " + ("runs" if found.ok else f"does not run either: {found.why}")


def keep_running(transport: Transport, survey: Survey, service: Service, console: Console) -> Health:
    """See that the service does its work; start it when it does not run at all.

    Raises:
        HealthError: it does not hold.
    """
    root = survey.root
    set_up(transport, survey, service)
    now = ask(transport, root)
    if now.active in ("failed", "stopped"):
        console.step("the service did not run: starting it", "warn")
        checked(transport, control.restart(root))
    with console.waiting(f"watching the service for {service.bounds.window_s:.0f} s") as tell:
        health, _ = watch(transport, root, service.bounds, tell=hear(tell))
    if not health.ok:
        said = printable(transport.run(control.log(root, 6)).stdout[-1500:], 600)
        raise HealthError(
            f"the service on {transport.name} does not hold: {health.why}",
            (f"it said: {said}\n  " if said else "") + f"all it said: edgeferry logs {transport.name}",
            health=health,
        )
    console.step(str(health))
    return health


def take_back_unproven(transport: Transport, survey: Survey) -> bool:
    """Take back what an earlier run left on trial; whether there was something."""
    if not survey.trial or survey.holder is not None:
        return False
    try:
        checked(transport, control.revert(survey.root, "found unproven by the next run"))
    except CommandError as error:
        raise CommandError(
            f"{survey.trial} on {transport.name} is on trial and cannot be taken back: {error.message}",
            error.remedy,
            command=error.command,
            exit_status=error.exit_status,
        ) from None
    return True

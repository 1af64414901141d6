"""`edgeferry push`: look, plan, send what is missing, assemble, prove on the device, switch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeferry_runtime.bundle import Bundle

from edgeferry_deploy import commands, upkeep
from edgeferry_deploy.activation import (
    CHECK_SECONDS,
    Check,
    audit_line,
    check_release,
    suffix,
    switch_release,
)
from edgeferry_deploy.console import Console, size_text
from edgeferry_deploy.errors import CommandError, DeployError, SelfCheckError
from edgeferry_deploy.lock import Lease, hold
from edgeferry_deploy.plan import KEEP, Plan, Preview
from edgeferry_deploy.prepare import Cargo, Options, installed_runtime, load, prepare, preview
from edgeferry_deploy.release import Blob, launcher_text, member_lines
from edgeferry_deploy.survey import Survey
from edgeferry_deploy.target import DEFAULT_ROOT, check_root, parse_target
from edgeferry_deploy.transfer import Sent, send_blobs
from edgeferry_deploy.transport import Transport, checked

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["KEEP", "PushResult", "preview", "push", "run"]


@dataclass(frozen=True)
class PushResult:
    """What a push did.

    Attributes:
        previous: the release a rollback would go to; empty when there is none.
        seconds: wall time by step.
    """

    release: str
    version: str
    previous: str
    root: str
    env: str
    python: str
    switched: bool
    bytes_sent: int
    blobs_sent: int
    blobs_total: int
    round_trips: int
    check: Check
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "check"}
        return {
            **plain,
            "check": self.check.to_dict(),
            "launcher": f"{self.root}/env/{self.env}/edgeferry-run",
            "bundle": f"{self.root}/releases/{self.release}",
        }


def push(
    bundle_path: str | Path,
    transport: Transport,
    *,
    root: str = DEFAULT_ROOT,
    python: str = "",
    keep: int = KEEP,
    check_seconds: int = CHECK_SECONDS,
    runtime_folder: str | Path | None = None,
    any_arch: bool = False,
    reason: str = "",
    console: Console | None = None,
) -> PushResult:
    """Carry a bundle to a device, prove it there and make it current.

    Args:
        bundle_path: a .ferry file or a folder with the same members.
        root: edgeferry's folder on the device, absolute or below `~`.
        python: the device's Python to use; by default ROOT/venv/bin/python3, then python3.
        keep: releases that stay on the device, at least the current and the one before.
        check_seconds: how long the device may take for its self-check.
        runtime_folder: the `edgeferry_runtime` package to send; by default the one installed here.
        any_arch: also send what was made for another architecture.
        reason: why, for the device's audit log.
        console: where steps are reported; by default nowhere.

    Raises:
        BundleError: the bundle cannot be trusted; nothing was sent.
        DeviceUnfitError: the device lacks something; nothing was sent.
        LockedError: somebody else is changing the device; nothing was sent.
        SelfCheckError: the device does not reproduce the goldens; the old release is untouched.
        DeployError: anything else that has a name.
    """
    console = console or Console(quiet=True)
    clock = Clock()
    folder = runtime_folder or installed_runtime()
    options = Options(root, python, keep, check_seconds, folder, any_arch, reason)
    with load(bundle_path, options) as cargo:
        size = sum(blob.size for blob in cargo.blobs)
        console.step(f"{cargo.release}: {len(cargo.blobs)} files, {size_text(size)}")
        with clock.step("look"):
            survey, plan, device_python = prepare(transport, cargo, options)
        version = ".".join(map(str, device_python.version))
        console.step(f"{transport.name}: Python {version} at {device_python.path}")
        for member in plan.corrupt:
            console.step(f"{member} is damaged on the device and is sent again", "warn")
        if plan.writes:
            with hold(transport, survey.root, f"push {cargo.release}", expected=survey.current) as lease:
                check, sent = carry(transport, survey, plan, cargo, options, clock, console, lease)
        else:
            sent = ()
            console.step(sent_text(plan, sent, len(cargo.blobs) + 1))
            check = proven(transport, survey.root, plan, options, clock, console)
    console.step(
        f"current is {plan.release}" + ("" if plan.switch else ", as before") + f"; done in {clock.total():.1f} s"
    )
    previous = plan.before if plan.before != plan.release else survey.previous
    if previous and previous != plan.release:
        console.step(f"back to {previous}: edgeferry rollback {transport.name}", "none")
    return PushResult(
        release=plan.release,
        version=plan.record.version,
        previous=previous,
        root=survey.root,
        env=plan.record.env,
        python=plan.record.python,
        switched=plan.switch,
        bytes_sent=sum(way.size for way in sent),
        blobs_sent=len(plan.uploads),
        blobs_total=len(cargo.blobs) + 1,
        round_trips=transport.round_trips,
        check=check,
        seconds={**clock.seconds, "total": round(clock.total(), 3)},
    )


def carry(
    transport: Transport,
    survey: Survey,
    plan: Plan,
    cargo: Cargo,
    options: Options,
    clock: Clock,
    console: Console,
    lease: Lease,
) -> tuple[Check, tuple[Sent, ...]]:
    """Everything that writes, as the owner of the lease: send, assemble, check, switch."""
    root = survey.root
    with clock.step("send"):
        sent = send(transport, root, plan, cargo.bundle, console)
    console.step(sent_text(plan, sent, len(cargo.blobs) + 1))
    lease.check()
    with clock.step("assemble"):
        assemble(transport, root, plan, cargo, lease.token)
    check = proven(transport, root, plan, options, clock, console)
    with clock.step("switch"):
        if plan.switch:
            lease.settle()
            switch_release(
                transport,
                root,
                plan.release,
                expected=plan.before,
                python=plan.record.python,
                action="push",
                record=replace(plan.record, check=check.to_dict()),
                stale=plan.stale,
                reason=options.reason,
                token=lease.token,
            )
            lease.given = True
    return check, sent


def send(transport: Transport, root: str, plan: Plan, bundle: Bundle, console: Console) -> tuple[Sent, ...]:
    """Send the planned uploads; how each went."""

    def read(blob: Blob) -> bytes:
        return blob.data if blob.data is not None else bundle.read(blob.member)

    with console.bar("sending", sum(upload.size for upload in plan.uploads)) as advance:
        return send_blobs(transport, root, plan.record.python, plan.uploads, read, advance)


def assemble(transport: Transport, root: str, plan: Plan, cargo: Cargo, token: str) -> None:
    """Make the release and its env out of blobs, or mend the release that is there."""
    if plan.assemble:
        env, python = plan.record.env, plan.record.python
        argv = commands.assemble(
            root, plan.release, suffix(), env, python, cargo.runtime.sha256, launcher_text(python), token
        )
        checked(transport, argv, member_lines(cargo.blobs), 120)
    if plan.repair:
        checked(transport, commands.repair(root, plan.release), member_lines(plan.repair), 120)


def proven(transport: Transport, root: str, plan: Plan, options: Options, clock: Clock, console: Console) -> Check:
    """Replay the goldens; a new release that fails is removed again, and the refusal is in the audit log.

    Raises:
        SelfCheckError, DeviceReplyError, CommandTimeoutError: as `check_release`.
    """
    record, release = plan.record, plan.release
    try:
        with clock.step("check"):
            check = check_release(transport, root, release, record.env, record.version, options.check_seconds)
    except (SelfCheckError, CommandError) as error:
        line = audit_line("push", release, plan.before, f"refused: {error.message[:300]}", options.reason)
        command = commands.discard(root, release, line) if plan.created else upkeep.note(root, line)
        with suppress(DeployError):  # what failed first is what the user has to hear
            checked(transport, command)
        raise
    console.step(check_text(check))
    return check


def sent_text(plan: Plan, sent: Sequence[Sent], total: int) -> str:
    """What went over the wire, in words."""
    if not plan.uploads:
        return f"all {total} files are there already"
    whole, size = sum(upload.size for upload in plan.uploads), size_text(sum(way.size for way in sent))
    if whole > sum(way.size for way in sent):
        size += f" for {size_text(whole)}"  # compressed, or as differences
    resumed = sum(upload.offset for upload in plan.uploads)
    extra = f", {size_text(resumed)} of a cut upload were there" if resumed else ""
    return f"sent {len(plan.uploads)} of {total} files, {size}{extra}"


def check_text(check: Check) -> str:
    """What the self-check said, in words."""
    figures = "; ".join(
        f"{output.name} {output.max_abs:.3g} off (allowed {output.max_abs_tolerance:.3g})"
        for output in check.outputs
    )
    return f"self-check: {check.frames} frames on {check.backend}, {check.variant}: {figures}"


class Clock:
    """Wall time by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step."""
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 3)

    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._started


def run(arguments: Namespace) -> int:
    """The command."""
    from edgeferry_deploy.connect import open_transport

    console = Console(quiet=arguments.json)
    parse_target(arguments.target)
    check_root(arguments.root)
    Bundle.open(arguments.bundle).close()  # a bad bundle is told before anybody is called
    choices = {
        name: getattr(arguments, name)
        for name in ("root", "python", "keep", "check_seconds", "any_arch", "reason")
    }
    found: Preview | PushResult
    with open_transport(arguments.target, arguments.identity) as transport:
        if arguments.verbose:
            console.step(transport.describe(), "none")
        if arguments.dry_run:
            found = preview(arguments.bundle, transport, **choices)
            for line in found.lines():
                console.step(line, "none")
        else:
            found = push(arguments.bundle, transport, console=console, **choices)
    if arguments.json:
        console.result(found.to_dict())
    return 0

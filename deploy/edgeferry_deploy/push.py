"""`edgeferry push`: look, plan, send what is missing, assemble, prove on the device, switch, watch it run."""

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
from edgeferry_deploy.environment import SLOWEST_CARD, Sources, check_sources, read_wheel
from edgeferry_deploy.errors import CommandError, DeployError, SelfCheckError
from edgeferry_deploy.health import Bounds, Health
from edgeferry_deploy.lock import Lease, hold
from edgeferry_deploy.plan import KEEP, Plan, Preview
from edgeferry_deploy.prepare import Cargo, Options, installed_runtime, load, prepare, preview
from edgeferry_deploy.release import Blob, member_lines
from edgeferry_deploy.service import Change, Service, activate, keep_running, take_back_unproven
from edgeferry_deploy.service_unit import limits_of
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
        health: what the service did in its window; None when nothing is set to run there.
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
    health: Health | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("check", "health")
        }
        return {
            **plain,
            "check": self.check.to_dict(),
            "health": self.health and self.health.to_dict(),
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
    env: str = "auto",
    offline: str | Path | None = None,
    config: bytes | None = None,
    manager: str = "auto",
    bounds: Bounds | None = None,
    console: Console | None = None,
) -> PushResult:
    """Carry a bundle to a device, prove it there, make it current, and watch its service.

    Args:
        bundle_path: a .ferry file or a folder with the same members.
        root: edgeferry's folder on the device, absolute or below `~`.
        python: the device's Python to use; by default ROOT/venv/bin/python3, then python3.
        keep: releases that stay on the device, at least the current and the one before.
        check_seconds: how long the device may take for its self-check.
        runtime_folder: the `edgeferry_runtime` package to send; by default the one installed here.
        any_arch: also send what was made for another architecture.
        reason: why, for the device's audit log.
        env: auto (wheels where its Python lacks numpy or an interpreter), wheels, or board (never wheels).
        offline: a folder of `edgeferry wheelhouse` to take the wheels from; by default the cache and the index.
        config: the run.json that says what to run; None keeps the device's own.  Without one nothing runs.
        manager: who keeps the service running: auto, system, user, supervised; none to switch only.
        bounds: what the service must stay within before the release is kept.
        console: where steps are reported; by default nowhere.

    Raises:
        BundleError: the bundle cannot be trusted; nothing was sent.
        DeviceUnfitError: the device lacks something; nothing was sent.
        LockedError: somebody else is changing the device; nothing was sent.
        SelfCheckError: the device does not reproduce the goldens; the old release is untouched.
        HealthError: the service does not hold; the old release is current and runs again.
        DeployError: anything else that has a name.
    """
    console = console or Console(quiet=True)
    clock = Clock()
    folder = runtime_folder or installed_runtime()
    options = Options(root, python, keep, check_seconds, folder, any_arch, reason, env, offline)
    check_sources(options.sources)
    with load(bundle_path, options) as cargo:
        size = sum(blob.size for blob in cargo.blobs)
        console.step(f"{cargo.release}: {len(cargo.blobs)} files, {size_text(size)}")
        service = service_of(cargo, config, manager, bounds)
        with clock.step("look"):
            survey, plan, device_python = prepare(transport, cargo, options, console)
            if take_back_unproven(transport, survey):
                console.step(f"{survey.trial} was on trial and never proven: taken back", "warn")
                survey, plan, device_python = prepare(transport, cargo, options, console)
        version = ".".join(map(str, device_python.version))
        console.step(f"{transport.name}: Python {version} at {device_python.path}")
        for member in plan.corrupt:
            console.step(f"{member} is damaged on the device and is sent again", "warn")
        health: Health | None = None
        if plan.writes or (service.wanted(survey) and service.new_config(survey)):
            with hold(transport, survey.root, f"push {cargo.release}", expected=survey.current) as lease:
                check, sent, health = carry(
                    transport, survey, plan, cargo, options, service, clock, console, lease
                )
        else:
            sent = ()
            console.step(sent_text(plan, sent, len(cargo.blobs) + len(plan.environment.blobs)))
            check = proven(transport, survey.root, plan, options, clock, console)
            if service.wanted(survey):
                with clock.step("service"):
                    health = keep_running(transport, survey, service, console)
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
        blobs_total=len(cargo.blobs) + len(plan.environment.blobs),
        round_trips=transport.round_trips,
        check=check,
        health=health,
        seconds={**clock.seconds, "total": round(clock.total(), 3)},
    )


def carry(
    transport: Transport,
    survey: Survey,
    plan: Plan,
    cargo: Cargo,
    options: Options,
    service: Service,
    clock: Clock,
    console: Console,
    lease: Lease,
) -> tuple[Check, tuple[Sent, ...], Health | None]:
    """Everything that writes, as the owner of the lease: send, assemble, check, switch, watch."""
    root = survey.root
    with clock.step("send"):
        sent = send(transport, root, plan, cargo.bundle, console)
    console.step(sent_text(plan, sent, len(cargo.blobs) + len(plan.environment.blobs)))
    lease.check()
    with clock.step("assemble"):
        assemble(transport, root, plan, cargo, lease.token)
    check = proven(transport, root, plan, options, clock, console, lease.token)
    record = replace(plan.record, check=check.to_dict())
    if service.wanted(survey):
        change = Change(
            release=plan.release,
            before=plan.before,
            python=plan.record.python,
            record=record,
            created=plan.created,
            stale=plan.stale,
            action="push",
            reason=options.reason,
        )
        with clock.step("service"):
            return check, sent, activate(transport, survey, change, service, lease, console)
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
                record=record,
                stale=plan.stale,
                reason=options.reason,
                token=lease.token,
            )
            lease.given = True
    return check, sent, None


def service_of(cargo: Cargo, config: bytes | None, manager: str, bounds: Bounds | None) -> Service:
    """How the release is to run: what was asked for, within what its profile allows."""
    bounds = bounds or Bounds()
    limits = limits_of(cargo.bundle.manifest.profile, round(bounds.start_s))
    return Service(config, manager, replace(bounds, memory_mb=limits.memory_mb), limits)


def send(transport: Transport, root: str, plan: Plan, bundle: Bundle, console: Console) -> tuple[Sent, ...]:
    """Send the planned uploads; how each went."""

    def read(blob: Blob) -> bytes:
        if blob.path is not None:
            return read_wheel(blob.path)
        return blob.data if blob.data is not None else bundle.read(blob.member)

    with console.bar("sending", sum(upload.size for upload in plan.uploads)) as advance:
        return send_blobs(transport, root, plan.record.python, plan.uploads, read, advance)


def assemble(transport: Transport, root: str, plan: Plan, cargo: Cargo, token: str) -> None:
    """Make the release and its env out of blobs, or mend the release that is there."""
    if plan.assemble:
        env, python, made = plan.record.env, plan.record.python, plan.environment
        argv = commands.assemble(
            root,
            plan.release,
            suffix(),
            env,
            python,
            made.runtime.sha256,
            made.launcher,
            token,
            made.lock_text,
            made.files,
        )
        seconds = 120 + (made.unpacked / SLOWEST_CARD if plan.new_env else 0)
        checked(transport, argv, member_lines(cargo.blobs), seconds)
    if plan.repair:
        checked(transport, commands.repair(root, plan.release, token), member_lines(plan.repair), 120)


def proven(
    transport: Transport,
    root: str,
    plan: Plan,
    options: Options,
    clock: Clock,
    console: Console,
    token: str = "",
) -> Check:
    """Replay the goldens; a new release that fails is removed again, and the refusal is in the audit log.

    Args:
        token: of the lease; none is held when nothing was written.

    Raises:
        SelfCheckError, DeviceReplyError, CommandTimeoutError: as `check_release`.
    """
    record, release = plan.record, plan.release
    try:
        with clock.step("check"):
            check = check_release(transport, root, release, record.env, record.version, options.check_seconds)
    except (SelfCheckError, CommandError) as error:
        line = audit_line("push", release, plan.before, f"refused: {error.message[:300]}", options.reason)
        command = commands.discard(root, release, line, token) if plan.created else upkeep.note(root, line)
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
    from edgeferry_deploy.fleet import each

    for target in arguments.targets:
        parse_target(target)
    check_root(arguments.root)
    check_sources(Sources(arguments.env, arguments.offline, arguments.python))
    Bundle.open(arguments.bundle).close()  # a bad bundle is told before anybody is called
    config = config_of(arguments.config, arguments.any_arch) if arguments.config else None
    return each(arguments, lambda target, console: push_to(target, arguments, config, console).to_dict())


def push_to(target: str, arguments: Namespace, config: bytes | None, console: Console) -> Preview | PushResult:
    """Push to one of the targets, or show what that would do."""
    from edgeferry_deploy.connect import open_transport

    choices = {
        name: getattr(arguments, name)
        for name in ("root", "python", "keep", "check_seconds", "any_arch", "reason", "env", "offline")
    }
    with open_transport(target, arguments.identity) as transport:
        if arguments.verbose:
            console.step(transport.describe(), "none")
        if arguments.dry_run:
            planned = preview(arguments.bundle, transport, config=config, manager=arguments.service, **choices)
            for line in planned.lines():
                console.step(line, "none")
            return planned
        return push(
            arguments.bundle, transport, console=console, config=config, manager=arguments.service,
            bounds=bounds_of(arguments), **choices,
        )  # fmt: skip


def config_of(path: str, any_arch: bool = False) -> bytes:
    """A run.toml as the run.json that is sent; what was sent to another architecture has to run there, too."""
    from edgeferry_deploy.run_toml import compile_toml

    config = compile_toml(Path(path))
    if any_arch:
        config = replace(config, model=replace(config.model, any_arch=True))
    return config.to_json().encode()


def bounds_of(arguments: Namespace) -> Bounds:
    """What the command line asks of a service."""
    return Bounds(arguments.health_seconds, arguments.start_seconds, arguments.max_age_ms)

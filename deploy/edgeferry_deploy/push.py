"""`edgeferry push`: look, plan, send what is missing, assemble, prove on the device, switch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from edgeferry_runtime.bundle import Bundle

from edgeferry_deploy import commands
from edgeferry_deploy.activation import (
    CHECK_SECONDS,
    Check,
    audit_line,
    check_release,
    now,
    suffix,
    switch_release,
    who,
)
from edgeferry_deploy.console import Console, size_text
from edgeferry_deploy.errors import CommandError, DeployError, DeviceUnfitError, SelfCheckError
from edgeferry_deploy.release import (
    Blob,
    Record,
    Stale,
    bundle_blobs,
    env_hash,
    launcher_text,
    member_lines,
    pack_runtime,
    release_id,
    stale,
)
from edgeferry_deploy.survey import Survey, look
from edgeferry_deploy.survey import require_python as require
from edgeferry_deploy.target import DEFAULT_ROOT, check_root, parse_target
from edgeferry_deploy.transfer import Upload, plan_uploads, send_blobs
from edgeferry_deploy.transport import Transport, checked

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["KEEP", "Plan", "PushResult", "plan_push", "push", "run"]

KEEP = 3
SPARE_KIB = 4096  # for folders, links, release.json and the log


@dataclass(frozen=True)
class Plan:
    """What a push will do; made from a survey, before anything is written.

    Attributes:
        record: what release.json will say, but for the check.
        before: the release that is current now.
        uploads: content that has to be sent.
        corrupt: members whose blob on the device has other bytes than its name says.
        assemble: the release or its env is not there yet.
        created: the release is new, so that a failed check may remove it.
        repair: blobs whose member in the existing release is missing or altered.
        switch: the release is not current yet.
        stale: what may go after the switch.
    """

    record: Record
    release: str
    before: str
    uploads: tuple[Upload, ...]
    corrupt: tuple[str, ...]
    assemble: bool
    created: bool
    repair: tuple[Blob, ...]
    switch: bool
    stale: Stale


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


def plan_push(
    survey: Survey, record: Record, release: str, blobs: Sequence[Blob], runtime: Blob, keep: int = KEEP
) -> Plan:
    """Decide what has to happen, from what the device has.

    Args:
        record: what release.json will say, but for the check.
        release: id of the release the blobs make up.
        runtime: the packed runtime.
        keep: releases that stay on the device.
    """
    known = survey.releases.get(release)
    new, new_env = release not in survey.releases, not survey.envs.get(record.env)
    damaged = set(survey.damaged)
    needed = [*(blobs if new or damaged else ()), *((runtime,) if new_env else ())]
    return Plan(
        record=record,
        release=release,
        before=survey.current,
        uploads=plan_uploads(needed, survey.blobs, survey.parts),
        corrupt=tuple(blob.member for blob in needed if survey.blobs.get(blob.sha256) is False),
        assemble=new or new_env,
        # A release without a record was assembled by a push that was cut: it was never switched to.
        created=known is None,
        repair=tuple(blob for blob in blobs if blob.member in damaged),
        switch=survey.current != release or known is None or known.env != record.env,
        stale=stale(
            {**survey.releases, release: record},
            [*survey.envs, record.env],
            (release, survey.current if survey.current != release else survey.previous),
            keep,
        ),
    )


def push(
    bundle_path: str | Path,
    transport: Transport,
    *,
    root: str = DEFAULT_ROOT,
    python: str = "",
    keep: int = KEEP,
    check_seconds: int = CHECK_SECONDS,
    runtime_folder: str | Path | None = None,
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
        console: where steps are reported; by default nowhere.

    Raises:
        BundleError: the bundle cannot be trusted; nothing was sent.
        DeviceUnfitError: the device lacks something; nothing was sent.
        SelfCheckError: the device does not reproduce the goldens; the old release is untouched.
        DeployError: anything else that has a name.
    """
    console = console or Console(quiet=True)
    clock = Clock()
    root = check_root(root)
    with Bundle.open(str(bundle_path)) as bundle:
        manifest = bundle.manifest
        release = release_id(manifest.name, manifest.version)
        blobs = bundle_blobs(bundle)
        runtime = pack_runtime(Path(runtime_folder) if runtime_folder else installed_runtime())
        size = sum(blob.size for blob in blobs)
        console.step(f"{release}: {len(blobs)} files, {size_text(size)}")

        with clock.step("look"):
            survey = look(transport, root, blobs=[*blobs, runtime], release=release, python=python)
        device_python = require(survey, transport.name, python)
        record = Record(
            bundle=manifest.name,
            version=manifest.version,
            env=env_hash(runtime.sha256, device_python.path),
            python=device_python.path,
            pushed_by=who(),
            pushed_at=now(),
        )
        plan = plan_push(survey, record, release, blobs, runtime, keep)
        require_space(survey, plan, transport.name)
        version = ".".join(map(str, device_python.version))
        console.step(f"{transport.name}: Python {version} at {device_python.path}")
        for member in plan.corrupt:
            console.step(f"{member} is damaged on the device and is sent again", "warn")

        with clock.step("send"):
            send(transport, survey.root, plan, bundle, console)
        console.step(sent_text(plan, len(blobs) + 1))
    with clock.step("assemble"):
        assemble(transport, survey.root, plan, blobs, runtime)
    with clock.step("check"):
        check = prove(transport, survey.root, plan, check_seconds)
    console.step(check_text(check))
    with clock.step("switch"):
        if plan.switch:
            switch_release(
                transport,
                survey.root,
                release,
                expected=plan.before,
                python=record.python,
                action="push",
                record=replace(record, check=check.to_dict()),
                stale=plan.stale,
            )
    previous = plan.before if plan.before != release else survey.previous
    console.step(
        f"current is {release}" + ("" if plan.switch else ", as before") + f"; done in {clock.total():.1f} s"
    )
    if previous and previous != release:
        console.step(f"back to {previous}: edgeferry rollback {transport.name}", "none")
    return PushResult(
        release=release,
        version=manifest.version,
        previous=previous,
        root=survey.root,
        env=record.env,
        python=record.python,
        switched=plan.switch,
        bytes_sent=sum(upload.size for upload in plan.uploads),
        blobs_sent=len(plan.uploads),
        blobs_total=len(blobs) + 1,
        round_trips=transport.round_trips,
        check=check,
        seconds={**clock.seconds, "total": round(clock.total(), 3)},
    )


def require_space(survey: Survey, plan: Plan, device: str) -> None:
    """Refuse before anything is written when the uploads do not fit.

    Raises:
        DeviceUnfitError: the root's obstacle or the missing space, in words.
    """
    if survey.obstacle:
        raise DeviceUnfitError(
            f"{survey.root} on {device} cannot be written: {survey.obstacle} is not writable for this user",
            f'on the device: sudo install -d -o "$USER" {quote(survey.root)}; or choose another --root',
        )
    needed = sum(upload.size for upload in plan.uploads) // 1024 + SPARE_KIB
    if survey.free_kib is not None and survey.free_kib < needed:
        raise DeviceUnfitError(
            f"{device} has {size_text(survey.free_kib * 1024)} free for {survey.root}, "
            f"this push needs {size_text(needed * 1024)}",
            "free some space on the device, or choose another --root",
        )


def send(transport: Transport, root: str, plan: Plan, bundle: Bundle, console: Console) -> None:
    """Send the planned uploads."""

    def read(blob: Blob) -> bytes:
        return blob.data if blob.data is not None else bundle.read(blob.member)

    with console.bar("sending", sum(upload.size for upload in plan.uploads)) as advance:
        send_blobs(transport, root, plan.record.python, plan.uploads, read, advance)


def assemble(transport: Transport, root: str, plan: Plan, blobs: Sequence[Blob], runtime: Blob) -> None:
    """Make the release and its env out of blobs, or mend the release that is there."""
    record = plan.record
    if plan.assemble:
        launcher = launcher_text(record.python)
        argv = commands.assemble(root, plan.release, suffix(), record.env, record.python, runtime.sha256, launcher)
        checked(transport, argv, member_lines(blobs), 120)
    if plan.repair:
        checked(transport, commands.repair(root, plan.release), member_lines(plan.repair), 120)


def prove(transport: Transport, root: str, plan: Plan, seconds: int) -> Check:
    """Replay the goldens; a new release that fails is removed again.

    Raises:
        SelfCheckError, DeviceReplyError, CommandTimeoutError: as `check_release`.
    """
    try:
        return check_release(transport, root, plan.release, plan.record.env, plan.record.version, seconds)
    except (SelfCheckError, CommandError) as error:
        if plan.created:
            line = audit_line("push", plan.release, plan.before, f"refused: {error.message[:300]}")
            with suppress(DeployError):  # what failed first is what the user has to hear
                checked(transport, commands.discard(root, plan.release, line))
        raise


def installed_runtime() -> Path:
    """The runtime package of this workstation."""
    spec = find_spec("edgeferry_runtime")
    if spec is None or not spec.origin:
        raise DeployError("edgeferry_runtime is not installed here", "pip install edgeferry-runtime")
    return Path(spec.origin).parent


def sent_text(plan: Plan, total: int) -> str:
    """What went over the wire, in words."""
    if not plan.uploads:
        return f"all {total} files are there already"
    size = size_text(sum(upload.size for upload in plan.uploads))
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
    with open_transport(arguments.target, arguments.identity) as transport:
        if arguments.verbose:
            console.step(transport.describe(), "none")
        result = push(
            arguments.bundle,
            transport,
            root=arguments.root,
            python=arguments.python,
            keep=arguments.keep,
            check_seconds=arguments.check_seconds,
            console=console,
        )
    if arguments.json:
        console.result(result.to_dict())
    return 0

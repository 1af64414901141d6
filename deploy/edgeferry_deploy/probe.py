"""`edgeferry probe`: what a device is and has, in one round trip that writes nothing."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgeferry_deploy import facts as known
from edgeferry_deploy.console import Console
from edgeferry_deploy.fact_types import Facts
from edgeferry_deploy.target import DEFAULT_ROOT, check_root
from edgeferry_deploy.transport import Transport, checked, reply_error

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["fact_lines", "probe", "run"]

SECONDS = 90.0  # a Raspberry Pi Zero with a slow card and four Pythons
LIMIT = 256 * 1024  # bytes; all sections together print less, so more is another program's output
TELLING = ("asimd", "neon", "asimddp", "i8mm", "avx2", "avx512_vnni", "avx_vnni")  # what fast kernels look for


def probe(transport: Transport, *, root: str = DEFAULT_ROOT) -> Facts:
    """Ask a device for all its facts.

    Args:
        root: edgeferry's folder there, absolute or below `~`.

    Raises:
        TargetError: the root cannot be used.
        CommandError, ConnectError: the device cannot be asked.
        DeviceReplyError: it answered something else.
    """
    mark = secrets.token_hex(known.MARK_LENGTH // 2)
    argv = known.command(mark, check_root(root))
    asked, began = time.time(), time.monotonic()
    done = checked(transport, argv, None, SECONDS, LIMIT)
    answered = asked + time.monotonic() - began  # this machine's clock may be set meanwhile
    try:
        return known.parse_reply(done.stdout, mark, transport.name, asked, answered)
    except ValueError as error:
        raise reply_error(argv, transport.name, done.stdout, str(error)) from None


def fact_lines(facts: Facts) -> list[str]:
    """The facts for a reader; what is not known is named on the last line."""
    lines = [facts.device]
    lines += [f"{name:13} {text}" for name, text in rows(facts) if text]
    unknown = facts.to_dict()["unknown"]
    if unknown:
        lines.append(f"{'not known':13} {', '.join(unknown)}")
    return lines


def rows(facts: Facts) -> Iterator[tuple[str, str]]:
    """Name and text of each line; an empty text where nothing is known."""
    yield "board", facts.model or ""
    yield (
        "cpu",
        joined(facts.cpu, facts.cores and f"{facts.cores} cores", facts.max_mhz and f"{facts.max_mhz} MHz"),
    )
    yield "instructions", " ".join(word for word in facts.cpu_features or () if word in TELLING)
    width = facts.userland_bits and f"{facts.userland_bits}-bit programs"
    yield "system", joined(facts.distribution.name if facts.distribution else "", facts.arch, width, facts.kernel)
    yield "C library", (facts.libc and f"{facts.libc.kind} {dotted(facts.libc.version)}".strip()) or ""
    for python in facts.pythons or ():
        yield "python", f"{dotted(python.version)} at {python.path}  {' '.join(python.modules)}".rstrip()
    if facts.memory:
        free = facts.memory.available_mb
        yield "memory", joined(f"{facts.memory.total_mb} MiB", free is not None and f"{free} available")
    if facts.disk:
        disk = facts.disk
        access = "" if disk.writable else "read-only" if disk.mount and disk.mount.read_only else "not writable"
        yield "disk", joined(disk.path, disk.free_mb is not None and f"{disk.free_mb} MiB free", access)
    for camera in facts.real_cameras:
        yield "camera", joined(camera.device, camera.name, not camera.openable and "closed to this user")
    for stick in facts.accelerators or ():
        yield "accelerator", joined(stick.kind, stick.id, not stick.openable and "closed to this user")
    yield "user", joined(facts.user, f"in {' '.join(facts.groups)}" if facts.groups else "", facts.sudo and "sudo")
    linger = facts.linger is not None and ("lingers" if facts.linger else "does not linger")
    systemd = facts.systemd is not None and f"systemd {facts.systemd}"
    yield "services", joined(systemd or facts.init, facts.user_manager and f"user: {facts.user_manager}", linger)
    temperature = facts.temperature_c is not None and f"{facts.temperature_c} C"
    yield "condition", joined(temperature, facts.governor, throttle_text(facts))
    if facts.clock:
        sync = {True: "synchronised", False: "not synchronised", None: ""}[facts.time_synchronised]
        ahead = f"{facts.clock.skew_s:+.2f} s against here (±{facts.clock.uncertainty_s:.2f})"
        yield "clock", joined(ahead, sync)
    yield "release", "none yet" if facts.release == "" else facts.release or ""


def throttle_text(facts: Facts) -> str:
    """What holds the clock down, in words."""
    if facts.throttled is None:
        return ""
    now = ", ".join(facts.throttled.now)
    before = ", ".join(facts.throttled.since_boot)
    return joined(now and f"now: {now}", before and f"since boot: {before}") or "never throttled"


def joined(*texts: str | int | bool | None) -> str:
    """The texts that are there, with commas."""
    return ", ".join(str(text) for text in texts if text)


def dotted(version: tuple[int, ...]) -> str:
    """3.11.2."""
    return ".".join(map(str, version))


def run(arguments: Namespace) -> int:
    """The command."""
    from edgeferry_deploy.connect import open_transport
    from edgeferry_deploy.profile_draft import check_file, draft, write

    file = Path(arguments.write_profile).expanduser() if arguments.write_profile else None
    if file:
        check_file(file)  # before anybody is called
    with open_transport(arguments.target, arguments.identity) as transport:
        facts = probe(transport, root=arguments.root)
    console = Console(quiet=arguments.json)
    for line in fact_lines(facts):
        console.step(line, "none")
    if file:
        write(file, draft(facts, file.stem, time.strftime("%Y-%m-%d", time.gmtime())))
        console.step(f"wrote {file}; look it over, then: edgeferry profiles {file}")
    if arguments.json:
        console.result(facts.to_dict())
    return 0

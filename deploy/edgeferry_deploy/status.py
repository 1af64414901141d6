"""`edgeferry status`: what is current on a device, what else is there, and what it takes."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from edgeferry_deploy.console import Console, size_text
from edgeferry_deploy.errors import printable
from edgeferry_deploy.health import ask
from edgeferry_deploy.release import Record
from edgeferry_deploy.survey import Survey, look
from edgeferry_deploy.target import DEFAULT_ROOT, check_root
from edgeferry_deploy.transport import Transport

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["run", "status", "status_lines"]


def status(transport: Transport, *, root: str = DEFAULT_ROOT, python: str = "") -> dict[str, Any]:
    """What a device has, as --json prints it: one round trip, a second one where a service runs; nothing written.

    Raises:
        DeployError: the device cannot be asked, or answers something else.
    """
    survey = look(transport, check_root(root), python=python)
    running = asdict(ask(transport, survey.root)) if survey.manager else None
    return {**describe(survey, transport.name), "service": running}


def describe(survey: Survey, device: str) -> dict[str, Any]:
    """A survey as the status object."""
    python = survey.python
    return {
        "device": device,
        "root": survey.root,
        "writable": not survey.obstacle,
        "current": entry(survey, survey.current),
        "previous": entry(survey, survey.previous),
        "releases": [entry(survey, name) for name in sorted(survey.releases, key=partial(pushed, survey))],
        "python": python
        and {
            "path": printable(python.path),
            "version": ".".join(map(str, python.version)),
            "modules": sorted(python.modules),
            "machine": python.machine,
        },
        "backend": backend(survey.releases.get(survey.current)),
        "used_bytes": survey.used_kib * 1024,
        "free_bytes": None if survey.free_kib is None else survey.free_kib * 1024,
        "partial_uploads": dict(sorted(survey.parts.items())),
        "locked_by": survey.holder and survey.holder.to_dict(),
        "on_trial": survey.trial,
    }


def pushed(survey: Survey, name: str) -> str:
    """When a release was pushed; empty for one that never was current."""
    record = survey.releases[name]
    return record.pushed_at if record else ""


def backend(record: Record | None) -> str:
    """The interpreter the last check ran on."""
    said = record.check.get("backend", "") if record else ""
    return printable(said) if isinstance(said, str) else ""


def entry(survey: Survey, name: str) -> dict[str, Any] | None:
    """A release as the status object shows it; None for no release.

    What the device keeps may have been changed there: every text is made safe to show.
    """
    if not name:
        return None
    paths = {"id": name, "path": f"{survey.root}/releases/{name}"}
    record = survey.releases.get(name)
    if record is None:
        return {**paths, "complete": False}
    texts = {key: printable(value) for key, value in asdict(record).items() if isinstance(value, str)}
    launcher = f"{survey.root}/env/{texts['env']}/edgeferry-run"
    good, proven = record.check.get("ok") is True, record.health.get("ok") is True
    return {**paths, **texts, "complete": True, "good": good, "proven": proven, "launcher": launcher}


def status_lines(found: dict[str, Any]) -> list[str]:
    """The status object for a reader."""
    current, previous, python = found["current"], found["previous"], found["python"]
    lines = [f"{found['device']}  {found['root']}"]
    lines.append(f"current   {release_text(current)}" if current else "current   nothing: push a bundle")
    if found["backend"]:
        lines.append(f"backend   {found['backend']}")
    if previous:
        lines.append(f"previous  {release_text(previous)}")
    if found["service"]:
        lines.append(f"service   {service_text(found['service'])}")
    if found["on_trial"]:
        lines.append(f"on trial  {found['on_trial']}: whoever pushed it has not proven it yet")
    kept = [item["id"] for item in found["releases"] if item not in (current, previous)]
    lines += [f"also      {name}" for name in kept]
    lines.append(f"python    {python['version'] or '?'} at {python['path']}" if python else "python    none")
    free = "" if found["free_bytes"] is None else f", {size_text(found['free_bytes'])} free"
    lines.append(f"disk      {size_text(found['used_bytes'])} used{free}")
    parts = found["partial_uploads"]
    if parts:
        lines.append(f"cut       {len(parts)} partial uploads, {size_text(sum(parts.values()))}")
    holder = found["locked_by"]
    if holder:
        lines.append(f"locked    by {holder['by']} for '{holder['reason']}', {holder['left_seconds']} s more")
    if not found["writable"]:
        lines.append("warning   this user cannot write there")
    return lines


def service_text(seen: dict[str, Any]) -> str:
    """The service on one line."""
    if seen["active"] != "running" or not seen["own"]:
        return f"{seen['active']} ({seen['manager']}), {seen['restarts']} restarts" + (
            f": {seen['trouble']}" if seen["trouble"] else ""
        )
    return (
        f"{seen['active']} ({seen['manager']}), {seen['frames']} results, {seen['fps']:.1f} a second, "
        f"age {seen['age_ms']:.0f} ms, {seen['rss_mb']:.0f} MB, {seen['restarts']} restarts"
        + (f": {seen['trouble']}" if seen["trouble"] else "")
    )


def release_text(item: dict[str, Any]) -> str:
    """A release on one line."""
    if not item["complete"]:
        return f"{item['id']}  (no record)"
    proven = ", proven in service" if item["proven"] else ""
    return f"{item['id']}  pushed {item['pushed_at'][:19]}Z by {item['pushed_by']}{proven}"


def run(arguments: Namespace) -> int:
    """The command."""
    from edgeferry_deploy.connect import open_transport

    with open_transport(arguments.target, arguments.identity) as transport:
        found = status(transport, root=arguments.root)
    if arguments.json:
        Console().result(found)
    else:
        print("\n".join(status_lines(found)))
    return 0

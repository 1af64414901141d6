"""`edgeferry config push|pull`: what a board runs, from a TOML file here to `run.json` there, and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.run_config import RunConfig

from edgeferry_deploy import commands
from edgeferry_deploy.console import Console
from edgeferry_deploy.errors import CommandError, NoReleaseError
from edgeferry_deploy.health import Bounds, Health
from edgeferry_deploy.lock import hold
from edgeferry_deploy.push import bounds_of
from edgeferry_deploy.release import Stale
from edgeferry_deploy.run_toml import compile_toml, to_toml
from edgeferry_deploy.service import Change, Service, activate, take_back_unproven
from edgeferry_deploy.service_unit import Limits
from edgeferry_deploy.snippets import FSYNC, START
from edgeferry_deploy.survey import look
from edgeferry_deploy.target import DEFAULT_ROOT, check_root
from edgeferry_deploy.transport import Transport, checked

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["pull", "push", "run"]

LARGEST = 1 << 20  # bytes of a run.json

# For a board where nothing runs yet: no trial, no restart.
PLACE = START + FSYNC + 'cd -- "$1/shared" && fsync run.json.new && mv -f -- run.json.new run.json && fsync .\n'


def push(
    transport: Transport,
    config: RunConfig,
    *,
    root: str = DEFAULT_ROOT,
    manager: str = "auto",
    bounds: Bounds | None = None,
    reason: str = "",
    console: Console | None = None,
) -> dict[str, Any]:
    """Have a board run something else, and go back when its service does not hold.

    Returns:
        What --json prints: device, release, `changed`, and the service's health.

    Raises:
        HealthError: the service does not hold with it; the one before is back.
        LockedError: somebody else is changing the device.
        DeployError: anything else that has a name.
    """
    console = console or Console(quiet=True)
    root = check_root(root)
    survey = look(transport, root)
    if take_back_unproven(transport, survey):
        survey = look(transport, root)
    text = config.to_json().encode()
    service = Service(text, manager, bounds or Bounds(), None if survey.manager else Limits())
    found = {"device": transport.name, "release": survey.current, "changed": False, "health": None}
    if service.new_config(survey) is None:
        console.step(f"{transport.name} has it already", "none")
        return found
    health: Health | None = None
    with hold(transport, survey.root, "push a run.json", expected=survey.current) as lease:
        record = survey.releases.get(survey.current)
        if record is not None and manager != "none":
            change = Change(survey.current, survey.current, record.python, None, False, Stale(), "config", reason)
            health = activate(transport, survey, change, service, lease, console)
        else:
            transport.upload([text], f"{survey.root}/shared/run.json.new")
            checked(transport, commands.script("config", PLACE, survey.root))
            console.step("kept; it runs with the next push", "none")
    console.step(f"{transport.name} runs {config.source}")
    return {**found, "changed": True, "health": health and health.to_dict()}


def pull(transport: Transport, *, root: str = DEFAULT_ROOT) -> RunConfig:
    """What a board runs.

    Raises:
        NoReleaseError: it has no run.json.
        EdgeferryError: its run.json is none.
    """
    survey = look(transport, check_root(root))
    if not survey.config:
        raise NoReleaseError(
            f"{transport.name} has no run.json, so nothing runs there", "edgeferry config push TARGET run.toml"
        )
    path = f"{survey.root}/shared/run.json"
    try:
        raw = transport.download(path, limit=LARGEST)
    except CommandError as error:
        raise NoReleaseError(f"{path} on {transport.name} cannot be read: {error.message}", error.remedy) from None
    return RunConfig.parse(raw, f"{path} on {transport.name}")


def run(arguments: Namespace) -> int:
    """The command."""
    from edgeferry_deploy.connect import open_transport

    console = Console(quiet=arguments.json)
    pushing = arguments.action == "push"
    if pushing and not arguments.file:
        raise UsageError("config push needs a file", "edgeferry config push TARGET run.toml")
    file = Path(arguments.file) if arguments.file else None
    if file and not pushing and file.exists():
        raise UsageError(f"{file} exists already", "name another file, or move that one away")
    config = compile_toml(file) if pushing and file else None
    with open_transport(arguments.target, arguments.identity) as transport:
        if config is not None:
            found = push(
                transport, config, root=arguments.root, manager=arguments.service,
                bounds=bounds_of(arguments), reason=arguments.reason, console=console,
            )  # fmt: skip
            if arguments.json:
                console.result(found)
            return 0
        pulled = pull(transport, root=arguments.root)
        name = transport.name
    if file:
        write(file, to_toml(pulled))
        console.step(f"wrote {file}: what {name} runs")
    elif not arguments.json:
        print(to_toml(pulled), end="")
    if arguments.json:
        console.result({"device": name, "config": pulled.to_dict(), "file": str(file) if file else ""})
    return 0


def write(file: Path, text: str) -> None:
    """Write a new file, whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError(f"{file} cannot be written: {error.strerror}", "name another file") from None

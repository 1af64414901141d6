"""From a bundle and a look at a device to a plan: what `push` and `push --dry-run` begin with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeferry_runtime.bundle import Bundle

from edgeferry_deploy.activation import CHECK_SECONDS, now, who
from edgeferry_deploy.console import Console
from edgeferry_deploy.environment import Environment, Sources, choose
from edgeferry_deploy.errors import DeployError
from edgeferry_deploy.plan import KEEP, Plan, Preview, plan_push, require_space
from edgeferry_deploy.release import Blob, Record, bundle_blobs, pack_runtime, release_id
from edgeferry_deploy.requirements import require_fit
from edgeferry_deploy.service import Service
from edgeferry_deploy.survey import Python, Survey, look
from edgeferry_deploy.target import DEFAULT_ROOT, check_root
from edgeferry_deploy.transport import Transport

__all__ = ["Cargo", "Options", "installed_runtime", "load", "prepare", "preview"]


@dataclass(frozen=True)
class Cargo:
    """What a bundle puts on a device, beside the runtime that is to run it."""

    bundle: Bundle
    release: str
    blobs: tuple[Blob, ...]
    runtime: Blob


@dataclass(frozen=True)
class Options:
    """How a push is done; see `push`."""

    root: str = DEFAULT_ROOT
    python: str = ""
    keep: int = KEEP
    check_seconds: int = CHECK_SECONDS
    runtime_folder: str | Path | None = None
    any_arch: bool = False
    reason: str = ""
    env: str = "auto"
    offline: str | Path | None = None

    @property
    def sources(self) -> Sources:
        """Where the environment may come from."""
        return Sources(self.env, self.offline, self.python, self.any_arch)


@contextmanager
def load(bundle_path: str | Path, options: Options) -> Iterator[Cargo]:
    """Open a bundle and name what it consists of."""
    with Bundle.open(str(bundle_path)) as bundle:
        folder = options.runtime_folder
        yield Cargo(
            bundle=bundle,
            release=release_id(bundle.manifest.name, bundle.manifest.version),
            blobs=bundle_blobs(bundle),
            runtime=pack_runtime(Path(folder) if folder else installed_runtime()),
        )


def prepare(
    transport: Transport, cargo: Cargo, options: Options, console: Console | None = None
) -> tuple[Survey, Plan, Python]:
    """Look and plan, nothing written on the device; one that lacks something no wheel can bring is refused.

    One round trip; another for the facts when wheels are wanted, and one for their blobs when they are new.

    Args:
        console: hears of downloads and of what is known against a wheel; by default nobody does.
    """
    blobs, manifest = cargo.blobs, cargo.bundle.manifest
    survey = look(
        transport,
        check_root(options.root),
        blobs=[*blobs, cargo.runtime],
        release=cargo.release,
        python=options.python,
    )
    quiet = Console(quiet=True)
    environment = choose(transport, survey, manifest, cargo.runtime, options.sources, console or quiet)
    survey = with_wheels(transport, survey, environment)
    device_python = environment.python
    require_fit(manifest.requires, device_python, transport.name, cargo.release, any_arch=options.any_arch)
    record = Record(
        bundle=manifest.name,
        version=manifest.version,
        env=environment.name,
        python=device_python.path,
        pushed_by=who(),
        pushed_at=now(),
    )
    plan = plan_push(survey, record, cargo.release, blobs, environment, options.keep)
    require_space(survey, plan, transport.name)
    return survey, plan, device_python


def with_wheels(transport: Transport, survey: Survey, environment: Environment) -> Survey:
    """The survey with what the device has of the wheels; asked for only when they are needed."""
    if not environment.wheels or survey.envs.get(environment.name):
        return survey
    again = look(transport, survey.root, blobs=environment.wheels, python=environment.python.path)
    return replace(survey, blobs={**again.blobs, **survey.blobs}, parts=again.parts)


def preview(
    bundle_path: str | Path,
    transport: Transport,
    *,
    config: bytes | None = None,
    manager: str = "auto",
    **choices: Any,
) -> Preview:
    """What a push would do, nothing written on the device; wheels it would send are downloaded to this cache.

    Args:
        config, manager, choices: as for `push`.

    Raises:
        BundleError, DeployError: what would refuse the push before anything is sent.
    """
    options = Options(**choices)
    with load(bundle_path, options) as cargo:
        survey, plan, _ = prepare(transport, cargo, options)
    service = Service(config, manager)
    change = ""
    if service.new_config(survey) is not None:
        change = "changed" if survey.config else "new"
    restarts = service.wanted(survey) and (plan.writes or bool(change))
    return Preview(transport.name, plan, survey, change, restarts)


def installed_runtime() -> Path:
    """The runtime package of this workstation."""
    spec = find_spec("edgeferry_runtime")
    if spec is None or not spec.origin:
        raise DeployError("edgeferry_runtime is not installed here", "pip install edgeferry-runtime")
    return Path(spec.origin).parent

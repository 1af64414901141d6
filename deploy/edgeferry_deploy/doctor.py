"""`edgeferry doctor`: what stands in a device's way, each finding with the command that removes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from edgeferry_deploy.console import Console
from edgeferry_deploy.doctor_rules import RULES
from edgeferry_deploy.fact_types import Facts
from edgeferry_deploy.readings import version_of

if TYPE_CHECKING:
    from argparse import Namespace

    from edgeferry_runtime.manifest import Manifest, Requires

__all__ = ["Finding", "findings", "run"]

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """Something that stands in the way.

    Attributes:
        severity: "error": a service will not run; "warning": it will run badly or not for long; "note".
        code: a short name that stays the same between versions.
        what: what is the case, with the figures.
        remedy: the command to run on the device, or what to do.
    """

    severity: str
    code: str
    what: str
    remedy: str


def findings(facts: Facts, manifest: Manifest | None = None) -> list[Finding]:
    """What stands in the way, worst first; a fact that is not known gives no finding.

    Args:
        manifest: of the bundle that is to run there, whose requirements are compared too.
    """
    found = [
        Finding(rule.severity, rule.code, what, rule.remedy.replace("{user}", facts.user or "USER"))
        for rule in RULES
        if (what := rule.what(facts))
    ]
    if manifest is not None:
        found += bundle_findings(facts, manifest.requires)
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def bundle_findings(facts: Facts, requires: Requires) -> Iterator[Finding]:
    """What a bundle needs and the device is known not to have."""
    arch, memory = facts.userland_arch, facts.memory
    if requires.arch and arch and arch not in requires.arch:
        what = f"the bundle was made for {' or '.join(requires.arch)}, the board runs {arch}"
        yield Finding("error", "bundle-arch", what, "edgeferry convert ... --profile for this board")
    if requires.min_glibc and facts.libc:
        yield from glibc_findings(facts, requires.min_glibc)
    if requires.min_ram_mb and memory and memory.total_mb < requires.min_ram_mb:
        what = f"the bundle needs {requires.min_ram_mb} MiB of memory, the board has {memory.total_mb}"
        yield Finding("error", "bundle-ram", what, "convert a smaller model, or take a board with more memory")
    elif requires.min_ram_mb and memory and (memory.available_mb or memory.total_mb) < requires.min_ram_mb:
        what = f"the bundle needs {requires.min_ram_mb} MiB of memory, {memory.available_mb} are available"
        yield Finding("warning", "bundle-ram-busy", what, "end other programs: ps -eo rss,comm --sort -rss | head")
    if requires.accelerator == "edgetpu" and facts.accelerators == ():
        yield Finding(
            "error", "bundle-accelerator", "the bundle needs an Edge TPU, none was found", "lsusb; ls /dev/apex_*"
        )


def glibc_findings(facts: Facts, least: str) -> Iterator[Finding]:
    """Whether the C library will do."""
    library = facts.libc
    if library is None or (
        library.kind == "glibc" and (not library.version or library.version >= version_of(least))
    ):
        return
    found = f"{library.kind} {'.'.join(map(str, library.version))}".strip()
    yield Finding(
        "error",
        "bundle-glibc",
        f"the bundle needs glibc {least}, the board has {found}",
        "update its system, or convert with a profile for this board",
    )


def finding_lines(device: str, found: list[Finding]) -> list[str]:
    """The findings for a reader."""
    if not found:
        return [f"{device}: nothing stands in the way"]
    lines = []
    for finding in found:
        lines += [f"{finding.severity} {finding.code}: {finding.what}", f"    {finding.remedy}"]
    counts = {severity: sum(one.severity == severity for one in found) for severity in SEVERITIES}
    lines.append(", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items() if count))
    return lines


def run(arguments: Namespace) -> int:
    """The command: exit code 1 when there is an error."""
    from edgeferry_runtime.bundle import Bundle

    from edgeferry_deploy.connect import open_transport
    from edgeferry_deploy.probe import probe

    manifest = None
    if arguments.bundle:
        with Bundle.open(arguments.bundle) as bundle:  # a bad bundle is told before anybody is called
            manifest = bundle.manifest
    with open_transport(arguments.target, arguments.identity) as transport:
        facts = probe(transport, root=arguments.root)
    found = findings(facts, manifest)
    console = Console(quiet=arguments.json)
    failed = any(finding.severity == "error" for finding in found)
    if arguments.json:
        console.result({"device": facts.device, "ok": not failed, "findings": [asdict(one) for one in found]})
    for line in finding_lines(facts.device, found):
        console.step(line, "none")
    return int(failed)

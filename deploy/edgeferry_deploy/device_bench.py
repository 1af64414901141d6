"""`edgeferry bench`: what a board does with its current release, kept on the workstation, beside the last time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeferry_deploy import control
from edgeferry_deploy.activation import now
from edgeferry_deploy.bench_records import (
    cleaned,
    differences,
    last_record,
    ratio_lines,
    ratios,
    store_record,
    write_record,
)
from edgeferry_deploy.board_text import Lines
from edgeferry_deploy.console import Console
from edgeferry_deploy.device_run import Current, current_release, runtime_command, with_bundle
from edgeferry_deploy.errors import CommandError, TargetError, printable
from edgeferry_deploy.health import parse_sample
from edgeferry_deploy.streaming import STDERR, STDOUT
from edgeferry_deploy.target import DEFAULT_ROOT
from edgeferry_deploy.transport import DEADLINE, OUTPUT_LIMIT, Transport, reply_error, too_long

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["bench_words", "device_bench", "parse_bench", "run"]

SECONDS = 10
SOURCE = "synthetic:1280x720"
# Beside the loop itself: a cold start from a slow card, and trying thread counts out.
START_SECONDS = 180.0


def bench_words(
    bundle: str, seconds: float = SECONDS, source: str = SOURCE, *, any_arch: bool = False
) -> list[str]:
    """The arguments of `edgeferry-run` that measure a bundle."""
    words = with_bundle(["bench", "--json", "--seconds", f"{seconds:g}", "--source", source], bundle)
    return [*words, "--any-arch"] if any_arch else words


def device_bench(
    transport: Transport,
    *,
    root: str = DEFAULT_ROOT,
    seconds: float = SECONDS,
    source: str = SOURCE,
    any_arch: bool = False,
) -> dict[str, Any]:
    """Measure the current release on a device; the record, which nobody has stored yet.

    Args:
        seconds: how long the loop runs there.
        source: frames to run on, as `edgeferry-run bench` takes it.
        any_arch: also run what was made for another architecture.

    Raises:
        NoReleaseError: nothing was pushed.
        CommandError: the bench failed there, or did not end; DeviceReplyError: it printed something else.
        ConnectError: the device cannot be asked.
    """
    current = current_release(transport, root)
    profile = profile_of(transport, current)
    service = service_state(transport, current.root)
    argv = runtime_command(current, bench_words(current.bundle, seconds, source, any_arch=any_arch))
    taken = {STDOUT: bytearray(), STDERR: bytearray()}

    def take(stream: int, piece: bytes) -> None:
        taken[stream] += piece
        if len(taken[stream]) > OUTPUT_LIMIT:
            raise too_long(argv, transport.name, OUTPUT_LIMIT, bytes(taken[stream][:200]))

    status = transport.stream(argv, take, timeout=seconds + START_SECONDS)
    out, err = bytes(taken[STDOUT]), bytes(taken[STDERR])
    found = last_object(out)
    if status:
        raise failed(transport.name, status, found, err)
    try:
        figures = parse_bench(found)
    except ValueError as error:
        raise reply_error(argv, transport.name, out, str(error)) from None
    return {
        "schema_version": 1,
        "device": transport.name,
        "release": current.release,
        "at": now(),
        "profile": profile,
        "service": service,
        "requested": {"seconds": seconds, "any_arch": any_arch},
        "versions": {
            "edgeferry": own_version(),
            "environment": current.record.env,
            "backend": printable(str(figures.get("backend", "")), 100),
            "python": printable(str(figures["after"].get("python", "")), 40),
        },
        "bench": figures,
    }


def last_object(raw: bytes) -> dict[str, Any]:
    """The JSON object on the last line that is one; empty when there is none.  Interpreters print, too."""
    for line in reversed(raw.splitlines()):
        with suppress(ValueError, RecursionError):
            found = json.loads(line)
            if isinstance(found, dict):
                return dict(cleaned(found))
    return {}


def parse_bench(found: Mapping[str, Any]) -> dict[str, Any]:
    """The figures in a reply of `edgeferry-run bench --json`; texts in it are safe to show.

    Raises:
        ValueError: there are none; says why.
    """
    figures = found.get("bench")
    if not isinstance(figures, dict):
        raise ValueError("holds no figures")
    for key in ("stages_us", "cold_start_us", "age_us", "after"):
        if not isinstance(figures.get(key), dict):
            raise ValueError(f"says nothing of {key}")
    for key in ("frames", "fps"):
        if not isinstance(figures.get(key), int | float):
            raise ValueError(f"says nothing of {key}")
    return figures


def failed(device: str, status: int, found: Mapping[str, Any], err: bytes) -> CommandError:
    """The error for a bench that ended with another status than 0."""
    said, remedy = found.get("error"), found.get("remedy")
    lines = Lines()
    words = [line for piece in (lines.feed(err), lines.end()) for line in piece if line.strip()]
    why = printable(said) if isinstance(said, str) else printable(words[-1]) if words else "it printed nothing"
    how = "was killed" if status < 0 else f"ended with {status}"
    return CommandError(
        f"the bench {how} on {device}: {why}",
        printable(remedy) if isinstance(remedy, str) else "edgeferry run TARGET -- bench",
        command="edgeferry-run",
        exit_status=status,
    )


def profile_of(transport: Transport, current: Current) -> str:
    """The name of the device profile that the current release was made for; empty when its manifest has none."""
    manifest: Any = None
    with suppress(ValueError, RecursionError):
        manifest = json.loads(transport.download(f"{current.bundle}/manifest.json", limit=OUTPUT_LIMIT))
    profile = manifest.get("profile") if isinstance(manifest, dict) else None
    name = profile.get("name") if isinstance(profile, dict) else None
    return printable(name, 80) if isinstance(name, str) else ""


def service_state(transport: Transport, root: str) -> str:
    """running, starting, failed or stopped; empty where there is no service."""
    done = transport.run(control.health(root), timeout=DEADLINE)
    if done.exit_status == 0:
        with suppress(ValueError):
            sample = parse_sample(done.stdout)
            return "" if sample.manager == "none" else sample.active
    return ""


def own_version() -> str:
    """This deployer's version."""
    with suppress(PackageNotFoundError):
        return version("edgeferry-deploy")
    return ""


def run(arguments: Namespace) -> int:
    """The command."""
    from edgeferry_deploy.connect import open_transport

    output = Path(arguments.output).expanduser() if arguments.output else None
    if output and not output.absolute().parent.is_dir():
        raise TargetError(f"{output} cannot be written: there is no folder for it", "choose another --output")
    console = Console(quiet=arguments.json)
    with (
        open_transport(arguments.target, arguments.identity) as transport,
        console.waiting(f"measuring for {arguments.seconds} s on {transport.name}"),
    ):
        record = device_bench(
            transport,
            root=arguments.root,
            seconds=arguments.seconds,
            source=arguments.source,
            any_arch=arguments.any_arch,
        )
    before = last_record(record["device"])
    stored = store_record(record)
    if output:
        write_record(output, record)
    for line in ratio_lines(record, before):
        console.step(line, "none")
    if record["service"] in ("running", "starting"):
        console.step(
            f"the service on {record['device']} was {record['service']} and took its share of the CPU", "warn"
        )
    for line in differences(record, before) if before else ():
        console.step(line, "warn")
    console.step(f"kept in {stored}")
    if arguments.json:
        compared = before and {"release": before["release"], "at": before["at"], "file": before["file"]}
        console.result(
            {**record, "file": str(stored), "compared_with": compared, "ratios": ratios(record, before)}
        )
    return 0

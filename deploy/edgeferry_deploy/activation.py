"""Whether a release passes on the device, and the switch to it."""

from __future__ import annotations

import getpass
import json
import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from edgeferry_deploy import commands
from edgeferry_deploy.errors import DeviceReplyError, SelfCheckError, printable
from edgeferry_deploy.release import Record, Stale
from edgeferry_deploy.transport import Transport, checked, reply_error

__all__ = [
    "CHECK_SECONDS",
    "Check",
    "Output",
    "audit_line",
    "check_release",
    "now",
    "parse_check",
    "suffix",
    "switch_release",
    "who",
]

CHECK_SECONDS = 300  # a Pi Zero replays eight frames of a large model in under a minute
REASON_LENGTH = 500  # characters of --reason that are kept
TIMED_OUT = 124  # what timeout(1) returns
OUTPUTS_SHOWN = 64


@dataclass(frozen=True)
class Output:
    """How far one output of the model is from its golden, and how far it may be; in the output's unit."""

    name: str
    max_abs: float
    max_abs_tolerance: float
    rms: float
    rms_tolerance: float


@dataclass(frozen=True)
class Check:
    """What the device's own interpreter made of the goldens."""

    ok: bool
    bundle: str
    variant: str
    backend: str
    frames: int
    outputs: tuple[Output, ...]
    error: str = ""
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "outputs": [asdict(output) for output in self.outputs]}


def check_release(
    transport: Transport, root: str, release: str, env: str, version: str, seconds: int = CHECK_SECONDS
) -> Check:
    """Replay a release's goldens on the device: one round trip.

    Args:
        version: the content version the device must report.
        seconds: until the check is given up.

    Raises:
        SelfCheckError: the outputs are outside the tolerance, or the check could not run.
        DeviceReplyError: the device answered something else.
    """
    argv = commands.check(root, release, env, seconds)
    # The device stops a hung check itself; the session waits a little longer for its word.
    done = transport.run(argv, None, seconds + 15)
    if done.exit_status == TIMED_OUT:
        raise SelfCheckError(
            f"the self-check of {release} on {transport.name} did not end within {seconds} s",
            "give it longer with --check-seconds, or convert a smaller model",
        )
    try:
        check = parse_check(done.stdout)
    except ValueError as error:
        if done.exit_status == 0:
            raise reply_error(argv, transport.name, done.stdout, str(error)) from None
        how = "was killed" if done.exit_status < 0 or done.exit_status > 128 else f"ended with {done.exit_status}"
        said = printable(done.stderr[-600:] or done.stdout) or "it printed nothing"
        raise SelfCheckError(
            f"the self-check of {release} on {transport.name} {how}: {said}",
            "try another version of the interpreter on the device; the release before stays current",
        ) from None
    if check.ok and done.exit_status == 0:
        if check.bundle != version:
            raise DeviceReplyError(
                f"{transport.name} checked version {printable(check.bundle, 64)}, not {version}",
                "somebody else is changing this root; push again",
                command=commands.name_of(argv),
            )
        return check
    raise SelfCheckError(
        f"{release} fails its self-check on {transport.name}: {check.error or worst(check)}",
        check.remedy or "the release before stays current; convert the model again for this board",
    )


def parse_check(raw: bytes) -> Check:
    """The check in a reply.

    Raises:
        ValueError: it is no reply of `edgeferry_runtime check --json`; says why.
    """
    # Interpreters print to stdout when they please: the object is the last line that looks like one.
    lines = [line for line in raw.decode("utf-8", errors="replace").splitlines() if line.startswith("{")]
    text = lines[-1] if lines else raw.decode("utf-8", errors="replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(found, dict) or not isinstance(found.get("ok"), bool):
        raise ValueError("is no check result")
    outputs = found.get("outputs") or []
    frames = found.get("frames") or 0
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise ValueError("has no list of outputs")
    return Check(
        ok=found["ok"],
        bundle=text_of(found, "bundle"),
        variant=text_of(found, "variant"),
        backend=text_of(found, "backend"),
        frames=frames if isinstance(frames, int) else 0,
        outputs=tuple(parse_output(output) for output in outputs[:OUTPUTS_SHOWN]),
        error=text_of(found, "error"),
        remedy=text_of(found, "remedy"),
    )


def parse_output(found: Mapping[str, Any]) -> Output:
    """One output's figures.

    Raises:
        ValueError: a figure is no number.
    """
    names = ("max_abs", "max_abs_tolerance", "rms", "rms_tolerance")
    # JSON has no infinity and no NaN: an output that is no number comes as null.
    figures = [float("inf") if found.get(name, "") is None else found.get(name) for name in names]
    if not all(isinstance(figure, int | float) for figure in figures):
        raise ValueError("has an output without figures")
    return Output(text_of(found, "name"), *map(float, figures))  # type: ignore[arg-type]


def text_of(found: Mapping[str, Any], key: str) -> str:
    """A text out of a device's reply, safe to show; empty when there is none."""
    value = found.get(key)
    return printable(value) if isinstance(value, str) else ""


def worst(check: Check) -> str:
    """The output that is furthest outside its tolerance, in words."""
    if not check.outputs:
        return "it does not say why"
    output = max(check.outputs, key=lambda output: output.max_abs / (output.max_abs_tolerance or 1e-12))
    return (
        f"output '{output.name}' is {output.max_abs:.4g} off (allowed {output.max_abs_tolerance:.4g}), "
        f"rms {output.rms:.4g} (allowed {output.rms_tolerance:.4g})"
    )


def switch_release(
    transport: Transport,
    root: str,
    release: str,
    *,
    expected: str,
    python: str,
    action: str,
    record: Record | None = None,
    stale: Stale | None = None,
    reason: str = "",
    token: str = "",
) -> None:
    """Make a checked release current: one round trip, one rename.

    Args:
        expected: the release that must still be current, or ''.
        action: `push` or `rollback`, for the audit log.
        record: the new release.json; None leaves it.
        stale: what may go afterwards.
        reason: why, for the audit log.
        token: of the lease that is held, which ends with the switch.

    Raises:
        CommandError: the device could not, the lease was lost, or somebody else switched meanwhile.
    """
    line = audit_line(action, release, expected, "switched", reason)
    record_text = record.to_json() if record else ""
    argv = commands.switch(root, release, expected, suffix(), python, record_text, line, token)
    checked(transport, argv, (stale or Stale()).lines())


def audit_line(action: str, release: str, before: str, result: str, reason: str = "") -> str:
    """One line for log/audit.jsonl."""
    entry = {"at": now(), "by": who(), "action": action, "release": release, "before": before, "result": result}
    if reason:
        entry["reason"] = printable(reason, REASON_LENGTH)
    return json.dumps(entry, sort_keys=True, separators=(",", ":"))


def now() -> str:
    """UTC to the microsecond, so that two pushes in a second keep their order."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def who() -> str:
    """user@host of this workstation, in characters any log can hold."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's numeric user, or Windows without a name
        user = "unknown"
    return re.sub(r"[^A-Za-z0-9_.@-]", "_", f"{user}@{socket.gethostname()}")[:120]


def suffix() -> str:
    """Eight hex digits for the name of something unfinished."""
    return secrets.token_hex(4)

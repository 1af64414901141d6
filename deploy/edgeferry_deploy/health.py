"""Whether a service holds: what a board says of it each second, and the judgement over a window."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgeferry_deploy import control
from edgeferry_deploy.errors import printable
from edgeferry_deploy.survey import reply_lines
from edgeferry_deploy.transport import Transport, checked, reply_error

__all__ = ["DEADLINE_SECONDS", "Bounds", "Health", "Sample", "ask", "judge", "parse_sample", "watch"]

HEALTH_SECONDS = 15
START_SECONDS = 120  # a Pi Zero loads a large model, measures its threads and opens its camera in less
DEADLINE_SECONDS = 45  # a workstation that says nothing for so long has vanished; less than a lease
INTERVAL = 1.0
STILL_SECONDS = 10.0  # without a result, or the loop's word that none is due


@dataclass(frozen=True)
class Bounds:
    """What a healthy service stays within.

    Attributes:
        window_s: how long it is watched from its first result on.
        start_s: how long that may take.
        max_age_ms: median age of results; 0 for any.
        memory_mb: resident memory; 0 for any.
    """

    window_s: float = HEALTH_SECONDS
    start_s: float = START_SECONDS
    max_age_ms: float = 0.0
    memory_mb: int = 0


@dataclass(frozen=True)
class Sample:
    """One look at a service.

    Attributes:
        at: seconds of the board's uptime.
        manager: system, user, supervised, or none.
        active: running, starting, failed or stopped.
        pid: of the loop; 0 when there is none.
        restarts: by its manager, so far.
        trial: the release on trial; empty when none is.
        own: the state is of that very process, and not of one before.
        frames: results so far.
        still_s: since the last one, or the loop's word that none is due; as the loop itself said.
        written: when the loop last told its state, by the board's clock.
    """

    at: float
    manager: str
    active: str
    pid: int = 0
    restarts: int = 0
    result: str = ""
    current: str = ""
    trial: str = ""
    own: bool = False
    frames: int = 0
    fps: float = 0.0
    still_s: float = 0.0
    written: float = 0.0
    age_ms: float = 0.0
    rss_mb: float = 0.0
    trouble: str = ""


@dataclass(frozen=True)
class Health:
    """The judgement.

    Attributes:
        ok: True: it held; False: it did not; None: it is too early to tell.
        why: what is wrong, or waited for.
        seconds: that it was watched, from its first result on.
    """

    ok: bool | None
    why: str = ""
    seconds: float = 0.0
    results: int = 0
    fps: float = 0.0
    age_ms: float = 0.0
    rss_mb: float = 0.0
    restarts: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        memory = f", {self.rss_mb:.0f} MB" if self.rss_mb else ""
        return (
            f"service: {self.results} results in {self.seconds:.0f} s, {self.fps:.1f} a second, "
            f"age {self.age_ms:.0f} ms{memory}, {self.restarts} restarts"
        )


ACTIVE = {
    "active": "running", "activating": "starting", "reloading": "running", "failed": "failed",
    "deactivating": "stopped", "inactive": "stopped",
    "running": "running", "starting": "starting", "back-off": "failed", "stopping": "stopped",
    "stopped": "stopped",
}  # fmt: skip


def parse_sample(raw: bytes) -> Sample:
    """The sample in a reply.

    Raises:
        ValueError: it is no reply of the health command; says why.
    """
    said = {words[0]: words[1] for words in reply_lines(raw, "edgeferry-health 1") if len(words) > 1}
    if "uptime" not in said or "manager" not in said:
        raise ValueError("does not say how the service is")
    supervisor = mapping(said.get("supervisor", ""))
    pid = whole(said.get("MainPID", "")) or whole(supervisor.get("child"))
    word = said.get("ActiveState") or str(supervisor.get("state", ""))
    state = mapping(said.get("state", ""))
    ages, source = (found if isinstance(found := state.get(key), dict) else {} for key in ("age_us", "source"))
    outage = source.get("outage")
    return Sample(
        at=number(said["uptime"]),
        manager=printable(said["manager"].split(" ")[0], 20),
        active=ACTIVE.get(word, "stopped"),
        pid=pid,
        restarts=whole(said.get("NRestarts", "")) or whole(supervisor.get("restarts")),
        result=printable(said.get("Result", "") or str(supervisor.get("exit") or ""), 80),
        current=printable(said.get("current", "").rpartition("/")[2], 100),
        trial=printable(said.get("trial", ""), 100),
        own=pid > 0 and whole(state.get("pid")) == pid and state.get("state") == "running",
        frames=whole(state.get("frames")),
        fps=number(state.get("fps")),
        still_s=number(state.get("still_s")),
        written=number(state.get("time")),
        age_ms=number(ages.get("p50")) / 1000,
        rss_mb=number(state.get("rss_mb")),
        trouble=printable(str(state.get("trouble") or outage or ""), 200),
    )


def mapping(text: str) -> dict[str, Any]:
    """A JSON object; empty for anything else."""
    found: Any = None
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
    return found if isinstance(found, dict) else {}


def number(value: Any) -> float:
    """A finite number that is not negative; 0 for anything else."""
    found = 0.0
    with suppress(TypeError, ValueError, OverflowError):
        found = float(value) if not isinstance(value, bool) else 0.0
    return found if 0 <= found < 1e15 else 0.0


def whole(value: Any) -> int:
    """A count; 0 for anything else."""
    return int(number(value))


def judge(samples: Sequence[Sample], bounds: Bounds, trial: str = "") -> Health:
    """What the samples since the restart say, oldest first.

    Args:
        trial: the release that must still be on trial; '' when none is.
    """
    if not samples:
        return Health(None, "nothing is known yet")
    last, first = samples[-1], samples[0]
    if last.manager == "none":
        return Health(False, "no service is set up")
    steady = since_ready(samples)
    restarts = last.restarts - min(sample.restarts for sample in steady or samples)
    if trial and last.trial != trial:
        return Health(False, f"it ended {max(1, restarts)} times, and the board took it back{ending(last)}")
    if not steady:
        if restarts > 1:
            return Health(False, f"it ended {restarts} times before its first result{ending(last)}")
        if last.at - first.at > bounds.start_s:
            waiting = f": {last.trouble}" if last.trouble else ""
            return Health(False, f"no result within {bounds.start_s:.0f} s{waiting}{ending(last)}")
        return Health(None, f"it is {last.active}" + (f": {last.trouble}" if last.trouble else ""))
    ready = steady[0]
    seconds = last.at - ready.at
    found = Health(
        ok=None,
        seconds=seconds,
        results=last.frames if last.own else 0,
        fps=(last.frames - ready.frames) / seconds if seconds and last.own else last.fps,
        age_ms=last.age_ms,
        rss_mb=last.rss_mb,
        restarts=max(0, restarts),
    )
    why = broken(steady, restarts, bounds)
    if why:
        return Health(**{**found.to_dict(), "ok": False, "why": why})
    if seconds < bounds.window_s:
        return Health(**{**found.to_dict(), "why": f"watched for {seconds:.0f} of {bounds.window_s:.0f} s"})
    return Health(**{**found.to_dict(), "ok": True})


def since_ready(samples: Sequence[Sample]) -> Sequence[Sample]:
    """From the first sample on in which the loop had a result."""
    for index, sample in enumerate(samples):
        if sample.active == "running" and sample.own and sample.frames:
            return samples[index:]
    return ()


def broken(steady: Sequence[Sample], restarts: int, bounds: Bounds) -> str:
    """What is wrong with a service that had been ready; empty when nothing is."""
    ready, last = steady[0], steady[-1]
    if restarts > 0 or (last.pid and last.pid != ready.pid):
        return f"it ended after its first result and was restarted{ending(last)}"
    if last.active in ("failed", "stopped"):
        return f"it {last.active} after its first result{ending(last)}"
    if last.still_s > STILL_SECONDS:
        trouble = f": {last.trouble}" if last.trouble else ""
        return f"no result for {last.still_s:.0f} s{trouble}"
    if silent_s(steady) > STILL_SECONDS:
        return f"it has not said anything for {silent_s(steady):.0f} s"
    if bounds.memory_mb and last.rss_mb > bounds.memory_mb:
        return f"it takes {last.rss_mb:.0f} MB, the profile allows {bounds.memory_mb}"
    # A loop allocates all it needs with its first frames: half as much again, and 50 MB, is a leak.
    if ready.rss_mb and last.rss_mb > ready.rss_mb * 1.5 + 50:
        return f"its memory grew from {ready.rss_mb:.0f} to {last.rss_mb:.0f} MB in {last.at - ready.at:.0f} s"
    if bounds.max_age_ms and last.age_ms > bounds.max_age_ms:
        return f"its results are {last.age_ms:.0f} ms old, {bounds.max_age_ms:.0f} are allowed"
    return ""


def silent_s(steady: Sequence[Sample]) -> float:
    """Since the loop last told its state: a stopped or hung process tells nothing."""
    last = steady[-1]
    since = last.at
    for sample in reversed(steady):
        if sample.written != last.written:
            break
        since = sample.at
    return last.at - since


def ending(last: Sample) -> str:
    """How it ended, as far as its manager says."""
    return f" ({last.result})" if last.result and last.result != "success" else ""


def ask(transport: Transport, root: str, token: str = "") -> Sample:
    """One look: one round trip; with the token of a trial its deadline moves on.

    Raises:
        CommandError, ConnectError, DeviceReplyError: the board does not answer as it should.
    """
    argv = control.health(root, token, DEADLINE_SECONDS)
    done = checked(transport, argv, None, 30)
    try:
        return parse_sample(done.stdout)
    except ValueError as error:
        raise reply_error(argv, transport.name, done.stdout, str(error)) from None


def watch(
    transport: Transport,
    root: str,
    bounds: Bounds,
    *,
    token: str = "",
    trial: str = "",
    old_pid: int = 0,
    tell: Callable[[Health], None] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> tuple[Health, Sample]:
    """Look each second until the judgement is clear; it, and the last look.

    Args:
        token: of the trial whose deadline is to be kept ahead.
        trial: the release that must still be on trial; '' when none is.
        old_pid: the process that is about to end and counts no more.
        tell: hears of each judgement on the way.

    Raises:
        DeployError: the board does not answer.
    """
    samples: list[Sample] = []
    while True:
        sample = ask(transport, root, token)
        samples.append(sample if sample.pid != old_pid else replace(sample, own=False))
        found = judge(samples, bounds, trial)
        if tell:
            tell(found)
        if found.ok is not None:
            return found, samples[-1]
        pause(INTERVAL)

"""What a board says of its service, and what is made of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from edgeferry_deploy.health import Bounds, Sample, judge, parse_sample
from hypothesis import given
from hypothesis import strategies as st

BOUNDS = Bounds(window_s=10, start_s=60, max_age_ms=500, memory_mb=300)
WAITING = Sample(at=100, manager="system", active="starting")
GOOD = Sample(
    at=100, manager="system", active="running", pid=7, own=True, frames=5, fps=10, still_s=0.1, age_ms=20,
    rss_mb=90, trial="digits-0123456789ab",
)  # fmt: skip


def row(*samples: Sample) -> list[Sample]:
    return list(samples)


def later(seconds: float, sample: Sample = GOOD, **changes: object) -> Sample:
    return replace(sample, **{"at": 100 + seconds, "frames": 5 + int(seconds * 10), "written": seconds, **changes})


def test_a_service_that_holds_is_proven_when_the_window_is_over():
    samples = [WAITING, later(5), later(10), later(14)]
    assert judge(samples, BOUNDS).ok is None
    found = judge([*samples, later(15)], BOUNDS)
    assert found.ok is True
    assert (found.seconds, found.results, found.restarts) == (10, 155, 0)
    assert found.fps == pytest.approx(10)
    assert "10 s" in str(found)


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        (row(WAITING, replace(WAITING, at=161)), "no result within 60 s"),
        (row(WAITING, replace(WAITING, at=161, trouble="cannot open /dev/video0")), "cannot open /dev/video0"),
        (row(WAITING, replace(WAITING, restarts=2, result="exit-code")), "ended 2 times before its first result"),
        (row(replace(WAITING, manager="none")), "no service is set up"),
        (row(later(0), later(3, restarts=1)), "ended after its first result"),
        (row(later(0), later(3, pid=9)), "ended after its first result"),
        (row(later(0), later(3, active="failed", pid=0, own=False, result="oom-kill")), "oom-kill"),
        (
            row(later(0), later(9, still_s=11, trouble="the camera is gone")),
            "no result for 11 s: the camera is gone",
        ),
        (row(later(0), later(2), *(later(at, written=2) for at in (5, 9, 13))), "not said anything for 11 s"),
        (row(later(0), later(3, rss_mb=301)), "takes 301 MB, the profile allows 300"),
        (row(later(0), later(3, rss_mb=190)), "memory grew from 90 to 190 MB"),
        (row(later(0), later(3, age_ms=900)), "900 ms old, 500 are allowed"),
    ],
)
def test_what_does_not_hold_is_told_with_its_reason(samples, why):
    found = judge(samples, BOUNDS)
    assert found.ok is False
    assert why in found.why


def test_the_first_restarts_may_belong_to_what_ran_before():
    """`systemctl restart` begins to count anew: the first look may still see the old count."""
    samples = [replace(WAITING, restarts=5), replace(WAITING, at=101), replace(WAITING, at=105, restarts=2)]
    assert judge(samples, BOUNDS).ok is False
    assert judge(samples[:2], BOUNDS).ok is None


def test_a_trial_that_is_gone_was_taken_back_by_the_board():
    assert judge([GOOD], BOUNDS, GOOD.trial).ok is None
    found = judge([GOOD, later(2, trial="")], BOUNDS, GOOD.trial)
    assert found.ok is False
    assert "took it back" in found.why


def test_nothing_is_judged_before_anything_is_known():
    assert judge([], BOUNDS).ok is None


def test_a_result_may_be_rare_as_long_as_the_loop_says_none_is_due():
    samples = [later(0), later(5, frames=5, still_s=0.5), later(11, frames=5, still_s=0.9)]
    assert judge(samples, BOUNDS).ok is True


STATE = {
    "state": "running", "pid": 42, "frames": 10, "fps": 5.0, "still_s": 0.2, "rss_mb": 80.5,
    "time": 1700000000.0, "age_us": {"p50": 20000.0}, "trouble": None, "source": {"outage": None, "reopened": 0},
}  # fmt: skip


def reply(*lines: str) -> bytes:
    return "\n".join(["motd", "edgeferry-health 1", *lines, "end", ""]).encode()


def test_a_systemd_service():
    found = parse_sample(
        reply(
            "manager\tsystem edgeferry", "uptime\t100", "current\treleases/digits-0123456789ab", "trial\t",
            "MainPID\t42", "NRestarts\t3", "ActiveState\tactive", "Result\tsuccess", f"state\t{json.dumps(STATE)}",
        )
    )  # fmt: skip
    assert found == Sample(
        at=100, manager="system", active="running", pid=42, restarts=3, result="success",
        current="digits-0123456789ab", own=True, frames=10, fps=5.0, still_s=0.2, written=1700000000.0,
        age_ms=20.0, rss_mb=80.5,
    )  # fmt: skip


def test_a_supervised_service_and_the_state_of_the_process_before():
    supervisor = json.dumps({"state": "back-off", "pid": 3, "child": 9, "restarts": 1, "exit": "exit status 1"})
    found = parse_sample(
        reply(
            "manager\tsupervised edgeferry",
            "uptime\t7",
            f"supervisor\t{supervisor}",
            f"state\t{json.dumps(STATE)}",
        )
    )
    assert (found.active, found.pid, found.restarts, found.result) == ("failed", 9, 1, "exit status 1")
    assert found.own is False


@pytest.mark.parametrize(
    "raw",
    [b"", b"edgeferry-health 1\n", reply(), reply("uptime\t1"), b"\xff\xfe" * 40, reply("\x1b[31m", "manager")],
)
def test_what_is_no_reply_is_refused(raw):
    with pytest.raises(ValueError, match=r"begin|breaks off|does not say"):
        parse_sample(raw)


@given(st.text(), st.text(), st.text(), st.text())
def test_no_reply_of_a_board_breaks_the_parser(state, supervisor, pid, uptime):
    words = [text.replace("\n", " ").replace("\t", " ") for text in (state, supervisor, pid, uptime)]
    found = parse_sample(
        reply(
            "manager\tsystem", f"state\t{words[0]}", f"supervisor\t{words[1]}", f"MainPID\t{words[2]}",
            f"uptime\t{words[3]}",
        )
    )  # fmt: skip
    assert found.trouble.isprintable()
    assert found.at >= 0


@given(
    st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=4)
)
def test_no_value_of_a_state_breaks_the_parser(value):
    state = dict.fromkeys(STATE, value)
    parse_sample(reply("manager\tsystem", "uptime\t1", f"state\t{json.dumps(state)}"))

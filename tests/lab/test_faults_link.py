"""A push through a link that is cut, lossy or slow, and with a workstation, a server or a session that dies.

After each the board runs a complete release, the next push succeeds, and nothing is left behind.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter

import faults
import paramiko
import pytest
from edgeferry_deploy import ssh
from edgeferry_deploy.errors import ChangedHostKeyError, DeviceUnfitError, LockedError, UnknownHostKeyError

NEW, OLD, STEPS = faults.NEW, faults.OLD, faults.STEPS

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

CUTS = 20
PUSH = """
import sys
from edgeferry_deploy.connect import open_transport
from edgeferry_deploy.push import push
bundle, target, identity, runtime = sys.argv[1:]
with open_transport(target, identity) as transport:
    push(bundle, transport, runtime_folder=runtime)
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory, tiny_manifest):
    if obstacle := faults.obstacle():
        pytest.skip(obstacle)
    folder = tmp_path_factory.mktemp("link")
    with faults.workstation(folder):
        board = faults.Lab(folder, tiny_manifest)
        yield board
        board.close()


@pytest.fixture
def board(shared):
    shared.reset()
    return shared


@pytest.fixture(scope="module")
def outcomes():
    table = faults.Outcomes()
    yield table
    table.close()


@pytest.fixture
def impatient(monkeypatch):
    """The limits for a dead link, twenty times shorter."""
    keep = paramiko.Transport.set_keepalive
    monkeypatch.setattr(ssh, "LINK_SECONDS", 1.0)
    monkeypatch.setattr(ssh._Session, "set_keepalive", lambda session, _: keep(session, 0.5), raising=False)


def test_these_are_the_steps_of_a_push(board):
    board.push()
    seen = board.sshd.commands()
    assert tuple(seen) == STEPS
    assert board.current() == NEW


@pytest.fixture(scope="module")
def whole(shared):
    """Bytes of a push, to the device."""
    shared.reset()
    shared.link.counts()
    shared.push()
    return shared.link.counts()["to_device"]


@pytest.mark.parametrize("point", range(CUTS))
def test_link_cut(board, whole, impatient, outcomes, point):
    share = (point + random.Random(point).random()) / CUTS
    board.link.set(cut_after=max(1, int(share * whole)))
    error = board.fails()
    current = board.current()
    board.link.set()
    board.settle()
    outcomes.add(f"link cut after {share:.0%} of the bytes", error, current)
    assert error is not None or current == NEW


@pytest.mark.parametrize("quarter", range(4))
def test_link_cut_during_login(board, impatient, outcomes, monkeypatch, quarter):
    monkeypatch.setattr(ssh, "CONNECT_SECONDS", 1.0)
    board.link.counts()
    board.connect().close()
    login = board.link.counts()["to_device"]
    board.link.set(cut_after=max(1, login * (2 * quarter + 1) // 8))
    error = board.fails()
    current = board.current()
    board.link.set()
    board.settle()
    outcomes.add(f"link cut after {2 * quarter + 1}/8 of the login", error, current)
    assert error is not None


def test_link_cut_with_the_limits_as_they_are(board, whole, outcomes):
    board.link.set(cut_after=whole // 2)
    began = time.monotonic()
    error = board.fails()
    took = time.monotonic() - began
    current = board.current()
    assert took < ssh.LINK_SECONDS + 15, f"told after {took:.1f} s"
    board.link.set()
    board.settle()
    outcomes.add("link cut, limits as they are", error, current)


def test_link_that_comes_back_in_time(board, whole, outcomes):
    board.link.set(cut_after=whole // 2)
    healer = threading.Timer(3, board.link.set)
    healer.start()
    error = board.fails()
    healer.join()
    current = board.current()
    board.settle()
    outcomes.add("link cut for 3 s", error, current)
    assert error is None


def test_lossy_long_link(board, outcomes):
    board.link.counts()
    board.link.set(delay_ms=75, loss=0.01)
    error = board.fails()
    current = board.current()
    assert board.link.counts()["lost"] > 0
    board.link.set()
    board.settle()
    outcomes.add("1 % loss, 150 ms round trip", error, current)
    assert error is None


KILL = 'kill -9 "$(cat "$lab/workstation")"'


@pytest.mark.parametrize(
    ("stage", "step"),
    [(stage, step) for stage in ("before", "after") for step in STEPS] + [("in", "assemble"), ("in", "switch")],
)
def test_workstation_killed(board, outcomes, stage, step):
    # Before: its command never comes.  In: the command runs on alone.
    board.sshd.put(
        "after" if stage == "after" else "before", step, f"{KILL}; exit 1" if stage == "before" else KILL
    )
    goods = board.goods
    words = [goods.bundle(NEW), board.sshd.target, board.sshd.identity, goods.runtime]
    child = subprocess.Popen([sys.executable, "-c", PUSH, *map(str, words)], stderr=subprocess.DEVNULL)
    (board.sshd.lab / "workstation").write_text(str(child.pid))
    assert child.wait(60) == -9
    assert board.quiet() == []
    current = board.current()
    board.settle()
    outcomes.add(f"workstation killed {stage} {step}", "(killed)", current)
    if (stage, step) != ("in", "switch"):
        assert current == (NEW if (stage, step) == ("after", "switch") else OLD)


@pytest.mark.parametrize(
    ("stage", "step"),
    [("before", step) for step in STEPS] + [("after", step) for step in ("lock", "receive", "switch")],
)
def test_session_killed(board, outcomes, stage, step):
    board.sshd.put(stage, step, "kill -9 $PPID" + ("; exit 1" if stage == "before" else ""))
    error = board.fails()
    assert board.quiet() == []
    current = board.current()
    board.settle()
    outcomes.add(f"sshd killed {stage} {step}", error, current)
    assert error is not None
    assert current == (NEW if (stage, step) == ("after", "switch") else OLD)


def test_server_stopped_and_started(board, outcomes):
    board.sshd.put("before", "receive", 'touch "$lab/now"; sleep 0.5')

    def stop():
        while not (board.sshd.lab / "now").exists():
            time.sleep(0.01)
        board.sshd.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    error = board.fails()
    stopper.join()
    current = board.current()
    refused = board.fails()
    board.sshd.start()
    board.settle()
    outcomes.add("sshd stopped", error, current)
    assert error is not None
    assert "refuses connections" in refused.message


@pytest.mark.parametrize("second", [NEW, "third"])
def test_two_pushes_at_once(board, outcomes, second):
    board.goods.bundle(second)
    board.link.set(rate_mbit=20)
    errors = []
    pushes = [threading.Thread(target=lambda n=name: errors.append(board.fails(n))) for name in (NEW, second)]
    for thread in pushes:
        thread.start()
    for thread in pushes:
        thread.join()
    assert board.leftovers() == []
    current = board.current()
    board.link.set()
    board.settle()
    which = "of the same bundle" if second == NEW else "of two bundles"
    told = Counter("succeeds" if error is None else type(error).__name__ for error in errors)
    outcomes.add(f"two pushes at once, {which}", ", ".join(sorted(told, reverse=True)), current)
    assert current in (NEW, second)
    assert [error for error in errors if error is None]
    assert all(error is None or isinstance(error, LockedError) or "meanwhile" in error.message for error in errors)


@pytest.mark.parametrize("kind", ["changed", "unknown"])
def test_host_key(board, outcomes, kind, tmp_path, monkeypatch):
    if kind == "changed":
        board.sshd.restart(host_key="other_host_key")
    else:
        monkeypatch.setenv("EDGEFERRY_CONFIG_DIR", str(tmp_path))
        monkeypatch.setenv("HOME", str(tmp_path))
    error = board.fails()
    assert board.sshd.commands() == []
    monkeypatch.undo()
    if kind == "changed":
        board.sshd.restart()
    current = board.current()
    board.settle()
    outcomes.add(f"host key {kind}", error, current)
    assert type(error) is {"changed": ChangedHostKeyError, "unknown": UnknownHostKeyError}[kind]


HIDE = (
    "for path in /usr/bin/python[23]* /usr/local/bin/python[23]*; do\n"
    '  if [ -x "$path" ]; then mount --bind /dev/null "$path"; fi\ndone\nexec "$@"\n'
)


def test_no_python(board, outcomes):
    board.sshd.restart(["unshare", "--mount", "sh", "-c", HIDE, "sh"], path="/usr/bin:/bin")
    error = board.fails()
    commands = board.sshd.commands()
    board.sshd.restart()
    current = board.current()
    board.settle()
    outcomes.add("no Python on the board", error, current)
    assert isinstance(error, DeviceUnfitError)
    assert not {"lock", "receive", "assemble", "switch"} & set(commands)


@pytest.mark.parametrize("years", [-1, 1])
@pytest.mark.parametrize("step", ["survey", "publish", "assemble", "switch"])
def test_clock_jumps(board, outcomes, step, years):
    # What was written so far looks a year older or newer: the clock has just been set.
    when = f"{365 * abs(years)} days{' ago' if years > 0 else ''}"
    board.sshd.put("before", step, f"find {board.root} -exec touch -h -d '{when}' {{}} +")
    error = board.fails()
    current = board.current()
    board.settle()
    outcomes.add(f"clock set {'forward' if years > 0 else 'back'} a year before {step}", error, current)
    assert error is None


@pytest.mark.parametrize("word", ["WRONG", "CRASH", "HANG", "GARBAGE", "ENDLESS", "MUTE"])
def test_goldens_fail_on_the_device_only(board, outcomes, word):
    board.goods.bundle(word.lower(), word)
    error = board.fails(word.lower(), check_seconds=1)
    assert board.quiet() == []
    assert board.leftovers() == []
    current = board.current()
    board.settle()
    outcomes.add(f"self-check: {word.lower()}", error, current)
    assert error is not None
    assert current == OLD

"""A service that does not hold, and a workstation or a link that is gone while it is on trial: behind OpenSSH.

The board alone goes back to the release before; the next push succeeds.  Supervised, with the real runtime.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import faults
import paramiko
import pytest
from edgeferry_deploy import service, ssh
from edgeferry_deploy.connect import open_transport
from edgeferry_deploy.errors import DeployError, HealthError
from edgeferry_deploy.health import Bounds
from edgeferry_deploy.remove import remove

known = faults.load(faults.REPOSITORY / "tests" / "deploy" / "test_deploy_service.py")
broken_runtime, hasty, bundles, FAULTS = known.broken_runtime, known.hasty, known.bundles, known.FAULTS

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

TRIAL_SECONDS = 4
PUSH = f"""
import sys
from edgeferry_deploy import health, service
from edgeferry_deploy.connect import open_transport
from edgeferry_deploy.health import Bounds
from edgeferry_deploy.push import push
health.DEADLINE_SECONDS = service.DEADLINE_SECONDS = {TRIAL_SECONDS}
bundle, target, identity = sys.argv[1:]
with open_transport(target, identity) as transport:
    push(bundle, transport, any_arch=True, manager="supervised", bounds=Bounds(window_s=1, start_s=20))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A link, and a server behind it; the home is each test's own."""
    if obstacle := faults.obstacle():
        pytest.skip(obstacle)
    folder = tmp_path_factory.mktemp("service")
    with (
        faults.workstation(folder),
        faults.link.Link(seed=2) as over,
        faults.sshd.Sshd(folder / "lab", folder / "home", over.there, over.enter()) as server,
    ):
        target = faults.parse_target(server.target)
        faults.store(target, faults.fetch_host_key(target))
        yield over, server


@pytest.fixture
def board(place, bundles):
    """A board whose service runs the first release."""
    over, server = place
    over.set()
    device = known.Device(
        "ssh", server.target, server.home, server.identity, lambda: open_transport(server.target, server.identity)
    )
    with device.connect() as transport:
        board = known.Board(device, transport)
        board.old = board.push(bundles[0], known.CONFIG).release
        yield board
    over.set()
    for hook in server.lab.glob("*-*"):
        if hook.name.startswith(("before-", "after-", "did-")):
            hook.unlink()
    with contextlib.suppress(DeployError), device.connect() as transport:
        remove(transport, root=str(board.root), yes=True)


@pytest.fixture(scope="module")
def outcomes():
    table = faults.Outcomes()
    yield table
    table.close()


def settle(board, bundle: Path) -> str:
    """Which release runs: it goes on by itself, and the next push replaces it."""
    with board.device.connect() as board.transport:
        # Going back is to switch, then to restart: for a moment what is current does not run yet.
        board.wait(
            lambda seen: seen.trial == "" and seen.own and seen.frames > 0 and board.runs() == board.current
        )
        current = "old" if board.current == board.old else "new"
        assert board.push(bundle).health.ok
        assert board.runs() == board.current != board.old
        left = [str(path) for name in ("*.part", "*.tmp*", "*.new*") for path in board.root.rglob(name)]
        assert not left, f"left behind: {left}"
    return current


@pytest.mark.parametrize("fault", FAULTS)
def test_service_that_does_not_hold(board, bundles, broken_runtime, outcomes, fault):
    with pytest.raises(HealthError) as caught:
        board.push(bundles[1], runtime_folder=broken_runtime(fault), bounds=Bounds(window_s=8, start_s=8))
    assert caught.value.remedy
    current = settle(board, bundles[1])
    outcomes.add(f"service {fault}", caught.value, current)
    assert current == "old"


@pytest.mark.parametrize(("stage", "step"), [("after", "switch"), ("before", "commit"), ("after", "commit")])
def test_workstation_killed_during_the_trial(board, place, bundles, outcomes, stage, step):
    _, server = place
    words = [str(word) for word in (bundles[1], server.target, server.identity)]
    server.put(stage, step, 'kill -9 "$(cat "$lab/workstation")"' + ("; exit 1" if stage == "before" else ""))
    child = subprocess.Popen([sys.executable, "-c", PUSH, *words], stderr=subprocess.PIPE)
    (server.lab / "workstation").write_text(str(child.pid))
    _, said = child.communicate(timeout=60)
    assert child.returncode == -9, said
    current = settle(board, bundles[1])
    outcomes.add(f"workstation killed {stage} {step}, with a service", "(killed)", current)
    assert current == ("new" if (stage, step) == ("after", "commit") else "old")


def test_link_cut_during_the_trial(board, place, bundles, outcomes, monkeypatch):
    over, _ = place
    keep = paramiko.Transport.set_keepalive
    monkeypatch.setattr(service, "DEADLINE_SECONDS", TRIAL_SECONDS)
    monkeypatch.setattr(ssh, "LINK_SECONDS", 1.0)
    monkeypatch.setattr(ssh._Session, "set_keepalive", lambda session, _: keep(session, 0.5), raising=False)
    cut = lambda *_, **__: over.set(cut=True)  # noqa: E731
    watch = service.watch
    monkeypatch.setattr(service, "watch", lambda *words, **options: cut() or watch(*words, **options))
    with board.device.connect() as transport, pytest.raises(DeployError) as caught:
        known.Board(board.device, transport).push(bundles[1])
    assert caught.value.remedy
    monkeypatch.setattr(service, "watch", watch)
    over.set()
    current = settle(board, bundles[1])
    outcomes.add("link cut during the trial", caught.value, current)
    assert current == "old"

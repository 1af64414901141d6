"""A release in service: proven over a window, or taken back, whoever fails; supervised, with the real runtime."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import edgeferry_runtime
import pytest
from edgeferry_deploy import health as health_module
from edgeferry_deploy import service as service_module
from edgeferry_deploy.config import pull
from edgeferry_deploy.config import push as push_config
from edgeferry_deploy.errors import CommandError, HealthError, LinkLostError, LockedError
from edgeferry_deploy.health import Bounds, ask
from edgeferry_deploy.history import history
from edgeferry_deploy.push import PushResult, preview, push
from edgeferry_deploy.remove import remove
from edgeferry_deploy.rollback import rollback
from edgeferry_deploy.status import status
from edgeferry_deploy.survey import look
from edgeferry_deploy.transport import Transport
from edgeferry_runtime.bundle import write_bundle
from edgeferry_runtime.run_config import LoopConfig, RunConfig

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a board's commands need a POSIX shell")

CONFIG = RunConfig("synthetic:64x48@20", loop=LoopConfig(pipelined="off"))
OTHER = RunConfig("synthetic:80x60@20", loop=LoopConfig(pipelined="off"))
QUICK = Bounds(window_s=1, start_s=20)

# What a runtime does that passes its goldens and does not hold in service.
FAULTS = {
    "crashes at start": "raise SystemExit('no such luck')",
    "crashes later": "threading.Timer(0.7, lambda: os._exit(3)).start()",
    "hangs": "threading.Timer(0.7, lambda: os.kill(os.getpid(), signal.SIGSTOP)).start()",
    "leaks": "kept = []; threading.Thread(target=lambda: [kept.append(bytearray(b'1' * 9_000_000)) or "
    "time.sleep(0.05) for _ in range(99)], daemon=True).start()",
}


def test_a_first_config_that_does_not_hold_leaves_the_release_as_it_was(board, bundles):
    release = board.push(bundles[0]).release
    with pytest.raises(HealthError, match=r"no run\.json was there before, so nothing runs"):
        push_config(
            board.transport, RunConfig("/nowhere/there.avi"), root=str(board.root), bounds=Bounds(1, 6),
            manager="supervised",
        )  # fmt: skip
    assert board.current == release
    assert board.push(bundles[0]).health is None


@pytest.fixture
def broken_runtime(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the runtime whose `run` does one of FAULTS first."""

    def make(fault: str) -> Path:
        folder = tmp_path / "broken" / "edgeferry_runtime"
        package = Path(edgeferry_runtime.__file__).parent
        shutil.copytree(package, folder, ignore=shutil.ignore_patterns("__pycache__"))
        file = folder / "running.py"
        mark = "    settings = with_config(arguments)\n"
        text = file.read_text()
        assert text.count(mark) == 1
        file.write_text(text.replace(mark, f"    import threading, time\n    {FAULTS[fault]}\n{mark}"))
        return folder

    return make


class Board:
    """A device, its transport, and what a test asks of it."""

    def __init__(self, device, transport: Transport) -> None:
        self.device, self.transport = device, transport
        self.root = device.root

    def push(self, bundle: Path, config: RunConfig | None = None, **options: object) -> PushResult:
        text = config.to_json().encode() if config else None
        options = {"bounds": QUICK, "any_arch": True, **options}
        return push(bundle, self.transport, config=text, manager="supervised", **options)

    def sample(self) -> health_module.Sample:
        return ask(self.transport, str(self.root))

    def wait(self, holds: Callable[[health_module.Sample], bool], seconds: float = 25) -> health_module.Sample:
        until = time.monotonic() + seconds
        while not holds(found := self.sample()):
            assert time.monotonic() < until, found
            time.sleep(0.2)
        return found

    def wait_running(self) -> health_module.Sample:
        return self.wait(lambda seen: seen.active == "running" and seen.own and seen.frames > 0)

    @property
    def current(self) -> str:
        return self.device.link("current")

    def runs(self) -> str:
        """The release of the process that runs."""
        with contextlib.suppress(OSError, ValueError):  # it ends, or is still the shell that starts it
            words = Path(f"/proc/{self.sample().pid}/cmdline").read_bytes().split(b"\0")
            return os.path.basename(words[words.index(b"--bundle") + 1].decode())
        return ""

    def events(self) -> list[tuple[str, str]]:
        return [(event.action, event.result) for event in history(self.transport, root=str(self.root))[0]]


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(health_module, "INTERVAL", 0.25)
    monkeypatch.setattr(health_module, "STILL_SECONDS", 3.0)
    monkeypatch.setattr(service_module, "RETURN", Bounds(window_s=0.5, start_s=20))


@contextlib.contextmanager
def at_work(device) -> Iterator[Board]:
    with device.connect() as transport:
        board = Board(device, transport)
        yield board
        with contextlib.suppress(Exception):
            remove(transport, root=str(board.root), yes=True)


@pytest.fixture
def board(tmp_path) -> Iterator[Board]:
    """On the local twin; what an SSH session does to a supervised service has a test of its own."""
    from edgeferry_deploy.local import LocalTransport

    home = tmp_path / "home"
    with at_work(Device("local", f"local:{home}", home, None, lambda: LocalTransport(home))) as board:
        yield board


class Device:
    """As the other tests' device."""

    def __init__(self, kind, target, home, identity, connect) -> None:
        self.kind, self.target, self.home, self.identity, self.connect = kind, target, home, identity, connect
        self.root = home / ".local" / "share" / "edgeferry"

    def link(self, name: str) -> str:
        return os.path.basename(os.readlink(self.root / name))

    def releases(self) -> list[str]:
        return sorted(os.listdir(self.root / "releases"))


@pytest.fixture
def bundles(make_contents, tmp_path) -> list[Path]:
    """Two versions of a tiny classifier that the real runtime runs."""
    paths = [tmp_path / f"tiny-{seed}.ferry" for seed in (1, 2)]
    for seed, path in enumerate(paths, 1):
        write_bundle(path, *make_contents("tiny", seed))
    return paths


def test_over_ssh_the_service_outlives_the_session(start_device, bundles, tmp_path):
    from edgeferry_deploy.connect import open_transport

    started = start_device(tmp_path / "home")
    device = Device(
        "ssh", started.target, tmp_path / "home", started.identity,
        lambda: open_transport(started.target, started.identity),
    )  # fmt: skip
    with at_work(device) as board:
        first = board.push(bundles[0], CONFIG)
        board.transport.close()
        with device.connect() as board.transport:
            time.sleep(3)  # longer than what a virtual device leaves running after its session
            assert board.wait_running().restarts == 0
            assert board.runs() == first.release
            assert board.push(bundles[1]).health.ok
            remove(board.transport, root=str(board.root), yes=True)


def test_a_push_ends_in_a_proven_service_and_the_next_one_replaces_it(board, bundles):
    first = board.push(bundles[0], CONFIG)
    assert first.health.ok
    assert first.health.results > 10
    assert board.runs() == first.release == board.current
    second = board.push(bundles[1])
    assert board.runs() == second.release == board.current != first.release
    assert board.device.link("previous") == first.release
    assert board.events() == [("push", "switched"), ("push", "switched")]
    assert not (board.root / "state" / "trial").exists()
    shown = status(board.transport, root=str(board.root))
    assert shown["service"]["active"] == "running"
    assert shown["service"]["restarts"] == 0
    assert shown["on_trial"] == ""
    record = json.loads((board.root / "releases" / second.release / "release.json").read_text())
    assert record["health"]["ok"] is True
    assert shown["current"]["proven"] is True
    back = rollback(board.transport, root=str(board.root), bounds=QUICK)
    assert board.runs() == back.release == first.release
    assert back.health.ok


def test_nothing_new_is_watched_all_the_same_and_a_stopped_service_is_started(board, bundles):
    board.push(bundles[0], CONFIG)
    again = board.push(bundles[0])
    assert not again.switched
    assert again.bytes_sent == 0
    assert again.health.ok
    pid = board.sample().pid
    assert again.health.restarts == 0
    board.transport.run(["sh", "-c", f"sh {board.root}/service/control stop {board.root}"])
    assert board.sample().active == "stopped"
    board.push(bundles[0])
    assert board.wait_running().pid != pid


def test_a_dry_run_shows_what_becomes_of_the_service(board, bundles):
    def shown(bundle: Path, config: RunConfig | None) -> list[str]:
        text = config.to_json().encode() if config else None
        return preview(bundle, board.transport, config=text, any_arch=True).lines()

    assert "~ run.json  new" in shown(bundles[0], CONFIG)
    assert not any("service" in line for line in shown(bundles[0], None))
    board.push(bundles[0], CONFIG)
    assert any("service  started anew" in line for line in shown(bundles[1], None))
    assert "~ run.json  changed" in shown(bundles[0], OTHER)
    assert shown(bundles[0], CONFIG)[-1].startswith("nothing would change")


def test_without_a_config_nothing_runs(board, bundles):
    result = board.push(bundles[0])
    assert result.health is None
    assert not (board.root / "service").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_hold_is_taken_back(board, bundles, broken_runtime, fault):
    old = board.push(bundles[0], CONFIG)
    bounds = Bounds(window_s=8, start_s=8)
    with pytest.raises(HealthError) as caught:
        board.push(bundles[1], runtime_folder=broken_runtime(fault), bounds=bounds)
    assert f"{old.release} is current again and runs" in caught.value.message
    assert board.transport.name in caught.value.message
    assert caught.value.health.ok is False
    assert board.current == old.release == board.runs()
    assert board.device.releases() == [old.release]
    assert not (board.root / "state" / "trial").exists()
    assert board.events()[-1][0] == "revert"
    assert look(board.transport, str(board.root)).holder is None
    if fault == "crashes at start":
        assert "no such luck" in caught.value.remedy


def test_the_first_release_that_does_not_hold_leaves_nothing_running(board, bundles, broken_runtime):
    with pytest.raises(HealthError, match="nothing was current before"):
        board.push(bundles[0], CONFIG, runtime_folder=broken_runtime("crashes at start"))
    assert not (board.root / "current").exists()
    assert board.device.releases() == []
    assert not (board.root / "shared" / "run.json").exists()
    board.wait(lambda seen: seen.active == "stopped")
    assert board.push(bundles[0], CONFIG).health.ok


def test_a_workstation_that_vanishes_is_not_waited_for(board, bundles, monkeypatch):
    """The board alone goes back: nobody polls, nobody holds the lease."""
    old = board.push(bundles[0], CONFIG)
    monkeypatch.setattr(service_module, "DEADLINE_SECONDS", 3)

    def vanish(*_: object, **__: object) -> None:
        raise LinkLostError("the link broke")

    monkeypatch.setattr(service_module, "watch", vanish)
    with pytest.raises(LinkLostError, match=f"goes back to {old.release} by itself within 3 s"):
        board.push(bundles[1])
    assert board.current != old.release
    # The links go back first, then the service that runs is ended.
    board.wait(lambda seen: seen.trial == "" and seen.own and board.runs() == old.release)
    assert board.current == old.release
    assert board.events()[-1] == ("revert", "reverted: no word from the workstation")
    monkeypatch.undo()
    assert board.push(bundles[1]).health.ok


def test_ctrl_c_takes_it_back_at_once(board, bundles, monkeypatch):
    old = board.push(bundles[0], CONFIG)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(service_module, "watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        board.push(bundles[1])
    assert board.current == old.release
    board.wait(lambda seen: seen.own and board.runs() == old.release)


@pytest.mark.parametrize("half", ["trial", "reverting"])
def test_a_power_cut_during_the_trial_takes_it_back_at_the_next_start(board, bundles, monkeypatch, half):
    old = board.push(bundles[0], CONFIG)

    def vanish(*_: object, **__: object) -> None:
        raise LinkLostError("the link broke")

    monkeypatch.setattr(service_module, "watch", vanish)
    with pytest.raises(LinkLostError):
        board.push(bundles[1])
    monkeypatch.undo()
    new = board.current
    board.wait_running()
    assert board.runs() == new != old.release
    trial = board.root / "state" / "trial"
    (trial / "boot").write_text("another-boot\n")
    if half == "reverting":
        trial.rename(trial.with_name("reverting"))
    os.kill(board.sample().pid, signal.SIGKILL)
    board.wait(lambda seen: seen.trial == "" and seen.own)
    assert board.runs() == old.release == board.current
    assert new not in board.device.releases()


def test_what_an_earlier_run_left_on_trial_is_taken_back_by_the_next(board, bundles, monkeypatch):
    old = board.push(bundles[0], CONFIG)

    def vanish(*_: object, **__: object) -> None:
        raise LinkLostError("the link broke")

    monkeypatch.setattr(service_module, "watch", vanish)
    monkeypatch.setattr(service_module, "DEADLINE_SECONDS", 600)
    with pytest.raises(LinkLostError):
        board.push(bundles[1])
    monkeypatch.undo()
    shown = status(board.transport, root=str(board.root))
    assert shown["on_trial"] == board.current
    result = board.push(bundles[1])
    assert result.previous == old.release
    assert [result for _, result in board.events()] == [
        "switched", "reverted: found unproven by the next run", "switched",
    ]  # fmt: skip


def test_a_crash_is_mended_by_the_supervisor_and_told(board, bundles):
    board.push(bundles[0], CONFIG)
    first = board.sample()
    os.kill(first.pid, signal.SIGKILL)
    board.wait(lambda seen: seen.own and seen.pid != first.pid)
    assert board.sample().restarts == 1
    assert board.current == board.runs()


def test_a_config_is_proven_or_taken_back_like_a_release(board, bundles):
    board.push(bundles[0], CONFIG)
    found = push_config(board.transport, OTHER, root=str(board.root), bounds=QUICK, manager="supervised")
    assert found["changed"]
    assert found["health"]["ok"]
    assert pull(board.transport, root=str(board.root)) == OTHER
    again = push_config(board.transport, OTHER, root=str(board.root), bounds=QUICK)
    assert again["changed"] is False
    missing = RunConfig("/nowhere/there.avi")
    with pytest.raises(HealthError, match=r"the new run\.json does not hold .* the one before is back and runs"):
        push_config(board.transport, missing, root=str(board.root), bounds=Bounds(1, 6))
    assert pull(board.transport, root=str(board.root)) == OTHER
    board.wait_running()


def test_a_config_without_a_release_waits_for_one(board, bundles):
    (board.root).mkdir(parents=True)
    found = push_config(board.transport, CONFIG, root=str(board.root), manager="supervised")
    assert found["health"] is None
    assert board.push(bundles[0]).health.ok


def test_while_it_is_watched_the_board_is_locked(board, bundles, monkeypatch):
    real = service_module.watch
    seen = []

    def look_in(transport, *arguments, **options):
        with board.device.connect() as other, pytest.raises(LockedError):
            push(bundles[1], other, any_arch=True)
        seen.append(True)
        return real(transport, *arguments, **options)

    monkeypatch.setattr(service_module, "watch", look_in)
    assert board.push(bundles[0], CONFIG).health.ok
    assert seen == [True]


def test_remove_leaves_no_process_and_no_file(board, bundles):
    board.push(bundles[0], CONFIG)
    pid = board.sample().pid
    runtime = board.transport.run(
        ["sh", "-c", f"sh {board.root}/service/control runtime {board.root}"]
    ).stdout.decode()  # fmt: skip
    assert Path(runtime.strip()).is_dir()
    remove(board.transport, root=str(board.root), yes=True)
    assert not board.root.exists()
    assert not Path(runtime.strip()).exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_manager_that_cannot_be_had_is_refused_before_the_switch(board, bundles):
    if os.path.isdir("/run/systemd/system"):
        pytest.skip("this machine runs systemd")
    with pytest.raises(CommandError, match="needs systemd"):
        push(bundles[0], board.transport, config=CONFIG.to_json().encode(), manager="system", any_arch=True)
    assert not (board.root / "current").exists()
    assert board.device.releases() == []
    assert board.events()[0][1].startswith("refused: ")

"""The lease: one owner at a time, ended by itself, by its owner's death, by force, and by nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from edgeferry_deploy import cli, commands, lock, owner, upkeep
from edgeferry_deploy.errors import CommandError, DeviceReplyError, LinkLostError, LockedError, SelfCheckError
from edgeferry_deploy.local import LocalTransport
from edgeferry_deploy.lock import hold, holder, release
from edgeferry_deploy.owner import Holder
from edgeferry_deploy.push import push
from edgeferry_deploy.rollback import rollback
from edgeferry_deploy.status import status, status_lines
from edgeferry_runtime.bundle import Bundle
from hypothesis import given
from hypothesis import strategies as st

SHELLS = ["dash", "busybox"]


@pytest.fixture
def here(tmp_path):
    """A local device, and its root."""
    transport = LocalTransport(tmp_path / "home")
    return transport, str(tmp_path / "home" / ".local" / "share" / "edgeferry")


@pytest.fixture
def foreign(monkeypatch):
    """Whoever takes a lease from now on seems to be on another workstation."""

    def become(name):
        monkeypatch.setattr(owner, "machine", lambda: name)

    return become


def test_second_one_is_told_who_why_since_when_and_how_to_go_on(device, make_bundle, runtime_folder):
    with device.connect() as transport, device.connect() as other:
        with hold(transport, str(device.root), "push digits-0123456789ab", expected=""):
            with pytest.raises(LockedError) as caught:
                push(make_bundle(), other, runtime_folder=runtime_folder)
            for words in (
                "cannot push digits-",
                device.target,
                f"process {os.getpid()}",
                "'push digits-0123456789ab'",
            ):
                assert words in caught.value.message
            assert " s ago, for " in caught.value.message
            assert f"edgeferry lock {device.target} release --force" in caught.value.remedy
            assert 0 < caught.value.holder.left <= lock.LEASE_SECONDS
            assert not (device.root / "releases").exists()
            assert "locked    by" in "\n".join(status_lines(status(other)))
        assert holder(other) is None
        assert push(make_bundle(), other, runtime_folder=runtime_folder).switched


def test_of_two_pushes_at_once_one_wins_and_the_other_is_refused_or_comes_after(
    device, make_bundle, runtime_folder
):
    bundles = [make_bundle(salt="1", size=200_000), make_bundle(salt="2", size=200_000)]
    barrier, outcomes = threading.Barrier(2), {}

    def go(index):
        with device.connect() as transport:
            barrier.wait()
            try:
                outcomes[index] = push(bundles[index], transport, runtime_folder=runtime_folder)
            except (LockedError, CommandError) as error:
                outcomes[index] = error

    threads = [threading.Thread(target=go, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    won = [found for found in outcomes.values() if not isinstance(found, Exception)]
    lost = [found for found in outcomes.values() if isinstance(found, Exception)]
    assert len(won) + len(lost) == 2
    assert won
    assert all(isinstance(error, LockedError) or "somebody else switched" in str(error) for error in lost)
    with Bundle.open(device.root / "current") as bundle:
        bundle.verify()
    with device.connect() as transport:
        assert holder(transport) is None
        for bundle in bundles:
            push(bundle, transport, runtime_folder=runtime_folder)


def test_only_one_of_many_takes_the_same_lease(here):
    transport, root = here
    barrier, taken = threading.Barrier(8), []

    def go(index):
        argv = upkeep.take(root, f"{index:016x}", 60, "{}", "", "")
        barrier.wait()
        if b"state\ttaken" in LocalTransport(transport.folder).run(argv).stdout:
            taken.append(index)

    for _ in range(3):
        threads = [threading.Thread(target=go, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(taken) == 1
        transport.run(upkeep.give(root, ""))
        taken.clear()
        barrier.reset()
    assert os.listdir(f"{root}/lock") == ["3"]


@pytest.mark.parametrize("change", ["past its end", "another boot", "torn", "empty", "binary"])
def test_lease_ends_with_time_or_boot_and_a_torn_one_does_not_block(here, foreign, change):
    transport, root = here
    os.makedirs(f"{root}/lock")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    up = int(float(Path("/proc/uptime").read_text().split()[0]))
    contents = {
        "past its end": f"{boot} {up - 1} {up - 61} aa\n{{}}\n",
        "another boot": f"{'0' * 36} {up + 1000} {up} aa\n{{}}\n",
        "torn": f"{boot} {up + 10}",
        "empty": "",
        "binary": "\udcff\0\udcfe \x1b[2J\n",
    }
    with open(f"{root}/lock/7", "w", errors="surrogateescape") as file:
        file.write(f"{boot} {up + 1000} {up} aa\n{{}}\n")
    assert holder(transport).by == "somebody"
    with open(f"{root}/lock/7", "w", errors="surrogateescape") as file:
        file.write(contents[change])
    assert holder(transport) is None
    with hold(transport, root, "push x", expected=""):
        assert holder(transport).reason == "push x"
    assert os.listdir(f"{root}/lock") == ["8"]


def test_clock_of_the_device_does_not_matter(here, tmp_path):
    transport, root = here
    os.makedirs(tmp_path / "bin")
    (tmp_path / "bin" / "date").write_text("#!/bin/sh\necho 1\n")
    (tmp_path / "bin" / "date").chmod(0o755)
    odd = LocalTransport(transport.folder, path=f"{tmp_path}/bin:{os.environ['PATH']}")
    with hold(transport, root, "push x", expected=""):
        os.utime(f"{root}/lock/1", (1, 1))
        assert holder(odd).left > 50


def test_lease_is_renewed_while_a_long_step_runs(here, monkeypatch):
    transport, root = here
    monkeypatch.setattr(lock, "LEASE_SECONDS", 2)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.3)
    with hold(transport, root, "push x", expected="") as lease:
        time.sleep(3.2)
        found = holder(transport)
        assert found.token == lease.token
        assert found.age >= 3
        lease.check()


def test_lease_that_was_forced_away_is_noticed_on_both_sides(here, make_bundle, runtime_folder, monkeypatch):
    transport, root = here
    first = push(make_bundle(), transport, runtime_folder=runtime_folder)

    class Forced(LocalTransport):
        """Somebody releases the lock by force before the command with this name."""

        before = ""

        def run(self, argv, *arguments, **options):
            if argv[3] == f"edgeferry-{self.before}":
                assert release(transport, reason="stuck").reason.startswith("push digits-")
            return super().run(argv, *arguments, **options)

    for name in ("assemble", "switch"):
        forced = Forced(transport.folder)
        forced.before = name
        with pytest.raises(CommandError, match="lock is not held any more") as caught:
            push(make_bundle(salt=name), forced, runtime_folder=runtime_folder)
        assert "nothing was switched" in caught.value.remedy
        assert os.path.basename(os.readlink(f"{root}/current")) == first.release
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    with hold(transport, root, "push x", expected=first.release) as lease:
        release(transport)
        for _ in range(100):
            if lease.lost:
                break
            time.sleep(0.05)
        with pytest.raises(LockedError, match="lost meanwhile"):
            lease.check()
    log = [json.loads(line) for line in Path(f"{root}/log/audit.jsonl").read_text().splitlines()]
    assert [line["action"] for line in log].count("unlock") == 3
    assert log[1]["reason"] == "stuck"


def test_lease_of_a_process_that_ended_here_is_taken_over_and_of_one_elsewhere_is_not(here, foreign):
    transport, root = here
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid, machine, goes in (
        (dead.pid, owner.machine(), True),
        (os.getppid(), owner.machine(), False),
        (dead.pid, "elsewhere", False),
        (0, owner.machine(), False),
        ("1", owner.machine(), False),
    ):
        text = json.dumps({"by": "me@here", "pid": pid, "machine": machine, "reason": "push y"})
        transport.run(upkeep.take(root, "aa", 60, text, "", ""))
        if goes:
            with hold(transport, root, "push x", expected=""):
                assert holder(transport).reason == "push x"
        else:
            with pytest.raises(LockedError, match="'push y'"), hold(transport, root, "push x", expected=""):
                pass
        release(transport)


def test_switch_that_is_refused_ends_its_lease_by_itself(here, make_bundle, runtime_folder):
    transport, root = here
    first = push(make_bundle(), transport, runtime_folder=runtime_folder)
    with hold(transport, root, "push x", expected=first.release) as lease:
        argv = commands.switch(root, "gone-0123456789ab", first.release, "0" * 8, "", "", "{}", lease.token)
        assert transport.run(argv).exit_status == 3
        assert holder(transport) is None


@pytest.mark.parametrize("word", ["WRONG", "CRASH"])
def test_a_push_that_is_refused_leaves_no_lock(device, make_bundle, runtime_folder, word):
    with device.connect() as transport:
        with pytest.raises(SelfCheckError):
            push(make_bundle(word), transport, runtime_folder=runtime_folder)
        assert holder(transport) is None


KILLED = """
import os, signal, sys
from edgeferry_deploy.local import LocalTransport
from edgeferry_deploy.push import push
folder, bundle, runtime, at = sys.argv[1:]
class Killed(LocalTransport):
    def run(self, argv, *arguments, **options):
        done = super().run(argv, *arguments, **options)
        if self.round_trips == int(at):
            os.kill(os.getpid(), signal.SIGKILL)
        return done
push(bundle, Killed(folder), runtime_folder=runtime)
"""


def test_workstation_killed_at_every_step_blocks_nobody_who_may_know_it(tmp_path, make_bundle, runtime_folder):
    old, new = make_bundle(), make_bundle(salt="2", size=200_000)
    killed = 0
    for at in range(1, 20):
        folder = tmp_path / str(at)
        transport = LocalTransport(folder)
        push(old, transport, runtime_folder=runtime_folder)
        argv = [sys.executable, "-c", KILLED, str(folder), str(new), str(runtime_folder), str(at)]
        status = subprocess.run(argv, check=False).returncode
        with Bundle.open(folder / ".local" / "share" / "edgeferry" / "current") as bundle:
            bundle.verify()
        push(new, transport, runtime_folder=runtime_folder)
        assert holder(transport) is None
        if status != -signal.SIGKILL:
            assert status == 0
            break
        killed += 1
    assert killed >= 7


def test_workstation_elsewhere_that_was_cut_blocks_for_the_lease_only(
    tmp_path, make_bundle, runtime_folder, foreign, monkeypatch
):
    class Cut(LocalTransport):
        def run(self, argv, *arguments, **options):
            if self.round_trips >= 3:
                raise LinkLostError("cut")
            return super().run(argv, *arguments, **options)

    monkeypatch.setattr(lock, "LEASE_SECONDS", 2)
    foreign("elsewhere")
    with pytest.raises(LinkLostError):
        push(make_bundle(), Cut(tmp_path), runtime_folder=runtime_folder)
    foreign("here")
    transport = LocalTransport(tmp_path)
    with pytest.raises(LockedError):
        push(make_bundle(), transport, runtime_folder=runtime_folder)
    time.sleep(2.1)
    assert push(make_bundle(), transport, runtime_folder=runtime_folder).switched


def test_push_with_nothing_new_needs_no_lock(here, make_bundle, runtime_folder):
    transport, root = here
    first = push(make_bundle(), transport, runtime_folder=runtime_folder)
    with hold(transport, root, "push x", expected=first.release):
        assert not push(make_bundle(), transport, runtime_folder=runtime_folder).switched


def test_somebody_who_switched_since_the_look_is_noticed_before_anything_is_sent(
    here, make_bundle, runtime_folder
):
    transport, root = here
    first = push(make_bundle(), transport, runtime_folder=runtime_folder)
    says = pytest.raises(CommandError, match=f"current is releases/{first.release}, not nothing")
    with says, hold(transport, root, "push x", expected=""):
        pass
    assert holder(transport) is None


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("undo", [True, False])
def test_switch_cut_between_its_two_renames_is_mended(here, make_bundle, runtime_folder, tmp_path, shell, undo):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    transport, root = here
    results = [push(make_bundle(salt=salt), transport, runtime_folder=runtime_folder) for salt in "12"]
    # What a cut rollback from 2 to 1 leaves: previous is 2 already, current is 2 still.
    os.remove(f"{root}/previous")
    os.symlink(f"releases/{results[1].release}", f"{root}/previous")
    if undo:
        os.symlink(f"releases/{results[0].release}", f"{root}/undo")
    found = status(transport)
    assert (found["previous"] or {}).get("id") == (results[0].release if undo else None)
    argv = upkeep.take(root, "aa", 60, "{}", "", results[1].release)
    argv[:1] = [shutil.which(shell)] + (["sh"] if shell == "busybox" else [])
    assert b"taken" in transport.run(argv).stdout
    transport.run(upkeep.give(root, "aa"))
    assert not os.path.lexists(f"{root}/undo")
    if undo:
        assert os.readlink(f"{root}/previous") == f"releases/{results[0].release}"
        assert rollback(transport).release == results[0].release
    else:
        assert not os.path.lexists(f"{root}/previous")
        assert rollback(transport, results[0].release).release == results[0].release


@pytest.mark.parametrize("stop", range(1, 8))
def test_switch_that_stops_at_any_rename_or_fsync_keeps_the_way_back(
    tmp_path, make_bundle, runtime_folder, bare_path, stop
):
    """Every mv and sync of the switch counts; the device dies at the one with this number."""
    path = bare_path(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    transport = LocalTransport(tmp_path / "home", path=path)
    results = [push(make_bundle(salt=salt), transport, runtime_folder=runtime_folder) for salt in "12"]
    count = tmp_path / "count"
    for tool in ("sync", "mv"):
        real = os.path.realpath(os.path.join(path, tool))
        os.remove(os.path.join(path, tool))
        with open(os.path.join(path, tool), "w") as file:
            file.write(f'#!/bin/sh\n[ -e {count} ] || exec {real} "$@"\necho x >>{count}\n')
            file.write(f'[ "$(($(wc -l <{count})))" -lt {stop + 1} ] || kill -9 $PPID\nexec {real} "$@"\n')
        os.chmod(os.path.join(path, tool), 0o755)

    class Dying(LocalTransport):
        def run(self, argv, *arguments, **options):
            if argv[3] == "edgeferry-switch":
                count.write_text("")
            return super().run(argv, *arguments, **options)

    try:
        rollback(Dying(tmp_path / "home", path=path))
        finished = True
    except CommandError:
        finished = False
    count.unlink()
    found = status(transport)
    names = [item.release for item in results]
    assert {found["current"]["id"], found["previous"]["id"]} == set(names)
    if not finished:
        assert rollback(transport).release == found["previous"]["id"]


def test_lock_command_shows_and_ends_it(here, capsys):
    transport, root = here
    target = transport.name
    assert cli.main(["lock", target, "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["locked"] is False
    with hold(transport, root, "push x", expected=""):
        assert cli.main(["lock", target, "status"]) == 0
        assert "'push x'" in capsys.readouterr().out
        assert cli.main(["lock", target, "release"]) == 2
        assert "--force" in capsys.readouterr().err
        assert cli.main(["lock", target, "release", "--force", "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert (shown["locked"], shown["released"], shown["holder"]["reason"]) == (False, True, "push x")
        assert cli.main(["lock", target, "release", "--force"]) == 0
        assert "is not locked" in capsys.readouterr().out


@pytest.mark.parametrize(
    "reply", ["", "edgeferry-lease 1\nend\n", "edgeferry-lease 1\nstate\tmaybe\nend\n", "\x1b[2J"]
)
def test_device_that_answers_nonsense_when_it_is_locked(here, reply):
    transport, root = here

    class Odd(LocalTransport):
        def run(self, argv, *arguments, **options):
            return super().run(["printf", "%s", reply])

    with pytest.raises(DeviceReplyError) as caught, hold(Odd(transport.folder), root, "push x", expected=""):
        pass
    assert "\x1b" not in str(caught.value)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_holder_is_safe_to_show_whatever_the_device_says(words):
    assert str(Holder.parse(words)).isprintable()
    text = json.dumps({"by": words, "pid": -5, "reason": "\x1b[2J" + "".join(words)})
    found = Holder.parse(["\x07", "9" * 50, "-1", text])
    assert str(found).isprintable()
    assert not found.gone()

"""What a push would do, what was done, going back to a named release, requirements, and leaving nothing behind."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from edgeferry_deploy import cli, upkeep
from edgeferry_deploy.errors import (
    DeviceReplyError,
    DeviceUnfitError,
    LockedError,
    NoReleaseError,
    RemoveError,
    SelfCheckError,
    TargetError,
)
from edgeferry_deploy.history import history, parse_history
from edgeferry_deploy.local import LocalTransport
from edgeferry_deploy.lock import hold
from edgeferry_deploy.push import preview, push
from edgeferry_deploy.release import Record
from edgeferry_deploy.remove import parse_contents, remove
from edgeferry_deploy.requirements import unmet
from edgeferry_deploy.rollback import plan_rollback, rollback
from edgeferry_deploy.survey import Python, Survey, look
from edgeferry_runtime.bundle import Bundle, write_bundle
from edgeferry_runtime.manifest import Requires
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def ship(device, make_bundle, runtime_folder):
    def ship(word="FINE", salt="1", **options):
        with device.connect() as transport:
            return push(make_bundle(word, salt=salt), transport, runtime_folder=runtime_folder, **options)

    return ship


@pytest.fixture
def look_ahead(device, make_bundle, runtime_folder):
    def look_ahead(salt="1", **options):
        with device.connect() as transport:
            found = preview(make_bundle(salt=salt), transport, runtime_folder=runtime_folder, **options)
            assert transport.round_trips == 1
        return found

    return look_ahead


def tree(folder):
    """Every path below a folder with its time of change; Python's own caches do not count."""
    return {
        path: path.lstat().st_mtime_ns for path in Path(folder).rglob("*") if ".virtual-device" not in path.parts
    }


def test_dry_run_shows_a_first_push_and_writes_nothing(device, look_ahead, ship):
    found = look_ahead()
    assert not device.root.exists()
    plain = found.to_dict()
    assert plain["current"] == {"before": "", "after": plain["release"]}
    assert plain["new_release"]
    assert plain["dry_run"]
    assert len(plain["send"]) == 13
    text = "\n".join(found.lines())
    assert f"~ current  nothing -> {plain['release']}" in text
    assert "+ model.tflite  4.0 kB" in text
    assert "+ the runtime" in text
    result = ship()
    assert (result.release, result.bytes_sent) == (plain["release"], plain["bytes"])


def test_dry_run_shows_what_changes_what_goes_and_who_is_at_work(device, look_ahead, ship):
    results = [ship(salt=str(index)) for index in range(2)]
    before = tree(device.home)
    found = look_ahead("2", keep=2)
    assert tree(device.home) == before
    plain = found.to_dict()
    assert [item["member"] for item in plain["send"]] == ["manifest.json", "model.tflite"]
    assert plain["prune"] == {"releases": [results[0].release], "envs": []}
    lines = found.lines()
    assert f"~ current  {results[1].release} -> {plain['release']}" in lines
    assert f"~ previous  {results[0].release} -> {results[1].release}" in lines
    assert f"- release  {results[0].release}" in lines
    with device.connect() as transport, hold(transport, str(device.root), "push x", expected=results[1].release):
        assert "! locked by" in look_ahead("2").lines()[-1]
    ship(salt="2", keep=2)
    assert results[0].release not in device.releases()


def test_dry_run_of_what_is_current_says_that_nothing_would_change(look_ahead, ship):
    ship()
    found = look_ahead()
    assert found.lines()[-1].startswith("nothing would change")
    assert not found.to_dict()["writes"]


def test_dry_run_from_the_command_line(tmp_path, make_bundle, capsys):
    target = f"local:{tmp_path / 'home'}"
    assert cli.main(["push", str(make_bundle()), target, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dry_run"]
    assert cli.main(["push", str(make_bundle()), target, "--dry-run"]) == 0
    assert "+ release" in capsys.readouterr().out
    assert list((tmp_path / "home").iterdir()) == []


def test_history_tells_who_what_why_and_how_it_ended(device, ship):
    first = ship(reason="first light")
    with pytest.raises(SelfCheckError):
        ship("WRONG", salt="2", reason="try \x1b[31mred")
    second = ship(salt="3")
    with device.connect() as transport:
        rollback(transport, reason="the second is slow")
        events, unreadable = history(transport)
    assert unreadable == 0
    assert [(event.action, event.result.partition(":")[0], event.reason) for event in events] == [
        ("push", "switched", "first light"),
        ("push", "refused", "try [31mred"),
        ("push", "switched", ""),
        ("rollback", "switched", "the second is slow"),
    ]
    assert (events[3].release, events[3].before) == (first.release, second.release)
    assert "@" in events[0].by


def test_refused_rollback_and_refused_recheck_are_remembered(device, ship):
    first, second = ship(), ship(salt="2")
    model = device.root / "releases" / first.release / "model.tflite"
    model.chmod(0o644)
    model.write_bytes(b"FINE but not what it was")
    with device.connect() as transport:
        with pytest.raises(SelfCheckError):
            rollback(transport)
        last = history(transport)[0][-1]
    assert (last.action, last.release, last.before) == ("rollback", first.release, second.release)
    assert last.result.startswith("refused: ")


def test_torn_last_line_is_tolerated_and_the_next_one_is_whole(device, ship):
    ship()
    log = device.root / "log" / "audit.jsonl"
    log.write_bytes(log.read_bytes() + b'{"action": "push", "at": "20')
    with device.connect() as transport:
        assert (len(history(transport)[0]), history(transport)[1]) == (1, 1)
    ship(salt="2")
    with device.connect() as transport:
        events, unreadable = history(transport)
    assert (len(events), unreadable) == (2, 1)


def test_history_of_an_untouched_device_is_empty(device, capsys):
    with device.connect() as transport:
        assert history(transport) == ([], 0)
    assert not device.root.exists()


def test_endless_log_is_cut_by_the_device(device, ship):
    ship()
    with open(device.root / "log" / "audit.jsonl", "ab") as log:
        log.write(b'{"action": "' + b"x" * 3_000_000 + b'"}\n' + b'{"action": "push"}\n')
    with device.connect() as transport:
        events, unreadable = history(transport)
    assert events[-1].action == "push"
    assert unreadable == 1


@given(st.lists(st.binary(max_size=60) | st.sampled_from([b'{"action": "\\u001b[2J", "at": 7}', b"\0" * 9])))
def test_history_parser_survives_any_bytes(lines):
    events, _ = parse_history(b"\n".join(lines))
    assert all(str(event).isprintable() for event in events)


def test_history_command(tmp_path, capsys, make_bundle, runtime_folder):
    transport = LocalTransport(tmp_path)
    result = push(make_bundle(), transport, runtime_folder=runtime_folder, reason="because")
    assert cli.main(["history", transport.name]) == 0
    assert "(because)" in capsys.readouterr().out
    assert cli.main(["history", transport.name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["events"][0]["release"] == result.release


def test_rollback_to_a_named_release(device, ship):
    results = [ship(salt=str(index)) for index in range(3)]
    with device.connect() as transport:
        back = rollback(transport, results[0].release)
        assert (back.release, back.previous) == (results[0].release, results[2].release)
        assert (device.current(), device.previous()) == (results[0].release, results[2].release)
        assert rollback(transport, results[1].release[len("digits-") :][:8]).release == results[1].release
        with pytest.raises(NoReleaseError, match="is current on"):
            rollback(transport, results[1].release)
    assert device.current() == results[1].release


RECORD = Record("digits", "a" * 64, "e" * 12, "/py", "me@here", "2026")
KEPT = Survey(
    "/r",
    current="digits-aaaaaaaaaaaa",
    releases=dict.fromkeys(("digits-aaaaaaaaaaaa", "digits-bbbbbbbbbbbb", "digits-bbcccccccccc"), RECORD)
    | {"digits-dddddddddddd": None},
)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("digits-bb", "could be digits-bbbbbbbbbbbb, digits-bbcccccccccc"),
        ("bb", "could be"),
        ("digits-bbbbbbbbbbbc", "did you mean 'digits-bbbbbbbbbbbb'"),
        ("digits-dddddddddddd", "has no release"),
        ("aaaa", "is current on"),
        ("\x1b[2J", "has no release"),
        ("../../etc", "has no release"),
        ("", "nothing was current before"),
    ],
)
def test_release_that_is_not_clear_is_refused_with_what_there_is(wanted, says):
    with pytest.raises(NoReleaseError, match=says) as caught:
        plan_rollback(KEPT, "pi@board", wanted)
    assert "pi@board" in caught.value.message
    assert "\x1b" not in str(caught.value)
    assert caught.value.remedy


def test_beginning_of_a_name_is_enough():
    for wanted in ("digits-bbb", "bbc", "digits-bbcccccccccc"):
        assert plan_rollback(KEPT, "pi@board", wanted)[0].startswith("digits-bb")


ARM = Python("/py", (3, 11), machine="aarch64", bits=64, glibc="2.36", ram_mb=900, edgetpu=False)
NEEDS = Requires(("aarch64",), "2.36", 512, "")


@pytest.mark.parametrize(
    ("needs", "has", "says"),
    [
        (NEEDS, ARM, ""),
        (NEEDS, Python("/py", (3, 11)), ""),  # what the device does not say, its self-check decides
        (Requires((), "", 0, ""), ARM, ""),
        (NEEDS, dataclasses.replace(ARM, machine="x86_64"), "made for aarch64, the device is x86_64"),
        (NEEDS, dataclasses.replace(ARM, bits=32), "armv7l (a 32-bit Python on aarch64)"),
        (dataclasses.replace(NEEDS, arch=("armv7l",)), dataclasses.replace(ARM, bits=32), ""),
        (NEEDS, dataclasses.replace(ARM, glibc="2.9"), "needs glibc 2.36, the device has 2.9"),
        (NEEDS, dataclasses.replace(ARM, ram_mb=427), "needs 512 MiB of RAM, the device has 427"),
        (dataclasses.replace(NEEDS, accelerator="edgetpu"), ARM, "needs an Edge TPU"),
        (dataclasses.replace(NEEDS, accelerator="edgetpu"), dataclasses.replace(ARM, edgetpu=True), ""),
    ],
)
def test_what_a_bundle_needs_and_the_device_lacks(needs, has, says):
    found = "; ".join(what for what, _ in unmet(needs, has))
    assert says in found
    assert bool(found) == bool(says)


def test_bundle_for_another_board_is_refused_before_anything_is_written(
    device, make_bundle, runtime_folder, tmp_path
):
    with Bundle.open(make_bundle()) as bundle:
        members = {name: bundle.read(name) for name in bundle.manifest.files}
        requires = Requires(("armv7l",), "99.1", 0, "")
        write_bundle(tmp_path / "arm.ferry", dataclasses.replace(bundle.manifest, requires=requires), members)
        requires = Requires(("armv7l",), "", 0, "")
        write_bundle(tmp_path / "any.ferry", dataclasses.replace(bundle.manifest, requires=requires), members)
    with device.connect() as transport:
        with pytest.raises(DeviceUnfitError, match=r"made for armv7l, the device is .*glibc 99\.1") as caught:
            push(tmp_path / "arm.ferry", transport, runtime_folder=runtime_folder)
        assert "--any-arch" in caught.value.remedy
        assert device.target in caught.value.message
        with pytest.raises(DeviceUnfitError, match="glibc"):
            push(tmp_path / "arm.ferry", transport, runtime_folder=runtime_folder, any_arch=True)
        assert not device.root.exists()
        assert push(tmp_path / "any.ferry", transport, runtime_folder=runtime_folder, any_arch=True).switched


def test_survey_tells_what_requirements_are_held_against(device):
    with device.connect() as transport:
        python = look(transport, "~/x").python
    assert python.machine == os.uname().machine
    assert (python.bits, python.edgetpu is not None, python.ram_mb > 100) == (64, True, True)
    assert python.glibc == os.confstr("CS_GNU_LIBC_VERSION").split()[1]


def test_remove_leaves_nothing_and_touches_nothing_else(device, ship):
    ship()
    ship(salt="2")
    outside = device.home / "mine"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    (device.root / "shared").mkdir()
    (device.root / "shared" / "link").symlink_to(outside)
    (device.root / "venv").symlink_to(outside)
    (device.root / "releases" / "hole").symlink_to("..")
    with device.connect() as transport:
        found = remove(transport, yes=True)
        assert found["removed"]
        assert not os.path.lexists(device.root)
        assert (outside / "precious").read_text() == "precious"
        assert not remove(transport, yes=True)["removed"]
        assert "nothing" in str(look(transport, "~/.local/share/edgeferry").current or "nothing")
    assert ship().switched


@pytest.mark.parametrize("kind", ["empty", "foreign", "unmarked", "link", "file", "home"])
def test_root_that_is_not_edgeferrys_is_never_removed(device, ship, kind):
    ship()
    root, says = device.home / "root", "not made by edgeferry"
    if kind == "home":
        (device.home / "releases").mkdir()
        root, says = device.home, "is the user's home"
    elif kind == "link":
        root.symlink_to(device.root)
        says = "is a link"
    elif kind == "file":
        root.write_text("mine")
        says = "is no folder"
    else:
        root.mkdir()
    if kind == "unmarked":
        (root / "log").mkdir()
    if kind == "foreign":
        (root / "releases").mkdir()
        (root / ".hidden \x1b[2J\n name").write_text("mine")
        says = "did not put there: .hidden"
    before = tree(device.home)
    with device.connect() as transport, pytest.raises(RemoveError, match=says) as caught:
        remove(transport, root=str(root), yes=True)
    assert "\x1b" not in str(caught.value)
    assert tree(device.home) == before


def test_remove_asks_and_needs_yes_where_it_cannot(device, ship):
    result = ship()
    with device.connect() as transport:
        with pytest.raises(TargetError) as caught:
            remove(transport)
        assert "--yes" in caught.value.remedy
        asked = []
        with pytest.raises(RemoveError, match="was not removed"):
            remove(transport, ask=lambda question: bool(asked.append(question)))
        assert f"current is {result.release}" in asked[0]
        busy = hold(transport, str(device.root), "push x", expected=result.release)
        with busy, pytest.raises(LockedError, match="cannot remove on"):
            remove(transport, yes=True)
        assert device.current() == result.release
        assert remove(transport, ask=lambda question: True)["removed"]


def test_remove_that_was_cut_goes_on(device, ship):
    ship()
    for name in ("current", "releases", "env"):
        path = device.root / name
        os.rename(path, device.home / name)
    with device.connect() as transport:
        assert remove(transport, yes=True)["removed"]
    assert not device.root.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"edgeferry-root 1\nend\n",
        b"edgeferry-root 1\nroot\tfolder\trelative\nend\n",
        b"edgeferry-root 1\nroot\tcastle\t/x\nend\n",
        b"edgeferry-root 1\nroot\tfolder\t/x\nentry\tmaybe\tx\nend\n",
        b"edgeferry-root 1\nroot\tfolder\t/x\n",
    ],
)
def test_reply_that_is_none_removes_nothing(raw, tmp_path):
    with pytest.raises(ValueError):
        parse_contents(raw)

    class Odd(LocalTransport):
        def run(self, argv, *arguments, **options):
            assert argv == upkeep.inspect("/x")
            return dataclasses.replace(super().run(["true"]), stdout=raw)

    with pytest.raises(DeviceReplyError):
        remove(Odd(tmp_path), root="/x", yes=True)


def test_remove_command(tmp_path, capsys, make_bundle, runtime_folder):
    transport = LocalTransport(tmp_path / "home")
    push(make_bundle(), transport, runtime_folder=runtime_folder)
    assert cli.main(["remove", transport.name]) == 2
    assert "--yes" in capsys.readouterr().err
    assert cli.main(["remove", transport.name, "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"]
    assert cli.main(["remove", transport.name, "--yes"]) == 0
    assert "has no" in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["dash", "busybox"])
def test_the_whole_life_of_a_device_in_every_shell_a_board_may_have(shell, tmp_path, make_bundle, runtime_folder):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")

    class Shell(LocalTransport):
        def run(self, argv, *arguments, **options):
            assert argv[0] == "sh"
            return super().run([shell, *argv[shell == "dash" :]], *arguments, **options)

    transport = Shell(tmp_path)
    first = push(make_bundle(), transport, runtime_folder=runtime_folder)
    second = push(make_bundle(salt="2"), transport, runtime_folder=runtime_folder, reason="why not")
    with hold(transport, first.root, "push x", expected=second.release) as lease:
        assert look(transport, first.root).holder.token == lease.token
        lease.check()
    assert look(transport, first.root).holder is None
    assert rollback(transport).release == first.release
    with pytest.raises(SelfCheckError):
        push(make_bundle("WRONG"), transport, runtime_folder=runtime_folder)
    assert [event.action for event in history(transport)[0]] == ["push", "push", "rollback", "push"]
    assert remove(transport, yes=True)["removed"]
    assert not os.path.lexists(first.root)

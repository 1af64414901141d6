"""Push, rollback and status on both transports: one suite proves the twins equal."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import stat
import sys
import time

import pytest
from edgeferry_deploy.commands import name_of
from edgeferry_deploy.errors import (
    CommandError,
    CommandTimeoutError,
    DeviceReplyError,
    DeviceUnfitError,
    LinkLostError,
    NoReleaseError,
    SelfCheckError,
    TransferError,
)
from edgeferry_deploy.local import LocalTransport
from edgeferry_deploy.push import push
from edgeferry_deploy.release import pack_runtime
from edgeferry_deploy.rollback import rollback
from edgeferry_deploy.status import status, status_lines
from edgeferry_runtime.bundle import Bundle, file_entry, write_bundle
from edgeferry_runtime.errors import BundleError


def snapshot(root):
    """Every file's bytes and every link below a folder, but for the audit log."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in files + folders:
            path = os.path.join(folder, name)
            if os.path.islink(path):
                found[path] = os.readlink(path)
            elif os.path.isfile(path) and not path.endswith("audit.jsonl"):
                with open(path, "rb") as file:
                    found[path] = file.read()
    return found


def leftovers(root):
    """What a half-done push would leave."""
    return [
        os.path.join(folder, name)
        for folder, folders, files in os.walk(root)
        for name in files + folders
        if ".tmp" in name or name.endswith(".part")
    ]


def audit(device):
    return [json.loads(line) for line in (device.root / "log" / "audit.jsonl").read_text().splitlines()]


@pytest.fixture
def ship(device, make_bundle, runtime_folder):
    """Push a bundle made of these words to the device."""

    def ship(*words, connect=None, **options):
        bundle = {key: options.pop(key) for key in ("name", "size", "salt") if key in options}
        options.setdefault("runtime_folder", runtime_folder)
        with (connect or device.connect)() as transport:
            return push(make_bundle(*words, **bundle), transport, **options)

    return ship


@pytest.fixture
def noisy_bundle(make_bundle, tmp_path):
    """A bundle whose model no compression makes smaller, so that it is sent as it is."""
    with Bundle.open(make_bundle()) as bundle:
        members = {name: bundle.read(name) for name in bundle.manifest.files}
        members["model.tflite"] = b"FINE 1 " + random.Random(7).randbytes(300_000)
        files = {name: file_entry(data) for name, data in members.items()}
        manifest = dataclasses.replace(bundle.manifest, files=files)
    write_bundle(tmp_path / "noisy.ferry", manifest, members)
    return tmp_path / "noisy.ferry"


def test_first_push_puts_a_whole_release_on_the_device(device, ship):
    result = ship()
    assert result.switched
    assert result.previous == ""
    assert result.blobs_sent == result.blobs_total == 13
    assert device.current() == result.release == f"digits-{result.version[:12]}"
    assert not (device.root / "previous").is_symlink()
    with Bundle.open(device.root / "current") as bundle:
        bundle.verify()
    record = json.loads((device.root / "current" / "release.json").read_text())
    assert record["bundle"] == "digits"
    assert record["version"] == result.version
    assert record["env"] == result.env
    assert "@" in record["pushed_by"]
    assert record["pushed_at"].endswith("Z")
    assert record["check"]["frames"] == 8
    assert leftovers(device.root) == []
    [line] = audit(device)
    assert (line["action"], line["release"], line["result"]) == ("push", result.release, "switched")


def test_release_is_made_of_read_only_hard_links_into_blobs(device, ship):
    ship()
    blobs = {path.stat().st_ino: path.name for path in (device.root / "blobs").iterdir()}
    release = device.root / "current"
    for path in [release / "model.tflite", release / "manifest.json", release / "golden" / "0.npy"]:
        assert path.stat().st_ino in blobs
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert stat.S_IMODE((release / "release.json").stat().st_mode) == 0o444


def test_env_holds_the_runtime_sources_and_a_launcher_but_no_bytecode(device, ship, runtime_folder):
    env = device.root / "env" / ship().env
    assert (env / "edgeferry_runtime" / "__main__.py").read_text() == (runtime_folder / "__main__.py").read_text()
    assert not (env / "edgeferry_runtime" / "__pycache__" / "junk.pyc").exists()
    assert os.access(env / "edgeferry-run", os.X_OK)


def test_pushing_the_same_again_sends_nothing_and_takes_two_round_trips(device, ship):
    first = ship()
    before = snapshot(device.root)
    with device.connect() as transport:
        again = ship(connect=lambda: transport)
        assert transport.round_trips == 2
        assert transport.bytes_sent < 2000
    assert again.bytes_sent == again.blobs_sent == 0
    assert not again.switched
    assert again.release == first.release
    assert again.previous == ""
    after = {path: data for path, data in snapshot(device.root).items() if "__pycache__" not in path}
    assert after == {path: data for path, data in before.items() if "__pycache__" not in path}


def test_second_version_sends_only_what_changed(device, ship):
    first = ship()
    second = ship(salt="2")
    assert second.blobs_sent == 2  # the model and the manifest
    assert second.previous == first.release
    assert device.current() == second.release
    assert device.previous() == first.release


def test_rollback_and_rollback_again(device, ship):
    first, second = ship(), ship(salt="2")
    with device.connect() as transport:
        back = rollback(transport)
    assert (back.release, back.previous) == (first.release, second.release)
    assert (device.current(), device.previous()) == (first.release, second.release)
    with device.connect() as transport:
        rollback(transport)
    assert (device.current(), device.previous()) == (second.release, first.release)
    assert [line["action"] for line in audit(device)] == ["push", "push", "rollback", "rollback"]


def test_rollback_with_nothing_before_changes_nothing(device, ship):
    with device.connect() as transport, pytest.raises(NoReleaseError, match="no release to go back to"):
        rollback(transport)
    only = ship()
    with device.connect() as transport, pytest.raises(NoReleaseError):
        rollback(transport)
    assert device.current() == only.release


def test_rollback_to_a_release_that_rotted_changes_nothing(device, ship):
    first, second = ship(), ship(salt="2")
    model = device.root / "releases" / first.release / "model.tflite"
    model.chmod(0o644)
    model.write_bytes(b"FINE but not what it was")
    with device.connect() as transport, pytest.raises(SelfCheckError, match="damaged"):
        rollback(transport)
    assert (device.current(), device.previous()) == (second.release, first.release)


def test_pushing_an_older_version_again_switches_without_sending(device, ship):
    first, second = ship(), ship(salt="2")
    again = ship()
    assert (again.bytes_sent, again.switched, again.previous) == (0, True, second.release)
    assert device.current() == first.release


@pytest.mark.parametrize(
    ("word", "error", "says"),
    [
        ("WRONG", SelfCheckError, "scores.* is 0.5 off .allowed 0.1"),
        ("CRASH", SelfCheckError, "was killed"),
        ("MUTE", SelfCheckError, "ended with 5"),
        ("GARBAGE", DeviceReplyError, "Segmentation fine"),
        ("ENDLESS", DeviceReplyError, "more than 1048576 bytes"),
        ("IMPOSTOR", DeviceReplyError, "checked version 0000"),
    ],
)
def test_failing_check_leaves_the_old_release_and_removes_the_new(device, ship, word, error, says):
    old = ship()
    before = snapshot(device.root / "releases")
    with pytest.raises(error, match=says):
        ship(word)
    assert device.current() == old.release
    assert not (device.root / "previous").is_symlink()
    assert snapshot(device.root / "releases") == before
    assert leftovers(device.root) == []
    assert audit(device)[-1]["result"].startswith("refused: ")
    assert ship(salt="2").switched


def test_failing_check_of_a_first_push_leaves_no_current(device, ship):
    with pytest.raises(SelfCheckError):
        ship("WRONG")
    assert not (device.root / "current").is_symlink()
    assert device.releases() == []


def test_hung_check_is_ended_on_the_device(device, ship):
    old = ship()
    began = time.monotonic()
    with pytest.raises(SelfCheckError, match="did not end within 1 s"):
        ship("HANG", check_seconds=1)
    assert time.monotonic() - began < 20
    assert device.releases() == [old.release]


def test_terminal_escapes_of_a_device_never_reach_the_terminal(device, ship):
    with pytest.raises(SelfCheckError) as caught:
        ship("ESCAPES")
    assert "alert" in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert "\x07" not in str(caught.value)


def test_corrupt_blob_is_noticed_and_sent_again(device, ship):
    ship()
    model = device.root / "current" / "model.tflite"
    good = model.read_bytes()
    model.chmod(0o644)
    model.write_bytes(good[:-1] + b"\x00")  # one inode: blob and release rot together
    again = ship()
    assert again.blobs_sent == 1
    assert model.read_bytes() == good
    with Bundle.open(device.root / "current") as bundle:
        bundle.verify()
    assert leftovers(device.root) == []


def test_member_that_vanished_from_the_current_release_is_linked_again(device, ship):
    ship()
    (device.root / "current" / "golden" / "3.npy").unlink()
    again = ship()
    assert again.bytes_sent == 0
    assert (device.root / "current" / "golden" / "3.npy").read_bytes() == b"frame 3"


def test_partial_upload_is_resumed(device, ship, make_bundle):
    path = make_bundle(size=200_000)
    with Bundle.open(path) as bundle:
        digest, model = bundle.manifest.files["model.tflite"].sha256, bundle.read("model.tflite")
    part = device.root / "blobs" / f"{digest}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(model[:150_000])
    result = ship(size=200_000)
    assert 50_000 <= result.bytes_sent < 60_000
    assert (device.root / "current" / "model.tflite").read_bytes() == model
    assert leftovers(device.root) == []


@pytest.mark.parametrize("size", [150_000, 200_000, 300_000])
def test_wrong_partial_upload_is_dropped_and_sent_whole(device, ship, make_bundle, size):
    with Bundle.open(make_bundle(size=200_000)) as bundle:
        digest, model = bundle.manifest.files["model.tflite"].sha256, bundle.read("model.tflite")
    part = device.root / "blobs" / f"{digest}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\x00" * size)
    ship(size=200_000)
    assert (device.root / "current" / "model.tflite").read_bytes() == model
    assert leftovers(device.root) == []


def test_card_that_stores_other_bytes_is_named(make_device, noisy_bundle, runtime_folder, bare_path):
    liar = bare_path(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    os.remove(os.path.join(liar, "cat"))
    with open(os.path.join(liar, "cat"), "w") as file:
        file.write("#!/bin/sh\nexec /usr/bin/tr Z z\n")
    os.chmod(os.path.join(liar, "cat"), 0o755)
    device = make_device(liar)
    with device.connect() as transport, pytest.raises(TransferError, match=r"model\.tflite arrived .* twice"):
        push(noisy_bundle, transport, runtime_folder=runtime_folder)
    assert not (device.root / "releases").exists()
    assert leftovers(device.root) == []


def test_what_a_cut_push_left_is_cleaned(device, ship):
    for folder in ("releases/digits-0123456789ab.tmp-01234567/golden", "env/0123456789ab.tmp-01234567"):
        (device.root / folder).mkdir(parents=True)
        (device.root / folder / "half").write_text("half")
    ship()
    assert leftovers(device.root) == []


def test_release_that_was_assembled_but_never_switched_to_is_finished(device, ship):
    first = ship()
    (device.root / "current").unlink()
    (device.root / "current" / "release.json").unlink(missing_ok=True)
    (device.root / "releases" / first.release / "release.json").unlink()
    again = ship()
    assert again.switched
    assert again.bytes_sent == 0
    assert device.current() == first.release
    assert (device.root / "current" / "release.json").exists()


def test_keep_prunes_releases_envs_and_blobs_but_never_current_or_previous(device, ship, tmp_path):
    results = [ship(salt=str(index)) for index in range(3)]
    other = tmp_path / "other" / "edgeferry_runtime"
    other.mkdir(parents=True)
    for name in ("__init__.py", "__main__.py"):
        (other / name).write_text((runtime_source(device, results[0]) / name).read_text() + "\n# changed\n")
    last = ship(salt="3", keep=2, runtime_folder=other)
    assert last.env != results[0].env
    assert device.releases() == sorted([results[2].release, last.release])
    for blob in (device.root / "blobs").iterdir():
        os.utime(blob, (1, 1))
    final = ship(salt="4", keep=2, runtime_folder=other)
    assert device.releases() == sorted([last.release, final.release])
    assert os.listdir(device.root / "env") == [final.env]
    used = {path.stat().st_ino for path in (device.root / "releases").rglob("*")}
    used |= {path.stat().st_ino for path in (device.root / "env").rglob("runtime.zip")}
    assert {path.stat().st_ino for path in (device.root / "blobs").iterdir()} <= used


def runtime_source(device, result):
    return device.root / "env" / result.env / "edgeferry_runtime"


def test_changed_runtime_is_sent_checked_and_recorded_for_the_same_bundle(device, ship, tmp_path):
    first = ship()
    other = tmp_path / "other" / "edgeferry_runtime"
    other.mkdir(parents=True)
    for name in ("__init__.py", "__main__.py"):
        (other / name).write_text((runtime_source(device, first) / name).read_text() + "\n# changed\n")
    second = ship(runtime_folder=other)
    assert second.release == first.release
    assert second.env != first.env
    assert (second.blobs_sent, second.switched) == (1, True)
    assert not (device.root / "previous").is_symlink()
    assert json.loads((device.root / "current" / "release.json").read_text())["env"] == second.env
    with device.connect() as transport:
        assert status(transport)["current"]["launcher"].split("/")[-2] == second.env


def test_somebody_else_switching_meanwhile_is_not_overwritten(device, ship, monkeypatch):
    first = ship()
    from edgeferry_deploy import push as module

    def meddle(*arguments, **options):
        (device.root / "current").unlink()
        (device.root / "current").symlink_to("releases/other-0123456789ab")
        return switch(*arguments, **options)

    switch = module.switch_release
    monkeypatch.setattr(module, "switch_release", meddle)
    with pytest.raises(CommandError, match="somebody else switched"):
        ship(salt="2")
    assert device.current() == "other-0123456789ab"
    assert first.release in device.releases()


def test_status_of_an_untouched_device_writes_nothing(device):
    with device.connect() as transport:
        found = status(transport)
    assert found["current"] is None
    assert found["releases"] == []
    assert found["python"]["version"].count(".") == 2
    assert "nothing: push a bundle" in "\n".join(status_lines(found))
    assert not device.root.exists()


def test_status_tells_what_is_there(device, ship):
    first, second = ship(), ship(salt="2")
    (device.root / "blobs" / f"{'a' * 64}.part").write_bytes(b"x" * 10)
    with device.connect() as transport:
        found = status(transport)
        assert transport.round_trips == 1
    assert found["current"]["id"] == second.release
    assert found["current"]["version"] == second.version
    assert found["previous"]["id"] == first.release
    assert [item["id"] for item in found["releases"]] == [first.release, second.release]
    assert found["backend"] == "fake 1.0"
    assert found["partial_uploads"] == {"a" * 64: 10}
    assert found["used_bytes"] > 0
    assert os.access(found["current"]["launcher"], os.X_OK)
    text = "\n".join(status_lines(found))
    assert second.release in text
    assert "fake 1.0" in text


def test_status_survives_a_record_somebody_tampered_with(device, ship):
    result = ship()
    record = device.root / "releases" / result.release / "release.json"
    record.chmod(0o644)
    for junk in (b"\xff\xfe\x00", b"[" * 5000, b'{"bundle": 7}', json.dumps({"a": "\x1b[2J"}).encode()):
        record.write_bytes(junk)
        with device.connect() as transport:
            found = status(transport)
        assert found["current"]["complete"] is False
    good = dict.fromkeys(("bundle", "version", "env", "python", "pushed_by", "pushed_at"), "\x1b[2Jx")
    record.write_text(json.dumps({**good, "env": "0" * 12}))
    with device.connect() as transport:
        assert "\x1b" not in "\n".join(status_lines(status(transport)))


def test_root_that_cannot_be_made_is_refused_before_anything_is_sent(device, ship, tmp_path):
    obstacle = tmp_path / "file"
    obstacle.write_text("in the way")
    with pytest.raises(DeviceUnfitError, match="not writable") as caught:
        ship(root=f"{obstacle}/edgeferry")
    assert "--root" in caught.value.remedy
    assert obstacle.read_text() == "in the way"


def test_root_with_a_space_and_quotes_works(device, ship, tmp_path):
    root = tmp_path / 'it\'s a "root" $HOME `id`'
    result = ship(root=str(root))
    assert os.path.basename(os.readlink(root / "current")) == result.release


def test_full_disk_is_told_in_the_devices_words_and_resumed_later(device, noisy_bundle, runtime_folder):
    with Bundle.open(noisy_bundle) as bundle:
        digest = bundle.manifest.files["model.tflite"].sha256
    part = device.root / "blobs" / f"{digest}.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with device.connect() as transport:
        with pytest.raises(CommandError, match="No space left on device") as caught:
            push(noisy_bundle, transport, runtime_folder=runtime_folder)
        assert "free some space" in caught.value.remedy
        assert not (device.root / "releases").exists()
        part.unlink()
        assert push(noisy_bundle, transport, runtime_folder=runtime_folder).switched


def test_too_little_space_is_refused_before_anything_is_written(device, ship, bare_path, make_device):
    path = bare_path(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    os.remove(os.path.join(path, "df"))
    with open(os.path.join(path, "df"), "w") as file:
        file.write("#!/bin/sh\necho Filesystem\necho /dev/root 1000 990 10 99% /\n")
    os.chmod(os.path.join(path, "df"), 0o755)
    small = make_device(path)
    with pytest.raises(DeviceUnfitError, match=r"has 10\.2 kB free"):
        ship(connect=small.connect)
    assert not small.root.exists()


PYTHONS = {
    "none": (None, "has no Python", "apt install"),
    "broken": ("#!/bin/sh\necho cannot open shared object file >&2; exit 127\n", "cannot open shared", "--python"),
    "old": (
        "#!/bin/sh\nprintf 'version\\t3.5.3\\nexecutable\\t/usr/bin/python3\\n'\n",
        "3.5.3; the runtime",
        "newer",
    ),
    "no numpy": (
        "#!/bin/sh\nprintf 'version\\t3.9.2\\nnumpy\\tno\\nai_edge_litert\\tno\\n'\n",
        "has no numpy",
        "venv/bin/pip install ai-edge-litert",
    ),
    "no interpreter": (
        "#!/bin/sh\nprintf 'version\\t3.9.2\\nnumpy\\tyes\\nai_edge_litert\\tno\\ntflite_runtime\\tno\\n'\n",
        "has no interpreter",
        "'numpy<2'",
    ),
}


@pytest.mark.parametrize("case", PYTHONS)
def test_unfit_python_is_refused_before_anything_is_written(
    make_device, make_bundle, runtime_folder, bare_path, case
):
    script, says, remedy = PYTHONS[case]
    device = make_device(bare_path(script))
    with device.connect() as transport, pytest.raises(DeviceUnfitError, match=says) as caught:
        push(make_bundle(), transport, runtime_folder=runtime_folder, env="board")
    assert remedy in caught.value.remedy
    assert not device.root.exists()


def test_python_that_was_chosen_is_used_and_a_missing_one_is_named(device, ship):
    with pytest.raises(DeviceUnfitError, match="no /opt/nothing/python3"):
        ship(python="/opt/nothing/python3")
    assert ship(python=sys.executable).python == sys.executable


def test_python_in_the_roots_venv_wins(device, ship):
    chosen = device.root / "venv" / "bin" / "python3"
    chosen.parent.mkdir(parents=True)
    chosen.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    with pytest.raises(DeviceUnfitError, match=str(chosen)):
        ship()
    chosen.chmod(0o755)
    assert ship().switched


@pytest.mark.parametrize(
    ("shell", "error", "says"),
    [
        ("echo welcome to my board", DeviceReplyError, "welcome to my board"),
        ("echo 'edgeferry-survey 1'; printf 'root\\t/x\\twritable\\n'", DeviceReplyError, "breaks off"),
        ("echo 'edgeferry-survey 1'; echo x; echo end", DeviceReplyError, "should not have"),
        ("echo 'edgeferry-survey 1'; echo end", DeviceReplyError, "names no root"),
        ("printf 'edgeferry-survey 1\\nroot\\trelative\\tx\\nend\\n'", DeviceReplyError, "names no root"),
        ("printf '\\033[31m\\377\\000 boo'", DeviceReplyError, "boo"),
        ("while :; do echo endless; done", DeviceReplyError, "more than 1048576 bytes"),
        ("echo you shall not pass >&2; exit 1", CommandError, "you shall not pass"),
    ],
)
def test_device_that_answers_nonsense(make_device, make_bundle, runtime_folder, bare_path, shell, error, says):
    path = bare_path()
    os.remove(os.path.join(path, "sh"))
    with open(os.path.join(path, "sh"), "w") as file:
        file.write(f"#!/bin/sh\n{shell}\n")
    os.chmod(os.path.join(path, "sh"), 0o755)
    device = make_device(path)
    with device.connect() as transport, pytest.raises(error, match=says) as caught:
        push(make_bundle(), transport, runtime_folder=runtime_folder)
    assert "\x1b" not in str(caught.value)
    assert not device.root.exists()


def test_noise_before_a_reply_is_passed_over(make_device, make_bundle, runtime_folder, bare_path):
    path = bare_path(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    os.remove(os.path.join(path, "sh"))
    with open(os.path.join(path, "sh"), "w") as file:
        file.write('#!/bin/sh\necho "Welcome! 3 updates can be installed."\nexec /bin/sh "$@"\n')
    os.chmod(os.path.join(path, "sh"), 0o755)
    with make_device(path).connect() as transport:
        assert push(make_bundle(), transport, runtime_folder=runtime_folder).switched


def test_deadline_ends_a_command_and_the_session_goes_on(device):
    with device.connect() as transport:
        began = time.monotonic()
        with pytest.raises(CommandTimeoutError, match="'sleep' did not end within 1 s"):
            transport.run(["sleep", "30"], timeout=1)
        assert time.monotonic() - began < 8
        assert transport.run(["echo", "still here"]).stdout == b"still here\n"


def test_both_outputs_larger_than_any_window_do_not_deadlock(device):
    script = "head -c 6000000 /dev/zero; head -c 6000000 /dev/zero >&2; cat >/dev/null; exit 3"
    with device.connect() as transport:
        stdin = (bytes(32768) for _ in range(300))
        done = transport.run(["sh", "-c", script], stdin, timeout=60, limit=7_000_000)
    assert (done.exit_status, len(done.stdout), len(done.stderr)) == (3, 6_000_000, 6_000_000)


def test_command_that_does_not_read_its_stdin_ends_well(device):
    with device.connect() as transport:
        done = transport.run(["sh", "-c", "exit 4"], (bytes(32768) for _ in range(500)), timeout=20)
    assert done.exit_status == 4


def test_arguments_reach_the_command_as_they_are(device):
    hostile = ["$(id)", "`id`", "a b", "'", '"', "\\", "", "é", "-n", "*", "a\nb", "!x"]
    with device.connect() as transport:
        done = transport.run(["printf", "[%s]", *hostile])
    assert done.stdout.decode() == "".join(f"[{word}]" for word in hostile)


def test_upload_and_download_carry_any_bytes(device):
    data = bytes(range(256)) * 1000
    with device.connect() as transport:
        transport.upload([data[:1000], data[1000:]], f"{device.home}/a folder/file")
        assert transport.download(f"{device.home}/a folder/file") == data
        transport.upload([b"more"], f"{device.home}/a folder/file", len(data))
        assert transport.download(f"{device.home}/a folder/file") == data + b"more"
        with pytest.raises(CommandError, match="holds 256004 bytes, not 7"):
            transport.upload([b"x"], f"{device.home}/a folder/file", 7)
        with pytest.raises(CommandError, match="No such file"):
            transport.download(f"{device.home}/nothing")
        with pytest.raises(DeviceReplyError):
            transport.download(f"{device.home}/a folder/file", limit=1000)


def test_killed_command_says_so(device):
    with device.connect() as transport:
        assert transport.run(["sh", "-c", "kill -9 $$"]).exit_status in (-1, 137)


def test_damaged_bundle_is_refused_before_anything_is_written(device, make_bundle, runtime_folder, tmp_path):
    data = make_bundle().read_bytes()
    broken = tmp_path / "broken.ferry"
    for content in (data[: len(data) // 2], data.replace(b"FINE 1", b"EVIL 1"), b"", b"PK\x03\x04"):
        broken.write_bytes(content)
        with device.connect() as transport, pytest.raises(BundleError):
            push(broken, transport, runtime_folder=runtime_folder)
        assert not (device.root / "releases").exists()


def test_packed_runtime_is_the_same_bytes_whatever_lies_beside_it(runtime_folder, tmp_path):
    copy = tmp_path / "edgeferry_runtime"
    copy.mkdir()
    for name in ("__main__.py", "__init__.py"):
        (copy / name).write_bytes((runtime_folder / name).read_bytes())
        os.utime(copy / name, (10**9, 10**9))
    assert pack_runtime(copy).sha256 == pack_runtime(runtime_folder).sha256
    (copy / "new.py").write_text("")
    assert pack_runtime(copy).sha256 != pack_runtime(runtime_folder).sha256


def test_everything_is_synced_before_the_rename_that_commits(make_device, make_bundle, runtime_folder, bare_path):
    path = bare_path(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    device = make_device(path)
    log = os.path.join(path, "log")
    for tool in ("sync", "mv"):
        real = os.path.realpath(os.path.join(path, tool))
        os.remove(os.path.join(path, tool))
        with open(os.path.join(path, tool), "w") as file:
            file.write(f'#!/bin/sh\necho "{tool} $*" >>{log}\nexec {real} "$@"\n')
        os.chmod(os.path.join(path, tool), 0o755)
    with device.connect() as transport:
        result = push(make_bundle(size=200_000), transport, runtime_folder=runtime_folder)
    with open(log) as file:
        lines = file.read().splitlines()
    [commit] = [index for index, line in enumerate(lines) if line.startswith("mv") and line.endswith(" current")]
    synced = {}
    for index, line in enumerate(lines[:commit]):
        words = line.split()
        if words[0] == "sync":
            assert len(words) > 2, "the whole system is synced only where files cannot be"
            synced |= dict.fromkeys(words[2:], index)
    for blob in (device.root / "blobs").iterdir():
        moved = next(
            index for index, line in enumerate(lines) if line.startswith("mv") and line.endswith(blob.name)
        )
        assert synced[f"{blob.name}.part"] < moved
    assembled = next(i for i, line in enumerate(lines) if line.endswith(f"releases/{result.release}"))
    assert any(name.startswith(f"releases/{result.release}.tmp-") and synced[name] < assembled for name in synced)
    assert any(name.startswith(f"env/{result.env}.tmp-") and name.endswith("__main__.py") for name in synced)
    assert assembled < lines.index("sync -- releases .") < commit
    assert synced[f"releases/{result.release}"] < commit
    assert any(line.split()[:3] == ["sync", "--", "."] for line in lines[commit:])


@pytest.mark.parametrize("when", ["before", "after"])
def test_push_cut_at_any_command_leaves_a_whole_current_and_the_next_push_succeeds(
    tmp_path, make_bundle, runtime_folder, when
):
    old, new = make_bundle(), make_bundle(salt="2", size=200_000)

    class Cut(LocalTransport):
        """Loses its link at the command with this number."""

        at = 10**6
        lost = ""

        def run(self, argv, stdin=None, timeout=60.0, limit=1 << 20):
            here = self.round_trips == self.at
            self.lost = name_of(argv) if here else self.lost
            if here and when == "before":
                raise LinkLostError("cut")
            done = super().run(argv, stdin, timeout, limit)
            if here:
                raise LinkLostError("cut")
            return done

    cuts = 0
    for at in range(20):
        transport = Cut(tmp_path / str(at))
        first = push(old, transport, runtime_folder=runtime_folder)
        root = transport.folder / ".local" / "share" / "edgeferry"
        transport.at = transport.round_trips + at
        try:
            second = push(new, transport, runtime_folder=runtime_folder)
        except LinkLostError:
            cuts += 1
            current = os.path.basename(os.readlink(root / "current"))
            assert current == first.release or (when == "after" and transport.lost == "edgeferry-switch")
            with Bundle.open(root / "current") as bundle:
                bundle.verify()
            second = push(new, LocalTransport(transport.folder), runtime_folder=runtime_folder)
        assert os.path.basename(os.readlink(root / "current")) == second.release
        assert os.path.basename(os.readlink(root / "previous")) == first.release
        assert leftovers(root) == []
        if cuts <= at:
            break
    assert cuts == 8  # look, lock, send small, send large, publish, assemble, check, switch


def test_real_runtime_and_interpreter_prove_a_real_model(device, contents, tmp_path):
    import dataclasses
    import io

    import numpy
    from edgeferry_runtime.bundle import file_entry, write_bundle

    manifest, members = contents
    write_bundle(tmp_path / "right.ferry", manifest, members)
    answers = numpy.load(io.BytesIO(members["golden/int8.npy"]))
    buffer = io.BytesIO()
    numpy.save(buffer, 1 - answers)
    members["golden/int8.npy"] = buffer.getvalue()
    files = {name: file_entry(data) for name, data in members.items()}
    write_bundle(tmp_path / "wrong.ferry", dataclasses.replace(manifest, files=files), members)

    with device.connect() as transport:
        result = push(tmp_path / "right.ferry", transport)
        assert result.check.backend.startswith("ai-edge-litert ")
        assert (result.check.frames, result.check.ok) == (8, True)
        with pytest.raises(SelfCheckError, match=r"allowed 0\.02"):
            push(tmp_path / "wrong.ferry", transport)
        assert push(tmp_path / "right.ferry", transport).bytes_sent == 0
    assert device.releases() == [result.release]

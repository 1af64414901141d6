"""The board's own installer: what it takes, what it refuses, and that a cut leaves nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from edgeferry_runtime import installing
from edgeferry_runtime.installing import InstallError, install, site_path, to_text
from edgeferry_runtime.wheel_lock import (
    Lock,
    LockedFile,
    LockedWheel,
    Running,
    SystemPackage,
    read_lock,
    tag_problem,
    this_python,
)
from hypothesis import given, settings
from hypothesis import strategies as st

BOARD = Running((3, 11), "aarch64", (2, 36), "cp311")
TINY = "tiny-1.0-py3-none-any.whl"
MEMBERS = {
    "tiny/__init__.py": b"value = 1\n",
    "tiny/deep/data.bin": bytes(range(256)),
    "tiny-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\n",
}


def wheel(path: Path, members: dict[str, bytes] | None = None, name: str = TINY, **attributes: Any) -> LockedWheel:
    """A wheel in `path`; the lock's line for it."""
    file = path / name
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in (MEMBERS if members is None else members).items():
            info = zipfile.ZipInfo("placeholder")
            info.filename = member
            info.external_attr = attributes.get("mode", stat.S_IFREG | 0o644) << 16
            archive.writestr(info, data)
    return locked(file)


def locked(file: Path) -> LockedWheel:
    data = file.read_bytes()
    return LockedWheel(file.name, len(data), hashlib.sha256(data).hexdigest(), file.name.split("-")[0], "1.0")


def write_lock(path: Path, *wheels: LockedWheel, **fields: Any) -> Path:
    lock = dataclasses.replace(Lock("3.11", "aarch64", wheels), **fields)
    (path / "lock.json").write_text(lock.to_json())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "house"
    path.mkdir()
    return write_lock(path, wheel(path))


def refused(folder: Path, env: Path, match: str) -> InstallError:
    """The refusal; nothing may be left."""
    with pytest.raises(InstallError, match=match) as caught:
        install(str(folder), str(env), running=BOARD)
    assert not env.exists()
    assert [p.name for p in env.parent.iterdir() if ".part" in p.name] == []
    assert caught.value.remedy
    return caught.value


def test_installs_and_is_then_left_alone(folder, tmp_path):
    env = tmp_path / "deep" / "env"
    first = install(str(folder), str(env), running=BOARD)
    assert first.changed
    assert (first.files, first.bytes) == (3, sum(map(len, MEMBERS.values())))
    assert (Path(site_path(str(env))) / "tiny/deep/data.bin").read_bytes() == bytes(range(256))
    assert first.launcher == ""
    before = env.stat().st_ino
    again = install(str(folder), str(env), running=BOARD)
    assert not again.changed
    assert env.stat().st_ino == before
    assert "was there already" in to_text(again)
    assert json.loads(json.dumps(again.to_dict()))["site"] == site_path(str(env))


def test_a_damaged_environment_is_made_again(folder, tmp_path):
    env = tmp_path / "env"
    install(str(folder), str(env), running=BOARD)
    (env / "lib/tiny/__init__.py").write_text("")
    assert install(str(folder), str(env), running=BOARD).changed
    assert (env / "lib/tiny/__init__.py").read_bytes() == MEMBERS["tiny/__init__.py"]


def test_compiled_only_when_asked(folder, tmp_path):
    install(str(folder), str(tmp_path / "plain"), running=BOARD)
    assert not list((tmp_path / "plain").rglob("*.pyc"))
    install(str(folder), str(tmp_path / "fast"), True, running=BOARD)
    assert list((tmp_path / "fast").rglob("*.pyc"))
    assert not install(str(folder), str(tmp_path / "fast"), running=BOARD).changed


def test_the_runtimes_own_files_are_always_compiled_and_never_needed(tmp_path):
    with zipfile.ZipFile(tmp_path / "rt.zip", "w") as archive:
        archive.writestr("edgeferry_runtime/__init__.py", "")
        archive.writestr("edgeferry_runtime/deep/broken.py", "this is no Python")
    packed = locked(tmp_path / "rt.zip")
    write_lock(tmp_path, wheel(tmp_path), runtime=LockedFile(packed.filename, packed.size, packed.sha256))
    install(str(tmp_path), str(tmp_path / "env"), running=BOARD)
    compiled = list((tmp_path / "env").rglob("*.pyc"))
    assert [path.parent.parent.name for path in compiled] == ["edgeferry_runtime"]
    compiled[0].unlink()
    assert not install(str(tmp_path), str(tmp_path / "env"), running=BOARD).changed


def test_a_wheel_that_brings_compiled_files(tmp_path):
    write_lock(tmp_path, wheel(tmp_path, {**MEMBERS, "tiny/__pycache__/a.cpython-39.pyc": b"old"}))
    assert install(str(tmp_path), str(tmp_path / "env"), running=BOARD).changed
    assert not install(str(tmp_path), str(tmp_path / "env"), running=BOARD).changed


def test_data_folders(tmp_path):
    parts = {f"tiny-1.0.data/{kind}/f_{kind}.py": b"1" for kind in ("purelib", "platlib", "scripts", "headers")}
    write_lock(tmp_path, wheel(tmp_path, {**MEMBERS, **parts}))
    install(str(tmp_path), str(tmp_path / "env"), running=BOARD)
    assert sorted(p.name for p in (tmp_path / "env/lib").glob("f_*")) == ["f_platlib.py", "f_purelib.py"]


def test_runtime_gets_a_launcher(tmp_path):
    import subprocess

    with zipfile.ZipFile(tmp_path / "rt.zip", "w") as archive:
        archive.writestr("edgeferry_runtime/__init__.py", "")
        archive.writestr("edgeferry_runtime/__main__.py", "import sys, tiny; print(tiny.value, *sys.argv[1:])")
    packed = locked(tmp_path / "rt.zip")
    write_lock(tmp_path, wheel(tmp_path), runtime=LockedFile(packed.filename, packed.size, packed.sha256))
    done = install(str(tmp_path), str(tmp_path / "an env"), running=BOARD)
    said = subprocess.run([done.launcher, "a b"], capture_output=True, text=True, check=True)
    assert said.stdout == "1 a b\n"


def test_what_the_distribution_must_bring_is_named(tmp_path):
    packages = (SystemPackage("python3-json", "json"), SystemPackage("python3-nowhere", "nowhere_to_be_found"))
    write_lock(tmp_path, wheel(tmp_path), system_packages=packages)
    done = install(str(tmp_path), str(tmp_path / "env"), running=BOARD)
    assert done.missing == packages[1:]
    assert "python3-nowhere" in to_text(done)


@pytest.mark.parametrize(
    "name",
    ["../evil.py", "/etc/evil", "a/../../evil", "a//b", "a\\b", "C:evil", "a/./b", "bad\x1b[31m.py", "..", "a\nb"],
)
def test_no_member_leaves_the_environment(tmp_path, name):
    write_lock(tmp_path, wheel(tmp_path, {**MEMBERS, name: b"x"}))
    error = refused(tmp_path, tmp_path / "env", "could leave")
    assert "\x1b" not in str(error)


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFCHR | 0o644])
def test_only_regular_files(tmp_path, mode):
    write_lock(tmp_path, wheel(tmp_path, mode=mode))
    refused(tmp_path, tmp_path / "env", "no regular file")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(installing, "MAX_UNPACKED", 1000)
    write_lock(tmp_path, wheel(tmp_path, {**MEMBERS, "zeros": bytes(100_000)}))
    refused(tmp_path, tmp_path / "env", "claims more")


def test_two_wheels_with_one_file(tmp_path):
    first = wheel(tmp_path)
    write_lock(tmp_path, first, wheel(tmp_path, name="other-1.0-py3-none-any.whl"))
    refused(tmp_path, tmp_path / "env", "came already")


def test_a_file_where_a_folder_is(tmp_path):
    second = {"tiny": b"", "other-1.0.dist-info/WHEEL": b""}
    write_lock(tmp_path, wheel(tmp_path), wheel(tmp_path, second, "other-1.0-py3-none-any.whl"))
    refused(tmp_path, tmp_path / "env", "cannot be installed")


def test_a_zip_that_is_no_wheel(tmp_path):
    write_lock(tmp_path, wheel(tmp_path, {"a.py": b""}))
    refused(tmp_path, tmp_path / "env", "no WHEEL file")


def test_a_missing_wheel(folder, tmp_path):
    (folder / TINY).unlink()
    refused(folder, tmp_path / "env", "is missing")


def test_a_stream_that_is_no_deflate(tmp_path):
    wheel(tmp_path, {**MEMBERS, "noise": b"abcdefgh" * 100})
    raw = bytearray((tmp_path / TINY).read_bytes())
    start = raw.index(b"noise") + len("noise")
    raw[start] = 0xFF  # the reserved block type
    (tmp_path / TINY).write_bytes(raw)
    write_lock(tmp_path, locked(tmp_path / TINY))
    refused(tmp_path, tmp_path / "env", "cannot be unpacked")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_rare_compression(tmp_path, method):
    with zipfile.ZipFile(tmp_path / TINY, "w", method) as archive:
        archive.writestr("tiny-1.0.dist-info/WHEEL", "x" * 1000)
    write_lock(tmp_path, locked(tmp_path / TINY))
    refused(tmp_path, tmp_path / "env", "compressed")


def test_a_file_that_is_no_zip(tmp_path):
    (tmp_path / TINY).write_bytes(b"<html>Please log in to the hotel's network</html>")
    write_lock(tmp_path, locked(tmp_path / TINY))
    refused(tmp_path, tmp_path / "env", "cannot be unpacked")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_changed_byte_is_noticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip")
    write_lock(path, wheel(path))
    raw = bytearray((path / TINY).read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    (path / TINY).write_bytes(raw)
    refused(path, path / "env", "SHA-256 differs")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_broken_wheel_under_its_own_hash(tmp_path_factory, data):
    """Whoever makes the lock vouches for the bytes; broken ones still end in a sentence, or install cleanly."""
    path = tmp_path_factory.mktemp("broken")
    wheel(path)
    raw = bytearray((path / TINY).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (path / TINY).write_bytes(raw[: data.draw(st.integers(1, len(raw)))])
    write_lock(path, locked(path / TINY))
    env = path / "env"
    try:
        install(str(path), str(env), running=BOARD)
    except InstallError:
        assert not env.exists()
    assert {p.name for p in path.iterdir()} <= {TINY, "lock.json", "env"}


LOCK_FAULTS = {
    "format": [2, "1", None],
    "python": ["2.7", "3", 3.11, "3.11; rm -rf /"],
    "arch": [None, 5],
    "wheels": [[], {}, None, [5], [{}]],
    "system_packages": [[{"package": "x", "module": "a.b"}], "x"],
    "runtime": [5, {"filename": "../x.zip", "size": 1, "sha256": "0" * 64}],
    "more": [1],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in LOCK_FAULTS.items() for value in values]
)
def test_faulty_locks(folder, tmp_path, key, value):
    lock = json.loads((folder / "lock.json").read_text())
    lock[key] = value
    (folder / "lock.json").write_text(json.dumps(lock))
    refused(folder, tmp_path / "env", "is no lock")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("filename", "../" + TINY), ("filename", "/x.whl"), ("filename", "tiny.whl"), ("filename", "a\x00b.whl"),
        ("size", -1), ("size", True), ("sha256", "0" * 63), ("sha256", "G" * 64), ("sha256", None),
    ],
)  # fmt: skip
def test_faulty_wheel_lines(folder, tmp_path, key, value):
    lock = json.loads((folder / "lock.json").read_text())
    lock["wheels"][0][key] = value
    (folder / "lock.json").write_text(json.dumps(lock))
    refused(folder, tmp_path / "env", "is no lock")


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"[" * 100_000, b"{}{}", b'{"format": NaN}', b'{"a":1,"a":2}'])
def test_locks_that_are_no_json(folder, tmp_path, raw):
    (folder / "lock.json").write_bytes(raw)
    refused(folder, tmp_path / "env", "lock.json")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_as_lock(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("lock")
    (path / "lock.json").write_bytes(raw)
    with pytest.raises(InstallError):
        read_lock(str(path))


def test_a_lock_reads_as_it_was_written(folder):
    lock = read_lock(str(folder))
    assert lock.to_json() == (folder / "lock.json").read_text()


def test_no_lock(tmp_path):
    refused(tmp_path, tmp_path / "env", "cannot be read")


def test_what_a_person_made_is_not_touched(folder, tmp_path):
    env = tmp_path / "env"
    env.mkdir()
    (env / "thesis.txt").write_text("years of work")
    with pytest.raises(InstallError, match="was not made by"):
        install(str(folder), str(env), running=BOARD)
    assert (env / "thesis.txt").read_text() == "years of work"


def test_an_environment_of_other_wheels_is_not_touched(folder, tmp_path):
    env = tmp_path / "env"
    install(str(folder), str(env), running=BOARD)
    write_lock(folder, wheel(folder, {**MEMBERS, "more": b""}))
    with pytest.raises(InstallError, match="other wheels"):
        install(str(folder), str(env), running=BOARD)
    assert (env / "lib/tiny/__init__.py").exists()


def test_a_full_disk(folder, tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(folder, tmp_path / "env", "No space left")


def test_everything_is_on_disk_before_the_name_changes(folder, tmp_path, monkeypatch):
    synced: list[str] = []
    real_rename = os.rename

    def remember(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    def rename(source: str, target: str) -> None:
        on_disk = {path for path in synced if path.startswith(source)}
        assert on_disk == {source, *(str(path) for path in Path(source).rglob("*"))}
        synced.append("rename")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", remember)
    monkeypatch.setattr(os, "rename", rename)
    install(str(folder), str(tmp_path / "env"), running=BOARD)
    assert synced[-2:] == ["rename", str(tmp_path)]


def test_what_a_killed_install_left_is_removed(folder, tmp_path):
    left = tmp_path / "env.part-999999999"
    mine = tmp_path / f"env.part-{os.getppid()}"
    for path in (left, mine):
        path.mkdir()
    install(str(folder), str(tmp_path / "env"), running=BOARD)
    assert not left.exists()
    assert mine.exists()  # that process still runs


def test_for_another_board(folder, tmp_path):
    for other in (BOARD._replace(python=(3, 13)), BOARD._replace(arch="armv7l")):
        with pytest.raises(InstallError, match=r"the lock is for Python 3\.11 on aarch64") as caught:
            install(str(folder), str(tmp_path / "env"), running=other)
        assert "--arch " + other.arch in caught.value.remedy


NUMPY = "numpy-2.4.6-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl"


@pytest.mark.parametrize(
    ("name", "running", "fits"),
    [
        (NUMPY, BOARD, True),
        (NUMPY, BOARD._replace(glibc=(2, 26)), False),
        (NUMPY, BOARD._replace(glibc=None), False),
        (NUMPY, BOARD._replace(arch="x86_64"), False),
        (NUMPY, BOARD._replace(python=(3, 12), abi="cp312"), False),
        ("cv-1-cp37-abi3-manylinux2014_aarch64.whl", BOARD, True),
        ("cv-1-cp37-abi3-manylinux2014_aarch64.whl", BOARD._replace(glibc=(2, 16)), False),
        ("cv-1-cp312-abi3-manylinux2014_aarch64.whl", BOARD, False),
        ("cv-1-cp37-abi3-linux_aarch64.whl", Running((3, 13), "aarch64", (2, 41), "cp313t"), False),
        ("n-1-cp313-cp313t-linux_aarch64.whl", Running((3, 13), "aarch64", (2, 41), "cp313"), False),
        ("n-1-cp313-cp313t-linux_aarch64.whl", Running((3, 13), "aarch64", (2, 41), "cp313t"), True),
        ("t-1-cp37-cp37m-manylinux2014_aarch64.whl", Running((3, 7), "aarch64", (2, 28), "cp37m"), True),
        ("t-1-2-py2.py3-none-any.whl", BOARD, True),
        ("t-1-py312-none-any.whl", BOARD, False),
        ("t-1-cp2-none-any.whl", BOARD, False),
        ("t-1-cp311-none-musllinux_1_2_aarch64.whl", BOARD, False),
        ("t-1-cp311-none-win_amd64.whl", BOARD, False),
        ("t.whl", BOARD, False),
    ],
)
def test_tags(name, running, fits):
    assert (tag_problem(name, running) == "") is fits


def test_tags_agree_with_pip():
    """This Python takes what pip takes; the tags pip lists are the reference."""
    from pip._vendor.packaging.tags import sys_tags

    here = this_python()
    known = {str(tag) for tag in sys_tags()}
    for number in range(5, 60):
        tag = f"cp3{here.python[1]}-{here.abi}-manylinux_2_{number}_{here.arch}"
        assert (tag in known) is (tag_problem(f"a-1-{tag}.whl", here) == ""), tag


def test_needs_neither_numpy_nor_pip():
    import subprocess
    import sys

    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import edgeferry_runtime.installing as i\n"
        "print([m for m in ('numpy', 'pip', 'zipimport_', 'pkg_resources') if m in sys.modules])"
    )
    root = str(Path(installing.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", code, root], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

"""A push to a disk that is full, read-only, or without power: a small ext4 image on a loop device.

The power cut: the image as it is while the file system on it is mounted and nothing was synced is what a medium
holds at that moment.  Tools on the PATH copy it before they do their work; each copy is then mounted, which
replays its journal, and looked at.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
from edgeferry_deploy.local import LocalTransport

NEW, OLD, STEPS = faults.NEW, faults.OLD, faults.STEPS

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

IMAGE_MB = 24
FILL = 'cat /dev/zero >>"$HOME/filler" 2>/dev/null'
SYSTEM_PATH = "/usr/bin:/bin"
TOOLS = ("sync", "mv", "ln", "rm", "mkdir", "chmod", "cat", "python3", "find")
# `journal` commits the metadata of everything so far, and the data of nothing: the worst a file system may do.
SHIM = """#!/bin/sh
if [ -n "$LAB_JOURNAL" ]; then echo >>{home}/unrelated; /usr/bin/sync {home}/unrelated; fi
number=$(wc -l <{copies}/list)
cp --sparse=always {image} {copies}/$number
echo {tool} "$@" | head -n 1 | head -c 100 | tr -d '\\000-\\010\\012-\\037' >>{copies}/list
echo >>{copies}/list
{work}
"""


def obstacle() -> str:
    missing = [tool for tool in ("mkfs.ext4", "losetup") if shutil.which(tool) is None]
    return f"{missing[0]} is not installed: apt install e2fsprogs mount" if missing else faults.obstacle()


def mount(image: Path, place: Path, *options: str) -> None:
    subprocess.run(["mount", "-o", ",".join(("loop", *options)), image, place], check=True)


def unmount(place: Path) -> None:
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    if why := obstacle():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("disk")
    (folder / "home").mkdir()
    with (folder / "image").open("wb") as image:
        image.truncate(IMAGE_MB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", folder / "image"], check=True)
    done = subprocess.run(["mount", "-o", "loop", folder / "image", folder / "home"], capture_output=True)
    if done.returncode:
        pytest.skip(f"no loop devices here: {done.stderr.decode().strip()}")
    with faults.workstation(folder):
        yield folder
    unmount(folder / "home")


@pytest.fixture(scope="module")
def shared(folder, tiny_manifest):
    board = faults.Lab(folder, tiny_manifest)
    yield board
    board.close()


@pytest.fixture
def board(shared):
    subprocess.run(["mount", "-o", "remount,rw", shared.home], check=True)
    (shared.home / "filler").unlink(missing_ok=True)
    shared.reset()
    return shared


@pytest.fixture(scope="module")
def outcomes():
    table = faults.Outcomes()
    yield table
    table.close()


@pytest.mark.parametrize("step", STEPS)
def test_disk_full(board, outcomes, step):
    # ext4 reserves more for data it has not placed yet than that will need: again after it has been placed.
    board.sshd.put("before", step, f"{FILL}; sync; {FILL}; sync; {FILL}")
    error = board.fails()
    current = board.current()
    (board.home / "filler").unlink()
    board.settle()
    outcomes.add(f"disk full before {step}", error, current)
    if step in ("survey", "lock", "receive-many", "receive", "rebuild"):  # the others may do with what is there
        assert error is not None
    assert error is None or "free some space" in error.remedy


@pytest.mark.parametrize("step", STEPS)
def test_read_only(board, outcomes, step):
    board.sshd.put("before", step, 'mount -o remount,ro "$HOME"')
    error = board.fails()
    current = board.current()
    subprocess.run(["mount", "-o", "remount,rw", board.home], check=True)
    board.settle()
    outcomes.add(f"read-only before {step}", error, current)
    assert error is not None
    assert current == OLD


@pytest.fixture
def power(board, tmp_path):
    """Push with the old release current, and cut the power before everything a script does."""

    def push(**environment: str) -> list[tuple[str, Path]]:
        copies, shims = tmp_path / "copies", tmp_path / "shims"
        copies.mkdir()
        shims.mkdir()
        (copies / "list").touch()
        real = {tool: shutil.which(tool, path=SYSTEM_PATH) for tool in TOOLS} | {"python3": sys.executable}
        for tool in TOOLS:
            work = "exit 0" if tool in environment.get("WITHOUT", "").split() else f'exec {real[tool]} "$@"'
            places = {"home": board.home, "image": board.home.parent / "image", "copies": copies}
            (shims / tool).write_text(SHIM.format(tool=tool, work=work, **places))
            (shims / tool).chmod(0o755)
        os.sync()
        transport = LocalTransport(board.home, path=f"{shims}:{SYSTEM_PATH}")
        transport._environment.update(environment)
        board.goods.push(NEW, transport)
        names = (copies / "list").read_text().splitlines()
        return [(name, copies / str(number)) for number, name in enumerate(names)]

    return push


def after_each(board, cuts: list[tuple[str, Path]], settle: int) -> Iterator[tuple[str, str]]:
    """What the board runs after each cut, in words; copies that are alike once.  Every `settle`th is pushed to."""
    seen = set()
    place = board.home
    for name, copy in cuts:
        with copy.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest in seen:
            continue
        seen.add(digest)
        # On top of the board's own: it comes up at the same place.
        mount(copy, place)
        try:
            try:
                current = board.current()
            except (AssertionError, OSError, KeyError, ValueError) as error:
                yield name, f"broken: {type(error).__name__} {str(error).splitlines()[0]}"
                continue
            if settle and len(seen) % settle == 0:
                start_again(board.root / "lock")
                faults.Board.settle(board, LocalTransport(place))
            yield name, current
        finally:
            unmount(place)


def start_again(locks: Path) -> None:
    """What a boot changes for leases: they are those of another."""
    for lease in locks.glob("[0-9]*"):
        if lease.stat().st_size:
            lease.write_text("another-boot " + lease.read_text().split(maxsplit=1)[-1])
    for unfinished in locks.glob(".new-*"):
        unfinished.unlink()  # as the first lock does that is taken an hour later


@pytest.mark.parametrize("journal", ["", "1"], ids=["as-it-comes", "journal-committed"])
def test_power_cut(board, power, outcomes, journal):
    cuts = power(LAB_JOURNAL=journal)
    assert len(cuts) > 30
    found = list(after_each(board, cuts, settle=2 if journal else 1))
    told = Counter(current for _, current in found)
    print(told, [name for name, current in found if current not in (OLD, NEW)])
    assert set(told) <= {OLD, NEW}
    how = "with its journal committed" if journal else "as it comes"
    states = ", ".join(f"{name} ({count})" for name, count in sorted(told.items(), reverse=True))
    outcomes.add(f"power cut at {len(cuts)} places, {how}", "(off)", states)


def test_power_cut_shows_what_fsync_is_for(board, power):
    cuts = power(LAB_JOURNAL="1", WITHOUT="sync")
    assert any(current.startswith("broken") for _, current in after_each(board, cuts, settle=0))

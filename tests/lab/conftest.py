"""Fixtures of the lab: boards under emulation, and a workstation that knows nothing of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package

from lab_board import (
    Board,
    boards,
    need_a_container,
    need_root_and_tools,
    register_with_credentials,
    unregister_with_credentials,
)
from lab_rootfs import cache_folder


@dataclass
class Workstation:
    """Runs `edgeferry` as a user would, with a configuration of its own and the lab's cache of wheels.

    Attributes:
        folder: where it runs.
        config: below it, what is known of boards: two that had the same address are two.
    """

    folder: Path
    config: str = "config"

    def __call__(self, *argv: Any, check: bool = True, seconds: float = 600) -> subprocess.CompletedProcess:
        """Run a verb; the finished process."""
        process = self.start(*argv)
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"edgeferry {argv[0]} has not ended after {seconds} s\n{out}{err}") from None
        if check and process.returncode != 0:
            raise AssertionError(f"edgeferry {' '.join(map(str, argv))}: {process.returncode}\n{out}{err}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *argv: Any) -> subprocess.Popen:
        """Start a verb, for a test that does not let it come to its end."""
        return subprocess.Popen(
            [sys.executable, "-m", "edgeferry_deploy", *map(str, argv)],
            cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "EDGEFERRY_CONFIG_DIR": str(self.folder / self.config),
                 "EDGEFERRY_CACHE_DIR": str(cache_folder() / "edgeferry")},
        )  # fmt: skip

    def json(self, *argv: Any, seconds: float = 600) -> Any:
        """What a verb reports, read."""
        return json.loads(self(*argv, "--json", seconds=seconds).stdout)


@pytest.fixture(scope="session")
def emulation() -> Iterator[None]:
    need_root_and_tools()
    register_with_credentials()
    yield
    if not boards():  # another run may have some
        unregister_with_credentials()


@pytest.fixture(scope="module")
def workstation(tmp_path_factory) -> Workstation:
    return Workstation(tmp_path_factory.mktemp("workstation"))


@pytest.fixture(scope="module")
def make_board(emulation, tmp_path_factory) -> Iterator[Callable[[str], Board]]:
    """Boards of a suite, fresh from their installer and switched on; gone when the module ends."""
    made: list[Board] = []

    need_a_container()

    def make(suite: str) -> Board:
        made.append(Board(suite, tmp_path_factory.mktemp(suite)))
        print(f"{suite}: up after {made[-1].boot():.1f} s")
        return made[-1]

    yield make
    for board in made:
        board.discard()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Remember which test failed on a board: those after it would only repeat that."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and lab is not None and not lab.failed:
        lab.failed = item.name
    return report

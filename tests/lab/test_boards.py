"""The life of a board under real systemd and OpenSSH: from its installer to a service, through faults, to nothing.

Each test goes on from where the one before it left the board; after a failure the rest of that board is skipped.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lab_rootfs import SUITES

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

ROOT = ".local/share/edgeferry"
# Emulated, a frame takes half a second and a start ten.
RUN = """\
source = "/home/{user}/digits.avi?loop=1&realtime=1"
sinks = ["jsonl:/home/{user}/results.jsonl"]

[model]
threads = 1

[loop]
fps = 2
pipelined = "off"
"""
PATIENCE = ("--start-seconds", 180, "--check-seconds", 300, "--health-seconds", 10)
# Suite, user and who is expected to keep the service running.
BOARDS = (("bookworm", "pi", "system"), ("trixie", "pi", "system"), ("bookworm", "plain", "user"))
# What the user's manager is not asked, for time.
LONG = (
    "test_a_broken_release_is_taken_back",
    "test_an_unproven_release_goes_back_though_nobody_asks",
    "test_a_power_cut_on_trial_ends_in_the_old_release",
)


@dataclass
class Lab:
    """One board on its way through the tests."""

    board: Any
    workstation: Any
    user: str
    manager: str
    bundle: Path
    release: str = ""
    failed: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def target(self) -> str:
        return f"{self.user}@{self.board.host}"

    def verb(self, *argv: Any, **options: Any) -> Any:
        """A verb of edgeferry that this board is the target of, and what it reports."""
        return self.workstation.json(*argv, "--identity", self.board.identity, **options)

    def ssh(self, command: str, **options: Any) -> str:
        return self.board.ssh(command, user=self.user, **options).stdout.strip()

    def unit(self, *names: str) -> dict[str, str]:
        """Properties of the unit, asked of its manager."""
        flag = "--user " if self.manager == "user" else ""
        said = self.ssh(f"systemctl {flag}show edgeferry.service " + " ".join(f"-p {name}" for name in names))
        return dict(line.split("=", 1) for line in said.splitlines())

    def state(self) -> dict[str, Any]:
        """What the loop tells of itself; {} while there is none."""
        folder = "/run/edgeferry" if self.manager == "system" else f"/run/user/{self.ssh('id -u')}/edgeferry"
        said = self.ssh(f"cat {folder}/state.json", check=False)
        return json.loads(said) if said.startswith("{") else {}

    def current(self) -> str:
        return Path(self.ssh(f"readlink {ROOT}/current", check=False)).name

    def wait(self, what: Callable[[], Any], why: str, seconds: float = 180) -> Any:
        """Ask until it is so."""
        started = time.monotonic()
        while not (found := what()):
            if time.monotonic() - started > seconds:
                log = self.board.ssh("sudo journalctl -u edgeferry -n 40 --no-pager", check=False).stdout
                raise AssertionError(f"{why}: not within {seconds} s\n{self.unit('ActiveState', 'Result')}\n{log}")
            time.sleep(0.5)
        self.figures[why] = round(time.monotonic() - started, 1)
        return found

    def process(self) -> int:
        """The loop's process when it is at work, with results of its own; else 0."""
        unit, state = self.unit("MainPID", "ActiveState"), self.state()
        at_work = unit["ActiveState"] == "active" and state.get("pid") == int(unit["MainPID"])
        return int(unit["MainPID"]) if at_work and state.get("frames", 0) > 0 else 0


@pytest.fixture(scope="module")
def material(workstation, repository) -> Path:
    """Pictures to calibrate with and a video to run on: what `up` is given."""
    script = repository / "examples" / "digits" / "scene.py"
    argv = [
        sys.executable,
        script,
        "--folders",
        "scenes",
        "--video",
        "digits.avi",
        "--seed",
        "1",
        "--seconds",
        "4",
    ]
    subprocess.run([str(word) for word in argv], cwd=workstation.folder, check=True, stdout=subprocess.DEVNULL)
    return workstation.folder


@pytest.fixture(scope="module")
def second(workstation, material, repository) -> Path:
    """Another release than the one that runs."""
    model = repository / "examples" / "digits" / "digits-v2.keras"
    argv = (
        "convert",
        model,
        "--profile",
        "rpi4",
        "--data",
        "scenes",
        "--preprocess",
        "unit",
        "-o",
        "second.ferry",
    )
    workstation(*argv)
    return material / "second.ferry"


@pytest.fixture(scope="module", params=BOARDS, ids=lambda one: f"{one[0]}-{one[1]}")
def lab(request, make_board, workstation, material) -> Iterator[Lab]:
    suite, user, manager = request.param
    workstation.config = f"config-{suite}-{user}"
    board = make_board(suite)
    lab = Lab(board, workstation, user, manager, material / f"{suite}-{user}.ferry")
    copy = ["scp", "-q", "-F", "none", "-i", board.identity, "-o", "StrictHostKeyChecking=no", "-o",
            "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]  # fmt: skip
    subprocess.run([*copy, material / "digits.avi", f"{lab.target}:"], check=True)
    (material / f"run-{user}.toml").write_text(RUN.format(user=user))
    yield lab
    print(f"{suite}: seconds: {lab.figures}")
    board.discard()


@pytest.fixture(autouse=True)
def in_order(request, lab) -> None:
    if lab.failed:
        pytest.skip(f"{lab.failed} failed on this board")
    if lab.manager != "system" and request.node.originalname in LONG:
        pytest.skip("half a minute and more: shown with the system's manager")


def test_systemd_runs_all_its_units(lab):
    assert lab.ssh("systemctl is-system-running --wait") == "running"
    assert lab.board.ssh("id -un; sudo -n id -un").stdout.split() == ["pi", "root"]


def test_enrol(lab):
    refused = lab.workstation("enrol", lab.target, "--fingerprint", "SHA256:" + "A" * 43, check=False)
    assert refused.returncode == 1
    report = lab.workstation.json("enrol", lab.target, "--fingerprint", lab.board.fingerprint)
    assert report["new"] is True


def test_probe(lab):
    facts = lab.verb("probe", lab.target)
    assert facts["arch"] == "aarch64"
    assert facts["distribution"]["codename"] == lab.board.suite
    assert facts["init"] == "systemd"
    assert facts["sudo"] is (lab.manager == "system")
    assert [one["version"].rpartition(".")[0] for one in facts["pythons"]] == [SUITES[lab.board.suite].python]


def test_doctor(lab):
    report = lab.verb("doctor", lab.target)
    assert "no-video-group" not in json.dumps(report)


def test_up(lab, repository):
    """One command: looked at, converted, wheels sent, proven, switched, running."""
    started = time.monotonic()
    report = lab.verb(
        "up", repository / "examples" / "digits" / "digits.keras", lab.target, "--data", "scenes",
        "--preprocess", "unit", "--profile", "rpi4", "--output", lab.bundle, "--config", f"run-{lab.user}.toml",
        *PATIENCE,
    )  # fmt: skip
    lab.figures["up"] = round(time.monotonic() - started, 1)
    lab.release = lab.current()
    print(json.dumps(report["push"]))
    assert lab.release.startswith(lab.bundle.stem)
    assert lab.ssh(f"cut -d' ' -f1 {ROOT}/service/manager") == lab.manager


def test_results_advance_on_a_recorded_video(lab):
    lab.wait(lab.process, "ready")
    assert lab.unit("ActiveState", "SubState", "Result") == {
        "ActiveState": "active", "SubState": "running", "Result": "success",
    }  # fmt: skip
    count = "wc -l <results.jsonl"
    before = int(lab.ssh(count))
    lab.wait(lambda: int(lab.ssh(count)) >= before + 3, "three results")
    result = json.loads(lab.ssh("tail -n 1 results.jsonl"))
    assert len(result["classes"]) >= 1


def test_outputs_agree_with_this_machine(lab):
    said = lab.workstation("run", lab.target, "--identity", lab.board.identity, "--", "check", "--json").stdout
    check = json.loads(said)
    print(f"{lab.board.suite}: {check['backend']}: {check['outputs']}")
    assert check["ok"] is True
    assert check["backend"].startswith("ai-edge-litert")
    video = ["--sink", "jsonl:-", "--frames", "5", "--threads", "1", "--pipelined", "off"]
    there = lab.workstation(
        "run", lab.target, "--identity", lab.board.identity, "--",
        "run", "--source", f"/home/{lab.user}/digits.avi", *video,
    ).stdout  # fmt: skip
    here = subprocess.run(
        [sys.executable, "-m", "edgeferry_runtime", "run", "--bundle", lab.bundle, "--any-arch",
         "--source", "digits.avi", *video],
        cwd=lab.workstation.folder, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    tolerance = check["outputs"][0]["max_abs_tolerance"]
    results = [[json.loads(line) for line in said.splitlines() if line.startswith("{")] for said in (there, here)]
    assert len(results[0]) == 5
    for a, b in zip(*results, strict=True):
        assert a["frame"] == b["frame"]
        assert a["classes"][0]["index"] == b["classes"][0]["index"]
        assert abs(a["classes"][0]["score"] - b["classes"][0]["score"]) <= tolerance


def test_the_unit_leaves_the_loop_what_it_needs(lab):
    """All it is hardened with, also what the lab has to switch off in the service itself."""
    if lab.manager != "system":
        pytest.skip("only the system's unit is hardened")
    said = lab.ssh("cat /etc/systemd/system/edgeferry.service").splitlines()
    hardening = [f"-p {line}" for line in said if line.startswith(("Protect", "NoNew", "Private", "Restrict"))]
    assert "-p ProtectKernelTunables=yes" in hardening
    done = lab.ssh(
        f"sudo systemd-run --quiet --wait --pipe -p User={lab.user} {' '.join(hardening)} "
        f"sh -c 'cd; {ROOT}/env/*/edgeferry-run check --bundle {ROOT}/current --json; touch /usr/x /proc/sys/x'",
        check=False,
    )
    assert json.loads(done.splitlines()[0])["ok"] is True


def restarted(lab: Lab, before: int) -> Callable[[], int]:
    """The loop's new process, when it is one and at work."""
    return lambda: found if (found := lab.process()) not in (0, before) else 0


def test_killed_it_is_restarted(lab):
    before = lab.process()
    restarts = int(lab.unit("NRestarts")["NRestarts"])
    lab.ssh(f"kill -9 {before}")
    lab.wait(restarted(lab, before), "restarted after kill -9")
    assert int(lab.unit("NRestarts")["NRestarts"]) == restarts + 1
    assert lab.current() == lab.release


def test_hung_the_watchdog_restarts_it(lab):
    before = lab.process()
    lab.ssh(f"kill -STOP {before}")
    lab.wait(restarted(lab, before), "restarted by the watchdog")
    said = lab.board.ssh("sudo journalctl --no-pager -n 200").stdout
    assert "Watchdog timeout" in said
    assert lab.current() == lab.release


def test_after_a_reboot_it_is_back(lab):
    lab.board.reboot()
    lab.wait(lab.process, "at work after the reboot")
    assert lab.current() == lab.release
    assert lab.unit("UnitFileState")["UnitFileState"] == "enabled"


def push_second(lab: Lab, source: str = "") -> tuple[Any, ...]:
    """A push of another release; with a source that is not there, one that never gets a frame to work on."""
    config = lab.workstation.folder / f"second-{lab.user}.toml"
    text = RUN.format(user=lab.user)
    config.write_text(re.sub("source = .*", f'source = "{source}"', text) if source else text)
    second = lab.workstation.folder / "second.ferry"
    return ("push", second, lab.target, "--config", config.name, *PATIENCE, "--identity", lab.board.identity)


def on_trial(lab: Lab, push: subprocess.Popen) -> bool:
    """Whether the push has come as far as that."""
    assert push.poll() is None, push.communicate()
    return lab.ssh(f"cat {ROOT}/state/trial/release", check=False).startswith("second-")


def test_a_broken_release_is_taken_back(lab, second):
    """One that ends at once: the workstation sees it and says so."""
    done = lab.workstation(*push_second(lab, "/home/nobody/nothing.avi"), check=False)
    print(done.stderr)
    assert done.returncode == 1
    assert f"{lab.release} is current again and runs" in done.stderr
    assert lab.current() == lab.release
    lab.wait(lab.process, "the old release at work again")


def test_an_unproven_release_goes_back_though_nobody_asks(lab, second):
    """The workstation is killed while a release is on trial: the board alone returns to the old one."""
    push = lab.workstation.start(*push_second(lab))
    try:
        lab.wait(lambda: on_trial(lab, push), "on trial")
        assert lab.current() != lab.release
    finally:
        push.kill()
        push.communicate()
    lab.wait(lambda: lab.current() == lab.release, "back by itself")
    lab.wait(lab.process, "the old release at work by itself")
    assert "no word from the workstation" in lab.ssh(f"tail -n 2 {ROOT}/log/audit.jsonl")


def test_a_power_cut_on_trial_ends_in_the_old_release(lab, second):
    push = lab.workstation.start(*push_second(lab))
    try:
        lab.wait(lambda: on_trial(lab, push), "on trial again")
        lab.board.cut_power()
    finally:
        push.kill()
        push.communicate()
    lab.board.boot()
    lab.wait(lab.process, "the old release at work after the power cut")
    assert lab.current() == lab.release


def test_remove_leaves_nothing(lab):
    lab.verb("remove", lab.target, "--yes")
    home, runtime = f"/home/{lab.user}", f"/run/user/{lab.ssh('id -u')}"
    for path in (home, runtime, "/etc/systemd/system", "/run", "/tmp", "/dev/shm"):
        said = lab.board.ssh(f"sudo find {path} -xdev -name '*edgeferry*' -not -path '*edgeferry.service.d*'")
        assert said.stdout.strip() == "", path
    assert lab.unit("LoadState")["LoadState"] == "not-found"
    assert "edgeferry" not in lab.board.ssh("ps ax | grep -v grep", check=False).stdout

"""Streamed commands on both twins, that none lives on, and `edgeferry run`."""

from __future__ import annotations

import argparse
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from edgeferry_deploy import device_run
from edgeferry_deploy.connect import open_transport
from edgeferry_deploy.errors import CommandTimeoutError, LinkLostError, NoReleaseError, TargetError
from edgeferry_deploy.hostkeys import store
from edgeferry_deploy.push import push
from edgeferry_deploy.ssh import fetch_host_key
from edgeferry_deploy.streaming import GUARD, STDERR, STDOUT, guarded
from edgeferry_deploy.target import parse_target

SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]
# Says its process, and what ends it.  A handler may not print while a print is under way.
PATIENT = """
import os, signal, sys, time
def stop(number, frame):
    os.write(1, b"summary after %d\\n" % number)
    sys.exit(7)
signal.signal(signal.SIGINT, stop)
os.write(1, b"pid %d\\n" % os.getpid())
time.sleep(60)
"""
STUBBORN = PATIENT.replace("sys.exit(7)", "time.sleep(60)")


class Taken:
    """Collects; raises what it is given when it has seen a word."""

    def __init__(self, word=None, error=None):
        self.bytes = {STDOUT: b"", STDERR: b""}
        self._word, self._error = word, error

    def __call__(self, stream, piece):
        self.bytes[stream] += piece
        if self._word and self._word in self.bytes[STDOUT]:
            self._word = None
            raise self._error

    @property
    def pid(self):
        return int(self.bytes[STDOUT].split()[1])


def gone(pid, seconds=15.0):
    """Whether a process ends in time; a zombie has."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_output_comes_in_two_streams_with_the_exit_status(device):
    taken = Taken()
    with device.connect() as transport:
        status = transport.stream(["sh", "-c", "echo out; echo err >&2; cat; exit 3"], taken)
    assert (status, taken.bytes) == (3, {STDOUT: b"out\n", STDERR: b"err\n"})


def test_output_comes_while_the_command_runs_and_has_no_limit(device):
    size = 3_000_000
    script = f"import sys, time; sys.stdout.write('x' * {size}); sys.stdout.flush(); time.sleep(1); print('end')"
    times = []
    taken = Taken()

    def write(stream, piece):
        times.append(time.monotonic())
        taken(stream, piece)

    with device.connect() as transport:
        assert transport.stream([sys.executable, "-c", script], write) == 0
    assert len(taken.bytes[STDOUT]) == size + len("end\n")
    assert times[-1] - times[0] > 0.5


@pytest.mark.parametrize(
    ("words", "statuses"),
    # A login shell that waits for the command tells of its signal in its own way.
    [(["no-such-program"], {127}), (["sh", "-c", "kill -9 $$"], {-1, 128 + signal.SIGKILL})],
)
def test_a_program_that_is_missing_or_killed_ends_the_stream(device, words, statuses):
    with device.connect() as transport:
        assert transport.stream(words, Taken()) in statuses


def test_arguments_are_not_looked_at_by_any_shell(device):
    words = ["a b", "$HOME", "`id`", "'", '"', "é", "-n", ""]
    taken = Taken()
    with device.connect() as transport:
        transport.stream([sys.executable, "-c", "import sys; print(sys.argv[1:])", *words], taken)
    assert taken.bytes[STDOUT].decode() == f"{words}\n"


def test_ctrl_c_here_is_ctrl_c_there_and_the_last_words_come(device):
    taken = Taken(b"pid", KeyboardInterrupt)
    with device.connect() as transport, pytest.raises(KeyboardInterrupt):
        transport.stream([sys.executable, "-c", PATIENT], taken)
    assert b"summary after 2" in taken.bytes[STDOUT]
    assert gone(taken.pid)


def test_a_command_that_does_not_mind_ctrl_c_is_ended_all_the_same(device):
    taken = Taken(b"pid", KeyboardInterrupt)
    with device.connect() as transport, pytest.raises(KeyboardInterrupt):
        transport.stream([sys.executable, "-c", STUBBORN], taken)
    assert gone(taken.pid)


def test_a_reader_that_went_away_ends_the_command(device):
    taken = Taken(b"pid", BrokenPipeError)
    with device.connect() as transport, pytest.raises(BrokenPipeError):
        transport.stream([sys.executable, "-c", PATIENT], taken)
    assert gone(taken.pid)


def test_a_deadline_ends_the_command(device):
    taken = Taken()
    with device.connect() as transport, pytest.raises(CommandTimeoutError, match="within 1 s"):
        transport.stream([sys.executable, "-c", PATIENT], taken, timeout=1.0)
    assert gone(taken.pid)


def test_endless_output_ends_at_the_deadline(device):
    with device.connect() as transport, pytest.raises(CommandTimeoutError):
        transport.stream(["yes"], lambda stream, piece: None, timeout=0.5, stop_seconds=5)


def test_a_broken_link_is_told_and_the_command_does_not_live_on(start_device, tmp_path):
    started = start_device(tmp_path / "home")
    taken = Taken()
    with open_transport(started.target, started.identity) as transport:
        threading.Timer(1.0, os.kill, [started.pid, signal.SIGKILL]).start()
        with pytest.raises(LinkLostError):
            transport.stream([sys.executable, "-c", PATIENT], taken)
    assert gone(taken.pid)


WORKSTATION = """
import sys
from edgeferry_deploy.connect import open_transport
with open_transport(sys.argv[1], sys.argv[2]) as transport:
    words = [sys.executable, "-c", sys.argv[3]]
    transport.stream(words, lambda stream, piece: (sys.stdout.buffer.write(piece), sys.stdout.flush()))
"""


@pytest.fixture
def openssh(tmp_path):
    """A real sshd on loopback that knows this user: its target, and the key."""
    sshd = "/usr/sbin/sshd"
    if not os.path.exists(sshd):
        pytest.skip("no sshd here")
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {
        "ListenAddress": f"127.0.0.1:{port}", "HostKey": tmp_path / "host", "StrictModes": "no", "UsePAM": "no",
        "AuthorizedKeysFile": tmp_path / "client.pub", "PidFile": "none", "PermitRootLogin": "yes",
    }  # fmt: skip
    words = [f"-o{key}={value}" for key, value in options.items()]
    process = subprocess.Popen([sshd, "-D", "-e", "-f", "/dev/null", *words], stderr=subprocess.PIPE)
    try:
        if b"listening" not in process.stderr.readline():
            pytest.skip("sshd does not start here")
        target = parse_target(f"{getpass.getuser()}@127.0.0.1:{port}")
        store(target, fetch_host_key(target))
        yield str(target), str(tmp_path / "client")
    finally:
        process.terminate()
        process.communicate(timeout=10)


def test_ctrl_c_reaches_what_runs_below_openssh(openssh):
    taken = Taken(b"pid", KeyboardInterrupt)
    with open_transport(*openssh) as transport, pytest.raises(KeyboardInterrupt):
        transport.stream([sys.executable, "-c", PATIENT], taken)
    assert b"summary after 2" in taken.bytes[STDOUT]
    assert gone(taken.pid)


def test_nothing_lives_on_below_openssh_when_the_workstation_is_killed(openssh):
    words = [sys.executable, "-c", WORKSTATION, *openssh, STUBBORN]
    workstation = subprocess.Popen(words, stdout=subprocess.PIPE)
    pid = int(workstation.stdout.readline().split()[1])
    assert not gone(pid, 0.5)
    workstation.kill()
    workstation.communicate()
    assert gone(pid)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_guard_ends_a_command_in_every_shell(shell):
    prefix = [shell, "sh"] if shell == "busybox" else [shell]
    argv = [*prefix, *guarded([sys.executable, "-c", PATIENT])[1:]]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    pid = int(process.stdout.readline().split()[1])
    assert pid == process.pid  # the shell became the command
    process.stdin.close()
    process.stdin = None
    assert process.communicate(timeout=20)[0] == b"summary after 2\n"
    assert process.returncode == 7


def test_the_guard_leaves_a_process_alone_that_is_not_its_parent():
    """The command has ended, and its number is another's: here the pid is rewritten to one that lives."""
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        text = GUARD.replace('"$$"', str(bystander.pid)).replace("parent=$$", f"parent={bystander.pid}")
        process = subprocess.Popen(["sh", "-c", text, "x", "true"], stdin=subprocess.PIPE)
        process.communicate()
        time.sleep(1)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "--source", "x"], ["run", "--bundle", "/r/b", "--source", "x"]),
        (["info"], ["info", "--bundle", "/r/b"]),
        (["check", "--bundle", "x"], ["check", "--bundle", "x"]),
        (["check", "--bund=x"], ["check", "--bund=x"]),
        (["bench", "--backend", "x"], ["bench", "--bundle", "/r/b", "--backend", "x"]),
        (["install", "DIR", "--into", "x"], ["install", "DIR", "--into", "x"]),
        (["--version"], ["--version"]),
    ],
)
def test_the_bundle_is_the_current_release_where_one_is_taken(words, expected):
    assert device_run.with_bundle(words, "/r/b") == expected


def arguments(device, *rest):
    return argparse.Namespace(
        target=device.target,
        identity=device.identity and str(device.identity),
        root="~/.local/share/edgeferry",
        rest=list(rest),
    )


def test_run_hands_output_and_status_on(device, make_bundle, runtime_folder, capfdbinary):
    with device.connect() as transport:
        push(make_bundle(), transport, runtime_folder=runtime_folder, python=sys.executable)
    capfdbinary.readouterr()
    assert device_run.run(arguments(device, "check", "--json")) == 0
    assert b'"ok": true' in capfdbinary.readouterr().out
    model = device.root / "releases" / device.current() / "model.tflite"
    os.chmod(model, 0o644)
    model.write_bytes(b"FINE but not what was sent")
    assert device_run.run(arguments(device, "check", "--json")) == 1
    assert b"damaged" in capfdbinary.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ctl", "state"], "ctl state --socket /run/edge ferry/control.sock"),
        (["ctl", "state", "--socket", "/x"], "ctl state --socket /x"),
        (["ctl", "state", "--socket=/x"], "ctl state --socket=/x"),
        (["check"], "check"),
    ],
)
def test_ctl_asks_the_loop_of_the_service(tmp_path, shell, words, expected):
    for name, text in (
        ("env/e/edgeferry-run", '#!/bin/sh\necho "$*"\n'),
        ("service/control", '#!/bin/sh\n[ "$1" = runtime ] && echo "/run/edge ferry"\n'),
    ):
        path = tmp_path / "root of it" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)
    prefix = [shell, "sh"] if shell == "busybox" else [shell]
    argv = [*prefix, "-c", device_run.RUN, "run", str(tmp_path / "root of it"), "e", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_run_without_a_release_says_what_to_do(device):
    with pytest.raises(NoReleaseError, match="nothing has been pushed"):
        device_run.run(arguments(device, "check"))


def test_run_without_words_asks_nobody(device):
    with pytest.raises(TargetError, match="what to run"):
        device_run.run(argparse.Namespace(target="nobody@192.0.2.1", identity=None, root="~/x", rest=[]))

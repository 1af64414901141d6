"""`edgeferry shell`: the command it becomes, and that ssh takes it as it is meant."""

from __future__ import annotations

import argparse
import getpass
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from edgeferry_deploy import shell
from edgeferry_deploy.errors import DeployError, RevokedHostKeyError, TargetError, UnknownHostKeyError
from edgeferry_deploy.hostkeys import HostKey, own_file, store
from edgeferry_deploy.shell import known_hosts_files, local_shell, ssh_argv
from edgeferry_deploy.target import LocalTarget, parse_target

KEY = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl")
SSH, SSHD = shutil.which("ssh"), "/usr/sbin/sshd"
needs_ssh = pytest.mark.skipif(SSH is None, reason="no ssh program here")


def config(home, text):
    (home / ".ssh").mkdir(exist_ok=True)
    (home / ".ssh" / "config").write_text(text)


@pytest.mark.parametrize(
    ("typed", "end", "alias"),
    [
        ("pi@board", ["-l", "pi", "-p", "22", "--", "board"], "board"),
        ("pi@Board.local:2222", ["-l", "pi", "-p", "2222", "--", "board.local"], "[board.local]:2222"),
        ("pi@[fe80::1%eth0]:2222", ["-l", "pi", "-p", "2222", "--", "fe80::1%eth0"], "[fe80::1%eth0]:2222"),
        ("pi@[2001:db8::7]", ["-l", "pi", "-p", "22", "--", "2001:db8::7"], "2001:db8::7"),
    ],
)
def test_the_command(typed, end, alias):
    argv = ssh_argv(parse_target(typed), [Path("/home/ann/known_hosts")])
    options = [argv[index + 1] for index, word in enumerate(argv) if word == "-o"]
    assert argv[0] == "ssh" and argv[-len(end) :] == end
    assert options == [
        'UserKnownHostsFile="/home/ann/known_hosts"',
        f"GlobalKnownHostsFile={os.devnull}",
        "StrictHostKeyChecking=yes",
        f"HostKeyAlias={alias}",
        "UpdateHostKeys=no",
    ]


def test_an_alias_stays_one_so_that_its_jump_hosts_count(own_config):
    config(own_config, "Host cam\n  HostName 10.0.0.7\n  User pi\n  Port 2222\n  ProxyJump gate@hub\n")
    argv = ssh_argv(parse_target("cam"), [Path("/k")])
    assert argv[-5:] == ["pi", "-p", "2222", "--", "cam"]
    assert "HostKeyAlias=[10.0.0.7]:2222" in argv
    assert ssh_argv(parse_target("ann@cam:23"), [Path("/k")])[-6:] == ["-l", "ann", "-p", "23", "--", "cam"]


def test_paths_are_quoted_as_ssh_reads_them():
    argv = ssh_argv(parse_target("pi@board"), [Path("/a b/100%"), Path("/c")], "/keys/my key")
    assert 'UserKnownHostsFile="/a b/100%%" "/c"' in argv
    assert 'IdentityFile="/keys/my key"' in argv and "IdentitiesOnly=yes" in argv


@pytest.mark.parametrize("path", ['/a"b', "/a\nb", "/a${HOME}", "/a\\b"])
def test_paths_that_ssh_cannot_be_told_of_are_refused(path):
    with pytest.raises(TargetError, match="ssh cannot be told"):
        ssh_argv(parse_target("pi@board"), [Path("/k")], path)


@pytest.mark.parametrize("typed", ["pi@-oProxyCommand=x", "-oProxyCommand=x@board", "pi@", "board:x@y"])
def test_a_target_never_becomes_an_option(typed):
    with pytest.raises(TargetError):
        shell.run(argparse.Namespace(target=typed, identity=None))


def test_edgeferrys_keys_hide_the_users_and_nobodys_is_refused(own_config):
    target = parse_target("pi@board")
    with pytest.raises(UnknownHostKeyError, match="not enrolled"):
        known_hosts_files(target)
    (own_config / ".ssh").mkdir()
    users = own_config / ".ssh" / "known_hosts"
    users.write_text(f"board {KEY.kind} {KEY.body}\n")
    assert known_hosts_files(target) == (users,)
    store(target, KEY)
    assert known_hosts_files(target) == (own_file(),)
    users.write_text(f"@revoked board {KEY.kind} {KEY.body}\n")
    with pytest.raises(RevokedHostKeyError):
        known_hosts_files(target)


def test_without_ssh_it_says_what_to_install(monkeypatch, tmp_path):
    store(parse_target("pi@board"), KEY)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeployError, match="no ssh program") as caught:
        shell.run(argparse.Namespace(target="pi@board", identity=None))
    assert "openssh-client" in caught.value.remedy


def test_a_local_device_gets_a_shell_in_its_folder(tmp_path):
    argv, folder, environment = local_shell(LocalTarget(str(tmp_path)), {"SHELL": "/bin/sh", "TERM": "x"})
    assert (argv, folder, environment["HOME"], environment["TERM"]) == (["/bin/sh"], tmp_path, str(tmp_path), "x")
    with pytest.raises(TargetError, match="is no folder"):
        local_shell(LocalTarget(str(tmp_path / "absent")), {})


RUN = "import argparse, sys; from edgeferry_deploy.shell import run\n"
RUN += "sys.exit(run(argparse.Namespace(target=sys.argv[1], identity=sys.argv[2] or None)))"


def typed(argv, text, until, seconds=20.0):
    """What a program on a terminal shows after `text` is typed, up to a word; its exit code."""
    ours, device = pty.openpty()
    process = subprocess.Popen(argv, stdin=device, stdout=device, stderr=device, start_new_session=True)
    os.close(device)
    os.write(ours, text)
    seen, end = b"", time.monotonic() + seconds
    try:
        while time.monotonic() < end and until not in seen:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    seen += os.read(ours, 65536)
                except OSError:
                    break
        os.write(ours, b"\nexit 5\n")
        return seen, process.wait(10)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_a_local_shell_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("SHELL", "/bin/sh")
    seen, code = typed([sys.executable, "-c", RUN, f"local:{tmp_path}", ""], b"echo at-$PWD-$((6*7))\n", b"-42")
    assert f"at-{tmp_path}-42".encode() in seen
    assert code == 5


@needs_ssh
def test_a_terminal_on_the_virtual_device_end_to_end(start_device, tmp_path):
    started = start_device(tmp_path / "home")
    argv = [sys.executable, "-c", RUN, started.target, str(started.identity)]
    seen, code = typed(argv, b"tty; echo at-$PWD-$((6*7))\n", b"-42")
    assert f"at-{started.home}-42".encode() in seen and b"/dev/pts/" in seen
    assert code == 5


@needs_ssh
def test_another_key_than_the_enrolled_one_ends_it(start_device, tmp_path):
    started = start_device(tmp_path / "home", enrolled=False)
    store(parse_target(started.target), KEY)
    argv = [sys.executable, "-c", RUN, started.target, str(started.identity)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
    assert done.returncode == 255
    assert b"Host key verification failed" in done.stderr


@needs_ssh
@pytest.mark.skipif(not os.path.exists(SSHD), reason="no sshd here")
def test_a_shell_of_openssh_end_to_end(tmp_path, own_config):
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    shutil.copy(tmp_path / "client.pub", tmp_path / "authorized")
    # -i speaks with one client on stdin: no port is listened on.
    server = (
        f"{SSHD} -i -f /dev/null -h {tmp_path}/host -o AuthorizedKeysFile={tmp_path}/authorized -o StrictModes=no "
        "-o UsePAM=no -o PermitRootLogin=yes"
    )
    kind, body = (tmp_path / "host.pub").read_text().split()[:2]
    target = parse_target(f"{getpass.getuser()}@board")
    store(target, HostKey(kind, body))
    argv = ssh_argv(target, known_hosts_files(target), tmp_path / "client")
    argv[1:1] = ["-o", f"ProxyCommand={server}"]
    done = subprocess.run(argv, input=b"echo $((6*7))\nexit 5\n", capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout.split()[-1:]) == (5, [b"42"]), done.stderr

"""What only SSH has: host keys, logins, ports that refuse, links that break."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import asyncssh
import pytest
from edgeferry_deploy.cli import main
from edgeferry_deploy.connect import open_transport
from edgeferry_deploy.enrol import enrol
from edgeferry_deploy.errors import (
    AuthenticationError,
    ChangedHostKeyError,
    CommandTimeoutError,
    ConnectError,
    DeviceReplyError,
    HostKeyError,
    LinkLostError,
    NotSshError,
    RevokedHostKeyError,
    TargetError,
    UnknownHostKeyError,
    UnreachableError,
)
from edgeferry_deploy.hostkeys import HostKey, KnownHosts, host_pattern, own_file, parse_known_hosts, store
from edgeferry_deploy.push import push
from edgeferry_deploy.release import Blob
from edgeferry_deploy.ssh import Watchdog, fetch_host_key
from edgeferry_deploy.target import SshTarget, parse_target
from edgeferry_deploy.transfer import plan_uploads, send_blobs


def new_key(path=None, passphrase=None):
    """A key pair; the host key it makes, and the private key in a file when one is named."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    if path:
        key.write_private_key(str(path), passphrase=passphrase)
        key.write_public_key(f"{path}.pub")
        path.chmod(0o600)
    kind, body = key.export_public_key().decode().split()[:2]
    return HostKey(kind, body)


@contextlib.contextmanager
def listener(handle):
    """A TCP server on loopback that hands each connection to `handle`."""
    server = socket.create_server(("127.0.0.1", 0))
    held = []

    def accept():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                held.append(connection)
                threading.Thread(target=handle, args=[connection], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        for connection in held:
            connection.close()


def test_unknown_host_key_stops_with_its_fingerprint_and_the_enrol_command(start_device):
    device = start_device(enrolled=False)
    with pytest.raises(UnknownHostKeyError) as caught:
        open_transport(device.target, device.identity)
    assert device.host_key_fingerprint in caught.value.message
    assert f"edgeferry enrol {device.target}" in caught.value.remedy
    assert caught.value.offered == device.host_key_fingerprint
    assert not (device.home / ".local").exists()


def test_changed_host_key_stops_with_both_fingerprints_and_the_enrol_command(start_device):
    device = start_device(enrolled=False)
    old = new_key()
    store(parse_target(device.target), old)
    with pytest.raises(ChangedHostKeyError) as caught:
        open_transport(device.target, device.identity)
    assert device.host_key_fingerprint in caught.value.message
    assert old.fingerprint in caught.value.message
    assert f"edgeferry enrol {device.target} --replace" in caught.value.remedy
    assert caught.value.enrolled == (old.fingerprint,)


def test_key_of_another_type_counts_as_changed(start_device):
    device = start_device(enrolled=False)
    key = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
    store(parse_target(device.target), HostKey(*key.export_public_key().decode().split()[:2]))
    with pytest.raises(ChangedHostKeyError):
        open_transport(device.target, device.identity)


def test_users_known_hosts_is_trusted_plain_and_hashed_and_never_written(start_device, own_config):
    device = start_device(enrolled=False)
    target = parse_target(device.target)
    key, name = fetch_host_key(target), host_pattern(target)
    salt = os.urandom(20)
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    hashed = f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"
    (own_config / ".ssh").mkdir()
    file = own_config / ".ssh" / "known_hosts"
    for pattern in (name, hashed):
        text = f"# a comment\nother.example {key.kind} AAAA\n{pattern} {key.kind} {key.body} me@here\n"
        file.write_text(text)
        open_transport(device.target, device.identity).close()
        assert file.read_text() == text
        assert not own_file().exists()


def test_revoked_key_is_refused_even_when_enrolled(start_device, own_config):
    device = start_device()
    target = parse_target(device.target)
    key = fetch_host_key(target)
    (own_config / ".ssh").mkdir()
    (own_config / ".ssh" / "known_hosts").write_text(f"@revoked * {key.kind} {key.body}\n")
    with pytest.raises(RevokedHostKeyError):
        open_transport(device.target, device.identity)


def test_own_entry_hides_the_users_older_one():
    target, old, new = SshTarget("pi", "board"), new_key(), new_key()
    mine = list(parse_known_hosts(f"board {new.kind} {new.body}"))
    users = list(parse_known_hosts(f"board {old.kind} {old.body}"))
    KnownHosts(mine, users).verify(target, new)
    with pytest.raises(ChangedHostKeyError):
        KnownHosts(mine, users).verify(target, old)


@pytest.mark.parametrize(
    ("pattern", "covers"),
    [
        ("board", True),
        ("Board", True),
        ("boar?", True),
        ("b*d", True),
        ("*,!board", False),
        ("!board,*", False),
        ("other,board", True),
        ("[board]:22", False),
        ("[board]", False),
        ("|1|x|y", False),
        ("|1|only", False),
        ("[abord]oard", False),
    ],
)
def test_patterns_of_known_hosts(pattern, covers):
    key = new_key()
    known = KnownHosts((), tuple(parse_known_hosts(f"{pattern} {key.kind} {key.body}")))
    assert bool(known.keys(SshTarget("pi", "board"))) is covers


def test_fingerprint_is_what_openssh_prints():
    # ssh-keygen -lf of this public key
    key = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl")
    assert key.fingerprint == "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"


def test_enrol_stores_the_key_once_and_keeps_other_lines(start_device):
    device = start_device(enrolled=False)
    target = parse_target(device.target)
    other = new_key()
    store(SshTarget("pi", "other"), other)
    key, path = enrol(target, fingerprint=device.host_key_fingerprint)
    assert path == own_file()
    assert key.fingerprint == device.host_key_fingerprint
    assert enrol(target, yes=True) == (key, None)
    lines = path.read_text().splitlines()
    assert lines == [
        f"other {other.kind} {other.body}",
        f"[127.0.0.1]:{device.port} {key.kind} {key.body}",
    ]
    assert os.stat(path).st_mode & 0o077 == 0
    open_transport(device.target, device.identity).close()


def test_enrol_refuses_another_fingerprint_and_writes_nothing(start_device):
    device = start_device(enrolled=False)
    with pytest.raises(HostKeyError, match="not SHA256:nonsense"):
        enrol(parse_target(device.target), fingerprint="SHA256:nonsense")
    assert not own_file().exists()


def test_enrol_asks_and_a_no_writes_nothing():
    key, questions = new_key(), []

    def refuse(question):
        questions.append(question)
        return False

    with pytest.raises(HostKeyError, match="declined"):
        enrol(SshTarget("pi", "board"), ask=refuse, fetch=lambda _: key)
    assert key.fingerprint in questions[0]
    with pytest.raises(TargetError, match="no terminal"):
        enrol(SshTarget("pi", "board"), fetch=lambda _: key)
    assert not own_file().exists()


def test_enrol_replaces_a_changed_key_only_when_told():
    target, old, new = SshTarget("pi", "board", 2222), new_key(), new_key()
    store(target, old)
    with pytest.raises(ChangedHostKeyError):
        enrol(target, yes=True, fetch=lambda _: new)
    assert old.body in own_file().read_text()
    enrol(target, yes=True, replace=True, fetch=lambda _: new)
    assert own_file().read_text() == f"[board]:2222 {new.kind} {new.body}\n"


def test_wrong_identity_names_what_was_offered_and_the_remedy(start_device, tmp_path):
    device = start_device()
    wrong = tmp_path / "wrong_key"
    new_key(wrong)
    with pytest.raises(AuthenticationError) as caught:
        open_transport(device.target, wrong)
    assert str(wrong) in caught.value.message
    assert "ssh-copy-id" in caught.value.remedy
    assert f"-p {device.port}" in caught.value.remedy


def test_no_key_at_all_is_told(start_device):
    device = start_device()
    with pytest.raises(AuthenticationError, match="there is no key to offer"):
        open_transport(device.target)


def test_default_key_is_found_and_a_locked_one_is_named(start_device, own_config):
    device = start_device()
    (own_config / ".ssh").mkdir()
    new_key(own_config / ".ssh" / "id_rsa", passphrase="secret words")
    with pytest.raises(AuthenticationError, match="protected by a passphrase") as caught:
        open_transport(device.target)
    assert "ssh-add" in caught.value.remedy
    (own_config / ".ssh" / "id_ed25519").write_bytes(device.identity.read_bytes())
    open_transport(device.target).close()


def test_identity_that_cannot_be_used_is_a_usage_error(start_device, tmp_path):
    device = start_device()
    locked = tmp_path / "locked"
    new_key(locked, passphrase="secret words")
    with pytest.raises(TargetError, match="passphrase") as caught:
        open_transport(device.target, locked)
    assert "ssh-add" in caught.value.remedy
    with pytest.raises(TargetError, match="No such file"):
        open_transport(device.target, tmp_path / "nothing")
    with pytest.raises(TargetError, match="no private key"):
        open_transport(device.target, f"{locked}.pub")


def test_refused_port_unknown_name_and_not_ssh_each_have_their_sentence():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UnreachableError, match="refuses connections"):
        open_transport(f"pi@127.0.0.1:{port}")
    with pytest.raises(UnreachableError, match="no address is known"):
        open_transport("pi@no-such-board.invalid")

    def http(connection):
        with contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\x1b[31m\r\n\r\n" * 50)
            connection.close()

    with listener(http) as port, pytest.raises(NotSshError, match="no SSH server") as caught:
        open_transport(f"pi@127.0.0.1:{port}")
    assert "\x1b" not in str(caught.value)
    with listener(lambda connection: connection.close()) as port, pytest.raises(NotSshError):
        open_transport(f"pi@127.0.0.1:{port}")


def test_server_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr("edgeferry_deploy.ssh.CONNECT_SECONDS", 1.0)
    began = time.monotonic()
    with listener(lambda connection: None) as port, pytest.raises(ConnectError):
        open_transport(f"pi@127.0.0.1:{port}")
    assert time.monotonic() - began < 10


def test_push_killed_mid_upload_leaves_nothing_half_written_and_the_next_resumes(
    start_device, make_bundle, runtime_folder, monkeypatch
):
    device = start_device()
    root = device.home / ".local" / "share" / "edgeferry"
    with open_transport(device.target, device.identity) as transport:
        first = push(make_bundle(), transport, runtime_folder=runtime_folder)
    bundle = make_bundle(size=3_000_000)
    monkeypatch.setattr("edgeferry_deploy.delta.LEAST_GAIN", 1.0)  # the model would shrink to nothing
    transport = open_transport(device.target, device.identity)
    send = transport.upload

    def cut(chunks, path, offset=0, timeout=60.0):
        def some():
            for count, chunk in enumerate(chunks):
                if count == 40:
                    time.sleep(0.3)
                    transport._socket.shutdown(socket.SHUT_RDWR)
                    time.sleep(0.3)
                yield chunk

        send(some(), path, offset, timeout)

    transport.upload = cut
    with pytest.raises(LinkLostError, match="lost"):
        push(bundle, transport, runtime_folder=runtime_folder)
    transport.close()
    assert os.path.basename(os.readlink(root / "current")) == first.release
    assert os.listdir(root / "releases") == [first.release]
    [part] = [path for path in (root / "blobs").glob("*.part") if path.stat().st_size > 100_000]
    with open_transport(device.target, device.identity) as transport:
        second = push(bundle, transport, runtime_folder=runtime_folder)
    assert 0 < second.bytes_sent < 2_500_000
    assert not part.exists()
    assert os.path.basename(os.readlink(root / "current")) == second.release


def test_link_that_silently_takes_nothing_more_is_given_up(start_device, monkeypatch):
    device = start_device()
    frozen, thawed = threading.Event(), threading.Event()

    def carry(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if frozen.is_set():
                    thawed.wait(60)
                sink.sendall(data)

    def proxy(connection):
        with socket.create_connection((device.host, device.port)) as onward:
            threading.Thread(target=carry, args=[onward, connection], daemon=True).start()
            carry(connection, onward)

    def endless():
        for count in range(10_000):
            if count == 100:
                frozen.set()
            yield bytes(32768)

    monkeypatch.setattr("edgeferry_deploy.ssh.STALL_SECONDS", 1.0)
    with listener(proxy) as port:
        target = SshTarget(device.user, "127.0.0.1", port)
        store(target, fetch_host_key(target))
        transport = open_transport(target, device.identity)
        began = time.monotonic()
        with pytest.raises(LinkLostError, match="took nothing for 1 s"):
            transport.run(["sh", "-c", "cat >/dev/null"], endless(), timeout=100)
        assert time.monotonic() - began < 15
        transport.close()
        thawed.set()


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ("sleep 60", CommandTimeoutError, "did not end within 1 s"),
        ("exec >&- 2>&-; sleep 60", CommandTimeoutError, "did not end within 1 s"),
        ("while :; do echo tick; sleep 0.1; done", CommandTimeoutError, "did not end within 1 s"),
        ("cat /dev/zero", DeviceReplyError, "printed more than 1000000 bytes"),
        ("cat /dev/zero >&2", DeviceReplyError, "printed more than 1000000 bytes"),
        ("yes '\033[31m\007'", DeviceReplyError, "printed more than 1000000 bytes"),
    ],
)
def test_command_without_an_end_ends_within_its_deadline_and_the_session_goes_on(
    start_device, script, error, said
):
    device = start_device()
    with open_transport(device.target, device.identity) as transport:
        began = time.monotonic()
        with pytest.raises(error, match=said) as caught:
            transport.run(["sh", "-c", script], timeout=1 if error is CommandTimeoutError else 30, limit=1_000_000)
        assert time.monotonic() - began < 15
        assert str(caught.value).replace("\n", "").isprintable()
        assert caught.value.remedy
        assert transport.run(["echo", "again"]).stdout == b"again\n"


def test_binary_output_arrives_as_it_is(start_device):
    device = start_device()
    data = bytes(range(256)) * 2000
    (device.home / "file").write_bytes(data)
    with open_transport(device.target, device.identity) as transport:
        done = transport.run(["sh", "-c", "cat file; cat file >&2"])
        assert (done.exit_status, done.stdout, done.stderr) == (0, data, data)


def test_command_that_closes_its_stdin_early_is_not_fed_for_ever(start_device):
    device = start_device()
    with open_transport(device.target, device.identity) as transport:
        done = transport.run(["sh", "-c", "exec <&-; echo full >&2; exit 3"], [bytes(32768)] * 2000, timeout=30)
        assert (done.exit_status, done.stderr) == (3, b"full\n")


def test_upload_cut_at_random_points_goes_on_by_content_hash(start_device, monkeypatch):
    device = start_device()
    data = random.Random(5).randbytes(2_000_000)
    blob = Blob("model", hashlib.sha256(data).hexdigest(), len(data), data)
    root = device.home / "root"
    part, sent, cuts = root / "blobs" / f"{blob.sha256}.part", 0, 0
    left = []  # bytes the next connection carries before it is cut

    def carry(source, sink, counted):
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                if counted:
                    left[0] -= len(chunk)
                    if left[0] < 0:
                        break
                sink.sendall(chunk)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def proxy(connection):
        with socket.create_connection((device.host, device.port)) as onward:
            threading.Thread(target=carry, args=[onward, connection, False], daemon=True).start()
            carry(connection, onward, True)

    with listener(proxy) as port:
        target = SshTarget(device.user, "127.0.0.1", port)
        left[:] = [10**9]
        store(target, fetch_host_key(target))
        points = random.Random(6)
        for attempt in range(12):
            there = part.stat().st_size if part.exists() else 0
            left[:] = [points.randrange(100_000, 700_000) if attempt < 5 else 10**9]
            try:
                with open_transport(target, device.identity) as transport:
                    uploads = plan_uploads([blob], {}, {blob.sha256: there})
                    [way] = send_blobs(transport, str(root), "python3", uploads, None)
            except LinkLostError:
                cuts += 1
                time.sleep(0.2)  # until the device has written what arrived
                continue
            sent = way.size
            break
    assert cuts >= 3
    assert 0 <= sent < len(data) - 200_000
    assert (root / "blobs" / blob.sha256).read_bytes() == data
    assert not part.exists()


def test_device_that_dies_during_a_command_is_a_lost_link(start_device):
    device = start_device()
    with open_transport(device.target, device.identity) as transport:
        threading.Timer(0.5, os.kill, [device.pid, signal.SIGKILL]).start()
        with pytest.raises(LinkLostError):
            transport.run(["sleep", "20"], timeout=15)


def test_link_that_ends_while_a_late_command_is_closed_says_nothing_more():
    """The other end may hang up first; what closing then raises has no one to tell (a traceback would fail)."""
    asked = threading.Event()

    class Channel:
        def close(self):
            asked.set()
            raise EOFError

    ours, theirs = socket.socketpair()
    with ours, theirs, Watchdog(Channel(), ours, 0.01) as watchdog:
        assert asked.wait(10)
    watchdog.join(10)
    assert watchdog.late


def test_virtual_device_takes_its_children_with_it(start_device, tmp_path):
    from edgeferry_deploy.virtual_device import virtual_device

    with virtual_device(tmp_path / "other") as device:
        target = parse_target(device.target)
        store(target, fetch_host_key(target))
        with open_transport(target, device.identity) as transport:
            script = "sleep 300 >/dev/null 2>&1 & echo $!; sleep 300"
            with contextlib.suppress(ConnectError, Exception):
                transport.run(["sh", "-c", f"({script}) | tee pid"], timeout=1)
        pid = int((device.home / "pid").read_text())
    for _ in range(50):
        if not os.path.exists(f"/proc/{pid}"):
            break
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{pid}")


def test_virtual_device_ends_with_its_stdin(tmp_path):
    argv = [sys.executable, "-m", "edgeferry_deploy.virtual_device", "--home", str(tmp_path / "home")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        line = json.loads(process.stdout.readline())
        assert {"host", "port", "user", "host_key_fingerprint", "home"} <= set(line)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(10) == 0


def test_virtual_device_keeps_its_host_key(tmp_path):
    from edgeferry_deploy.virtual_device import virtual_device

    with virtual_device(tmp_path / "home") as first:
        pass
    with virtual_device(tmp_path / "home") as second:
        assert second.host_key_fingerprint == first.host_key_fingerprint


def test_command_line_from_enrol_to_rollback(start_device, make_bundle, capsys, monkeypatch, runtime_folder):
    device = start_device(enrolled=False)
    monkeypatch.setattr("edgeferry_deploy.push.installed_runtime", lambda: runtime_folder)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    login = [device.target, "--identity", str(device.identity)]
    assert main(["push", str(make_bundle()), *login]) == 1
    assert "edgeferry enrol" in capsys.readouterr().err
    assert main(["enrol", device.target]) == 2
    assert device.host_key_fingerprint in capsys.readouterr().err
    assert main(["enrol", device.target, "--fingerprint", device.host_key_fingerprint]) == 0
    assert main(["push", str(make_bundle()), *login]) == 0
    out = capsys.readouterr().out
    assert "sent 13 of 13 files" in out
    assert "self-check: 8 frames on fake 1.0" in out
    assert "\x1b" not in out
    assert main(["push", str(make_bundle(salt="2")), *login, "--verbose"]) == 0
    assert "aes128-gcm@openssh.com" in capsys.readouterr().out
    assert main(["status", *login]) == 0
    assert "fake 1.0" in capsys.readouterr().out
    assert main(["rollback", *login]) == 0
    assert main(["push", str(make_bundle("WRONG")), *login, "--json"]) == 1
    assert "edgeferry: error: digits-" in capsys.readouterr().err


def test_no_login_is_lost_when_the_answer_is_faster_than_its_listener(make_device):
    device = make_device()

    def log_in(_: int) -> None:
        device.connect().close()

    with ThreadPoolExecutor(4) as pool:  # raises what any of them raised
        list(pool.map(log_in, range(150)))

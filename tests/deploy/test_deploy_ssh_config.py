"""~/.ssh/config: what is followed, what wins, what is refused with its line; and the way through jump hosts."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import queue
import threading
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import paramiko
import pytest
from edgeferry_deploy.connect import open_transport
from edgeferry_deploy.enrol import enrol
from edgeferry_deploy.errors import (
    AuthenticationError,
    ChangedHostKeyError,
    TargetError,
    UnknownHostKeyError,
    UnreachableError,
    printable,
)
from edgeferry_deploy.hostkeys import HostKey, store
from edgeferry_deploy.ssh import fetch_host_key
from edgeferry_deploy.ssh_config import SshConfig
from edgeferry_deploy.target import LocalTarget, SshTarget, parse_target
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def config(own_config):
    """Write ~/.ssh/config, or a file beside it."""
    folder = own_config / ".ssh"
    folder.mkdir(exist_ok=True)

    def write(text, name="config"):
        path = folder / name
        path.write_text(text)
        return path

    return write


def test_alias_is_completed(config, own_config):
    config("""
# a comment
Host board bo?rd2
    HostName = "192.168.1.20"
    User pi # the first user of Raspberry Pi OS
    Port 2222
    IdentityFile ~/.ssh/%r_at_%h
    IdentityFile "~/my keys/id"
    IdentitiesOnly yes
    ConnectTimeout 30s
    UserKnownHostsFile ~/.ssh/boards
    Ciphers something
""")
    home = own_config
    assert parse_target("board") == SshTarget(
        "pi",
        "192.168.1.20",
        2222,
        typed="board",
        identities=(f"{home}/.ssh/pi_at_192.168.1.20", f"{home}/my keys/id"),
        identities_only=True,
        connect_seconds=30.0,
        known_hosts=(f"{home}/.ssh/boards",),
    )
    assert str(parse_target("Board")) == "Board"
    assert parse_target("board2").host == "192.168.1.20"


def test_what_is_typed_wins(config):
    config("Host board\n HostName 10.0.0.1\n User pi\n Port 2222\n")
    found = parse_target("root@board:22")
    assert (found.user, found.host, found.port) == ("root", "10.0.0.1", 22)
    assert str(found) == "root@board:22"
    assert parse_target("pi@other") == SshTarget("pi", "other")
    assert parse_target("local:/tmp/board") == LocalTarget("/tmp/board")


def test_first_value_counts_and_negation_excludes(config):
    config("Host !lab-3 lab-*\n User lab\nHost lab-3\n User root\nHost *\n User pi\n HostName %h.local\n")
    assert (parse_target("lab-1").user, parse_target("lab-1").host) == ("lab", "lab-1.local")
    assert parse_target("lab-3").user == "root"
    assert parse_target("other").user == "pi"


def test_host_without_a_user_logs_in_as_who_runs_this_and_an_unknown_word_is_no_target(config):
    config("Host board\n Port 2222\nHost *\n ConnectTimeout 5\n")
    assert parse_target("board").user == getpass.getuser()
    with pytest.raises(TargetError, match="no Host of that name"):
        parse_target("baord")


def test_include_with_globs_conditions_and_a_circle(config):
    config("Include more\nHost lab-*\n Include lab/*.conf nothing-*\n")
    (Path.home() / ".ssh" / "lab").mkdir()
    config("User first\nHost lab-2\n Port 2222\n", "lab/a.conf")
    config("User second\n", "lab/b.conf")
    config("Host board\n User pi\n", "more")  # what follows in config is not below this Host
    assert (parse_target("lab-1").user, parse_target("lab-1").port) == ("first", 22)
    assert parse_target("lab-2").port == 2222
    assert parse_target("board").user == "pi"
    config("Include config\n")
    with pytest.raises(TargetError, match=r"config, line 1: .* includes files without end"):
        parse_target("board")


def test_match_is_followed_but_runs_no_command(config, tmp_path):
    config(
        f'Match exec "touch {tmp_path}/ran"\n User evil\nHost board\n HostName 10.0.0.1\n User pi\n'
        "Match host 10.0.0.* user root\n Port 1\nMatch originalhost board,other !user root\n Port 2\n"
        "Match all\n Port 3\n"
    )
    assert (parse_target("board").user, parse_target("board").port) == ("pi", 2)
    assert parse_target("root@board").port == 1
    assert parse_target("pi@third").port == 3
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Host board\n Port many", r"config, line 2: 'port many' is not a port"),
        ("Host board\n Port 70000", r"line 2: .* is not a port"),
        ("\n\nHost", r"line 3: 'host' names nothing"),
        ("Host board\n User", r"line 2: 'user' has no value"),
        ("Host board\n IdentitiesOnly maybe", r"line 2: .* is neither yes nor no"),
        ("Host board\n ConnectTimeout soon", r"line 2: .* is not a time"),
        ('Host board\n IdentityFile "~/key', r"line 2: .* a quote that is not closed"),
        ("Host board\n ProxyCommand nc -X 5 %h %p", r"line 2: .* edgeferry runs none"),
        ("Host board\n ProxyJump a,,b", r"line 2: .* a hop without a host"),
        ("Host board\n ProxyJump -oProxyCommand=id", "is not a host name"),
        ("Host board\n HostName $(id)", "is no name or address"),
        ("Host board\n User -oProxyCommand=x", "is not a user name"),
        ("Host board\n ProxyJump board", "round in a circle"),
        ("Host board\n ProxyJump hop\nHost hop\n ProxyJump board", "round in a circle"),
        ("\x1b[31m\x00", r"line 1: .* has no keyword"),
    ],
)
def test_bad_configuration_is_a_usage_error_that_names_the_line(config, text, said):
    config(text)
    with pytest.raises(TargetError, match=said) as caught:
        parse_target("pi@board" if "User -" not in text else "board")
    assert caught.value.exit_code == 2
    assert caught.value.remedy
    assert printable(caught.value.message, 10_000) == caught.value.message


def test_unreadable_configuration_is_told(own_config):
    (own_config / ".ssh" / "config").mkdir(parents=True)
    with pytest.raises(TargetError, match="cannot be read"):
        parse_target("pi@board")


def test_jumps_are_flattened_in_the_order_of_the_way(config):
    config("""
Host board
    User pi
    ProxyJump admin@gate:2200,inner
Host gate
    HostName gate.example.org
    ProxyJump front
    IdentityFile /keys/gate
Host inner
    ProxyJump ignored-as-the-way-is-given
    User me
Host straight
    User pi
    ProxyJump none
    ProxyCommand nothing
""")
    jumps = parse_target("board").jumps
    assert [hop.address for hop in jumps] == [
        f"{getpass.getuser()}@front",
        "admin@gate.example.org:2200",
        "me@inner",
    ]
    assert jumps[1].identities == ("/keys/gate",)
    assert all(hop.jumps == () for hop in jumps)
    assert parse_target("straight").jumps == ()


@given(st.text(max_size=200))
def test_any_file_is_followed_or_a_usage_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "config"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        SshConfig.load(path).settings("board")
    except TargetError as error:
        assert error.remedy


@dataclass
class Jump:
    """A jump host: its port, what it was asked for, and its key."""

    port: int
    asked: list[tuple[str, int]]
    key: HostKey


@contextlib.contextmanager
def jump_host(authorized: Path, allow: bool = True):
    """An SSH server that forwards connections and runs nothing."""
    asked: list[tuple[str, int]] = []
    connections: list[asyncssh.SSHServerConnection] = []
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    started: queue.Queue = queue.Queue()

    class Server(asyncssh.SSHServer):
        def connection_made(self, conn):
            connections.append(conn)

        def connection_requested(self, dest_host, dest_port, orig_host, orig_port):
            asked.append((dest_host, dest_port))
            return allow

    async def serve():
        stop = asyncio.Event()
        keys = {"server_host_keys": [host_key], "authorized_client_keys": str(authorized)}
        server = await asyncssh.listen("127.0.0.1", 0, server_factory=Server, **keys)
        started.put((server.get_port(), asyncio.get_running_loop(), stop))
        await stop.wait()
        server.close()
        for connection in connections:
            connection.abort()
        await asyncio.gather(*(connection.wait_closed() for connection in connections))
        await asyncio.sleep(0.05)  # the sockets close one turn of the loop later

    thread = threading.Thread(target=asyncio.run, args=[serve()], daemon=True)
    thread.start()
    port, loop, stop = started.get(timeout=10)
    try:
        yield Jump(port, asked, HostKey(*host_key.export_public_key().decode().split()[:2]))
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


@pytest.fixture
def behind(start_device, config):
    """A device behind two jump hosts, all enrolled, and the configuration that leads there."""
    device = start_device()
    public = Path(f"{device.identity}.pub")
    with contextlib.ExitStack() as stack:
        hops = [stack.enter_context(jump_host(public)) for _ in range(2)]
        text = (
            f"Host board\n HostName {device.host}\n Port {device.port}\n User {device.user}\n ProxyJump one,two\n"
        )
        for name, hop in zip(("one", "two"), hops, strict=True):
            text += f"Host {name}\n HostName 127.0.0.1\n Port {hop.port}\n User me\n"
            store(SshTarget("me", "127.0.0.1", hop.port), hop.key)
        config(f"{text}Host *\n IdentityFile {device.identity}\n IdentitiesOnly yes\n")
        yield device, hops


def test_device_is_reached_through_two_hosts(behind):
    device, (one, two) = behind
    with open_transport("board") as transport:
        assert transport.name == "board"
        assert transport.run(["echo", "there"]).stdout == b"there\n"
        transport.upload([bytes(1_000_000)], f"{device.home}/file")
        assert "through 2 host(s)" in transport.describe()
    assert one.asked == [("127.0.0.1", two.port)]
    assert two.asked == [("127.0.0.1", device.port)]
    assert (device.home / "file").stat().st_size == 1_000_000


@pytest.mark.parametrize("index", [0, 1])
def test_each_hosts_key_is_verified_before_anything_goes_through_it(behind, index):
    _, hops = behind
    hop, other = hops[index], asyncssh.generate_private_key("ssh-ed25519")
    store(SshTarget("me", "127.0.0.1", hop.port), HostKey(*other.export_public_key().decode().split()[:2]))
    with pytest.raises(ChangedHostKeyError) as caught:
        open_transport("board")
    assert f"edgeferry enrol {('one', 'two')[index]} --replace" in caught.value.remedy
    assert hop.asked == []


def test_host_in_between_that_is_not_enrolled_is_named_and_can_be_enrolled(behind, own_config):
    device, _ = behind
    (own_config / "config" / "known_hosts").unlink()
    with pytest.raises(UnknownHostKeyError, match="one is not enrolled") as caught:
        open_transport("board")
    assert "edgeferry enrol one" in caught.value.remedy
    enrol(parse_target("one"), yes=True)
    with pytest.raises(UnknownHostKeyError, match="two is not enrolled"):
        fetch_host_key(parse_target("board"))
    # `two` answers at 127.0.0.1 as well as behind `one`.
    enrol(parse_target("two"), yes=True)
    enrol(parse_target("board"), fingerprint=device.host_key_fingerprint)
    open_transport("board").close()


def test_host_that_does_not_forward_or_does_not_reach_the_device_is_named(behind, config):
    device, (one, _) = behind
    common = f" User {device.user}\n ProxyJump one\nHost one\n HostName 127.0.0.1\n Port {one.port}\n User me\n"
    common += f"Host *\n IdentityFile {device.identity}\n"
    config("Host board\n HostName 127.0.0.1\n Port 1\n" + common)
    with pytest.raises(UnreachableError, match=r"one does not connect on to 127\.0\.0\.1 port 1"):
        open_transport("board")
    with jump_host(Path(f"{device.identity}.pub"), allow=False) as closed:
        store(SshTarget("me", "127.0.0.1", closed.port), closed.key)
        config(
            f"Host board\n HostName 127.0.0.1\n Port {device.port}\n"
            + common.replace(str(one.port), str(closed.port))
        )
        with pytest.raises(UnreachableError, match=r"one does not connect on .*: Connect failed"):
            open_transport("board")


def test_configured_key_is_offered_instead_of_the_default_ones(start_device, config, own_config):
    device = start_device()
    config("nothing", "id_ed25519")
    (own_config / ".ssh" / "id_ed25519").write_bytes(device.identity.read_bytes())
    wrong = own_config / "wrong"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(wrong))
    open_transport(device.target).close()
    config(f"Host 127.0.0.1\n IdentityFile {wrong}\n IdentityFile {own_config}/absent\n")
    with pytest.raises(AuthenticationError, match=r"offered .*wrong") as caught:
        open_transport(device.target)
    assert "id_ed25519" not in caught.value.message
    open_transport(device.target, device.identity).close()


def test_key_of_an_agent_is_used_alone_when_the_configuration_says_so(
    start_device, config, own_config, monkeypatch
):
    device = start_device()
    other = own_config / "other"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(other))
    held = tuple(map(paramiko.PKey.from_path, (other, device.identity)))
    for key in held:
        key.comment = "from a test"
    monkeypatch.setattr("edgeferry_deploy.ssh.agent_keys", lambda: held)
    with open_transport(device.target) as transport:
        assert "agent key from a test" in transport.describe()
    public = config(Path(f"{device.identity}.pub").read_text(), "board.pub")
    config(f"Host *\n IdentityFile {public}\n IdentitiesOnly yes\n")
    with open_transport(device.target) as transport:
        assert "board.pub (from the agent)" in transport.describe()
    config(f"Host *\n IdentityFile {own_config}/absent\n IdentitiesOnly yes\n")
    with pytest.raises(AuthenticationError, match="no key to offer"):
        open_transport(device.target)


def test_known_hosts_file_of_the_configuration_is_read(start_device, config):
    device = start_device(enrolled=False)
    key = fetch_host_key(parse_target(device.target))
    file = config(f"[127.0.0.1]:{device.port} {key.kind} {key.body}\n", "boards")
    with pytest.raises(UnknownHostKeyError):
        open_transport(device.target, device.identity)
    config(f"Host *\n UserKnownHostsFile /dev/null {file}\n StrictHostKeyChecking no\n")
    open_transport(device.target, device.identity).close()
    config("Host *\n UserKnownHostsFile /dev/null\n StrictHostKeyChecking no\n")
    with pytest.raises(UnknownHostKeyError):
        open_transport(device.target, device.identity)

"""The SSH twin: one connection, maybe through hosts in between, and deadlines; the only door to paramiko."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import join

import paramiko
from paramiko.auth_handler import AuthOnlyHandler
from paramiko.common import cMSG_SERVICE_REQUEST, cMSG_USERAUTH_REQUEST
from paramiko.ssh_exception import IncompatiblePeer
from paramiko.transport import ServiceRequestingTransport

from edgeferry_deploy import commands
from edgeferry_deploy.errors import (
    AuthenticationError,
    CommandTimeoutError,
    LinkLostError,
    NotSshError,
    TargetError,
    UnreachableError,
    printable,
)
from edgeferry_deploy.hostkeys import HostKey, KnownHosts, own_file, read_entries
from edgeferry_deploy.streaming import STDERR, STDOUT, Running
from edgeferry_deploy.target import SshTarget
from edgeferry_deploy.transport import DEADLINE, OUTPUT_LIMIT, SLICE, Completed, Transport, too_long

__all__ = ["SshTransport", "fetch_host_key"]

CONNECT_SECONDS = 10.0
LINK_SECONDS = 20.0  # a link that acknowledges nothing for so long is gone
STALL_SECONDS = 60.0  # a card that is being flushed may take nothing for half a minute
CIPHER = "aes128-gcm@openssh.com"  # fastest in both directions where AES has instructions
DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
RSA = ("rsa-sha2-512", "rsa-sha2-256")  # algorithms that sign with a key of type ssh-rsa

# Without a handler paramiko prints the traceback of a server that is none; the exception says enough.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class SshTransport(Transport):
    """A session with a device whose host key, and that of every host in between, is trusted.

    Args:
        target: user, host and port, and what ~/.ssh/config adds.
        identity: private key to use alone, for the device itself; by default the configured ones, then the
            agent's keys, then ~/.ssh/id_* when none is configured.
        known_hosts: trusted keys; by default the user's files.

    Raises:
        UnreachableError, NotSshError, LinkLostError: there is no session.
        HostKeyError: the key is unknown, changed or revoked.
        AuthenticationError: the device knows none of the keys.
        TargetError: the identity cannot be used.
    """

    def __init__(
        self, target: SshTarget, identity: str | Path | None = None, *, known_hosts: KnownHosts | None = None
    ) -> None:
        self.name = str(target)
        link, offered = open_link(target, known_hosts)
        self._link, self._session, self._socket = link, link.session, link.wire
        try:
            (known_hosts or trusted(target)).verify(target, offered)
            self._key_name = authenticate(self._session, target, identity)
        except BaseException:
            link.close()
            raise

    def run(
        self,
        argv: Sequence[str],
        stdin: bytes | Iterable[bytes] | None = None,
        timeout: float = DEADLINE,
        limit: int = OUTPUT_LIMIT,
    ) -> Completed:
        """See `Transport.run`."""
        self.round_trips += 1
        try:
            channel = self._session.open_session(timeout=min(timeout, LINK_SECONDS))
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._lost(argv, error) from None
        with _closing(channel), Watchdog(channel, self._socket, timeout) as watchdog:
            try:
                channel.settimeout(0.2)
                channel.exec_command(join(argv))
                out, err = self._converse(channel, argv, stdin, limit, watchdog)
                channel.status_event.wait()  # the watchdog sets it when nothing else does
            except (paramiko.SSHException, EOFError, OSError) as error:
                if not watchdog.late:
                    raise self._lost(argv, watchdog.reason or error) from None
        if watchdog.late:
            name = commands.name_of(argv)
            raise CommandTimeoutError(
                f"'{name}' did not end within {timeout:.0f} s on {self.name}",
                "see what keeps the device busy, then run this again",
                command=name,
            )
        if channel.exit_status < 0 and not self._session.is_active():
            raise self._lost(argv, watchdog.reason)
        return Completed(tuple(argv), channel.exit_status, bytes(out), bytes(err))

    def start(self, argv: Sequence[str]) -> Running:
        """See `Transport.start`."""
        self.round_trips += 1
        try:
            channel = self._session.open_session(timeout=LINK_SECONDS)
            with Watchdog(channel, self._socket, DEADLINE):
                channel.exec_command(join(argv))
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._lost(argv, error) from None
        return SshRunning(channel, lambda: self._lost(argv, None))

    def _converse(
        self,
        channel: paramiko.Channel,
        argv: Sequence[str],
        stdin: bytes | Iterable[bytes] | None,
        limit: int,
        watchdog: Watchdog,
    ) -> tuple[bytearray, bytearray]:
        """Feed stdin and drain both outputs in turn: neither side's window can fill up for good."""
        out, err = bytearray(), bytearray()
        chunks: Iterator[bytes] | None = iter((stdin,) if isinstance(stdin, bytes) else stdin or ())
        pending = memoryview(b"")
        while True:
            ended = channel.eof_received or channel.closed
            while channel.recv_ready() and len(out) <= limit:
                out += channel.recv(SLICE)
            while channel.recv_stderr_ready() and len(err) <= limit:
                err += channel.recv_stderr(SLICE)
            if max(len(out), len(err)) > limit:
                raise too_long(argv, self.name, limit, bytes((out if len(out) > limit else err)[:200]))
            if ended:
                return out, err
            if chunks is None or channel.exit_status_ready():
                select.select([channel], [], [], 0.2)
                continue
            if not pending:
                chunk = next(chunks, None)
                if chunk is None:
                    chunks = None
                    channel.shutdown_write()
                    continue
                pending = memoryview(chunk)
            with contextlib.suppress(TimeoutError):  # a full window: drain, then try again
                watchdog.waiting_since = watchdog.waiting_since or time.monotonic()
                sent = channel.send(pending[:SLICE])  # type: ignore[arg-type]  # any buffer will do
                watchdog.waiting_since = None
                self.bytes_sent += sent
                pending = pending[sent:]

    def _lost(self, argv: Sequence[str], error: Exception | None) -> LinkLostError:
        why = printable(str(error)) if error is not None and str(error) else "the connection broke"
        return LinkLostError(
            f"lost {self.name} during '{commands.name_of(argv)}': {why}",
            "the release before is untouched; run the command again, an upload goes on where it stopped",
        )

    def close(self) -> None:
        """End the session, and those with the hosts in between."""
        self._link.close()

    def describe(self) -> str:
        """Who speaks to whom, and how."""
        cipher, server = self._session.local_cipher, printable(self._session.remote_version, 60)
        way = f", through {len(self._link.hops)} host(s)" if self._link.hops else ""
        return f"{self.name} ({server}, {cipher}, key {self._key_name}{way})"


class SshRunning(Running):
    """See `Running`.

    Args:
        lost: the error for a session that broke.
    """

    def __init__(self, channel: paramiko.Channel, lost: Callable[[], LinkLostError]) -> None:
        self._channel, self._lost = channel, lost

    def read(self, seconds: float) -> list[tuple[int, bytes]] | None:
        channel = self._channel
        ended = channel.eof_received or channel.closed
        if not ended:
            select.select([channel], [], [], seconds)
        pieces = []
        if channel.recv_ready():
            pieces.append((STDOUT, channel.recv(SLICE)))
        if channel.recv_stderr_ready():
            pieces.append((STDERR, channel.recv_stderr(SLICE)))
        return None if ended and not pieces else pieces

    def let_go(self) -> None:
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            self._channel.shutdown_write()

    def exit_status(self) -> int:
        self._channel.status_event.wait(LINK_SECONDS)
        if self._channel.exit_status < 0 and not self._channel.get_transport().is_active():
            raise self._lost()
        return max(self._channel.exit_status, -1)

    def close(self) -> None:
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            self._channel.close()


class Watchdog(threading.Thread):
    """Ends a command at its deadline; ends the connection when an upload stands still or closing gets no answer.

    paramiko waits without a limit for the reply to exec, for the exit status and for a socket that takes no
    more; closing the channel wakes the first two, ending the connection wakes all.

    Attributes:
        late: the deadline passed.
        reason: why the connection was ended; None while it was not.
        waiting_since: when the last piece of stdin was accepted; None while nothing is being sent.
    """

    def __init__(self, channel: paramiko.Channel, connection: socket.socket, seconds: float) -> None:
        super().__init__(daemon=True)
        self.late = False
        self.reason: OSError | None = None
        self.waiting_since: float | None = None
        self._channel, self._connection = channel, connection
        self._deadline = time.monotonic() + seconds
        self._done = threading.Event()

    def run(self) -> None:
        """Watch."""
        while not self._done.wait(max(0.0, min(1.0, self._deadline - time.monotonic()))):
            since = self.waiting_since
            if since is not None and time.monotonic() - since > STALL_SECONDS:
                self.reason = OSError(f"it took nothing for {STALL_SECONDS:.0f} s")
                self._cut()
                return
            if time.monotonic() >= self._deadline:
                self.late = True
                # Closing sends a message, which itself waits when the link is dead.
                threading.Thread(target=self._close, daemon=True).start()
                if not self._done.wait(5):
                    self._cut()
                return

    def _close(self) -> None:
        # The other end may hang up between the deadline and the message.
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.close()

    def _cut(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Watchdog:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()


@dataclass(frozen=True)
class Link:
    """An encrypted session and what it runs over.

    Attributes:
        wire: the TCP connection at the bottom.
        hops: sessions with the hosts in between, the first first.
    """

    session: paramiko.Transport
    wire: socket.socket
    hops: tuple[paramiko.Transport, ...] = ()

    def close(self) -> None:
        """End all sessions, the innermost first."""
        for session in (self.session, *reversed(self.hops)):
            session.close()


def fetch_host_key(target: SshTarget) -> HostKey:
    """The key a device shows, trusted or not; nobody is logged in there.

    Raises:
        UnreachableError, NotSshError: there is nobody to ask.
        HostKeyError, AuthenticationError: of a host in between.
    """
    link, key = open_link(target)
    link.close()
    return key


def trusted(target: SshTarget) -> KnownHosts:
    """The keys trusted for a target: edgeferry's, then the user's or those of its UserKnownHostsFile.

    Raises:
        TargetError: a file cannot be read.
    """
    if not target.known_hosts:
        return KnownHosts.load()
    return KnownHosts(
        read_entries(own_file()), [e for path in target.known_hosts for e in read_entries(Path(path))]
    )


def open_link(target: SshTarget, known_hosts: KnownHosts | None = None) -> tuple[Link, HostKey]:
    """An encrypted session with whoever answers; its host key is returned unverified.

    Every host in between is verified and logged in to before the next one is asked for.

    Raises:
        UnreachableError, NotSshError: there is nobody to ask.
        HostKeyError, AuthenticationError: of a host in between.
    """
    way = (*target.jumps, target)
    wire = connect(way[0])
    connection: socket.socket | paramiko.Channel = wire
    sessions: list[paramiko.Transport] = []
    try:
        for index, hop in enumerate(way):
            known = known_hosts or trusted(hop)
            # Types of trusted keys are asked for first: a host with several keys then shows one to compare.
            session, key = handshake(connection, hop, [key.kind for key in known.keys(hop)])
            sessions.append(session)
            if hop is not target:
                known.verify(hop, key)
                authenticate(session, hop, None)
                connection = forward(session, hop, way[index + 1])
    except BaseException:
        for session in reversed(sessions):
            session.close()
        wire.close()
        raise
    return Link(sessions[-1], wire, tuple(sessions[:-1])), key


def forward(session: paramiko.Transport, hop: SshTarget, onward: SshTarget) -> paramiko.Channel:
    """A connection from a host in between to the next.

    Raises:
        UnreachableError: that host refuses, or does not reach the next one.
    """
    seconds = onward.connect_seconds or CONNECT_SECONDS
    try:
        return session.open_channel("direct-tcpip", (onward.host, onward.port), ("127.0.0.1", 0), timeout=seconds)
    except (paramiko.SSHException, EOFError, OSError) as error:
        why = printable(getattr(error, "text", "") or str(error)) or "it hung up"
        raise UnreachableError(
            f"{hop} does not connect on to {onward.host} port {onward.port}: {why}",
            f"is the device on, in the network of {hop.host}, and may {hop.user} forward connections there?",
        ) from None


def handshake(
    connection: socket.socket | paramiko.Channel, target: SshTarget, known_kinds: Sequence[str]
) -> tuple[paramiko.Transport, HostKey]:
    """Encrypt a connection; the other side's host key is returned unverified.

    Raises:
        UnreachableError, NotSshError: the other side does not do its part.
    """
    seconds = target.connect_seconds or CONNECT_SECONDS
    try:
        session = _Session(connection)  # a channel does what a socket does
    except (paramiko.SSHException, OSError) as error:
        connection.close()
        raise UnreachableError(f"{target}: {printable(str(error))}", "") from None
    try:
        session.banner_timeout = seconds
        options = session.get_security_options()
        options.ciphers = (CIPHER, *(cipher for cipher in options.ciphers if cipher != CIPHER))
        wanted = [name for kind in known_kinds for name in (RSA if kind == "ssh-rsa" else (kind,))]
        offered = tuple(options.key_types)
        first = [name for name in wanted if name in offered]
        options.key_types = (*first, *(name for name in offered if name not in first))
        session.start_client(timeout=seconds + 5)
        if not session.initial_kex_done:
            raise paramiko.SSHException("it does not answer")
        key = session.get_remote_server_key()
    except IncompatiblePeer as error:
        session.close()
        raise NotSshError(
            f"{target} speaks an SSH that shares no algorithm with this one: {printable(str(error))}",
            "update the SSH server on the device",
        ) from None
    except (paramiko.SSHException, EOFError, OSError) as error:
        session.close()
        raise NotSshError(
            f"what answers at {target} is no SSH server: {printable(str(error)) or 'it hung up'}",
            "check the port: sshd usually listens on 22",
        ) from None
    except BaseException:
        session.close()
        raise
    session.set_keepalive(10)  # something must be unacknowledged for a cut to be noticed
    return session, HostKey(key.get_name(), key.get_base64())


def connect(target: SshTarget) -> socket.socket:
    """A TCP connection that notices a cut link.

    Raises:
        UnreachableError: says whether the name, the port or the network is at fault.
    """
    seconds = target.connect_seconds or CONNECT_SECONDS
    try:
        connection = socket.create_connection((target.host, target.port), timeout=seconds)
    except socket.gaierror:
        raise UnreachableError(
            f"no address is known for '{target.host}'", "check the spelling, or use the device's IP address"
        ) from None
    except ConnectionRefusedError:
        raise UnreachableError(
            f"{target.host} refuses connections on port {target.port}",
            "is sshd running there? on a Raspberry Pi: sudo raspi-config nonint do_ssh 0",
        ) from None
    except TimeoutError:
        raise UnreachableError(
            f"{target.host} port {target.port} did not answer within {seconds:.0f} s",
            "is the device on, and in this network?",
        ) from None
    except OSError as error:
        raise UnreachableError(
            f"{target.host} port {target.port} cannot be reached: {error.strerror or error}",
            "check the network between here and the device",
        ) from None
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; elsewhere the watchdog alone ends a dead session
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(LINK_SECONDS * 1000))
    return connection


class _AuthHandler(AuthOnlyHandler):
    """Listens before it asks.

    paramiko (5.1, auth_handler.py) makes the event for the answer after it sent the request: an answer that is
    faster is lost, and a login with the right key ends as a refusal after 30 s.
    """

    def send_auth_request(
        self, username: str, method: str, finish_message: Callable[[paramiko.Message], None] | None = None
    ) -> list[str]:
        self.auth_method = method
        self.username = username
        message = paramiko.Message()
        message.add_byte(cMSG_USERAUTH_REQUEST)
        for text in (username, "ssh-connection", method):
            message.add_string(text)
        if finish_message is not None:
            finish_message(message)
        answered = self.auth_event = threading.Event()
        with self.transport.lock:
            self.transport._send_message(message)  # type: ignore[attr-defined]
        return self.wait_for_response(answered)


class _Session(ServiceRequestingTransport):
    """A plain Transport asks for the service again with each key; strict servers then hang up."""

    active: bool  # paramiko's own; its stubs lack them
    _service_userauth_accepted: bool

    def get_auth_handler(self) -> AuthOnlyHandler:
        return _AuthHandler(self)

    def ensure_session(self) -> None:
        """Ask to log in; paramiko (5.1) looks every 100 ms whether it may, and for ever when nobody answers."""
        if self._service_userauth_accepted:
            return
        message = paramiko.Message()
        message.add_byte(cMSG_SERVICE_REQUEST)
        message.add_string("ssh-userauth")
        self._send_message(message)  # type: ignore[attr-defined]
        until = time.monotonic() + LINK_SECONDS
        while not self._service_userauth_accepted:
            if not self.active or time.monotonic() > until:
                raise paramiko.SSHException("no answer to the request to log in")
            time.sleep(0.002)
        self.auth_handler = self.get_auth_handler()


@contextlib.contextmanager
def _closing(channel: paramiko.Channel) -> Iterator[None]:
    """Close a channel at the end; on a lost link that fails, and the loss itself is what there is to tell."""
    try:
        yield
    finally:
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            channel.close()


def authenticate(session: paramiko.Transport, target: SshTarget, identity: str | Path | None) -> str:
    """Log in with the first key the device knows; its name.

    Raises:
        AuthenticationError: it knows none; the message names those that were offered.
        TargetError: the identity cannot be read.
    """
    offered: list[str] = []
    locked: list[str] = []
    accepts = ""
    seen: set[str] = set()  # a device hangs up after six keys: none is offered twice
    for name, key in candidates(target, identity, locked):
        if key.get_base64() in seen:
            continue
        seen.add(key.get_base64())
        offered.append(name)
        try:
            if not session.auth_publickey(target.user, key):
                return name
            accepts = "a second factor after the key"
        except paramiko.BadAuthenticationType as error:
            accepts = ", ".join(printable(kind, 40) for kind in error.allowed_types)
            break
        except paramiko.AuthenticationException as error:
            if session.is_active():
                continue
            # paramiko calls a lost connection a refusal, too.
            raise AuthenticationError(
                f"{target} hung up while keys were offered ({', '.join(offered)}): {printable(str(error))}",
                "run the command again; if it persists, name the right key with --identity FILE",
            ) from None
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise AuthenticationError(
                f"{target} hung up while keys were offered ({', '.join(offered)}): {printable(str(error))}",
                "name the right key with --identity FILE",
            ) from None
    tried = f"offered {', '.join(offered)}" if offered else "there is no key to offer"
    skipped = f"; protected by a passphrase and not in the agent: {', '.join(locked)}" if locked else ""
    wants = f"; it accepts {accepts}" if accepts else ""
    key_file = f" -i {identity}" if identity else ""
    # ssh-copy-id reads the same configuration, so what was typed is enough for it.
    alias = target.typed if ":" not in target.typed else ""
    port = f" -p {target.port}" if target.port != 22 and not alias else ""
    address = alias or f"{target.user}@{target.host}"
    raise AuthenticationError(
        f"{target} refuses the user '{target.user}': {tried}{skipped}{wants}",
        f"ssh-add {locked[0]}"
        if locked and not offered
        else f"put your key there: ssh-copy-id{key_file}{port} {address}",
    )


def candidates(
    target: SshTarget, identity: str | Path | None, locked: list[str]
) -> Iterator[tuple[str, paramiko.PKey]]:
    """Keys to offer, by name; those that need a passphrase are added to `locked`.

    Raises:
        TargetError: the identity is no private key, or needs a passphrase and the agent does not hold it.
    """
    if identity is not None:
        yield named_key(identity)
        return
    for path in map(Path, target.identities):
        yield from file_key(path, locked)
    if not target.identities_only:
        for agent_key in agent_keys():
            yield f"agent key {printable(agent_key.comment or agent_key.get_name(), 60)}", agent_key
    if not target.identities:
        for name in DEFAULT_KEYS:
            yield from file_key(Path.home() / ".ssh" / name, locked)


def file_key(path: Path, locked: list[str]) -> Iterator[tuple[str, paramiko.PKey]]:
    """A key that may or may not be there; the agent lends it when the file is locked, or only its public half."""
    try:
        yield str(path), paramiko.PKey.from_path(path)
        return
    except (paramiko.PasswordRequiredException, TypeError):
        needs_agent = True
    except (paramiko.SSHException, ValueError, OSError):
        needs_agent = False  # one that cannot be read is as good as none
    public = public_body(path)
    held = next((key for key in agent_keys() if key.get_base64() == public), None) if public else None
    if held is not None:
        yield f"{path} (from the agent)", held
    elif needs_agent:
        locked.append(str(path))


def named_key(identity: str | Path) -> tuple[str, paramiko.PKey]:
    """The key that was asked for.

    Raises:
        TargetError: it is no private key, or needs a passphrase and the agent does not hold it.
    """
    path = Path(identity).expanduser()
    try:
        return str(path), paramiko.PKey.from_path(path)
    except (paramiko.PasswordRequiredException, TypeError):
        public = public_body(path)
        held = next((key for key in agent_keys() if key.get_base64() == public), None)
        if held is None:
            raise TargetError(
                f"the key {path} is protected by a passphrase", f"give it to the agent first: ssh-add {path}"
            ) from None
        return f"{path} (from the agent)", held
    except OSError as error:
        raise TargetError(f"the key {path} cannot be read: {error.strerror}", "check --identity") from None
    except (paramiko.SSHException, ValueError):
        raise TargetError(f"{path} is no private key", "--identity takes the file without .pub") from None


def agent_keys() -> tuple[paramiko.AgentKey, ...]:
    """What the SSH agent holds; nothing when none runs."""
    try:
        return tuple(paramiko.Agent().get_keys())
    except (paramiko.SSHException, OSError):
        return ()


def public_body(path: Path) -> str:
    """The base64 body of the public key beside a private one, or of a public key; empty when there is none."""
    try:
        words = (
            Path(path if path.suffix == ".pub" else f"{path}.pub")
            .read_text(encoding="utf-8", errors="replace")
            .split()
        )
    except OSError:
        return ""
    return words[1] if len(words) > 1 else ""

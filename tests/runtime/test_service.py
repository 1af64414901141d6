"""The service's edges: a real notify socket, beats only while results come, a state file that is never half."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import threading
import time

import pytest
from edgeferry_runtime.errors import EdgeferryError, SinkError
from edgeferry_runtime.service import (
    ClockWatch,
    Heartbeat,
    Notifier,
    StateFile,
    StateThread,
    read_state,
    state_path,
)


class Clock:
    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path):
    """A socket as systemd listens on, and the text it puts into NOTIFY_SOCKET."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@edgeferry-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        try:
            listener.bind(name.replace("@", "\0", 1))
        except OSError:
            pytest.skip("abstract sockets are Linux's")
        listener.settimeout(5)
        yield listener, name


def test_what_systemd_is_told(systemd):
    listener, name = systemd
    notifier = Notifier({"NOTIFY_SOCKET": name})
    sent = [notifier.ready(), notifier.status("12 frames/s,\n caméra"), notifier.watchdog(), notifier.stopping()]
    assert sent == [True] * 4
    received = [listener.recv(4096).decode() for _ in range(4)]
    assert received == ["READY=1", "STATUS=12 frames/s, caméra", "WATCHDOG=1", "STOPPING=1"]


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "@edgeferry-nobody", "relative", "/", "vsock:2:1234"])
def test_nobody_listens(address):
    notifier = Notifier({"NOTIFY_SOCKET": address})
    assert [notifier.ready(), notifier.status("x"), notifier.watchdog(), notifier.stopping()] == [False] * 4


def test_a_full_queue_does_not_hold_the_loop_up(systemd):
    _listener, name = systemd
    notifier = Notifier({"NOTIFY_SOCKET": name})
    for _ in range(5000):  # nobody reads
        if not notifier.watchdog():
            break
    else:
        pytest.skip("this kernel's queue takes 5000 messages")
    began = time.monotonic()
    assert notifier.ready() is False
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("environment", "period"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "18446744073709551615"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "30s"}, None),
        ({"WATCHDOG_USEC": ""}, None),
    ],
)
def test_the_watchdog_period(environment, period):
    assert Notifier(dict(environment, NOTIFY_SOCKET="/run/x")).watchdog_period_s == period


def test_no_socket_no_watchdog():
    assert Notifier({"WATCHDOG_USEC": "30000000"}).watchdog_period_s is None


class Beats:
    """In a notifier's place."""

    watchdog_period_s = 30.0

    def __init__(self):
        self.count = 0

    def watchdog(self):
        self.count += 1


def test_beats_come_only_while_the_loop_moves():
    clock, beats = Clock(), Beats()
    heart = Heartbeat(beats, clock)
    assert not heart.tick()
    heart.advance()
    heart.advance()
    assert heart.tick()
    assert beats.count == 1
    clock.now += 7
    assert not heart.tick()  # nothing since
    assert beats.count == 1
    assert heart.still_s == 7
    heart.idle()
    assert heart.tick()
    assert (beats.count, heart.still_s) == (2, 0)


@pytest.mark.parametrize(("period", "interval"), [(None, 1.0), (30.0, 1.0), (1.0, 0.5)])
def test_how_often_to_tick(period, interval):
    beats = Beats()
    beats.watchdog_period_s = period
    assert Heartbeat(beats).interval_s == interval


def test_clock_jumps_are_told_once():
    wall, mono = Clock(1e9), Clock(5.0)
    watch = ClockWatch(wall, mono)

    def pass_time(seconds, jump=0.0):
        mono.now += seconds
        wall.now += seconds + jump

    pass_time(1)
    assert watch.check() is None
    pass_time(1, jump=3600)
    assert watch.check() == pytest.approx(3600)
    pass_time(1)
    assert watch.check() is None
    pass_time(1, jump=-2)
    assert watch.check() == pytest.approx(-2)
    for _ in range(100):  # a slow correction is no jump, however far it goes
        pass_time(1, jump=0.05)
        assert watch.check() is None


def test_the_thread_calls_and_ends(caplog):
    calls, enough = [], threading.Event()

    def callback():
        calls.append(None)
        if len(calls) >= 6:
            enough.set()
        if len(calls) in (2, 3, 5):
            raise ValueError(f"call {len(calls)}")

    with caplog.at_level(logging.ERROR):
        thread = StateThread(0.01, callback).start()
        assert enough.wait(10)
        thread.stop()
    told = [record.getMessage() for record in caplog.records]
    assert told == ["the state cannot be told: call 2", "the state cannot be told: call 5"]
    count = len(calls)
    time.sleep(0.1)
    assert len(calls) == count
    thread.stop()


def test_a_thread_that_never_began_can_be_stopped():
    StateThread(1, list).stop()


def test_a_callback_may_stop_its_own_thread():
    done = threading.Event()

    def callback():
        thread.stop()
        done.set()

    thread = StateThread(0.01, callback).start()
    assert done.wait(10)


def test_where_the_state_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert (
        state_path({"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": str(tmp_path)}) == "/run/a/state.json"
    )
    assert state_path({"XDG_RUNTIME_DIR": str(tmp_path)}) == str(tmp_path / "edgeferry" / "state.json")
    own = state_path({"XDG_RUNTIME_DIR": str(tmp_path / "gone")})
    assert own.endswith(os.path.join(f"edgeferry-{os.getuid()}", "state.json"))
    monkeypatch.setattr(os, "access", lambda path, mode: path == "/run/edgeferry")
    assert state_path({}) == "/run/edgeferry/state.json"


def test_the_state_is_written_at_most_once_a_period(tmp_path):
    clock, path = Clock(), tmp_path / "new" / "state.json"
    state = StateFile(str(path), clock)
    assert state.write({"frames": 1})
    assert not state.write({"frames": 2})
    assert read_state(str(path))["frames"] == 1
    clock.now += 1.0
    assert state.write({"frames": 3, "state": "waiting"})
    found = read_state(str(path))
    assert (found["frames"], found["state"], found["pid"]) == (3, "waiting", os.getpid())
    assert abs(found["time"] - time.time()) < 60
    state.close({"frames": 4})  # whatever the period
    assert (read_state(str(path))["frames"], read_state(str(path))["state"]) == (4, "stopped")
    assert os.listdir(path.parent) == ["state.json"]
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_no_reader_sees_half_a_state(tmp_path):
    path = str(tmp_path / "state.json")
    state = StateFile(path, period_s=0.0)
    state.write({"text": ""})
    enough = threading.Event()

    def write():
        length = 0
        while not enough.is_set():
            length = (length + 997) % 20_000
            state.write({"text": "x" * length})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        lengths = {len(read_state(path)["text"]) for _ in range(500)}
    finally:
        enough.set()
        writer.join()
    assert len(lengths) > 1


def test_a_state_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="cannot be written") as caught:
        StateFile(str(tmp_path / "file" / "state.json")).write({})
    assert "--state" in caught.value.remedy


def test_a_full_disk_leaves_the_old_state_and_nothing_else(tmp_path, monkeypatch):
    state = StateFile(str(tmp_path / "state.json"), period_s=0.0)
    state.write({"frames": 1})

    def full(new, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SinkError, match="No space left on device"):
        state.write({"frames": 2})
    assert os.listdir(tmp_path) == ["state.json"]
    assert read_state(str(tmp_path / "state.json"))["frames"] == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b'{"state": "run', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"state": "a", "state": "b"}', "duplicate key"),
        (b"[]", "is no state"),
        (b'{"state": 5}', "is no state"),
        (b'{"state": "running"}', "schema_version None is not 1"),
        (json.dumps({"state": "running", "schema_version": 2}).encode(), "schema_version 2 is not 1"),
    ],
)
def test_what_is_no_state(tmp_path, content, words):
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(EdgeferryError) as caught:
        read_state(str(tmp_path / "state.json"))
    assert words in caught.value.message
    assert caught.value.remedy


def test_no_state_at_all(tmp_path):
    with pytest.raises(EdgeferryError, match=r"no state at .*No such file") as caught:
        read_state(str(tmp_path / "state.json"))
    assert "Is the loop running" in caught.value.remedy

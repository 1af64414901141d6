"""The control socket: who may ask, what is refused, and that nothing that is asked hurts the loop; and `ctl`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import stat
import threading
import time

import pytest
from edgeferry_runtime import control, ctl
from edgeferry_runtime.control import MAX_BYTES, ControlServer, socket_path
from edgeferry_runtime.errors import EdgeferryError, UsageError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="Unix sockets are tested on Linux")


def fails(request):
    raise EdgeferryError("it does not work", "Do this.")


def breaks(request):
    raise ZeroDivisionError("oh")


COMMANDS = {
    "state": lambda request: {"frames": 3, "asked": request.get("model")},
    "reload": lambda request: {"swap": {"bundle": "b-1", "stage": "swapped", "gap_ms": 33.1}, "got": request},
    "abandon": fails,
    "promote": breaks,
    "record": lambda request: {"value": float("nan")},
}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "run" / "control.sock")


@pytest.fixture
def server(path):
    with ControlServer(path, COMMANDS, deadline_s=5.0) as server:
        yield server


def connected(path):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    connection.settimeout(30)
    return connection


def lines(connection):
    with connection.makefile("rb") as file:
        return [json.loads(line) for line in file]


def test_a_command_and_its_answer(server, path):
    assert ctl.ask(path, {"command": "state", "model": "a"}) == {"ok": True, "frames": 3, "asked": "a"}
    mode = os.stat(path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    with connected(path) as connection:
        connection.sendall(b'{"command": "state"}\n{"command": "stat"}\n')
        connection.shutdown(socket.SHUT_WR)
        first, second = lines(connection)
    assert first["ok"]
    assert "there is no command 'stat' here, did you mean 'state'" in second["error"]


@pytest.mark.parametrize(
    ("request_", "error", "code"),
    [
        (b"", "not valid JSON", 2),
        (b"reload", "not valid JSON", 2),
        (b"\xff\xfe", "not valid JSON", 2),
        (b"[" * 20000, "nested too deeply", 2),
        (b"[]", "a request is", 2),
        (b'{"command": 3}', "a request is", 2),
        (b'{"command": "x"}', "there is no command 'x'", 2),
        (b'{"command": "state", "command": "abandon"}', "duplicate key", 2),
        (b'{"command": "abandon"}', "it does not work", 1),
        (b'{"command": "promote"}', "the command failed: ZeroDivisionError('oh')", 1),
        (b'{"command": "record"}', "the command failed", 1),
    ],
)
def test_what_is_wrong_is_said_and_the_next_one_is_answered(server, path, request_, error, code, caplog):
    with connected(path) as connection:
        connection.sendall(request_ + b"\n" + b'{"command": "state"}\n')
        connection.shutdown(socket.SHUT_WR)
        bad, good = lines(connection)
    assert bad["ok"] is False
    assert error in bad["error"]
    assert bad["exit_code"] == code
    assert good["ok"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(max_size=9), st.lists, max_leaves=5).map(
    lambda value: json.dumps({"command": value}).encode()))  # fmt: skip
def test_any_request_has_an_answer(server, line):
    answer = server.answer(line)
    assert isinstance(answer["ok"], bool)
    json.dumps(answer, allow_nan=False)


def test_a_request_without_an_end_is_cut_off(server, path):
    with connected(path) as connection:
        try:
            for _ in range(64):
                connection.sendall(b"x" * MAX_BYTES)
        except OSError:
            pass  # the other side has closed it
        else:
            pytest.fail("4 MiB were taken")
    assert ctl.ask(path, {"command": "state"})["ok"]


def test_who_says_nothing_is_sent_away_and_the_ninth_at_once(path):
    with ControlServer(path, COMMANDS, deadline_s=0.5):
        silent = [connected(path) for _ in range(8)]
        # All eight are being served before the next one comes.
        deadline = time.monotonic() + 30
        while sum(t.name == "edgeferry-command" for t in threading.enumerate()) < 8:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        with connected(path) as connection:
            (answer,) = lines(connection)
        assert "8 commands are under way" in answer["error"]
        for connection in silent:
            (answer,) = lines(connection)  # and closed, after the deadline
            assert answer["error"] == "no line came within 0.5 s"
            connection.close()
        while sum(t.name == "edgeferry-command" for t in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        assert ctl.ask(path, {"command": "state"})["ok"]


def test_a_thousand_clients_that_go_away_hurt_nobody(server, path):
    for _ in range(1000):
        with connected(path) as connection, contextlib.suppress(OSError):
            connection.sendall(b'{"command": "state"}\n')
    deadline = time.monotonic() + 30
    while not ctl.ask(path, {"command": "state"})["ok"]:
        assert time.monotonic() < deadline


def test_another_user_is_refused(server, path, monkeypatch):
    monkeypatch.setattr(control.os, "geteuid", lambda: 12345)
    monkeypatch.setattr(control.struct, "unpack", lambda *_: (1, 54321, 1))
    assert ctl.ask(path, {"command": "state"})["error"] == "this loop belongs to another user"
    monkeypatch.setattr(control.struct, "unpack", lambda *_: (1, 0, 1))
    assert ctl.ask(path, {"command": "state"})["ok"]


def test_a_stale_socket_is_replaced_one_in_use_is_not(path):
    os.makedirs(os.path.dirname(path))
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dead.bind(path)
    dead.close()
    with ControlServer(path, COMMANDS):
        with pytest.raises(UsageError, match="another loop is using it"):
            ControlServer(path, COMMANDS)
        assert ctl.ask(path, {"command": "state"})["ok"]
    assert not os.path.exists(path)
    with ControlServer(path, COMMANDS):
        assert ctl.ask(path, {"command": "state"})["ok"]


def test_places_that_cannot_be_used(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UsageError, match="cannot be made"):
        ControlServer(str(file), COMMANDS)
    assert file.read_text() == "mine"
    with pytest.raises(UsageError, match="cannot be made"):
        ControlServer(str(file / "control.sock"), COMMANDS)
    with pytest.raises(UsageError, match="too long"):
        ControlServer(str(tmp_path / ("x" * 120)), COMMANDS)


def test_closing_ends_all_and_twice_is_harmless(path):
    server = ControlServer(path, COMMANDS).start()
    server.close()
    server.close()
    with pytest.raises(EdgeferryError, match="no loop can be asked"):
        ctl.ask(path, {"command": "state"})


def ran(path, action, capsys, **options):
    given = {"action": action, "bundle": None, "model": None, "socket": path, "wait_s": None, "json": False}
    code = ctl.run(argparse.Namespace(**{**given, **options}))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_ctl_in_words_in_json_and_by_exit_code(server, path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ran(path, "reload", capsys) == (0, "b-1 runs, 33.1 ms after the last result\n", "")
    code, out, _ = ran(path, "reload", capsys, bundle="new.ferry", wait_s=7.0, json=True)
    asked = json.loads(out)["got"]
    assert (code, asked) == (0, {"command": "reload", "bundle": str(tmp_path / "new.ferry"), "wait_s": 7.0})
    code, out, _ = ran(path, "state", capsys, model="door")
    assert json.loads(out) == {"frames": 3, "asked": "door"}
    code, out, err = ran(path, "abandon", capsys)
    assert (code, out) == (1, "")
    assert err == "edgeferry-run: error: it does not work\n  Do this.\n"
    assert ran(path, "compare", capsys)[0] == 2  # not with this loop
    with pytest.raises(UsageError, match="takes no bundle"):
        ran(path, "compare", capsys, bundle="new.ferry")
    with pytest.raises(EdgeferryError, match="no loop can be asked"):
        ran(path + "x", "state", capsys)


def test_the_socket_lies_beside_the_state_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    with ControlServer(socket_path(str(tmp_path / "state.json")), COMMANDS):
        assert ran(None, "state", capsys)[0] == 0


def test_a_comparison_in_words(path, capsys):
    from edgeferry_runtime.comparison import Comparison
    from edgeferry_runtime.tasks.classify import Classification, ClassScore

    comparison = Comparison(paired=True)
    for i in range(200):
        first, second = (Classification((ClassScore(c, "", 0.9),)) for c in (1, 1 if i else 2))
        comparison.add_pair(first, 1000.0 + i, second, 1500.0 + i)
    report = comparison.to_json()
    report["current"]["bundle"], report["candidate"]["bundle"] = "a-1", "b-2"
    answer = {
        "mode": "shadow", "bundle": "b-2", "stage": "running", "why": "", "failures": 1, "kept": 1,
        "rules": {"promote": "agreement >= 0.98 over 500 frames"},
        "decision": {"what": "wait", "why": "200 of 500 frames"}, "comparison": report,
    }  # fmt: skip
    with ControlServer(path, {"compare": lambda request: answer}):
        code, text, _ = ran(path, "compare", capsys)
    assert code == 0
    for part in ("candidate b-2 (shadow): running", "current   a-1", "agreement", "0.9950 (0.97", "p90 ms",
                 "disagreed on 1 frames, kept 1", "failed on 1 frames", "promote when agreement >= 0.98 over 500",
                 "decision: wait (200 of 500 frames)"):  # fmt: skip
        assert part in text


def test_a_silent_loop_is_given_up(path):
    os.makedirs(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(1)
        with pytest.raises(EdgeferryError, match="does not answer"):
            ctl.ask(path, {"command": "state"}, timeout_s=0.2)


def test_where_there_are_no_unix_sockets(path, monkeypatch):
    monkeypatch.setattr(control.sys, "platform", "win32")
    with pytest.raises(UsageError, match="no Unix sockets"):
        ControlServer(path, COMMANDS)
    monkeypatch.delattr(ctl.socket, "AF_UNIX")
    with pytest.raises(UsageError, match="needs Unix sockets"):
        ctl.ask(path, {"command": "state"})

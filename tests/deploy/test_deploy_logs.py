"""What a service printed: lines that are safe to show, and the script that finds them under every manager."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import threading
import time

import pytest
from edgeferry_deploy.board_text import Lines, Terminal, safe_line
from edgeferry_deploy.errors import CommandError
from edgeferry_deploy.logs import log_command, logs, run
from edgeferry_deploy.streaming import STDERR, STDOUT
from hypothesis import given
from hypothesis import strategies as st

SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain \xc3\xa9\r", "plain é"),
        (b"\x1b[31mred\x1b[0m \x1b]0;title\x07bell\x07", "red bell\ufffd"),
        (b"\x1bPq#0;2\x1b\\sixel \x1b(Bset \x1b[?1049h", "sixel set "),
        (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        (b"over\rwritten \x00 \x9b31m", "over\ufffdwritten \ufffd \ufffd31m"),
        (b"bidi \xe2\x80\xae trick", "bidi \ufffd trick"),
        (b"\xff\xfe broken \xe2\x82", "\ufffd\ufffd broken \ufffd"),
        (b"a\tb", "a       b"),
    ],
)
def test_a_line_is_safe_to_show(raw, shown):
    assert safe_line(raw) == shown


def test_lines_come_whole_from_pieces_cut_anywhere():
    raw = "eins é €uro 𝄞\nzwei\n\nlast".encode()
    for size in (1, 2, 3, 7, 100):
        lines = Lines()
        found = [line for at in range(0, len(raw), size) for line in lines.feed(raw[at : at + size])]
        assert [*found, *lines.end()] == ["eins é €uro 𝄞", "zwei", "", "last"]


def test_an_endless_line_is_cut_in_bounded_memory():
    lines = Lines(limit=10)
    for _ in range(1000):
        assert list(lines.feed("é".encode() * 1000)) == []
    assert len(lines._held) < 100
    assert list(lines.feed(b"\nnext\n")) == ["é" * 10 + "…", "next"]


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_whatever_a_board_prints_is_printable(pieces):
    lines = Lines(limit=20)
    found = [line for piece in pieces for line in lines.feed(piece)] + list(lines.end())
    assert all(line.isprintable() and len(line) <= 21 for line in found)


def test_a_file_gets_the_bytes_and_a_terminal_lines(capfdbinary):
    shown = []
    terminal = Terminal(lambda stream, line: shown.append((stream, line)), raw=frozenset({STDOUT}))
    terminal.write(STDOUT, b"\x1b[31m\xff")
    terminal.write(STDERR, b"\x1b[31mred")
    terminal.end()
    assert capfdbinary.readouterr().out == b"\x1b[31m\xff"
    assert shown == [(STDERR, "red")]


@pytest.fixture(params=SHELLS)
def board(request, tmp_path):
    """A root, and programs that play a board's; `ask` runs the script in one shell."""

    class Board:
        root = tmp_path / "root"
        programs = tmp_path / "programs"

        def service(self, line, control=""):
            (self.root / "service").mkdir(parents=True, exist_ok=True)
            (self.root / "service" / "manager").write_text(line)
            (self.root / "service" / "control").write_text(control)

        def program(self, name, text):
            (self.programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (self.programs / name).chmod(0o755)

        def ask(self, lines=100, root=None):
            argv = log_command(str(root or self.root), lines)
            prefix = [request.param, "sh"] if request.param == "busybox" else [request.param]
            environment = {"PATH": str(self.programs), "HOME": str(tmp_path)}
            program = shutil.which(prefix[0])
            done = subprocess.run(
                [program, *prefix[1:], *argv[1:]], env=environment, capture_output=True, text=True, check=False
            )
            return done.returncode, done.stdout

    found = Board()
    found.programs.mkdir()
    for name in ("tail", "wc", "sh", "true"):
        (found.programs / name).symlink_to(shutil.which(name))
    found.program("id", "case $1 in -u) echo 1000 ;; -nG) echo pi adm ;; esac")
    found.program("journalctl", 'echo "$*"')
    return found


@pytest.mark.parametrize("line", [None, "", "\n", "system", "system -x\n", "system a/b\n", "other edgeferry\n"])
def test_no_service(board, line):
    if line is not None:
        board.service(line)
    assert board.ask()[0] == 90


def test_a_system_service_is_read_from_the_journal(board):
    board.service("system edgeferry 20 120\n")
    assert board.ask(7) == (0, "-q --no-pager -o short-iso -n 7 -u edgeferry.service\n")


def test_a_user_service_is_read_from_the_journal(board):
    board.service("user edgeferry-0123abcd 20 120\n")
    assert board.ask(7) == (0, "-q --no-pager -o short-iso -n 7 --user-unit edgeferry-0123abcd.service\n")


def test_the_home_is_the_boards(board):
    board.service("system edgeferry 20 120\n")
    assert board.ask(root="~/root")[0] == 0


def test_who_may_not_read_the_journal_asks_sudo_and_else_is_told(board):
    board.service("system edgeferry 20 120\n")
    board.program("id", "case $1 in -u) echo 1000 ;; -nG) echo pi video ;; esac")
    assert board.ask() == (91, "")
    board.program("sudo", "exit 1")
    assert board.ask() == (91, "")
    board.program("sudo", 'shift; echo as root: "$@"')
    assert board.ask(3)[1].startswith("as root: journalctl -q")


def test_systemd_without_a_journal(board):
    board.service("system edgeferry 20 120\n")
    (board.programs / "journalctl").unlink()
    # busybox runs its own applets whatever PATH says; journalctl is none of them.
    assert board.ask()[0] == 92


def test_a_supervised_service_is_read_from_its_files(board, tmp_path):
    board.service("supervised edgeferry 20 120\n", f'[ "$1" = runtime ] && echo {tmp_path}')
    assert board.ask()[0] == 93
    (tmp_path / "service.log").write_text("three\nfour\n")
    assert board.ask() == (0, "three\nfour\n")
    (tmp_path / "service.log.1").write_text("one\ntwo\n")
    assert board.ask() == (0, "one\ntwo\nthree\nfour\n")
    assert board.ask(3) == (0, "two\nthree\nfour\n")
    assert board.ask(1) == (0, "four\n")


def serve(device, text="", name="service.log"):
    """A supervised service on a device; the file it prints to."""
    (device.root / "service").mkdir(parents=True)
    (device.root / "service" / "manager").write_text("supervised edgeferry 20 120\n")
    (device.root / "service" / "control").write_text(f"echo '{device.home}'\n")
    (device.home / name).write_text(text)
    return device.home / name


def test_logs_of_a_device_are_safe_lines(device):
    serve(device, "\x1b[31mred\x1b[0m\n" + "x" * 10_000 + "\nlast without end")
    shown = []
    with device.connect() as transport:
        count = logs(transport, lambda stream, line: shown.append(line), lines=50)
    assert count == 3
    assert shown[0] == "red" and len(shown[1]) == 4001 and shown[2] == "last without end"


def test_logs_are_followed_over_a_rotation_until_ctrl_c(device):
    file = serve(device, "one\n")
    shown = []

    def print_on():
        time.sleep(0.5)
        with open(file, "a") as out:
            out.write("two\n")
        time.sleep(2)
        os.replace(file, f"{file}.1")
        file.write_text("three\n")

    def show(stream, line):
        if stream == STDOUT:
            shown.append(line)
            if line == "three":
                raise KeyboardInterrupt

    printing = threading.Thread(target=print_on)
    printing.start()
    with device.connect() as transport, pytest.raises(KeyboardInterrupt):
        logs(transport, show, follow=True)
    printing.join()
    assert shown == ["one", "two", "three"]


def arguments(device, **options):
    return argparse.Namespace(
        target=device.target,
        identity=device.identity and str(device.identity),
        root="~/.local/share/edgeferry",
        **{"lines": 100, "follow": False, "json": False, **options},
    )


def test_json_is_one_object_a_line(device, capsys):
    serve(device, 'say "hi"\n\x1b[2Jtwo\n')
    assert run(arguments(device, json=True)) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"line": 'say "hi"', "stream": "stdout"},
        {"line": "two", "stream": "stdout"},
    ]


def test_an_empty_log_says_so(device, capsys):
    serve(device)
    assert run(arguments(device)) == 0
    assert "nothing that is kept" in capsys.readouterr().err


def test_no_service_says_what_to_do(device):
    with pytest.raises(CommandError, match="no service is set up") as caught:
        run(arguments(device))
    assert "edgeferry push" in caught.value.remedy

"""Targets: what people type, and what must never get through."""

from __future__ import annotations

import pytest
from edgeferry_deploy.errors import TargetError, printable
from edgeferry_deploy.hostkeys import host_pattern
from edgeferry_deploy.target import LocalTarget, SshTarget, check_root, parse_target
from hypothesis import example, given
from hypothesis import strategies as st

GOOD = {
    "pi@raspberrypi.local": SshTarget("pi", "raspberrypi.local"),
    "pi@Board:2222": SshTarget("pi", "board", 2222),
    "mendel@192.168.100.2": SshTarget("mendel", "192.168.100.2"),
    "pi@[fe80::1%eth0]:2222": SshTarget("pi", "fe80::1%eth0", 2222),
    "pi@[::1]": SshTarget("pi", "::1"),
    "local:/tmp/board": LocalTarget("/tmp/board"),
    "local:board": LocalTarget("board"),
}

BAD = [
    "",
    "board",
    "@board",
    "pi@",
    "pi@:22",
    "pi@board:",
    "pi@board:0",
    "pi@board:65536",
    "pi@board:-1",
    "pi@board:+22",
    "pi@board: 22",
    "pi@board:²²",
    "pi@board:22:22",
    "pi@fe80::1",
    "pi@[fe80::1",
    "pi@[board]",
    "pi@[fe80::1]22",
    "-oProxyCommand=x@board",
    "pi@-oProxyCommand=x",
    "pi@bo ard",
    "pi@board/x",
    "pi@board;id",
    "pi@$(id)",
    "pi@board\n",
    "pi@a@b",
    "p i@board",
    "local:",
    "local:\x1b[2J",
    "ssh://pi@board",
]


@pytest.mark.parametrize("text", GOOD)
def test_target_is_parsed(text):
    assert parse_target(text) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_bad_target_is_a_usage_error_that_shows_the_forms(text):
    with pytest.raises(TargetError) as caught:
        parse_target(text)
    assert caught.value.exit_code == 2
    assert caught.value.remedy
    assert printable(caught.value.message, 10_000) == caught.value.message


@given(st.text(max_size=60))
@example("a@[::1]:1")
def test_any_text_is_a_target_that_says_itself_again_or_a_usage_error(text):
    try:
        target = parse_target(text)
    except TargetError:
        return
    assert parse_target(str(target)) == target
    if isinstance(target, SshTarget):
        assert not target.user.startswith("-")
        assert not target.host.startswith("-")
        assert 1 <= target.port <= 65535
        assert set(target.host) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-:%")


def test_known_hosts_name():
    assert host_pattern(SshTarget("pi", "board")) == "board"
    assert host_pattern(SshTarget("pi", "::1", 2222)) == "[::1]:2222"


@pytest.mark.parametrize("root", ["~/edgeferry", "/opt/edgeferry", "/opt/edge ferry/", "~/.local/share/edgeferry"])
def test_root_is_taken(root):
    assert check_root(root) == root.rstrip("/")


@pytest.mark.parametrize(
    "root", ["", "/", "~", "~/", "edgeferry", "~other/x", "/a/../b", "/a/./b", "/a\nb", "-x", "//x"]
)
def test_bad_root_is_a_usage_error(root):
    with pytest.raises(TargetError):
        check_root(root)


@given(st.binary())
def test_what_is_shown_is_printable_and_bounded(raw):
    shown = printable(raw, 50)
    assert len(shown) <= 51
    assert shown.isprintable()

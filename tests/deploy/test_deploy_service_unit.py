"""The unit's text."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from edgeferry_deploy.control import CONTROL
from edgeferry_deploy.service_setup import SETUP
from edgeferry_deploy.service_unit import Limits, limits_of, system_unit, unit_name, user_unit

ROOT = "/home/pi/.local/share/edgeferry"


def test_a_system_unit_says_what_the_profile_allows():
    text = system_unit(ROOT, Limits(memory_mb=512, watchdog_s=20, start_s=90))
    lines = text.splitlines()
    for line in ("Type=notify", "WatchdogSec=20", "MemoryMax=512M", "TimeoutStartSec=90", "User=@USER@",
                 "RuntimeDirectory=edgeferry", "NoNewPrivileges=yes", "WantedBy=multi-user.target",
                 f'ExecStart=/bin/sh "{ROOT}/service/control" start "{ROOT}"', f"# root {ROOT}"):  # fmt: skip
        assert line in lines


def test_a_user_unit_names_no_user():
    text = user_unit(ROOT, Limits())
    assert "User=" not in text
    assert "WantedBy=default.target" in text
    assert "MemoryMax" not in text


def test_a_root_with_words_systemd_would_read_is_quoted():
    text = system_unit('/srv/50% "of" $HOME \\x', Limits())
    assert 'start "/srv/50%% \\"of\\" $$HOME \\\\x"' in text


def test_two_roots_have_two_units():
    assert unit_name(ROOT) == "edgeferry"
    assert unit_name("/opt/edgeferry") != unit_name("/srv/edgeferry") != "edgeferry"


@pytest.mark.parametrize(
    ("profile", "limits"),
    [
        ({}, Limits()),
        ({"values": {"service": {"memory_max_mb": 128, "watchdog_s": 30}}}, Limits(128, 30)),
        ({"values": {"service": {"memory_max_mb": -1, "watchdog_s": "x"}}}, Limits()),
        ({"values": []}, Limits()),
    ],
)
def test_limits_come_from_the_profile(profile, limits):
    assert limits_of(profile) == limits


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("make", [system_unit, user_unit])
def test_systemd_takes_the_unit(tmp_path, make):
    text = make("/srv/a b%", Limits(memory_mb=64)).replace("@USER@", "root").replace("@GROUPS@", "video")
    file = tmp_path / "edgeferry-1.service"
    file.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True)
    assert str(file) not in done.stderr, done.stderr
    assert "edgeferry" not in done.stderr, done.stderr


@pytest.mark.parametrize("shell", [["dash"], ["busybox", "sh"], ["sh"]])
@pytest.mark.parametrize("text", [CONTROL, SETUP], ids=["control", "setup"])
def test_every_shell_reads_the_scripts(shell, text):
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    subprocess.run([*shell, "-n"], input=text, text=True, check=True)

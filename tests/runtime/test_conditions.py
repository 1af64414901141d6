"""Conditions: what real boards' files say, what broken ones say, and that only what is known is given."""

from __future__ import annotations

import json
import os
import sys

import pytest
from edgeferry_runtime import conditions as module
from edgeferry_runtime.conditions import (
    conditions,
    parse_cpuinfo,
    parse_meminfo,
    parse_temperature,
    parse_throttled,
    rss_mb,
    temperature,
    throttled,
)

PI4_CPUINFO = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

processor\t: 1
CPU part\t: 0xd08

Hardware\t: BCM2835
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""
PI3_32_BIT_CPUINFO = "processor\t: 0\nmodel name\t: ARMv7 Processor rev 4 (v7l)\nBogoMIPS\t: 38.40\n"
X86_CPUINFO = (
    "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Core(TM)  i5-8250U CPU @ 1.60GHz\n"
)
MEMINFO = (
    "MemTotal:        3885396 kB\nMemFree:         1931880 kB\nMemAvailable:    3213596 kB\nHugePages_Total:   0\n"
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (PI4_CPUINFO, "ARM part 0xd08"),
        (PI3_32_BIT_CPUINFO, "ARMv7 Processor rev 4 (v7l)"),
        (X86_CPUINFO, "Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz"),
        ("", ""),
        ("model name\n\x00\xff::: \n", ""),
        ("CPU part\t: none\n", ""),
    ],
)
def test_cpuinfo(text, name):
    assert parse_cpuinfo(text) == name


@pytest.mark.parametrize(
    ("text", "celsius"),
    [
        ("48312\n", 48.3),
        ("-5000\n", -5.0),
        ("0\n", 0.0),
        ("", None),
        ("48.3", None),
        ("N/A\n", None),
        ("-274000", None),
        ("2147483647\n", None),
        ("9" * 5000, None),
        ("٤٨", None),
    ],
)
def test_temperature_of_a_zone(text, celsius):
    assert parse_temperature(text) == celsius


@pytest.mark.parametrize(
    ("text", "now", "since_boot"),
    [
        ("throttled=0x0\n", [], []),
        ("0\n", [], []),
        ("throttled=0x50005", ["undervoltage", "throttled"], ["undervoltage", "throttled"]),
        ("50000\n", [], ["undervoltage", "throttled"]),
        ("throttled=0x20002", ["frequency capped"], ["frequency capped"]),
        ("throttled=0x80008", ["soft temperature limit"], ["soft temperature limit"]),
    ],
)
def test_throttle_flags(text, now, since_boot):
    assert parse_throttled(text) == {"now": now, "since_boot": since_boot}


@pytest.mark.parametrize(
    "text", ["", "throttled=", "throttled=0x", "VCHI initialization failed", "error=1", "0x" + "f" * 9, "5 0"]
)
def test_what_is_no_throttle_flag(text):
    assert parse_throttled(text) is None


def test_meminfo():
    assert parse_meminfo(MEMINFO) == {"MemTotal": 3794, "MemFree": 1886, "MemAvailable": 3138}
    assert parse_meminfo("MemTotal: lots kB\n\x00\n") == {}


@pytest.fixture
def board(tmp_path):
    """The files of a Raspberry Pi 4, in a folder."""
    cpufreq = "sys/devices/system/cpu/cpufreq/policy0/"
    files = {
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\x00",
        "proc/cpuinfo": PI4_CPUINFO,
        "proc/meminfo": MEMINFO,
        "proc/self/statm": "30000 12800 5000 1 0 9000 0\n",
        "sys/class/thermal/thermal_zone0/temp": "48312\n",
        "sys/class/thermal/thermal_zone1/temp": "51000\n",
        "sys/class/thermal/cooling_device0/temp": "99000\n",
        cpufreq + "scaling_governor": "ondemand\n",
        cpufreq + "scaling_cur_freq": "1500000\n",
        cpufreq + "scaling_max_freq": "1800000\n",
        "sys/bus/platform/drivers/raspberrypi-firmware/soc:firmware/get_throttled": "50000\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_a_raspberry_pi(board):
    found = conditions(str(board))
    expected = {
        "machine": "Raspberry Pi 4 Model B Rev 1.4",
        "cpu": "ARM part 0xd08",
        "temperature_c": 51.0,
        "governor": "ondemand",
        "mhz": 1500,
        "max_mhz": 1800,
        "throttled": {"now": [], "since_boot": ["undervoltage", "throttled"]},
        "memory_mb": 3794,
        "available_mb": 3138,
        "rss_mb": round(12800 * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
    }
    assert {key: found[key] for key in expected} == expected
    json.dumps(found, allow_nan=False)


def test_clusters_that_differ_are_told_apart(board):
    second = board / "sys" / "devices" / "system" / "cpu" / "cpufreq" / "policy4"
    second.mkdir()
    (second / "scaling_governor").write_text("ondemand\n")
    (second / "scaling_cur_freq").write_text("600000\n")
    found = conditions(str(board))
    assert found["governor"] == "ondemand"
    assert found["mhz"] == {"policy0": 1500, "policy4": 600}
    assert found["max_mhz"] == 1800


def test_what_is_absent_is_not_given(tmp_path):
    found = conditions(str(tmp_path))
    absent = {"machine", "temperature_c", "governor", "mhz", "max_mhz", "throttled", "memory_mb", "available_mb"}
    assert not absent & set(found)
    assert {"cores", "arch", "kernel", "python", "numpy"} <= set(found)


def test_garbage_in_every_file_raises_nothing(board):
    for garbage in (b"", b"\x00\xff\xfe\n\n", b"9" * 100_000, b"-", "\N{ARABIC-INDIC DIGIT FOUR}".encode()):
        for path in [path for path in board.rglob("*") if path.is_file()]:
            path.write_bytes(garbage)
        found = conditions(str(board))
        assert "temperature_c" not in found
        assert "mhz" not in found
        assert temperature(str(board)) is None


def test_a_folder_where_a_file_should_be(board):
    zone = board / "sys" / "class" / "thermal" / "thermal_zone1" / "temp"
    zone.unlink()
    zone.mkdir()
    assert temperature(str(board)) == 48.3


def test_what_is_not_loaded_is_not_told(monkeypatch):
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    assert "opencv" not in conditions()
    assert "cv2" not in sys.modules


def test_memory_of_this_process(monkeypatch, tmp_path):
    before = rss_mb()
    ballast = b"\x01" * (64 << 20)
    assert rss_mb() - before > 50
    del ballast
    assert rss_mb(str(tmp_path)) > 50  # from getrusage: the largest it was
    monkeypatch.setitem(sys.modules, "resource", None)
    assert rss_mb(str(tmp_path)) is None


def test_vcgencmd_is_asked_on_a_raspberry_pi_without_the_file(monkeypatch, tmp_path):
    tool = tmp_path / "vcgencmd"
    monkeypatch.setattr(module, "_FIRMWARE", "nowhere")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    tool.write_text("#!/bin/sh\necho throttled=0x1\n")
    tool.chmod(0o755)
    monkeypatch.setattr(module, "machine", lambda root="/": "Some PC")
    assert throttled() is None
    monkeypatch.setattr(module, "machine", lambda root="/": "Raspberry Pi 5 Model B Rev 1.0")
    assert throttled() == {"now": ["undervoltage"], "since_boot": []}
    tool.write_text("#!/bin/sh\nexit 255\n")
    assert throttled() is None
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert throttled() is None

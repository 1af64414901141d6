"""The doctor: each rule says its sentence when it applies, and nothing when the fact is not known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from edgeferry_deploy.cli import main
from edgeferry_deploy.doctor import Finding, finding_lines, findings
from edgeferry_deploy.doctor_rules import RULES
from edgeferry_deploy.fact_types import (
    Accelerator,
    Camera,
    Clock,
    Disk,
    Facts,
    Libc,
    Memory,
    Mount,
    PythonFound,
    Throttled,
)
from edgeferry_deploy.facts import parse_reply
from edgeferry_runtime.manifest import Requires

DATA = Path(__file__).parent / "data"
MARK = "5" * 32
NOW = 1_700_000_100.0
UNKNOWN = Facts("pi@board")
GOOD_PYTHON = PythonFound("/usr/bin/python3", (3, 11, 2), 64, ("ensurepip", "venv"))
STICK = Accelerator("edgetpu-usb", "1a6e:089a", openable=False)
CLOSED = Camera("/dev/video0", "unicam-image", openable=False)
EXT4 = Mount("ext4", read_only=False)
UNDERVOLTAGE = ("undervoltage",)


def read(board):
    raw = (DATA / f"{board}.txt").read_bytes().replace(b"@MARK@", MARK.encode())
    return parse_reply(raw, MARK, f"pi@{board}", NOW, NOW + 1.0)


def codes(facts, manifest=None):
    return {finding.code for finding in findings(facts, manifest)}


class FakeManifest:
    """All that the doctor reads of a manifest."""

    def __init__(self, arch=(), min_glibc="", min_ram_mb=0, accelerator=""):
        self.requires = Requires(arch, min_glibc, min_ram_mb, accelerator)


# code -> (facts with which it is found, facts so close to it that it must not be)
CASES = {
    "no-python": ({"pythons": (PythonFound("/p", (3, 6, 9)),)}, {"pythons": (PythonFound("/p", (3, 7, 0)),)}),
    "no-wheel": (
        {"pythons": (GOOD_PYTHON,), "arch": "aarch64", "userland_bits": 64, "libc": Libc("musl", (1, 2))},
        {"pythons": (GOOD_PYTHON,), "arch": "aarch64", "userland_bits": 64, "libc": Libc("glibc", (2, 27))},
    ),
    "camera-group": (
        {"cameras": (CLOSED,), "groups": ("users",), "user": "anna"},
        {"cameras": (dataclasses.replace(CLOSED, codec=True),), "groups": ("users",)},
    ),
    "camera-closed": (
        {"cameras": (CLOSED,), "groups": ("video",)},
        {"cameras": (dataclasses.replace(CLOSED, openable=True),), "groups": ("video",)},
    ),
    "edgetpu-group": (
        {"accelerators": (STICK,), "groups": ("video",)},
        {"accelerators": (dataclasses.replace(STICK, openable=True),), "groups": ("video",)},
    ),
    "edgetpu-rule": (
        {"accelerators": (STICK,), "groups": ("plugdev",)},
        {"accelerators": (STICK,), "groups": ("video",)},
    ),
    "apex-group": (
        {"accelerators": (Accelerator("edgetpu-pci", "/dev/apex_0", openable=False),)},
        {"accelerators": (Accelerator("edgetpu-pci", "/dev/apex_0", openable=True),)},
    ),
    "edgetpu-library": (
        {"accelerators": (STICK,), "edgetpu_library": ""},
        {"accelerators": (STICK,), "edgetpu_library": None},
    ),
    "undervoltage": (
        {"throttled": Throttled(UNDERVOLTAGE, UNDERVOLTAGE)},
        {"throttled": Throttled((), UNDERVOLTAGE)},
    ),
    "undervoltage-past": (
        {"throttled": Throttled((), UNDERVOLTAGE)},
        {"throttled": Throttled(UNDERVOLTAGE, UNDERVOLTAGE)},
    ),
    "throttled": ({"throttled": Throttled(("throttled",), ())}, {"throttled": Throttled((), ("throttled",))}),
    "throttled-past": ({"throttled": Throttled((), ("throttled",))}, {"throttled": Throttled((), ())}),
    "frequency-capped": ({"throttled": Throttled(("frequency capped",), ())}, {"throttled": Throttled((), ())}),
    "soft-limit": ({"throttled": Throttled(("soft temperature limit",), ())}, {"throttled": Throttled((), ())}),
    "read-only": (
        {"disk": Disk("/home", writable=False, mount=Mount("ext4", read_only=True))},
        {"disk": Disk("/home", writable=True, mount=EXT4)},
    ),
    "root-closed": (
        {"disk": Disk("/opt", writable=False, mount=EXT4)},
        {"disk": Disk("/opt", writable=False, mount=Mount("ext4", read_only=True))},
    ),
    "disk-full": ({"disk": Disk("/h", True, free_mb=99)}, {"disk": Disk("/h", True, free_mb=100)}),
    "disk-low": ({"disk": Disk("/h", True, free_mb=100)}, {"disk": Disk("/h", True, free_mb=500)}),
    "inodes-low": ({"disk": Disk("/h", True, free_inodes=4999)}, {"disk": Disk("/h", True, free_inodes=5000)}),
    "overlay": (
        {"system_root": Mount("overlay", False), "disk": Disk("/h", True, mount=Mount("overlay", False))},
        {"system_root": Mount("overlay", False), "disk": Disk("/data", True, mount=EXT4)},
    ),
    "ram-low": ({"memory": Memory(512, 149)}, {"memory": Memory(512, None)}),
    "hot": ({"temperature_c": 80.0}, {"temperature_c": 79.9}),
    "powersave": ({"governor": "powersave"}, {"governor": "ondemand"}),
    "userland-32": ({"arch": "aarch64", "userland_bits": 32}, {"arch": "armv7l", "userland_bits": 32}),
    "no-venv": (
        {"pythons": (PythonFound("/p", (3, 11, 2), 64, ("venv",)),)},
        {"pythons": (PythonFound("/p", (3, 11, 2), 64, ("venv",)), GOOD_PYTHON)},
    ),
    "clock-off": ({"clock": Clock(-75.0, 14.0)}, {"clock": Clock(-75.0, 16.0)}),
    "clock-free": (
        {"time_synchronised": False, "clock": Clock(1.0, 0.1)},
        {"time_synchronised": False, "clock": Clock(100.0, 0.1)},
    ),
    "no-systemd": ({"init": "init"}, {"init": "systemd"}),
    "no-linger": ({"linger": False, "user": "anna"}, {"linger": False, "user": "root"}),
    "no-sudo": ({"sudo": False}, {"sudo": True}),
    "no-camera": ({"cameras": ()}, {"cameras": (CLOSED,)}),
    "openssh-old": ({"openssh": (7, 1)}, {"openssh": (7, 2)}),
}


def test_every_rule_has_a_case_and_a_remedy():
    assert {rule.code for rule in RULES} == set(CASES)
    assert len({rule.code for rule in RULES}) == len(RULES)
    assert all(rule.remedy and rule.severity in ("error", "warning", "note") for rule in RULES)


@pytest.mark.parametrize("code", CASES)
def test_rule(code):
    with_it, without_it = CASES[code]
    assert code in codes(dataclasses.replace(UNKNOWN, **with_it))
    assert code not in codes(dataclasses.replace(UNKNOWN, **without_it))


def test_what_is_not_known_gives_no_finding():
    assert findings(UNKNOWN) == []
    needy = FakeManifest(("aarch64",), "2.34", 4096, "edgetpu")
    assert findings(UNKNOWN, needy) == []


def test_remedies_name_the_user():
    facts = dataclasses.replace(UNKNOWN, cameras=(CLOSED,), groups=("users",), user="anna")
    (finding,) = findings(facts)
    assert finding.remedy.startswith("sudo usermod -aG video anna ")
    assert "anna" in finding.what and "/dev/video0" in finding.what
    assert "USER" in findings(dataclasses.replace(facts, user=None))[0].remedy


@pytest.mark.parametrize(
    ("board", "expected"),
    [
        ("pi5-bookworm-64", set()),
        (
            "zero2w-bookworm-32",
            {"camera-group", "edgetpu-group", "edgetpu-library", "undervoltage", "disk-full", "inodes-low"}
            | {"ram-low", "throttled", "hot", "powersave", "userland-32", "no-venv", "clock-off", "no-linger"}
            | {"no-sudo"},
        ),
        ("coral-dev-board-mendel", {"no-venv", "no-linger"}),
        (
            "busybox-musl",
            {"no-python", "read-only", "disk-full", "no-systemd", "no-camera"},
        ),
    ],
)
def test_recorded_boards(board, expected):
    found = findings(read(board))
    assert {finding.code for finding in found} == expected
    ranks = [("error", "warning", "note").index(finding.severity) for finding in found]
    assert ranks == sorted(ranks)


@pytest.mark.parametrize(
    ("requires", "board", "expected"),
    [
        (FakeManifest(("aarch64",), "2.36", 1024, "edgetpu"), "pi5-bookworm-64", set()),
        (FakeManifest(("x86_64",)), "pi5-bookworm-64", {"bundle-arch"}),
        (FakeManifest(min_glibc="2.41"), "pi5-bookworm-64", {"bundle-glibc"}),
        (FakeManifest(min_glibc="2.4"), "pi5-bookworm-64", set()),  # 2.36 is newer than 2.4
        (FakeManifest(min_glibc="2.17"), "busybox-musl", {"bundle-glibc"}),
        (FakeManifest(min_ram_mb=8192), "pi5-bookworm-64", {"bundle-ram"}),
        (FakeManifest(min_ram_mb=7000), "pi5-bookworm-64", {"bundle-ram-busy"}),
        (FakeManifest(accelerator="edgetpu"), "busybox-musl", {"bundle-accelerator"}),
        # The programs decide about the architecture, not the kernel.
        (FakeManifest(("aarch64",)), "zero2w-bookworm-32", {"bundle-arch"}),
        (FakeManifest(("armv7l",)), "zero2w-bookworm-32", set()),
    ],
)
def test_bundle_against_board(requires, board, expected):
    facts = read(board)
    assert codes(facts, requires) - codes(facts) == expected


def test_lines():
    assert finding_lines("pi@board", []) == ["pi@board: nothing stands in the way"]
    found = [Finding("error", "a", "b", "c"), Finding("note", "d", "e", "f"), Finding("note", "g", "h", "i")]
    lines = finding_lines("pi@board", found)
    assert lines[:2] == ["error a: b", "    c"]
    assert lines[-1] == "1 error, 2 notes"


def test_doctor_verb_fails_on_an_error(device, capsys):
    from edgeferry_deploy import doctor

    words = ["doctor", device.target, *(["--identity", str(device.identity)] if device.identity else [])]
    first = main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is (first == 0)
    assert all(set(one) == {"severity", "code", "what", "remedy"} for one in found["findings"])
    worst = [Finding("error", "a", "b", "c")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "findings", lambda facts, manifest: worst)
        assert main([*words, "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["ok"] is False
        assert main(words) == 1
        assert "error a: b" in capsys.readouterr().out


def test_doctor_verb_compares_a_bundle(tmp_path, make_bundle, capsys):
    assert main(["doctor", f"local:{tmp_path}", "--bundle", str(make_bundle()), "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["findings"] is not None


def test_a_bad_bundle_is_told_before_anybody_is_called(tmp_path, capsys):
    bad = tmp_path / "bad.ferry"
    bad.write_bytes(b"no zip")
    assert main(["doctor", "pi@nowhere.invalid", "--bundle", str(bad)]) != 0
    said = capsys.readouterr().err
    assert "bad.ferry" in said and "nowhere" not in said

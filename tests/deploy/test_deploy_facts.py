"""Facts: recorded replies of four kinds of board, the script itself in two shells, and devices that lie."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from edgeferry_converter.profile import load_profile
from edgeferry_deploy import readings
from edgeferry_deploy.cli import main
from edgeferry_deploy.errors import CommandTimeoutError, DeviceReplyError, DeviceUnfitError, TargetError
from edgeferry_deploy.fact_types import Accelerator, Camera, Facts, Libc, PythonFound, Throttled
from edgeferry_deploy.facts import FACTS, command, parse_reply, sections
from edgeferry_deploy.local import LocalTransport
from edgeferry_deploy.probe import fact_lines, probe
from edgeferry_deploy.profile_draft import draft
from edgeferry_deploy.transport import Completed
from edgeferry_runtime.errors import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

DATA = Path(__file__).parent / "data"
BOARDS = sorted(file.stem for file in DATA.glob("*.txt"))
MARK = "5" * 32
NOW = 1_700_000_100.0  # this machine's clock when the recorded replies were asked for
SHELLS = {"dash": ["dash"], "busybox": ["busybox", "sh"]}


def read(board, asked=NOW, answered=NOW + 1.0):
    raw = (DATA / f"{board}.txt").read_bytes().replace(b"@MARK@", MARK.encode())
    return parse_reply(raw, MARK, f"pi@{board}", asked, answered)


def test_recordings_hold_every_fact():
    names = {fact.name for fact in FACTS}
    for board in BOARDS:
        found = sections((DATA / f"{board}.txt").read_bytes(), "@MARK@")
        assert set(found) == names | {"began", "ended", "end"}, board
    assert len(BOARDS) == 4
    assert names | {"device", "clock"} == {field.name for field in dataclasses.fields(Facts)}


def test_raspberry_pi_5():
    facts = read("pi5-bookworm-64")
    assert facts.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert (facts.arch, facts.userland_bits, facts.userland_arch) == ("aarch64", 64, "aarch64")
    assert facts.libc == Libc("glibc", (2, 36))
    assert facts.distribution.codename == "bookworm"
    modules = ("ensurepip", "numpy", "picamera2", "pip", "venv")
    assert facts.pythons == (PythonFound("/usr/bin/python3", (3, 11, 2), 64, modules),)
    assert (facts.cpu, facts.cores, facts.max_mhz) == ("Cortex-A76", 4, 2400)
    assert "asimddp" in facts.cpu_features
    assert (facts.memory.total_mb, facts.memory.available_mb) == (8064, 6750)
    assert (facts.disk.free_mb, facts.disk.free_inodes, facts.disk.mount.read_only) == (51391, 3716236, False)
    assert [camera.device for camera in facts.real_cameras] == ["/dev/video0", "/dev/video1", "/dev/video4"]
    assert facts.accelerators == (Accelerator("edgetpu-usb", "18d1:9302", True),)
    assert (facts.systemd, facts.user_manager, facts.linger, facts.sudo) == (252, "running", True, True)
    assert (facts.temperature_c, facts.throttled) == (52.4, Throttled((), ()))
    assert facts.openssh == (9, 2)
    assert facts.release == "digits-0123456789ab"
    assert facts.to_dict()["unknown"] == []


def test_64_bit_kernel_with_32_bit_userland():
    facts = read("zero2w-bookworm-32")
    assert (facts.arch, facts.userland_bits, facts.userland_arch) == ("aarch64", 32, "armv7l")
    assert facts.throttled == Throttled(("undervoltage", "throttled"), ("undervoltage", "throttled"))
    assert facts.real_cameras == (Camera("/dev/video0", "unicam-image", openable=False),)
    assert facts.release == ""
    assert facts.to_dict()["userland_arch"] == "armv7l"


def test_coral_dev_board():
    facts = read("coral-dev-board-mendel")
    assert (facts.libc.version, facts.pythons[0].version, facts.temperature_c) == ((2, 28), (3, 7, 3), 47.0)
    assert facts.accelerators == (Accelerator("edgetpu-pci", "/dev/apex_0", True),)
    assert facts.throttled is None


def test_busybox_with_musl():
    facts = read("busybox-musl")
    assert (facts.userland_bits, facts.libc) == (32, Libc("musl", (1, 2, 4)))
    assert (facts.pythons, facts.systemd, facts.init, facts.openssh) == ((), None, "init", None)
    assert facts.disk.mount.read_only and facts.system_root.filesystem == "squashfs"
    assert facts.memory.available_mb is None and facts.disk.free_inodes is None
    assert {"model", "governor", "throttled"} <= set(facts.to_dict()["unknown"])


@pytest.mark.parametrize(
    ("board", "answered", "skew", "uncertainty"),
    [
        # The device was busy for 0.80 of 1.00 s (0.79 for sure): it began within 0.21 s after NOW.
        ("pi5-bookworm-64", NOW + 1.0, 0.145, 0.105),
        ("zero2w-bookworm-32", NOW + 4.2, -10100.104, 0.105),
        # Whole seconds only: half a second of doubt more.
        ("busybox-musl", NOW + 0.6, 0.445, 0.555),
    ],
)
def test_clock_skew_and_its_doubt(board, answered, skew, uncertainty):
    clock = read(board, answered=answered).clock
    assert (clock.skew_s, clock.uncertainty_s) == pytest.approx((skew, uncertainty), abs=0.002)


def test_clock_without_uptime_is_less_sure():
    raw = f"{MARK} began\n{NOW:.2f}5\n\n{MARK} end\n".encode()
    assert parse_reply(raw, MARK, "x", NOW, NOW + 2.0).clock.uncertainty_s == pytest.approx(1.0)
    raw = f"{MARK} began\ncommand not found\n\n{MARK} end\n".encode()
    assert parse_reply(raw, MARK, "x", NOW, NOW + 2.0).clock is None


@pytest.mark.parametrize("shell", SHELLS)
def test_script_runs_in_the_shells_of_boards(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    argv = command(MARK, str(tmp_path / "not" / "yet"))
    done = subprocess.run([*SHELLS[shell], *argv[1:]], capture_output=True, timeout=60, check=True)
    facts = parse_reply(done.stdout, MARK, "here", 0.0, 1.0)
    assert facts.arch and facts.kernel and facts.libc and facts.cores and facts.user
    assert facts.userland_bits in (32, 64)
    assert facts.disk.path == str(tmp_path) and facts.disk.free_mb is not None
    assert facts.pythons and all(python.bits in (32, 64) for python in facts.pythons)
    assert len({python.path for python in facts.pythons}) == len(facts.pythons)
    assert done.stderr == b""


@pytest.fixture
def busybox_path(tmp_path):
    """A folder with every applet of busybox and nothing else."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is not installed here")
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    folder = tmp_path / "applets"
    folder.mkdir()
    for tool in listed:
        (folder / tool).symlink_to(busybox)
    return folder


def test_script_runs_on_busybox_alone(busybox_path, tmp_path):
    environment = {"PATH": str(busybox_path), "HOME": str(tmp_path)}
    argv = command(MARK, "~/edgeferry")
    done = subprocess.run(argv, executable=busybox_path / "sh", env=environment, capture_output=True, check=True)
    facts = parse_reply(done.stdout, MARK, "here", 0.0, 1.0)
    assert facts.arch and facts.memory and facts.user and facts.groups
    assert facts.userland_bits in (32, 64)  # from the ELF header: there is no getconf
    assert facts.disk.path == str(tmp_path)


def test_script_runs_with_nothing_but_a_shell(tmp_path):
    (tmp_path / "sh").symlink_to(shutil.which("dash") or shutil.which("sh"))
    done = subprocess.run(
        command(MARK, "/x"),
        executable=tmp_path / "sh",
        env={"PATH": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    found = sections(done.stdout, MARK)
    assert set(found) >= {fact.name for fact in FACTS}


def test_what_hangs_on_busybox_leaves_no_grandchild_at_the_pipe(busybox_path):
    (busybox_path / "uname").unlink()
    (busybox_path / "uname").write_text("#!/bin/sh\nsleep 60\n")
    (busybox_path / "uname").chmod(0o755)
    argv = [word if word != "5" else "1" for word in command(MARK, "/x")]
    environment = {"PATH": str(busybox_path), "HOME": "/"}
    done = subprocess.run(
        argv, executable=busybox_path / "sh", env=environment, capture_output=True, check=True, timeout=30
    )
    facts = parse_reply(done.stdout, MARK, "here", 0.0, 1.0)
    assert facts.arch is None and facts.memory is not None


def test_what_hangs_or_floods_costs_its_own_fact_only(bare_path, tmp_path):
    path = Path(bare_path())
    for tool, body in {"uname": "sleep 60", "id": "while :; do echo all work and no play; done"}.items():
        (path / tool).unlink(missing_ok=True)
        (path / tool).write_text(f"#!/bin/sh\n{body}\n")
        (path / tool).chmod(0o755)
    argv = [word if word != "5" else "1" for word in command(MARK, "~/x")]
    done = LocalTransport(tmp_path, path=str(path)).run(argv, timeout=30)
    facts = parse_reply(done.stdout, MARK, "here", 0.0, 1.0)
    assert (facts.arch, facts.user) == (None, None)
    assert facts.disk is not None
    assert len(done.stdout) < 64 * 1024


def test_a_private_python_comes_first_and_links_are_told_once(tmp_path, bare_path):
    root = tmp_path / "root"
    private, system = root / "venv" / "bin", tmp_path / "bin"
    answer = '#!/bin/sh\nprintf "3.9.1\\t64\\tpip numpy\\n"\n'
    for folder in (private, system):
        folder.mkdir(parents=True)
        (folder / "python3.9").write_text(answer)
        (folder / "python3.9").chmod(0o755)
        (folder / "python3").symlink_to("python3.9")
    (private.parent / "pyvenv.cfg").write_text("")
    facts = probe(LocalTransport(tmp_path, path=f"{system}:{bare_path()}:/usr/bin"), root=str(root))
    paths = [python.path for python in facts.pythons]
    assert paths[0] == str(private / "python3")
    assert str(system / "python3") in paths
    assert not any(path.endswith("3.9") for path in paths)


def test_command_is_short_enough_for_dropbear():
    assert len(shlex.join(command(MARK, "/" + "x" * 200))) < 9000  # its MAX_CMD_LEN


def test_no_command_holds_a_marker_or_a_root():
    one, other = command(MARK, "/a"), command("6" * 32, "/b; rm -rf /")
    assert [a for a, b in zip(one, other, strict=True) if a != b] == [MARK, "/a"]


class Reply:
    """A transport that answers what a test says."""

    name = "pi@board"

    def __init__(self, answer):
        self.answer = answer

    def run(self, argv, stdin=None, timeout=60.0, limit=0):
        return Completed(tuple(argv), 0, self.answer(argv[4]), b"")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda mark: b"", "does not begin"),
        (lambda mark: b"\x00\xff\x1b[31m" * 1000, "does not begin"),
        (lambda mark: f"{'0' * 32} arch\nx\n{'0' * 32} end\n".encode(), "does not begin"),
        (lambda mark: f"{mark} arch\naarch64\n".encode(), "breaks off"),
    ],
)
def test_replies_that_are_none(answer, why):
    with pytest.raises(DeviceReplyError, match=why) as caught:
        probe(Reply(answer))
    assert "pi@board" in caught.value.message and caught.value.remedy
    assert "\x1b" not in str(caught.value)


def test_root_that_cannot_be_one():
    with pytest.raises(TargetError):
        probe(Reply(lambda mark: b""), root="~/../x")


def test_endless_output_is_cut(bare_path, tmp_path):
    path = Path(bare_path())
    (path / "sh").unlink()
    (path / "sh").write_text("#!/bin/bash\nwhile :; do echo all work and no play; done\n")
    (path / "sh").chmod(0o755)
    transport = LocalTransport(tmp_path, path=str(path))
    with pytest.raises(DeviceReplyError, match="printed more than"):
        transport.run([str(path / "sh"), *command(MARK, "/x")[1:]], limit=4096)


def test_device_that_never_ends(tmp_path):
    with pytest.raises(CommandTimeoutError, match="edgeferry-probe"):
        LocalTransport(tmp_path).run(["sh", "-c", "sleep 60", "edgeferry-probe"], timeout=0.3)


PARSERS = sorted({fact.parse for fact in FACTS}, key=lambda parse: parse.__name__)
# What real answers are made of, so that random texts get past the first character.
PIECES = st.sampled_from(
    ["MemTotal: 1 kB", "glibc ", "ID=", "/dev/video0", "\t", "\n", "yes", "no", "blocks ", " / ", "0x", "9" * 30]
)
MORE = st.sampled_from(
    ["3.11", "-", "CPU part\t: 0x", "musl", "\x1b]0;x\x07", "\u0661", "/", "18d1:9302", "OpenSSH_"]
)


@settings(max_examples=60)
@given(st.lists(st.one_of(PIECES, MORE, st.text(max_size=20)), max_size=12).map("".join))
def test_parsers_never_raise_and_never_pass_controls_on(text):
    for parse in PARSERS:
        value = parse(text)
        shown = json.dumps(value, default=dataclasses.asdict, ensure_ascii=False)
        assert all(char.isprintable() for char in shown), parse.__name__
        assert len(shown) < 40_000


@pytest.mark.parametrize("text", ["", "x", "-1", "1e3", "٣", "9" * 40, "100\n200"])
def test_no_number_no_fact(text):
    assert readings.integer(text) is None


@pytest.mark.parametrize("text", ["", "root;reboot", "$(id)", "-rf", "a b", "é", "x" * 70])
def test_user_names_that_a_shell_would_read(text):
    assert readings.login(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("glibc 2.36", Libc("glibc", (2, 36))),
        ("ldd (Debian GLIBC 2.28-10+deb10u2) 2.28\nCopyright (C)", Libc("glibc", (2, 28))),
        ("ldd (GNU libc) 2.34", Libc("glibc", (2, 34))),
        ("sh: ldd: not found\n/lib/ld-musl-aarch64.so.1", Libc("musl")),
        ("uClibc", None),
    ],
)
def test_c_library(text, expected):
    assert readings.libc(text) == expected


def test_32_bit_kernels_name_the_core_twice():
    assert readings.cpu("CPU part\t: 0xd03\nmodel name\t: ARMv7 Processor rev 4 (v7l)\n") == "Cortex-A53"
    assert readings.cpu("CPU part\t: 0xd03\nCPU part\t: 0xd09\n") == "Cortex-A53 + Cortex-A73"
    assert readings.cpu("CPU part\t: 0xfff\n") == "ARM part 0xfff"


@pytest.mark.parametrize("board", BOARDS)
def test_every_fact_has_a_line_or_is_named(board):
    facts = read(board)
    lines = fact_lines(facts)
    assert lines[0] == facts.device
    assert all(line.isprintable() for line in lines)
    assert json.loads(json.dumps(facts.to_dict()))["device"] == facts.device


@pytest.mark.parametrize(
    ("board", "package", "camera", "accelerator"),
    [
        ("pi5-bookworm-64", "ai-edge-litert", "picamera2:0", "edgetpu-usb"),
        ("zero2w-bookworm-32", "tflite-runtime", "camera:0", "edgetpu-usb"),
        ("coral-dev-board-mendel", "tflite-runtime", "camera:0", "edgetpu-pci"),
    ],
)
def test_drafted_profile_loads(board, package, camera, accelerator, tmp_path):
    facts = read(board)
    file = tmp_path / "my-board.toml"
    file.write_text(draft(facts, file.stem, "2026-11-21"), encoding="utf-8")
    profile = load_profile(str(file))
    assert (profile.interpreter.package, profile.camera.source) == (package, camera)
    assert (profile.accelerator.kind, profile.board.arch) == (accelerator, facts.userland_arch)
    assert profile.board.ram_mb == facts.memory.total_mb
    assert profile.python.minimum == ".".join(map(str, facts.pythons[0].version[:2]))


@pytest.mark.parametrize("model", ['a "quoted" \\ board', "Plätine 🐙", "x\x7f\ny", "'''", "# no comment"])
def test_drafted_profile_survives_hostile_names(model, tmp_path):
    facts = dataclasses.replace(read("pi5-bookworm-64"), model=model, device="pi@" + model)
    file = tmp_path / "b.toml"
    file.write_text(draft(facts, "b", "2026-11-21"), encoding="utf-8")
    assert load_profile(str(file)).description


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "musl, not glibc"),
        ({"arch": None}, "unknown architecture"),
        ({"arch": "riscv64"}, "riscv64"),
        (
            {"libc": Libc("glibc", (2, 36)), "pythons": (PythonFound("/p", (3, 13, 1)),)},
            r"Python 3\.13 with glibc 2\.36",
        ),
        ({"pythons": ()}, "no Python"),
    ],
)
def test_no_profile_for_what_cannot_run(changes, why):
    facts = dataclasses.replace(read("busybox-musl"), pythons=(PythonFound("/p", (3, 11, 1)),))
    with pytest.raises(DeviceUnfitError, match=why):
        draft(dataclasses.replace(facts, **changes), "x", "2026-11-21")


def test_probe_over_either_transport(device):
    with device.connect() as transport:
        before = transport.round_trips
        facts = probe(transport)
        assert transport.round_trips == before + 1
    assert facts.disk.path.startswith(str(device.home)) or str(device.home).startswith(facts.disk.path)
    assert abs(facts.clock.skew_s) <= facts.clock.uncertainty_s + 0.1
    assert facts.release == ""


def test_probe_verb(device, capsys, tmp_path):
    words = ["probe", device.target, *(["--identity", str(device.identity)] if device.identity else [])]
    assert main([*words, "--json", "--write-profile", str(tmp_path / "this-machine.toml")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"] and found["arch"]
    assert load_profile(str(tmp_path / "this-machine.toml")).board.arch == found["userland_arch"]
    assert main(words) == 0
    assert "C library" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["x.json", "My Board.toml", "-.toml", "there.toml", "no/where.toml"])
def test_profile_files_are_refused_before_anybody_is_called(name, tmp_path, capsys):
    (tmp_path / "there.toml").write_text("keep me")
    assert main(["probe", "pi@nowhere.invalid", "--write-profile", str(tmp_path / name)]) == UsageError.exit_code
    assert "resolve" not in capsys.readouterr().err
    assert (tmp_path / "there.toml").read_text() == "keep me"

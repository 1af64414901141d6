"""Which wheels a board gets, how they are fetched and kept, and that the real ones run where they should."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from edgeferry_deploy.cli import main
from edgeferry_deploy.wheel_cache import DownloadError, cache_folder, fetch, fetch_all, pip_argv
from edgeferry_deploy.wheel_table import COMPANIONS, WHEELS
from edgeferry_deploy.wheelhouse import board_for, wheelhouse
from edgeferry_deploy.wheels import (
    BoardFacts,
    BoardPython,
    SolveError,
    Wanted,
    companions,
    matches,
    of_profile,
    platform_tags,
    solve,
    wanted,
)
from edgeferry_runtime.bundle import write_bundle
from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.wheel_lock import Running, read_lock, tag_problem
from hypothesis import given
from hypothesis import strategies as st


def board(arch: str, glibc: tuple[int, int], *minors: int, bits: int = 64, libc: str = "glibc") -> BoardFacts:
    return BoardFacts(arch, bits, libc, glibc, tuple(BoardPython((3, minor)) for minor in minors))


BOOKWORM = board("aarch64", (2, 36), 11)
PI_32 = board("aarch64", (2, 36), 11, bits=32)  # a 64-bit kernel below a 32-bit system

CASES = {
    "bookworm": (BOOKWORM, "ai-edge-litert==2.1.6 numpy==2.4.6 opencv-python-headless==5.0.0.93"),
    "trixie": (
        board("aarch64", (2, 41), 13), "ai-edge-litert==2.1.6 numpy==2.4.6 opencv-python-headless==5.0.0.93"),
    "pc": (board("x86_64", (2, 36), 11), "ai-edge-litert==2.3.0 numpy==2.4.6 opencv-python-headless==5.0.0.93"),
    "arm64 macOS name": (
        board("arm64", (2, 36), 14), "ai-edge-litert==2.1.6 numpy==2.4.6 opencv-python-headless==5.0.0.93"),
    "bullseye": (
        board("aarch64", (2, 31), 9), "ai-edge-litert==2.1.0 numpy==2.0.2 opencv-python-headless==5.0.0.93"),
    "mendel": (
        board("aarch64", (2, 28), 7), "tflite-runtime==2.11.0 numpy==1.21.6 opencv-python-headless==4.11.0.86"),
    "python 3.8": (
        board("x86_64", (2, 31), 8), "tflite-runtime==2.14.0 numpy==1.24.4 opencv-python-headless==4.11.0.86"),
    "python 3.8, old glibc": (
        board("aarch64", (2, 31), 8), "tflite-runtime==2.13.0 numpy==1.24.4 opencv-python-headless==4.11.0.86"),
    "32-bit userland": (PI_32, "tflite-runtime==2.14.0"),
    "32-bit bullseye": (board("armv7l", (2, 31), 9, bits=32), "tflite-runtime==2.13.0"),
    "a new Python first": (
        board("aarch64", (2, 36), 15, 11), "ai-edge-litert==2.1.6 numpy==2.4.6 opencv-python-headless==5.0.0.93"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_boards(name):
    facts, expected = CASES[name]
    assert " ".join(wheel.name + wheel.version for wheel in chosen(facts)) == expected


def chosen(facts, *arguments):
    """The wheels but those that every environment has."""
    names = {wheel.package for wheel in COMPANIONS}
    return [wheel for wheel in solve(facts, *arguments).wheels if wheel.name not in names]


@pytest.mark.parametrize("minor", range(7, 15))
def test_every_environment_has_one_version_of_what_sinks_and_page_need(minor):
    names = [wheel.package for wheel in companions(BoardPython((3, minor), "/usr/bin/python3"))]
    assert len(names) == len(set(names))
    assert {"paho-mqtt", "prometheus-client", "uvicorn", "h11", "click"} <= set(names)
    assert ("typing-extensions" in names) == (minor < 11)
    assert ("importlib-metadata" in names) == (minor < 8)


def test_python_code_alone_is_asked_for_without_a_platform():
    wheels = {wheel.name: wheel for wheel in solve(BOOKWORM).wheels}
    assert (wheels["uvicorn"].abis, wheels["uvicorn"].platforms) == (("none",), ("any",))


@pytest.mark.parametrize(
    ("facts", "reasons"),
    [
        (board("armv7l", (2, 41), 13, bits=32), ["ai-edge-litert has no wheel for armv7l", "not Python 3.13"]),
        (board("armv6l", (2, 36), 11, bits=32), ["there are no wheels for armv6l"]),
        (board("riscv64", (2, 36), 11), ["there are no wheels for riscv64"]),
        (board("x86_64", (2, 36), 11, bits=32), ["there are no wheels for i686"]),
        (board("aarch64", (1, 2), 11, libc="musl"), ["its C library is musl"]),
        (board("aarch64", (2, 36)), ["it has no Python"]),
        (board("aarch64", (2, 17), 11), ["ai-edge-litert 2.1.6: needs glibc 2.27", "2.14.0: needs glibc 2.34"]),
        (board("aarch64", (2, 36), 15), ["is for Python 3.10 to 3.14, not Python 3.15"]),
    ],
)
def test_every_candidate_has_its_reason(facts, reasons):
    with pytest.raises(SolveError) as caught:
        solve(facts, device="pi@kitchen")
    for reason in reasons:
        assert any(reason in line for line in caught.value.reasons), caught.value.reasons
    assert "pi@kitchen" in caught.value.message
    assert caught.value.remedy


def test_armv7l_takes_the_distributions_packages():
    solution = solve(PI_32)
    assert solution.apt_command == "sudo apt install --no-install-recommends python3-numpy python3-opencv"
    assert any("64-bit" in note for note in solution.notes)
    there = PI_32._replace(pythons=(BoardPython((3, 11), "/usr/bin/python3", frozenset({"numpy", "cv2"})),))
    assert solve(there).apt_command == ""
    assert [package.module for package in solve(there).system_packages] == ["numpy", "cv2"]


def test_a_doubted_version_only_when_it_is_asked_for():
    assert solve(BOOKWORM).wheels[0].version == "==2.1.6"
    solution = solve(BOOKWORM, Wanted(interpreters=("ai-edge-litert>=2.2,<2.3",)))
    assert solution.wheels[0].version == "==2.2.0"
    assert any("segfaulted" in note for note in solution.notes)


def test_constraints_and_camera():
    found = chosen(BOOKWORM, Wanted(constraints=("numpy<2",)))
    assert [wheel.version for wheel in found] == ["==2.1.6", "==1.26.4", "==4.11.0.86"]
    assert [wheel.name for wheel in chosen(BOOKWORM, Wanted(camera=False))] == ["ai-edge-litert", "numpy"]


def test_what_the_bundle_asks_for_is_obeyed():
    with pytest.raises(SolveError, match="the bundle is for x86_64"):
        solve(BOOKWORM, Wanted(arch=("x86_64",)))
    with pytest.raises(SolveError, match=r"Python 3\.11: the bundle's profile is for Python 3\.13"):
        solve(BOOKWORM, Wanted(pythons=(13, 13)))
    with pytest.raises(SolveError, match="2 was asked for"):
        solve(BOOKWORM, Wanted(interpreters=("ai-edge-litert<2",)))
    with pytest.raises(SolveError, match="not in the table"):
        solve(BOOKWORM, Wanted(interpreters=("onnxruntime",)))


@pytest.mark.parametrize("name", ["coral-dev-board", "coral-usb-rpi4", "generic-arm64", "generic-armv7", "rpi3",
                                  "rpi4", "rpi5", "rpi-zero-2w"])  # fmt: skip
def test_every_shipped_profile_has_a_solution_for_each_of_its_pythons(repository, name):
    values = tomllib.loads((repository / "device_profiles" / f"{name}.toml").read_text())
    requires = of_profile(values)
    for minor in range(requires.pythons[0], requires.pythons[1] + 1):
        solution = solve(board_for(values, "", requires, python=f"3.{minor}"), requires)
        assert solution.wheels[0].name == values["interpreter"]["package"]


def test_the_table_is_sound():
    every = (*WHEELS, *COMPANIONS)
    assert len({(wheel.package, wheel.version) for wheel in every}) == len(every)
    for wheel in every:
        assert wheel.source
        assert set(wheel.doubts) <= set(wheel.glibc)
        assert wheel.pythons[0] <= wheel.pythons[1]


@given(
    st.sampled_from(["aarch64", "armv7l", "x86_64", "armv6l", "", "\x1b[31m"]),
    st.tuples(st.just(2), st.integers(0, 60)),
    st.lists(st.integers(0, 20), max_size=3),
    st.sampled_from([32, 64]),
)
def test_any_board_gets_a_set_that_fits_or_reasons(arch, glibc, minors, bits):
    facts = board(arch, glibc, *minors, bits=bits)
    try:
        solution = solve(facts)
    except SolveError as error:
        assert error.reasons
        return
    rows = {(wheel.package, f"=={wheel.version}"): wheel for wheel in (*WHEELS, *COMPANIONS)}
    for wheel in solution.wheels:
        row = rows[wheel.name, wheel.version]
        assert row.glibc[facts.userland] <= glibc
        assert row.pythons[0] <= solution.python.version[1] <= row.pythons[1]
    versions = {wheel.name: wheel.version[2:] for wheel in solution.wheels}
    if "tflite-runtime" in versions and "numpy" in versions:
        assert versions["numpy"].startswith("1.")


@pytest.mark.parametrize(
    ("version", "specifier", "fits"),
    [
        ("2.1.6", ">=2.1,<2.2", True), ("2.2.0", ">=2.1,<2.2", False), ("2.1", "==2.1.0", True), ("2.1", "", True),
        ("2.10", ">2.9", True), ("2.1", "!=2.1", False), ("2.1", "~=2.1", True), ("2.1", ">=two", False),
        ("2.9", "~=2.1", True), ("3.0", "~=2.1", False), ("2.1.6", "~=2.1.3", True), ("2.2", "~=2.1.3", False),
        ("2", "~=2", False),
        ("2.1", "<= 2.1", True),
    ],
)  # fmt: skip
def test_specifiers(version, specifier, fits):
    assert matches(version, specifier) is fits


def test_platform_tags():
    tags = platform_tags("aarch64", (2, 19))
    assert tags[:4] == ("manylinux_2_19_aarch64", "manylinux_2_18_aarch64", "manylinux_2_17_aarch64",
                        "manylinux2014_aarch64")  # fmt: skip


def test_wanted_reads_the_manifest(bundle_manifest):
    found = wanted(bundle_manifest)
    assert found.interpreters == ("ai-edge-litert", "tflite-runtime")
    with pytest.raises(SolveError, match="the bundle runs on"):
        wanted(bundle_manifest, {"interpreter": {"package": "onnxruntime", "version": ">=1"}})


def test_pip_is_asked_for_one_wheel_and_nothing_else(tmp_path):
    argv = pip_argv(solve(PI_32).wheels[0], tmp_path)
    assert argv[:4] == (sys.executable, "-m", "pip", "download")
    assert {"--only-binary=:all:", "--no-deps"} <= set(argv)
    assert argv[argv.index("--python-version") + 1] == "3.11"
    assert argv[argv.index("--abi") + 1] == "cp311"
    assert argv[-1] == "tflite-runtime==2.14.0"
    assert "manylinux_2_34_armv7l" in argv
    assert "manylinux_2_37_armv7l" not in argv


TARGET = Running((3, 11), "aarch64", (2, 36), "")
LITERT = solve(BOOKWORM).wheels[0]
NAME = "ai_edge_litert-2.1.6-cp311-cp311-manylinux_2_27_aarch64.whl"


class FakePip:
    """Stands for pip: puts files down or fails as pip does."""

    def __init__(self, *names: str, stderr: str = "", code: int = 0) -> None:
        self.names, self.stderr, self.code, self.calls = names, stderr, code, 0

    def __call__(self, argv: Any) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        folder = Path(argv[argv.index("--dest") + 1])
        for name in self.names or (self.own(argv),):
            with zipfile.ZipFile(folder / name, "w") as archive:
                archive.writestr(f"{name}.dist-info/WHEEL", name)
                archive.writestr(f"{name.split('-')[0]}/__init__.py", "")
        return subprocess.CompletedProcess(argv, self.code, "", self.stderr)

    @staticmethod
    def own(argv: Any) -> str:
        name, version = argv[-1].split("==")
        return "-".join([name.replace("-", "_"), version, "py3-none-any.whl"])


def left(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


def test_a_wheel_is_downloaded_once(tmp_path):
    pip = FakePip(NAME)
    first = fetch(LITERT, TARGET, tmp_path, pip)
    again = fetch(LITERT, TARGET, tmp_path, pip)
    assert (first.cached, again.cached, pip.calls) == (False, True, 1)
    assert again.locked == first.locked
    assert again.path.name == NAME
    assert len(left(tmp_path)) == 2


@pytest.mark.parametrize("harm", [b"", b"x"])
def test_a_cache_that_changed_is_not_believed(tmp_path, harm):
    pip = FakePip(NAME)
    kept = fetch(LITERT, TARGET, tmp_path, pip)
    kept.path.write_bytes(harm)
    assert not fetch(LITERT, TARGET, tmp_path, pip).cached
    note = next((tmp_path / "answers").iterdir())
    for text in (
        "",
        "[]",
        "{}",
        '{"filename": "../x"}',
        json.dumps({**kept.locked.__dict__, "filename": "../../x"}),
    ):
        note.write_text(text)
        assert not fetch(LITERT, TARGET, tmp_path, pip).cached


@pytest.mark.parametrize(
    ("stderr", "says"),
    [
        ("WARNING: Retrying after NewConnectionError\nERROR: No matching distribution found for x", "be reached"),
        ("ERROR: No matching distribution found for x", "no such wheel"),
        ("/usr/bin/python3: No module named pip", "has no pip"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: \x1b[31mstrange\x07", "pip failed: ERROR: [31mstrange"),
    ],
)
def test_pips_failures_in_words(tmp_path, stderr, says):
    with pytest.raises(DownloadError) as caught:
        fetch(LITERT, TARGET, tmp_path, FakePip(NAME, stderr=stderr, code=1))
    assert says in caught.value.message
    assert "ai-edge-litert==2.1.6 for Python 3.11 on aarch64" in caught.value.message
    assert "\x1b" not in str(caught.value)
    assert caught.value.remedy
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "names",
    [
        (NAME, "numpy-2.4.6-py3-none-any.whl"),
        ("ai_edge_litert-2.1.6.tar.gz",),
        (NAME.replace("2.1.6", "2.1.7"),),
        (NAME.replace("ai_edge", "no_edge"),),
        (NAME.replace("aarch64", "x86_64"),),
        (NAME.replace("cp311", "cp312"),),
        (NAME.replace("2_27", "2_40"),),
    ],
)
def test_what_pip_brings_is_checked(tmp_path, names):
    with pytest.raises(DownloadError):
        fetch(LITERT, TARGET, tmp_path, FakePip(*names))
    assert left(tmp_path) == []


def test_pip_that_hangs_and_a_cache_that_cannot_be_written(tmp_path):
    def hang(argv: Any) -> Any:
        raise subprocess.TimeoutExpired(argv, 1)

    with pytest.raises(DownloadError, match="did not end"):
        fetch(LITERT, TARGET, tmp_path, hang)
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot be kept"):
        fetch(LITERT, TARGET, tmp_path / "file", FakePip(NAME))


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("EDGEFERRY_CACHE_DIR", raising=False)
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "edgeferry" / "wheels"
    monkeypatch.setenv("EDGEFERRY_CACHE_DIR", str(tmp_path / "other"))
    assert cache_folder() == tmp_path / "other" / "wheels"


@pytest.fixture
def bundle_file(contents: Any, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.ferry"
    write_bundle(path, *contents)
    return path


@pytest.fixture
def bundle_manifest(contents: Any) -> Any:
    return contents[0]


HOUSE: dict[str, Any] = {"arch": "aarch64", "python": "3.11", "glibc": "2.36"}


def test_a_wheelhouse_holds_what_its_lock_says(bundle_file, tmp_path):
    from edgeferry_runtime.installing import install

    result = wheelhouse(bundle_file, tmp_path / "out", **HOUSE, cache=tmp_path / "cache", pip=FakePip())
    lock = read_lock(str(tmp_path / "out"))
    assert lock == result.lock
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"lock.json", *(f.filename for f in lock.files)}
    assert (tmp_path / "out/tiny.ferry").read_bytes() == bundle_file.read_bytes()
    assert result.downloaded == 8
    again = wheelhouse(bundle_file, tmp_path / "out", **HOUSE, cache=tmp_path / "cache", pip=FakePip())
    assert (again.downloaded, again.lock) == (0, lock)
    done = install(str(tmp_path / "out"), str(tmp_path / "env"), running=TARGET._replace(abi="cp311"))
    assert Path(done.launcher).is_file()
    assert (tmp_path / "env/lib/edgeferry_runtime/cli.py").is_file()


def test_a_failed_download_leaves_no_folder(bundle_file, tmp_path):
    with pytest.raises(DownloadError):
        wheelhouse(bundle_file, tmp_path / "out", **HOUSE, cache=tmp_path / "c", pip=FakePip(stderr="x", code=1))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_left_alone(bundle_file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photo.jpg").write_text("")
    with pytest.raises(UsageError, match="no wheelhouse"):
        wheelhouse(bundle_file, tmp_path / "out", **HOUSE, cache=tmp_path / "c", pip=FakePip())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "names no architecture"),
        (["--arch", "aarch64"], "which one has the board"),
        (["--arch", "aarch64", "--python", "three"], "is no version"),
        (["--arch", "aarch64", "--python", "3.11", "--glibc", "new"], "is no version"),
        (["--for", "moon-lander"], "the bundle was made for host"),
        (["--for", "absent.toml"], "cannot be read"),
    ],
)
def test_a_board_that_is_not_said_well_enough(bundle_file, tmp_path, capsys, options, says):
    assert main(["wheelhouse", str(bundle_file), "--output", str(tmp_path / "o"), "--json", *options]) == 2
    said = json.loads(capsys.readouterr().out)
    assert says in said["error"]
    assert said["remedy"]


def test_a_profile_that_is_no_toml(bundle_file, tmp_path, capsys):
    for raw in (b"\xff\xfe", b"a = ", b"board = 5\ninterpreter = 7\npython = 'x'"):
        (tmp_path / "p.toml").write_bytes(raw)
        assert main(["wheelhouse", str(bundle_file), "--for", str(tmp_path / "p.toml")]) == 2
        assert "error" in capsys.readouterr().err


PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")  # asked before tests get homes of their own
RUN = """
import sys; sys.path[:0] = [sys.argv[1]]
import numpy, cv2
try: from ai_edge_litert.interpreter import Interpreter
except ImportError: from tflite_runtime.interpreter import Interpreter
i = Interpreter(sys.argv[2]); i.allocate_tensors()
d = i.get_input_details()[0]
i.set_tensor(d["index"], numpy.ones(d["shape"], d["dtype"])); i.invoke()
assert all(sys.argv[1] in m.__file__ for m in (numpy, cv2))
print(i.get_tensor(i.get_output_details()[0]["index"]).size)
print(cv2.resize(numpy.zeros((8, 8, 3), "u1"), (4, 4)).shape)
"""
INSTALL = """
import sys; sys.path[:0] = [sys.argv[1] + "/edgeferry-runtime.zip"]
from edgeferry_runtime.installing import install
print(install(sys.argv[1], sys.argv[2]).changed)
"""


def python_at(minor: int) -> str:
    own = [str(path) for path in sorted(PYENV.glob(f"versions/3.{minor}.*/bin/python"))]
    for found in (*own, shutil.which(f"python3.{minor}")):  # pyenv's own shims are on PATH and may refuse to run
        if found and not subprocess.run([found, "-V"], capture_output=True).returncode:
            return found
    pytest.skip(f"no Python 3.{minor} here")


@pytest.mark.slow
@pytest.mark.parametrize("minor", [7, 8, 9, 11, 13])
def test_the_real_wheels_run_here(repository, bundle_file, tmp_path, minor):
    """Everything is taken from the wheelhouse: the Python runs without its own packages (-S -E)."""
    here = Running((3, minor), os.uname().machine, (2, 36), "")
    if sys.platform != "linux" or here.arch != "x86_64":
        pytest.skip("the wheels of x86-64 Linux run on x86-64 Linux")
    python = python_at(minor)
    wheelhouse(bundle_file, tmp_path / "h", arch=here.arch, python=f"3.{minor}", glibc="2.31")
    for expected in ("True\n", "False\n"):
        argv = [python, "-S", "-E", "-c", INSTALL, str(tmp_path / "h"), str(tmp_path / "env")]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.stdout == expected, done.stderr
    model = repository / "tests" / "contract" / "data" / "tiny_int8.tflite"
    argv = [python, "-S", "-E", "-c", RUN, str(tmp_path / "env/lib"), str(model)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "4\n(4, 4, 3)\n", done.stderr
    argv = [str(tmp_path / "env/edgeferry-run"), "check", "--bundle", str(tmp_path / "h/tiny.ferry"), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert json.loads(done.stdout)["ok"], done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "pc"])
def test_the_index_has_the_real_wheels(name):
    solution = solve(CASES[name][0])
    for wheel, wanted_wheel in zip(fetch_all(solution), solution.wheels, strict=True):
        target = Running(solution.python.version, solution.arch, solution.glibc, wanted_wheel.abis[0])
        assert tag_problem(wheel.locked.filename, target) == ""

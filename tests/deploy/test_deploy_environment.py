"""Environments of wheels: when they are wanted, where they come from, and that a cut leaves none half made."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from edgeferry_deploy import environment, wheel_cache
from edgeferry_deploy.commands import name_of
from edgeferry_deploy.console import Console
from edgeferry_deploy.environment import Environment, Sources, check_sources, environment_of_wheels
from edgeferry_deploy.errors import CommandError, DeviceUnfitError, LinkLostError, SelfCheckError
from edgeferry_deploy.fact_types import Facts, Libc, PythonFound
from edgeferry_deploy.local import LocalTransport
from edgeferry_deploy.plan import plan_push, require_space
from edgeferry_deploy.prepare import preview
from edgeferry_deploy.push import push
from edgeferry_deploy.release import Blob, Record
from edgeferry_deploy.survey import Python, Survey
from edgeferry_deploy.wheel_cache import DownloadError
from edgeferry_deploy.wheelhouse import wheelhouse
from edgeferry_deploy.wheels import SolveError, board_of
from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.wheel_lock import InstallError

PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")  # asked before tests get homes of their own
CACHE = os.environ.get("EDGEFERRY_CACHE_DIR") or str(wheel_cache.cache_folder().parent)
BARE = f'#!/bin/sh\nexec {sys.executable} -S "$@"\n'  # a Python without numpy and interpreters
MAIN = """
import sys
if sys.argv[1] == "install":
    from edgeferry_runtime.cli import main
    sys.exit(main())
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="the wheels of Linux run on Linux")
pytestmark = linux


class FakePip:
    """Stands for pip: wheels with one module each, of `size` bytes that nothing can compress."""

    def __init__(self, size: int = 1000, change: dict[str, bytes] | None = None) -> None:
        self.calls, self.size, self.change = 0, size, change or {}

    def __call__(self, argv: Any) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        name, version = argv[-1].split("==")
        name = name.replace("-", "_")
        path = Path(argv[argv.index("--dest") + 1]) / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in {
                f"{name}-{version}.dist-info/WHEEL": b"Wheel-Version: 1.0\n",
                f"{name}/__init__.py": b"value = 1\n",
                f"{name}/data.bin": os.urandom(self.size),
                **self.change,
            }.items():
                archive.writestr(member, data)
        return subprocess.CompletedProcess(argv, 0, "", "")


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """Every download goes to a fake pip, every wheel into a cache of this test; companions are left out."""
    fake = FakePip()
    monkeypatch.setattr("edgeferry_deploy.wheels.COMPANIONS", ())
    monkeypatch.setenv("EDGEFERRY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(environment, "fetch", lambda wanted, target: wheel_cache.fetch(wanted, target, None, fake))
    return fake


@pytest.fixture(scope="session")
def installing_runtime(tmp_path_factory, runtime_folder, repository):
    """The real installer with the fake check."""
    folder = tmp_path_factory.mktemp("installing") / "edgeferry_runtime"
    shutil.copytree(
        repository / "runtime" / "edgeferry_runtime", folder, ignore=shutil.ignore_patterns("__pycache__")
    )
    (folder / "__main__.py").write_text(MAIN + (runtime_folder / "__main__.py").read_text())
    return folder


@pytest.fixture
def bare(make_device, bare_path):
    return make_device(bare_path(BARE))


@pytest.fixture
def ship(bare, make_bundle, installing_runtime, pip):
    def ship(*words, transport=None, **options):
        options.setdefault("runtime_folder", installing_runtime)
        with transport or bare.connect() as session:
            return push(make_bundle(*words), session, **options)

    return ship


def half_made(root):
    """What must never stay: half an environment, a half release."""
    return [name for kind in ("env", "releases") if (root / kind).is_dir()
            for name in os.listdir(root / kind) if ".tmp" in name or ".part" in name]  # fmt: skip


def test_a_board_without_numpy_gets_an_environment_of_wheels(bare, ship, pip):
    result = ship()
    env = bare.root / "env" / result.env
    assert result.switched
    assert pip.calls == 3
    assert (env / "lib/ai_edge_litert/data.bin").stat().st_size == 1000
    assert (env / "lib/numpy").is_dir() and (env / "lib/edgeferry_runtime/cli.py").is_file()
    assert result.blobs_sent == result.blobs_total == 12 + 1 + 3
    assert half_made(bare.root) == []
    # Their blobs stay as long as the environment does.
    wheels = sorted(path for path in (env / "wheels").iterdir() if path.suffix == ".whl")
    assert len(wheels) == 3
    assert all(path.stat().st_nlink == 2 and stat.S_IMODE(path.stat().st_mode) == 0o444 for path in wheels)


def test_the_second_push_sends_nothing_even_when_the_blobs_are_gone(bare, ship, pip):
    first = ship()
    for path in (bare.root / "env" / first.env / "wheels").glob("*.whl"):
        (bare.root / "blobs" / wheel_cache.sha256_of(path)).unlink()
        path.unlink()
    built = (bare.root / "env" / first.env).stat().st_ino
    again = ship()
    assert (again.blobs_sent, again.bytes_sent, again.switched, again.env) == (0, 0, False, first.env)
    assert (bare.root / "env" / first.env).stat().st_ino == built
    assert again.round_trips == 3  # look, facts, check
    assert pip.calls == 3


def test_it_is_built_in_busybox_too(tmp_path, bare_path, make_bundle, installing_runtime, pip):
    busybox = shutil.which("busybox")
    if not busybox:
        pytest.skip("no busybox here")
    path = Path(bare_path(BARE))
    for tool in ("sh", "find", "ln", "mv", "rm", "sync", "mkdir"):
        (path / tool).unlink()
        (path / tool).symlink_to(busybox)
    with LocalTransport(tmp_path / "home", path=str(path)) as transport:
        result = push(make_bundle(), transport, runtime_folder=installing_runtime)
    assert result.switched
    assert half_made(tmp_path / "home/.local/share/edgeferry") == []


def test_a_board_whose_other_answers_are_garbage(tmp_path, bare_path, make_bundle, installing_runtime, pip):
    """The facts lose what cannot be read; the survey's own Python is enough."""
    flood = r'if [ "$1" = -I ]; then while :; do printf "\033[31m\377\t\t\n"; done; fi'
    path = bare_path(BARE.replace("exec", flood + "\nexec"))
    Path(path, "uname").unlink()
    Path(path, "uname").write_text("#!/bin/sh\nprintf '\\033]0;title\\007'\n")
    Path(path, "uname").chmod(0o755)
    with LocalTransport(tmp_path / "home", path=path) as transport:
        assert push(make_bundle(), transport, runtime_folder=installing_runtime).switched


def test_another_runtime_finds_the_wheels_on_the_board(bare, ship, tmp_path, installing_runtime):
    first = ship()
    changed = tmp_path / "edgeferry_runtime"
    shutil.copytree(installing_runtime, changed)
    (changed / "new.py").write_text("new = 1\n")
    second = ship(runtime_folder=changed)
    assert second.env != first.env
    assert second.blobs_sent == 1  # the runtime
    assert (bare.root / "env" / second.env / "lib/edgeferry_runtime/new.py").exists()


def test_env_board_never_sends_wheels(bare, ship, pip):
    with pytest.raises(DeviceUnfitError, match="has no numpy"):
        ship(env="board")
    assert (pip.calls, bare.root.exists()) == (0, False)


def test_env_wheels_sends_them_to_a_board_that_has_it_all(device, make_bundle, installing_runtime, pip):
    with device.connect() as transport:
        own = push(make_bundle(), transport, runtime_folder=installing_runtime)
        wheels = push(make_bundle(), transport, runtime_folder=installing_runtime, env="wheels")
        assert own.env != wheels.env
        assert wheels.switched
    assert pip.calls == 3
    assert (device.root / "env" / wheels.env / "lib/numpy").is_dir()


def test_a_dry_run_says_what_would_come_and_writes_nothing(bare, make_bundle, installing_runtime, pip):
    with bare.connect() as transport:
        seen = preview(make_bundle(), transport, runtime_folder=installing_runtime)
    found = seen.to_dict()
    assert found["env"]["name"] == found["new_env"]
    assert any(line.startswith("ai-edge-litert ") for line in found["env"]["packages"])
    assert any("numpy" in line for line in seen.lines() if line.startswith("+ env"))
    assert len(found["send"]) == 16
    assert not bare.root.exists()
    assert json.dumps(found)


def test_a_failed_download_names_the_device_and_sends_nothing(bare, ship, monkeypatch):
    def fail(wanted, target):
        raise DownloadError(f"{wanted.name}: the package index cannot be reached", "connect this machine once")

    monkeypatch.setattr(environment, "fetch", fail)
    with bare.connect() as transport, pytest.raises(DownloadError) as caught:
        ship(transport=transport)
    assert transport.name in caught.value.message
    assert "ai-edge-litert: the package index" in caught.value.message
    assert "--offline" in caught.value.remedy
    assert not bare.root.exists()


def test_an_install_that_fails_leaves_nothing(bare, ship, pip):
    pip.change = {"../../../evil.py": b"x"}
    with pytest.raises(CommandError, match=r"assemble.*could leave the environment"):
        ship()
    assert half_made(bare.root) == []
    assert os.listdir(bare.root / "env") == []
    assert not (bare.root / "current").is_symlink()
    assert not list(bare.home.rglob("evil.py"))


CUT_INSTALL = """
import os
def install(folder, env, everything):
    os.mkdir(env + ".part-1")
    raise SystemExit("the card is full")
to_text = str
"""


def test_an_old_release_survives_a_failed_install(bare, ship, pip, tmp_path, make_bundle, installing_runtime):
    first = ship()
    broken = tmp_path / "edgeferry_runtime"
    shutil.copytree(installing_runtime, broken)
    (broken / "installing.py").write_text(CUT_INSTALL)
    with bare.connect() as transport, pytest.raises(CommandError, match="the card is full"):
        push(make_bundle(salt="2"), transport, runtime_folder=broken)
    assert bare.current() == first.release
    assert os.listdir(bare.root / "releases") == [first.release]
    assert (bare.root / "env" / first.env / "edgeferry-run").is_file()
    good = ship()
    assert good.release == first.release
    with bare.connect() as transport:
        push(make_bundle(salt="2"), transport, runtime_folder=installing_runtime)
    assert half_made(bare.root) == []


def test_a_failed_self_check_keeps_the_environment_for_the_next_try(bare, ship, pip):
    with pytest.raises(SelfCheckError):
        ship("WRONG")
    assert ship().blobs_sent < 16
    assert pip.calls == 3


def test_an_env_that_was_cut_is_built_again(bare, ship):
    result = ship()
    env = bare.root / "env" / result.env
    (env / "edgeferry-run").unlink()
    (env / "install.json").unlink()
    again = ship()
    assert (again.env, again.blobs_sent) == (result.env, 0)
    assert os.access(env / "edgeferry-run", os.X_OK)


class Cut(LocalTransport):
    """Loses its link after so many bytes of the uploads, or at the command of that number."""

    left = 10**9
    at = 10**9

    def run(self, argv, stdin=None, timeout=60.0, limit=1 << 20):
        here = self.round_trips == self.at
        if name_of(argv) == "edgeferry-receive" and stdin is not None:
            stdin = self.some(stdin)
        done = super().run(argv, stdin, timeout, limit)
        if here:
            raise LinkLostError("cut")
        return done

    def some(self, chunks):
        for chunk in chunks:
            if self.left <= 0:
                raise LinkLostError("cut")
            self.left -= len(chunk)
            yield chunk


def test_a_push_cut_during_the_wheels_resumes(tmp_path, bare_path, make_bundle, installing_runtime, pip):
    pip.size, path, home = 500_000, bare_path(BARE), tmp_path / "home"
    transport = Cut(home, path=path)
    transport.left = 1_000_000
    with pytest.raises(LinkLostError):
        push(make_bundle(), transport, runtime_folder=installing_runtime)
    parts = [part for part in (home / ".local/share/edgeferry/blobs").iterdir() if part.suffix == ".part"]
    there = sum(part.stat().st_size for part in parts)
    assert there > 500_000
    whole = LocalTransport(home, path=path)
    result = push(make_bundle(), whole, runtime_folder=installing_runtime)
    assert result.switched
    assert result.bytes_sent < 1_500_000 + 600_000 - 500_000
    assert pip.calls == 3


def test_a_push_cut_at_any_command_leaves_nothing_half_and_the_next_succeeds(
    tmp_path, bare_path, make_bundle, installing_runtime, pip
):
    path = bare_path(BARE)
    for at in range(3, 30):  # the three looks before write nothing
        transport = Cut(tmp_path / str(at), path=path)
        transport.at = at
        try:
            push(make_bundle(), transport, runtime_folder=installing_runtime)
        except LinkLostError:
            again = LocalTransport(transport.folder, path=path)
            assert push(make_bundle(), again, runtime_folder=installing_runtime).release
            assert half_made(transport.folder / ".local/share/edgeferry") == []
        else:
            break
    assert at >= 9  # lock, send small, send large, publish, assemble, check, switch


@pytest.fixture
def house(make_bundle, tmp_path):
    """A wheelhouse for this very machine."""
    here = {"arch": os.uname().machine, "python": f"3.{sys.version_info[1]}", "glibc": "2.28"}
    wheelhouse(make_bundle(), tmp_path / "house", **here, cache=tmp_path / "c", pip=FakePip())
    return tmp_path / "house"


def test_offline_takes_everything_from_the_folder(bare, ship, house, pip):
    result = ship(offline=house)
    assert result.switched
    assert pip.calls == 0
    assert (bare.root / "env" / result.env / "lib/numpy/data.bin").is_file()
    assert ship(offline=house).blobs_sent == 0


def change_lock(house, **fields):
    lock = json.loads((house / "lock.json").read_text())
    (house / "lock.json").write_text(json.dumps({**lock, **fields}))


def wheel_of(house, package):
    return next(path for path in house.glob("*.whl") if path.name.startswith(package))


SPOILED = {
    "no lock": (lambda house: (house / "lock.json").unlink(), InstallError, "lock.json: cannot be read"),
    "no json": (lambda house: (house / "lock.json").write_text("\x1b[31m"), InstallError, "lock.json"),
    "another Python": (lambda house: change_lock(house, python="3.5"), DeviceUnfitError, "is for Python 3.5"),
    "another arch": (lambda house: change_lock(house, arch="riscv64"), DeviceUnfitError, "on riscv64, the"),
    "a changed wheel": (
        lambda house: wheel_of(house, "numpy").write_bytes(b"x" * wheel_of(house, "numpy").stat().st_size),
        DownloadError,
        "not those of the lock",
    ),
    "a missing wheel": (lambda house: wheel_of(house, "numpy").unlink(), DownloadError, "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_a_folder_that_does_not_fit_is_refused(bare, ship, house, case):
    spoil, error, says = SPOILED[case]
    spoil(house)
    with pytest.raises(error, match=says) as caught:
        ship(offline=house)
    assert "\x1b" not in str(caught.value)
    assert caught.value.remedy
    assert not bare.root.exists()


def test_wheels_for_another_board_or_bundle_are_named(bare, ship, house):
    lock = json.loads((house / "lock.json").read_text())
    for wheel in lock["wheels"]:
        if wheel["name"] == "numpy":
            path = house / wheel["filename"]
            wheel["filename"] = "numpy-2.4.6-cp39-cp39-manylinux_2_99_x86_64.whl"
            path.rename(house / wheel["filename"])
        if wheel["name"] == "ai-edge-litert":
            wheel["name"] = "tflite-runtime"
    (house / "lock.json").write_text(json.dumps(lock))
    with pytest.raises(DeviceUnfitError) as caught:
        ship(offline=house)
    assert "is for cp39-cp39" in caught.value.message
    assert "the bundle asks for ai-edge-litert" in caught.value.message
    assert "edgeferry wheelhouse BUNDLE --arch" in caught.value.remedy


def test_choices_that_contradict_each_other(tmp_path):
    with pytest.raises(UsageError, match="takes nothing from --offline"):
        check_sources(Sources("board", tmp_path))
    with pytest.raises(UsageError, match="none of auto, wheels, board"):
        check_sources(Sources("conda"))
    with pytest.raises(InstallError):
        check_sources(Sources("auto", tmp_path))
    check_sources(Sources())


PI_32 = Facts(
    "pi",
    arch="aarch64",
    userland_bits=32,
    libc=Libc("glibc", (2, 36)),
    pythons=(PythonFound("/usr/bin/python3", (3, 11, 2), 32),),
)


def test_what_the_distribution_must_bring_is_one_command(contents, pip):
    runtime = Blob("-", "a" * 64, 500_000)
    arguments = (contents[0], runtime, Sources(), "pi@kitchen", Console(quiet=True))
    with pytest.raises(DeviceUnfitError, match="on pi@kitchen has no numpy and cv2") as caught:
        environment_of_wheels(board_of(PI_32), *arguments)
    assert caught.value.remedy.endswith("sudo apt install --no-install-recommends python3-numpy python3-opencv")
    assert pip.calls == 0
    there = dataclasses.replace(PI_32, pythons=(PythonFound("/p", (3, 11, 2), 32, ("numpy", "cv2")),))
    found = environment_of_wheels(board_of(there), *arguments)
    assert found.packages == ("tflite-runtime 2.14.0",)
    assert any("64-bit" in note for note in found.notes)


def test_a_board_no_wheel_runs_on_is_told_why(contents, pip):
    board = board_of(dataclasses.replace(PI_32, libc=Libc("musl")))
    with pytest.raises(SolveError, match="pi@kitchen") as caught:
        environment_of_wheels(
            board, contents[0], Blob("-", "a" * 64, 1), Sources(), "pi@kitchen", Console(quiet=True)
        )
    assert any("musl" in reason for reason in caught.value.reasons)
    assert pip.calls == 0


def test_the_profiles_versions_are_honoured(contents, pip):
    values = {"interpreter": {"package": "ai-edge-litert", "version": ">=2.1,<2.2", "constraints": ["numpy<2"]}}
    manifest = dataclasses.replace(contents[0], profile={"name": "pi", "values": values})
    board = board_of(dataclasses.replace(PI_32, arch="x86_64", userland_bits=64))
    found = environment_of_wheels(
        board, manifest, Blob("-", "a" * 64, 1), Sources(), "pi@kitchen", Console(quiet=True)
    )
    assert found.packages[:2] == ("ai-edge-litert 2.1.6", "numpy 1.26.4")


BOOKWORM = Facts(
    "pi",
    arch="aarch64",
    userland_bits=64,
    libc=Libc("glibc", (2, 36)),
    pythons=(
        PythonFound("/usr/bin/python3.13", (3, 13, 1), 64, ("venv",)),
        PythonFound("/usr/bin/python3", (3, 11, 2), 64, ("numpy", "cv2")),
        PythonFound("/usr/bin/python3.6", (3, 6, 1), 64),
    ),
)


def test_the_surveys_python_comes_first_and_knows_best():
    python = Python("/usr/bin/python3", (3, 11, 2), frozenset({"numpy"}), "aarch64", 32, "2.31")
    board = board_of(BOOKWORM, python)
    assert [one.path for one in board.pythons] == ["/usr/bin/python3", "/usr/bin/python3.13"]
    assert board.pythons[0].modules == {"numpy", "cv2"}
    assert (board.userland, board.libc_version) == ("armv7l", (2, 31))
    assert [one.path for one in board_of(BOOKWORM, python, only=True).pythons] == ["/usr/bin/python3"]
    behind_a_shim = dataclasses.replace(python, path="/opt/python3.11")
    assert len(board_of(BOOKWORM, behind_a_shim).pythons) == 2


@pytest.mark.parametrize("python", [None, Python("/p"), Python("/p", (3, 6, 1)), Python("/p", (3,))])
def test_a_python_that_will_not_do_is_passed_over(python):
    assert [one.version for one in board_of(BOOKWORM, python).pythons] == [(3, 13), (3, 11)]
    assert board_of(BOOKWORM, python, only=True).pythons == ()


def test_facts_that_know_nothing():
    board = board_of(Facts("pi"))
    assert (board.arch, board.libc, board.libc_version, board.pythons) == ("", "", (0, 0), ())


def test_space_counts_wheels_what_they_unpack_to_and_packed_forms():
    runtime, wheel = Blob("-", "a" * 64, 500_000), Blob("w.whl", "b" * 64, 50_000_000, path=Path("w.whl"))
    model = Blob("model.tflite", "c" * 64, 1_000_000)
    env = Environment("e" * 12, Python("/py"), runtime, wheels=(wheel,))
    record = Record("digits", "d" * 64, env.name, "/py", "me", "now")
    plan = plan_push(Survey("/r", free_kib=200_000), record, "digits-aaaaaaaaaaaa", (model,), env)
    assert plan.space > 50e6 * 4
    with pytest.raises(DeviceUnfitError, match="this push needs 2"):
        require_space(Survey("/r", free_kib=200_000), plan, "pi")
    there = plan_push(Survey("/r", envs={env.name: True}), record, "digits-aaaaaaaaaaaa", (model,), env)
    assert 1.8e6 < there.space < 2e6


def test_the_runtimes_own_files_are_compiled(bare, ship):
    env = bare.root / "env" / ship().env
    own = sorted(path.stem for path in (env / "lib/edgeferry_runtime").glob("*.py"))
    compiled = {path.name.split(".")[0] for path in (env / "lib/edgeferry_runtime/__pycache__").glob("*.pyc")}
    assert set(own) <= compiled
    assert not (env / "lib/numpy/__pycache__").exists()


def test_the_boards_own_environment_is_compiled_too(device, make_bundle, runtime_folder):
    with device.connect() as transport:
        result = push(make_bundle(), transport, runtime_folder=runtime_folder)
    names = [path.name for path in (device.root / "env" / result.env).rglob("*.pyc")]
    assert any(name.startswith("__main__.") for name in names)
    for path in (device.root / "env" / result.env).rglob("*.pyc"):
        path.unlink()
    with device.connect() as transport:
        assert push(make_bundle(), transport, runtime_folder=runtime_folder).blobs_sent == 0


@pytest.mark.slow
@pytest.mark.parametrize("minor", [7, 8, 9, 11, 13])
def test_a_board_fresh_from_its_installer(tmp_path, bundle_of_tiny, monkeypatch, minor):
    """A real bare Python, the real wheels, the real self-check."""
    if os.uname().machine != "x86_64":
        pytest.skip("written for the wheels of x86-64")
    found = sorted(PYENV.glob(f"versions/3.{minor}.*/bin/python3.{minor}"))
    if not found:
        pytest.skip(f"no Python 3.{minor} here")
    monkeypatch.setenv("EDGEFERRY_CACHE_DIR", CACHE)
    home = tmp_path / "home"
    venv = home / ".local/share/edgeferry/venv"
    subprocess.run([found[0], "-m", "venv", "--without-pip", venv], check=True)
    python = str(venv / "bin" / "python3")  # named, for this machine has others
    with LocalTransport(home) as transport:
        result = push(bundle_of_tiny, transport, any_arch=True, python=python)
        assert result.check.frames == 8
        assert result.check.backend.startswith("ai-edge-litert" if minor >= 9 else "tflite-runtime")
        assert result.python == python
        again = push(bundle_of_tiny, transport, any_arch=True, python=python)
        assert (again.blobs_sent, again.switched) == (0, False)


@pytest.fixture
def bundle_of_tiny(contents, tmp_path):
    from edgeferry_runtime.bundle import write_bundle

    write_bundle(tmp_path / "tiny.ferry", *contents)
    return tmp_path / "tiny.ferry"

"""What the fault tests share: a board behind OpenSSH in a namespace, releases for it, and what must hold after."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

from edgeferry_deploy.connect import open_transport
from edgeferry_deploy.errors import DeployError
from edgeferry_deploy.hostkeys import store
from edgeferry_deploy.push import PushResult, push
from edgeferry_deploy.release import Record
from edgeferry_deploy.ssh import fetch_host_key
from edgeferry_deploy.target import parse_target
from edgeferry_deploy.transport import Transport
from edgeferry_runtime.bundle import Bundle, file_entry, write_bundle
from edgeferry_runtime.manifest import Manifest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT = Path(".local/share/edgeferry")
OLD, NEW = "old", "new"
# Every command of a push that sends something in each form, in order; a test compares it with what the board saw.
STEPS = ("survey", "lock", "receive-many", "receive", "rebuild", "publish", "assemble", "check", "switch")


def load(path: Path) -> ModuleType:
    """A module that is no part of a package, once."""
    name = f"edgeferry_lab_{path.parent.name}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


link, sshd = (load(REPOSITORY / "bench" / name) for name in ("link.py", "sshd.py"))
FAKE_MAIN = load(REPOSITORY / "tests" / "deploy" / "conftest.py").FAKE_MAIN


@dataclass
class Goods:
    """What is pushed: bundles whose first word tells the fake runtime what to do, and that runtime."""

    folder: Path
    manifest: Manifest
    bundles: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._releases: dict[str, tuple[str, dict[str, bytes]]] = {}
        self.runtime = self.folder / "edgeferry_runtime"
        self.runtime.mkdir(parents=True)
        (self.runtime / "__init__.py").touch()
        (self.runtime / "__main__.py").write_text(FAKE_MAIN)
        self.bundle(OLD)
        self.bundle(NEW)

    def bundle(self, name: str, word: str = "FINE") -> Path:
        """A bundle with a blob that is sent whole, one that is sent compressed, and small ones."""
        if name not in self.bundles:
            dice = random.Random(name)
            members = {member: dice.randbytes(200) for member in self.manifest.files}
            members["model-int8.tflite"] = f"{word} {name} ".encode() + dice.randbytes(300_000)
            members["labels.txt"] = "".join(f"{name} label {n % 1000}\n" for n in range(24_000)).encode()
            files = {member: file_entry(data) for member, data in members.items()}
            self.bundles[name] = self.folder / f"{name}.ferry"
            write_bundle(self.bundles[name], replace(self.manifest, name="lab", files=files), members)
        return self.bundles[name]

    def release(self, name: str) -> tuple[str, dict[str, bytes]]:
        """The id a bundle has on a board, and its members."""
        if name not in self._releases:
            path = self.bundle(name)
            with Bundle.open(str(path)) as bundle:
                version = bundle.manifest.version
            with zipfile.ZipFile(path) as archive:
                members = {member: archive.read(member) for member in archive.namelist()}
            self._releases[name] = f"lab-{version[:12]}", members
        return self._releases[name]

    def push(self, name: str, transport: Transport, **options) -> PushResult:
        return push(self.bundle(name), transport, runtime_folder=self.runtime, **options)


@dataclass
class Board:
    """A home on this machine that plays a board's, whatever way leads there."""

    home: Path
    goods: Goods

    @property
    def root(self) -> Path:
        return self.home / ROOT

    def current(self) -> str:
        """Which bundle is current, after every byte of it was compared and it has run; fails otherwise."""
        release = self.root / os.readlink(self.root / "current")
        names = {self.goods.release(name)[0]: name for name in self.goods.bundles}
        name = names[release.name]
        for member, data in self.goods.release(name)[1].items():
            assert (release / member).read_bytes() == data, f"{member} of {name} is not whole"
        record = Record.from_json((release / "release.json").read_text())
        assert record is not None, f"the record of {name} is not whole"
        launcher = self.root / "env" / record.env / "edgeferry-run"
        done = subprocess.run([launcher, "check", "--bundle", release, "--json"], capture_output=True, text=True)
        assert done.returncode == 0, f"{name} does not run: {done.stdout}{done.stderr}"
        return name

    def leftovers(self) -> list[str]:
        """What nobody needs any more, and a lock that is held."""
        found = [
            path
            for pattern in ("*.part", "*.tmp-*", ".new-*", "*.new", "*.new-*")
            for path in self.root.rglob(pattern)
        ]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        found += [path for path in (self.root / "lock").glob("[0-9]*") if path.read_text().startswith(boot)]
        found += [path.parent for path in self.root.glob("releases/*/") if not (path / "release.json").exists()]
        return sorted(str(path.relative_to(self.root)) for path in found)

    def settle(self, transport: Transport) -> None:
        """The next push succeeds, and nothing is left behind."""
        result = self.goods.push(NEW, transport)
        assert result.release == self.goods.release(NEW)[0]
        assert self.current() == NEW
        assert not (left := self.leftovers()), f"left behind: {left}"


class Lab(Board):
    """A board behind a link, with the old release current."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        super().__init__(folder / "home", Goods(folder / "goods", manifest))
        self.link = link.Link(seed=1)
        try:
            self.sshd = sshd.Sshd(folder / "lab", self.home, self.link.there, self.link.enter())
        except BaseException:
            self.link.close()
            raise
        self.enrol()
        with self.connect() as transport:
            self.goods.push(OLD, transport)
        self.sshd.commands()
        self._fresh = folder / "fresh"
        subprocess.run(["cp", "-a", self.root, self._fresh], check=True)

    def enrol(self) -> None:
        """Trust the key it shows now."""
        target = parse_target(self.sshd.target)
        store(target, fetch_host_key(target))

    def connect(self) -> Transport:
        return open_transport(self.sshd.target, self.sshd.identity)

    def push(self, name: str = NEW, **options) -> PushResult:
        with self.connect() as transport:
            return self.goods.push(name, transport, **options)

    def fails(self, name: str = NEW, **options) -> DeployError | None:
        """The error a push ends with, None when it succeeds all the same."""
        try:
            self.push(name, **options)
        except DeployError as error:
            assert error.message
            assert error.remedy, f"no remedy: {error.message}"
            return error
        return None

    def reset(self) -> None:
        """The board as it was: the old release current, nothing in its way."""
        self.link.set()
        sshd.kill(self.sshd.sessions())
        for hook in self.sshd.lab.glob("*-*"):
            if hook.name.startswith(("before-", "after-", "did-")):
                hook.unlink()
        self.empty()
        self.root.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", self._fresh, self.root], check=True)
        shutil.rmtree(os.environ["EDGEFERRY_CACHE_DIR"], ignore_errors=True)
        self.sshd.commands()

    def empty(self) -> None:
        """The board as it came from its installer."""
        subprocess.run(["chmod", "-R", "u+w", self.root], check=False, capture_output=True)
        shutil.rmtree(self.root, ignore_errors=True)

    def quiet(self, seconds: float = 10.0) -> list[int]:
        """Sessions that are still served after that time."""
        deadline = time.monotonic() + seconds
        while (found := self.sshd.sessions()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def settle(self, transport: Transport | None = None) -> None:
        """The next push over the link succeeds, and nothing is left behind."""
        with transport or self.connect() as way:
            super().settle(way)

    def close(self) -> None:
        self.sshd.stop()
        self.link.close()


class Outcomes:
    """One row a case: what was done, what the push said, what the board runs."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []

    def add(self, case: str, error: DeployError | str | None, current: str) -> None:
        said = error if isinstance(error, str) else "succeeds" if error is None else type(error).__name__
        self.rows.append((case, said, current))
        print(f"| {case} | {said} | {current} |")

    def close(self) -> None:
        """Add the rows to the table that EDGEFERRY_FAULTS names."""
        path = os.environ.get("EDGEFERRY_FAULTS")
        if path:
            with Path(path).open("a", encoding="utf-8") as file:
                file.writelines(f"| {' | '.join(row)} |\n" for row in self.rows)


def obstacle() -> str:
    """Why the lab cannot be had here; empty when it can."""
    return sshd.obstacle() or link.obstacle()


@contextlib.contextmanager
def workstation(folder: Path):
    """Known hosts and sent blobs of our own while it lasts; no agent."""
    changed = {"EDGEFERRY_CONFIG_DIR": str(folder / "config"), "EDGEFERRY_CACHE_DIR": str(folder / "cache")}
    before = {name: os.environ.get(name) for name in (*changed, "SSH_AUTH_SOCK")}
    os.environ.update(changed)
    os.environ.pop("SSH_AUTH_SOCK", None)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

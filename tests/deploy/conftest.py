"""A bundle that can be told to misbehave, a runtime that obeys it, and a device on either transport."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from edgeferry_deploy.connect import open_transport
from edgeferry_deploy.hostkeys import store
from edgeferry_deploy.ssh import fetch_host_key
from edgeferry_deploy.target import parse_target
from edgeferry_deploy.transport import Transport
from edgeferry_deploy.virtual_device import VirtualDevice, virtual_device
from edgeferry_runtime.bundle import file_entry, write_bundle
from edgeferry_runtime.manifest import Golden, Manifest, Requires, TensorSpec, Tolerance, Variant
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Preprocessing

# The model's first word tells the fake runtime what to do with the check.
FAKE_MAIN = """
import hashlib, json, os, signal, sys, time
folder = sys.argv[sys.argv.index("--bundle") + 1]
with open(os.path.join(folder, "manifest.json")) as file:
    manifest = json.load(file)
error = None
for member, entry in manifest["files"].items():
    with open(os.path.join(folder, member), "rb") as file:
        if hashlib.sha256(file.read()).hexdigest() != entry["sha256"]:
            error = "member %s is damaged" % member
with open(os.path.join(folder, manifest["variants"][0]["file"]), "rb") as file:
    word = file.read(64).split()[0].decode()
if word == "GARBAGE":
    print("Segmentation fine, thank you")
    sys.exit(0)
if word == "ENDLESS":
    while True:
        print("all work and no play " * 50)
if word == "HANG":
    time.sleep(600)
if word == "CRASH":
    os.kill(os.getpid(), signal.SIGSEGV)
if word == "MUTE":
    sys.exit(5)
off = 0.5 if word == "WRONG" else 0.001
if word == "WRONG":
    error = None
if word == "ESCAPES":
    error = "\\x1b[31mred\\x1b[0m \\x07 \\x1b]0;title\\x07 alert"
print("interpreters like to talk")
print(json.dumps({
    "ok": error is None and off < 0.1, "bundle": "0" * 64 if word == "IMPOSTOR" else manifest["version"],
    "variant": "int8", "backend": "fake 1.0", "frames": 8, "error": error, "remedy": None,
    "outputs": [
        {"name": "scores", "max_abs": off, "max_abs_tolerance": 0.1, "rms": off / 2, "rms_tolerance": 0.05},
    ],
}))
sys.exit(0 if error is None and off < 0.1 else 1)
"""

TOOLS = """
awk cat chmod cut date df dirname du env find head kill ln mkdir mv printf readlink rm sh sha256sum sleep sync tail
timeout tr true uname wc
""".split()  # noqa: SIM905


@dataclasses.dataclass
class Device:
    """A device a test can look into: its transport, and the folder that is its home."""

    kind: str
    target: str
    home: Path
    identity: Path | None
    connect: Callable[[], Transport]

    @property
    def root(self) -> Path:
        return self.home / ".local" / "share" / "edgeferry"

    def current(self) -> str:
        return os.path.basename(os.readlink(self.root / "current"))

    def previous(self) -> str:
        return os.path.basename(os.readlink(self.root / "previous"))

    def releases(self) -> list[str]:
        return sorted(os.listdir(self.root / "releases"))


@pytest.fixture(scope="session")
def runtime_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fake") / "edgeferry_runtime"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "__main__.py").write_text(FAKE_MAIN)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "junk.pyc").write_bytes(b"junk")
    return folder


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write NAME.ferry whose model begins with `word` and has `size` bytes."""
    folder = tmp_path_factory.mktemp("bundles")

    def make(word: str = "FINE", *, name: str = "digits", size: int = 4000, salt: str = "1") -> Path:
        model = f"{word} {salt} ".encode().ljust(size, b"\x5a")
        members = {"model.tflite": model, "scores.npy": b"golden outputs", "labels.txt": b"zero\none\n"}
        members |= {f"golden/{index}.npy": b"frame %d" % index for index in range(8)}
        spec = TensorSpec("scores", "scores:0", (1, 2), "float32")
        manifest = Manifest(
            name=name,
            profile={"name": "test"},
            requires=Requires((), "", 0, ""),
            preprocessing=Preprocessing(8, 8),
            postprocessing=Postprocessing("classify", {"scores": "scores"}, labels="labels.txt"),
            variants=(
                Variant(
                    name="int8",
                    file="model.tflite",
                    scheme="int8",
                    delegate="",
                    backends=("ai-edge-litert",),
                    inputs=(TensorSpec("image", "image:0", (1, 8, 8, 3), "float32", "NHWC"),),
                    outputs=(spec,),
                    golden={"scores": "scores.npy"},
                    tolerance={"scores": Tolerance(0.1, 0.05)},
                ),
            ),
            golden=Golden(
                8, "rgb", tuple(f"golden/{index}.npy" for index in range(8)), {}, {"scores": "scores.npy"}
            ),
            files={member: file_entry(data) for member, data in members.items()},
            provenance={},
        )
        path = folder / f"{name}-{word}-{size}-{salt}.ferry"
        write_bundle(path, manifest, members)
        return path

    return make


@pytest.fixture(autouse=True)
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the known_hosts, the keys or the agent of the user who runs it."""
    home = tmp_path / "workstation"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("EDGEFERRY_CONFIG_DIR", str(home / "config"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


@pytest.fixture(scope="session")
def bare_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A PATH with a POSIX userland and, when a script for it is given, a python3."""

    def make(python: str | None = None) -> str:
        folder = tmp_path_factory.mktemp("bin")
        for tool in TOOLS:
            found = shutil.which(tool)
            if found:
                (folder / tool).symlink_to(found)
        if python is not None:
            (folder / "python3").write_text(python)
            (folder / "python3").chmod(0o755)
        return str(folder)

    return make


@pytest.fixture
def start_device(tmp_path: Path) -> Iterator[Callable[..., VirtualDevice]]:
    """Start virtual devices that end with the test."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(home: Path | None = None, *, enrolled: bool = True, **options: str) -> VirtualDevice:
            device = stack.enter_context(virtual_device(home or tmp_path / "home", **options))
            if enrolled:
                target = parse_target(device.target)
                store(target, fetch_host_key(target))
            return device

        yield start


@pytest.fixture(params=["local", "ssh"])
def make_device(
    request: pytest.FixtureRequest, tmp_path: Path, start_device: Callable[..., VirtualDevice]
) -> Callable[..., Device]:
    """A device on either transport; `path` is its whole PATH."""

    def make(path: str | None = None) -> Device:
        home = tmp_path / "home"
        if request.param == "local":
            from edgeferry_deploy.local import LocalTransport

            target = f"local:{home}"
            return Device("local", target, home, None, lambda: LocalTransport(home, path=path))
        started = start_device(home, **({"path": path} if path is not None else {}))
        return Device(
            "ssh", started.target, home, started.identity, lambda: open_transport(started.target, started.identity)
        )

    return make


@pytest.fixture
def device(make_device: Callable[..., Device]) -> Device:
    return make_device()


@pytest.fixture(scope="session")
def read_json() -> Callable[[Path], dict[str, object]]:
    return lambda path: json.loads(path.read_text())

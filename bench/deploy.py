"""Pushing beside scp, rsync and SFTP: on loopback, over a slow link, with little that is new, to many at once.

make bench-deploy    or bench/deploy.py --quick --only a,d for a first look (root, Linux, openssh-server)
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import deploy_material
import link
import paramiko
import sshd
from deploy_material import Material
from edgeferry_deploy.connect import open_transport
from edgeferry_deploy.delta import plan_delivery
from edgeferry_deploy.hostkeys import store
from edgeferry_deploy.push import PushResult, push
from edgeferry_deploy.release import Blob
from edgeferry_deploy.ssh import fetch_host_key
from edgeferry_deploy.target import parse_target
from edgeferry_deploy.transfer import Upload, send_blobs, slices
from table import Row, report

LOOPBACK_BYTES = 64_000_000
SLOW_BYTES = 8_000_000
SLOW = {"delay_ms": 10.0, "rate_mbit": 20.0}  # 20 ms there and back
MANY = 20
NAMES = {
    "scp": "OpenSSH scp",
    "scp-gcm": "OpenSSH scp -c aes128-gcm@openssh.com",
    "rsync": "rsync -e ssh",
    "sftp": "paramiko sftp.put",
}


class Contenders:
    """Ways to bring one file to a board, each from no connection to the file's last byte there."""

    def __init__(self, board: sshd.Sshd, size: int) -> None:
        self.board, self.size = board, size
        self.file = board.lab / "cargo"
        self.file.write_bytes(os.urandom(size))
        self._blob = Blob("cargo", hashlib.sha256(self.file.read_bytes()).hexdigest(), size)
        ssh = ["-i", str(board.identity), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        self._ssh = [*ssh, "-o", "LogLevel=ERROR"]

    def ways(self) -> dict[str, Callable[[], None]]:
        """By name; rsync only where it is installed."""
        ways = {"ours": self.ours, "ours-kept": self.kept, "scp": self.scp, "scp-gcm": self.scp_gcm}
        ways["sftp"] = self.sftp
        if shutil.which("rsync"):
            ways["rsync"] = self.rsync
        return ways

    def ours(self) -> None:
        with open_transport(self.board.target, self.board.identity) as transport:
            transport.upload(slices(self.file.read_bytes()), str(self.board.home / "ours"), timeout=600)

    def kept(self) -> None:
        """As a push does it: packed where that pays, hashed and synced there."""
        root, data = self.board.home / "root", self.file.read_bytes()
        shutil.rmtree(root, ignore_errors=True)
        with open_transport(self.board.target, self.board.identity) as transport:
            send_blobs(transport, str(root), sys.executable, [Upload(self._blob)], lambda _: data)

    def scp(self, *options: str) -> None:
        place = f"root@{self.board.address}:{self.board.home / 'scp'}"
        self._run("scp", "-q", *options, "-P", str(self.board.port), *self._ssh, str(self.file), place)

    def scp_gcm(self) -> None:
        self.scp("-c", "aes128-gcm@openssh.com")

    def rsync(self) -> None:
        place = self.board.home / "rsync"
        place.unlink(missing_ok=True)
        shell = " ".join(["ssh", "-p", str(self.board.port), *self._ssh])
        self._run("rsync", "-e", shell, str(self.file), f"root@{self.board.address}:{place}")

    def sftp(self) -> None:
        with paramiko.Transport((self.board.address, self.board.port)) as session:
            session.connect(username="root", pkey=paramiko.PKey.from_path(self.board.identity))
            with paramiko.SFTPClient.from_transport(session) as client:
                client.put(str(self.file), str(self.board.home / "sftp"))

    def _run(self, *argv: str) -> None:
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def in_turns(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, taken in turns after one round to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if number:
                taken[name].append(time.perf_counter() - began)
    return taken


@contextmanager
def board(over: link.Link | None = None) -> Iterator[sshd.Sshd]:
    """A board with its key enrolled."""
    with tempfile.TemporaryDirectory() as folder:
        place = (over.there, over.enter()) if over else ("127.0.0.1", ())
        with sshd.Sshd(Path(folder) / "lab", Path(folder) / "home", *place) as found:
            target = parse_target(found.target)
            store(target, fetch_host_key(target))
            yield found


def pushed(found: sshd.Sshd, bundle: Path, root: Path | None = None) -> PushResult:
    """Push over a connection of its own."""
    with open_transport(found.target, found.identity) as transport:
        return push(bundle, transport, root=str(root or found.home / "root"))


def loopback(_: Material, rounds: int) -> list[Row]:
    """a: a file of 64 MB on loopback."""
    with board() as found:
        contenders = Contenders(found, LOOPBACK_BYTES)
        taken = in_turns(contenders.ways(), rounds)
    size = f"{LOOPBACK_BYTES / 1e6:.0f} MB on loopback"
    rows = [
        Row(f"{size}: ours / {NAMES[name]}, rate", ratios(taken[name], taken["ours"]), "ratio", goal, "higher")
        for name, goal in (("scp", 1.5), ("scp-gcm", None), ("sftp", None), ("rsync", None))
        if name in taken
    ]
    kept = ratios(taken["scp"], taken["ours-kept"])
    rows.append(Row(f"{size}: ours hashed and synced / {NAMES['scp']}, rate", kept, "ratio", None, "higher"))
    for name, seconds in taken.items():
        rates = [LOOPBACK_BYTES / 1e6 / each for each in seconds]
        rows.append(Row(f"{size}: {name}", rates, "MB/s", None, "higher"))
    return rows


def ratios(theirs: list[float], mine: list[float]) -> list[float]:
    return [a / b for a, b in zip(theirs, mine, strict=True)]


def slow(_: Material, rounds: int) -> list[Row]:
    """b: a file of 8 MB over 20 ms and 20 Mbit."""
    with link.Link() as over, board(over) as found:
        over.set(**SLOW)
        taken = in_turns(Contenders(found, SLOW_BYTES).ways(), rounds)
    bound = SLOW_BYTES * 8 / SLOW["rate_mbit"] / 1e6
    names = {"ours": "ours", "ours-kept": "ours, hashed and synced", **NAMES}
    return [
        Row(
            f"{SLOW_BYTES / 1e6:.0f} MB at 20 ms, 20 Mbit, from connecting on, time / line rate: {names[name]}",
            [each / bound for each in seconds],
            "ratio",
            1.15 if name == "ours" else None,
            "lower",
        )
        for name, seconds in taken.items()
    ]


def little(material: Material, rounds: int) -> list[Row]:
    """c: nothing new, and a model that was calibrated again, over 20 ms and 20 Mbit."""
    bundles = {name: getattr(material, name) for name in ("first", "again")}
    models, sizes = {}, {}
    for name, path in bundles.items():
        with zipfile.ZipFile(path) as archive:
            models[name] = archive.read(next(n for n in archive.namelist() if n.endswith(".tflite")))
            sizes[name] = sum(entry.file_size for entry in archive.infolist())
    base = {hashlib.sha256(models["first"]).hexdigest(): models["first"]}
    form = plan_delivery(models["again"], len(models["again"]), base)
    wire: dict[str, list[float]] = {name: [] for name in ("new", "nothing", "again")}
    seconds: dict[str, list[float]] = {name: [] for name in wire}
    with link.Link() as over, board(over) as found:
        over.set(**SLOW)
        for _ in range(rounds):
            shutil.rmtree(found.home / "root", ignore_errors=True)
            shutil.rmtree(Path(os.environ["EDGEFERRY_CACHE_DIR"]), ignore_errors=True)
            for name, bundle in (("new", "first"), ("nothing", "first"), ("again", "again")):
                over.counts()
                began = time.perf_counter()
                result = pushed(found, bundles[bundle])
                seconds[name].append(time.perf_counter() - began)
                wire[name].append(over.counts()["to_device"])
                print(name, result.round_trips, "round trips", result.seconds, file=sys.stderr)
    bound = sizes["first"] * 8 / SLOW["rate_mbit"] / 1e6
    return [
        Row(
            "nothing new at 20 ms, 20 Mbit: bytes to the board",
            [n / 1e3 for n in wire["nothing"]],
            "kB",
            20,
            "lower",
        ),
        Row("nothing new at 20 ms, 20 Mbit: time", seconds["nothing"], "s", 2.0, "lower"),
        Row(
            "calibrated again: bytes of the model / its size",
            [form.size / len(models["again"])],
            "ratio",
            0.03,
            "lower",
        ),
        Row(
            "calibrated again: all bytes to the board / bundle",
            [n / sizes["again"] for n in wire["again"]],
            "ratio",
            None,
            "lower",
        ),
        Row("calibrated again at 20 ms, 20 Mbit: time", seconds["again"], "s", None, "lower"),
        Row(
            "first push at 20 ms, 20 Mbit: time / bundle at line rate",
            [s / bound for s in seconds["new"]],
            "ratio",
            None,
            "lower",
        ),
    ]


def many(material: Material, rounds: int) -> list[Row]:
    """d: 20 boards at once behind one link of 20 ms and 20 Mbit."""
    whole, wire = [], []
    with link.Link() as over, board(over) as found:
        over.set(**SLOW)
        for number in range(rounds):
            failed: list[BaseException] = []

            def one(index: int, number: int = number, failed: list[BaseException] = failed) -> None:
                try:
                    pushed(found, material.first, found.home / f"root-{number}-{index}")
                except BaseException as error:
                    failed.append(error)

            over.counts()
            began = time.perf_counter()
            threads = [threading.Thread(target=one, args=(index,)) for index in range(MANY)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            whole.append(time.perf_counter() - began)
            wire.append(over.counts()["to_device"])
            if failed:
                raise failed[0]
    bits = SLOW["rate_mbit"] * 1e6
    with zipfile.ZipFile(material.first) as archive:
        size = MANY * sum(entry.file_size for entry in archive.infolist())
    bounds = [seconds / (size * 8 / bits) for seconds in whole]
    return [
        Row(f"{MANY} boards at once: time / their bytes over the bandwidth", bounds, "ratio", 1.6, "lower"),
        Row(f"{MANY} boards at once: time", whole, "s", None, "lower"),
        Row(
            f"{MANY} boards at once: bytes on the wire / bytes of the bundles",
            [n / size for n in wire],
            "ratio",
            None,
            "lower",
        ),
    ]


GROUPS = {  # letter: (what is measured, rounds, rounds of --quick)
    "a": (loopback, 11, 3),
    "b": (slow, 3, 1),
    "c": (little, 5, 2),
    "d": (many, 2, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument(
        "--only",
        default=",".join(GROUPS),
        metavar="a,b",
        help="; ".join(str(function.__doc__).rstrip(".") for function, *_ in GROUPS.values()),
    )
    arguments = parser.parse_args()
    letters = arguments.only.split(",")
    if not set(letters) <= set(GROUPS):
        parser.error(f"--only takes letters of {','.join(GROUPS)}")
    obstacle = sshd.obstacle() or link.obstacle()
    if obstacle:
        sys.exit(f"bench-deploy cannot run here: {obstacle}")
    material, rows = deploy_material.material(), []
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"EDGEFERRY_CONFIG_DIR": f"{folder}/config", "EDGEFERRY_CACHE_DIR": f"{folder}/cache"}
        os.environ.pop("SSH_AUTH_SOCK", None)
        for letter in letters:
            measure, full, quick = GROUPS[letter]
            print(f"{measure.__doc__} ...", file=sys.stderr)
            rows += measure(material, quick if arguments.quick else full)
    whole = not arguments.quick and len(letters) == len(GROUPS)
    report("deploy" if whole else "deploy_part", rows)


if __name__ == "__main__":
    main()

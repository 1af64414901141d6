"""A board under emulation: systemd and OpenSSH of arm64 Debian in a container, with a network and a plug to pull.

The container runs every program through qemu-user, so it shows behaviour and never speed.  It has the kernel, the
clock and the uptime of this machine; its boot id, processes, network and files are its own.
"""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab_rootfs import fresh_root, remove_root

BINFMT = Path("/proc/sys/fs/binfmt_misc")
INTERPRETER = "qemu-aarch64"
WITH_CREDENTIALS = "edgeferry-lab-aarch64"
CGROUPS = Path("/sys/fs/cgroup")
NAME = "efboard"  # and a number: a board's network, control group and host name outside
EMULATION = Path(__file__).with_name("lab_emulation.py")

TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "qemu-aarch64-static": "qemu-user-static",
    "update-binfmts": "binfmt-support",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "ssh": "openssh-client",
}

# Runs in a mount namespace of its own.  systemd 256 and later refuse to boot without cgroup v2 alone, so this is
# what the container is given whatever this machine has mounted; the outer group is for ending all of it at once.
# systemd-nspawn ends with 133 when the container asked for a reboot.
BOOT = """
set -eu
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p "/sys/fs/cgroup/$1"
echo $$ > "/sys/fs/cgroup/$1/cgroup.procs"
shift
while :; do
    status=0
    setpriv --pdeathsig KILL "$@" || status=$?
    [ "$status" = 133 ] || exit "$status"
done
"""


def need_root_and_tools() -> None:
    """Skip, and say why, where no arm64 program can be run in a root file system of its own."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root on Linux, for a container")
    absent = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if absent:
        pytest.skip(f"not installed here: apt install {' '.join(absent)}")
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)], check=False)
    subprocess.run(["update-binfmts", "--enable", INTERPRETER], check=False, capture_output=True)
    if not (BINFMT / INTERPRETER).exists():
        pytest.skip("this kernel runs no foreign binaries (binfmt_misc)")


# What a container of its own takes; a machine that is a container itself may be refused it.
NEEDED = (
    ("unshare", "--mount", "sh", "-c", "mount -t cgroup2 cgroup2 /sys/fs/cgroup"),
    ("ip", "netns", "add", "efprobe"),
    ("ip", "link", "add", "efprobe", "type", "veth", "peer", "name", "eth0", "netns", "efprobe"),
)


def need_a_container() -> None:
    """Skip, and say why, where no container with a network of its own can be had."""
    try:
        for argv in NEEDED:
            done = subprocess.run(argv, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no container can be had here: {' '.join(argv)}: {done.stderr.strip()}")
    finally:
        subprocess.run(["ip", "netns", "delete", "efprobe"], capture_output=True)
        subprocess.run(["ip", "link", "delete", "efprobe"], capture_output=True)


def register_with_credentials() -> None:
    """Let sudo of arm64 be root: the flag C keeps a program's set-user-id, which Debian's entry drops.

    The newest entry wins.  Flag F opens the emulator now, so that it need not be in the container.
    """
    if (BINFMT / WITH_CREDENTIALS).exists():
        return
    entry = dict(line.split(" ", 1) for line in (BINFMT / INTERPRETER).read_text().splitlines() if " " in line)
    magic, mask = (
        "".join(f"\\x{entry[key][i : i + 2]}" for i in range(0, len(entry[key]), 2)) for key in ("magic", "mask")
    )
    line = f":{WITH_CREDENTIALS}:M:0:{magic}:{mask}:{entry['interpreter']}:POCF"
    try:
        (BINFMT / "register").write_text(line)
    except OSError as error:
        pytest.skip(f"this kernel takes no emulator with credentials: {error.strerror}")


def unregister_with_credentials() -> None:
    if (BINFMT / WITH_CREDENTIALS).exists():
        (BINFMT / WITH_CREDENTIALS).write_text("-1")


class Board:
    """One board: a root file system, a network of two addresses, and the container that runs when it is on.

    Args:
        suite: Debian's name, one of lab_rootfs.SUITES.
        folder: for the root file system, the key and the log of the console.
    """

    def __init__(self, suite: str, folder: Path) -> None:
        self.suite = suite
        self.folder = folder
        self.identity = folder / "id_ed25519"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.identity], check=True)
        key = self.identity.with_suffix(".pub").read_text()
        folder.chmod(0o700)
        self.root = fresh_root(suite, folder / "root", key)
        self.name, self.network = free_network()
        self.host = f"10.213.{self.network}.2"
        self.console = folder / "console.log"
        self.group = CGROUPS / "unified" / self.name
        if not (CGROUPS / "unified").is_dir():
            self.group = CGROUPS / self.name
        self._container: subprocess.Popen | None = None
        self._plug_in_network()

    @property
    def target(self) -> str:
        """TARGET of edgeferry's verbs, for the user with sudo."""
        return f"pi@{self.host}"

    @property
    def fingerprint(self) -> str:
        """What the board's owner reads from its host key, for ``enrol --fingerprint``."""
        key = self.root / "etc" / "ssh" / "ssh_host_ed25519_key.pub"
        done = subprocess.run(["ssh-keygen", "-lf", key], check=True, capture_output=True, text=True)
        return done.stdout.split()[1]

    def _plug_in_network(self) -> None:
        inside = ("ip", "-n", self.name)
        for argv in (
            ("ip", "netns", "add", self.name),
            ("ip", "link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", self.name),
            ("ip", "addr", "add", f"10.213.{self.network}.1/30", "dev", self.name),
            ("ip", "link", "set", self.name, "up"),
            (*inside, "addr", "add", f"{self.host}/30", "dev", "eth0"),
            (*inside, "link", "set", "lo", "up"),
            (*inside, "link", "set", "eth0", "up"),
        ):
            subprocess.run(argv, check=True)

    def boot(self, seconds: float = 120) -> float:
        """Switch it on and wait for its sshd; how long that took, in seconds."""
        container = [
            *("systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}", f"--machine={self.name}"),
            *("--register=no", "--keep-unit", "--resolv-conf=off", "--timezone=off", "--link-journal=no"),
            *(f"--network-namespace-path=/run/netns/{self.name}", "--console=read-only"),
        ]
        started = time.monotonic()
        with self.console.open("ab") as console:
            self._container = subprocess.Popen(
                [sys.executable, EMULATION, "unshare", "--mount", "sh", "-c", BOOT, "boot", self.name, *container],
                stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            )  # fmt: skip
        self.wait_for_ssh(seconds)
        return time.monotonic() - started

    def wait_for_ssh(self, seconds: float = 120, other_than: str = "") -> str:
        """Wait until somebody can log in, in another boot than ``other_than``; the id of this boot."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._container is not None and self._container.poll() is not None:
                break
            done = self.ssh("cat /proc/sys/kernel/random/boot_id", check=False)
            if done.returncode == 0 and done.stdout.strip() != other_than:
                return done.stdout.strip()
            time.sleep(0.2)
        tail = self.console.read_text(errors="replace")[-3000:]
        raise AssertionError(f"{self.suite} is not there after {seconds} s; its console:\n{tail}")

    def ssh(self, command: str, user: str = "pi", check: bool = True, seconds: float = 120):
        """Run a shell command on the board with this machine's ssh, as its owner would; the finished process."""
        done = subprocess.run(
            ["ssh", "-F", "none", "-i", self.identity, "-o", "StrictHostKeyChecking=no", "-o", "ConnectTimeout=5",
             "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes",
             f"{user}@{self.host}", command],
            capture_output=True, text=True, errors="replace", timeout=seconds,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise AssertionError(
                f"{shlex.quote(command)} on {self.suite}: {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def reboot(self, seconds: float = 420) -> None:
        """Reboot as its owner would, and wait until it is back.

        A session's runtime folder that is slow to be unmounted holds the shutdown for systemd's own 3 minutes.
        """
        before = self.ssh("cat /proc/sys/kernel/random/boot_id").stdout.strip()
        self.ssh("sudo systemctl reboot", check=False)
        self.wait_for_ssh(seconds, other_than=before)

    def cut_power(self) -> None:
        """End everything on it at once, with nothing written any more."""
        if (self.group / "cgroup.kill").exists():
            (self.group / "cgroup.kill").write_text("1")
        if self._container is not None:
            self._container.send_signal(signal.SIGKILL)
            self._container.wait()
            self._container = None
        self._remove_groups()

    def power_off(self, seconds: float = 60) -> None:
        """Shut down in order; pull the plug when that takes too long."""
        if self._container is not None and self._container.poll() is None:
            self.ssh("sudo systemctl poweroff", check=False)
            try:
                self._container.wait(seconds)
            except subprocess.TimeoutExpired:
                print(f"{self.suite} did not power off within {seconds} s")
        self.cut_power()

    def _remove_groups(self) -> None:
        """A container's control groups stay when it is killed; they can go when their last process has."""
        for attempt in itertools.count():
            if not self.group.exists():
                return
            for folder, _names, _files in os.walk(self.group, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    if attempt == 50:
                        raise
            time.sleep(0.1 if self.group.exists() else 0)

    def discard(self) -> None:
        """Switch it off and take everything away that was made for it."""
        self.cut_power()
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", self.name], check=False, capture_output=True)
        remove_root(self.root)


def boards() -> list[str]:
    """The names of all boards on this machine."""
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [word for word in spaces.split() if word.startswith(NAME)]


def free_network() -> tuple[str, int]:
    """A name and the third number of addresses that no other board here uses."""
    used = subprocess.run(["ip", "-4", "-o", "addr"], capture_output=True, text=True, check=True).stdout
    taken = boards()
    for number in range(1, 255):
        name = f"{NAME}{number}"
        if f" 10.213.{number}." not in used and name not in taken:
            return name, number
    raise AssertionError("no free network of 10.213.0.0/16 for a board")

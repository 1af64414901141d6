"""A slow, long, lossy link between this machine and a network namespace: packets pass through this process.

Linux and root, no kernel module: two TUN devices, one of them moved into the namespace, and a loop that carries
packets between them after their delay, at their rate, or not at all.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
PACKET = 65536
BURST = 64  # packets read before the other direction has its turn
BUFFER_SECONDS = 0.1  # what a router of that rate queues before it drops
IP = shutil.which("ip") or "/usr/sbin/ip"


@dataclass
class Conditions:
    """What the link is like; both directions alike.

    Attributes:
        delay_ms: one way.
        rate_mbit: megabits of IP packets a second; 0 for no limit.
        loss: share of the packets that vanish.
        cut: nothing passes.
        cut_after: bytes to the device from now on after which the link is cut; 0 for never.
    """

    delay_ms: float = 0.0
    rate_mbit: float = 0.0
    loss: float = 0.0
    cut: bool = False
    cut_after: int = 0


class Link:
    """A namespace behind a link, until the `with` ends.

    Args:
        seed: of what is lost.
        conditions: see `Conditions`.

    Attributes:
        namespace: name for `ip netns` and /run/netns.
        here: this machine's address.
        there: the namespace's.

    Raises:
        OSError, subprocess.CalledProcessError: no root, no /dev/net/tun, no namespaces; see `obstacle`.
    """

    def __init__(self, seed: int = 0, **conditions: float) -> None:
        number = os.getpid() * 7 + Link.made
        Link.made += 1
        self.namespace = f"edgeferry-{os.getpid()}-{Link.made}"
        net = f"198.{18 + number // 64 % 2}.{number // 128 % 256}"  # the range for benchmarks (RFC 2544)
        self.here, self.there = (f"{net}.{number % 64 * 4 + host}" for host in (1, 2))
        ip("netns", "add", self.namespace)
        try:
            ip("-n", self.namespace, "link", "set", "lo", "up")
            self._process = subprocess.Popen(
                [sys.executable, __file__, self.namespace, self.here, self.there, str(seed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self.set(**conditions)
        except BaseException:
            ip("netns", "del", self.namespace)
            raise

    made = 0

    def set(self, **conditions: float) -> None:
        """Make the link so; what is not named becomes perfect again."""
        self._ask({"set": asdict(Conditions(**conditions))})

    def counts(self) -> dict[str, int]:
        """Bytes and packets that passed since the last call: to_device, from_device, packets, lost."""
        return self._ask({"counts": True})

    def _ask(self, request: dict) -> dict:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise OSError("the link's process ended")
        return json.loads(line)

    def enter(self) -> list[str]:
        """Words before a command that is to run in the namespace."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "--"]

    def close(self) -> None:
        """Take the link and the namespace away."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
        ip("netns", "del", self.namespace)

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def obstacle() -> str:
    """Why there can be no link on this machine; empty when there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    if not Path("/dev/net/tun").exists():
        return "this kernel has no /dev/net/tun"
    missing = [tool for tool in (IP, "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"{missing[0]} is not installed: apt install iproute2 util-linux"
    done = subprocess.run(
        [IP, "netns", "add", probe := f"edgeferry-{os.getpid()}"], capture_output=True, text=True
    )
    if done.returncode:
        return f"no network namespaces: {done.stderr.strip()}"
    ip("netns", "del", probe)
    return ""


def ip(*words: str) -> None:
    subprocess.run([IP, *words], check=True)


class Way:
    """One direction: what is on its way, and what has passed."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        self.flying: deque[tuple[float, bytes]] = deque()
        self.free = 0.0  # when the line has sent what it took so far
        self.bytes = self.packets = self.lost = 0

    def take(self, conditions: Conditions, dice: random.Random, now: float) -> int:
        """Read what is there; the bytes that were put on the line."""
        put = 0
        for _ in range(BURST):
            try:
                packet = os.read(self.source, PACKET)
            except BlockingIOError:
                break
            if conditions.cut or (conditions.loss and dice.random() < conditions.loss):
                self.lost += 1
                continue
            start = max(now, self.free)
            if conditions.rate_mbit:
                if start - now > BUFFER_SECONDS:
                    self.lost += 1
                    continue
                self.free = start + len(packet) * 8 / (conditions.rate_mbit * 1e6)
            else:
                self.free = start
            self.flying.append((self.free + conditions.delay_ms / 1e3, packet))
            self.bytes += len(packet)
            self.packets += 1
            put += len(packet)
        return put

    def deliver(self, now: float) -> None:
        """Hand over what has arrived by now."""
        while self.flying and self.flying[0][0] <= now:
            with contextlib.suppress(OSError):  # the device is down, or its queue is full: a packet is lost
                os.write(self.sink, self.flying.popleft()[1])


def carry(here: int, there: int, seed: int) -> None:
    """Carry packets, and obey stdin, until stdin ends."""
    conditions, dice = Conditions(), random.Random(seed)
    to_device, from_device = ways = Way(here, there), Way(there, here)
    passed = 0
    while True:
        due = [way.flying[0][0] for way in ways if way.flying]
        wait = max(0.0, min(due) - time.monotonic()) if due else None
        ready = select.select([here, there, 0], [], [], wait)[0]
        now = time.monotonic()
        for way in ways:
            if way.source in ready:
                put = way.take(conditions, dice, now)
                if way is to_device and conditions.cut_after:
                    passed += put
                    conditions.cut = conditions.cut or passed >= conditions.cut_after
            if conditions.cut:
                way.flying.clear()
            way.deliver(time.monotonic())
        if 0 in ready:
            line = sys.stdin.readline()
            if not line:
                return
            request = json.loads(line)
            if "set" in request:
                conditions, passed = Conditions(**request["set"]), 0
                print("{}", flush=True)
                continue
            counts = {"to_device": to_device.bytes, "from_device": from_device.bytes}
            counts |= {name: sum(getattr(way, name) for way in ways) for name in ("packets", "lost")}
            for way in ways:
                way.bytes = way.packets = way.lost = 0
            print(json.dumps(counts), flush=True)


def tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("namespace")
    parser.add_argument("here")
    parser.add_argument("there")
    parser.add_argument("seed", type=int)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever holds our stdin decides when we end
    names = f"efh{os.getpid()}", f"efd{os.getpid()}"
    ends = tuple(map(tun, names))
    ip("link", "set", names[1], "netns", arguments.namespace)
    for place, name, own, other in (
        ((), names[0], arguments.here, arguments.there),
        (("-n", arguments.namespace), names[1], arguments.there, arguments.here),
    ):
        ip(*place, "addr", "add", own, "peer", other, "dev", name)
        ip(*place, "link", "set", name, "up", "txqueuelen", "1000")
    carry(*ends, arguments.seed)


if __name__ == "__main__":
    main()

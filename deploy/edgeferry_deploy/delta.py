"""Which form of a file crosses the wire: itself, compressed, or its difference to one the device has; pure."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from edgeferry_runtime.patching import add, predicted, spans

__all__ = ["Delivery", "find_split", "plan_delivery", "subtract"]

LEAST_GAIN = 0.1  # of the bytes; below that the device's extra work is not worth it
SAMPLE = 32 * 1024  # bytes; SAMPLES of them tell whether a file can be compressed at all
SAMPLES = 8
XZ_BELOW = 0.8  # of the bytes left by gzip
STEP = 4096  # bytes; how finely the place is looked for where a base of another length shifts


@dataclass(frozen=True)
class Delivery:
    """How a file gets to a device.

    Attributes:
        how: full, compressed or delta.
        size: bytes that go over the wire.
        payload: those bytes, unless the file itself is sent.
        codec: what unpacks them.
        base: SHA-256 of the file the difference is to.
        split: where the alignment of the base changes from its beginning to its end.
    """

    how: str
    size: int
    payload: bytes = b""
    codec: str = ""
    base: str = ""
    split: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 of the payload."""
        return hashlib.sha256(self.payload).hexdigest()


def plan_delivery(data: bytes, remaining: int, bases: Mapping[str, bytes]) -> Delivery:
    """The form with the fewest bytes, when it saves enough.

    Args:
        data: the file.
        remaining: bytes of it that the device lacks; an upload that was cut left the others there.
        bases: files the device has, by SHA-256, the likeliest first.
    """
    full = Delivery("full", remaining)
    forms = [full]
    packed = compressed(data)
    if packed:
        forms.append(Delivery("compressed", len(packed[1]), packed[1], packed[0]))
    for digest, base in bases.items():
        split = find_split(data, base)
        packed = compressed(difference(data, base, split))
        if packed:
            forms.append(Delivery("delta", len(packed[1]), packed[1], packed[0], digest, split))
    best = min(forms, key=lambda form: form.size)
    return best if best.size <= (1 - LEAST_GAIN) * remaining else full


def compressed(data: bytes) -> tuple[str, bytes] | None:
    """Codec and bytes; None when a sample says that it gains nothing.

    gzip packs weights as they are ten times faster than xz and 1 % worse, and differences, pruned weights
    and sources 10 to 20 % worse: xz has to earn its time.  The same data gives the same bytes every time, so
    that a payload whose upload was cut is recognised.
    """
    step = max(SAMPLE, len(data) // SAMPLES)
    sample = b"".join(data[start : start + SAMPLE] for start in range(0, len(data), step))
    if len(zlib.compress(sample, 1)) > (1 - LEAST_GAIN / 2) * len(sample):
        return None
    packed = gzip.compress(data, 6, mtime=0)
    if len(packed) > XZ_BELOW * len(data):
        return "gzip", packed
    return min(
        ("gzip", packed), ("xz", lzma.compress(data, check=lzma.CHECK_CRC32)), key=lambda pair: len(pair[1])
    )


def difference(data: bytes, base: bytes, split: int) -> bytes:
    """What has to be added to the base, byte by byte, to get the data."""
    source, shift = io.BytesIO(base), len(data) - len(base)
    return b"".join(
        subtract(data[start:stop], predicted(source, start, stop, shift if behind else 0))
        for start, stop, behind in spans(len(data), split)
    )


def subtract(left: bytes, right: bytes) -> bytes:
    """Bytewise difference modulo 256; both have the same length.  The inverse of `patching.add`."""
    size = len(right)
    negated = (int.from_bytes(right, "little") ^ int.from_bytes(b"\xff" * size, "little")).to_bytes(size, "little")
    return add(add(left, negated), b"\x01" * size)  # two's complement


def find_split(data: bytes, base: bytes) -> int:
    """Where to go over from aligning the beginnings to aligning the ends.

    One insertion or deletion is what a changed label, name or table of a model file amounts to.  The place is
    the one with most equal bytes before it in the one alignment and behind it in the other.
    """
    if len(data) == len(base):
        return len(data)
    source, shift, end = io.BytesIO(base), len(data) - len(base), len(data)
    gain = best = 0
    split = 0
    for start in range(0, end, STEP):
        stop = min(start + STEP, end)
        block = data[start:stop]
        front, rear = (equal(block, predicted(source, start, stop, by)) for by in (0, shift))
        gain += front - rear
        if gain > best:
            best, split = gain, stop
    return split


def equal(left: bytes, right: bytes) -> int:
    """How many bytes are the same."""
    size = len(left)
    return (int.from_bytes(left, "little") ^ int.from_bytes(right, "little")).to_bytes(size, "little").count(0)

"""Rebuild files out of compressed differences to files that are here: the device's side of a transfer.

The deployer sends this source along (`python -S -c SOURCE`, in the folder with the blobs), for a device may
not have the runtime yet.  So it stands alone: Python 3.7 and its standard library.

A difference is the bytewise subtraction, modulo 256, of a prediction from the wanted file.  The prediction is
the base, aligned at its beginning for what lies before `split` and at its end for the rest; where the base has
no byte it is 0.  Without a base the difference is the file itself.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO, Iterator

__all__ = ["BLOCK", "add", "main", "predicted", "rebuild", "spans"]

BLOCK = 65536  # bytes in memory at a time
CODECS = {"gzip": "gzip", "xz": "lzma"}  # codec -> module that reads it; a small Python may lack lzma


def add(left: bytes, right: bytes) -> bytes:
    """Bytewise sum modulo 256; both have the same length.

    All bytes at once, as one large integer: the upper bit of each byte is kept apart, so no carry leaves it.
    """
    size = len(left)
    low = int.from_bytes(b"\x7f" * size, "little")
    a, b = int.from_bytes(left, "little"), int.from_bytes(right, "little")
    return (((a & low) + (b & low)) ^ ((a ^ b) & ~low)).to_bytes(size, "little")


def spans(size: int, split: int) -> Iterator[tuple[int, int, bool]]:
    """The blocks of a file: where each begins and ends, and whether it lies behind the split."""
    for first, last, behind in ((0, split, False), (split, size, True)):
        for start in range(first, last, BLOCK):
            yield start, min(start + BLOCK, last), behind


def predicted(base: BinaryIO, start: int, stop: int, shift: int) -> bytes:
    """The base's bytes `start - shift` to `stop - shift`; 0 where it has none."""
    missing = min(max(0, shift - start), stop - start)
    if missing == stop - start:
        return bytes(stop - start)
    base.seek(start - shift + missing)
    return (bytes(missing) + base.read(stop - start - missing)).ljust(stop - start, b"\0")


def rebuild(payload: str, codec: str, base: str, size: int, split: int, result: str) -> None:
    """Write the file a payload stands for.

    Args:
        payload: path of the compressed difference.
        codec: one of `CODECS`.
        base: path of the base; empty when there is none.
        size: bytes of the result.
        split: where the alignment of the base changes from its beginning to its end.
        result: path to write.

    Raises:
        ValueError: the payload is longer or shorter than `size`.
        OSError, EOFError, zlib.error, lzma.LZMAError, ImportError: it cannot be read; it has no right check sum.
    """
    unpack = import_module(CODECS[codec]).open
    # Without a base there is nothing to add: an empty file predicts zeros.
    with open(base or os.devnull, "rb") as source, unpack(payload, "rb") as packed, open(result, "wb") as target:
        shift = size - os.path.getsize(base) if base else size
        for start, stop, behind in spans(size, split):
            block = packed.read(stop - start)
            if len(block) != stop - start:
                raise ValueError("the payload ends early")
            if base:
                block = add(block, predicted(source, start, stop, shift if behind else 0))
            target.write(block)
        if packed.read(1):
            raise ValueError("the payload is too long")


def main() -> None:
    """Rebuild what stdin names, in the working directory.

    Each line is PAYLOAD CODEC RESULT SIZE BASE SPLIT, with `-` for no base.  PAYLOAD.part becomes RESULT.part,
    which still has to be hashed, and is removed.  One that cannot be used is reported and removed as well: the
    sender then sends the file itself.
    """
    print("edgeferry-rebuild 1")
    for line in sys.stdin:
        payload, codec, result, size, base, split = line.split()
        try:
            rebuild(payload + ".part", codec, "" if base == "-" else base, int(size), int(split), result + ".part")
            print("rebuilt\t" + result)
        except Exception as error:  # whatever it is, the sender has to hear of it
            print("failed\t%s\t%s: %s" % (result, type(error).__name__, " ".join(str(error).split())))
            if os.path.exists(result + ".part"):
                os.remove(result + ".part")
        if os.path.exists(payload + ".part"):
            os.remove(payload + ".part")
    print("end")


if __name__ == "__main__":
    main()

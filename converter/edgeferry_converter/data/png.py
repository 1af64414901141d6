"""The chunks a PNG is made of."""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["SIGNATURE", "chunks", "is_whole"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and length of each chunk's body up to IEND; the last may reach beyond the data."""
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, length
        if kind == b"IEND":
            return
        at += 12 + length


def is_whole(data: bytes) -> bool:
    """Whether every chunk lies within the data, IEND the last.

    OpenCV allocates what a chunk says it needs, gigabytes for a few damaged bytes, before it finds them missing.
    """
    last = b""
    for kind, begin, length in chunks(data):
        last = kind
        if begin + length + 4 > len(data):
            return False
    return last == b"IEND"

"""The C library's heap, told to keep the memory of frames instead of giving it back after each one.

A decoded 720p frame takes 2.7 MB.  glibc maps such a block, the kernel fills it with zeros page by page as it is
first touched, and it is unmapped when the frame is done: several hundred page faults a frame, which can cost as
much as decoding it (docs/runtime.md has the figures).  Sources: mallopt(3) and malloc/malloc.c of glibc.
"""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 1 << 25  # bytes: as large as glibc allows on 64-bit systems; a 4K frame fits
_KEPT = 1 << 26  # bytes at the end of the heap that are not given back


def keep_freed_memory() -> bool:
    """Reuse the memory of frames in this process; to be called once, before the loop.

    Returns:
        False where the C library is not glibc, or does not take the setting: nothing changes then.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return all([mallopt(_M_MMAP_THRESHOLD, _LARGEST), mallopt(_M_TRIM_THRESHOLD, _KEPT)])

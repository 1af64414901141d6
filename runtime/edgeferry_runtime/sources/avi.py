"""MJPEG out of .avi files, frame by frame and undecoded.

Source of the format: Microsoft, "AVI RIFF File Reference"; OpenDML AVI File Format Extensions 1.02 (files of
several RIFF chunks).  A file is a row of chunks (name, length, body padded to even length), some of which are
lists of chunks.  Frames are the chunks "NNdc" of the stream NN inside the lists "movi".
"""

from __future__ import annotations

import mmap
import struct
import time
from typing import Iterator

import numpy as np

from edgeferry_runtime.errors import SourceError
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.sources.clip import Clip
from edgeferry_runtime.sources.damage import damage, without_padding

__all__ = ["AviClip"]

_LISTS = (b"RIFF", b"LIST")  # their bodies begin with four letters, then chunks follow
_MAX_HEADERS = 1000  # chunks before the first frame; real files have some ten
_MJPEG = (b"MJPG", b"mjpg")


class AviClip(Clip):
    """The frames of one MJPEG stream; one cut off at the end of the file, or damaged, is passed over.

    Made by :meth:`open`.
    """

    def __init__(self, path: str, data: mmap.mmap, stream: bytes, rate: float) -> None:
        self.rate = rate
        self._path = path
        self._data = data
        self._frames = _bodies(data, (stream + b"dc", stream + b"db"))
        self._at = 0  # index of the next frame in the file
        self._given = 0

    @classmethod
    def open(cls, path: str) -> AviClip | None:
        """Open a file; None when it is no MJPEG in .avi, and somebody else may know what it is.

        Raises:
            SourceError: it cannot be read.
        """
        try:
            with open(path, "rb") as file:
                head = file.read(12)
                if head[:4] != b"RIFF" or head[8:] != b"AVI ":
                    return None
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise SourceError(
                "{}: cannot be read: {}".format(path, error.strerror), "Check the file and its permissions."
            ) from None
        found = _find_stream(data)
        if found is None:
            data.close()
            return None
        return cls(path, data, *found)

    def load(self, index: int) -> Frame | None:
        for begin, length in self._frames:
            number = self._at
            self._at += 1
            if number < index:
                continue
            captured = time.monotonic_ns()
            pixels = without_padding(np.frombuffer(self._data[begin : begin + length], np.uint8))
            if damage(pixels, "jpeg"):
                self.skipped += 1
                continue
            self._given += 1
            return Frame(pixels, "jpeg", number, captured)
        if self._given == 0:
            raise SourceError("{}: holds no frame that can be decoded".format(self._path), "Record it again.")
        return None

    def close(self) -> None:
        self._frames = iter(())
        self._data.close()


def _chunks(data: mmap.mmap) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and length of the body of each chunk, also of those inside lists; the last may be cut off."""
    at, end = 0, len(data)
    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, at)
        if name == bytes(4):  # space a recorder had set aside and never wrote
            return
        at += 8
        yield name, at, length
        at += 4 if name in _LISTS else length + length % 2


def _bodies(data: mmap.mmap, names: tuple[bytes, bytes]) -> Iterator[tuple[int, int]]:
    for name, begin, length in _chunks(data):
        if name in names and length:  # an empty one says: as before
            yield begin, length


def _find_stream(data: mmap.mmap) -> tuple[bytes, float] | None:
    """Two digits and frame rate of the first MJPEG stream; None when there is none."""
    streams, rate = -1, 0.0
    for count, (name, begin, length) in enumerate(_chunks(data)):
        if count > _MAX_HEADERS or data[begin : begin + 4] == b"movi":
            break
        body = data[begin : begin + min(length, 56)]
        if name == b"strh":
            streams += 1
            scale, ticks = struct.unpack_from("<II", body, 20) if len(body) >= 28 else (0, 0)
            rate = ticks / scale if scale and 0 < ticks / scale <= 1000 else 0.0
        elif name == b"strf" and streams >= 0 and len(body) >= 20 and body[16:20] in _MJPEG:
            return b"%02d" % streams, rate
    return None

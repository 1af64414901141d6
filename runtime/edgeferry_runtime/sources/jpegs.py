"""JPEG files out of a stream of bytes: one after the other, whatever stands between them.

That is what MJPEG is on a pipe, and in an HTTP answer of many parts: there the headers of the parts are what
stands between.  Their lengths are not relied upon, cameras get them wrong.  Source of the markers: ITU-T T.81,
annex B.
"""

from __future__ import annotations

import re
from typing import Callable

import numpy as np

from edgeferry_runtime.errors import SourceError

__all__ = ["JpegStream"]

MAX_BYTES = 1 << 24  # of one file
_MAX_BETWEEN = 1 << 20  # of what is no JPEG, before one begins
_PIECE = 1 << 16
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
# In the compressed data an FF is followed by 00, or it is a restart marker or filling; all else ends the data.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


class JpegStream:
    """Cuts files out of what ``receive`` gives.

    Args:
        receive: up to so many bytes, waiting for at least one; b"" at the end.

    Attributes:
        damaged: files that broke off and were passed over, so far.
    """

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        self.damaged = 0
        self._receive = receive
        self._buffer = bytearray()
        self._at = 0  # of the next marker, or where to look for it
        self._in_file = self._in_scan = False

    def read(self) -> np.ndarray | None:
        """The next file, uint8 [bytes]; None at the end.

        Raises:
            SourceError: the stream ends inside a file, or what comes is no JPEG.
        """
        while True:
            end = self._advance()
            if end:
                data = np.frombuffer(bytes(self._buffer[:end]), np.uint8)
                self._restart(end)
                return data
            if len(self._buffer) > MAX_BYTES:
                raise SourceError("a JPEG of more than {} bytes".format(MAX_BYTES), "This is no camera's stream.")
            piece = self._receive(_PIECE)
            if not piece:
                if self._in_file:
                    raise SourceError("the stream ends inside a picture", "Its writer was cut off.")
                return None
            self._buffer += piece

    @property
    def pending(self) -> bool:
        """Whether a file has begun to come."""
        return self._in_file or bool(self._buffer)

    def _advance(self) -> int:
        """Go through what is there, from marker to marker.

        Returns:
            Where the file ends that begins the buffer; 0 when more bytes are needed.
        """
        if not self._in_file and not self._find_file():
            return 0
        buffer = self._buffer
        while True:
            if self._in_scan:
                match = _AFTER_SCAN.search(buffer, self._at)
                if not match:
                    self._at = max(self._at, len(buffer) - 1)  # an FF may end the buffer
                    return 0
                self._at, self._in_scan = match.start(), False
            if len(buffer) < self._at + 4:
                # The last marker has no length behind it.
                last = len(buffer) >= self._at + 2 and buffer[self._at] == 0xFF and buffer[self._at + 1] == _EOI
                return self._at + 2 if last else 0
            marker = buffer[self._at + 1]
            if buffer[self._at] != 0xFF or marker == _SOI:
                self.damaged += 1
                self._restart(self._at)
                if not self._find_file():
                    return 0
            elif marker == _EOI:
                return self._at + 2
            elif marker == 0xFF:
                self._at += 1  # filling
            else:
                self._at += 2 + (buffer[self._at + 2] << 8 | buffer[self._at + 3])
                self._in_scan = marker == _SOS

    def _find_file(self) -> bool:
        """Drop what stands before the next file."""
        begin = self._buffer.find(b"\xff\xd8\xff")
        if begin >= 0:
            del self._buffer[:begin]
            self._at, self._in_file, self._in_scan = 2, True, False
            return True
        if len(self._buffer) > _MAX_BETWEEN:
            raise SourceError("what comes is no JPEG", "This is no stream of pictures.")
        return False

    def _restart(self, at: int) -> None:
        del self._buffer[:at]
        self._at, self._in_file, self._in_scan = 0, False, False

"""Pictures of a folder (or one picture) as frames, in the order of their names."""

from __future__ import annotations

import logging
import os
import struct
import time

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import FrameError, SourceError
from edgeferry_runtime.pixels import jpeg_size
from edgeferry_runtime.sources.base import PICTURES, Frame, FrameSource, Request
from edgeferry_runtime.sources.damage import MAX_PIXELS
from edgeferry_runtime.sources.done import DoneList
from edgeferry_runtime.sources.options import read_options

__all__ = ["FolderSource", "load_picture", "open_folder"]

_LOG = logging.getLogger("edgeferry")
_MAX_BYTES = 1 << 28
_PNG = b"\x89PNG\r\n\x1a\n"


def open_folder(uri: str, request: Request) -> FrameSource:
    """Pictures below a folder.

    Args:
        uri: "FOLDER" or "FILE.jpg", with "folder:" before it or not.  "?resume=FILE" notes in FILE what is done,
            and begins behind it when it is opened again.

    Raises:
        UsageError: an option is wrong.
        SourceError: there is no picture, or FILE cannot be written.
        DependencyError: OpenCV is absent.
    """
    path = uri[len("folder:") :] if uri.startswith("folder:") else uri
    resume = ""
    if not os.path.exists(path):
        path, options = read_options(path, {"resume": str})
        resume = options.get("resume", "")
    return FolderSource(path, resume)


class FolderSource(FrameSource):
    """Every picture below a folder; other files are passed over, damaged ones named in the log and counted.

    Args:
        path: folder or picture.
        resume: file that keeps the names of what is done, "" for none.

    Raises:
        SourceError: there is no picture; while reading: none of them can be decoded.
    """

    def __init__(self, path: str, resume: str = "") -> None:
        opencv.load("decoding pictures")
        self._root = path
        self._names = _find(path)
        if not self._names:
            raise SourceError("{}: holds no picture".format(path), "Known endings: " + " ".join(PICTURES))
        self._done = DoneList(resume) if resume else None
        self._count = 0

    def _read(self, timeout_s: float | None) -> Frame | None:
        while self._count < len(self._names):
            number, name = self._count, self._names[self._count]
            self._count += 1
            if self._done is not None and name in self._done:
                continue
            captured = time.monotonic_ns()
            picture = load_picture(os.path.join(self._root, name) if name else self._root, self.encoded)
            if self._done is not None:
                self._done.add(name)
            if picture is not None:
                return Frame(picture[0], picture[1], number, captured, name or os.path.basename(self._root))
            self.skipped += 1
            _LOG.warning("%s: cannot be decoded as a picture, passed over", os.path.join(self._root, name))
        if self.skipped == len(self._names):
            raise SourceError(
                "{}: cannot be decoded as a picture".format(self._root)
                if self.skipped == 1
                else "{}: none of its {} pictures can be decoded".format(self._root, self.skipped),
                "Save it again as JPEG or PNG.",
            )
        if self._done is not None:
            self._done.finish()
        return None

    def close(self) -> None:
        if self._done is not None:
            self._done.close()


def _find(path: str) -> list[str]:
    """Names relative to a folder, sorted; [""] for a file."""
    if not os.path.isdir(path):
        return [""] if os.path.exists(path) else []
    found = [
        os.path.relpath(os.path.join(folder, name), path)
        for folder, _, names in os.walk(path)
        for name in names
        if name.lower().endswith(PICTURES) and not name.startswith(".")
    ]
    return sorted(found)


def load_picture(path: str, encoded: bool = False) -> tuple[np.ndarray, str] | None:
    """Pixels and their format: "bgr", or "jpeg" as it lies there; None when it is damaged, or beyond all bounds.

    Args:
        path: of the file.
        encoded: do not decode JPEG.

    Raises:
        SourceError: it cannot be read.
    """
    cv2 = opencv.load("decoding pictures")
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SourceError(
            "{}: cannot be read: {}".format(path, error.strerror), "Check the file and its permissions."
        ) from None
    if not 0 < len(content) <= _MAX_BYTES or (content.startswith(_PNG) and not _is_sound_png(content)):
        return None
    data = np.frombuffer(content, np.uint8)
    if content.startswith(b"\xff\xd8"):
        # The end need not be the end of the file: phones write more behind it.
        if b"\xff\xd9" not in content or not _is_sound_jpeg(data):
            return None
        if encoded:
            return data, "jpeg"
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:  # a header that promises more pixels than OpenCV decodes
        return None
    return None if pixels is None else (pixels, "bgr")


def _is_sound_jpeg(data: np.ndarray) -> bool:
    """Whether a JPEG has a header, and is not too large."""
    try:
        width, height = jpeg_size(data)
    except FrameError:
        return False
    return width * height <= MAX_PIXELS


def _is_sound_png(data: bytes) -> bool:
    """Whether every chunk lies within the data, and the picture is not too large.

    OpenCV allocates what a chunk says it needs, gigabytes for a few damaged bytes, before it finds them missing.
    Source: W3C, Portable Network Graphics, section 5 (chunks) and 11.2.1 (IHDR).
    """
    at, kind = len(_PNG), b""
    while at + 8 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        if at == len(_PNG):
            if kind != b"IHDR" or at + 16 > len(data):
                return False
            width, height = struct.unpack_from(">II", data, at + 8)
            if not 0 < width * height <= MAX_PIXELS:
                return False
        at += 12 + length
    return kind == b"IEND" and at <= len(data)

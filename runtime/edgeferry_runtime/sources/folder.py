"""Pictures of a folder (or one picture) as frames, in the order of their names."""

from __future__ import annotations

import os
import time

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import SourceError
from edgeferry_runtime.sources.base import PICTURES, Frame, FrameSource

__all__ = ["FolderSource"]


class FolderSource(FrameSource):
    """Decodes every picture below a folder; other files are passed over.

    Args:
        path: folder or picture.

    Raises:
        SourceError: there is no picture.
    """

    def __init__(self, path: str) -> None:
        self._cv2 = opencv.load("decoding pictures")
        self._root = path
        if os.path.isdir(path):
            found = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
            self._paths = sorted(name for name in found if name.lower().endswith(PICTURES))
        else:
            self._paths = [path] if os.path.exists(path) else []
        if not self._paths:
            raise SourceError("{}: holds no picture".format(path), "Known endings: " + " ".join(PICTURES))
        self._count = 0

    def read(self) -> Frame | None:
        if self._count >= len(self._paths):
            return None
        path = self._paths[self._count]
        captured = time.monotonic_ns()
        pixels = self._cv2.imread(path, self._cv2.IMREAD_COLOR)
        if pixels is None:
            raise SourceError("{}: cannot be decoded as a picture".format(path), "Remove it or save it again.")
        self._count += 1
        name = os.path.relpath(path, self._root) if path != self._root else os.path.basename(path)
        return Frame(pixels, "bgr", self._count - 1, captured, name)

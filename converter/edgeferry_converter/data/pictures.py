"""Picture files: found, decoded as the board decodes them, and the base of all data sets made of them."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from edgeferry_runtime import opencv
from edgeferry_runtime.sources import PICTURES

from edgeferry_converter.data.dataset import FRAME, Dataset, Sample
from edgeferry_converter.data.png import SIGNATURE, is_whole
from edgeferry_converter.errors import DataError

__all__ = ["PictureDataset", "decode_picture", "find_pictures", "read_bytes"]


class PictureDataset(Dataset):
    """Samples that are picture files.

    Args:
        root: names are relative to it.
        paths: one a sample.
    """

    keyed_by: Literal["bytes", "arrays"] = "bytes"

    def __init__(self, root: Path, paths: Sequence[Path]) -> None:
        self.root = root
        self._paths = tuple(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def content_key(self, i: int) -> str:
        return hashlib.sha256(read_bytes(self._paths[i])).hexdigest()

    def load(self, i: int) -> Sample:
        pixels = decode_picture(self._paths[i])
        inputs, data = {FRAME: pixels}, read_bytes(self._paths[i])
        if data.startswith(b"\xff\xd8"):  # kept for declarations that decode JPEG files reduced
            inputs["jpeg"] = np.frombuffer(data, np.uint8)
        return Sample(inputs, self.label(i, pixels), self.name(i))

    def name(self, i: int) -> str:
        path = self._paths[i]
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def image_path(self, i: int) -> Path | None:
        return self._paths[i]

    @abstractmethod
    def label(self, i: int, pixels: np.ndarray) -> Any:
        """The label of sample ``i``, whose pixels are uint8 [h, w, 3] BGR."""


def find_pictures(folder: Path) -> list[Path]:
    """Picture files anywhere below a folder, sorted; hidden ones are no pictures."""
    return sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in PICTURES and not p.name.startswith(".") and p.is_file()
    )


def decode_picture(path: Path) -> np.ndarray:
    """A picture's pixels, uint8 [h, w, 3] BGR, decoded as the runtime's folder source does.

    Raises:
        DataError: it cannot be decoded.
        DependencyError: OpenCV is absent.
    """
    cv2 = opencv.load("decoding images")
    # From bytes, because OpenCV cannot open every path on Windows.
    data = read_bytes(path)
    sound = is_whole(data) if data.startswith(SIGNATURE) else bool(data)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if sound else None
    except cv2.error:  # a header that promises more pixels than OpenCV decodes
        pixels = None
    if pixels is None:
        raise DataError(
            f"{path}: cannot be decoded as an image", "Remove the file, or save it again as JPEG or PNG."
        )
    return np.asarray(pixels)


def read_bytes(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}", "Check the file and its permissions."
        ) from None

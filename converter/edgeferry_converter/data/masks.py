"""Segmentation data: images/ and masks/ with a .png of class indices an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from edgeferry_runtime import opencv

from edgeferry_converter.data.dataset import TaskHint, listed
from edgeferry_converter.data.pictures import PictureDataset, find_pictures, read_bytes
from edgeferry_converter.data.png import SIGNATURE, chunks, is_whole
from edgeferry_converter.data.tensors import as_label
from edgeferry_converter.errors import DataError

__all__ = ["MaskDataset", "read_mask"]

_PALETTE = 3  # PNG's colour type
_GRAY = 0


class MaskDataset(PictureDataset):
    """Images with a class for every pixel.

    Args:
        root: holds ``images`` and ``masks``, whose files have equal paths but for the ending.
        labels: name of each class in the order of the model's outputs, or None.
        classes: how many the model tells apart, or None.

    Raises:
        DataError: images without masks or masks without images, every one named.
    """

    task_hint: TaskHint = "segment"

    def __init__(self, root: Path, labels: Sequence[str] | None = None, classes: int | None = None) -> None:
        super().__init__(root, find_pictures(root / "images"))
        self._masks = [root / "masks" / p.relative_to(root / "images").with_suffix(".png") for p in self._paths]
        known = set(self._masks)
        problems = [f"{m.relative_to(root)}: is missing" for m in self._masks if not m.is_file()]
        there = find_pictures(root / "masks")
        problems += [
            f"{p.relative_to(root)}: {'has no image' if p.suffix == '.png' else 'is no .png'}"
            for p in there
            if p not in known
        ]
        if len(known) < len(self):
            problems.append("images: some differ in their ending only and share a mask")
        if not len(self):
            problems.append("images: holds no images")
        if labels is not None and classes is not None and len(labels) != classes:
            problems.append(f"the labels file has {len(labels)} lines, the model tells {classes} classes apart")
        if problems:
            raise DataError(
                f"{root}: {len(problems)} problems with the masks:{listed(problems)}",
                "Each images/NAME.jpg needs masks/NAME.png, 8 bits a pixel holding the class.",
            )
        self.labels = tuple(labels or ())
        self._classes = classes
        self.description = f"{len(self)} images with masks"

    def label(self, i: int, pixels: np.ndarray) -> np.ndarray:
        mask = read_mask(self._masks[i])
        if mask.shape != pixels.shape[:2]:
            raise DataError(
                f"{self._masks[i]}: is {mask.shape[1]}x{mask.shape[0]}, its image {pixels.shape[1]}x"
                f"{pixels.shape[0]}",
                "A mask needs the size of its image, without an EXIF rotation of the latter.",
            )
        result: np.ndarray = as_label(mask, "segment", self._classes, str(self._masks[i]))
        return result


def read_mask(path: Path) -> np.ndarray:
    """A mask's class indices, uint8 [h, w]; of a palette PNG the indices, not the colours they stand for.

    Raises:
        DataError: it is no 8-bit gray or palette PNG.
    """
    cv2 = opencv.load("decoding masks")
    data = read_bytes(path)
    wrong = DataError(
        f"{path}: is no PNG of 8 bits a pixel, gray or palette",
        "Save the class indices as a gray PNG: cv2.imwrite(path, indices.astype('uint8')).",
    )
    if not data.startswith(SIGNATURE) or len(data) < 33:
        raise wrong
    depth, color = data[24], data[25]
    if not (color == _PALETTE or (color == _GRAY and depth == 8)):
        raise wrong
    try:
        flag = cv2.IMREAD_COLOR if color == _PALETTE else cv2.IMREAD_UNCHANGED
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if is_whole(data) else None
    except cv2.error:
        pixels = None
    if pixels is None:
        raise DataError(f"{path}: cannot be decoded as an image", "Save the mask again as PNG.")
    return _indices(pixels, data, path) if color == _PALETTE else np.asarray(pixels).reshape(pixels.shape[:2])


def _indices(pixels: np.ndarray, data: bytes, path: Path) -> np.ndarray:
    """Palette indices from the colours OpenCV makes of them: the palette backwards.

    Colours that the palette has twice get the lower index, unless a pixel has one: then nobody knows which it is.
    """
    palette = next((data[at : at + length] for kind, at, length in chunks(data) if kind == b"PLTE"), b"")
    colors = np.frombuffer(palette, np.uint8)
    colors = colors[: len(colors) // 3 * 3].reshape(-1, 3).astype(np.uint32)
    packed = colors[:, 0] << 16 | colors[:, 1] << 8 | colors[:, 2]
    wide = pixels.astype(np.uint32)
    wanted = wide[..., 2] << 16 | wide[..., 1] << 8 | wide[..., 0]
    values, first, counts = np.unique(packed, return_index=True, return_counts=True)
    if not len(values):
        raise DataError(f"{path}: has no palette", "Save the mask again as a gray PNG.")
    places = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    if (counts[places] > 1).any() or (values[places] != wanted).any():
        raise DataError(
            f"{path}: its palette has one colour for several classes",
            "Save the class indices as a gray PNG.",
        )
    return first[places].astype(np.uint8)

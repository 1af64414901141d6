"""Images in a folder a class (or, for models that tell no classes apart, in one folder)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from edgeferry_runtime.sources import PICTURES

from edgeferry_converter.data.dataset import TaskHint
from edgeferry_converter.data.pictures import PictureDataset, decode_picture, find_pictures, read_bytes
from edgeferry_converter.data.split import CALIBRATION_MAX, divide
from edgeferry_converter.errors import DataError

__all__ = [
    "CALIBRATION_MAX",
    "FolderDataset",
    "Image",
    "ImageFolders",
    "Split",
    "class_order",
    "decode",
    "list_images",
    "split_images",
]

MIN_IMAGES_A_CLASS = 2  # one to calibrate with, one to judge by


@dataclass(frozen=True)
class Image:
    """One image file and the class (index of the model's output) it shows."""

    path: Path
    label: int


@dataclass(frozen=True)
class ImageFolders:
    """All images of a data folder.

    Attributes:
        root: the folder.
        labels: name of each class in the order of the model's outputs.
        images: sorted by class and name.
    """

    root: Path
    labels: tuple[str, ...]
    images: tuple[Image, ...]


@dataclass(frozen=True)
class Split:
    """Images to calibrate with and images to judge by; no content is in both.

    Attributes:
        seed: of the shuffle.
        duplicates: how many files have the bytes of another; such files stay on one side.
    """

    calibration: tuple[Image, ...]
    evaluation: tuple[Image, ...]
    seed: int
    duplicates: int

    def calibration_sha256(self) -> str:
        """Of the calibration images' contents, in order."""
        digest = hashlib.sha256()
        for image in self.calibration:
            digest.update(hashlib.sha256(image.path.read_bytes()).digest())
        return digest.hexdigest()


class FolderDataset(PictureDataset):
    """A folder of images a class; opened with ``list_images`` or, without classes, ``FolderDataset.flat``.

    Args:
        folders: the images and their classes.
    """

    task_hint: TaskHint = "classify"

    def __init__(self, folders: ImageFolders) -> None:
        super().__init__(folders.root, [image.path for image in folders.images])
        self.labels = folders.labels
        self._classes = tuple(image.label for image in folders.images)
        self.description = f"{len(self)} images in {len(folders.labels)} class folders"

    @classmethod
    def flat(cls, root: Path) -> FolderDataset:
        """All images below a folder, without labels.

        Raises:
            DataError: there are none.
        """
        paths = find_pictures(root)
        if not paths:
            raise DataError(f"{root}: holds no images", f"Known endings: {' '.join(PICTURES)}.")
        dataset = cls(ImageFolders(root, (), tuple(Image(path, 0) for path in paths)))
        dataset.task_hint = ""
        dataset.description = f"{len(paths)} images without labels"
        return dataset

    def label(self, i: int, pixels: np.ndarray) -> int | None:
        return self.label_key(i)

    def label_key(self, i: int) -> int | None:
        return self._classes[i] if self.task_hint else None


def list_images(root: Path, labels: Sequence[str] | None, classes: int) -> ImageFolders:
    """Find a folder's images.

    Args:
        root: holds a folder a class; the folders' names, sorted as strings, are the classes in order (as
            ``keras.utils.image_dataset_from_directory`` has it), unless they are names in ``labels``.
        labels: name of each class in the order of the model's outputs, or None.
        classes: how many the model tells apart.

    Raises:
        DataError: the folder does not serve, with what is wrong.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder", "Give --data a folder that holds a folder of images a class.")
    folders = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError(
            f"{root}: holds no class folders", "Put the images of each class into a folder of their own."
        )
    if len(folders) == 1:
        raise DataError(
            f"{root}: has one class only ({folders[0]})",
            "A classifier cannot be judged on one class; add the others.",
        )
    order = class_order(folders, labels, classes, root)
    found = {name: find_pictures(root / name) for name in order}
    poor = [name for name, paths in found.items() if len(paths) < MIN_IMAGES_A_CLASS]
    if poor:
        raise DataError(
            f"{root}: too few images in class {', '.join(repr(n) for n in poor[:5])}",
            f"Each class needs {MIN_IMAGES_A_CLASS} at least, and dozens to mean anything ({' '.join(PICTURES)}).",
        )
    images = tuple(Image(path, i) for i, name in enumerate(order) for path in found[name])
    return ImageFolders(root, tuple(labels or order), images)


def class_order(folders: Sequence[str], labels: Sequence[str] | None, classes: int, root: Path) -> list[str]:
    """The class folders in the order of the model's outputs.

    Raises:
        DataError: folders, labels and outputs do not match.
    """
    if labels is not None and len(labels) != classes:
        raise DataError(
            f"the labels file has {len(labels)} lines, the model tells {classes} classes apart",
            "Write one label a line, in the order of the model's outputs.",
        )
    if len(folders) != classes:
        raise DataError(
            f"{root}: has {len(folders)} class folders, the model tells {classes} classes apart",
            f"The folders are: {', '.join(folders[:12])}{', ...' if len(folders) > 12 else ''}",
        )
    if labels is not None and set(folders) == set(labels):
        return list(labels)
    if labels is not None and set(folders) & set(labels):
        strange = sorted(set(folders) - set(labels))
        raise DataError(
            f"{root}: folder {strange[0]!r} is no label, though others are",
            "Name the folders as the labels file does, or none of them.",
        )
    return list(folders)


def split_images(images: Sequence[Image], seed: int = 0) -> Split:
    """Divide images into calibration and evaluation, each class in the same share.

    Files with the same bytes go to one side together, so that no image that was calibrated with judges.

    Args:
        images: two a class at least.
        seed: the same seed and the same images give the same division.

    Raises:
        DataError: a class consists of copies of one image.
    """
    keys = [hashlib.sha256(read_bytes(image.path)).hexdigest() for image in images]
    parts = divide(keys, [image.label for image in images], seed, lambda i: str(images[i].path))
    calibration = tuple(images[i] for i in parts.calibration)
    return Split(calibration, tuple(images[i] for i in parts.evaluation), seed, parts.duplicates)


def decode(images: Sequence[Image]) -> Iterator[tuple[Image, np.ndarray]]:
    """Each image with its pixels, uint8 [height, width, 3] BGR, decoded as the runtime's folder source does.

    Raises:
        DataError: a file cannot be decoded.
    """
    return ((image, decode_picture(image.path)) for image in images)

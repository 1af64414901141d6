"""``--data`` and ``--eval-data``: what a path or name holds, told by its content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeferry_runtime.fields import did_you_mean

from edgeferry_converter.data.coco import CocoDataset, find_annotations
from edgeferry_converter.data.dataset import Dataset, Shape, takes_frames
from edgeferry_converter.data.folders import FolderDataset, list_images
from edgeferry_converter.data.generators import GeneratorDataset, is_generator
from edgeferry_converter.data.masks import MaskDataset
from edgeferry_converter.data.npz import NpzDataset
from edgeferry_converter.data.pictures import find_pictures
from edgeferry_converter.data.yolo import YoloDataset
from edgeferry_converter.errors import DataError

__all__ = ["open_dataset"]

LAYOUTS = (
    "Data is a folder of images a class, COCO (.json and images), YOLO (images/ and labels/), images/ and masks/,"
    " an .npz, or module:function; see docs/calibration-data.md."
)


def open_dataset(
    spec: str,
    inputs: Sequence[tuple[str, Shape]],
    labels: Sequence[str] | None = None,
    classes: int | None = None,
) -> Dataset:
    """Open what the user named.

    Args:
        spec: a path, or ``module:function``.
        inputs: (name, shape without the batch, None where any) of each of the model's inputs.
        labels: name of each class in the order of the model's outputs, or None.
        classes: how many the model tells apart, or None for a model that tells no classes apart.

    Raises:
        OptionError: ``module:function`` names nothing.
        DataError: there is no such path, it is of no known layout, breaks its format, or does not fit the model.
    """
    path = Path(spec)
    if not path.exists() and is_generator(spec):
        return GeneratorDataset(spec, inputs, labels, classes)
    if path.is_dir():
        return _open_folder(path, inputs, labels, classes)
    if path.is_file():
        return _open_file(path, inputs, labels, classes)
    beside = [p.name for p in path.absolute().parent.glob("*")] if path.absolute().parent.is_dir() else []
    raise DataError(f"{spec}: no such folder or file{did_you_mean(path.name, beside)}", LAYOUTS)


def _open_folder(
    root: Path, inputs: Sequence[tuple[str, Shape]], labels: Sequence[str] | None, classes: int | None
) -> Dataset:
    _check_takes_frames(root, inputs)
    if (root / "images").is_dir() and (root / "masks").is_dir():
        return MaskDataset(root, labels, classes)
    if (root / "images").is_dir() and _holds_text(root / "labels"):
        return YoloDataset(root, labels, classes)
    annotations = find_annotations(root)
    if len(annotations) > 1:
        raise DataError(
            f"{root}: holds {len(annotations)} annotation files ({', '.join(p.name for p in annotations[:5])})",
            "Name the one you mean: --data FOLDER/FILE.json.",
        )
    if annotations:
        return CocoDataset(annotations[0], labels, classes)
    if classes is None:
        folders = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".") and find_pictures(p)]
        if len(folders) < 2:
            return FolderDataset.flat(root)
        return FolderDataset(list_images(root, labels, len(folders)))
    return FolderDataset(list_images(root, labels, classes))


def _open_file(
    path: Path, inputs: Sequence[tuple[str, Shape]], labels: Sequence[str] | None, classes: int | None
) -> Dataset:
    with path.open("rb") as file:
        begin = file.read(64)
    if begin.startswith(b"PK\x03\x04") or path.suffix.lower() == ".npz":
        return NpzDataset(path, inputs, labels, classes)
    if path.suffix.lower() == ".json" or begin.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        _check_takes_frames(path, inputs)
        return CocoDataset(path, labels, classes)
    if begin.startswith(b"\x93NUMPY"):
        raise DataError(f"{path}: is a single array", f"Save it by name: np.savez(FILE, {inputs[0][0]}=array).")
    raise DataError(f"{path}: is of no known layout", LAYOUTS)


def _check_takes_frames(path: Path, inputs: Sequence[tuple[str, Shape]]) -> None:
    if takes_frames(inputs):
        return
    told = ", ".join(f"{name} {['any' if s is None else s for s in shape]}" for name, shape in inputs)
    raise DataError(
        f"{path}: holds images, the model does not take one image ({told})",
        "Give --data an .npz with arrays named as the model's inputs, or module:function.",
    )


def _holds_text(folder: Path) -> bool:
    return folder.is_dir() and next(folder.rglob("*.txt"), None) is not None and not find_pictures(folder)

"""COCO detection data: a folder of images and one annotations .json."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from edgeferry_runtime.sources import PICTURES

from edgeferry_converter.data.dataset import Box, TaskHint, listed
from edgeferry_converter.data.pictures import PictureDataset, read_bytes
from edgeferry_converter.errors import DataError

__all__ = ["CocoDataset", "find_annotations", "rarest"]

# Annotators round; a box may reach over the border by this many pixels.
OVERHANG = 1.0


class CocoDataset(PictureDataset):
    """Images with boxes; polygons and key points are passed over, crowds are no boxes.

    Classes are the categories in the order of their ids (COCO's own have gaps), or of ``labels`` when those name
    the categories.

    Args:
        annotations: the .json.
        labels: name of each class in the order of the model's outputs, or None.
        classes: how many the model tells apart, or None.

    Raises:
        DataError: the file breaks the format, every problem named, or images are absent.
    """

    task_hint: TaskHint = "detect"

    def __init__(self, annotations: Path, labels: Sequence[str] | None = None, classes: int | None = None) -> None:
        parsed = _Parsed(_read(annotations))
        self.labels, order = _order(parsed, labels, classes, annotations)
        parsed.finish(annotations)
        folder, paths = _find_images(annotations, parsed)
        super().__init__(folder, paths)
        ids = list(parsed.images)
        self._sizes = [parsed.images[i][1:] for i in ids]
        numbers = {image: n for n, image in enumerate(ids)}
        boxes: list[list[Box]] = [[] for _ in ids]
        for image, category, box in parsed.boxes:
            boxes[numbers[image]].append(Box(order[category], *box))
        self._boxes = [tuple(members) for members in boxes]
        self._rarest = rarest(self._boxes)
        self.notes = tuple(parsed.notes)
        self.description = f"{len(self)} images with {len(parsed.boxes)} boxes (COCO, {annotations.name})"

    def label_key(self, i: int) -> int | None:
        return self._rarest[i]

    def label(self, i: int, pixels: np.ndarray) -> tuple[Box, ...]:
        width, height = self._sizes[i]
        if pixels.shape[:2] != (height, width):
            raise DataError(
                f"{self.image_path(i)}: is {pixels.shape[1]}x{pixels.shape[0]}, its annotations are for"
                f" {width}x{height}",
                "The boxes would be wrong. Sides swapped tell of an EXIF rotation: save the pixels rotated and"
                " annotate those.",
            )
        return self._boxes[i]


def find_annotations(root: Path) -> list[Path]:
    """The .json files at the top of a folder or in its ``annotations`` that look like COCO's."""
    found = sorted(p for folder in (root, root / "annotations") for p in folder.glob("*.json") if p.is_file())
    return [path for path in found if _looks_like_coco(path)]


def rarest(boxes: Sequence[Sequence[Box]]) -> list[int | None]:
    """Of each image the class that the fewest images show, so that the split spreads the rare ones too."""
    counts: dict[int, int] = {}
    for members in boxes:
        for label in {box.label for box in members}:
            counts[label] = counts.get(label, 0) + 1
    return [min({b.label for b in members}, key=lambda c: (counts[c], c), default=None) for members in boxes]


class _Parsed:
    """Categories, images and boxes of a parsed file; what is wrong is noted, not raised."""

    def __init__(self, value: Any) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.categories: dict[int, str] = {}
        self.images: dict[int, tuple[str, int, int]] = {}
        self.boxes: list[tuple[int, int, tuple[float, float, float, float]]] = []
        if not isinstance(value, dict):
            self.problems.append("top level: must be an object")
            return
        self._passed_over = {"crowds": 0, "boxes without area": 0}
        for key, read in (("categories", self._category), ("images", self._image), ("annotations", self._box)):
            entries = value.get(key)
            if not isinstance(entries, list):
                self.problems.append(f"{key}: must be a list" if key in value else f"{key}: is missing")
                continue
            for i, entry in enumerate(entries):
                if isinstance(entry, dict):
                    read(f"{key}[{i}]", entry)
                else:
                    self.problems.append(f"{key}[{i}]: must be an object")
        self.notes += [f"{count} {what} passed over" for what, count in self._passed_over.items() if count]

    def finish(self, path: Path) -> None:
        if not self.problems and not self.images:
            self.problems.append("images: is empty")
        if self.problems:
            raise DataError(
                f"{path}: {len(self.problems)} problems in the annotations:{listed(self.problems)}",
                "docs/calibration-data.md shows what is read of COCO's format.",
            )

    def _category(self, where: str, entry: dict[str, Any]) -> None:
        number, name = self._integer(where, entry, "id"), entry.get("name")
        if not isinstance(name, str) or not name.strip():
            self.problems.append(f"{where}.name: must be a name")
        elif number in self.categories or name in self.categories.values():
            self.problems.append(f"{where}: id {number} or name {name!r} is there twice")
        elif number is not None:
            self.categories[number] = name

    def _image(self, where: str, entry: dict[str, Any]) -> None:
        number, name = self._integer(where, entry, "id"), entry.get("file_name")
        sides = [self._integer(where, entry, key, 1) for key in ("width", "height")]
        if not isinstance(name, str) or not _is_inside(name):
            self.problems.append(f"{where}.file_name: must be a path inside the images' folder, is {name!r:.60}")
        elif number in self.images:
            self.problems.append(f"{where}: id {number} is there twice")
        elif number is not None and sides[0] is not None and sides[1] is not None:
            self.images[number] = (name, sides[0], sides[1])

    def _box(self, where: str, entry: dict[str, Any]) -> None:
        image, category = (self._integer(where, entry, key) for key in ("image_id", "category_id"))
        box = _numbers(entry.get("bbox"))
        if box is None:
            self.problems.append(f"{where}.bbox: must be four numbers [x, y, width, height]")
        elif image is None or category is None:
            pass  # noted already
        elif image not in self.images:
            self.problems.append(f"{where}.image_id: no image {image}")
        elif category not in self.categories:
            self.problems.append(f"{where}.category_id: no category {category}")
        elif entry.get("iscrowd") == 1:
            self._passed_over["crowds"] += 1
        elif box[2] <= 0 or box[3] <= 0:  # COCO's own files have a few
            self._passed_over["boxes without area"] += 1
        elif not _fits(box, *self.images[image][1:]):
            name, width, height = self.images[image]
            self.problems.append(f"{where}.bbox: {list(box)} reaches out of {name} ({width}x{height})")
        else:
            self.boxes.append((image, category, box))

    def _integer(self, where: str, entry: dict[str, Any], key: str, minimum: int = 0) -> int | None:
        value = entry.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value >= minimum:
            return value
        self.problems.append(f"{where}.{key}: must be an integer of at least {minimum}, is {value!r:.40}")
        return None


def _read(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON: {error}", "Export the annotations again.") from None


def _looks_like_coco(path: Path) -> bool:
    """Whether a file mentions annotations, read a part at a time: they may be hundreds of megabytes."""
    word, tail = b'"annotations"', b""
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            if word in tail + part:
                return True
            tail = part[-len(word) :]
    return False


def _order(
    parsed: _Parsed, labels: Sequence[str] | None, classes: int | None, path: Path
) -> tuple[tuple[str, ...], dict[int, int]]:
    names = [parsed.categories[i] for i in sorted(parsed.categories)]
    order = list(labels) if labels is not None else names
    if parsed.problems:
        return tuple(order), {}
    strange = sorted(set(names) - set(order))
    if strange:
        raise DataError(
            f"{path}: category {strange[0]!r} is no label",
            "The labels file must name every category, in the order of the model's outputs.",
        )
    if classes is not None and len(order) != classes:
        raise DataError(
            f"{path}: has {len(order)} classes, the model tells {classes} classes apart",
            "Give --labels with one name a line, in the order of the model's outputs.",
        )
    return tuple(order), {i: order.index(name) for i, name in parsed.categories.items()}


def _find_images(annotations: Path, parsed: _Parsed) -> tuple[Path, list[Path]]:
    """The folder that holds the first image, and every image in it."""
    names = [image[0] for image in parsed.images.values()]
    subset = annotations.stem.removeprefix("instances_")
    places = [
        base / part
        for base in (annotations.parent, annotations.parent.parent)
        for part in ("", "images", subset, f"images/{subset}")
    ]
    folder = next((place for place in places if (place / names[0]).is_file()), None)
    if folder is None:
        raise DataError(
            f"{annotations}: its first image {names[0]} is in none of {', '.join(str(p) for p in places[:4])}",
            "Put the images into a folder 'images' beside the annotations.",
        )
    paths = [folder / name for name in names]
    problems = [f"{path}: is no picture file" for path in paths if path.suffix.lower() not in PICTURES]
    problems += [f"{path}: is missing" for path in paths if not path.is_file()]
    if problems:
        raise DataError(
            f"{annotations}: {len(problems)} images cannot be used:{listed(problems)}",
            "Add the files, or take them out of the annotations.",
        )
    return folder, paths


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    plain = "\0" not in name and ":" not in name
    return bool(name) and plain and not path.is_absolute() and ".." not in path.parts


def _numbers(value: Any) -> tuple[float, float, float, float] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    for number in value:
        if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < 1e9:
            return None
        if not math.isfinite(number):
            return None
    x, y, w, h = (float(number) for number in value)
    return x, y, w, h


def _fits(box: tuple[float, float, float, float], width: int, height: int) -> bool:
    x, y, w, h = box
    return x >= -OVERHANG and y >= -OVERHANG and x + w <= width + OVERHANG and y + h <= height + OVERHANG

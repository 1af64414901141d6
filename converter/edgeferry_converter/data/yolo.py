"""YOLO detection data: images/ and labels/ with a text file an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeferry_converter.data.coco import rarest
from edgeferry_converter.data.dataset import Box, TaskHint, listed
from edgeferry_converter.data.labels import read_labels
from edgeferry_converter.data.pictures import PictureDataset, find_pictures, read_bytes
from edgeferry_converter.errors import DataError

__all__ = ["CLASS_FILES", "YoloDataset"]

CLASS_FILES = ("classes.txt", "labels.txt", "obj.names")  # one name a line; data.yaml is not read
# Centre and size are rounded to six digits by most tools: corners may be off by that.
ROUNDING = 1e-3

_Row = tuple[int, float, float, float, float]


class YoloDataset(PictureDataset):
    """Images with boxes; an image without a text file, or with an empty one, shows nothing.

    Args:
        root: holds ``images`` and ``labels``, whose files have equal paths below them; names of the classes come
            from ``labels`` or the first of ``CLASS_FILES`` there is.
        labels: name of each class in the order of the model's outputs, or None.
        classes: how many the model tells apart, or None.

    Raises:
        DataError: files break the format, every problem named.
    """

    task_hint: TaskHint = "detect"

    def __init__(self, root: Path, labels: Sequence[str] | None = None, classes: int | None = None) -> None:
        super().__init__(root, find_pictures(root / "images"))
        if not len(self):
            raise DataError(f"{root / 'images'}: holds no images", "Put the images there.")
        self.labels = tuple(labels) if labels is not None else _class_names(root)
        if self.labels and classes is not None and len(self.labels) != classes:
            raise DataError(
                f"{root}: names {len(self.labels)} classes, the model tells {classes} classes apart",
                "Give --labels with one name a line, in the order of the model's outputs.",
            )
        known = classes if classes is not None else len(self.labels) or None
        problems: list[str] = []
        texts = [root / "labels" / p.relative_to(root / "images").with_suffix(".txt") for p in self._paths]
        problems += _twins(self._paths, texts)
        problems += _orphans(root, set(texts))
        self._rows = [_read_rows(text, known, problems) if text.is_file() else () for text in texts]
        if problems:
            raise DataError(
                f"{root}: {len(problems)} problems in the labels:{listed(problems)}",
                "A line is: class centre-x centre-y width height, the last four as shares of the image (0 to 1).",
            )
        self._rarest = rarest([[Box(*row) for row in rows] for rows in self._rows])
        count = sum(len(rows) for rows in self._rows)
        self.description = f"{len(self)} images with {count} boxes (YOLO)"
        if not self.labels and any((root / name).is_file() for name in ("data.yaml", "data.yml")):
            self.notes = ("data.yaml is not read: write the class names into classes.txt, one a line",)

    def label_key(self, i: int) -> int | None:
        return self._rarest[i]

    def label(self, i: int, pixels: np.ndarray) -> tuple[Box, ...]:
        height, width = pixels.shape[:2]
        return tuple(
            Box(label, (x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
            for label, x, y, w, h in self._rows[i]
        )


def _class_names(root: Path) -> tuple[str, ...]:
    for name in CLASS_FILES:
        if (root / name).is_file():
            return tuple(read_labels(root / name))
    return ()


def _twins(pictures: Sequence[Path], texts: Sequence[Path]) -> list[str]:
    """Images that differ in their ending only and so share a text file."""
    first: dict[Path, Path] = {}
    problems = []
    for picture, text in zip(pictures, texts, strict=True):
        if text in first:
            problems.append(f"{picture}: has the same labels file as {first[text].name}")
        first.setdefault(text, picture)
    return problems


def _orphans(root: Path, texts: set[Path]) -> list[str]:
    there = sorted(p for p in (root / "labels").rglob("*.txt") if p.name not in CLASS_FILES)
    return [f"{path.relative_to(root)}: has no image" for path in there if path not in texts]


def _read_rows(path: Path, classes: int | None, problems: list[str]) -> tuple[_Row, ...]:
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        problems.append(f"{path.name}: is not UTF-8 text")
        return ()
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _row(line.split(), classes)
        if isinstance(row, str):
            problems.append(f"{path.name}, line {number}: {row}")
        else:
            rows.append(row)
    return tuple(rows)


def _row(words: Sequence[str], classes: int | None) -> _Row | str:
    """A line's values, or what is wrong with it."""
    if len(words) != 5:
        polygon = ", polygons are not read" if len(words) > 5 and len(words) % 2 else ""
        return f"has {len(words)} values, needs 5{polygon}"
    if not (words[0].isascii() and words[0].isdigit() and len(words[0]) < 9):
        return f"class {words[0]!r:.20} is no whole number"
    label = int(words[0])
    if classes is not None and label >= classes:
        return f"class {label}, there are {classes} (0 to {classes - 1})"
    try:
        x, y, w, h = (float(word) for word in words[1:])
    except ValueError:
        return "holds a value that is no number"
    if not all(math.isfinite(v) and 0 <= v <= 1 for v in (x, y, w, h)) or w == 0 or h == 0:
        return f"box {words[1:]} is not in shares of the image, 0 to 1 and with an area"
    if min(x - w / 2, y - h / 2) < -ROUNDING or max(x + w / 2, y + h / 2) > 1 + ROUNDING:
        return f"box {words[1:]} reaches out of the image"
    return label, x, y, w, h

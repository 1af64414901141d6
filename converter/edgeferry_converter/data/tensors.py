"""What arrays of npz files and generators mean: frames or tensors, and which kind of label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgeferry_converter.data.dataset import FRAME, Shape, TaskHint, takes_frames
from edgeferry_converter.errors import DataError

__all__ = ["as_frame", "as_label", "as_label_kind", "as_tensor", "is_frame"]

ROWS = 4096  # of labels looked at together
IGNORED = 255  # of a mask: no class counts here


def is_frame(shape: Sequence[int], dtype: np.dtype[Any], inputs: Sequence[tuple[str, Shape]]) -> bool:
    """Whether one sample's array is a picture: uint8 [h, w], [h, w, 1] or [h, w, 3] for an image model."""
    picture = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))
    return dtype == np.uint8 and picture and takes_frames(inputs)


def as_frame(array: np.ndarray) -> dict[str, np.ndarray]:
    """A picture in RGB order (as Keras' data sets have it) or gray as a frame sample's inputs.

    Args:
        array: uint8 [h, w], [h, w, 1] or [h, w, 3] RGB.

    Returns:
        {"frame": uint8 [h, w, 3] BGR}, a copy.
    """
    pixels = array.reshape(*array.shape[:2], -1)
    return {FRAME: np.ascontiguousarray(np.broadcast_to(pixels[..., ::-1], (*array.shape[:2], 3)))}


def as_tensor(array: np.ndarray, shape: Shape, where: str) -> np.ndarray:
    """One sample's array as the model takes it: a copy, float32 or an integer type as it is.

    Args:
        array: numbers; a leading axis of length 1 (a batch) is dropped.
        shape: of the input without the batch; None matches any length.
        where: for messages.

    Raises:
        DataError: the shape differs, or it holds no numbers, or NaN or infinity.
    """
    if array.ndim == len(shape) + 1 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != len(shape) or any(a != b for a, b in zip(array.shape, shape, strict=True) if b is not None):
        told = ", ".join("any" if side is None else str(side) for side in shape)
        raise DataError(
            f"{where}: has shape {list(array.shape)}, the model takes [{told}]",
            "Shapes are without the batch; images of another size are resized only when they are uint8.",
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise DataError(f"{where}: holds NaN or infinity", "Repair or remove the sample.")
        with np.errstate(over="ignore"):
            result = array.astype(np.float32)
        if not np.isfinite(result).all():
            raise DataError(f"{where}: holds numbers beyond float32", "Scale them as in training.")
        return result
    if array.dtype.kind not in "iub":
        raise DataError(f"{where}: holds {array.dtype}, not numbers", "Save it as float32 or an integer type.")
    return array.astype(np.uint8 if array.dtype.kind == "b" else array.dtype.newbyteorder("="))


def as_label_kind(rows: np.ndarray, classes: int | None, where: str) -> tuple[TaskHint, Callable[[int], Any]]:
    """What an array of labels is for, and how to read one.

    Integers [n] or [n, 1] are classes, integers [n, h, w] masks; float [n] or [n, k] are values, unless each row
    has a single 1 and zeros (one-hot), which is a class.

    Args:
        rows: one a sample; looked at a part at a time.
        classes: how many the model tells apart, or None.
        where: for messages.

    Raises:
        DataError: another form, or classes the model does not know.
    """
    kind = rows.dtype.kind
    integral = kind in "iub"
    if integral and (rows.ndim == 1 or rows.shape[1:] == (1,)):
        _check_classes(rows, classes, where)
        return "classify", lambda i: int(rows[i].reshape(()))
    if rows.ndim == 2 and kind in "iubf" and rows.shape[1] > 1 and classes in (None, rows.shape[1]):
        if _one_hot(rows):
            return "classify", lambda i: int(np.argmax(rows[i]))
        if integral:
            raise DataError(
                f"{where}: integers of shape {list(rows.shape)} are neither classes [n] nor one-hot",
                "Save one class a sample, or floats for a regression.",
            )
    if integral and rows.ndim in (3, 4) and (rows.ndim == 3 or rows.shape[3] == 1):
        return "segment", lambda i: as_label(rows[i], "segment", classes, f"{where}[{i}]")
    if kind == "f" and rows.ndim in (1, 2):
        return "regress", lambda i: as_label(rows[i], "regress", classes, f"{where}[{i}]")
    raise DataError(
        f"{where}: labels of {rows.dtype}{list(rows.shape)} are of no known kind",
        "Labels are integers [n] (classes), floats [n, k] (values) or integers [n, h, w] (masks).",
    )


def as_label(value: Any, task: TaskHint, classes: int | None, where: str) -> Any:
    """One label as samples carry it.

    Raises:
        DataError: it is no label of that task.
    """
    array = np.asarray(value)
    if task == "classify":
        _check_classes(array.reshape(1), classes, where)
        return int(array.reshape(()))
    if task == "regress":
        if not np.isfinite(array).all():
            raise DataError(f"{where}: is NaN or infinite", "Repair or remove the sample.")
        return array.astype(np.float32).reshape(-1)
    mask = array[..., 0] if array.ndim == 3 else array
    beyond = mask[(mask < 0) | (mask >= min(classes or IGNORED, IGNORED))]
    strange = beyond[beyond != IGNORED]
    if strange.size:
        raise DataError(
            f"{where}: the mask holds class {int(strange.flat[0])},"
            + (f" the model tells {classes} classes apart" if classes else " classes are 0 to 254"),
            f"Masks hold class indices, and {IGNORED} where no class counts.",
        )
    return mask.astype(np.uint8)


def _check_classes(rows: np.ndarray, classes: int | None, where: str) -> None:
    for begin in range(0, len(rows), ROWS):
        part = rows[begin : begin + ROWS]
        low, high = int(part.min()), int(part.max())
        if low < 0 or (classes is not None and high >= classes):
            told = f"the model tells {classes} classes apart" if classes is not None else "classes count from 0"
            raise DataError(
                f"{where}: holds class {low if low < 0 else high}, {told}",
                "Classes count from 0 in the order of the model's outputs.",
            )


def _one_hot(rows: np.ndarray) -> bool:
    for begin in range(0, len(rows), ROWS):
        part = np.asarray(rows[begin : begin + ROWS])
        if not (((part == 0) | (part == 1)).all() and (part.sum(axis=1) == 1).all()):
            return False
    return True

"""From a pixel's 256 levels to the tensor's numbers: a table, or a shorter way that gives the same table."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import numpy as np

from edgeferry_runtime.manifest import TensorSpec
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.tensors import quantize

__all__ = ["Way", "level_table", "level_way"]


class Way(NamedTuple):
    """How levels become numbers.

    Attributes:
        name: for people.
        bytewise: the numbers are the levels' own bytes, changed in place: pictures may be written into the tensor.
        in_rows: whole rows of the tensor are changed in place, so padding beside a picture begins as levels, too.
        tie: (region, rows) to a function of levels.  ``region`` is the memory to write to, [h, w] or [h, w, 3], of
            uint8 when bytewise; ``rows`` the tensor's whole rows that it lies in, contiguous.  Levels are uint8 of
            the region's shape or, when bytewise, the region itself.
    """

    name: str
    bytewise: bool
    in_rows: bool
    tie: Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]


def level_table(declared: Preprocessing, spec: TensorSpec) -> np.ndarray:
    """What each of a pixel's 256 levels becomes: [256, channels] in the tensor's dtype.

    The arithmetic is single precision, one rounded step after the other:
    ``(level * scale - mean) / std``; a quantised tensor's scale and zero point follow in double precision.
    """
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], declared.channels, axis=1).astype(np.float32)
    scale, mean, std = (np.array(values, np.float32) for values in (declared.scale, declared.mean, declared.std))
    return quantize((levels * scale - mean) / std, spec)


def level_way(declared: Preprocessing, spec: TensorSpec, cv2: Any) -> Way:
    """The shortest way that gives the whole table.

    Args:
        cv2: OpenCV's module, or None to do without.
    """
    table = level_table(declared, spec)
    picture = np.repeat(np.arange(256, dtype=np.uint8)[:, None], declared.channels, axis=1)[:, None]
    expected = table[:, None]
    if declared.channels == 1:
        picture, expected = picture[..., 0], expected[..., 0]
    ways = [Way("multiply", False, True, lambda region, rows: _affine(declared, region, rows))]
    if spec.dtype != "float32":
        ways = [Way("copy", True, True, _copy), Way("xor 0x80", True, True, _xor)]
    for way in ways:
        found = np.empty_like(expected)
        memory = found.view(np.uint8) if way.bytewise else found
        way.tie(memory, memory)(picture)
        if np.array_equal(found, expected):
            return way
    return Way("table", False, False, lambda region, rows: _lookup(table, region, cv2))


def _copy(region: np.ndarray, rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    def way(levels: np.ndarray) -> np.ndarray:
        if levels is not region:
            np.copyto(region, levels)
        return region

    return way


def _xor(region: np.ndarray, rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    sign = np.uint8(0x80)
    flat = rows.reshape(-1)
    whole = region.flags.c_contiguous

    def way(levels: np.ndarray) -> np.ndarray:
        # Flat memory everywhere: numpy takes buffers for anything else.
        if whole and levels.flags.c_contiguous:
            return np.bitwise_xor(levels, sign, out=region)
        if levels is not region:
            np.copyto(region, levels)
        np.bitwise_xor(flat, sign, out=flat)
        return region

    return way


def _affine(declared: Preprocessing, region: np.ndarray, rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    flat = rows.reshape(-1)
    operations: list[tuple[Any, np.ndarray]] = []
    for operation, values, neutral in (
        (np.multiply, (declared.scale,), 1.0),
        (np.subtract, declared.mean, 0.0),
        (np.divide, declared.std, 1.0),
    ):
        constants = np.array(values, np.float32)
        if np.any(constants != neutral):
            one = np.all(constants == constants[0])
            # One a number of the tensor: spreading three over them would take a buffer, and ten times as long.
            operations.append((operation, constants[0] if one else np.resize(constants, flat.shape)))

    def way(levels: np.ndarray) -> np.ndarray:
        np.copyto(region, levels)
        for operation, constant in operations:
            operation(flat, constant, out=flat)
        return region

    return way


def _lookup(table: np.ndarray, region: np.ndarray, cv2: Any) -> Callable[[np.ndarray], np.ndarray]:
    channels = table.shape[1]
    columns = [np.ascontiguousarray(table[:, c]) for c in range(channels)]
    same = all(np.array_equal(column, columns[0]) for column in columns)
    values = columns[0] if same else np.ascontiguousarray(table[:, None])

    def way(levels: np.ndarray) -> np.ndarray:
        cv2.LUT(levels, values, dst=region)
        return region

    def by_numpy(levels: np.ndarray) -> np.ndarray:
        for c, column in enumerate(columns):
            part, into = (levels, region) if region.ndim == 2 else (levels[..., c], region[..., c])
            # mode is said because "raise" makes take() buffer its output.
            np.take(column, part, out=into, mode="clip")
        return region

    return by_numpy if cv2 is None else way

"""Arrays in an .npz file: read a row at a time from disk, whatever the file's size."""

from __future__ import annotations

import hashlib
import shutil
import struct
import tempfile
import weakref
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from edgeferry_runtime.fields import did_you_mean
from numpy.lib import format as npy

from edgeferry_converter.data.dataset import Dataset, Sample, Shape, TaskHint
from edgeferry_converter.data.tensors import as_frame, as_label_kind, as_tensor, is_frame
from edgeferry_converter.errors import DataError

__all__ = ["NpzDataset"]

# What Keras' data sets and people call their arrays; the test part first: a model was trained on the other.
CUSTOMARY = (("x", "y"), ("x_test", "y_test"), ("x_train", "y_train"))
LABELS = "labels"
CHUNK = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # of a zip member; its name and extra field follow


class NpzDataset(Dataset):
    """Samples that are rows of arrays.

    Stored members (``np.savez``) are mapped where they lie; compressed ones (``np.savez_compressed``) are unpacked
    to a temporary file first, a chunk at a time, which is removed with the data set.

    Args:
        path: the file.
        inputs: (name, shape without the batch) of each of the model's inputs.
        labels: name of each class, or None.
        classes: how many the model tells apart, or None.

    Raises:
        DataError: it is no .npz, is damaged, holds pickled objects, or does not fit the model's inputs.
    """

    def __init__(
        self,
        path: Path,
        inputs: Sequence[tuple[str, Shape]],
        labels: Sequence[str] | None = None,
        classes: int | None = None,
    ) -> None:
        self.path = path
        with _named_faults(path), _Archive(path) as archive:
            arrays, label_array, self.notes = _choose(archive, inputs)
            self._arrays = {name: archive.array(member) for name, member in arrays.items()}
            self._label_rows = archive.array(label_array) if label_array else None
            self._files = archive.files
        weakref.finalize(self, shutil.rmtree, self._files, ignore_errors=True)
        self._count = self._check_rows(label_array)
        self._shapes = dict(inputs)
        first_name, first = next(iter(self._arrays.items()))
        if is_frame(first.shape[1:], first.dtype, inputs):
            self.kind = "frames"
        else:
            self.kind = "tensors"
            for name, array in self._arrays.items():
                as_tensor(np.zeros(array.shape[1:], array.dtype), self._shapes[name], f"{path}: array of {name!r}")
        self.task_hint: TaskHint = ""
        if self._label_rows is not None:
            where = f"{path}: array {label_array!r}"
            self.task_hint, self._label = as_label_kind(self._label_rows, classes, where)
        self.labels = tuple(labels or ())
        if labels is not None and classes is not None and len(labels) != classes:
            raise DataError(
                f"the labels file has {len(labels)} lines, the model tells {classes} classes apart",
                "Write one label a line, in the order of the model's outputs.",
            )
        shown = f"{first.dtype}{list(first.shape[1:])}"
        self.description = f"{self._count} {self.kind} of {shown} ({path.name}, {first_name})"

    def __len__(self) -> int:
        return self._count

    def name(self, i: int) -> str:
        return f"{self.path.name}[{i}]"

    def content_key(self, i: int) -> str:
        digest = hashlib.sha256()
        for name in sorted(self._arrays):
            digest.update(np.ascontiguousarray(self._arrays[name][i]).tobytes())
        return digest.hexdigest()

    def label_key(self, i: int) -> int | None:
        return int(self._label(i)) if self.task_hint == "classify" else None

    def load(self, i: int) -> Sample:
        label = self._label(i) if self._label_rows is not None else None
        rows = {name: np.asarray(array[i]) for name, array in self._arrays.items()}
        if self.kind == "frames":
            return Sample(as_frame(next(iter(rows.values()))), label, self.name(i))
        inputs = {
            name: as_tensor(row, self._shapes[name], f"{self.name(i)}, input {name!r}")
            for name, row in rows.items()
        }
        return Sample(inputs, label, self.name(i))

    def _check_rows(self, label_array: str) -> int:
        rows = {name: array.shape[0] if array.ndim else -1 for name, array in self._arrays.items()}
        if self._label_rows is not None:
            rows[label_array] = self._label_rows.shape[0] if self._label_rows.ndim else -1
        counts = set(rows.values())
        if len(counts) != 1 or min(counts) < 1:
            told = ", ".join(f"{name}: {'no axis' if n < 0 else n}" for name, n in rows.items())
            raise DataError(
                f"{self.path}: the arrays' first axes must count the same samples ({told})",
                "Save arrays with one row a sample.",
            )
        return counts.pop()


@dataclass(frozen=True)
class _Header:
    """What an .npy begins with: the array's form, and where its numbers begin in the member."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    begin: int

    @property
    def size(self) -> int:
        count = 1
        for side in self.shape:  # Python's integers: numpy's product would overflow without a word
            count *= side
        return count * self.dtype.itemsize


class _Archive:
    """The members of an .npz, and arrays that read from disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = zipfile.ZipFile(path)
        self.files = Path(tempfile.mkdtemp(prefix="edgeferry-npz-"))

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._zip.close()
        if kind is not None:
            shutil.rmtree(self.files, ignore_errors=True)

    @property
    def names(self) -> list[str]:
        return [name.removesuffix(".npy") for name in self._zip.namelist() if name.endswith(".npy")]

    def array(self, name: str) -> np.ndarray:
        """One array, mapped from disk and read only; its bytes are checked against the zip's sum now."""
        info = self._zip.getinfo(f"{name}.npy")
        with self._zip.open(info) as member:
            header = _read_header(member, f"{self.path}: array {name!r}")
            if header.begin + header.size != info.file_size:
                raise DataError(
                    f"{self.path}: array {name!r} says it has {header.size} bytes,"
                    f" {info.file_size - header.begin} are there",
                    "The file is damaged; save it again.",
                )
            if info.compress_type == zipfile.ZIP_STORED:
                _drain(member)
                return self._map(self.path, self._begin(info) + header.begin, header)
            self._check_room(header.size)
            unpacked = self.files / f"{len(list(self.files.iterdir()))}.bin"
            with unpacked.open("wb") as file:
                shutil.copyfileobj(member, file, CHUNK)
        return self._map(unpacked, 0, header)

    def _map(self, path: Path, begin: int, header: _Header) -> np.ndarray:
        order: Any = "F" if header.fortran else "C"
        if not header.size:  # nothing to map
            return np.zeros(header.shape, header.dtype)
        return np.memmap(path, header.dtype, "r", begin, header.shape or (1,), order).reshape(header.shape)

    def _begin(self, info: zipfile.ZipInfo) -> int:
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            *_, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        return info.header_offset + _LOCAL_HEADER.size + name_length + extra_length

    def _check_room(self, size: int) -> None:
        free = shutil.disk_usage(self.files).free
        if size > free:
            raise DataError(
                f"{self.path}: unpacks to {size >> 20} MB, {free >> 20} MB are free in {self.files.parent}",
                "Save it with np.savez, which does not compress, or point TMPDIR to a larger disk.",
            )


def _read_header(member: IO[bytes], where: str) -> _Header:
    version = npy.read_magic(member)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise DataError(f"{where}: is of .npy version {version}", "Save it with np.savez and plain arrays.")
    shape, fortran, dtype = read(member)
    if dtype.hasobject:
        raise DataError(f"{where}: holds pickled objects, which could run code", "Save plain numeric arrays.")
    if any(side < 0 for side in shape):
        raise DataError(f"{where}: has a negative side ({list(shape)})", "The file is damaged; save it again.")
    return _Header(shape, fortran, dtype, member.tell())


def _drain(member: IO[bytes]) -> None:
    while member.read(CHUNK):  # zipfile compares the sum at the end
        pass


class _named_faults:  # noqa: N801 - reads as a statement
    """Whatever zipfile, zlib and numpy say of a broken file, as one error with a name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, DataError):
            return
        # A damaged zip or header breaks its readers in more ways than they document: struct, zlib, tokenize...
        raise DataError(
            f"{self.path}: is no readable .npz: {error or type(error).__name__}",
            "Write it with np.savez(FILE, input_name=array, labels=array).",
        ) from None


def _choose(archive: _Archive, inputs: Sequence[tuple[str, Shape]]) -> tuple[dict[str, str], str, tuple[str, ...]]:
    """Which member is which input, which one the labels ("" for none), and what was taken for granted."""
    names = archive.names
    wanted = [name for name, _ in inputs]
    notes: list[str] = []
    label = LABELS if LABELS in names else ""
    if set(wanted) <= set(names):
        arrays = {name: name for name in wanted}
    elif len(wanted) == 1:
        member, paired = _only_input(names)
        if not member:
            raise _missing(archive.path, wanted, names)
        arrays, label = {wanted[0]: member}, label or paired
        with_label = f" and {label!r} for the labels" if label else ""
        notes.append(f"{archive.path.name}: array {member!r} taken for input {wanted[0]!r}{with_label}")
    else:
        raise _missing(archive.path, wanted, names)
    unused = [name for name in names if name not in (*arrays.values(), label)]
    if unused:
        notes.append(f"{archive.path.name}: not used: {', '.join(unused[:10])}")
    return arrays, label, tuple(notes)


def _only_input(names: Sequence[str]) -> tuple[str, str]:
    for x, y in CUSTOMARY:
        if x in names:
            return x, y if y in names else ""
    others = [name for name in names if name != LABELS]
    return (others[0], "") if len(others) == 1 else ("", "")


def _missing(path: Path, wanted: Sequence[str], names: Sequence[str]) -> DataError:
    absent = [name for name in wanted if name not in names]
    hints = [f"{name!r}{did_you_mean(name, names)}" for name in absent]
    return DataError(
        f"{path}: has no array {', '.join(hints)} (it has {', '.join(names[:12]) or 'none'})",
        "Name the arrays as the model's inputs: np.savez(FILE, "
        + ", ".join(f"{name}=..." for name in wanted[:3])
        + ", labels=...).",
    )

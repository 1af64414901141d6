"""Samples from the user's own code: ``module:function``, run once and kept on disk."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import re
import shutil
import sys
import tempfile
import traceback
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeferry_converter.data.dataset import FRAME, Dataset, Sample, Shape, TaskHint
from edgeferry_converter.data.tensors import as_frame, as_label, as_tensor, is_frame
from edgeferry_converter.errors import DataError, OptionError

__all__ = ["CAP", "GeneratorDataset", "failed", "function_of", "is_generator", "working_folder_importable"]

CAP = 5000  # samples taken; a generator may well be endless
_SPEC = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)
_FORMS = (
    "Yield an array, a dict of input name -> array, or a tuple (either of these, label); one sample each,"
    " without the batch."
)


class _Entry(NamedTuple):
    """Where a sample lies in the file, what it hashes to, and its class."""

    begin: int
    key: str
    names: tuple[str, ...]
    label: int | None
    has_label: bool


class GeneratorDataset(Dataset):
    """Samples that a function yields.

    The function is called once, without arguments, and what it yields is written to a temporary file a sample at a
    time: the split needs to know all contents, calibration may run several times, and a generator that draws at
    random would give other samples each time.

    Args:
        spec: ``module:function``; the working folder is searched first.
        inputs: (name, shape without the batch) of each of the model's inputs.
        labels: name of each class, or None.
        classes: how many the model tells apart, or None.
        cap: samples taken at most.

    Raises:
        OptionError: there is no such module or function.
        DataError: it fails, or yields what the model cannot take.
    """

    def __init__(
        self,
        spec: str,
        inputs: Sequence[tuple[str, Shape]],
        labels: Sequence[str] | None = None,
        classes: int | None = None,
        cap: int = CAP,
    ) -> None:
        self.spec, self._inputs, self._classes = spec, tuple(inputs), classes
        self.labels = tuple(labels or ())
        self._folder = Path(tempfile.mkdtemp(prefix="edgeferry-generator-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._file = self._folder / "samples.npy"
        self.task_hint: TaskHint = ""
        self._entries: list[_Entry] = []
        with working_folder_importable(), self._file.open("wb") as file:
            items = _iterate(spec, function_of(spec))
            for i, item in enumerate(islice(items, cap)):
                self._entries.append(self._write(file, i, item))
            self._note_the_rest(items, cap)
        if not self._entries:
            raise DataError(f"{spec}: yields nothing", _FORMS)
        self.description = f"{len(self)} {self.kind} from {spec}"

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, i: int) -> str:
        return f"{self.spec}[{i}]"

    def content_key(self, i: int) -> str:
        return self._entries[i].key

    def label_key(self, i: int) -> int | None:
        return self._entries[i].label

    def load(self, i: int) -> Sample:
        entry = self._entries[i]
        with self._file.open("rb") as file:
            file.seek(entry.begin)
            inputs = {name: np.load(file, allow_pickle=False) for name in entry.names}
            label = np.load(file, allow_pickle=False) if entry.has_label else entry.label
        return Sample(inputs, label, self.name(i))

    def _write(self, file: Any, i: int, item: Any) -> _Entry:
        where = self.name(i)
        given, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        inputs = self._read_inputs(given, i, where)
        task = _task(label, where)
        if i and task != self.task_hint:
            raise DataError(
                f"{where}: its label is of another kind than the first one's", "Yield labels of one kind."
            )
        self.task_hint = task
        value = as_label(label, task, self._classes, where) if task else None
        begin, digest = file.tell(), hashlib.sha256()
        for name in sorted(inputs):
            digest.update(np.ascontiguousarray(inputs[name]).tobytes())
        for array in inputs.values():
            np.save(file, array, allow_pickle=False)
        apart = isinstance(value, np.ndarray)
        if isinstance(value, np.ndarray):
            np.save(file, value, allow_pickle=False)
        return _Entry(begin, digest.hexdigest(), tuple(inputs), None if apart else value, apart)

    def _read_inputs(self, given: Any, i: int, where: str) -> dict[str, np.ndarray]:
        names = [name for name, _ in self._inputs]
        if not isinstance(given, dict):
            if len(names) != 1:
                raise DataError(
                    f"{where}: is one array, the model has the inputs {', '.join(names)}",
                    "Yield a dict of input name -> array.",
                )
            given = {names[0]: given}
        if set(given) != set(names):
            raise DataError(
                f"{where}: has {', '.join(map(str, given)) or 'nothing'},"
                f" the model's inputs are {', '.join(names)}",
                "Name the arrays as the model's inputs.",
            )
        arrays = {name: _array(given[name], where) for name in names}
        first = arrays[names[0]]
        if first.ndim == 4 and first.shape[0] == 1:
            first = first[0]
        kind = self.kind if i else None
        if kind != "tensors" and is_frame(first.shape, first.dtype, self._inputs):
            self.kind = "frames"
            return as_frame(first)
        if kind == "frames":
            raise DataError(
                f"{where}: is {first.dtype}{list(first.shape)}, the first one was a uint8 picture",
                "Yield pictures or ready tensors, not both.",
            )
        self.kind = "tensors"
        return {n: as_tensor(arrays[n], shape, f"{where}, input {n!r}") for n, shape in self._inputs}

    def _note_the_rest(self, items: Iterator[Any], cap: int) -> None:
        if len(self._entries) == cap:
            more = next(items, FRAME) is not FRAME
            self.notes = (f"{self.spec}: the first {cap} samples are taken",) if more else ()
        close = getattr(items, "close", None)
        if close is not None:
            close()


def is_generator(spec: str) -> bool:
    """Whether a ``--data`` value has the form ``module:function``."""
    return _SPEC.fullmatch(spec) is not None


def function_of(spec: str) -> Any:
    """What ``module:function`` names.

    Raises:
        OptionError: there is no such module or function.
        DataError: the module raises.
    """
    module_name, function_name = spec.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise failed(spec, "cannot be imported", error) from None
        here = [p.stem for p in Path.cwd().glob("*.py")]
        raise OptionError(
            f"{spec}: there is no module {error.name!r}{_near(error.name, here)}",
            "Run it in the folder that holds the module, or install it.",
        ) from None
    except (Exception, SystemExit) as error:
        raise failed(spec, "cannot be imported", error) from None
    function = getattr(module, function_name, None)
    if function is None:
        public = [name for name in vars(module) if not name.startswith("_")]
        raise OptionError(
            f"{spec}: {module_name} has no {function_name!r}{_near(function_name, public)}",
            "Name a function that yields samples.",
        )
    if not callable(function):
        raise OptionError(f"{spec}: {function_name} is no function", "Name a function that yields samples.")
    return function


def _iterate(spec: str, function: Any) -> Iterator[Any]:
    try:
        items = function()
        if not isinstance(items, Iterable) or isinstance(items, dict | str | bytes):
            raise DataError(f"{spec}: returns {type(items).__name__}, nothing to go through", _FORMS)
        yield from items
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        raise failed(spec, "failed", error) from None


def failed(spec: str, what: str, error: BaseException) -> DataError:
    """An error of the user's own code, with its place."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return DataError(f"{spec}: {what}{place}: {type(error).__name__}: {error}", "Repair the function.")


def _task(label: Any, where: str) -> TaskHint:
    if label is None:
        return ""
    array = _array(label, where)
    if array.dtype.kind in "iub" and array.size == 1 and array.ndim < 2:
        return "classify"
    if array.dtype.kind in "iub" and array.ndim in (2, 3):
        return "segment"
    if array.dtype.kind == "f" and array.ndim < 2:
        return "regress"
    raise DataError(
        f"{where}: a label of {array.dtype}{list(array.shape)} is of no known kind",
        "Labels are an integer (class), floats (values) or integers [h, w] (mask).",
    )


def _array(value: Any, where: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever __array__ of a foreign type raises
        raise DataError(f"{where}: is no array: {error}", _FORMS) from None
    if array.dtype.kind not in "iubf":
        raise DataError(f"{where}: is {type(value).__name__} of {array.dtype}, no numbers", _FORMS)
    return array


def _near(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


@contextmanager
def working_folder_importable() -> Iterator[None]:
    """The working folder first on the module path, as ``python -m`` has it."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)

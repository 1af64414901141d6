"""``--train-data``: samples as batches to train with, prepared as the board prepares frames."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeferry_converter.compression.augment import augmented
from edgeferry_converter.compression.train_intake import Intake
from edgeferry_converter.compression.train_stream import StreamData, open_stream
from edgeferry_converter.data.dataset import Dataset
from edgeferry_converter.data.generators import is_generator
from edgeferry_converter.data.open import open_dataset
from edgeferry_converter.errors import DataError, OptionError
from edgeferry_converter.feeding import Feed
from edgeferry_converter.loading.source import SourceModel

__all__ = ["ArrayBatches", "TrainData", "open_train_data"]

CACHE_BYTES = 1 << 30  # of prepared float32 inputs kept in memory; beyond that every batch is prepared anew
Load = Callable[[np.ndarray], list[np.ndarray]]  # sample numbers [n] -> the model's inputs, [n, ...] each


class TrainData:
    """Samples by number, to train with; see ``edgeferry_converter.compression.training.Data``.

    Attributes:
        size: how many samples.
        classes: how many the model tells apart, None where it tells none apart.
        task: "classify", "regress", or "" without labels.
        images: whether samples were frames, so that augmentation makes sense.
        description, notes: what the data is, and what was taken for granted on reading.
    """

    def __init__(
        self,
        dataset: Dataset,
        source: SourceModel,
        feed: Feed,
        classes: int | None,
        indices: Sequence[int] | None = None,
        cache_bytes: int = CACHE_BYTES,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Samples of a data set that is open already.

        Args:
            dataset: frames or tensors.
            source: the model they are for.
            feed: the way from samples to inputs, the same as in calibration.
            classes: see above.
            indices: which samples; None for all.
            cache_bytes: how large prepared inputs may be to be kept in memory.
            progress: called with (samples prepared, of how many).

        Raises:
            DataError: the samples or labels do not fit the model.
        """
        intake = Intake(source, feed, classes)
        intake.check_task(dataset.task_hint, dataset.description)
        numbers = np.arange(len(dataset)) if indices is None else np.asarray(indices, int)
        if not len(numbers):
            raise DataError(f"{dataset.description}: holds nothing to train with", "Give samples.")
        self.classes, self.task, self.images = classes, dataset.task_hint, dataset.kind == "frames"
        self.description, self.notes = dataset.description, dataset.notes
        self._dataset, self._numbers = dataset, numbers
        kept = intake.sample_bytes() * len(numbers) <= cache_bytes
        arrays = intake.room(len(numbers) if kept else 0)
        labels = []
        for row, number in enumerate(numbers.tolist()):
            labels.append(_read(dataset, number, intake, [array[row] for array in arrays] if kept else None))
            if progress is not None:
                progress(row + 1, len(numbers))
        self._labels = intake.labels(labels, self.task, dataset.description)
        self._load: Load = (
            (lambda picks: [array[picks] for array in arrays])
            if kept
            else (lambda picks: _prepared(dataset, numbers[picks], intake))
        )
        self._rows = np.arange(len(numbers))
        self._note_missing()

    @property
    def size(self) -> int:
        """How many samples."""
        return len(self._rows)

    def batches(self, batch_size: int, seed: int = 0, augment: str | None = None) -> ArrayBatches:
        """Shuffled batches; the same for the same seed and epoch.

        Args:
            batch_size: samples a batch; what is left over at an epoch's end comes in another epoch.
            seed: of shuffling and augmentation.
            augment: one of ``augment.AUGMENTATIONS``; None for flip and shift of frames, nothing otherwise.

        Raises:
            OptionError: augmentation of what is no image.
        """
        kind = augment if augment is not None else "flip-shift" if self.images else "none"
        if kind != "none" and not self.images:
            raise OptionError(f"{self.description}: only images can be augmented by {kind}", 'Take "none".')
        return ArrayBatches(self._load, self._labels, self._rows, batch_size, seed, kind)

    def hold_out(self, share: float, seed: int = 0) -> tuple[TrainData, TrainData]:
        """Two parts without a common sample: to train with, and to tell by when to stop.

        Raises:
            DataError: one of them would be empty.
        """
        order = np.random.default_rng(seed).permutation(self._rows)
        count = round(share * len(order))
        if not 0 < count < len(order):
            raise DataError(
                f"{self.description}: {share:.0%} of it is nothing or everything", "Give more samples."
            )
        return self._part(np.sort(order[count:])), self._part(np.sort(order[:count]))

    def overlap(self, judging: Dataset, indices: Iterable[int]) -> int:
        """How many of these samples, which are to judge the model, it would be trained with, told by content.

        Copies in another form (a picture once as a file, once in an .npz) are not recognised.
        """
        if judging.keyed_by != self._dataset.keyed_by:
            return 0
        trained = {self._dataset.content_key(number) for number in self._numbers[self._rows].tolist()}
        return sum(judging.content_key(i) in trained for i in indices)

    def _part(self, rows: np.ndarray) -> TrainData:
        part = object.__new__(TrainData)
        part.__dict__.update(self.__dict__)
        part._rows = rows
        return part

    def _note_missing(self) -> None:
        if self.task != "classify" or self._labels is None or self.classes is None:
            return
        missing = sorted(set(range(self.classes)) - set(np.unique(self._labels).tolist()))
        if missing:
            told = ", ".join(map(str, missing[:10]))
            self.notes = (*self.notes, f"no sample to train with is of class {told}: the model will forget it")


class ArrayBatches:
    """One epoch's batches by number; ``epoch`` decides their order and augmentation.

    A batch is (inputs, labels), or (inputs,) without labels; inputs are one array or a tuple of them.
    """

    def __init__(
        self, load: Load, labels: np.ndarray | None, rows: np.ndarray, batch_size: int, seed: int, augment: str
    ) -> None:
        self.epoch = 0
        self._load, self._labels, self._rows = load, labels, rows
        self._batch_size, self._seed, self._augment = min(batch_size, len(rows)), seed, augment
        self._ordered: tuple[int, np.ndarray] = (-1, rows)

    def __len__(self) -> int:
        return len(self._rows) // self._batch_size

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        picks = self._order()[i * self._batch_size : (i + 1) * self._batch_size]
        inputs = self._load(picks)
        if self._augment != "none":
            random = np.random.default_rng((self._seed, self.epoch, i))
            inputs = [augmented(inputs[0], self._augment, random)]
        x = inputs[0] if len(inputs) == 1 else tuple(inputs)
        return (x,) if self._labels is None else (x, self._labels[picks])

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return (self[i] for i in range(len(self)))

    def _order(self) -> np.ndarray:
        if self._ordered[0] != self.epoch:
            order = np.random.default_rng((self._seed, self.epoch)).permutation(self._rows)
            self._ordered = (self.epoch, order)
        return self._ordered[1]


def open_train_data(
    spec: str,
    source: SourceModel,
    feed: Feed,
    classes: int | None,
    labels: Sequence[str] | None = None,
    cache_bytes: int = CACHE_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> TrainData | StreamData:
    """Open what ``--train-data`` names.

    Args:
        spec: a folder, an .npz, or ``module:function``.  The function returns a tf.data.Dataset or a
            keras.utils.PyDataset, whose batches are taken as they come, or whatever ``--data`` takes.
        source: the model.
        feed: the way from samples to inputs, the same as in calibration; uint8 frames go through it.
        classes: how many the model tells apart, or None.
        labels: name of each class in the order of the model's outputs, or None.
        cache_bytes: how large prepared inputs may be to be kept in memory.
        progress: called with (samples prepared, of how many).

    Raises:
        OptionError: ``module:function`` names nothing.
        DataError: the data is empty, damaged, or has other classes or shapes than the model.
    """
    if not Path(spec).exists() and is_generator(spec):
        stream = open_stream(spec, Intake(source, feed, classes))
        if stream is not None:
            return stream
    inputs = [(tensor.name, tensor.shape[1:]) for tensor in source.inputs]
    _check_not_test_part(Path(spec), [name for name, _ in inputs])
    dataset = open_dataset(spec, inputs, labels, classes)
    return TrainData(dataset, source, feed, classes, None, cache_bytes, progress)


def _read(dataset: Dataset, number: int, intake: Intake, room: list[np.ndarray] | None) -> Any:
    """One sample's label, and its inputs into ``room`` if there is any."""
    if room is None and dataset.task_hint != "regress":
        return dataset.label_key(number)  # without decoding
    sample = dataset.load(number)
    if room is not None:
        for place, value in zip(room, intake.sample(sample, dataset.kind), strict=True):
            place[...] = value[0]
    return sample.label


def _prepared(dataset: Dataset, numbers: np.ndarray, intake: Intake) -> list[np.ndarray]:
    arrays = intake.room(len(numbers))
    for row, number in enumerate(numbers.tolist()):
        _read(dataset, number, intake, [array[row] for array in arrays])
    return arrays


def _check_not_test_part(path: Path, inputs: Sequence[str]) -> None:
    """Of a file with both parts, judging takes the test part; training must not."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
    if {"x_train", "x_test"} <= names and not names & {"x", *inputs}:
        raise DataError(
            f"{path}: holds x_train and x_test, of which x_test would be read",
            "Save the part to train with alone: np.savez(FILE, x=x_train, y=y_train).",
        )

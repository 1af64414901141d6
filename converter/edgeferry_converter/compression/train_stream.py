"""Training batches from the user's own pipeline: a tf.data.Dataset or PyDataset, known by its methods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgeferry_converter.compression.augment import augmented
from edgeferry_converter.compression.train_intake import Intake
from edgeferry_converter.data.generators import failed, function_of, working_folder_importable
from edgeferry_converter.errors import DataError, OptionError

__all__ = ["StreamBatches", "StreamData", "open_stream"]

INFINITE, UNKNOWN = -1, -2  # tf.data's cardinalities


def open_stream(spec: str, intake: Intake) -> StreamData | None:
    """The pipeline that ``module:function`` returns; None where it returns something else.

    Raises:
        OptionError: it names nothing.
        DataError: it raises, or its batches do not fit the model.
    """
    with working_folder_importable():
        function = function_of(spec)
        try:
            stream = function()
        except Exception as error:  # the user's code
            raise failed(spec, "failed", error) from None
    is_dataset = hasattr(stream, "as_numpy_iterator")
    if not is_dataset and not hasattr(type(stream), "num_batches"):
        return None
    return StreamData(spec, stream, is_dataset, intake)


class StreamData:
    """The user's batches, prepared and checked; shuffling and augmentation are the pipeline's own.

    Attributes: as of ``TrainData``; ``size`` is the number of batches times the length of the first one.
    """

    def __init__(self, spec: str, stream: Any, is_dataset: bool, intake: Intake) -> None:
        self.description, self.classes, self.images = f"batches from {spec}", intake.classes, False
        self.notes: tuple[str, ...] = ()
        self._spec, self._stream, self._is_dataset, self._intake = spec, stream, is_dataset, intake
        self._bare = is_dataset and _is_bare(stream, intake)
        self._counted: dict[int, int] = {}
        batches = self.batches(batch_size=32)
        if not len(batches):
            raise DataError(f"{spec}: yields nothing", "Yield batches of (inputs, labels).")
        first = batches[0]
        x = first[0]
        self.size = len(batches) * len(x[0] if isinstance(x, tuple) else x)
        self.images = np.ndim(x) == 4
        self.task = batches.task

    def batches(self, batch_size: int, seed: int = 0, augment: str | None = None) -> StreamBatches:
        """The pipeline's batches; of ``batch_size`` only where it yields single samples.

        Args:
            batch_size: see above.
            seed: of the augmentation.
            augment: None for none.

        Raises:
            OptionError: augmentation of what is no image.
        """
        if augment not in (None, "none") and not self.images:
            raise OptionError(f"{self.description}: only images can be augmented by {augment}", 'Take "none".')
        stream = self._stream.batch(batch_size) if self._bare else self._stream
        key = batch_size if self._bare else 0
        if key not in self._counted:
            self._counted[key] = _count(stream, self._spec) if self._is_dataset else int(stream.num_batches or 0)
        return StreamBatches(self._spec, stream, self._counted[key], self._intake, seed, augment or "none")


class StreamBatches:
    """One epoch's batches in order, as ``ArrayBatches`` has them; a tf.data.Dataset starts anew at number 0."""

    def __init__(self, spec: str, stream: Any, count: int, intake: Intake, seed: int, augment: str) -> None:
        self.epoch = 0
        self.task = ""
        self._spec, self._stream, self._count, self._intake = spec, stream, count, intake
        self._seed, self._augment = seed, augment
        self._running: Iterator[Any] | None = None
        self._next = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        where = f"{self._spec}, batch {i}"
        batch = self._fetch(i, where)
        x, *rest = batch if isinstance(batch, tuple | list) else (batch,)
        inputs = self._intake.batch(x, where)
        if self._augment != "none":
            inputs[0] = augmented(inputs[0], self._augment, np.random.default_rng((self._seed, self.epoch, i)))
        if rest and rest[0] is not None:
            self.task, rest[0] = self._intake.batch_labels(rest[0], where)
        return (inputs[0] if len(inputs) == 1 else tuple(inputs), *rest)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return (self[i] for i in range(len(self)))

    def _fetch(self, i: int, where: str) -> Any:
        try:
            if not hasattr(self._stream, "as_numpy_iterator"):
                return self._from_sequence(i)
            if i == 0:
                self._running, self._next = self._stream.as_numpy_iterator(), 0
            if self._running is None or i != self._next:
                raise DataError(f"{where}: a tf.data.Dataset gives its batches in order only")
            self._next += 1
            return next(self._running)
        except StopIteration:
            raise DataError(
                f"{where}: the pipeline ends here, after {self._count} batches before",
                "Yield the same number of batches in every epoch.",
            ) from None
        except DataError:
            raise
        except Exception as error:  # the user's code
            raise failed(where, "failed", error) from None

    def _from_sequence(self, i: int) -> Any:
        batch = self._stream[i]
        if i == self._count - 1:
            self._stream.on_epoch_end()
        return batch


def _is_bare(stream: Any, intake: Intake) -> bool:
    """Whether a tf.data.Dataset yields single samples."""
    spec = stream.element_spec
    x = spec[0] if isinstance(spec, tuple) else spec
    if isinstance(x, dict):
        x = next(iter(x.values()))
    elif isinstance(x, tuple):
        x = x[0]
    return x.shape.rank == len(intake.inputs[0][1])


def _count(stream: Any, spec: str) -> int:
    count = int(stream.cardinality())
    if count == INFINITE:
        raise DataError(f"{spec}: repeats for ever, so that no epoch ends", "Leave out repeat().")
    return sum(1 for _ in stream) if count == UNKNOWN else count

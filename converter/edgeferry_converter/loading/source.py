"""What every loaded model offers, whatever file it came from: names, shapes, answers and a way to be converted."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from edgeferry_runtime.errors import EdgeferryError

from edgeferry_converter.errors import ModelError
from edgeferry_converter.loading.input_shapes import InputShape, fix_shapes, text

__all__ = [
    "Attempt",
    "LoadOptions",
    "NotLoadedError",
    "Signature",
    "SourceModel",
    "TensorInfo",
    "first_line",
    "hash_files",
]

BATCH = 64


@dataclass(frozen=True)
class TensorInfo:
    """One input or output.

    Attributes:
        name: unique among the inputs, or the outputs; also the name in the .tflite that is made of the model.
        shape: batch first; None where a dimension is free.
        dtype: numpy's name, "float32" for example.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Signature:
    """One function of a file, by what goes in and what comes out."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class LoadOptions:
    """What a person may have to say about a file.

    Attributes:
        builder: "module:function" that returns the keras.Model whose weights the file holds.
        strict: the file may hold nothing that the model has no variable for.
        signature: which one of several.
        custom_objects: the module that holds layers, losses and functions of one's own.
        allow_unsafe: run code that the file carries.
        input_shapes: what ``parse_input_shape`` made of every ``--input-shape``.
    """

    builder: str | None = None
    strict: bool = False
    signature: str | None = None
    custom_objects: str | None = None
    allow_unsafe: bool = False
    input_shapes: tuple[InputShape, ...] = ()


@dataclass(frozen=True)
class Attempt:
    """A way of reading the file that failed.

    Attributes:
        loader: what it was taken for, "Keras HDF5 file" for example.
        reason: why that failed, one line.
    """

    loader: str
    reason: str


class NotLoadedError(ModelError):
    """Nothing could read the file; ``attempts`` says what was tried and why it failed."""

    def __init__(self, message: str, remedy: str | None = None, attempts: tuple[Attempt, ...] = ()) -> None:
        super().__init__(message, remedy)
        self.attempts = tuple(attempts)


class SourceModel(ABC):
    """A model that was loaded, with its inputs and outputs bound by name.

    Attributes:
        path: what the user named.
        format: "keras", "h5", "weights", "checkpoint", "saved_model" or "tflite".
        sha256: of the file in hex; of a folder or a checkpoint, over the sorted names and contents of its files.
        inputs, outputs: of the chosen signature.
        signature: its key; "" where the format has none.
        signatures: all there are, by key.
        attempts: what failed before this succeeded.
        parameters: how many numbers were trained, None where that is not known.
        first_layers: class names of the first layers, () where they are not known.
        last_activation: by output name, "softmax" for example; "" where it is not known.
        quantization: how the file itself stores numbers: "float32", or for .tflite also "float16", "dynamic"
            (int8 weights, float arithmetic), "int8", "int16x8".
        tflite_path: the file, when it is a .tflite already.
    """

    format: str
    tflite_path: Path | None = None
    quantization: str = "float32"

    def __init__(
        self, path: Path, sha256: str, signature: str, signatures: Mapping[str, Signature], options: LoadOptions
    ) -> None:
        self.path = path
        self.sha256 = sha256
        self.signature = signature
        self.signatures = dict(signatures)
        chosen = self.signatures.get(signature, Signature((), ()))
        self.inputs, self.outputs = chosen.inputs, chosen.outputs
        self.attempts: tuple[Attempt, ...] = ()
        self.parameters: int | None = None
        self.first_layers: tuple[str, ...] = ()
        self.last_activation: dict[str, str] = {tensor.name: "" for tensor in self.outputs}
        self._options = options

    @property
    def options(self) -> LoadOptions:
        """What was said about the file, and the shapes that were fixed since."""
        return self._options

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every input's shape with all dimensions fixed, batch 1.

        Raises:
            OptionError: a dimension is free and no ``--input-shape`` says how large it is, or one says
                something that the model contradicts.
        """
        return fix_shapes({tensor.name: tensor.shape for tensor in self.inputs}, self._options.input_shapes)

    def with_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Fix an input's free dimensions, as ``--input-shape`` does; a declared preprocessing knows them too."""
        meant = (name, "") if len(self.inputs) == 1 else (name,)  # a shape without a name is the only input's
        given = tuple(one for one in self._options.input_shapes if one[0] not in meant)
        self._options = replace(self._options, input_shapes=(*given, (name, shape)))

    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answers for a batch.

        Args:
            inputs: by input name, [n, ...] in real numbers; a model of batch 1 is run n times.

        Returns:
            By output name, float32 [n, ...].

        Raises:
            ModelError: a name is missing or unknown, or the model cannot run on these numbers.
        """
        self._check(inputs)
        count = len(next(iter(inputs.values())))
        step = self._batch() or BATCH
        if count == 0 or (self._batch() and count % step):
            raise ModelError(f"{self.path}: cannot run {count} samples, it takes {step} at a time")
        parts = []
        for start in range(0, count, step):
            batch = {info.name: np.asarray(inputs[info.name])[start : start + step] for info in self.inputs}
            try:
                answer = self._run(batch)
            except EdgeferryError:
                raise
            except (ValueError, TypeError, RuntimeError) as error:
                raise ModelError(f"{self.path}: fails when it runs: {first_line(error)}") from error
            parts.append({name: np.atleast_1d(np.asarray(value, np.float32)) for name, value in answer.items()})
        return {info.name: np.concatenate([part[info.name] for part in parts]) for info in self.outputs}

    @abstractmethod
    def saved_model(self) -> AbstractContextManager[tuple[Path, str]]:
        """The model as a SavedModel with ``shapes()``, in a folder that goes away after the ``with``.

        Yields:
            The folder, and the key of the signature to convert.

        Raises:
            OptionError: see ``shapes``.
            ModelError: the file is a .tflite already.
            ConversionError: the model cannot be traced.
        """

    @abstractmethod
    def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answers for one batch of the size the model takes."""

    def _batch(self) -> int | None:
        """The fixed batch size, None when it is free."""
        sizes = {tensor.shape[0] for tensor in self.inputs if tensor.shape}
        return next((size for size in sizes if size is not None), None)

    def _check(self, inputs: Mapping[str, np.ndarray]) -> None:
        known = [tensor.name for tensor in self.inputs]
        if set(inputs) != set(known) or len({len(array) for array in inputs.values()}) > 1:
            raise ModelError(
                f"{self.path}: takes the inputs {', '.join(known)}, got {', '.join(sorted(inputs)) or 'none'}",
                "Give every input under its name, all with the same number of samples.",
            )
        for tensor in self.inputs:
            shape = np.shape(inputs[tensor.name])
            sizes = zip(tensor.shape[1:], shape[1:], strict=False)
            if tensor.shape and (
                len(shape) != len(tensor.shape) or any(mine not in (None, size) for mine, size in sizes)
            ):
                raise ModelError(
                    f"{self.path}: input {tensor.name} takes {text(tensor.shape)}, got {text(shape)}",
                    "Give it the shape the model was trained on.",
                )


def hash_files(files: Sequence[tuple[str, Path]]) -> str:
    """SHA-256 in hex over names and contents, sorted by name; over the contents alone for a single file."""
    whole = hashlib.sha256()
    for name, path in sorted(files):
        digest = hashlib.sha256()
        for block in _blocks(path):
            digest.update(block)
        if len(files) == 1:
            return digest.hexdigest()
        whole.update(f"{name}\0{digest.hexdigest()}\n".encode())
    return whole.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            yield block


def first_line(error: BaseException) -> str:
    """The first line an error says that tells anything, short enough for a message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__

"""Models that were converted elsewhere: ``.tflite`` files, float or quantised, in the runtime's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from edgeferry_runtime.backend import Interpreter
from edgeferry_runtime.errors import BackendError
from edgeferry_runtime.tensors import dequantize, quantize

from edgeferry_converter.errors import ModelError
from edgeferry_converter.loading.saved_model import choose_signature
from edgeferry_converter.loading.source import LoadOptions, Signature, SourceModel, TensorInfo, hash_files
from edgeferry_converter.loading.tflite_content import TfliteContent, read_content

__all__ = ["TfliteSource", "load_tflite"]


class TfliteSource(SourceModel):
    """A .tflite file.

    Attributes:
        custom_operations: operations of a compiler's or library's own; where there are any, nothing here can run
            the model.
    """

    format = "tflite"

    def __init__(
        self,
        interpreter: Interpreter | None,
        content: TfliteContent,
        path: Path,
        key: str,
        signatures: dict[str, Signature],
        options: LoadOptions,
    ) -> None:
        super().__init__(path, hash_files([("", path)]), key, signatures, options)
        self.tflite_path = path
        self.quantization = content.quantization
        self.parameters = content.parameters
        self.custom_operations = content.custom_operations
        self.last_activation = dict(zip(self.last_activation, content.activations, strict=True))
        self._interpreter = interpreter

    @contextmanager
    def saved_model(self) -> Iterator[tuple[Path, str]]:
        raise ModelError(
            f"{self.path}: is converted already ({self.quantization})",
            "It is packed as it is; to quantise it, give the Keras model or SavedModel it was made of.",
        )
        yield  # what makes it a context manager

    def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        interpreter = self._interpreter
        if interpreter is None:
            raise ModelError(
                f"{self.path}: cannot run here, it has operations of its own: {', '.join(self.custom_operations)}",
                "Give the file that went into the compiler (edgetpu_compiler, for example).",
            )
        for info, spec in zip(self.inputs, interpreter.inputs, strict=True):
            view = interpreter.input(spec.tensor)
            if inputs[info.name].shape != view.shape:
                raise ValueError(f"input {info.name} is {list(inputs[info.name].shape)}, not {list(view.shape)}")
            view[...] = quantize(inputs[info.name], spec)
        interpreter.invoke()
        return {
            info.name: np.array(dequantize(interpreter.output(spec.tensor), spec))
            for info, spec in zip(self.outputs, interpreter.outputs, strict=True)
        }


def load_tflite(path: Path, options: LoadOptions) -> TfliteSource:
    """Load a .tflite file; one with custom operations (for the Edge TPU, say) can be looked at, not run.

    Raises:
        OptionError: there is no such signature.
        ModelError: it is damaged, needs TensorFlow's own operations, or holds NaN.
    """
    interpreter: Interpreter | None = None
    try:
        interpreter = Interpreter(str(path), threads=1)
    except BackendError as error:
        # An operation nobody registered is found after the file's structure has been verified.
        if "custom op" not in error.message:
            raise ModelError(
                f"{path}: cannot be run: {error.message}",
                "If it is damaged, copy it again; Select TensorFlow (Flex) operations do not exist on a board:"
                " convert it without them.",
            ) from None
    content = read_content(path)
    if content.not_finite:
        raise ModelError(
            f"{path}: weights hold NaN or infinity: {', '.join(content.not_finite[:3])}",
            "The training diverged, or the conversion left variables out; convert it again.",
        )
    signatures = dict(content.signatures) or {"": _unsigned(interpreter, content)}
    key = choose_signature(path, signatures, options.signature) if content.signatures else ""
    if key in content.elsewhere:
        raise ModelError(
            f"{path}: signature {key!r} is not the file's main graph", "Convert a model with this signature alone."
        )
    if interpreter is not None and key:
        signatures[key] = _named(interpreter, signatures[key])
    return TfliteSource(interpreter, content, path, key, signatures, options)


def _unsigned(interpreter: Interpreter | None, content: TfliteContent) -> Signature:
    return _named(interpreter, content.main) if interpreter is not None else content.main


def _named(interpreter: Interpreter, fallback: Signature) -> Signature:
    """Inputs and outputs in the interpreter's order, which is the one they are fed in."""
    names = interpreter.signature_names()

    def infos(specs: list[Any], others: tuple[TensorInfo, ...]) -> tuple[TensorInfo, ...]:
        return tuple(
            TensorInfo(names.get(spec.tensor, spec.tensor) or other.name, spec.shape, spec.dtype)
            for spec, other in zip(specs, others, strict=True)
        )

    return Signature(infos(interpreter.inputs, fallback.inputs), infos(interpreter.outputs, fallback.outputs))

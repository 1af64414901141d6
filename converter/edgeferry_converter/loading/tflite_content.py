"""What a .tflite file is, for whoever converts or judges it: signatures, quantisation, parameters, activations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeferry_converter.errors import ModelError
from edgeferry_converter.loading.source import Signature, TensorInfo
from edgeferry_converter.tflite_checks import non_finite_tensors
from edgeferry_converter.tflite_file import TfliteGraph, TfliteTensor, read_model

__all__ = ["TfliteContent", "read_content"]

ACTIVATIONS = {
    "SOFTMAX": "softmax",
    "LOGISTIC": "sigmoid",
    "TANH": "tanh",
    "RELU": "relu",
    "LOG_SOFTMAX": "log_softmax",
}
PASSING = ("DEQUANTIZE", "QUANTIZE", "RESHAPE")


@dataclass(frozen=True)
class TfliteContent:
    """A file's contents.

    Attributes:
        main: what the main graph takes and gives, by tensor names.
        signatures: by key; () in a file without any.
        elsewhere: keys of signatures that belong to another graph than the main one.
        quantization: "float32", "float16", "dynamic", "int8" or "int16x8".
        parameters: how many numbers the constants hold, without shapes and the like.
        not_finite: names of constants that hold NaN or infinity.
        custom_operations: names of operations that are not built in.
        activations: of each of the main graph's outputs, "" where it is none.
    """

    main: Signature
    signatures: tuple[tuple[str, Signature], ...]
    elsewhere: tuple[str, ...]
    quantization: str
    parameters: int
    not_finite: tuple[str, ...]
    custom_operations: tuple[str, ...]
    activations: tuple[str, ...]


def read_content(path: Path) -> TfliteContent:
    """Read a file that an interpreter has verified.

    Raises:
        ModelError: the flatbuffer is damaged after all.
    """
    try:
        model = read_model(path.read_bytes())
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}", error.remedy) from None
    main = model.graphs[0]
    return TfliteContent(
        main=Signature(_infos(model.inputs, "input"), _infos(model.outputs, "output")),
        signatures=tuple((s.name, Signature(_bound(s.inputs), _bound(s.outputs))) for s in model.signatures),
        elsewhere=tuple(s.name for s in model.signatures if s.graph != 0),
        quantization=_quantization(main),
        parameters=sum(_parameters(tensor) for tensor in model.tensors if tensor.constant),
        not_finite=tuple(non_finite_tensors(model)),
        custom_operations=tuple(sorted({op.type for op in model.operators if op.custom})),
        activations=tuple(_activation(main, output) for output in model.outputs),
    )


def _infos(tensors: tuple[TfliteTensor, ...], fallback: str) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(t.name or f"{fallback}_{i}", t.shape, t.dtype) for i, t in enumerate(tensors))


def _bound(tensors: Mapping[str, TfliteTensor]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items())


def _quantization(graph: TfliteGraph) -> str:
    flowing = {t.dtype for t in graph.tensors if t.scales and not t.constant}
    stored = {t.dtype for t in graph.tensors if t.shape and t.constant}
    if flowing & {"int8", "uint8"}:
        return "int8"  # an LSTM keeps its state in int16 all the same
    if "int16" in flowing:
        return "int16x8"
    if stored & {"int8", "uint8", "int4"}:
        return "dynamic"
    return "float16" if "float16" in stored else "float32"


def _parameters(tensor: TfliteTensor) -> int:
    return math.prod(tensor.shape) if tensor.scales or tensor.dtype.startswith("float") else 0


def _activation(graph: TfliteGraph, output: TfliteTensor | None) -> str:
    """The last operation that changes what comes out; operations that only pass it on are looked through."""
    for operator in reversed(graph.operators):
        if any(tensor is output for tensor in operator.outputs):
            if operator.type not in PASSING:
                return ACTIVATIONS.get(operator.type, "")
            output = operator.inputs[0]
    return ""

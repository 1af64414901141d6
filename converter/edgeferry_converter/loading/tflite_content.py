"""What a .tflite file holds, read from its flatbuffer: signatures, constants, operations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeferry_converter.errors import ModelError
from edgeferry_converter.loading.source import Signature, TensorInfo

__all__ = ["TfliteContent", "read_content"]

DTYPES = {
    "FLOAT32": "float32",
    "FLOAT16": "float16",
    "INT32": "int32",
    "UINT8": "uint8",
    "INT64": "int64",
    "BOOL": "bool",
    "INT16": "int16",
    "INT8": "int8",
    "FLOAT64": "float64",
    "UINT32": "uint32",
    "INT4": "int4",
    "STRING": "string",
}
ACTIVATIONS = {
    "SOFTMAX": "softmax",
    "LOGISTIC": "sigmoid",
    "TANH": "tanh",
    "RELU": "relu",
    "LOG_SOFTMAX": "log_softmax",
}
PASSING = ("DEQUANTIZE", "QUANTIZE", "RESHAPE")
MAIN = 0


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
    from ai_edge_litert import schema_py_generated as schema

    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
        return _content(model, _names(schema.TensorType), _names(schema.BuiltinOperator))
    except Exception as error:  # struct.error, IndexError, TypeError: whatever a wrong offset leads to
        raise ModelError(f"{path}: the .tflite file is damaged: {error}", "Copy it again.") from None


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


def _content(model: Any, types: dict[int, str], operators: dict[int, str]) -> TfliteContent:
    graph = model.subgraphs[MAIN]
    constants = [
        (tensor, np.frombuffer(bytes(buffer), np.uint8))
        for part in model.subgraphs
        for tensor in part.tensors
        if len(buffer := _buffer(model, tensor))
    ]
    operations = [(operator, _operation(model, operator, operators)) for operator in graph.operators or ()]
    signatures, elsewhere = _signatures(model, types)
    return TfliteContent(
        main=Signature(_infos(graph, graph.inputs, "input", types), _infos(graph, graph.outputs, "output", types)),
        signatures=signatures,
        elsewhere=elsewhere,
        quantization=_quantization(graph, {id(tensor) for tensor, _ in constants}, types),
        parameters=sum(_parameters(tensor, types) for tensor, _ in constants),
        not_finite=tuple(_text(tensor.name) for tensor, data in constants if not _finite(tensor, data, types)),
        custom_operations=tuple(
            sorted({_text(code.customCode) for code in model.operatorCodes if code.customCode})
        ),
        activations=tuple(_activation(index, operations) for index in graph.outputs),
    )


def _buffer(model: Any, tensor: Any) -> Any:
    # Files made by hand, for tests of libraries, name buffers that are not there.
    data = model.buffers[tensor.buffer].data if tensor.buffer < len(model.buffers) else None
    return () if data is None else data


def _operation(model: Any, operator: Any, operators: dict[int, str]) -> str:
    code = model.operatorCodes[operator.opcodeIndex]
    # Files before schema 3a keep small codes in the older field.
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    return operators.get(builtin, "")


def _signatures(model: Any, types: dict[int, str]) -> tuple[tuple[tuple[str, Signature], ...], tuple[str, ...]]:
    found, elsewhere = [], []
    for signature in model.signatureDefs or ():
        graph, key = model.subgraphs[signature.subgraphIndex], _text(signature.signatureKey)
        found.append(
            (key, Signature(_bound(graph, signature.inputs, types), _bound(graph, signature.outputs, types)))
        )
        if signature.subgraphIndex != MAIN:
            elsewhere.append(key)
    return tuple(found), tuple(elsewhere)


def _bound(graph: Any, maps: Any, types: dict[int, str]) -> tuple[TensorInfo, ...]:
    return tuple(_info(graph.tensors[m.tensorIndex], _text(m.name), types) for m in maps or ())


def _infos(graph: Any, indices: Any, fallback: str, types: dict[int, str]) -> tuple[TensorInfo, ...]:
    tensors = [graph.tensors[index] for index in indices]
    return tuple(_info(t, _text(t.name) or f"{fallback}_{i}", types) for i, t in enumerate(tensors))


def _info(tensor: Any, name: str, types: dict[int, str]) -> TensorInfo:
    shape = tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()
    return TensorInfo(name, shape, DTYPES.get(types[tensor.type], types[tensor.type].lower()))


def _quantization(graph: Any, constants: set[int], types: dict[int, str]) -> str:
    flowing = {
        types[t.type]
        for t in graph.tensors
        if id(t) not in constants
        and t.quantization is not None
        and t.quantization.scale is not None
        and len(t.quantization.scale)
    }
    stored = {types[t.type] for t in graph.tensors if id(t) in constants and t.shape is not None and len(t.shape)}
    if flowing & {"INT8", "UINT8"}:
        return "int8"  # an LSTM keeps its state in int16 all the same
    if "INT16" in flowing:
        return "int16x8"
    if stored & {"INT8", "UINT8", "INT4"}:
        return "dynamic"
    return "float16" if "FLOAT16" in stored else "float32"


def _parameters(tensor: Any, types: dict[int, str]) -> int:
    quantized = tensor.quantization is not None and tensor.quantization.scale is not None
    if not types[tensor.type].startswith("FLOAT") and not (quantized and len(tensor.quantization.scale)):
        return 0
    return int(np.prod(tensor.shape)) if tensor.shape is not None else 1


def _finite(tensor: Any, data: np.ndarray, types: dict[int, str]) -> bool:
    dtype = {"FLOAT32": np.float32, "FLOAT16": np.float16}.get(types[tensor.type])
    if dtype is None or data.nbytes % np.dtype(dtype).itemsize:
        return True
    return bool(np.isfinite(data.view(dtype)).all())


def _activation(output: int, operations: list[tuple[Any, str]]) -> str:
    for operator, name in reversed(operations):
        if operator.outputs is not None and output in operator.outputs:
            if name not in PASSING:
                return ACTIVATIONS.get(name, "")
            output = int(operator.inputs[0])
    return ""


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""

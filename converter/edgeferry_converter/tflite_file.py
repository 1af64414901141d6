"""What a .tflite file holds, read from its bytes without trusting them."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeferry_converter.errors import ModelError

__all__ = [
    "CONVERSIONS", "FLOATS", "IDENTIFIER", "TfliteGraph", "TfliteModel", "TfliteOperator", "TfliteSignature",
    "TfliteTensor", "read_model",
]  # fmt: skip

IDENTIFIER = b"TFL3"
MOST_DIMENSIONS = 32
FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
# They stand where numbers change their form, and calculate nothing.
CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE"})

_BUILTINS = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
_DTYPES = {v: k.lower() for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
_BITS = {
    **{"int2": 2, "int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "bool": 8, "float8_e4m3fn": 8, "float8_e5m2": 8},
    **{"int16": 16, "uint16": 16, "float16": 16, "bfloat16": 16, "int32": 32, "uint32": 32, "float32": 32},
    **{"int64": 64, "uint64": 64, "float64": 64, "complex64": 64, "complex128": 128},
}
# What the schema's accessors, struct and numpy raise where an offset leads nowhere.
_BROKEN = (struct.error, IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError)


@dataclass(frozen=True)
class TfliteTensor:
    """One tensor.

    Attributes:
        name, shape, dtype: as stored; dtype as numpy spells it, besides "int4", "bfloat16", "resource" and such.
        dynamic: a dimension is only known when the model runs.
        scales, zero_points: none, one for the tensor, or one for each slice along ``axis``.
        data: the stored bytes of a constant, a view of the file; None for what is computed.
        sparse: only the nonzero values are stored.
        state: kept from one run to the next, as a recurrent layer's.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    dynamic: bool = False
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    axis: int = 0
    data: np.ndarray | None = field(default=None, repr=False, compare=False)
    sparse: bool = False
    state: bool = False

    @property
    def constant(self) -> bool:
        """The file holds its values."""
        return self.data is not None

    @property
    def size(self) -> int:
        """Bytes the file holds of it."""
        return 0 if self.data is None else int(self.data.size)


@dataclass(frozen=True)
class TfliteOperator:
    """One operation; an input that was left out is None.

    Attributes:
        type: the schema's name, such as "CONV_2D", or a custom operation's own.
        custom: not one of the built-in operations.
        version: of the operation, as the file says.
    """

    type: str
    custom: bool
    version: int
    inputs: tuple[TfliteTensor | None, ...]
    outputs: tuple[TfliteTensor | None, ...]

    @property
    def activations(self) -> tuple[TfliteTensor, ...]:
        """What flows in and out: every tensor that is neither a constant nor the operation's own state."""
        every = (t for t in (*self.inputs, *self.outputs) if t is not None)
        return tuple(t for t in every if not t.constant and not t.state)

    @property
    def float_arithmetic(self) -> bool:
        """It works on floating point numbers, even where its weights are integers."""
        return self.type not in CONVERSIONS and any(t.dtype in FLOATS for t in self.activations)


@dataclass(frozen=True)
class TfliteSignature:
    """A named entry point: the names a caller uses, and the tensors behind them.

    Attributes:
        graph: the subgraph it enters; 0 is the main one.
    """

    name: str
    inputs: dict[str, TfliteTensor]
    outputs: dict[str, TfliteTensor]
    graph: int = 0


@dataclass(frozen=True)
class TfliteGraph:
    """A subgraph."""

    tensors: tuple[TfliteTensor, ...]
    operators: tuple[TfliteOperator, ...]


@dataclass(frozen=True)
class TfliteModel:
    """A .tflite file.

    Attributes:
        description: who wrote it, as the file says.
        graphs: the subgraphs, the main one first.
        inputs, outputs: of the main subgraph.
        metadata: the metadata entries by name, the bytes as views of the file.
    """

    description: str
    graphs: tuple[TfliteGraph, ...]
    inputs: tuple[TfliteTensor, ...]
    outputs: tuple[TfliteTensor, ...]
    signatures: tuple[TfliteSignature, ...]
    metadata: dict[str, np.ndarray]

    @property
    def operators(self) -> tuple[TfliteOperator, ...]:
        """Of all subgraphs."""
        return tuple(op for graph in self.graphs for op in graph.operators)

    @property
    def tensors(self) -> tuple[TfliteTensor, ...]:
        """Of all subgraphs."""
        return tuple(tensor for graph in self.graphs for tensor in graph.tensors)


def read_model(data: bytes) -> TfliteModel:
    """Read a .tflite file.

    The file is not trusted: it is read in time and memory proportional to its length, whatever it says.  What
    a flipped bit changes inside a weight cannot be seen; the bundle's SHA-256 is there for that.

    Raises:
        ModelError: it is not a .tflite file, or it is cut or damaged.
    """
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise ModelError("this is not a .tflite file: the mark TFL3 is missing", "Name a .tflite file.")
    try:
        return _Reader(data).model()
    except _BROKEN as error:
        raise ModelError(
            f"the .tflite file is cut or damaged: {error}", "Convert it, or copy it, once more."
        ) from error


class _Reader:
    """Walks the flatbuffer; every element costs one of a budget, so that no cycle of offsets lasts."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.left = 4 * len(data)
        self.file = schema.Model.GetRootAs(data, 0)

    def model(self) -> TfliteModel:
        file = self.file
        codes = self.each(file.OperatorCodesLength(), file.OperatorCodes)
        self.codes = [_operator_code(code) for code in codes]
        # Buffer 0 means "no data"; compiled files leave even that one out.
        self.buffers = [self.buffer(b) for b in self.each(file.BuffersLength(), file.Buffers)] or [None]
        if sum(b.size for b in self.buffers if b is not None) > len(self.data):
            raise ValueError("its buffers are larger than the file")
        graphs = self.each(file.SubgraphsLength(), file.Subgraphs)
        tensors = [self.tensors(graph) for graph in graphs]
        operators = [self.operators(graph, own) for graph, own in zip(graphs, tensors, strict=True)]
        main = _pick(graphs, 0, "subgraph")
        signatures = self.each(file.SignatureDefsLength(), file.SignatureDefs)
        return TfliteModel(
            description=_text(file.Description()),
            graphs=tuple(TfliteGraph(tuple(t), tuple(o)) for t, o in zip(tensors, operators, strict=True)),
            inputs=tuple(_pick(tensors[0], i, "tensor") for i in self.numbers(main.InputsAsNumpy())),
            outputs=tuple(_pick(tensors[0], i, "tensor") for i in self.numbers(main.OutputsAsNumpy())),
            signatures=tuple(self.signature(signature, tensors) for signature in signatures),
            metadata=dict(self.metadata()),
        )

    def each(self, count: int, item: Callable[[int], Any]) -> list[Any]:
        self.spend(count)
        return [item(i) for i in range(count)]

    def numbers(self, array: Any) -> tuple[Any, ...]:
        if isinstance(array, int):  # what the accessors return for an absent vector
            return ()
        self.spend(array.size)
        return tuple(array.tolist())

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ValueError("it lists more elements than it has bytes")

    def buffer(self, buffer: Any) -> np.ndarray | None:
        if buffer.Offset() > 1:  # files over 2 GB keep weights behind the flatbuffer
            return np.frombuffer(self.data, np.uint8, buffer.Size(), buffer.Offset())
        return None if not buffer.DataLength() else buffer.DataAsNumpy()

    def tensors(self, graph: Any) -> list[TfliteTensor]:
        return [self.tensor(t) for t in self.each(graph.TensorsLength(), graph.Tensors)]

    def tensor(self, tensor: Any) -> TfliteTensor:
        quantization = tensor.Quantization()
        shape = self.numbers(tensor.ShapeAsNumpy())
        result = TfliteTensor(
            name=_text(tensor.Name()),
            shape=shape,
            dtype=_DTYPES[tensor.Type()],
            dynamic=min((*shape, *self.numbers(tensor.ShapeSignatureAsNumpy())), default=0) < 0,
            scales=() if quantization is None else self.numbers(quantization.ScaleAsNumpy()),
            zero_points=() if quantization is None else self.numbers(quantization.ZeroPointAsNumpy()),
            axis=0 if quantization is None else quantization.QuantizedDimension(),
            data=None if tensor.IsVariable() else _pick(self.buffers, tensor.Buffer(), "buffer"),
            sparse=tensor.Sparsity() is not None,
            state=tensor.IsVariable(),
        )
        if len(shape) > MOST_DIMENSIONS:
            raise ValueError(f"tensor {result.name} has {len(shape)} dimensions")
        bits = _BITS.get(result.dtype)
        if bits and result.constant and not result.sparse:
            needed = (math.prod(result.shape) * bits + 7) // 8
            if result.size != needed:
                raise ValueError(f"tensor {result.name} has {result.size} bytes, its shape needs {needed}")
        return result

    def operators(self, graph: Any, tensors: list[TfliteTensor]) -> Iterator[TfliteOperator]:
        def pick(i: int) -> TfliteTensor | None:
            return None if i == -1 else _pick(tensors, i, "tensor")

        for operator in self.each(graph.OperatorsLength(), graph.Operators):
            name, custom, version = _pick(self.codes, operator.OpcodeIndex(), "operator code")
            inputs = self.numbers(operator.InputsAsNumpy())
            outputs = self.numbers(operator.OutputsAsNumpy())
            yield TfliteOperator(name, custom, version, tuple(map(pick, inputs)), tuple(map(pick, outputs)))

    def signature(self, signature: Any, tensors: list[list[TfliteTensor]]) -> TfliteSignature:
        own = _pick(tensors, signature.SubgraphIndex(), "subgraph")

        def named(maps: list[Any]) -> dict[str, TfliteTensor]:
            return {_text(m.Name()): _pick(own, m.TensorIndex(), "tensor") for m in maps}

        inputs = self.each(signature.InputsLength(), signature.Inputs)
        outputs = self.each(signature.OutputsLength(), signature.Outputs)
        key = _text(signature.SignatureKey())
        return TfliteSignature(key, named(inputs), named(outputs), signature.SubgraphIndex())

    def metadata(self) -> Iterator[tuple[str, np.ndarray]]:
        for entry in self.each(self.file.MetadataLength(), self.file.Metadata):
            buffer = _pick(self.buffers, entry.Buffer(), "buffer")
            yield _text(entry.Name()), np.empty(0, np.uint8) if buffer is None else buffer


def _operator_code(code: Any) -> tuple[str, bool, int]:
    # Codes above 127 came later and have a field of their own; old files fill only the old one.
    builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    custom = builtin == schema.BuiltinOperator.CUSTOM
    return _text(code.CustomCode()) if custom else _BUILTINS[builtin], custom, code.Version()


def _pick(items: list[Any], index: int, what: str) -> Any:
    if not 0 <= index < len(items):
        raise ValueError(f"there is no {what} {index}")
    return items[index]


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")

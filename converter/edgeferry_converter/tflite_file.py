"""What a .tflite file holds, read from its bytes, and the checks that decide whether it may leave."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgeferry_converter.errors import ConversionError, ModelError
from edgeferry_converter.quantization import QuantizationScheme

__all__ = [
    "NamedOperation",
    "TfliteModel",
    "TfliteOperator",
    "TfliteSignature",
    "TfliteTensor",
    "check_fit",
    "flex_operations",
    "float_operations",
    "non_finite_tensors",
    "operations_by_type",
    "operations_not_int8",
    "operator_versions",
    "per_channel_dense",
    "read_model",
    "sparsity",
    "variable_operations",
]

IDENTIFIER = b"TFL3"
MOST_DIMENSIONS = 32
FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
VARIABLE_TYPES = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"})
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
    """A named entry point: the names a caller uses, and the tensors behind them."""

    name: str
    inputs: dict[str, str]
    outputs: dict[str, str]


@dataclass(frozen=True)
class TfliteModel:
    """A .tflite file.

    Attributes:
        description: who wrote it, as the file says.
        operators, tensors: of all subgraphs, the main one first.
        inputs, outputs: of the main subgraph.
        metadata: the metadata entries by name, the bytes as views of the file.
    """

    description: str
    operators: tuple[TfliteOperator, ...]
    tensors: tuple[TfliteTensor, ...]
    inputs: tuple[TfliteTensor, ...]
    outputs: tuple[TfliteTensor, ...]
    signatures: tuple[TfliteSignature, ...]
    metadata: dict[str, np.ndarray]


@dataclass(frozen=True, order=True)
class NamedOperation:
    """An operation a person can find: its type and the tensor it writes."""

    type: str
    tensor: str
    version: int = 1

    def __str__(self) -> str:
        first = self.tensor.split(";")[0]  # the name of a fused tensor lists all that went into it
        return f"{self.type} ({first})" if first else self.type


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
        operators = [op for graph, own in zip(graphs, tensors, strict=True) for op in self.operators(graph, own)]
        main = _pick(graphs, 0, "subgraph")
        signatures = self.each(file.SignatureDefsLength(), file.SignatureDefs)
        return TfliteModel(
            description=_text(file.Description()),
            operators=tuple(operators),
            tensors=tuple(tensor for own in tensors for tensor in own),
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

        def names(maps: list[Any]) -> dict[str, str]:
            return {_text(m.Name()): _pick(own, m.TensorIndex(), "tensor").name for m in maps}

        inputs = self.each(signature.InputsLength(), signature.Inputs)
        outputs = self.each(signature.OutputsLength(), signature.Outputs)
        return TfliteSignature(_text(signature.SignatureKey()), names(inputs), names(outputs))

    def metadata(self) -> Iterator[tuple[str, np.ndarray]]:
        for entry in self.each(self.file.MetadataLength(), self.file.Metadata):
            buffer = _pick(self.buffers, entry.Buffer(), "buffer")
            yield _text(entry.Name()), np.empty(0, np.uint8) if buffer is None else buffer


def operations_by_type(model: TfliteModel) -> dict[str, int]:
    """How often each type of operation occurs, the most frequent first."""
    counts = Counter(op.type for op in model.operators)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def operator_versions(model: TfliteModel) -> dict[str, int]:
    """The highest version of each type of operation, by which old interpreters refuse a model."""
    versions: dict[str, int] = {}
    for op in model.operators:
        versions[op.type] = max(op.version, versions.get(op.type, 0))
    return dict(sorted(versions.items()))


def float_operations(model: TfliteModel) -> list[NamedOperation]:
    """Operations that calculate in floating point; QUANTIZE and DEQUANTIZE only change the form."""
    return _named(model, lambda op: op.float_arithmetic)


def operations_not_int8(model: TfliteModel) -> list[NamedOperation]:
    """Operations between which something other than int8 or uint8 flows: float, int16, indices."""
    return _named(model, lambda op: any(t.dtype not in ("int8", "uint8") for t in op.activations))


def flex_operations(model: TfliteModel) -> list[NamedOperation]:
    """TensorFlow's own operations (SELECT_TF_OPS), which no interpreter on a board has."""
    return _named(model, lambda op: op.custom and op.type.startswith("Flex"))


def variable_operations(model: TfliteModel) -> list[NamedOperation]:
    """Operations on variables that were not frozen: their values are not in the file."""
    return _named(
        model, lambda op: op.type in VARIABLE_TYPES or any(t.dtype == "resource" for t in op.activations)
    )


def per_channel_dense(model: TfliteModel) -> list[NamedOperation]:
    """Dense layers with a scale for each output, which tflite-runtime before 2.10 computes wrongly in silence."""

    def per_channel(op: TfliteOperator) -> bool:
        weights = op.inputs[1] if op.type == "FULLY_CONNECTED" and len(op.inputs) > 1 else None
        return weights is not None and len(weights.scales) > 1

    return _named(model, per_channel)


def non_finite_tensors(model: TfliteModel) -> dict[str, str]:
    """Constants and scales with NaN or infinity, by tensor, with how many.

    One infinite number alone is left out: attention masks and padding are made of it.
    """
    found: dict[str, str] = {}
    checked: set[int] = set()
    for tensor in model.tensors:
        if not np.isfinite(tensor.scales).all():
            found[tensor.name] = "a scale that is not finite"
        if tensor.data is None or tensor.dtype not in FLOATS or id(tensor.data) in checked:
            continue
        checked.add(id(tensor.data))  # a damaged file may give one buffer to every tensor
        values = _floats(tensor.data, tensor.dtype)
        nan, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        if nan or (infinite and values.size > 1):
            found[tensor.name] = f"{nan} NaN and {infinite} infinite of {values.size} values"
    return found


def sparsity(model: TfliteModel) -> float:
    """The share of zeros in the weights, 0 to 1: constants with two or more dimensions that operations read."""
    zeros = total = 0
    seen: set[int] = set()
    for tensor in (t for op in model.operators for t in op.inputs if t is not None):
        weight = len(tensor.shape) > 1 and (tensor.dtype in FLOATS or tensor.dtype in ("int4", "int8", "uint8"))
        if tensor.data is None or not weight or id(tensor.data) in seen:
            continue
        seen.add(id(tensor.data))
        count = math.prod(tensor.shape)
        total += count
        zeros += count - _nonzero(tensor, tensor.data)
    return zeros / total if total else 0.0


def check_fit(data: bytes, scheme: QuantizationScheme, *, allow_float: bool = False) -> TfliteModel:
    """Read what the converter wrote and see that it is what was ordered.

    Args:
        data: the .tflite.
        scheme: what it was made with.
        allow_float: let an int8 model keep floating point operations, as a scheme with ``keep_float`` does; the
            report must then name them.

    Raises:
        ConversionError: with every fault found: TensorFlow operations, variables, NaN, and for int8 float
            operations, another type at input or output, per-channel Dense where per-tensor was asked for.
        ModelError: the file is damaged.
    """
    model = read_model(data)
    faults = [
        *_general_faults(model),
        *(_int8_faults(model, scheme, allow_float) if scheme.name == "int8" else ()),
    ]
    if faults:
        lines = [f"the {scheme.name} model is not fit to leave:", *(f"  {text}" for text, _ in faults)]
        raise ConversionError("\n".join(lines), " ".join(dict.fromkeys(remedy for _, remedy in faults)))
    return model


def _general_faults(model: TfliteModel) -> Iterator[tuple[str, str]]:
    if flex := flex_operations(model):
        yield (
            f"TensorFlow operations (SELECT_TF_OPS) that no board can run: {_listed(flex)}",
            "Replace these layers by ones that TFLite has built in.",
        )
    if variables := variable_operations(model):
        yield (
            f"variables that were not frozen, so that it would answer NaN: {_listed(variables)}",
            "Convert it through a SavedModel or a .keras file, and make state an input and an output.",
        )
    if bad := non_finite_tensors(model):
        named = [f"{name} ({what})" for name, what in bad.items()]
        yield (
            f"numbers that are not finite: {_listed(named)}",
            "Look for NaN in the trained weights and in the calibration images.",
        )


def _int8_faults(model: TfliteModel, scheme: QuantizationScheme, allow_float: bool) -> Iterator[tuple[str, str]]:
    if not (allow_float or scheme.keep_float) and (floats := float_operations(model)):
        yield (
            f"operations still in floating point: {_listed(floats)}",
            "Replace these layers, keep them in float by name, or take float16.",
        )
    for what, tensors, dtype in (
        ("input", model.inputs, scheme.input_dtype),
        ("output", model.outputs, scheme.output_dtype),
    ):
        wrong = [t for t in tensors if t.dtype != dtype and t.dtype in FLOATS | {"int8", "uint8", "int16"}]
        if wrong:
            named = [f"{t.name} is {t.dtype}" for t in wrong]
            yield f"the {what} was to be {dtype}: {_listed(named)}", "Convert it once more with these types."
    if scheme.dense == "per-tensor" and (dense := per_channel_dense(model)):
        yield (
            f"Dense layers with a scale for each output: {_listed(dense)}",
            "Interpreters before tflite-runtime 2.10 compute garbage with them: ask for per-tensor Dense.",
        )


def _named(model: TfliteModel, wanted: Callable[[TfliteOperator], bool]) -> list[NamedOperation]:
    def name(op: TfliteOperator) -> NamedOperation:
        output = next((t.name for t in op.outputs if t is not None), "")
        return NamedOperation(op.type, output, op.version)

    return [name(op) for op in model.operators if wanted(op)]


def _listed(things: list[Any], most: int = 20) -> str:
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(str(thing) for thing in things[:most]) + more


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


def _floats(data: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":  # the upper half of a float32
        return (data.view("<u2").astype("<u4") << 16).view("<f4")
    return data.view(np.dtype(dtype).newbyteorder("<"))


def _nonzero(tensor: TfliteTensor, data: np.ndarray) -> int:
    if tensor.dtype in FLOATS:
        return int(np.count_nonzero(_floats(data, tensor.dtype)))
    if tensor.dtype == "int4":  # two values a byte, the first in the low half
        halves = np.stack([data & 15, data >> 4], axis=-1).ravel()
        return int(np.count_nonzero(halves[: math.prod(tensor.shape)]))
    # Old uint8 weights have a zero point; per-axis ones are symmetric.
    zero = tensor.zero_points[0] if len(tensor.zero_points) == 1 else 0
    return int(np.count_nonzero(data.view(tensor.dtype) != zero))

"""What is in a .tflite file that matters to a board, and the checks that decide whether it may leave."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeferry_converter.errors import ConversionError
from edgeferry_converter.quantization import QuantizationScheme
from edgeferry_converter.tflite_file import FLOATS, TfliteModel, TfliteOperator, TfliteTensor, read_model

__all__ = [
    "NamedOperation",
    "check_fit",
    "flex_operations",
    "float_operations",
    "non_finite_tensors",
    "operations_by_type",
    "operations_not_int8",
    "operator_versions",
    "per_channel_dense",
    "sparsity",
    "variable_operations",
]

VARIABLE_TYPES = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"})


@dataclass(frozen=True, order=True)
class NamedOperation:
    """An operation a person can find: its type and the tensor it writes."""

    type: str
    tensor: str
    version: int = 1

    def __str__(self) -> str:
        first = self.tensor.split(";")[0]  # the name of a fused tensor lists all that went into it
        return f"{self.type} ({first})" if first else self.type


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

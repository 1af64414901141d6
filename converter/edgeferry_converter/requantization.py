"""Float .tflite files made int8, dynamic or float16 by ai-edge-quantizer, and what it leaves wrong put right."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from edgeferry_runtime.errors import EdgeferryError

from edgeferry_converter.errors import ConversionError, ModelError
from edgeferry_converter.metadata import _AlignedBuffer
from edgeferry_converter.quantization import QuantizationScheme
from edgeferry_converter.tflite_file import CONVERSIONS, IDENTIFIER, TfliteModel, read_model

__all__ = ["REQUANTIZATION_SCHEMES", "requantize"]

REQUANTIZATION_SCHEMES = ("int8", "dynamic", "float16")
DEFAULT_KEY = "serving_default"  # of the signature a file gets that has none, as TensorFlow calls it
EVERYTHING = ".*"
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")

# Versions from which interpreters compute an operation on int8, where that is not the first.
# Source: GetBuiltinOperatorVersion in tensorflow/lite/tools/versioning/op_version.cc, which is what TensorFlow's
# own converter declares.
INT8_VERSIONS = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "BROADCAST_TO"), 3),
    "FULLY_CONNECTED": 4,
    **dict.fromkeys(("ADD", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "DEQUANTIZE", "EQUAL"), 2),
    **dict.fromkeys(("GATHER", "GELU", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MIRROR_PAD", "MUL"), 2),
    **dict.fromkeys(("NOT_EQUAL", "PACK", "PAD", "PADV2", "REDUCE_MIN", "RELU", "RESIZE_BILINEAR"), 2),
    **dict.fromkeys(("RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SLICE", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT"), 2),
    **dict.fromkeys(("SQUARED_DIFFERENCE", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TRANSPOSE"), 2),
    **dict.fromkeys(("TRANSPOSE_CONV", "UNPACK"), 2),
}
# Float data and int8 weights with one scale, and with one a channel.
HYBRID_VERSIONS = {"CONV_2D": (2, 5), "DEPTHWISE_CONV_2D": (4, 6), "FULLY_CONNECTED": (9, 12)}
MUL_WITH_LARGE_SCALE = 3
DEQUANTIZE_FLOAT16 = 3
DATA_INPUT = {"SPLIT": 1, "TRANSPOSE_CONV": 1}  # where it is not the first input that tells the version

_TYPE = schema.TensorType
_OP = schema.BuiltinOperator
_OPERATIONS = {value: name for name, value in vars(_OP).items() if isinstance(value, int)}
_BROKEN = (struct.error, IndexError, KeyError, ValueError, TypeError, AttributeError, OverflowError)


def requantize(model: bytes, scheme: QuantizationScheme, samples: Iterator[Mapping[str, np.ndarray]]) -> bytes:
    """Quantise a float model; the same arguments give the same bytes.

    Operations ai-edge-quantizer does not know stay float between DEQUANTIZE and QUANTIZE;
    ``tflite_checks.float_operations`` names them.  Metadata of the source is left out: it tells of float tensors.

    Args:
        model: the .tflite; one without a signature gets one, its names being those of the tensors.
        scheme: "int8" with its types at input and output and its kind of Dense weights, "dynamic" or "float16".
        samples: calibration tensors by input name, float32 [1, ...] each; read by "int8" alone, one at a time.

    Raises:
        ConversionError: the model is quantised already, the scheme is another one, there are no samples, or
            ai-edge-quantizer cannot do it.
        ModelError: the file is damaged.
    """
    content = read_model(model)
    _check(content, scheme)
    source, key = _with_signature(model)
    with _named_failure(scheme):
        quantized = _quantized(source, key, scheme, samples)
    return _corrected(quantized)


def _check(model: TfliteModel, scheme: QuantizationScheme) -> None:
    if scheme.name not in REQUANTIZATION_SCHEMES or scheme.keep_float:
        raise ConversionError(
            f"a .tflite cannot be made {scheme.label}, only {', '.join(REQUANTIZATION_SCHEMES)}",
            "Take one of these, or convert the Keras model or SavedModel it was made of.",
        )
    stored = next((t for t in model.tensors if t.scales or (t.constant and t.dtype in ("float16", "int4"))), None)
    if stored is not None or any(op.type in CONVERSIONS for op in model.operators):
        what = f": {stored.name} is {stored.dtype}" if stored is not None else ""
        raise ConversionError(
            f"the .tflite is quantised already{what}",
            "Quantise the float .tflite, or the Keras model or SavedModel it was made of; or pack it as it is.",
        )


def _with_signature(model: bytes) -> tuple[bytes, str]:
    """The model and the signature of its graph; ai-edge-quantizer calibrates through signatures alone."""
    try:
        file = schema.ModelT.InitFromPackedBuf(model, 0)
        signatures = file.signatureDefs or []
        if any(signature.subgraphIndex for signature in signatures):
            raise ConversionError(
                "the .tflite has signatures on several graphs, of which only one could be calibrated",
                "Convert a model with one signature.",
            )
        if signatures:
            return model, signatures[0].signatureKey.decode("utf-8")
        graph = file.subgraphs[0]
        signature = schema.SignatureDefT(signatureKey=DEFAULT_KEY.encode(), subgraphIndex=0)
        signature.inputs = [_bound(graph, index, f"input_{i}") for i, index in enumerate(graph.inputs)]
        signature.outputs = [_bound(graph, index, f"output_{i}") for i, index in enumerate(graph.outputs)]
        file.signatureDefs = [signature]
        return _packed(file), DEFAULT_KEY
    except _BROKEN as error:  # in a part read_model does not look at
        raise _damaged(error) from error


def _bound(graph: Any, index: int, fallback: str) -> Any:
    return schema.TensorMapT(name=graph.tensors[index].name or fallback.encode(), tensorIndex=int(index))


def _quantized(
    model: bytes, key: str, scheme: QuantizationScheme, samples: Iterator[Mapping[str, np.ndarray]]
) -> bytes:
    from ai_edge_quantizer.quantizer import Quantizer

    recipe = _recipe(scheme)
    statistics = _calibrated(model, key, recipe, samples) if scheme.name == "int8" else None
    quantizer = Quantizer(model, recipe.get_quantization_recipe())
    result = quantizer.quantize(statistics, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


def _recipe(scheme: QuantizationScheme) -> Any:
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
    from ai_edge_quantizer.quantizer import AlgorithmName
    from ai_edge_quantizer.recipe_manager import RecipeManager

    recipe = RecipeManager()
    dense = QuantGranularity.TENSORWISE if scheme.dense == "per-tensor" else QuantGranularity.CHANNELWISE
    if scheme.name == "float16":
        for name in WEIGHTED:
            recipe.add_weight_only_config(
                EVERYTHING, TFLOperationName(name), 16, algorithm_key=AlgorithmName.FLOAT_CASTING
            )
    elif scheme.name == "dynamic":
        for name in WEIGHTED:
            granularity = dense if name == "FULLY_CONNECTED" else QuantGranularity.CHANNELWISE
            recipe.add_dynamic_config(EVERYTHING, TFLOperationName(name), 8, granularity)
    else:
        recipe.add_static_config(EVERYTHING, TFLOperationName.ALL_SUPPORTED, 8, 8)
        recipe.add_static_config(EVERYTHING, TFLOperationName.FULLY_CONNECTED, 8, 8, dense)
        _add_ends(recipe, scheme)
    return recipe


def _add_ends(recipe: Any, scheme: QuantizationScheme) -> None:
    """Types of input and output, where they are not the int8 of everything."""
    from ai_edge_quantizer.qtyping import (
        ComputePrecision,
        OpQuantizationConfig,
        TensorDataType,
        TensorQuantizationConfig,
        TFLOperationName,
    )
    from ai_edge_quantizer.quantizer import AlgorithmName

    unsigned = OpQuantizationConfig(
        activation_tensor_config=TensorQuantizationConfig(8, symmetric=False, dtype=TensorDataType.UINT),
        weight_tensor_config=TensorQuantizationConfig(8),  # there are none, yet the policy asks
        compute_precision=ComputePrecision.INTEGER,
    )
    ends = ((TFLOperationName.INPUT, scheme.input_dtype), (TFLOperationName.OUTPUT, scheme.output_dtype))
    for end, dtype in ends:
        if dtype == "float32":
            recipe.add_quantization_config(EVERYTHING, end, algorithm_key=AlgorithmName.NO_QUANTIZE)
        elif dtype == "uint8":
            recipe.add_quantization_config(EVERYTHING, end, unsigned)


def _calibrated(model: bytes, key: str, recipe: Any, samples: Iterator[Mapping[str, np.ndarray]]) -> Any:
    """Smallest and largest values by tensor; the library's default, a moving average, loses twice as much."""
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    content = read_model(model)
    inputs = next(s.inputs for s in content.signatures if s.name == key)
    calibrator = Calibrator(model, num_threads=os.cpu_count() or 1, qsv_update_func=min_max_update)
    for sample in samples:
        values = {name: np.asarray(sample[name], tensor.dtype) for name, tensor in inputs.items()}
        calibrator.calibrate({key: [values]}, recipe)  # it reads an iterator twice, a list of one is safe
    statistics = calibrator.get_model_qsvs()
    if not statistics:
        raise ConversionError("there are no samples to calibrate with", "Give some.")
    return statistics


def _corrected(model: bytes) -> bytes:
    """Versions that old interpreters need, whole operator codes, aligned weights, no float SHAPE."""
    file = schema.ModelT.InitFromPackedBuf(model, 0)
    codes: dict[tuple[int, bytes | None, int], int] = {}
    kept: list[Any] = []
    for graph in file.subgraphs:
        _let_shapes_read_integers(file, graph)
        for operator in graph.operators or ():
            old, name = file.operatorCodes[operator.opcodeIndex], _type(file, operator)
            if name == "FULLY_CONNECTED" and _hybrid(operator, graph):  # finer, and as TensorFlow's converter does
                operator.builtinOptions.asymmetricQuantizeInputs = True
            version = max(old.version, _needed_version(operator, graph, name))
            identity = (_builtin(old), old.customCode, version)
            if identity not in codes:
                codes[identity] = len(kept)
                # Interpreters before TensorFlow 2.4 read the old, one-byte field alone: 0 there is ADD.
                kept.append(schema.OperatorCodeT(min(_builtin(old), 127), old.customCode, version, _builtin(old)))
            operator.opcodeIndex = codes[identity]
    file.operatorCodes, file.metadata = kept, []
    return _packed(file)


def _let_shapes_read_integers(file: Any, graph: Any) -> None:
    """SHAPE does not look at values: it can have the integers, and the DEQUANTIZE before it may go."""
    operators = graph.operators or []
    restored = {int(op.outputs[0]): int(op.inputs[0]) for op in operators if _type(file, op) == "DEQUANTIZE"}
    for operator in operators:
        if _type(file, operator) == "SHAPE":
            operator.inputs = [restored.get(int(operator.inputs[0]), int(operator.inputs[0]))]
    read = {int(index) for op in operators for index in _indices(op.inputs)} | set(_indices(graph.outputs))
    graph.operators = [op for op in operators if _type(file, op) != "DEQUANTIZE" or int(op.outputs[0]) in read]


def _needed_version(operator: Any, graph: Any, name: str) -> int:
    tensors: list[Any] = [graph.tensors[i] if i >= 0 else None for i in _indices(operator.inputs)]
    if name in HYBRID_VERSIONS and _hybrid(operator, graph):
        return HYBRID_VERSIONS[name][len(tensors[1].quantization.scale) > 1]
    data = tensors[DATA_INPUT.get(name, 0)] if tensors else None
    if data is not None and name == "DEQUANTIZE" and data.type == _TYPE.FLOAT16:
        return DEQUANTIZE_FLOAT16
    if data is None or data.type != _TYPE.INT8:
        return 1
    if name == "MUL" and _mul_rescale([*tensors, graph.tensors[operator.outputs[0]]]) >= 1:
        return MUL_WITH_LARGE_SCALE
    return INT8_VERSIONS.get(name, 1)


def _hybrid(operator: Any, graph: Any) -> bool:
    """Integer weights, float arithmetic as far as anybody outside can see."""
    data, weights = (graph.tensors[i] for i in _indices(operator.inputs)[:2])
    return bool(data.type == _TYPE.FLOAT32 and weights.type == _TYPE.INT8)


def _mul_rescale(tensors: list[Any]) -> float:
    first, second, output = (float(t.quantization.scale[0]) for t in tensors)
    return first * second / output


def _type(file: Any, operator: Any) -> str:
    return _OPERATIONS[_builtin(file.operatorCodes[operator.opcodeIndex])]


def _builtin(code: Any) -> int:
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))


def _indices(indices: Any) -> list[int]:
    return [] if indices is None else [int(index) for index in indices]


def _packed(file: Any) -> bytes:
    file.buffers = [_AlignedBuffer(buffer.data) for buffer in file.buffers or [schema.BufferT()]]
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(file.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _damaged(error: BaseException) -> ModelError:
    return ModelError(f"the .tflite file is damaged: {error}", "Convert it, or copy it, once more.")


@contextmanager
def _named_failure(scheme: QuantizationScheme) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # Calibration has to see every tensor, which LiteRT warns of as costing memory.
            warnings.filterwarnings("ignore", message="(?s).*experimental_preserve_all_tensors")
            yield
    except EdgeferryError:
        raise  # a calibration image that cannot be decoded, say
    except Exception as error:
        # Interpreter and library raise RuntimeError, ValueError, KeyError, whatever met them first.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ConversionError(
            f"ai-edge-quantizer cannot make a {scheme.label} model of the .tflite: {lines[0][:400]}",
            "Convert the Keras model or SavedModel it was made of, or pack the .tflite as it is.",
        ) from error

"""The .tflite files: one SavedModel, then TensorFlow's converter once for each scheme."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgeferry_runtime.errors import EdgeferryError

from edgeferry_converter.errors import ConversionError

__all__ = ["SCHEMES", "LayerError", "QuantizationScheme", "Representative", "layer_errors", "quantize"]

SCHEMES = ("int8", "float16", "float32", "dynamic", "int16x8")
# Gives calibration tensors by input name, float32 [1, ...] each.
Representative = Callable[[], Iterator[Mapping[str, np.ndarray]]]


@dataclass(frozen=True)
class QuantizationScheme:
    """How numbers are stored in the .tflite.

    Attributes:
        name: "int8" (weights, activations and arithmetic), "int16x8" (activations in 16 bits), "dynamic" (int8
            weights, float arithmetic), "float16" (weights) or "float32" (nothing).
        input_dtype, output_dtype: of an int8 model: "int8", "uint8" or "float32".
        dense: "per-tensor" or "per-channel" scales of Dense weights.  TensorFlow 2.21 writes per-channel ones
            under an operator version that interpreters before tflite-runtime 2.10 take for per-tensor, and
            then compute garbage without a word.
        keep_float: names of tensors (as in ``LayerError``) whose layers an int8 model computes in float.
    """

    name: str
    input_dtype: str = "int8"
    output_dtype: str = "int8"
    dense: str = "per-tensor"
    keep_float: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The scheme as the manifest names it: int8 with float layers is a scheme of its own."""
        return "int8-mixed" if self.keep_float else self.name


@dataclass(frozen=True)
class LayerError:
    """How much one operation of an int8 model loses by itself, given float inputs.

    Attributes:
        operation: "CONV_2D".
        tensor: name of its output in the .tflite; what ``keep_float`` takes.
        rmse: root mean square error of its output, in real units.
        scale: quantisation step of its output.
    """

    operation: str
    tensor: str
    rmse: float
    scale: float

    @property
    def layer(self) -> str:
        """The Keras layer's part of the tensor's name, for people: "model_1/conv2d_3_1/Relu;..." is conv2d_3."""
        parts = self.tensor.split(";")[0].split("/")
        name = parts[1] if len(parts) > 2 else parts[-1] if len(parts) < 2 else parts[0]
        return name.removesuffix("_1")

    @property
    def steps(self) -> float:
        """The error in quantisation steps; rounding alone gives 0.29 (1 / sqrt(12))."""
        return self.rmse / self.scale if self.scale else 0.0


def quantize(folder: Path, signature: str, scheme: QuantizationScheme, representative: Representative) -> bytes:
    """Convert a SavedModel.

    Args:
        folder: the SavedModel.
        signature: which of its signatures.
        scheme: how to store numbers.
        representative: calibration tensors; used by int8 and int16x8.

    Returns:
        The bytes of the .tflite.

    Raises:
        ConversionError: the model has operations the schemes or the device do not know.
    """
    converter = _converter(folder, signature, scheme, representative)
    with _named_failure(scheme):
        if scheme.keep_float:
            return _mixed(converter, scheme)
        return bytes(converter.convert())


def layer_errors(
    folder: Path, signature: str, scheme: QuantizationScheme, representative: Representative, order: Sequence[str]
) -> list[LayerError]:
    """The error of each operation of the int8 model, largest in steps first.

    Each operation gets float inputs, so that an error is its own and not its predecessors'.
    Source: TensorFlow's quantisation debugger (tf.lite.experimental.QuantizationDebugger).

    Args:
        representative: a few samples suffice.
        order: the model's input names in the order of the .tflite's inputs.
    """
    import tensorflow as tf

    samples = [[sample[name] for name in order] for sample in representative()]
    with _named_failure(scheme):
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=_converter(folder, signature, scheme, representative), debug_dataset=lambda: iter(samples)
        )
        debugger.run()
    text = io.StringIO()
    debugger.layer_statistics_dump(text)
    text.seek(0)
    errors = [
        LayerError(
            operation=row["op_name"],
            tensor=row["tensor_name"],
            rmse=float(row["mean_squared_error"]) ** 0.5,
            scale=float(row["scale"]),
        )
        for row in csv.DictReader(text)
    ]
    return sorted(errors, key=lambda error: (-error.steps, error.tensor))


def _converter(folder: Path, signature: str, scheme: QuantizationScheme, representative: Representative) -> Any:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[signature])
    # Flex operations would need a TensorFlow on the device.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if scheme.name == "float32":
        return converter
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme.name == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if scheme.name in ("int8", "int16x8"):
        converter.representative_dataset = lambda: (dict(sample) for sample in representative())
    if scheme.name == "int16x8":
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
    if scheme.name == "int8":
        builtins = [tf.lite.OpsSet.TFLITE_BUILTINS] if scheme.keep_float else []
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, *builtins]
        converter.inference_input_type = tf.as_dtype(scheme.input_dtype)
        converter.inference_output_type = tf.as_dtype(scheme.output_dtype)
    converter._experimental_disable_per_channel_quantization_for_dense_layers = scheme.dense == "per-tensor"
    return converter


def _mixed(converter: Any, scheme: QuantizationScheme) -> bytes:
    """Calibrate only, then quantise all but the named tensors.

    TensorFlow's quantisation debugger does the same but knows neither input types nor per-tensor Dense.
    """
    import tensorflow as tf
    from tensorflow.lite.python.convert import mlir_quantize

    converter.experimental_mlir_quantizer = True
    converter._experimental_calibrate_only = True
    return bytes(
        mlir_quantize(
            converter.convert(),
            input_data_type=tf.as_dtype(scheme.input_dtype),
            output_data_type=tf.as_dtype(scheme.output_dtype),
            denylisted_nodes=list(scheme.keep_float),
            disable_per_channel_for_dense_layers=scheme.dense == "per-tensor",
        )
    )


@contextmanager
def _named_failure(scheme: QuantizationScheme) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # TensorFlow's own calibrator and debugger use an interpreter that TensorFlow has deprecated.
            warnings.filterwarnings("ignore", message="(?s).*tf.lite.Interpreter is deprecated")
            yield
    except EdgeferryError:
        raise  # a calibration image that cannot be decoded, say
    except Exception as error:
        # The converter raises its own ConverterError, ValueError or RuntimeError, with pages of MLIR.
        raise ConversionError(
            f"TensorFlow's converter cannot make a {scheme.label} model: {_first_line(error)}",
            "Replace the operation it names by one of the TFLite built-in operations.",
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__

"""The .tflite files: one SavedModel, then TensorFlow's converter once for each scheme."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgeferry_runtime.errors import EdgeferryError

from edgeferry_converter.errors import ConversionError

__all__ = ["INPUT_NAME", "QuantizationScheme", "quantize", "saved_model"]

INPUT_NAME = "image"
SIGNATURE = "serving_default"


@dataclass(frozen=True)
class QuantizationScheme:
    """How numbers are stored in the .tflite.

    Attributes:
        name: "int8" (weights, activations and arithmetic), "float16" (weights) or "float32" (nothing).
        input_dtype, output_dtype: of an int8 model: "int8", "uint8" or "float32".
        dense: "per-tensor" or "per-channel" scales of Dense weights.  TensorFlow 2.21 writes per-channel ones
            under an operator version that interpreters before tflite-runtime 2.10 take for per-tensor, and
            then compute garbage without a word.
    """

    name: str
    input_dtype: str = "int8"
    output_dtype: str = "int8"
    dense: str = "per-tensor"


@contextmanager
def saved_model(model: Any, height: int, width: int, channels: int) -> Iterator[Path]:
    """A Keras model as a SavedModel with a fixed batch of 1, in a folder that goes away afterwards.

    The way over a SavedModel is the one that freezes every variable; ``from_concrete_functions`` with a Keras 3
    model leaves them out and the result answers NaN.

    Raises:
        ConversionError: the model cannot be traced.
    """
    import keras

    with tempfile.TemporaryDirectory(prefix="edgeferry-") as folder:
        archive = keras.export.ExportArchive()
        archive.track(model)
        spec = keras.InputSpec(shape=(1, height, width, channels), dtype="float32", name=INPUT_NAME)
        try:
            archive.add_endpoint(
                SIGNATURE, functools.partial(model.__call__, training=False), input_signature=[spec]
            )
            archive.write_out(folder, verbose=False)
        except Exception as error:  # tracing runs the model's own code, which may raise anything
            raise ConversionError(
                f"the model cannot be traced for a {height}x{width}x{channels} input: {_first_line(error)}",
                "Check that it runs: model(numpy.zeros((1, height, width, channels), 'float32')).",
            ) from error
        yield Path(folder)


def quantize(
    folder: Path, scheme: QuantizationScheme, representative: Callable[[], Iterator[np.ndarray]]
) -> bytes:
    """Convert a SavedModel.

    Args:
        folder: the SavedModel.
        scheme: how to store numbers.
        representative: gives the calibration tensors, float32 [1, height, width, channels]; used by int8.

    Returns:
        The bytes of the .tflite.

    Raises:
        ConversionError: the model has operations the schemes or the device do not know.
    """
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[SIGNATURE])
    # Flex operations would need a TensorFlow on the device.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if scheme.name == "int8":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([tensor] for tensor in representative())
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.as_dtype(scheme.input_dtype)
        converter.inference_output_type = tf.as_dtype(scheme.output_dtype)
        per_tensor = scheme.dense == "per-tensor"
        converter._experimental_disable_per_channel_quantization_for_dense_layers = per_tensor
    elif scheme.name == "float16":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    try:
        return bytes(converter.convert())
    except EdgeferryError:
        raise  # a calibration image that cannot be decoded, say
    except Exception as error:
        # The converter raises its own ConverterError, ValueError or RuntimeError, with pages of MLIR.
        raise ConversionError(
            f"TensorFlow's converter cannot make a {scheme.name} model: {_first_line(error)}",
            "Replace the operation it names by one of the TFLite built-in operations.",
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__

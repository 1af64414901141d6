"""A prepared model as an int8 .tflite: the ranges are in the model, so no representative data is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeferry_converter.compression.qat import computed_in_float, is_prepared, strip
from edgeferry_converter.errors import ConversionError, ModelError, OptionError
from edgeferry_converter.loading.keras_source import KerasSource
from edgeferry_converter.loading.source import LoadOptions, first_line
from edgeferry_converter.loading.tracing import traced
from edgeferry_converter.quantization import QuantizationScheme
from edgeferry_converter.tflite_checks import check_fit

__all__ = ["export_int8"]

INT8 = QuantizationScheme("int8")
AS_IT_IS = LoadOptions()


def export_int8(
    model: Any,
    path: Path | None = None,
    scheme: QuantizationScheme = INT8,
    *,
    packed: bool = False,
    options: LoadOptions = AS_IT_IS,
) -> bytes:
    """Convert a model that ``prepare`` made.

    Args:
        model: prepared; its ranges observed by training or ``observe``.
        path: also write the .tflite there.
        scheme: int8; its types of input and output.  Dense layers have one scale, whatever it says.
        packed: store 4-bit weights as INT4, half the bytes: older interpreters refuse them, and LiteRT 2.3 runs
            their convolutions several times slower.  False stores the same 15 levels as int8.
        options: where the model leaves dimensions free, their ``input_shapes``.

    Returns:
        The bytes of the .tflite; inputs and outputs bear the names they have in the plain model's.

    Raises:
        OptionError: another scheme, layers to keep in float, or a free dimension nobody fixed.
        ModelError: the model is not prepared, or a range was never observed.
        ConversionError: TensorFlow's converter failed, or its result is not int8.
    """
    _check(model, scheme)
    in_float = computed_in_float(model)
    # Inputs and outputs get the names that the plain model's would have.
    plain = KerasSource(strip(model), Path(model.name), "keras", "", options)
    simulation = KerasSource(model, Path(model.name), "keras", "", options).keras

    def call(tensors: dict[str, Any]) -> dict[str, Any]:
        ordered = [tensors[info.name] for info in plain.inputs]
        answer = simulation(ordered[0] if len(ordered) == 1 else ordered, training=False)
        answers = answer if isinstance(answer, (list, tuple)) else [answer]
        return {info.name: value for info, value in zip(plain.outputs, answers, strict=True)}

    with _exporting(model, packed):
        variables = [variable.value for variable in model.variables]
        with traced(call, plain.inputs, plain.shapes(), variables, Path(model.name)) as (folder, signature):
            data = _convert(folder, signature, scheme, model.name)
    check_fit(data, scheme, allow_float=bool(in_float))
    if path is not None:
        path.write_bytes(data)
    return data


def _check(model: Any, scheme: QuantizationScheme) -> None:
    if scheme.name != "int8" or scheme.keep_float:
        raise OptionError(
            f"{scheme.label} cannot be made of a model trained for int8",
            "Ask for int8; the other schemes take what strip() returns.",
        )
    if not is_prepared(model):
        raise ModelError(f"{model.name} was not prepared for quantisation", "Call prepare() and train it.")
    unknown = [layer.name for layer in model.layers if type(layer).__name__ == "FakeQuant" and not layer.observed]
    if unknown:
        raise ModelError(
            f"{model.name}: the ranges of {len(unknown)} tensors were never observed: {', '.join(unknown[:3])}",
            "Train it for at least one step, or call observe() with inputs.",
        )


@contextmanager
def _exporting(model: Any, packed: bool) -> Iterator[None]:
    """What the simulation has beside fake quantisation would stay as operations."""
    kernels = [layer for layer in model.layers if type(layer).__name__ == "QuantizedKernel"]
    rounders = [layer for layer in model.layers if type(layer).__name__ == "FakeQuant"]
    try:
        for layer in kernels:
            layer.stored_bits = layer.bits if packed else 8
        for layer in rounders:
            layer.exporting = True
        yield
    finally:
        for layer in kernels:
            layer.stored_bits = layer.bits
        for layer in rounders:
            layer.exporting = False


def _convert(folder: Path, signature: str, scheme: QuantizationScheme, name: str) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[signature])
    # With TFLITE_BUILTINS_INT8 it would ask for representative data in spite of the ranges.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = tf.as_dtype(scheme.input_dtype)
    converter.inference_output_type = tf.as_dtype(scheme.output_dtype)
    try:
        return bytes(converter.convert())
    except Exception as error:  # its own ConverterError, ValueError or RuntimeError, with pages of MLIR
        raise ConversionError(
            f"{name}: TensorFlow's converter cannot make an int8 model: {first_line(error)}",
            "Replace the layer it names by one of those that TFLite has built in.",
        ) from error

"""A .tflite read from its bytes: what it tells, what it refuses, and that no file breaks the reader."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from edgeferry_converter.errors import ConversionError, ConverterError, ModelError
from edgeferry_converter.quantization import QuantizationScheme, quantize
from edgeferry_converter.tflite_checks import (
    check_fit,
    flex_operations,
    float_operations,
    non_finite_tensors,
    operations_by_type,
    operations_not_int8,
    operator_versions,
    per_channel_dense,
    sparsity,
    variable_operations,
)
from edgeferry_converter.tflite_file import read_model
from hypothesis import given, settings
from hypothesis import strategies as st

DATA = Path(__file__).resolve().parent.parent / "contract" / "data"
INT8 = (DATA / "tiny_int8.tflite").read_bytes()
FLOAT = (DATA / "tiny_float32.tflite").read_bytes()
BUILTIN = schema.BuiltinOperator


def edited(data: bytes, change: Callable) -> bytes:
    """A model with something changed in its object form."""
    model = schema.ModelT.InitFromPackedBuf(bytearray(data), 0)
    change(model)
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def with_code(builtin: int, custom: str | None = None) -> Callable:
    """The second operation (the mean) becomes another one."""

    def change(model) -> None:
        code = model.operatorCodes[model.subgraphs[0].operators[1].opcodeIndex]
        code.builtinCode, code.deprecatedBuiltinCode = builtin, min(builtin, 127)
        code.customCode = custom

    return change


def constant(model, name: str):
    """The buffer behind the first constant whose name contains ``name``."""
    tensor = next(t for t in model.subgraphs[0].tensors if name in t.name.decode())
    return model.buffers[tensor.buffer]


def weights(model):
    return model.buffers[model.subgraphs[0].tensors[model.subgraphs[0].operators[0].inputs[1]].buffer]


def test_tells_what_the_tiny_models_hold() -> None:
    model = read_model(INT8)
    assert operations_by_type(model) == {"CONV_2D": 1, "FULLY_CONNECTED": 1, "MEAN": 1, "SOFTMAX": 1}
    assert operator_versions(model) == {"CONV_2D": 3, "FULLY_CONNECTED": 4, "MEAN": 2, "SOFTMAX": 2}
    assert [(t.shape, t.dtype) for t in model.inputs] == [((1, 8, 12, 3), "int8")]
    assert [(t.shape, t.dtype) for t in model.outputs] == [((1, 4), "int8")]
    assert model.signatures[0].name == "serving_default"
    assert {name: t.name for name, t in model.signatures[0].inputs.items()} == {"image": "serving_default_image:0"}
    assert "min_runtime_version" in model.metadata
    convolution = model.operators[0]
    assert convolution.inputs[1].constant and len(convolution.inputs[1].scales) == convolution.inputs[1].shape[0]
    assert convolution.inputs[1].size == np.prod(convolution.inputs[1].shape)
    assert not convolution.outputs[0].constant and convolution.outputs[0].size == 0
    assert float_operations(model) == operations_not_int8(model) == per_channel_dense(model) == []


def test_names_float_operations_by_type_and_tensor() -> None:
    named = float_operations(read_model(FLOAT))
    assert [op.type for op in named] == ["CONV_2D", "MEAN", "FULLY_CONNECTED", "SOFTMAX"]
    assert str(named[-1]) == "SOFTMAX (StatefulPartitionedCall:0)"
    assert operations_not_int8(read_model(FLOAT)) == named


def test_conversions_calculate_nothing_but_are_not_int8() -> None:
    model = read_model(edited(FLOAT, with_code(BUILTIN.DEQUANTIZE)))
    assert "DEQUANTIZE" not in [op.type for op in float_operations(model)]
    assert "DEQUANTIZE" in [op.type for op in operations_not_int8(model)]


def test_good_models_pass() -> None:
    assert check_fit(INT8, QuantizationScheme("int8")).operators
    assert check_fit(FLOAT, QuantizationScheme("float32")).operators


def test_float_left_in_an_int8_model_is_refused_or_named() -> None:
    scheme = QuantizationScheme("int8", "float32", "float32")
    with pytest.raises(ConversionError, match=r"CONV_2D \(.*SOFTMAX \(StatefulPartitionedCall:0\)") as caught:
        check_fit(FLOAT, scheme)
    assert "float16" in caught.value.remedy
    assert float_operations(check_fit(FLOAT, scheme, allow_float=True))
    assert check_fit(FLOAT, replace(scheme, keep_float=("StatefulPartitionedCall:0",)))


def test_another_type_at_the_ends_is_refused() -> None:
    with pytest.raises(ConversionError, match=r"input was to be uint8: serving_default_image:0 is int8"):
        check_fit(INT8, QuantizationScheme("int8", "uint8", "int8"))


def test_tensorflow_operations_are_refused_with_their_list() -> None:
    data = edited(FLOAT, with_code(BUILTIN.CUSTOM, "FlexErf"))
    assert [op.type for op in flex_operations(read_model(data))] == ["FlexErf"]
    with pytest.raises(ConversionError, match=r"SELECT_TF_OPS.*FlexErf \("):
        check_fit(data, QuantizationScheme("float32"))
    assert not flex_operations(read_model(edited(FLOAT, with_code(BUILTIN.CUSTOM, "Mine"))))


@pytest.mark.parametrize("name", ["VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"])
def test_variables_never_leave(name: str) -> None:
    data = edited(FLOAT, with_code(getattr(BUILTIN, name)))
    assert [op.type for op in variable_operations(read_model(data))] == [name]
    with pytest.raises(ConversionError, match=f"not frozen.*{name}"):
        check_fit(data, QuantizationScheme("float32"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_never_leaves(value: float) -> None:
    def poison(model) -> None:
        buffer = weights(model)
        values = np.array(buffer.data).view("<f4").copy()
        values[3] = value
        buffer.data = values.view(np.uint8)

    data = edited(FLOAT, poison)
    assert len(non_finite_tensors(read_model(data))) == 1
    with pytest.raises(ConversionError, match=r"not finite: .*of \d+ values"):
        check_fit(data, QuantizationScheme("float32"))


def test_a_scale_that_is_not_finite_never_leaves() -> None:
    def poison(model) -> None:
        model.subgraphs[0].tensors[model.subgraphs[0].outputs[0]].quantization.scale = [float("nan")]

    with pytest.raises(ConversionError, match="scale that is not finite"):
        check_fit(edited(INT8, poison), QuantizationScheme("int8"))


def test_every_fault_is_told_at_once() -> None:
    def change(model) -> None:
        with_code(BUILTIN.CUSTOM, "FlexErf")(model)
        model.subgraphs[0].tensors[0].quantization.scale = [float("inf")]

    with pytest.raises(ConversionError, match=r"(?s)FlexErf.*not finite.*was to be uint8"):
        check_fit(edited(INT8, change), QuantizationScheme("int8", "uint8", "uint8"))


def test_per_channel_dense_is_named_and_refused_where_per_tensor_was_asked_for() -> None:
    def change(model) -> None:
        dense = next(
            op
            for op in model.subgraphs[0].operators
            if model.operatorCodes[op.opcodeIndex].deprecatedBuiltinCode == BUILTIN.FULLY_CONNECTED
        )
        tensor = model.subgraphs[0].tensors[dense.inputs[1]]
        tensor.quantization.scale = [0.1] * tensor.shape[0]
        tensor.quantization.zeroPoint = [0] * tensor.shape[0]

    data = edited(INT8, change)
    assert [(op.type, op.version) for op in per_channel_dense(read_model(data))] == [("FULLY_CONNECTED", 4)]
    with pytest.raises(ConversionError, match="a scale for each output") as caught:
        check_fit(data, QuantizationScheme("int8"))
    assert "2.10" in caught.value.remedy
    assert check_fit(data, QuantizationScheme("int8", dense="per-channel"))


@pytest.mark.parametrize("data", [INT8, FLOAT], ids=["int8", "float32"])
def test_sparsity_is_the_share_of_zeros_in_weights(data: bytes) -> None:
    def empty(model) -> None:
        for tensor in model.subgraphs[0].tensors:
            buffer = model.buffers[tensor.buffer]
            if buffer.data is not None and len(tensor.shape) > 1:
                buffer.data = np.zeros(len(buffer.data), np.uint8)

    assert sparsity(read_model(data)) < 0.1
    assert sparsity(read_model(edited(data, empty))) == 1.0


@pytest.mark.filterwarnings(r"ignore:\s*Warning. tf.lite.Interpreter is deprecated:UserWarning")
def test_what_tensorflow_really_makes(keras, tmp_path: Path) -> None:
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(keras.layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(5, name="classes")(x))

    # A Keras 3 model given as a function: its variables stay outside, and the result answers NaN.
    function = tf.function(lambda image: model(image)).get_concrete_function(tf.TensorSpec((1, 8, 8, 3)))
    unfrozen = tf.lite.TFLiteConverter.from_concrete_functions([function], model).convert()
    with pytest.raises(ConversionError, match="not frozen"):
        check_fit(unfrozen, QuantizationScheme("float32"))

    spec = keras.InputSpec(shape=(1, 8, 8, 3), dtype="float32", name="image")
    model.export(tmp_path / "saved", format="tf_saved_model", input_signature=[spec], verbose=False)
    for dense, named in (("per-channel", ["FULLY_CONNECTED"]), ("per-tensor", [])):
        scheme = QuantizationScheme("int8", dense=dense)
        data = quantize(
            tmp_path / "saved",
            "serving_default",
            scheme,
            lambda: iter([{"image": np.ones((1, 8, 8, 3), np.float32)}]),
        )
        assert [op.type for op in per_channel_dense(check_fit(data, scheme))] == named


def test_sparsity_of_int4_looks_at_halves_of_bytes() -> None:
    def pack(model) -> None:
        tensor = model.subgraphs[0].tensors[model.subgraphs[0].operators[0].inputs[1]]
        tensor.type = schema.TensorType.INT4
        count = int(np.prod(tensor.shape))
        model.buffers[tensor.buffer].data = np.full((count + 1) // 2, 0x10, np.uint8)  # 0, 1, 0, 1 ...

    before, after = read_model(INT8), read_model(edited(INT8, pack))
    changed = int(np.prod(before.operators[0].inputs[1].shape))
    dense = next(op.inputs[1] for op in after.operators if op.type == "FULLY_CONNECTED")
    zeros = changed / 2 + int((dense.data.view(np.int8) == 0).sum())
    assert sparsity(after) == pytest.approx(zeros / (changed + dense.size))


def test_weights_behind_the_flatbuffer_are_found() -> None:
    kept = np.array(weights(schema.ModelT.InitFromPackedBuf(bytearray(FLOAT), 0)).data)

    def move(model, offset: int = 1 << 20) -> None:
        buffer = weights(model)
        buffer.data, buffer.offset, buffer.size = None, offset, kept.size

    size = len(edited(FLOAT, move))
    data = edited(FLOAT, lambda model: move(model, size)) + kept.tobytes()
    assert (read_model(data).operators[0].inputs[1].data == kept).all()
    with pytest.raises(ModelError, match="damaged"):
        read_model(data[:-1])


def test_state_and_missing_inputs_are_told_apart(real_data: Path) -> None:
    model = read_model((real_data / "coral" / "keras_lstm_mnist_ptq.tflite").read_bytes())
    lstm = next(op for op in model.operators if op.type == "UNIDIRECTIONAL_SEQUENCE_LSTM")
    assert None in lstm.inputs
    assert any(t.state for t in lstm.inputs if t is not None)
    assert operations_not_int8(model) == []


@pytest.mark.parametrize(
    "data", [b"", b"TFL3", b"\x1c\0\0\0TFL3", b"PK\x03\x04" * 9, b"\xff" * 4 + b"TFL3" + b"\xff" * 99]
)
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError) as caught:
        read_model(data)
    assert caught.value.remedy


def test_a_constant_of_the_wrong_length_is_refused() -> None:
    def cut(model) -> None:
        weights(model).data = np.zeros(3, np.uint8)

    with pytest.raises(ModelError, match="has 3 bytes, its shape needs"):
        read_model(edited(INT8, cut))


def test_a_list_that_never_ends_is_refused_at_once() -> None:
    start = schema.Model.GetRootAs(INT8, 0)
    position = start._tab.Vector(start._tab.Offset(8)) - 4  # the number of subgraphs
    data = INT8[:position] + b"\xff\xff\xff\x7f" + INT8[position + 4 :]
    began = time.monotonic()
    with pytest.raises(ModelError, match="more elements than"):
        read_model(data)
    assert time.monotonic() - began < 1


@settings(max_examples=300, deadline=2000)
@given(st.integers(0, len(INT8) - 1))
def test_every_truncation_is_an_error(length: int) -> None:
    with pytest.raises(ModelError):
        read_model(INT8[:length])


@settings(max_examples=600, deadline=2000)
@given(st.lists(st.tuples(st.integers(0, len(INT8) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_flipped_bytes_are_an_error_or_a_model(changes: list[tuple[int, int]]) -> None:
    data = bytearray(INT8)
    for position, value in changes:
        data[position] = value
    try:
        model = check_fit(bytes(data), QuantizationScheme("int8"))
    except ConverterError:
        return
    assert 0 <= sparsity(model) <= 1
    operations_by_type(model)

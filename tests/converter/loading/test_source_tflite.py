"""Models that are .tflite files already: looked at, run in real numbers, never converted again."""

from __future__ import annotations

import numpy as np
import pytest
from edgeferry_converter.errors import ModelError, OptionError


@pytest.fixture
def float_file(load, to_tflite, keras2):
    return to_tflite(load(keras2 / "model.keras"))[0]


def test_float_file(load, float_file, parity):
    source = load(float_file)
    assert (source.format, source.quantization, source.tflite_path) == ("tflite", "float32", float_file)
    assert [(t.name, t.shape, t.dtype) for t in source.inputs] == [("photo", (1, 8, 8, 3), "float32")]
    assert source.last_activation == {"scores": "softmax"}
    assert source.parameters > 100
    assert source.shapes() == {"photo": (1, 8, 8, 3)}
    np.testing.assert_allclose(source.predict({"photo": parity[0]})["scores"], parity[1], atol=1e-5)
    with pytest.raises(ModelError, match="is converted already") as caught, source.saved_model():
        pass
    assert "Keras model" in caught.value.remedy


def test_int8_file_answers_in_real_numbers(load, to_tflite, keras2, parity):
    import tensorflow as tf

    x, y = parity
    path, _, _ = to_tflite(
        load(keras2 / "model.keras"),
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: ([frame[None]] for frame in x),
        inference_input_type=tf.int8,
        inference_output_type=tf.int8,
    )
    source = load(path)
    assert source.quantization == "int8"
    assert source.inputs[0].dtype == source.outputs[0].dtype == "int8"
    np.testing.assert_allclose(source.predict({"photo": x})["scores"], y, atol=0.05)


@pytest.mark.parametrize(("types", "name"), [(["float16"], "float16"), ([], "dynamic")])
def test_weights_alone_quantised(load, to_tflite, keras, save_model, types, name):
    import tensorflow as tf

    path = save_model(lambda x: keras.layers.Dense(64)(x), (64,))  # small ones are left in float
    path, _, _ = to_tflite(load(path), optimizations=[tf.lite.Optimize.DEFAULT])
    if types:
        path.unlink()
        source = load(save_model(lambda x: keras.layers.Dense(64)(x), (64,)))
        with source.saved_model() as (folder, key):
            converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[key])
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
            path.write_bytes(converter.convert())
    source = load(path)
    assert source.quantization == name
    assert source.inputs[0].dtype == "float32"


def test_signature_that_is_not_there(load, float_file):
    with pytest.raises(OptionError, match="has no signature 'other', it has:\n  serving_default: photo float32"):
        load(float_file, signature="other")


def test_nan_in_constants(load, to_tflite, keras, save_model, tmp_path):
    path = save_model(lambda x: keras.layers.Dense(5, bias_initializer=keras.initializers.Constant(7.25))(x), (3,))
    path, _, _ = to_tflite(load(path))
    data = path.read_bytes()
    pattern = np.full(5, 7.25, np.float32).tobytes()
    assert data.count(pattern) == 1
    path.write_bytes(data.replace(pattern, np.full(5, np.nan, np.float32).tobytes()))
    with pytest.raises(ModelError, match="weights hold NaN"):
        load(path)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.8, 0.99])
def test_truncated(load, float_file, truncated, share):
    with pytest.raises(ModelError, match=r"cannot be run|is no Keras model|damaged"):
        load(truncated(float_file, share))


def test_files_of_the_coral_project(load, real_data):
    folder = real_data / "coral"
    source = load(folder / "mobilenet_v1_0.25_128_quant.tflite")
    assert (source.quantization, source.inputs[0].shape) == ("int8", (1, 128, 128, 3))
    answer = source.predict({"input": np.zeros((2, 128, 128, 3))})
    assert {value.shape for value in answer.values()} == {(2, 1001)}
    source = load(folder / "split_concat.tflite")
    assert [t.name for t in source.inputs] == ["input1", "inputs/rnn1", "inputs/rnn2"]
    random = np.random.default_rng(0)
    inputs = {t.name: random.uniform(-1, 1, t.shape) for t in source.inputs}
    assert source.predict(inputs)["outputs/rnn2"].shape == (1, 8, 8, 2)
    assert load(folder / "keras_lstm_mnist_ptq.tflite").inputs[0].name == "x"
    for path in folder.glob("*_edgetpu.tflite"):
        source = load(path)
        assert source.custom_operations == ("edgetpu-custom-op",)
        with pytest.raises(ModelError, match="cannot run here"):
            source.predict({t.name: np.zeros(t.shape) for t in source.inputs})

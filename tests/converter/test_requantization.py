"""Float .tflite files quantised: as good as by TensorFlow's converter, under versions old interpreters know."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from edgeferry_converter.errors import ConversionError, DataError, ModelError
from edgeferry_converter.quantization import QuantizationScheme, quantize
from edgeferry_converter.requantization import requantize
from edgeferry_converter.tflite_checks import (
    check_fit,
    float_operations,
    operations_by_type,
    operator_versions,
    per_channel_dense,
)
from edgeferry_converter.tflite_file import read_model
from edgeferry_runtime.backend import Interpreter
from edgeferry_runtime.tensors import dequantize
from edgeferry_runtime.tensors import quantize as to_tensor

ROOT = Path(__file__).resolve().parent.parent.parent
FLOAT = QuantizationScheme("float32")
INT8 = QuantizationScheme("int8")


@dataclass
class Subject:
    """A model as TensorFlow's converter writes it, and random frames."""

    folder: Path
    name: str
    frames: np.ndarray

    def samples(self) -> Iterator[Mapping[str, np.ndarray]]:
        return ({self.name: frame[None]} for frame in self.frames[:60])

    def converted(self, scheme: QuantizationScheme) -> bytes:
        return quantize(self.folder, "serving_default", scheme, self.samples)

    def requantized(self, scheme: QuantizationScheme = INT8) -> bytes:
        return requantize(self.converted(FLOAT), scheme, self.samples())


def subject(keras, model, folder: Path, batch: int | None = 1) -> Subject:
    name, shape = model.inputs[0].name, model.input_shape[1:]
    spec = keras.InputSpec(shape=(batch, *shape), dtype="float32", name=name)
    model.export(folder, verbose=False, input_signature=[spec])
    random = np.random.default_rng(0)
    # Blocks, not noise: noise is the same everywhere to a network that was trained on strokes.
    height, width, channels = shape
    blocks = random.integers(0, 2, (200, height // 8, width // 8, channels)).repeat(8, axis=1).repeat(8, axis=2)
    return Subject(folder, name, (0.9 * blocks + 0.1 * random.random((200, *shape))).astype(np.float32))


@pytest.fixture(scope="module")
def keras_classifier(keras):
    """Convolutions, an addition, a pooling, and Dense layers that tell frames apart."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    inputs = keras.Input((16, 16, 3), name="pixels")
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(inputs)
    x = layers.Add()([x, layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)])
    x = layers.Flatten()(layers.MaxPooling2D(2)(x))
    x = layers.Dense(16, activation="relu")(x)
    spread = keras.initializers.RandomNormal(stddev=6.0)
    outputs = layers.Dense(4, activation="softmax", kernel_initializer=spread)(x)
    return keras.Model(inputs, outputs)


@pytest.fixture(scope="module")
def classifier(keras, keras_classifier, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject(keras, keras_classifier, tmp_path_factory.mktemp("classifier") / "saved")


@pytest.fixture(scope="module")
def open_batch(keras, keras_classifier, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The same with any batch, for which Flatten asks SHAPE."""
    return subject(keras, keras_classifier, tmp_path_factory.mktemp("open") / "saved", None)


@pytest.fixture(scope="module")
def digits(keras, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    model = keras.models.load_model(ROOT / "examples" / "digits" / "digits.keras")
    return subject(keras, model, tmp_path_factory.mktemp("digits") / "saved")


def answers(model: bytes, frames: np.ndarray, path: Path) -> np.ndarray:
    path.write_bytes(model)
    interpreter = Interpreter(str(path), threads=1)
    source, target = interpreter.inputs[0], interpreter.outputs[0]
    found = []
    for frame in frames:
        interpreter.input(source.tensor)[...] = to_tensor(frame[None], source)
        interpreter.invoke()
        found.append(np.array(dequantize(interpreter.output(target.tensor), target))[0])
    return np.array(found)


def edited(data: bytes, change: Callable) -> bytes:
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    change(model)
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("which", ["classifier", "digits"])
def test_int8_is_as_good_as_the_converters_own(which: str, request, tmp_path: Path):
    model: Subject = request.getfixturevalue(which)
    path = tmp_path / "m.tflite"
    reference = answers(model.converted(FLOAT), model.frames, path)
    own = answers(model.converted(INT8), model.frames, path)
    ours = answers(model.requantized(), model.frames, path)
    assert np.isfinite(ours).all()
    assert len(set(reference.argmax(axis=1))) > 1, "a model that always says the same proves nothing"
    assert np.mean(ours.argmax(axis=1) == reference.argmax(axis=1)) >= 0.95
    assert np.abs(ours - reference).mean() <= 1.5 * np.abs(own - reference).mean()


@pytest.mark.parametrize("which", ["classifier", "open_batch", "digits"])
def test_operations_and_versions_are_the_converters(which: str, request):
    model: Subject = request.getfixturevalue(which)
    own, ours = (read_model(data) for data in (model.converted(INT8), model.requantized()))
    assert operator_versions(ours) == operator_versions(own)
    assert operations_by_type(ours) == operations_by_type(own)


@pytest.mark.parametrize(
    ("source", "target"), [("int8", "int8"), ("uint8", "uint8"), ("float32", "float32"), ("uint8", "float32")]
)
def test_input_and_output_types(classifier: Subject, tmp_path: Path, source: str, target: str):
    scheme = QuantizationScheme("int8", source, target)
    data = classifier.requantized(scheme)
    model = check_fit(data, scheme)
    assert (model.inputs[0].dtype, model.outputs[0].dtype) == (source, target)
    assert list(model.signatures[0].inputs) == ["pixels"]
    expected = answers(classifier.requantized(), classifier.frames[:20], tmp_path / "a.tflite")
    found = answers(data, classifier.frames[:20], tmp_path / "b.tflite")
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_dense_scales_are_as_ordered(classifier: Subject):
    assert not per_channel_dense(read_model(classifier.requantized()))
    each = QuantizationScheme("int8", dense="per-channel")
    assert len(per_channel_dense(read_model(classifier.requantized(each)))) == 2


def test_same_bytes(classifier: Subject):
    assert classifier.requantized() == classifier.requantized()


def test_largest_values_count_not_a_moving_average(classifier: Subject):
    frames = [np.full((1, 16, 16, 3), 0.1, np.float32)] * 5
    frames[2] = np.full((1, 16, 16, 3), 10.0, np.float32)
    data = requantize(classifier.converted(FLOAT), INT8, ({"pixels": frame} for frame in frames))
    assert read_model(data).inputs[0].scales == pytest.approx([10 / 255], rel=1e-3)


def test_codes_and_weights_suit_old_interpreters(classifier: Subject):
    data = classifier.requantized(QuantizationScheme("int8", "uint8", "uint8"))
    model = schema.Model.GetRootAs(data, 0)
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    assert [code.DeprecatedBuiltinCode() for code in codes] == [code.BuiltinCode() for code in codes]
    assert model.MetadataLength() == 0
    address = np.frombuffer(data, np.uint8).ctypes.data
    filled = [model.Buffers(i) for i in range(model.BuffersLength()) if model.Buffers(i).DataLength()]
    assert filled
    assert all((buffer.DataAsNumpy().ctypes.data - address) % 16 == 0 for buffer in filled)


@pytest.mark.parametrize(
    ("dense", "versions"),
    [
        ("per-tensor", {"CONV_2D": 5, "DEPTHWISE_CONV_2D": 6, "FULLY_CONNECTED": 9}),
        ("per-channel", {"CONV_2D": 5, "DEPTHWISE_CONV_2D": 6, "FULLY_CONNECTED": 12}),
    ],
)
def test_dynamic(classifier: Subject, tmp_path: Path, dense: str, versions: dict[str, int]):
    data = classifier.requantized(QuantizationScheme("dynamic", dense=dense))
    assert versions.items() <= operator_versions(read_model(data)).items()
    near(classifier, data, tmp_path, 0.05)


def test_float16(classifier: Subject, tmp_path: Path):
    data = classifier.requantized(QuantizationScheme("float16"))
    model = read_model(data)
    assert operator_versions(model)["DEQUANTIZE"] == 3
    assert len(data) < 0.75 * len(classifier.converted(FLOAT))
    near(classifier, data, tmp_path, 0.01)


def near(model: Subject, data: bytes, folder: Path, error: float) -> None:
    reference = answers(model.converted(FLOAT), model.frames, folder / "a.tflite")
    found = answers(data, model.frames, folder / "b.tflite")
    assert np.abs(found - reference).mean() < error
    assert np.mean(found.argmax(axis=1) == reference.argmax(axis=1)) >= 0.95


def test_a_file_without_signature(classifier: Subject):
    source = classifier.converted(FLOAT)
    bare = edited(source, lambda model: setattr(model, "signatureDefs", None))
    name = read_model(source).inputs[0].name
    found = read_model(requantize(bare, INT8, ({name: s["pixels"]} for s in classifier.samples())))
    assert {key: tensor.name for key, tensor in found.signatures[0].inputs.items()} == {name: name}
    assert operator_versions(found) == operator_versions(read_model(classifier.requantized()))


def test_unknown_operations_stay_float_and_are_named(keras, tmp_path: Path):
    inputs = keras.Input((8, 8, 3), name="pixels")
    x = keras.layers.LeakyReLU()(keras.layers.Conv2D(4, 3)(inputs))
    model = subject(keras, keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x)), tmp_path / "saved")
    found = check_fit(model.requantized(), INT8, allow_float=True)
    assert [operation.type for operation in float_operations(found)] == ["LEAKY_RELU"]
    with pytest.raises(ConversionError, match="LEAKY_RELU"):
        check_fit(model.requantized(), INT8)


@pytest.mark.parametrize("name", ["int8", "dynamic", "float16"])
def test_quantised_sources_are_refused(classifier: Subject, name: str):
    with pytest.raises(ConversionError, match="quantised already"):
        requantize(classifier.converted(QuantizationScheme(name)), INT8, classifier.samples())


@pytest.mark.parametrize("scheme", [QuantizationScheme("int16x8"), QuantizationScheme("int8", keep_float=("a",))])
def test_other_schemes_are_refused(classifier: Subject, scheme: QuantizationScheme):
    with pytest.raises(ConversionError, match=f"cannot be made {scheme.label}"):
        requantize(classifier.converted(FLOAT), scheme, classifier.samples())


def test_what_goes_wrong_is_said(classifier: Subject):
    source = classifier.converted(FLOAT)
    with pytest.raises(ConversionError, match="no samples"):
        requantize(source, INT8, iter(()))
    with pytest.raises(ModelError):
        requantize(b"no model", INT8, classifier.samples())
    with pytest.raises(ConversionError, match="ai-edge-quantizer cannot make a int8 model"):
        requantize(source, INT8, iter([{"pixels": np.zeros((1, 2), np.float32)}]))

    def unreadable() -> Iterator[Mapping[str, np.ndarray]]:
        raise DataError("a picture is cut", "Remove it.")
        yield

    with pytest.raises(DataError, match="a picture is cut"):
        requantize(source, INT8, unreadable())


def test_importing_it_costs_nothing():
    code = "import sys, edgeferry_converter.requantization; sys.exit('ai_edge_quantizer' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

"""Models in every format, the small ones of Keras 2 among them, and what a source becomes as .tflite."""

from __future__ import annotations

import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).resolve().parent / "data"

BUILDERS = """
import keras

def original():
    inputs = keras.Input((8, 8, 3), name="photo")
    x = keras.layers.Rescaling(1 / 255.0)(inputs)
    x = keras.layers.DepthwiseConv2D(3)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Conv2DTranspose(4, 3)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.1)(x)
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax", name="scores")(x))

def wider():
    inputs = keras.Input((8, 8, 3), name="photo")
    x = keras.layers.DepthwiseConv2D(3)(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Conv2DTranspose(4, 3)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(7, activation="softmax", name="scores")(x))

def larger():
    model = original()
    return keras.Sequential([model, keras.layers.Dense(2)])

def headless():
    model = original()
    return keras.Model(model.inputs, model.layers[-2].output)

def nested():
    inside = keras.Input((6, 5))
    inner = keras.Model(inside, keras.layers.Conv1D(4, 1)(keras.layers.Dense(7)(inside)), name="inner")
    inputs = keras.Input((6, 5), name="sequence")
    x = keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True))(inner(inputs))
    x = keras.layers.MultiHeadAttention(2, 3)(x, x)
    return keras.Model(inputs, keras.layers.Dense(2, name="out")(keras.layers.GRU(3)(x)))

def raising():
    values = {}
    return values["no such key"]

def forgetful():
    original()

def unbuilt():
    return keras.Sequential([keras.layers.Dense(2)])

not_callable = 3
"""


@pytest.fixture(scope="session")
def keras2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what make_keras2_models.py wrote."""
    folder = tmp_path_factory.mktemp("keras2")
    with zipfile.ZipFile(DATA / "keras2.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def parity(keras2: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames and what Keras 2 answered."""
    with np.load(keras2 / "parity.npz") as arrays:
        return arrays["x"], arrays["y"]


@pytest.fixture
def builders(keras, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with builders, which lies in the current folder."""
    import sys

    name = f"builders_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(BUILDERS)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def original(keras, tmp_path_factory: pytest.TempPathFactory):
    """The builders' model with weights of its own."""
    namespace: dict = {}
    exec(BUILDERS, namespace)
    keras.utils.set_random_seed(5)
    return namespace["original"]()


@pytest.fixture
def load(keras) -> Callable:
    """Load a source; keywords as in LoadOptions."""
    from edgeferry_converter.loading.chain import load_source
    from edgeferry_converter.loading.source import LoadOptions

    def load(path: Path, listing: bool = False, **options):
        return load_source(Path(path), LoadOptions(**options), listing)

    return load


@pytest.fixture
def to_tflite(keras, tmp_path: Path) -> Callable:
    """Convert a source to a float .tflite; the interpreter, the signature's runner and the operations' names."""
    import tensorflow as tf
    from edgeferry_runtime.backend import find_backend

    def convert(source, **settings):
        with source.saved_model() as (folder, key):
            converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[key])
            for name, value in settings.items():
                setattr(converter, name, value)
            path = tmp_path / "converted.tflite"
            path.write_bytes(converter.convert())
        assert not folder.exists()
        interpreter = find_backend().module.Interpreter(model_path=str(path))
        operations = {operation["op_name"] for operation in interpreter._get_ops_details()}
        return path, interpreter.get_signature_runner(key), operations

    return convert


@pytest.fixture
def save_quietly(keras) -> Callable:
    """Call a function of Keras or TensorFlow that warns of its own innards."""

    def call(function: Callable, *args, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args, **options)

    return call


@pytest.fixture
def truncated(tmp_path: Path) -> Callable[[Path, float], Path]:
    """A copy of a file that ends early, under the same name."""

    def cut(path: Path, share: float) -> Path:
        folder = tmp_path / "cut"
        folder.mkdir(exist_ok=True)
        copy = Path(shutil.copyfile(path, folder / path.name))
        copy.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        return copy

    return cut

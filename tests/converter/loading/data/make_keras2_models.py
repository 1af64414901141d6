"""Writes keras2.zip: one small model in every format of Keras 2.

Keras 2 lives on as the package tf_keras, in an environment of its own:

    pip install tensorflow tf_keras
    TF_USE_LEGACY_KERAS=1 python make_keras2_models.py
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras as keras

HERE = Path(__file__).resolve().parent


def model() -> keras.Model:
    inputs = keras.Input((8, 8, 3), name="photo")
    x = keras.layers.Rescaling(1 / 255.0)(inputs)
    x = keras.layers.DepthwiseConv2D(3)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Conv2DTranspose(4, 3)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.1)(x)
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax", name="scores")(x))


def nested_model() -> keras.Model:
    """Layers in layers, whose variables have one name and shape."""
    inside = keras.Input((6, 5))
    inner = keras.Model(inside, keras.layers.Conv1D(4, 1)(keras.layers.Dense(7)(inside)), name="inner")
    inputs = keras.Input((6, 5), name="sequence")
    x = keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True))(inner(inputs))
    x = keras.layers.MultiHeadAttention(2, 3)(x, x)
    return keras.Model(inputs, keras.layers.Dense(2, name="out")(keras.layers.GRU(3)(x)))


def write(folder: Path) -> None:
    keras.utils.set_random_seed(0)
    built = model()
    random = np.random.default_rng(0)
    built.set_weights([np.abs(random.normal(size=w.shape)).astype(np.float32) for w in built.get_weights()])
    x = random.uniform(0, 255, (3, 8, 8, 3)).astype(np.float32)
    np.savez(folder / "parity.npz", x=x, y=built(x).numpy())
    built.save(folder / "model.h5")
    built.save(folder / "model.keras")
    built.save_weights(folder / "model.weights.h5")
    built.save_weights(folder / "flat_weights.h5")
    tf.train.Checkpoint(model=built).write(str(folder / "checkpoint"))
    built.save(folder / "saved_model")
    operations = keras.Model(built.inputs, built.outputs[0] * 2.0)
    operations.save(folder / "operations.h5")
    nested = nested_model()
    weights = [random.normal(size=w.shape).astype(np.float32) for w in nested.get_weights()]
    nested.set_weights(weights)
    x = random.normal(size=(2, 6, 5)).astype(np.float32)
    np.savez(folder / "nested.npz", x=x, y=nested(x).numpy())
    tf.train.Checkpoint(model=nested).write(str(folder / "nested"))
    base_input = keras.Input((8, 8, 3))
    base = keras.Model(base_input, keras.layers.Conv2D(2, 3)(base_input), name="base")
    photo = keras.Input((8, 8, 3), name="photo")
    transfer = keras.Model(photo, keras.layers.GlobalMaxPooling2D(name="top")(base(photo)))
    x = random.uniform(0, 1, (2, 8, 8, 3)).astype(np.float32)
    np.savez(folder / "transfer.npz", x=x, y=transfer(x).numpy())
    transfer.save(folder / "transfer.h5")
    sequential = keras.Sequential([keras.layers.Dense(2, input_shape=(3,)), keras.layers.Softmax()])
    sequential.save(folder / "sequential.h5")
    sequential.save(folder / "sequential.keras")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch))
        with zipfile.ZipFile(HERE / "keras2.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted(Path(scratch).rglob("*")):
                name = path.relative_to(scratch).as_posix()
                if path.is_file() and path.name not in ("fingerprint.pb", "keras_metadata.pb"):
                    archive.writestr(zipfile.ZipInfo(name), path.read_bytes(), zipfile.ZIP_DEFLATED)

"""Make the two tiny .tflite files the contract tests run: a few KB, so that they need no TensorFlow.

python tests/contract/data/make_tiny_models.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import keras
import numpy as np
from edgeferry_converter.loading.chain import load_source
from edgeferry_converter.quantization import QuantizationScheme, quantize

HERE = Path(__file__).parent


def main() -> None:
    keras.utils.set_random_seed(7)
    inputs = keras.Input((8, 12, 3), name="image")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(4, 3, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(4, kernel_initializer=keras.initializers.RandomNormal(stddev=3.0))(x)
    model = keras.Model(inputs, keras.layers.Softmax()(x))
    frames = np.random.default_rng(7).integers(0, 256, (64, 1, 8, 12, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        model.save(Path(scratch) / "tiny.keras")
        source = load_source(Path(scratch) / "tiny.keras")
    with source.saved_model() as (folder, signature):
        for name in ("int8", "float32"):
            samples = [{source.inputs[0].name: frame} for frame in frames]
            data = quantize(folder, signature, QuantizationScheme(name), lambda samples=samples: iter(samples))
            (HERE / f"tiny_{name}.tflite").write_bytes(data)
            print(name, len(data), "bytes")


if __name__ == "__main__":
    main()

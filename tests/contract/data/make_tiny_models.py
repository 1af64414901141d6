"""Make the two tiny .tflite files the contract tests run: a few KB, so that they need no TensorFlow.

python tests/contract/data/make_tiny_models.py
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
from edgeferry_converter.quantization import QuantizationScheme, quantize, saved_model

HERE = Path(__file__).parent


def main() -> None:
    keras.utils.set_random_seed(7)
    inputs = keras.Input((8, 12, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(4, 3, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(4, kernel_initializer=keras.initializers.RandomNormal(stddev=3.0))(x)
    model = keras.Model(inputs, keras.layers.Softmax()(x))
    frames = np.random.default_rng(7).integers(0, 256, (64, 1, 8, 12, 3)).astype(np.float32)
    with saved_model(model, 8, 12, 3) as folder:
        for name in ("int8", "float32"):
            data = quantize(folder, QuantizationScheme(name), lambda: iter(frames))
            (HERE / f"tiny_{name}.tflite").write_bytes(data)
            print(name, len(data), "bytes")


if __name__ == "__main__":
    main()

"""Small models and image folders for the converter's tests."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="session")
def keras():
    """Keras, whose import (and TensorFlow's) warns of its own innards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras
        import tensorflow as tf

        tf.lite  # noqa: B018 - loaded lazily, with warnings
    return keras


@pytest.fixture(scope="session")
def image_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that a mean over the channels tells apart: 20 noisy red, green and blue pictures each."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for channel, name in enumerate(["blue", "green", "red"]):
        (root / name).mkdir()
        for i in range(20):
            pixels = random.integers(0, 90, (24, 32, 3))
            pixels[..., channel] += random.integers(60, 160)
            cv2.imwrite(str(root / name / f"{i:02d}.png"), pixels.astype(np.uint8))
    return root


@pytest.fixture(scope="session")
def color_model(keras, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .keras model that knows red from green from blue without any training."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((16, 16, 3), name="pixels")
    x = keras.layers.Conv2D(3, 1, name="identity")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(3, activation="softmax", name="classes")(x)
    model = keras.Model(inputs, outputs)
    model.get_layer("identity").set_weights([np.eye(3, dtype=np.float32)[None, None], np.zeros(3, np.float32)])
    bgr = np.eye(3, dtype=np.float32)[::-1] * 8  # RGB means to blue, green, red
    model.get_layer("classes").set_weights([bgr, np.zeros(3, np.float32)])
    path = tmp_path_factory.mktemp("models") / "colors.keras"
    model.save(path)
    return path


@pytest.fixture(scope="session")
def save_model(keras, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a functional model made of input shapes and a function of the inputs."""

    def save(build: Callable, *shapes: tuple, name: str = "model.keras") -> Path:
        keras.utils.set_random_seed(2)
        inputs = [keras.Input(shape) for shape in shapes]
        path = tmp_path_factory.mktemp("models") / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # .h5 is a legacy format, says Keras
            keras.Model(inputs if len(inputs) > 1 else inputs[0], build(*inputs)).save(path)
        return path

    return save


@pytest.fixture
def convert(keras, tmp_path: Path):
    """Run a conversion in this process; keywords as in ConversionRequest, output in a fresh folder."""
    from edgeferry_converter.convert import convert as run
    from edgeferry_converter.request import ConversionRequest
    from rich.console import Console

    folder = tmp_path / "out"
    folder.mkdir()

    def convert(model: Path, data: Path, **options):
        values = {"profile": "host", "preprocess": "unit", "output": folder / "m.ferry", **options}
        if "quantize" in values:
            values["schemes"] = (values.pop("quantize"),)
        return run(ConversionRequest(model=model, data=data, **values), Console(file=io.StringIO()))

    convert.folder = folder
    return convert

"""Trains the demo's digit classifier: a small Keras CNN on rendered scenes of the TRAIN digits alone.

The held-out digits are looked at once, after the last epoch, for the accuracy: nothing is chosen by them.

    python train.py                              # digits.keras, digits.json
    python train.py --width 1.5 -o digits-v2.keras
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import cv2
import keras
import numpy as np
import scene
import tensorflow as tf

HERE = Path(__file__).resolve().parent
SIDE = 48  # pixels; the smallest digits are 14 of them high, at 32 they would be 10
BATCH = 128
PEAK_RATE = 4e-3
TRAIN_VIEWS = 20  # scenes drawn of each train digit
TEST_VIEWS = 8  # and of each held-out digit: 3976 scenes, though of only 497 different digits
FRAME_SIZES = ((160, 120), (160, 120), (160, 120), (320, 240))  # the pictures' size and the video's, in turn


def preprocess(frame: np.ndarray) -> np.ndarray:
    """Bring a frame, uint8 BGR (height, width, 3), to what the board feeds the model: uint8 (48, 48, 1).

    Stretched, not letterboxed: every source of the demo is 4:3, so training and board distort alike and no
    pixel is spent on bars. The division by 255 is left out, the pictures wait in memory as bytes.
    """
    # INTER_LINEAR_EXACT: plain INTER_LINEAR rounds differently on some ARM builds of OpenCV.
    small = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR_EXACT)
    return cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)[..., None]


def rendered(digits: scene.Digits, views: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw every digit `views` times: (uint8 (N * views, 48, 48, 1), int64 (N * views,))."""
    images = np.empty((len(digits.images) * views, SIDE, SIDE, 1), np.uint8)
    rng = np.random.default_rng(seed)
    for index in range(len(images)):
        digit = digits.images[index // views]
        images[index] = preprocess(scene.render(digit, rng, FRAME_SIZES[index % len(FRAME_SIZES)]))
    return images, digits.labels.repeat(views)


def build(width: float) -> keras.Model:
    """Return the untrained CNN: float32 (N, 48, 48, 1) in 0..1 to ten probabilities.

    Convolutions without bias, each followed by BatchNorm and ReLU: a converter folds the three into one int8
    operation. Filters come in eights because the kernels of small CPUs work in such tiles.
    """

    def filters(count: int) -> int:
        return max(8, round(count * width / 8) * 8)

    def block(x: keras.KerasTensor, convolution: keras.Layer) -> keras.KerasTensor:
        return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(convolution(x)))

    layers = keras.layers
    image = keras.Input((SIDE, SIDE, 1), name="image")
    x = block(image, layers.Conv2D(filters(16), 3, strides=2, padding="same", use_bias=False))
    x = block(x, layers.Conv2D(filters(24), 3, strides=2, padding="same", use_bias=False))
    for count, strides in ((32, 1), (48, 2), (64, 1)):
        depthwise = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)
        x = block(x, depthwise)
        x = block(x, layers.Conv2D(filters(count), 1, use_bias=False))
    x = layers.GlobalAveragePooling2D()(x)
    probabilities = layers.Dense(len(scene.CLASSES), activation="softmax", name="probabilities")(x)
    return keras.Model(image, probabilities, name="digits")


def batches(images: np.ndarray, labels: np.ndarray, seed: int) -> tf.data.Dataset:
    """Return batches of (float32 (B, 48, 48, 1) in 0..1, int64 (B,)), in the same order in every run."""
    data = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=seed)
    data = data.batch(BATCH, drop_remainder=True)
    return data.map(lambda x, y: (tf.cast(x, tf.float32) / 255.0, y)).prefetch(2)


def fit(model: keras.Model, images: np.ndarray, labels: np.ndarray, epochs: int, seed: int) -> None:
    """Train in place for a fixed number of epochs, the learning rate falling to nothing along a cosine."""
    steps = epochs * (len(images) // BATCH)
    rising = steps // 10
    rate = keras.optimizers.schedules.CosineDecay(
        PEAK_RATE / 20, steps - rising, warmup_target=PEAK_RATE, warmup_steps=rising
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(rate, weight_decay=1e-3),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(batches(images, labels, seed), epochs=epochs, shuffle=False, verbose=2)


def accuracy(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of right answers, 0..1, on uint8 images (N, 48, 48, 1)."""
    guesses = model.predict(images.astype(np.float32) / 255.0, batch_size=256, verbose=0).argmax(axis=1)
    return float((guesses == labels).mean())


def save(model: keras.Model, width: float, path: Path) -> None:
    """Save the weights in an uncompiled twin: nobody who converts the model needs the optimizer's state."""
    twin = build(width)
    twin.set_weights(model.get_weights())
    twin.save(path)


def train(path: Path, epochs: int, seed: int, width: float) -> dict[str, object]:
    """Train a model, write it to `path` and what is known of it beside as .json; return the latter."""
    began = time.monotonic()
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    train_digits, held_out = scene.split_digits()
    images, labels = rendered(train_digits, TRAIN_VIEWS, seed)
    model = build(width)
    fit(model, images, labels, epochs, seed)
    save(model, width, path)
    # A seed of its own, the same for every training: all models are measured on the same scenes.
    test_images, test_labels = rendered(held_out, TEST_VIEWS, seed=10_000)
    about = {
        "held_out_accuracy": round(accuracy(model, test_images, test_labels), 4),
        "held_out_scenes": len(test_labels),
        "held_out_digits": len(held_out.labels),
        "train_scenes": len(labels),
        "train_digits": len(train_digits.labels),
        "parameters": model.count_params(),
        "width": width,
        "epochs": epochs,
        "seed": seed,
        "input": {"name": "image", "shape": [None, SIDE, SIDE, 1], "dtype": "float32", "range": [0.0, 1.0]},
        "preprocessing": {
            "geometry": "stretch",
            "size": [SIDE, SIDE],
            "kernel": "bilinear (cv2.INTER_LINEAR_EXACT, on the BGR frame)",
            "color": "gray (cv2.COLOR_BGR2GRAY, after the resize)",
            "scale": "1/255",
        },
        "labels": list(scene.CLASSES),
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__, "opencv": cv2.__version__},
    }
    path.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    print(f"held-out accuracy {about['held_out_accuracy']:.2%} on {len(test_labels)} scenes")
    print(f"{path}: {about['parameters']} parameters, {path.stat().st_size / 1000:.0f} kB", end=", ")
    print(f"{time.monotonic() - began:.0f} s in all")
    return about


def main(arguments: list[str] | None = None) -> None:
    """Train with what the command line says."""
    parser = argparse.ArgumentParser(description="Train the digit classifier of the demo.")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "digits.keras", help="a .keras file")
    parser.add_argument("--epochs", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--width", type=float, default=1.0, help="factor on the filters (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.output.suffix != ".keras":
        parser.error(f"the output must end in .keras, got {options.output}")
    train(options.output, options.epochs, options.seed, options.width)


if __name__ == "__main__":
    main()

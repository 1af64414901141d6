"""A frame's way into the model's input: ours against the loop everybody writes, and the exact kernel's price.

make bench-preprocessing
"""

from __future__ import annotations

import time

import cv2
import numpy as np
from edgeferry_runtime.manifest import Quantization, TensorSpec
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor
from table import Row, report

SIDE = 224
SPEC = TensorSpec("image", "image", (1, SIDE, SIDE, 3), "int8", "NHWC", Quantization((1 / 255,), (-128,)))
ROUNDS = 200


def naive(pixels: np.ndarray, declared: Preprocessing) -> np.ndarray:
    """Convert the colours, resize, scale to floats, quantise: as tutorials have it."""
    rgb = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    (width, height), (x, y) = declared.placement(pixels.shape[1], pixels.shape[0])[1:]
    small = cv2.resize(rgb, (width, height))
    canvas = np.full((SIDE, SIDE, 3), declared.pad_value, np.uint8)
    canvas[y : y + height, x : x + width] = small
    real = canvas.astype(np.float32) / 255
    return np.clip(np.round(real * 255) - 128, -128, 127).astype(np.int8)[None]


def timed(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    rows = []
    random = np.random.default_rng(0)
    out = np.empty(SPEC.shape, np.int8)
    for width, height in ((1280, 720), (640, 480)):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for geometry in ("stretch", "letterbox"):
            for kernel in ("bilinear", "bilinear-fast"):
                declared = Preprocessing(SIDE, SIDE, geometry=geometry, resize=kernel, scale=1 / 255)
                ours = Preprocessor(declared, SPEC)
                ratios = []
                for _ in range(ROUNDS):
                    theirs = timed(lambda p=pixels, d=declared: naive(p, d))
                    ratios.append(timed(lambda p=pixels, o=ours: o(p, "bgr", out)) / theirs)
                name = f"{width}x{height} to {SIDE}, {geometry}, {kernel}: ours / the naive way"
                rows.append(Row(name, ratios[10:], "ratio", None, "lower"))
    report("preprocessing", rows)


if __name__ == "__main__":
    main()

"""A frame's way into the model's input: ours against the loop everybody writes, what is not the resize itself, and
what the declared shortcuts save.

make bench-preprocessing
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from edgeferry_runtime.manifest import Quantization, TensorSpec
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor
from table import Row, report

SIDE = 224
SPEC = TensorSpec("image", "image", (1, SIDE, SIDE, 3), "int8", "NHWC", Quantization((1 / 255,), (-128,)))
PLAIN = Preprocessing(SIDE, SIDE, scale=1 / 255)
LETTERBOX = replace(PLAIN, geometry="letterbox")
KERNELS = {"bilinear": cv2.INTER_LINEAR_EXACT, "bilinear-fast": cv2.INTER_LINEAR}
ROUNDS, WARM = 200, 10

Way = Callable[[], object]


def naive(pixels: np.ndarray, declared: Preprocessing) -> np.ndarray:
    """Convert the colours, resize, scale to floats, quantise: as tutorials have it."""
    rgb = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    (width, height), (x, y) = declared.placement(pixels.shape[1], pixels.shape[0])[1:]
    small = cv2.resize(rgb, (width, height))
    canvas = np.full((SIDE, SIDE, 3), declared.pad_value, np.uint8)
    canvas[y : y + height, x : x + width] = small
    real = canvas.astype(np.float32) / 255
    return np.clip(np.round(real * 255) - 128, -128, 127).astype(np.int8)[None]


def ours(declared: Preprocessing, pixels: np.ndarray, color: str = "bgr") -> Way:
    """Into memory that stays, as into an interpreter's."""
    preprocess, out = Preprocessor(declared, SPEC), np.empty(SPEC.shape, np.int8)
    return lambda: preprocess(pixels, color, out)


def bare(declared: Preprocessing, pixels: np.ndarray) -> Way:
    """The resize and nothing else."""
    size = declared.placement(pixels.shape[1], pixels.shape[0]).size
    target = np.empty((size[1], size[0], 3), np.uint8)
    return lambda: cv2.resize(pixels, size, dst=target, interpolation=KERNELS[declared.resize])


def timed(way: Way) -> tuple[float, float]:
    """Seconds by the clock, and of the process's CPU (threads that OpenCV keeps waiting included)."""
    cpu, wall = time.process_time(), time.perf_counter()
    way()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(name: str, one: Way, other: Way) -> list[Row]:
    """Interleaved; the ratio by the clock and by CPU."""
    pairs = [(timed(one), timed(other)) for _ in range(ROUNDS)][WARM:]
    return [
        Row(f"{name}, {kind}", [mine[i] / theirs[i] for mine, theirs in pairs], "ratio", None, "lower")
        for i, kind in enumerate(("wall", "CPU"))
    ]


def main() -> None:
    random = np.random.default_rng(0)
    frames = {
        size: random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        for size in ((1280, 720), (640, 480), (SIDE, SIDE))
    }
    rows = []
    for (width, height), pixels in frames.items():
        for geometry in ("stretch", "letterbox") if width > SIDE else ("stretch",):
            for kernel in KERNELS if width > SIDE else ("bilinear",):
                declared = replace(PLAIN, geometry=geometry, resize=kernel)
                name = f"{width}x{height} to {SIDE}, {geometry}, {kernel}: ours / the naive way"
                rows += compare(name, ours(declared, pixels), lambda p=pixels, d=declared: naive(p, d))
    large = frames[1280, 720]
    for kernel in KERNELS:
        declared = replace(LETTERBOX, resize=kernel)
        name = f"1280x720 to {SIDE}, letterbox, {kernel}: ours / cv2.resize alone"
        rows += compare(name, ours(declared, large), bare(declared, large))
    for color in ("i420", "nv12"):
        planes = random.integers(0, 256, (1080 * 3 // 2, 1920), dtype=np.uint8)
        ways = [
            ours(replace(LETTERBOX, planes=first), planes, color) for first in ("resize-first", "convert-first")
        ]
        rows += compare(f"1920x1080 {color} to {SIDE}, letterbox: planes resized first / converted first", *ways)
    # Soft shapes and a little noise: 137 KiB, as cameras send; noise alone would be no picture.
    scene = cv2.resize(large[:18, :32], (1280, 720), interpolation=cv2.INTER_CUBIC)
    scene = np.clip(scene + random.normal(0, 2, scene.shape), 0, 255).astype(np.uint8)
    data = cv2.imencode(".jpg", scene, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].reshape(-1)
    for geometry in ("stretch", "letterbox"):
        declared = replace(PLAIN, geometry=geometry)
        ways = [ours(replace(declared, decode=decode), data, "jpeg") for decode in ("reduced", "full")]
        rows += compare(f"1280x720 JPEG to {SIDE}, {geometry}: decoded reduced / full", *ways)
    report("preprocessing", rows)


if __name__ == "__main__":
    main()

"""A frame costs no memory once its format and size are known."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from edgeferry_runtime.manifest import Quantization, TensorSpec
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor

SHAPES = {"bgr": (180, 320, 3), "rgb": (180, 320, 3), "gray": (180, 320), "i420": (270, 320), "nv12": (270, 320)}
FRAMES = 200
# Views and numbers come and go; the smallest picture here, a chroma plane of the resized frame, has 2,000 bytes.
ALLOWED = 1600
WAYS = {
    "int8": {"scale": 1 / 255},
    "float32": {"scale": 1 / 255, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)},
}


@pytest.mark.parametrize("size", [(96, 84), (320, 180)], ids=["resized", "same-size"])
@pytest.mark.parametrize("planes", ["convert-first", "resize-first"])
@pytest.mark.parametrize("dtype", WAYS)
@pytest.mark.parametrize("color", SHAPES)
def test_nothing_is_allocated_for_a_frame(color, dtype, planes, size):
    pixels = np.random.default_rng(0).integers(0, 256, SHAPES[color], dtype=np.uint8)
    for geometry in ("stretch", "letterbox", "center-crop"):
        for kernel in ("bilinear", "bilinear-fast", "nearest"):
            for wanted in ("rgb", "gray"):
                values = WAYS[dtype] if wanted == "rgb" else {"scale": 1 / 255}
                declared = Preprocessing(
                    *size, color=wanted, geometry=geometry, resize=kernel, planes=planes, **values
                )
                shape = (1, declared.height, declared.width, declared.channels)
                quantization = Quantization((1 / 255,), (-128,)) if dtype == "int8" else None
                preprocess = Preprocessor(declared, TensorSpec("x", "x", shape, dtype, "", quantization))
                peak = growth(preprocess, pixels, color, np.empty(shape, dtype))
                assert peak < ALLOWED, preprocess.path


def test_the_table_is_no_exception():
    declared = Preprocessing(96, 84, geometry="letterbox", scale=1 / 255)
    spec = TensorSpec("x", "x", (1, 84, 96, 3), "int8", "", Quantization((0.02,), (-3,)))
    preprocess = Preprocessor(declared, spec)
    assert preprocess.path.endswith("table")
    assert growth(preprocess, np.zeros((180, 320, 3), np.uint8), "bgr", np.empty(spec.shape, np.int8)) < ALLOWED


def test_an_allocation_would_be_seen():
    """numpy alone takes new memory for every frame."""
    declared = Preprocessing(96, 84)
    spec = TensorSpec("x", "x", (1, 84, 96, 3), "float32")
    preprocess = Preprocessor(declared, spec, use_opencv=False)
    assert growth(preprocess, np.zeros((180, 320, 3), np.uint8), "bgr", np.empty(spec.shape, np.float32)) > 20_000


def growth(preprocess, pixels, color, out):
    """Bytes that were taken at most, at any moment of 66 frames, beyond what was held before.

    tracemalloc counts every thread of the process, and the test runner has its own; what a frame takes is
    there in each of three tries, so the least of them is its own.
    """
    for _ in range(3):
        preprocess(pixels, color, out)
    return min(growth_once(preprocess, pixels, color, out) for _ in range(3))


def growth_once(preprocess, pixels, color, out):
    tracemalloc.start()
    try:
        preprocess(pixels, color, out)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(FRAMES // 3):
            preprocess(pixels, color, out)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()

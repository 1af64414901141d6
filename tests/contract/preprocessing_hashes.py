"""The committed hashes of preprocessed frames, and the script that checks or remakes them.

    python tests/contract/preprocessing_hashes.py --check      numpy and edgeferry-runtime alone will do
    python tests/contract/preprocessing_hashes.py --write      after a change that is meant

A device whose bytes differ from this table sees other pictures than the workstation that calibrated its model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys

import numpy as np
from edgeferry_runtime import opencv
from edgeferry_runtime.golden import tensor_sha256
from edgeferry_runtime.manifest import Quantization, TensorSpec
from edgeferry_runtime.preprocessing import PRESETS, Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor

TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "preprocessing_hashes.json")
FRAMES = [(640, 480), (1280, 720), (97, 61), (32, 32)]
PLANAR_FRAMES = [(640, 480), (1280, 720), (98, 62), (32, 32)]
TARGETS = [(224, 224), (96, 64)]
QUANTIZATIONS = {
    "float32": None,
    "int8": Quantization((1 / 255,), (-128,)),
    "uint8": Quantization((0.0078125,), (127,)),
}


def cases():
    """(name, declared preprocessing, tensor, frame size, frame colour)."""
    chosen = itertools.product(
        FRAMES, TARGETS, ("stretch", "letterbox", "center-crop"), ("bilinear", "nearest"), ("rgb", "bgr", "gray")
    )
    for i, (frame, (width, height), geometry, kernel, color) in enumerate(chosen):
        preset = sorted(PRESETS)[i % len(PRESETS)]
        dtype = sorted(QUANTIZATIONS)[i % len(QUANTIZATIONS)]
        values = PRESETS[preset]
        if color == "gray":
            values = {"scale": values["scale"]}
        values = dict(values, color=color)
        declared = Preprocessing(width=width, height=height, geometry=geometry, resize=kernel, **values)
        spec = TensorSpec(
            "image", "image", (1, height, width, declared.channels), dtype, "NHWC", QUANTIZATIONS[dtype]
        )
        source = "gray" if i % 7 == 3 else ("bgr", "rgb")[i % 2]
        name = "{}x{} {} to {}x{} {} {} {} {} {}".format(
            frame[0], frame[1], source, width, height, geometry, kernel, color, preset, dtype
        )
        yield name, declared, spec, frame, source
    yield from planar_cases()


def planar_cases():
    """The same of planes, whose pictures have even sides."""
    chosen = itertools.product(
        ("i420", "nv12"),
        ("convert-first", "resize-first"),
        ("stretch", "letterbox", "center-crop"),
        ("bilinear", "nearest"),
        ("rgb", "bgr", "gray"),
    )
    for i, (source, planes, geometry, kernel, color) in enumerate(chosen):
        frame, (width, height) = PLANAR_FRAMES[i % len(PLANAR_FRAMES)], TARGETS[i // 5 % len(TARGETS)]
        dtype = sorted(QUANTIZATIONS)[i // 7 % len(QUANTIZATIONS)]
        declared = Preprocessing(
            width=width, height=height, geometry=geometry, resize=kernel, color=color, planes=planes, scale=1 / 255
        )
        spec = TensorSpec(
            "image", "image", (1, height, width, declared.channels), dtype, "NHWC", QUANTIZATIONS[dtype]
        )
        name = "{}x{} {} to {}x{} {} {} {} {} {}".format(
            frame[0], frame[1], source, width, height, planes, geometry, kernel, color, dtype
        )
        yield name, declared, spec, frame, source


def make_frame(width, height, color):
    """Hash noise over a gradient, without a random generator whose stream could change."""
    if color in ("i420", "nv12"):
        return make_frame(width, height * 3 // 2, "gray")
    y, x = np.mgrid[0:height, 0:width].astype(np.uint32)
    noise = (x * np.uint32(73856093) ^ y * np.uint32(19349663)) * np.uint32(2654435761) >> np.uint32(24)
    base = (x * 200 // width + y * 55 // height).astype(np.uint32)
    gray = ((base * 3 + noise) // 4).astype(np.uint8)
    if color == "gray":
        return gray
    return np.stack([gray, gray[::-1], 255 - gray], axis=-1)


def compute(use_opencv):
    """Hash of every case's tensor, by name."""
    table = {}
    for name, declared, spec, (width, height), color in cases():
        preprocessor = Preprocessor(declared, spec, use_opencv=use_opencv)
        table[name] = tensor_sha256(preprocessor(make_frame(width, height, color), color))
    return table


def differences():
    """What differs from the committed table here: a list of (implementation, case)."""
    with open(TABLE) as file:
        expected = json.load(file)
    ways = [("numpy", False)] + ([("OpenCV", True)] if opencv.available() else [])
    found = []
    for way, use_opencv in ways:
        table = compute(use_opencv)
        found += [
            (way, name) for name in sorted(set(expected) | set(table)) if expected.get(name) != table.get(name)
        ]
    return [way for way, _ in ways], len(expected), found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().write:
        with open(TABLE, "w") as file:
            json.dump(compute(False), file, indent=0, sort_keys=True)
            file.write("\n")
        return 0
    ways, count, found = differences()
    for way, name in found:
        print("{}: {} differs".format(way, name))
    print(
        "{} frames by {} on Python {}: {} differ".format(
            count, " and ".join(ways), sys.version.split()[0], len(found)
        )
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

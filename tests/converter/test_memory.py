"""Memory: judging streams its samples, so that ten times the images take hardly more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

CLASSES = 10
FEW, MANY = 1_000, 10_000
LIMIT_MB = 300

JUDGE = """
import json, resource, sys, tempfile
from pathlib import Path
import io
from rich.console import Console
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_converter.convert import ConversionRequest, open_material
from edgeferry_converter.evaluation import evaluate
from edgeferry_converter.progress import Progress
from edgeferry_converter.quantization import QuantizationScheme
from edgeferry_converter.workshop import Workshop

model, calibration, judging = sys.argv[1:]
material = open_material(
    ConversionRequest(Path(model), "host", calibration, eval_data=judging, preprocess="unit")
)
post = Postprocessing("classify", {"scores": material.source.outputs[0].name}, scores="probabilities")
with (
    Progress(Console(file=io.StringIO())) as progress,
    tempfile.TemporaryDirectory() as folder,
    Workshop(material, Path(folder), progress) as workshop,
):
    runners = [workshop.runner(workshop.make(QuantizationScheme(name))) for name in ("float32", "int8")]
    labels = material.dataset.labels
    found = evaluate(material.source, material.feed, runners, material.evaluation(), post, labels, True)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"samples": found.samples, "peak_mb": peak / 1024}))
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of small noisy PNG files, no two alike: so many to judge by, and a few to calibrate with."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    folders = {count: root / str(count) for count in (100, FEW, MANY)}
    for count, folder in folders.items():
        for label in range(CLASSES):
            (folder / str(label)).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / str(i % CLASSES) / f"{i:05d}.png"), pixels)
    return folders


@pytest.fixture(scope="module")
def classifier(keras, tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    path = tmp_path_factory.mktemp("models") / "tiny.keras"
    keras.Model(inputs, keras.layers.Dense(CLASSES, activation="softmax")(x)).save(path)
    return path


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="ru_maxrss counts kilobytes on Linux and something else elsewhere"
)
def test_ten_times_the_images_take_hardly_more_memory(classifier, pictures):
    few, many = (peak_mb(classifier, pictures[100], pictures[count], count) for count in (FEW, MANY))
    print(f"peak of judging {FEW} images: {few:.0f} MB, {MANY} images: {many:.0f} MB")
    assert many - few < LIMIT_MB


def peak_mb(model: Path, calibration: Path, judging: Path, count: int) -> float:
    command = [sys.executable, "-c", JUDGE, str(model), str(calibration), str(judging)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["samples"] == count
    return answer["peak_mb"]

"""Before quantising: a recipe makes the model smaller on training data, and the conversion goes on with that."""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgeferry_runtime.postprocessing import Postprocessing

from edgeferry_converter.data.labels import read_labels
from edgeferry_converter.errors import OptionError
from edgeferry_converter.loading.chain import load_source
from edgeferry_converter.loading.keras_source import KerasSource
from edgeferry_converter.loading.source import SourceModel
from edgeferry_converter.material import Material
from edgeferry_converter.progress import Progress
from edgeferry_converter.quantization import QuantizationScheme, quantize
from edgeferry_converter.variants import ConvertedVariant, VariantRunner

if TYPE_CHECKING:
    from edgeferry_converter.compression.training import Data
    from edgeferry_converter.recipe import Recipe
    from edgeferry_converter.request import ConversionRequest

__all__ = ["compressed", "forget_training", "training_folder"]

CALIBRATED_WITH = 16  # samples: bytes and time of a file do not depend on its ranges
TIMED = 30  # runs, of which the median counts


def compressed(
    request: ConversionRequest, recipe: Recipe, material: Material, post: Postprocessing, output: Path,
    scratch: Path, progress: Progress,
) -> tuple[Material, dict[str, Any]]:  # fmt: skip
    """The material with a smaller model in it, and what the recipe did.

    Raises:
        OptionError: no training data, or no Keras model.
        ModelError, TrainingError, DataError: see ``compression.flow.compress``.
    """
    # TensorFlow's training machinery is needed from here on only.
    from edgeferry_converter.compression.flow import Measures, compress
    from edgeferry_converter.compression.train_data import open_train_data

    keras = keras_model(material.source)
    if not request.train_data:
        raise OptionError(f"the recipe {recipe.name} needs images, and nothing says which", "Add --train-data.")
    progress.step("opening the training data")
    labels = read_labels(request.labels) if request.labels else None
    classes = class_count(material, post) if recipe.trains or _in_folders(request.train_data) else None
    data = open_train_data(request.train_data, material.source, material.feed, classes, labels)
    teacher = teacher_of(recipe, material, request)

    def tell(what: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if name in ("loss", "accuracy"))
        progress.at(done, total, f"{what} {shown}".strip())

    folder = training_folder(output, recipe, material.source, request.train_data)
    measures = Measures(
        bytes=lambda model: float(len(int8_file(model, material))),
        latency=lambda model: milliseconds(int8_file(model, material), material, scratch),
    )
    # Batches differ in kind, which Data does not say; both are read by number.
    found = compress(keras, recipe, cast("Data", data), teacher, measures, folder, tell)
    source = material.source
    made, control = (
        KerasSource(model, source.path, "keras", source.sha256, source.options) if model is not None else None
        for model in (found.model, found.control)
    )
    figures = {**found.figures, "train_data": data.description}
    if hasattr(data, "overlap"):
        figures["overlap"] = data.overlap(material.judging, material.division.evaluation)
    return replace(material, made=made, qat=found.qat, control=control), figures


def _in_folders(spec: str) -> bool:
    """Whether there may be a folder a class; pictures side by side have no labels, and statistics need none."""
    path = Path(spec)
    return not path.is_dir() or any(part.is_dir() for part in path.iterdir())


def keras_model(source: SourceModel) -> Any:
    """The Keras model of a source.

    Raises:
        OptionError: it is a SavedModel or a .tflite, which cannot be trained here.
    """
    if not isinstance(source, KerasSource):
        raise OptionError(
            f"{source.path}: is a {source.format} file, whose weights cannot be trained any more",
            "Give the recipe the Keras model it was made of.",
        )
    return source.keras


def class_count(material: Material, post: Postprocessing) -> int | None:
    """How many classes the model tells apart; None for other tasks."""
    shape = material.source.outputs[0].shape
    if post.task != "classify" or len(material.source.outputs) != 1:
        return None
    return 2 if shape[-1] == 1 else shape[-1]


def teacher_of(recipe: Recipe, material: Material, request: ConversionRequest) -> Any:
    """The model whose answers are learned from; None where the recipe does not distil."""
    if recipe.distill is None:
        return None
    if recipe.distill.teacher == "source":
        return keras_model(material.source)
    return keras_model(load_source(Path(recipe.distill.teacher), request.load))


def training_folder(output: Path, recipe: Recipe, source: SourceModel, train_data: str) -> Path:
    """Where checkpoints are kept until the bundle is written; another run of the same finds them."""
    said = json.dumps([recipe.values(), source.sha256, train_data], sort_keys=True)
    return output.with_suffix(".training") / hashlib.sha256(said.encode()).hexdigest()[:12]


def forget_training(folder: Path) -> None:
    """Remove a run's checkpoints, and the folder around them when it was the only one."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def int8_file(model: Any, material: Material) -> bytes:
    """A model's int8 .tflite, calibrated just well enough to be weighed and timed."""
    source = KerasSource(model, material.source.path, "keras", "", material.source.options)
    samples = [material.feed.real(sample) for sample in islice(material.calibration(), CALIBRATED_WITH)]
    with source.saved_model() as (folder, signature):
        return quantize(folder, signature, QuantizationScheme("int8"), lambda: iter(samples))


def milliseconds(data: bytes, material: Material, scratch: Path) -> float:
    """Median time of one invoke on this machine, one thread."""
    path = scratch / "timed.tflite"
    path.write_bytes(data)
    variant = ConvertedVariant(QuantizationScheme("int8"), path, len(data))
    runner = VariantRunner(variant, material.feed, threads=1)
    runner(next(material.evaluation()))
    times = []
    for _ in range(TIMED):
        began = time.perf_counter()
        runner.interpreter.invoke()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)

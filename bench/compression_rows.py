"""The rows of the compression bench: each is made by the product's own flow, and kept in a folder of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from edgeferry_converter.compressing import int8_file, milliseconds
from edgeferry_converter.convert import ConversionRequest, open_material
from edgeferry_converter.loading.keras_source import KerasSource
from edgeferry_converter.material import Material
from edgeferry_converter.progress import Progress
from edgeferry_converter.quantization import QuantizationScheme
from edgeferry_converter.recipe import Distill, Qat, Recipe, load_recipe
from edgeferry_converter.workshop import Workshop
from rich.console import Console

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
RESNET8 = SHARED / "mlcommons_tiny" / "resnet8_cifar10_keras2.h5"
CIFAR10 = SHARED / "cifar10"
INT8 = QuantizationScheme("int8")
OBSERVED = 32  # batches that set the ranges of a model that is rounded without training


@dataclass(frozen=True)
class Spec:
    """One row: a shipped recipe, with what the bench changes of it."""

    name: str
    recipe: Recipe | None
    epochs: int = 0  # of the dense control, where there is no recipe

    @property
    def trained(self) -> int:
        """Passes over the training data that its weights have seen, a teacher's not counted."""
        if self.recipe is None:
            return self.epochs
        prune = self.recipe.prune
        before = 0
        if prune is not None and prune.kind == "channels":
            before = prune.start_epochs + (prune.rounds - 1) * prune.round_epochs
        if self.recipe.qat is not None:
            return self.recipe.qat.float_epochs + self.recipe.qat.epochs
        return before + self.recipe.train.epochs

    def key(self) -> str:
        """What a kept result must have been made with."""
        return json.dumps(self.recipe.values() if self.recipe else self.epochs, sort_keys=True)


@dataclass(frozen=True)
class Made:
    """A kept result.

    Attributes:
        right: "float" and "int8" to bool [samples of the test part].
        file: the int8 .tflite.
        macs: of the model.
        figures: what the flow told.
        seconds: making and judging it took.
    """

    name: str
    right: Mapping[str, np.ndarray]
    file: Path
    macs: int
    figures: Mapping[str, Any]
    seconds: float


def specs() -> list[Spec]:
    """All rows, in the order in which they are made; the first is the dense control."""
    dense = load_recipe("channels-50")
    total = Spec("", dense).trained
    found = [Spec("dense", None, total)]
    for percent in (50, 80):
        found.append(Spec(f"magnitude {percent} %, distilled", _pruned("magnitude-80", sparsity=percent / 100)))
    for percent in (75, 50, 35):
        recipe = load_recipe("channels-75") if percent == 75 else _pruned("channels-50", target=percent / 100)
        plain = replace(recipe, distill=None)
        found.append(Spec(f"channels {percent} %", plain))
        found.append(Spec(f"channels {percent} %, distilled", replace(plain, distill=recipe.distill or Distill())))
    fast = _pruned("channels-50", measure="latency", target=0.65, align=16)
    found.append(Spec("channels 65 % of the latency, distilled", fast))
    for name, recipe in qat_recipes().items():
        found.append(Spec(f"QAT {name}", recipe))
    return found


def qat_recipes() -> dict[str, Recipe]:
    """The three ways weights are rounded, by name."""
    qat = load_recipe("qat")
    assert qat.qat is not None
    return {
        "per channel": qat,
        "per tensor": replace(qat, qat=replace(qat.qat, weights="per-tensor")),
        "int4 weights": load_recipe("qat-int4"),
    }


def _pruned(name: str, **changes: Any) -> Recipe:
    recipe = load_recipe(name)
    assert recipe.prune is not None
    return replace(recipe, prune=replace(recipe.prune, **changes))


class Bench:
    """The model, the data, and where results are kept."""

    def __init__(self, scratch: Path) -> None:
        from edgeferry_converter.compression.train_data import open_train_data

        self.scratch = scratch
        # Calibrated on training images, judged by all test images.
        self.train = CIFAR10 / "train10k.npz"
        request = ConversionRequest(
            RESNET8, "host", self.train, str(CIFAR10 / "test"), preprocess="raw", max_drop=0
        )
        self.material: Material = open_material(request)
        self.source = cast("KerasSource", self.material.source).keras
        self.data: Any = open_train_data(str(self.train), self.material.source, self.material.feed, 10)

    def holds(self, spec: Spec) -> bool:
        """Whether an earlier run kept the row, made with the same recipe."""
        done = self._folder(spec) / "done.json"
        return done.is_file() and json.loads(done.read_text("utf-8"))["key"] == spec.key()

    def made(self, spec: Spec) -> list[Made]:
        """Make a row, or take what an earlier run kept; QAT brings the rows it is compared with."""
        folder = self._folder(spec)
        if not self.holds(spec):
            folder.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            rows = self._make(spec, folder)
            told = {"key": spec.key(), "rows": rows, "seconds": time.monotonic() - began}
            (folder / "done.json").write_text(json.dumps(told), "utf-8")
        told = json.loads((folder / "done.json").read_text("utf-8"))
        return [_kept(folder, name, told["seconds"] / len(told["rows"])) for name in told["rows"]]

    def _folder(self, spec: Spec) -> Path:
        return self.scratch / spec.name.replace(" ", "-").replace("%", "percent").replace(",", "")

    def _make(self, spec: Spec, folder: Path) -> list[str]:
        if spec.recipe is None:
            return [
                self._finish(folder, "source", self.source, {}),
                self._finish(folder, spec.name, *self._dense(spec, folder)),
            ]
        found = self._compress(spec.recipe, folder)
        if spec.recipe.qat is None:
            return [self._finish(folder, spec.name, found.model, found.figures)]
        way = spec.name.removeprefix("QAT ")
        return [
            self._finish(folder, f"PTQ {way}", *self._rounded_only(spec.recipe.qat, self._recalibrated())),
            self._finish(folder, f"PTQ {way}, trained as long",
                         *self._rounded_only(spec.recipe.qat, found.control)),
            self._finish(folder, spec.name, found.model, found.figures, found.qat),
        ]  # fmt: skip

    def _dense(self, spec: Spec, folder: Path) -> tuple[Any, Mapping[str, Any]]:
        """The source, trained as long as the compressed models with the same options."""
        from edgeferry_converter.compression.training import TrainOptions, fine_tune

        train = load_recipe("channels-75").train  # the rate that suits the dense model best of those tried
        model = self._recalibrated()
        options = TrainOptions(spec.epochs, train.learning_rate, train.batch_size, train.seed)
        history = fine_tune(model, self.data, options, folder=folder, progress=_teller("dense"))
        return model, {"training": [{"name": "dense", "epochs": list(map(dict, history.epochs))}]}

    def _compress(self, recipe: Recipe, folder: Path) -> Any:
        from edgeferry_converter.compression.flow import Measures, compress

        # What another row has finished with the same options is gone on with after its last epoch.
        for name, epochs in _shared_trainings(recipe).items():
            shared = self.scratch.resolve() / "shared" / f"{name}-{epochs}"
            shared.mkdir(parents=True, exist_ok=True)
            if not (folder / name).exists():
                (folder / name).symlink_to(shared, target_is_directory=True)
        measures = Measures(
            bytes=lambda model: float(len(int8_file(model, self.material))),
            latency=lambda model: milliseconds(int8_file(model, self.material), self.material, self.scratch),
        )
        teller = _teller(recipe.name)
        return compress(
            self.source, recipe, self.data, self.source, measures, folder,
            lambda what, done, total, figures: teller(done, total, figures, what),
        )  # fmt: skip

    def _recalibrated(self) -> Any:
        from edgeferry_converter.compression.recalibration import recalibrate

        model = _copy(self.source)
        recalibrate(model, self.data)
        return model

    def _rounded_only(self, how: Qat, model: Any) -> tuple[Any, Mapping[str, Any], Any]:
        """Quantised after training: the product's calibration per channel, observed ranges for other weights."""
        from edgeferry_converter.compression.qat import QatOptions, freeze, observe, prepare
        from edgeferry_converter.compression.rounded_statistics import rounded_statistics

        if (how.weights, how.bits) == ("per-channel", 8):
            return model, {}, None
        options = QatOptions(how.weights, how.bits)
        measured = _copy(model)
        rounded_statistics(measured, self.data, options)
        prepared = prepare(measured, options)
        observe(prepared, islice((batch[0] for batch in self.data.batches(32, 0, "none")), OBSERVED))
        freeze(prepared)
        return model, {}, prepared

    def _finish(self, folder: Path, name: str, model: Any, figures: Mapping[str, Any], qat: Any = None) -> str:
        """Convert as `edgeferry convert` does, judge on all test images, keep everything."""
        from edgeferry_converter.compression.macs import macs

        source = self.material.source
        made = KerasSource(model, source.path, "keras", source.sha256, source.options)
        material = replace(self.material, made=made, qat=qat)
        with Progress(Console(quiet=True)) as progress, Workshop(material, folder, progress) as workshop:
            variant = workshop.make(INT8)
            runner = workshop.runner(variant)
            samples = list(material.evaluation())
            labels = np.array([sample.label for sample in samples])
            inputs = [material.feed.real(sample) for sample in samples]
            stacked = {key: np.concatenate([one[key] for one in inputs]) for key in inputs[0]}
            right = {
                "float": _best(made.predict(stacked)) == labels,
                "int8": np.concatenate([_best(runner(sample)) for sample in samples]) == labels,
            }
            variant.path.replace(folder / f"{name}.tflite")
        np.savez(folder / f"{name}.npz", **right)
        told = {"macs": int(macs(model)), "figures": _plain(figures)}
        (folder / f"{name}.json").write_text(json.dumps(told), "utf-8")
        return name


def _kept(folder: Path, name: str, seconds: float) -> Made:
    told = json.loads((folder / f"{name}.json").read_text("utf-8"))
    with np.load(folder / f"{name}.npz") as arrays:
        right = {key: arrays[key] for key in ("float", "int8")}
    return Made(name, right, folder / f"{name}.tflite", told["macs"], told["figures"], seconds)


def _best(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The best class of each sample, int [n]."""
    return np.asarray(next(iter(outputs.values())).argmax(axis=-1))


def _shared_trainings(recipe: Recipe) -> dict[str, int]:
    """Trainings that are the same in several rows, by the name of their folder, and their epochs."""
    found = {"teacher": recipe.distill.teacher_epochs} if recipe.distill else {}
    if recipe.qat is not None:
        found |= {"before-rounding": recipe.qat.float_epochs, "without-rounding": recipe.qat.epochs}
    return found


def _copy(model: Any) -> Any:
    import keras

    copied = keras.models.clone_model(model)
    copied.set_weights(model.get_weights())
    return copied


def _plain(figures: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(figures, default=float))


def _teller(name: str) -> Callable[..., None]:
    """Prints a line an epoch or so: a run of half an hour must be seen to go on."""
    last = [0.0]

    def tell(done: int, total: int, figures: Mapping[str, float], what: str = "") -> None:
        if time.monotonic() - last[0] > 20 or done == total:
            last[0] = time.monotonic()
            said = ", ".join(f"{key} {float(value):.3f}" for key, value in figures.items() if key != "loss")
            print(f"  {name} {what}: step {done} of {total}, {said}", flush=True)

    return tell

"""convert, top to bottom: load, split, quantise, judge, choose goldens, pack, report."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Preprocessing

from edgeferry_converter.data.folders import ImageFolders, Split, decode, list_images, split_images
from edgeferry_converter.data.labels import read_labels
from edgeferry_converter.errors import ModelError, OptionError
from edgeferry_converter.evaluation import Evaluation, FloatModel, evaluate, scores_kind
from edgeferry_converter.goldens import GoldenFrames, choose_frames, tells_a_dead_model, tolerance
from edgeferry_converter.latency import Latency, measure_latency
from edgeferry_converter.loading.keras_files import LoadedModel, load_model
from edgeferry_converter.packager import Contents, bundle_name, pack
from edgeferry_converter.preprocess_option import read_preprocessing
from edgeferry_converter.profile import DeviceProfile, load_profile
from edgeferry_converter.progress import Progress
from edgeferry_converter.quantization import QuantizationScheme, quantize, saved_model
from edgeferry_converter.report import report_path, write_report
from edgeferry_converter.variants import ConvertedVariant, VariantRunner

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["ConversionRequest", "ConversionResult", "convert"]

# Below this multiple of guessing, the Keras model itself does not recognise the images: preprocessing is wrong.
GUESSING = 2.0


@dataclass(frozen=True)
class ConversionRequest:
    """What the user asks for; see ``edgeferry convert --help``."""

    model: Path
    profile: str
    data: Path
    labels: Path | None = None
    preprocess: str | None = None
    quantize: str | None = None
    output: Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class ConversionResult:
    """What came out.

    Attributes:
        bundle, report: the files.
        version: the bundle's content version.
        figures: the report's contents.
    """

    bundle: Path
    report: Path
    version: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class _ModelShape:
    """A classifier's input and number of classes."""

    height: int | None
    width: int | None
    channels: int
    outputs: int

    @property
    def classes(self) -> int:
        return 2 if self.outputs == 1 else self.outputs


def convert(request: ConversionRequest, console: Console) -> ConversionResult:
    """Turn a Keras model into a bundle that is proven on held-out images.

    Args:
        request: what to convert, how and into what.
        console: for the progress bar.

    Raises:
        EdgeferryError: with what is at fault; no file is left behind.
    """
    profile = load_profile(request.profile)
    output = _output_path(request)
    labels = read_labels(request.labels) if request.labels else None
    with Progress(console) as progress:
        progress.step("loading")
        source = load_model(request.model)
        shape = _model_shape(source)
        source = source.bare()
        declared = read_preprocessing(request.preprocess, shape.height, shape.width, shape.channels)
        folders = list_images(request.data, labels, shape.classes)
        split = split_images(folders.images, request.seed)
        scheme = _scheme(request, profile)
        keras_model = FloatModel(source.keras, declared)

        with tempfile.TemporaryDirectory(prefix="edgeferry-") as scratch:
            variants = _quantize(source, declared, scheme, split, keras_model, Path(scratch), progress)
            runners = [VariantRunner(variant, declared) for variant in variants]
            kind = _scores_kind(source, keras_model, split)
            frames = progress.track(decode(split.evaluation), len(split.evaluation), "judging")
            evaluation = evaluate(keras_model, runners, frames, kind)
            shipped = [runner for runner in runners if runner.variant.name == scheme.name]
            golden = choose_frames(split.evaluation, declared, keras_model, shipped)
            progress.step("timing")
            latency = measure_latency([VariantRunner(variant, declared, threads=1) for variant in variants])
            progress.step("packing")
            recipe = {"scheme": asdict(scheme), "seed": request.seed}
            contents = _contents(output, profile, declared, kind, folders, shipped, evaluation, golden)
            contents = replace(contents, provenance=_provenance(source, split, recipe, evaluation, shipped))
            content_version = pack(output, contents)
    figures = _figures(output, content_version, source, split, contents, evaluation, latency, runners)
    write_report(report_path(output), figures)
    return ConversionResult(output, report_path(output), content_version, figures)


def _output_path(request: ConversionRequest) -> Path:
    output = request.output or Path(request.model.stem + ".ferry")
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise OptionError(
            f"{output}: the bundle cannot be written there", "Give -o a file in a folder that exists."
        )
    return output


def _scheme(request: ConversionRequest, profile: DeviceProfile) -> QuantizationScheme:
    defaults = profile.quantization
    return QuantizationScheme(
        request.quantize or defaults.default, defaults.input_dtype, defaults.output_dtype, defaults.dense
    )


def _model_shape(source: LoadedModel) -> _ModelShape:
    """The model's input and outputs, when it is an image classifier.

    Raises:
        ModelError: it is something else.
    """
    model = source.keras
    for kind, tensors in (("input", model.inputs), ("output", model.outputs)):
        if len(tensors) != 1:
            names = ", ".join(tensor.name for tensor in tensors)
            raise ModelError(
                f"{source.path}: has {len(tensors)} {kind}s ({names}), convert takes models with one",
                f"Save a model with the one {kind} you need: keras.Model(inputs, outputs).save(...).",
            )
    shape, classes = model.inputs[0].shape, model.outputs[0].shape
    if len(shape) != 4 or shape[3] not in (1, 3):
        raise ModelError(
            f"{source.path}: takes an input of shape {list(shape)}, convert takes images:"
            " [batch, height, width, 1 or 3 channels]",
            "Save the model with channels last.",
        )
    if len(classes) != 2 or classes[1] is None:
        raise ModelError(
            f"{source.path}: gives an output of shape {list(classes)}, a classifier gives [batch, classes]",
            "convert makes bundles of classifiers so far.",
        )
    return _ModelShape(shape[1], shape[2], shape[3], classes[1])


def _quantize(
    source: LoadedModel,
    declared: Preprocessing,
    scheme: QuantizationScheme,
    split: Split,
    keras_model: FloatModel,
    scratch: Path,
    progress: Progress,
) -> list[ConvertedVariant]:
    """The wanted variant and, to compare it with, the float one; that one first."""

    def representative() -> Iterator[np.ndarray]:
        images = progress.track(decode(split.calibration), len(split.calibration), "calibrating")
        return (keras_model.tensor(pixels) for _, pixels in images)

    progress.step("converting")
    schemes = {s.name: s for s in (QuantizationScheme("float32"), scheme)}
    variants = []
    with saved_model(source.keras, declared.height, declared.width, declared.channels) as folder:
        for one in schemes.values():
            data = quantize(folder, one, representative)
            path = scratch / f"{one.name}.tflite"
            path.write_bytes(data)
            variants.append(ConvertedVariant(one, path, len(data)))
    return variants


def _scores_kind(source: LoadedModel, keras_model: FloatModel, split: Split) -> str:
    tensors = [keras_model.tensor(pixels) for _, pixels in decode(split.calibration[:32])]
    return scores_kind(source.keras, keras_model.predict(tensors))


def _contents(
    output: Path,
    profile: DeviceProfile,
    declared: Preprocessing,
    kind: str,
    folders: ImageFolders,
    shipped: list[VariantRunner],
    evaluation: Evaluation,
    golden: GoldenFrames,
) -> Contents:
    scores = evaluation.variants
    return Contents(
        name=bundle_name(output),
        profile=profile,
        preprocessing=declared,
        postprocessing=Postprocessing(task="classify", scores=kind),
        labels=folders.labels,
        runners=shipped,
        tolerances={
            r.variant.name: tolerance(scores[r.variant.name], r, golden, evaluation.span) for r in shipped
        },
        golden=golden,
        provenance={},
    )


def _provenance(
    source: LoadedModel,
    split: Split,
    recipe: dict[str, Any],
    evaluation: Evaluation,
    shipped: list[VariantRunner],
) -> dict[str, Any]:
    """Where the bundle comes from; no time, no path: the same inputs give the same bytes."""
    return {
        "source": {"file": source.path.name, "format": source.format, "sha256": source.sha256},
        "calibration": {"images": len(split.calibration), "sha256": split.calibration_sha256()},
        "recipe": recipe,
        "gate": {
            "metric": "top-1 accuracy",
            "frames": evaluation.frames,
            "keras": evaluation.keras_correct / evaluation.frames,
            "variants": {r.variant.name: _judgement(evaluation, r.variant.name) for r in shipped},
        },
        "tools": {
            name: version(name) for name in ("edgeferry-converter", "tensorflow", "keras", "ai-edge-litert")
        },
    }


def _judgement(evaluation: Evaluation, name: str) -> dict[str, Any]:
    score = evaluation.variants[name]
    return {
        "accuracy": score.correct / evaluation.frames,
        "agreement": score.agree / evaluation.frames,
        "rms_error": score.rms_error,
        "max_error": score.max_error,
    }


def _figures(
    output: Path,
    content_version: str,
    source: LoadedModel,
    split: Split,
    contents: Contents,
    evaluation: Evaluation,
    latency: dict[str, Latency],
    runners: list[VariantRunner],
) -> dict[str, Any]:
    """Everything the report says; what was timed is only here, never in the bundle."""
    return {
        "bundle": str(output),
        "report": str(report_path(output)),
        "version": content_version,
        "bundle_bytes": output.stat().st_size,
        "profile": contents.profile.name,
        "source": {**contents.provenance["source"], "bytes": source.path.stat().st_size},
        "preprocessing": asdict(contents.preprocessing),
        "postprocessing": asdict(contents.postprocessing),
        "data": {
            "calibration_images": len(split.calibration),
            "evaluation_images": len(split.evaluation),
            "duplicate_files": split.duplicates,
            "seed": split.seed,
        },
        "evaluation": {
            "frames": evaluation.frames,
            "keras_accuracy": evaluation.keras_correct / evaluation.frames,
            "variants": {
                runner.variant.name: {
                    **_judgement(evaluation, runner.variant.name),
                    "bytes": runner.variant.size,
                    "in_bundle": runner in contents.runners,
                    "latency": asdict(latency[runner.variant.name]),
                }
                for runner in runners
            },
        },
        "latency_reference": runners[0].variant.name,
        "backend": str(runners[0].interpreter.backend),
        "machine": {
            "system": platform.system(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        },
        "tools": contents.provenance["tools"],
        "warnings": _warnings(evaluation, contents),
    }


def _warnings(evaluation: Evaluation, contents: Contents) -> list[str]:
    warnings = []
    accuracy, classes = evaluation.keras_correct / evaluation.frames, len(contents.labels)
    if accuracy < (GUESSING / classes if classes > 3 else 0.6):
        warnings.append(
            f"the Keras model itself is right on {accuracy:.1%} of the images, little better than guessing:"
            " try another --preprocess (raw, unit, tf, torch, caffe) or check the order of the labels"
        )
    for name, allowed in contents.tolerances.items():
        if not tells_a_dead_model(contents.golden, name, allowed):
            warnings.append(
                f"{name}: the golden frames cannot tell a device that answers the same for every picture:"
                " quantisation error is as large as the differences between answers"
            )
    return warnings

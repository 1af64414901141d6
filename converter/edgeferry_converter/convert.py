"""convert, top to bottom: load, open the data, lint, quantise, judge, gate, choose goldens, pack, report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeferry_runtime.postprocessing import Postprocessing

from edgeferry_converter import figures as figure
from edgeferry_converter.baseline import measure_baseline
from edgeferry_converter.compiling import compile_for, wants_edgetpu
from edgeferry_converter.compressing import compressed, forget_training, training_folder
from edgeferry_converter.data.dataset import takes_frames
from edgeferry_converter.data.finding import Finding, raise_for
from edgeferry_converter.data.labels import read_labels
from edgeferry_converter.data.open import open_dataset
from edgeferry_converter.data.split import split
from edgeferry_converter.described import described
from edgeferry_converter.errors import GateError, OptionError
from edgeferry_converter.evaluation import Evaluation, evaluate, first_outputs
from edgeferry_converter.feeding import Feed, FrameFeed, TensorFeed
from edgeferry_converter.goldens import Goldens, choose_goldens, golden_numbers, tells_a_dead_model, tolerances
from edgeferry_converter.latency import Latency, measure_latency
from edgeferry_converter.linting import lint_material
from edgeferry_converter.loading.baselines import baselines
from edgeferry_converter.loading.chain import load_source
from edgeferry_converter.loading.source import SourceModel
from edgeferry_converter.material import Material
from edgeferry_converter.packager import Contents, bundle_name, pack
from edgeferry_converter.preprocess_option import read_preprocessing
from edgeferry_converter.profile import DeviceProfile, load_profile
from edgeferry_converter.progress import Progress
from edgeferry_converter.proving import FLOAT, Proof, prove
from edgeferry_converter.quantization import LayerError, QuantizationScheme
from edgeferry_converter.recipe import Recipe
from edgeferry_converter.report import page_path, report_path, write_report
from edgeferry_converter.requantization import REQUANTIZATION_SCHEMES
from edgeferry_converter.request import ConversionRequest
from edgeferry_converter.task import decide_postprocessing
from edgeferry_converter.variants import ConvertedVariant, VariantRunner
from edgeferry_converter.workshop import Workshop

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["ConversionRequest", "ConversionResult", "convert", "lint_request", "open_material"]

FIRST_SAMPLES = 32  # whose outputs tell what the numbers mean


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


def convert(request: ConversionRequest, console: Console) -> ConversionResult:
    """Turn a model into a bundle that is proven on held-out samples.

    Args:
        request: what to convert, how and into what.
        console: for the progress bar.

    Raises:
        GateError: a variant lost more than is allowed; the report is written, the bundle is not.
        EdgeferryError: with what is at fault; no file is left behind.
    """
    profile = load_profile(request.profile)
    output = _output_path(request)
    with Progress(console) as progress, tempfile.TemporaryDirectory(prefix="edgeferry-") as scratch:
        progress.step("loading")
        material = open_material(request)
        progress.step("looking at the data")
        post = _postprocessing(material, request)
        findings = lint_material(material, post)
        raise_for(findings, request.strict)
        compression: dict[str, Any] = {}
        if request.recipe is not None and request.recipe.needs_data:
            material, compression = compressed(
                request, request.recipe, material, post, output, Path(scratch), progress
            )
        with Workshop(material, Path(scratch), progress) as workshop, ExitStack() as stack:
            schemes = _schemes(request, profile, material.model, workshop)
            others = _to_compare(material, schemes, Path(scratch), progress, stack)
            proof = prove(request, material, post, workshop, progress, schemes, others)
            by_name = {variant.name: variant for variant in proof.variants}
            wanted = [by_name[name] for name in proof.verdicts]  # in the order that was asked for
            errors = workshop.errors(next((v.scheme for v in wanted if v.scheme.name == "int8"), FLOAT))
            progress.step("timing")
            latency = _latency(material, proof.variants)
            progress.step("packing")
            report = figure.report_figures(
                request.profile, output, material, post, findings, proof, errors, latency
            )
            report |= {"compression": compression} if compression else {}
            if compression.get("overlap"):
                report["warnings"].append(
                    f"{compression['overlap']} of the {proof.evaluation.samples} samples that judge were trained"
                    " on, so the figures flatter: give --eval-data of its own"
                )
            if not proof.passed:
                write_report(output, report, figure.pictures(material, proof))
                raise _refusal(proof, errors, output)
            goldens = _goldens(material, workshop, wanted)
            contents = _contents(
                output, profile, material, post, workshop, wanted, proof, goldens, report, request.recipe
            )
            version = pack(output, contents)
    if compression and request.recipe is not None:
        folder = training_folder(output, request.recipe, material.source, str(request.train_data))
        forget_training(folder)
    report |= {"version": version, "bundle_bytes": output.stat().st_size}
    report["warnings"] += _dead_goldens(contents)
    if "hint" in report.get("edgetpu", {}):
        report["warnings"].append(report["edgetpu"]["hint"])
    write_report(output, report, figure.pictures(material, proof))
    return ConversionResult(output, report_path(output), version, report)


def _to_compare(
    material: Material, schemes: Sequence[QuantizationScheme], scratch: Path, progress: Progress, stack: ExitStack
) -> list[VariantRunner]:
    """Beside what a recipe made: int8 of the source, and, of QAT, int8 calibrated after the same training."""
    int8 = next((scheme for scheme in schemes if scheme.name == "int8"), None)
    if material.made is None or int8 is None:
        return []
    ways = {"int8 of the source": replace(material, made=None, qat=None)}
    if material.control is not None:
        ways["int8, trained as long"] = replace(material, made=material.control, qat=None)
    runners = []
    for number, (title, other) in enumerate(ways.items()):
        folder = scratch / f"compared-{number}"
        folder.mkdir()
        workshop = stack.enter_context(Workshop(other, folder, progress))
        runners.append(VariantRunner(replace(workshop.make(int8), title=title), material.feed))
    return runners


def lint_request(request: ConversionRequest) -> list[Finding]:
    """What `edgeferry lint` says: the same as convert would, of the same samples."""
    material = open_material(request)
    return lint_material(material, _postprocessing(material, request))


def open_material(request: ConversionRequest) -> Material:
    """Load the model, open the data, divide it.

    Raises:
        EdgeferryError: with what is at fault.
    """
    labels = read_labels(request.labels) if request.labels else None
    source = load_source(Path(request.model), request.load)
    inputs = [(tensor.name, tensor.shape[1:]) for tensor in source.inputs]
    shape = source.outputs[0].shape
    classes = None
    if len(source.outputs) == 1 and len(shape) == 2 and request.task in (None, "classify"):
        classes = 2 if shape[1] == 1 else shape[1]
    dataset = open_dataset(str(request.data), inputs, labels, classes)
    judging = open_dataset(request.eval_data, inputs, labels, classes) if request.eval_data else None
    if request.task in ("keypoints", "embed") and labels is None:
        dataset.labels = ()  # the names of folders are classes, not keypoints
    feed: Feed
    if dataset.kind == "frames" and takes_frames(inputs):
        ((name, (height, width, channels)),) = inputs
        assert isinstance(channels, int)  # noqa: S101 - takes_frames saw 1 or 3
        if request.load.input_shapes:
            _, height, width, _ = source.shapes()[name]
        declared = read_preprocessing(request.preprocess, height, width, channels)
        source.with_shape(name, (1, declared.height, declared.width, channels))
        feed = FrameFeed(declared, name)
    else:
        feed = TensorFeed(source.shapes())
    division = split(dataset, request.seed, judging)
    return Material(source, dataset, judging or dataset, division, feed)


def _output_path(request: ConversionRequest) -> Path:
    output = request.output or Path(request.model.name.split(".")[0] + ".ferry")
    if output.is_dir() or not output.absolute().parent.is_dir():
        remedy = "Give -o a file in a folder that exists."
        raise OptionError(f"{output}: the bundle cannot be written there", remedy)
    return output


def _postprocessing(material: Material, request: ConversionRequest) -> Postprocessing:
    samples = list(islice(material.calibration(), FIRST_SAMPLES))
    outputs = first_outputs(material.source, material.feed, samples)
    return decide_postprocessing(material.source, material.dataset, outputs, request.task)


def _schemes(
    request: ConversionRequest, profile: DeviceProfile, source: SourceModel, workshop: Workshop
) -> list[QuantizationScheme]:
    """The variants of the bundle, preferred first.

    Raises:
        OptionError: a .tflite was to be quantised, or --keep-float does not fit.
    """
    if source.tflite_path is not None:
        if request.schemes in ((), (source.quantization,)) and not request.keep_float:
            return [workshop.ready_scheme()]
        _check_requantizable(request, source)
    defaults = profile.quantization
    schemes = [
        FLOAT
        if name == "float32"
        else QuantizationScheme(name, defaults.input_dtype, defaults.output_dtype, defaults.dense)
        for name in request.schemes or (defaults.default,)
    ]
    if request.keep_float:
        schemes = [workshop.keep_float(s, request.keep_float) if s.name == "int8" else s for s in schemes]
    return schemes


def _check_requantizable(request: ConversionRequest, source: SourceModel) -> None:
    """A .tflite is quantised further only when it is float, and as a whole."""
    if request.keep_float:
        raise OptionError("--keep-float needs the layers of a Keras model or SavedModel", "Convert that one.")
    if source.quantization != "float32":
        raise OptionError(
            f"{source.path}: is a {source.quantization} .tflite already and is packed as it is",
            "Quantise from the float .tflite, the Keras model or the SavedModel it was made of.",
        )
    unknown = set(request.schemes) - {"float32", *REQUANTIZATION_SCHEMES}
    if unknown:
        raise OptionError(
            f"{source.path}: a .tflite cannot be made {', '.join(sorted(unknown))}",
            f"Take {', '.join(REQUANTIZATION_SCHEMES)}, or convert the model it was made of.",
        )


def _latency(material: Material, variants: Sequence[ConvertedVariant]) -> dict[str, Latency]:
    sample = next(material.evaluation())
    ways: dict[str, Callable[[], object]] = {}
    for variant in variants:
        runner = VariantRunner(variant, material.feed, threads=1)
        runner(sample)
        ways[variant.name] = runner.interpreter.invoke
    ways |= baselines(material.source, material.feed.real(sample))
    return measure_latency(ways)


def _goldens(material: Material, workshop: Workshop, wanted: Sequence[ConvertedVariant]) -> Goldens:
    numbers = golden_numbers(material.division.evaluation, material.judging.label_key)
    samples = (material.judging.load(number) for number in numbers)
    return choose_goldens(samples, material.feed, material.model, [workshop.runner(v) for v in wanted])


def _contents(
    output: Path,
    profile: DeviceProfile,
    material: Material,
    post: Postprocessing,
    workshop: Workshop,
    wanted: Sequence[ConvertedVariant],
    proof: Proof,
    goldens: Goldens,
    report: dict[str, Any],
    recipe: Recipe | None,
) -> Contents:
    """What goes into the bundle; ``report`` learns where an Edge TPU would run the operations."""
    runners = [workshop.runner(variant) for variant in wanted]
    own = _against_itself(material, post, runners, proof)
    name, labels = bundle_name(output), material.dataset.labels
    models = {}
    for runner in runners:
        data = runner.variant.path.read_bytes()
        models[runner.variant.name], _ = described(data, name, material.feed.declared, post, labels, runner.inputs)
    compiled = None
    if wants_edgetpu(profile) and "int8" in models:
        compiled, report["edgetpu"] = compile_for(profile, name, models["int8"])
    return Contents(
        name=name,
        profile=profile,
        preprocessing=material.feed.declared,
        postprocessing=post,
        labels=labels,
        runners=runners,
        models=models,
        compiled=compiled,
        tolerances={
            r.variant.name: tolerances(own.variants[r.variant.name], r, goldens, own.spans) for r in runners
        },
        goldens=goldens,
        provenance=_provenance(material, wanted, proof, recipe),
        baseline=measure_baseline(material, post, labels, runners[0]),
    )


def _against_itself(
    material: Material, post: Postprocessing, runners: list[VariantRunner], proof: Proof
) -> Evaluation:
    """Variants against the float model they were made of: what a recipe changed is no quantisation error."""
    if material.made is None:
        return proof.evaluation
    return evaluate(
        material.made, material.feed, runners, material.evaluation(), post, material.dataset.labels,
        bool(material.judging.task_hint),
    )  # fmt: skip


def _provenance(
    material: Material, wanted: Sequence[ConvertedVariant], proof: Proof, recipe: Recipe | None
) -> dict[str, Any]:
    """Where the bundle comes from; no time, no path: the same inputs give the same bytes."""
    evaluation = proof.evaluation
    return {
        "source": figure.source_figures(material.source),
        "calibration": material.division.record(),
        "recipe": {
            "schemes": [asdict(variant.scheme) for variant in wanted],
            **({"compression": recipe.values()} if recipe is not None and material.made is not None else {}),
        },
        "gate": {
            "metric": evaluation.reference.name if evaluation.reference else "agreement with the float model",
            "frames": evaluation.samples,
            "reference": evaluation.reference.value() if evaluation.reference else None,
            "variants": {v.name: figure.judgement_figures(evaluation.variants[v.name]) for v in wanted},
        },
        "tools": figure.tool_versions(),
    }


def _dead_goldens(contents: Contents) -> list[str]:
    return [
        f"{name}: the goldens cannot tell a device that answers the same for every input:"
        " quantisation error is as large as the differences between answers"
        for name, allowed in contents.tolerances.items()
        if not tells_a_dead_model(contents.goldens.outputs[name], allowed)
    ]


def _refusal(proof: Proof, errors: Sequence[LayerError], output: Path) -> GateError:
    reasons = [verdict.reason for verdict in proof.verdicts.values() if not verdict.passed]
    worst = [f"{e.layer} ({e.operation}, {e.steps:.1f} steps)" for e in errors[:3]]
    layers = f"; the layers that lose most: {', '.join(worst)}" if worst else ""
    return GateError(
        f"no bundle was written: {'; '.join(reasons)}{layers}",
        f"See {page_path(output)}. Keep the worst layers float (--auto-keep-float), take float16, or allow more"
        " (--max-drop).",
        report=str(report_path(output)),
    )

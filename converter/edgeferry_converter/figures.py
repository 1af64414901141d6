"""Figures: everything a conversion measured, as the plain values of report.json."""

from __future__ import annotations

import platform
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from edgeferry_runtime.postprocessing import Postprocessing

from edgeferry_converter.data.dataset import Sample
from edgeferry_converter.data.finding import Finding
from edgeferry_converter.evaluation import Change, Evaluation, Judgement
from edgeferry_converter.feeding import Feed
from edgeferry_converter.gate import Verdict
from edgeferry_converter.latency import Latency
from edgeferry_converter.loading.source import SourceModel
from edgeferry_converter.material import Material
from edgeferry_converter.metrics import Metric
from edgeferry_converter.proving import Proof
from edgeferry_converter.quantization import LayerError
from edgeferry_converter.report import page_path, picture_bytes, report_path
from edgeferry_converter.tflite_checks import float_operations, operations_by_type, operations_not_int8
from edgeferry_converter.tflite_file import read_model
from edgeferry_converter.variants import ConvertedVariant

__all__ = [
    "changed_pairs",
    "data_figures",
    "evaluation_figures",
    "histograms",
    "pictures",
    "report_figures",
    "layer_figures",
    "left_float",
    "machine_figures",
    "source_figures",
    "tool_versions",
]

HISTOGRAM_BINS = 48
HISTOGRAM_SAMPLES = 64
PAIRS_SHOWN = 12
PICTURES_SHOWN = 12
TOOLS = ("edgeferry-converter", "tensorflow", "keras", "ai-edge-litert")


def source_figures(source: SourceModel) -> dict[str, Any]:
    """Where the model comes from; no path: the same model gives the same figures anywhere."""
    return {
        "file": source.path.name,
        "format": source.format,
        "sha256": source.sha256,
        "signature": source.signature,
    }


def data_figures(material: Material) -> dict[str, Any]:
    """What calibrated and what judged."""
    return {
        "description": material.dataset.description,
        "notes": list(material.dataset.notes),
        "calibration_images": len(material.division.calibration),
        "evaluation_images": len(material.division.evaluation),
        **material.division.record(),
    }


def report_figures(
    profile: str,
    output: Path,
    material: Material,
    post: Postprocessing,
    findings: Sequence[Finding],
    proof: Proof,
    errors: Sequence[LayerError],
    latency: Mapping[str, Latency],
) -> dict[str, Any]:
    """Everything the report says; what was timed is only here, never in the bundle."""
    names = [variant.name for variant in proof.variants]
    declared = material.feed.declared
    changed = [change for name in proof.verdicts for change in proof.evaluation.variants[name].changes]
    samples = islice(material.calibration(), HISTOGRAM_SAMPLES)
    return {
        "bundle": str(output),
        "report": str(report_path(output)),
        "page": str(page_path(output)),
        "profile": profile,
        "source": {**source_figures(material.source), "bytes": _size(material.source.path)},
        "preprocessing": asdict(declared) if declared else None,
        "postprocessing": asdict(post),
        "data": data_figures(material),
        "findings": [{**asdict(finding), "examples": list(finding.examples)} for finding in findings],
        "evaluation": evaluation_figures(proof.evaluation, proof.variants, proof.verdicts, latency),
        "gate": {name: asdict(v) | {"drop": v.drop._asdict()} for name, v in proof.verdicts.items()},
        "baselines": {name: asdict(one) for name, one in latency.items() if name not in names},
        "layers": layer_figures(errors),
        "changed_pairs": changed_pairs(changed, material.dataset.labels),
        "calibration_histograms": histograms(samples, material.feed),
        "latency_reference": names[0],
        "machine": machine_figures(),
        "tools": tool_versions(),
        "warnings": [
            *(f"{f.code} {f.message}. {f.remedy}" for f in findings if f.severity != "note"),
            *(text for variant in proof.variants for text in left_float(variant)),
        ],
    }


def pictures(material: Material, proof: Proof) -> list[tuple[str, bytes]]:
    """Captions and PNG bytes of samples on which a variant and the float model disagree."""
    labels = material.dataset.labels
    if material.feed.declared is None or not labels:
        return []

    def name(index: int | None) -> str:
        return labels[index] if index is not None and index < len(labels) else "?"

    changes = [change for variant in proof.verdicts for change in proof.evaluation.variants[variant].changes]
    found = []
    for change in changes[:PICTURES_SHOWN]:
        sample = material.judging.load(material.division.evaluation[change.number])
        answers = f"float says {name(change.reference)}, variant {name(change.variant)}"
        found.append((f"{name(change.label)}: {answers}", picture_bytes(sample.frame)))
    return found


def left_float(variant: ConvertedVariant) -> list[str]:
    """A warning for an int8 variant with float operations that nobody asked for."""
    if variant.scheme.name != "int8" or variant.scheme.keep_float:
        return []
    names = [str(operation) for operation in float_operations(read_model(variant.path.read_bytes()))]
    if not names:
        return []
    return [f"{variant.name}: stays float, since TensorFlow has no int8 form of it: {', '.join(names)}"]


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size if path.exists() else 0


def evaluation_figures(
    evaluation: Evaluation,
    variants: Sequence[ConvertedVariant],
    verdicts: Mapping[str, Verdict],
    latency: Mapping[str, Latency],
) -> dict[str, Any]:
    """What the judging gave, for the float model and each variant."""
    reference = evaluation.reference
    figures: dict[str, Any] = {
        "frames": evaluation.samples,
        "metric": reference.name if reference else next(iter(evaluation.variants.values())).agreement.name,
        "reference": _value(reference),
        "keras_accuracy": _value(reference),
        "others": {metric.name: metric.value() for metric in evaluation.others},
        "variants": {},
    }
    for variant in variants:
        judgement = evaluation.variants[variant.name]
        data = variant.path.read_bytes()
        model = read_model(data)
        verdict = verdicts.get(variant.name)
        figures["variants"][variant.name] = {
            **judgement_figures(judgement),
            "drop": verdict.drop._asdict() if verdict else None,
            "bytes": variant.size,
            "compressed_bytes": len(zlib.compress(data, 6)),
            "in_bundle": verdict is not None,
            "operations": dict(operations_by_type(model)),
            "not_int8": [str(operation) for operation in operations_not_int8(model)],
            "kept_float": list(variant.scheme.keep_float),
            "latency": asdict(latency[variant.name]),
        }
    return figures


def judgement_figures(judgement: Judgement) -> dict[str, Any]:
    """What a variant did, without anything timed."""
    return {
        "metric": _value(judgement.metric),
        "accuracy": _value(judgement.metric),
        "others": {metric.name: metric.value() for metric in judgement.others},
        "agreement": judgement.agreement.value(),
        "rms_error": max(error.rms for error in judgement.errors.values()),
        "max_error": max(error.largest for error in judgement.errors.values()),
    }


def layer_figures(errors: Sequence[LayerError]) -> list[dict[str, Any]]:
    """Each layer's own error, worst first."""
    return [
        {
            "layer": error.layer,
            "operation": error.operation,
            "steps": error.steps,
            "rmse": error.rmse,
            "tensor": error.tensor,
        }
        for error in errors
    ]


def changed_pairs(changes: Iterable[Change], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Which class became which, most frequent first."""
    counts = Counter((change.reference, change.variant) for change in changes)
    right = Counter((change.reference, change.variant) for change in changes if change.variant == change.label)

    def name(index: int) -> str:
        return labels[index] if index < len(labels) else str(index)

    return [
        {"reference": name(old), "variant": name(new), "count": count, "right": right[old, new]}
        for (old, new), count in counts.most_common(PAIRS_SHOWN)
    ]


def histograms(samples: Iterable[Sample], feed: Feed) -> dict[str, Any]:
    """Distribution of the numbers that calibrated, by input name."""
    values: dict[str, list[np.ndarray]] = {}
    for sample in samples:
        for name, real in feed.real(sample).items():
            values.setdefault(name, []).append(real.ravel())
    found = {}
    for name, parts in values.items():
        counts, edges = np.histogram(np.concatenate(parts), bins=HISTOGRAM_BINS)
        found[name] = {"low": float(edges[0]), "high": float(edges[-1]), "counts": counts.tolist()}
    return found


def machine_figures() -> dict[str, str]:
    """What measured."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def tool_versions() -> dict[str, str]:
    """What converted."""
    return {name: version(name) for name in TOOLS}


def _value(metric: Metric | None) -> float | None:
    return None if metric is None else metric.value()

"""What ``edgeferry inspect`` says about a loaded model, as JSON and for people."""

from __future__ import annotations

from typing import Any

from edgeferry_converter.loading.input_shapes import text
from edgeferry_converter.loading.source import SourceModel, TensorInfo

__all__ = ["inspect_source", "to_text"]


def inspect_source(source: SourceModel) -> dict[str, Any]:
    """Everything known about a model, in values that JSON has.

    Returns:
        file, format, sha256, quantization, parameters (or None), signature, inputs and outputs (lists of name,
        shape with None for free dimensions, and dtype), signatures (by key: inputs, outputs), first_layers,
        last_activation (by output), attempts (loader, reason).
    """
    return {
        "file": str(source.path),
        "format": source.format,
        "sha256": source.sha256,
        "quantization": source.quantization,
        "parameters": source.parameters,
        "signature": source.signature,
        "inputs": _tensors(source.inputs),
        "outputs": _tensors(source.outputs),
        "signatures": {
            key: {"inputs": _tensors(signature.inputs), "outputs": _tensors(signature.outputs)}
            for key, signature in source.signatures.items()
        },
        "first_layers": list(source.first_layers),
        "last_activation": dict(source.last_activation),
        "attempts": [{"loader": attempt.loader, "reason": attempt.reason} for attempt in source.attempts],
    }


def to_text(found: dict[str, Any]) -> str:
    """``inspect_source``'s answer in lines for a person."""
    lines = [found["file"], *(f"  {name:<12} {value}" for name, value in _facts(found))]
    for title in ("inputs", "outputs"):
        lines += _listed(title, found[title], found["last_activation"] if title == "outputs" else {})
    others = {key: value for key, value in found["signatures"].items() if key != found["signature"]}
    for key, signature in others.items():
        lines.append(f"  signature {key} (choose it with --signature {key})")
        lines += [f"  {line}" for title in ("inputs", "outputs") for line in _listed(title, signature[title], {})]
    lines += [f"  not read as {a['loader']}: {a['reason']}" for a in found["attempts"]]
    return "\n".join(lines)


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    parameters = found["parameters"]
    facts = [
        ("format", f"{found['format']}, {found['quantization']}"),
        ("sha256", found["sha256"]),
        ("parameters", "" if parameters is None else f"{parameters:,}"),
        ("signature", found["signature"]),
        ("first layers", ", ".join(found["first_layers"])),
    ]
    return [(name, value) for name, value in facts if value]


def _listed(title: str, tensors: list[dict[str, Any]], activations: dict[str, str]) -> list[str]:
    if not tensors:
        return []
    width = max(len(tensor["name"]) for tensor in tensors)
    lines = [f"  {title}"]
    for tensor in tensors:
        activation = activations.get(tensor["name"], "")
        line = f"    {tensor['name']:<{width}}  {tensor['dtype']} {text(tuple(tensor['shape']))}  {activation}"
        lines.append(line.rstrip())
    return lines


def _tensors(tensors: tuple[TensorInfo, ...]) -> list[dict[str, Any]]:
    return [{"name": t.name, "shape": list(t.shape), "dtype": t.dtype} for t in tensors]

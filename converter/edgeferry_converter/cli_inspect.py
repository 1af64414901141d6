"""`edgeferry inspect`: what a model file or a bundle holds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edgeferry_converter.cli_convert import add_loading, loading_options

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "show what a model file or a bundle holds"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a model of any format, or a bundle")
    add_loading(parser)
    parser.add_argument(
        "--profile", action="store_true", help="time its operations and, of a bundle, the loop here"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the profile as a page; implies --profile")
    parser.add_argument("--json", action="store_true", help="print JSON; a list where several files are named")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks and TensorFlow's own messages")


def run(arguments: argparse.Namespace) -> int:
    """Inspect each file."""
    from edgeferry_converter.quiet import quiet

    if arguments.profile or arguments.html:
        from edgeferry_converter.inspect_profile import check_files, with_profile

        check_files(arguments.files, arguments.html)
    with quiet(arguments.verbose):
        found = [inspect_file(path, arguments) for path in arguments.files]
        if arguments.profile or arguments.html:
            found = [
                with_profile(path, *one, arguments.html) for path, one in zip(arguments.files, found, strict=True)
            ]
    if arguments.json:
        print(json.dumps([facts for facts, _ in found] if len(found) > 1 else found[0][0], indent=1))
    else:
        print("\n\n".join(text for _, text in found))
    return 0


def inspect_file(path: Path, arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """One file's facts, and the same for people."""
    if path.suffix == ".ferry" or (path / "manifest.json").is_file():
        return _bundle(path)
    from edgeferry_converter.loading.chain import load_source
    from edgeferry_converter.loading.describe import inspect_source
    from edgeferry_converter.loading.describe import to_text as source_text

    if path.suffix == ".tflite":
        return _tflite(path)
    facts = inspect_source(load_source(path, loading_options(arguments), listing=True))
    return facts, source_text(facts)


def _bundle(path: Path) -> tuple[dict[str, Any], str]:
    """A bundle, and what its report says when that lies beside it."""
    from edgeferry_runtime.info import describe, to_text

    from edgeferry_converter.report import report_path
    from edgeferry_converter.report import to_text as report_text

    facts = describe(str(path), None, None, None)
    text = to_text(facts)
    beside = report_path(path)
    if beside.is_file():
        try:
            report = json.loads(beside.read_text("utf-8"))
            if report["version"] == facts["version"]:  # a report of another conversion says nothing of this one
                facts["report"] = report
                text += "\n\n" + report_text(report)
        except (ValueError, KeyError, TypeError):
            text += f"\n\n{beside} cannot be read; convert again for its figures"
    return facts, text


def _tflite(path: Path) -> tuple[dict[str, Any], str]:
    """A .tflite: tensors, operations by type, and where an Edge TPU runs them.  It need not be runnable here."""
    from edgeferry_converter.edgetpu import placement
    from edgeferry_converter.errors import ModelNotFoundError
    from edgeferry_converter.metadata import read_metadata
    from edgeferry_converter.tflite_checks import operations_by_type, operations_not_int8
    from edgeferry_converter.tflite_file import read_model

    if not path.is_file():
        raise ModelNotFoundError(f"{path}: no such model", "Check the path.")
    data = path.read_bytes()
    model = read_model(data)
    twin = path.with_name(path.name.replace("_edgetpu", ""))
    where = placement(model)
    if where.compiled and twin != path and twin.is_file():
        # The file says what stayed on the CPU; only the model it was made from says what was mapped.
        where = placement(model, read_model(twin.read_bytes()))
    metadata = read_metadata(data)

    def tensors(values: Any) -> list[dict[str, Any]]:
        return [{"name": t.name, "shape": list(t.shape), "dtype": t.dtype} for t in values]

    facts: dict[str, Any] = {
        "file": str(path),
        "format": "tflite",
        "bytes": len(data),
        "inputs": tensors(model.inputs),
        "outputs": tensors(model.outputs),
        "operations": dict(operations_by_type(model)),
        "not_int8": [str(operation) for operation in operations_not_int8(model)],
        "edgetpu": {
            "compiled": where.compiled,
            "blocks": where.blocks,
            "on_cpu": dict(where.on_cpu),
            "mapped": dict(where.mapped) if where.mapped is not None else None,
        },
        "labels": len(metadata.labels) if metadata else 0,
    }
    lines = [str(path)]
    for kind in ("inputs", "outputs"):
        lines += [f"  {kind[:-1]:<10} {t['name']} {t['shape']} {t['dtype']}" for t in facts[kind]]
    lines.append(f"  operations {_counts(facts['operations'])}")
    if where.compiled:
        mapped = _counts(where.mapped) if where.mapped is not None else "unknown without the uncompiled model"
        lines += [f"  Edge TPU   mapped: {mapped}", f"             on the CPU: {_counts(where.on_cpu)}"]
    return facts, "\n".join(lines)


def _counts(table: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in table.items()) or "none"

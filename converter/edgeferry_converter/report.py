"""The report of a conversion: what was measured, timings included, beside the bundle and in the terminal."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["report_path", "to_text", "write_report"]


def report_path(bundle: Path) -> Path:
    """Where the report of a bundle lies: NAME.report.json beside NAME.ferry."""
    return bundle.with_name(bundle.name.removesuffix(".ferry") + ".report.json")


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write the report, whole or not at all."""
    handle, partial = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.absolute().parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(report, indent=1) + "\n")
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink()
        raise


def to_text(report: dict[str, Any]) -> str:
    """The table a person reads after a conversion."""
    evaluation, split = report["evaluation"], report["data"]
    lines = [
        f"{report['bundle']}  ({report['bundle_bytes'] / 1024:.0f} KiB, version {report['version'][:12]})",
        f"judged on {evaluation['frames']} held-out images; {split['calibration_images']} others calibrated",
        f"{'':<10}{'accuracy':>10}{'agreement':>11}{'bytes':>12}{'latency':>10}",
        f"{'Keras':<10}{evaluation['keras_accuracy']:>10.1%}{'':>11}{report['source']['bytes']:>12,}",
    ]
    for name, v in evaluation["variants"].items():
        latency = f"x{v['latency']['ratio']:.2f}"
        lines.append(f"{name:<10}{v['accuracy']:>10.1%}{v['agreement']:>11.1%}{v['bytes']:>12,}{latency:>10}")
    base = report["latency_reference"]
    lines.append(f"latency: median invoke on this machine, 1 thread, against {base}; a board will differ")
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    return "\n".join(lines)

"""The report of a conversion: what was measured, timings included, beside the bundle and in the terminal."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgeferry_runtime import opencv

from edgeferry_converter.report_html import html_page

__all__ = ["page_path", "picture_bytes", "report_path", "to_text", "write_report"]

PICTURE_SIDE = 160  # pixels; small enough that a page of them can be mailed


def report_path(bundle: Path) -> Path:
    """Where the report of a bundle lies: NAME.report.json beside NAME.ferry."""
    return bundle.with_name(bundle.name.removesuffix(".ferry") + ".report.json")


def page_path(bundle: Path) -> Path:
    """Where the same report lies as a page: NAME.report.html."""
    return report_path(bundle).with_suffix(".html")


def write_report(bundle: Path, report: dict[str, Any], pictures: Sequence[tuple[str, bytes]]) -> None:
    """Write both, each whole or not at all.

    Args:
        bundle: beside which they go.
        report: the figures.
        pictures: captions and PNG bytes for the page.
    """
    encoded = [(caption, base64.b64encode(data).decode("ascii")) for caption, data in pictures]
    _write(report_path(bundle), json.dumps(report, indent=1) + "\n")
    _write(page_path(bundle), html_page(report, encoded))


def picture_bytes(pixels: np.ndarray) -> bytes:
    """A frame, uint8 [h, w, 3] BGR, as the bytes of a small PNG."""
    cv2 = opencv.load("the report's pictures")
    longest = max(pixels.shape[:2])
    if longest > PICTURE_SIDE:
        scale = PICTURE_SIDE / longest
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".png", pixels)[1].tobytes())


def to_text(report: dict[str, Any]) -> str:
    """The table a person reads after a conversion."""
    evaluation, data = report["evaluation"], report["data"]
    width = max(12, *(len(name) + 1 for name in evaluation["variants"]))
    zipped = "compression" in report
    lines = [
        f"{report['bundle']}  ({report['bundle_bytes'] / 1024:.0f} KiB, version {report['version'][:12]})",
        f"judged on {evaluation['frames']} held-out samples; {data['calibration_images']} others calibrated",
        f"{'':<{width}}{evaluation['metric']:>18}{'agreement':>11}{'bytes':>12}{'latency':>10}"
        + (f"{'zipped':>12}" if zipped else ""),
        f"{'float model':<{width}}{_percent(evaluation['reference']):>18}{'':>11}{report['source']['bytes']:>12,}",
    ]
    for name, v in evaluation["variants"].items():
        figures = f"{_percent(v['metric']):>18}{v['agreement']:>11.1%}{v['bytes']:>12,}"
        figures += f"{'x' + format(v['latency']['ratio'], '.2f'):>10}"
        lines.append(f"{name:<{width}}{figures}" + (f"{v['compressed_bytes']:>12,}" if zipped else ""))
    base = report["latency_reference"]
    lines.append(f"latency: median invoke on this machine, 1 thread, against {base}; a board will differ")
    lines += _made_smaller(report["compression"]) if zipped else []
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    lines.append(f"report: {report['page']}")
    return "\n".join(lines)


def _made_smaller(found: dict[str, Any]) -> list[str]:
    """What a recipe did, in a line or two."""
    parts = [f"recipe {found['recipe']['name']}"]
    for name, shown in (("macs", "MACs"), ("parameters", "parameters")):
        if found.get(name):
            before, after = found[name]
            parts.append(f"{after / before:.1%} of the {shown}")
    prune = found.get("prune", {})
    lines = [", ".join(parts)]
    if prune.get("untouched"):
        lines.append(f"layers that stay whole: {', '.join(prune['untouched'])}")
    return lines + ([prune["note"]] if prune.get("note") else [])


def _percent(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if 0 <= value <= 1 else f"{value:.4g}"


def _write(path: Path, text: str) -> None:
    handle, partial = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.absolute().parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink()
        raise

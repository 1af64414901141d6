"""The report as one page that stands alone: figures, plots and pictures inside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

__all__ = ["html_page"]

STYLE = """
:root { --ink: #17202a; --soft: #5d6d7e; --line: #d9dfe5; --ground: #fbfcfd; --card: #fff; --good: #1e8e5a;
        --bad: #c8372a; --blue: #2f6fde; --warn: #b7791f; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8edf2; --soft: #9aa8b5; --line: #2c3640; --ground: #12171c; --card: #1a2128; --good: #43c98a;
          --bad: #f2705f; --blue: #6ea3ff; --warn: #e0a94a; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 80rem; padding: 2rem 1.2rem 4rem; background: var(--ground);
       color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem }
p { margin: .3rem 0; color: var(--soft) }
.verdict { border-left: .35rem solid var(--good); background: var(--card); padding: .6rem 1rem; margin-top: 1rem }
.verdict.bad { border-color: var(--bad) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .35rem .5rem; white-space: nowrap; border-bottom: 1px solid var(--line) }
.words td, .words th { text-align: left; white-space: normal; overflow-wrap: anywhere }
th:first-child, td:first-child { text-align: left }
th { color: var(--soft); font-weight: 500; font-size: .85rem }
td.bar { width: 40%; text-align: left } .bar div { height: .55rem; border-radius: .3rem; background: var(--blue) }
.warning { color: var(--warn) } .error { color: var(--bad) }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .8rem }
.pictures img { width: 100%; image-rendering: pixelated; border-radius: .4rem; display: block }
figure { margin: 0 } figcaption { color: var(--soft); font-size: .8rem }
svg { width: 100%; height: 8rem; display: block }
"""
LAYERS_SHOWN = 20


def html_page(figures: dict[str, Any], pictures: Sequence[tuple[str, str]]) -> str:
    """The page.

    Args:
        figures: what report.json holds.
        pictures: (caption, JPEG or PNG as base64) of samples on which a variant and the float model disagree.
    """
    sections = [
        _verdicts(figures),
        _variants(figures),
        _compression(figures),
        _findings(figures),
        _preprocessing(figures),
        _histogram(figures),
        _layers(figures),
        _confusions(figures),
        _pictures(pictures),
        _operations(figures),
        _edgetpu(figures),
        _provenance(figures),
    ]
    title = f"{escape(figures['source']['file'])} for {escape(figures['profile'])}"
    head = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
        f"<p>{escape(figures['data']['description'])}; "
        f"judged on {figures['evaluation']['frames']} held-out samples.</p>"
    )
    return head + "\n".join(section for section in sections if section) + "</html>\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table; cells are HTML already; kind "words" for text instead of numbers."""
    lines = [
        f"<div class='scroll {kind}'><table><tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"
    ]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return "\n".join(lines) + "</table></div>"


def number(value: float | None) -> str:
    """A metric's value, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def _verdicts(figures: dict[str, Any]) -> str:
    parts = []
    for verdict in figures["gate"].values():
        kind = "verdict" if verdict["passed"] else "verdict bad"
        parts.append(f"<div class='{kind}'>{escape(verdict['reason'])}</div>")
    return "".join(parts)


def _variants(figures: dict[str, Any]) -> str:
    evaluation = figures["evaluation"]
    size = f"{figures['source']['bytes']:,}"
    more = list(evaluation["others"])
    others = [number(evaluation["others"][name]) for name in more]
    rows = [["float model", number(evaluation["reference"]), *others, "", "", "", size, "", "", ""]]
    for name, v in evaluation["variants"].items():
        drop = v["drop"]
        interval = "" if drop is None else f"{drop['value']:+.4f} ({drop['low']:+.4f} to {drop['high']:+.4f})"
        rows.append(
            [
                escape(name) + ("" if v["in_bundle"] else " <small>(to compare)</small>"),
                number(v["metric"]),
                *(number(v["others"][name]) for name in more),
                interval,
                number(v["agreement"]),
                f"{v['rms_error']:.3g}",
                f"{v['bytes']:,}",
                f"{v['compressed_bytes']:,}",
                f"{v['latency']['p50_ms']:.3f} / {v['latency']['p90_ms']:.3f}",
                f"x{v['latency']['ratio']:.2f}",
            ]
        )
    for name, latency in figures.get("baselines", {}).items():
        times = f"{latency['p50_ms']:.3f} / {latency['p90_ms']:.3f}"
        rows.append([escape(name), "", *([""] * len(more)), "", "", "", "", "", times, f"x{latency['ratio']:.2f}"])
    head = ["", evaluation["metric"], *more, "drop (95 %)", "agreement", "rms error", "bytes", "zipped"]
    head += ["p50 / p90 ms", "time"]
    note = "Times are this machine's, one thread, interleaved; ratios are against the float32 .tflite."
    return f"<h2>Variants</h2>{table(head, rows)}<p>{note}</p>"


def _compression(figures: dict[str, Any]) -> str:
    """What a recipe did: its values, what went, and how training went."""
    found = figures.get("compression")
    if not found:
        return ""
    recipe = found["recipe"]
    rows = [["recipe", f"{escape(recipe['name'])}: {escape(recipe['description'])}"]]
    rows.append(["trained on", escape(found["train_data"])])
    for name in ("macs", "parameters"):
        if found.get(name):
            before, after = found[name]
            rows.append([name, f"{before:,} to {after:,} ({after / before:.1%})"])
    prune = found.get("prune", {})
    channels = [f"{name} {now} of {before}" for name, (now, before) in prune.get("channels", {}).items()]
    notes = {
        "channels": ", ".join(channels),
        "stays whole": "; ".join(f"{name}: {why}" for name, why in prune.get("untouched", {}).items()),
        "zeros": ", ".join(f"{path} {share:.0%}" for path, share in prune.get("zeros", {}).items()),
        "not pruned": "; ".join(f"{name}: {why}" for name, why in prune.get("skipped", {}).items()),
        "note": prune.get("note", ""),
        "in float": "; ".join(f"{name}: {why}" for name, why in found.get("qat", {}).get("in_float", {}).items()),
    }
    rows += [[name, escape(text)] for name, text in notes.items() if text]
    for training in found["training"]:
        last = training["epochs"][-1] if training["epochs"] else {}
        figures_text = ", ".join(f"{name} {value:g}" for name, value in last.items())
        resumed = f"; resumed after {training['resumed_at']} epochs" if training["resumed_at"] else ""
        text = f"{len(training['epochs'])} epochs, at last {figures_text}{resumed}"
        if "teacher" in training:
            text += f"; teacher right on {training['teacher']['teacher']:.1%} of the training images"
        rows.append([escape(training["name"]), escape(text)])
    return f"<h2>Made smaller</h2>{table(('', ''), rows, 'words')}"


def _findings(figures: dict[str, Any]) -> str:
    if not figures["findings"]:
        return "<h2>The data</h2><p>The linter found nothing to complain of.</p>"
    rows = [
        [f"<span class={f['severity']}>{escape(f['code'])}</span>", escape(f["message"]), escape(f["remedy"])]
        for f in figures["findings"]
    ]
    return f"<h2>The data</h2>{table(('', 'finding', 'remedy'), rows, 'words')}"


def _preprocessing(figures: dict[str, Any]) -> str:
    declared = figures["preprocessing"]
    if not declared:
        return "<h2>Inputs</h2><p>The model takes tensors; they go in as they are.</p>"
    rows = [[escape(str(key)), escape(str(value))] for key, value in declared.items()]
    return f"<h2>What the device does to a frame</h2>{table(('', ''), rows, 'words')}"


def _histogram(figures: dict[str, Any]) -> str:
    parts = []
    for name, h in figures.get("calibration_histograms", {}).items():
        top = max(h["counts"]) or 1
        bars = "".join(
            f"<rect x={i} y={10 - 10 * c / top:.3f} width=.9 height={10 * c / top:.3f} fill='var(--blue)'/>"
            for i, c in enumerate(h["counts"])
        )
        parts.append(
            f"<figure><svg viewBox='0 0 {len(h['counts'])} 10' preserveAspectRatio=none>{bars}</svg>"
            f"<figcaption>{escape(name)}: {h['low']:.4g} to {h['high']:.4g}</figcaption></figure>"
        )
    return "<h2>Numbers that calibrated</h2>" + "".join(parts) if parts else ""


def _layers(figures: dict[str, Any]) -> str:
    layers = figures.get("layers", [])[:LAYERS_SHOWN]
    if not layers:
        return ""
    worst = max(layer["steps"] for layer in layers) or 1
    rows = [
        [
            escape(layer["layer"]),
            escape(layer["operation"]),
            f"{layer['steps']:.2f}",
            f"<div style='width:{100 * layer['steps'] / worst:.1f}%'></div>",
        ]
        for layer in layers
    ]
    body = table(("layer", "operation", "error in steps", ""), rows).replace("<td><div", "<td class=bar><div")
    note = "The error of each layer by itself, in quantisation steps of its output; rounding alone gives 0.29."
    return f"<h2>Where int8 loses</h2>{body}<p>{note}</p>"


def _confusions(figures: dict[str, Any]) -> str:
    pairs = figures.get("changed_pairs", [])
    if not pairs:
        return ""
    rows = [[escape(p["reference"]), escape(p["variant"]), str(p["count"]), str(p["right"])] for p in pairs]
    head = ("float model", "variant", "samples", "of these now right")
    return "<h2>Answers that changed</h2>" + table(head, rows)


def _pictures(pictures: Sequence[tuple[str, str]]) -> str:
    if not pictures:
        return ""
    figures = "".join(
        f"<figure><img alt='{escape(caption)}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, data in pictures
    )
    return f"<h2>Where they disagree</h2><div class=pictures>{figures}</div>"


def _operations(figures: dict[str, Any]) -> str:
    rows = []
    for name, v in figures["evaluation"]["variants"].items():
        operations = ", ".join(f"{count} {kind}" for kind, count in v["operations"].items())
        plain = name in ("float32", "float16", "dynamic")  # nobody expects int8 there
        rows.append(
            [escape(name), escape(operations), "" if plain else escape(", ".join(v["not_int8"]) or "none")]
        )
    return "<h2>Operations</h2>" + table(("", "by type", "not int8"), rows, "words")


def _edgetpu(figures: dict[str, Any]) -> str:
    found = figures.get("edgetpu")
    if not found:
        return ""
    rows = [[escape(key), escape(str(value))] for key, value in found.items() if value]
    return "<h2>Edge TPU</h2>" + table(("", ""), rows, "words")


def _provenance(figures: dict[str, Any]) -> str:
    rows = [[escape(key), escape(str(value))] for key, value in figures["source"].items()]
    rows += [[escape(name), escape(value)] for name, value in figures["tools"].items()]
    return "<h2>Where it comes from</h2>" + table(("", ""), rows, "words")

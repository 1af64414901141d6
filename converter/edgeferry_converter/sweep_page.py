"""A sweep as one page that stands alone: every trial as a bubble, the front joined, and the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from edgeferry_converter.report_html import STYLE

__all__ = ["milliseconds", "sweep_page", "ticks"]

WIDTH, HEIGHT = 900, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 20, 60  # room around the plot
BUBBLE = (5.0, 22.0)  # radius of the fewest and of the most bytes
TICKS = 8

MORE_STYLE = """
svg.plot { height: auto; max-width: 60rem; color: var(--ink) }
.plot text { fill: var(--soft); font-size: 13px } .plot .axis { stroke: var(--line) }
.plot .front { fill: none; stroke: var(--blue); stroke-width: 2 }
.plot .limit { stroke: var(--bad); stroke-dasharray: 6 4 } .plot .limit-text { fill: var(--bad) }
.plot circle { fill: var(--soft); fill-opacity: .35; stroke: var(--soft) }
.plot circle.on { fill: var(--blue); stroke: var(--blue) }
.plot circle.base { fill: none; stroke: var(--ink); stroke-width: 2 }
.plot circle.best { stroke: var(--good); stroke-width: 4 }
th[data-sort] { cursor: pointer } th[data-sort]:hover { color: var(--ink) }
a { color: var(--blue) } th.what { text-align: left }
td.what { text-align: left; white-space: normal; min-width: 16rem } tr.front td { font-weight: 600 }
tr.front td.what { font-weight: 400 }
"""
# Sorts a column by its cells' numbers when its head is clicked; without scripts the table is sorted by latency.
SCRIPT = """
for (const head of document.querySelectorAll('th[data-sort]')) head.onclick = () => {
  const rows = [...head.closest('table').rows].slice(1), at = head.cellIndex;
  const up = head.dataset.sort = head.dataset.sort === 'up' ? 'down' : 'up';
  rows.sort((a, b) => (a.cells[at].dataset.value - b.cells[at].dataset.value) * (up === 'up' ? 1 : -1));
  rows.forEach(row => row.parentNode.append(row));
};
"""


def sweep_page(figures: dict[str, Any]) -> str:
    """The page.

    Args:
        figures: what ``sweep_report.sweep_figures`` made.
    """
    good = sorted((t for t in figures["trials"] if not t["reason"]), key=lambda t: (t["ratio"], t["drop"]))
    failed = [trial for trial in figures["trials"] if trial["reason"]]
    title = "Recipes tried"
    count = f"{len(good)} trials, {len(failed)} failed; latency of int8 {figures['latency']}."
    warnings = "".join(f"<p class=warning>{escape(text)}</p>" for text in figures["warnings"])
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{STYLE}{MORE_STYLE}</style><h1>{title}</h1><p>{escape(count)}</p>"
        + _verdict(figures)
        + warnings
        + (_plot(good, figures) if good else "")
        + _table(good, figures)
        + _failed(failed)
        + f"<script>{SCRIPT}</script></html>\n"
    )


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Round numbers from low to high, about so many; low < high."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def milliseconds(value: float) -> str:
    """Three digits that count, without an exponent."""
    places = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{min(max(places, 0), 6)}f}"


def _verdict(figures: dict[str, Any]) -> str:
    limits = {name: most for name, most in figures["limits"].items() if most is not None}
    if not limits:
        return ""
    said = ", ".join(f"--{name.replace('_', '-')} {most}" for name, most in limits.items())
    best = figures["best"]
    if best is None:
        return f"<div class='verdict bad'>No trial is within {escape(said)}.</div>"
    found = next(trial for trial in figures["trials"] if trial["number"] == best)
    text = (
        f"Within {said}: trial {best}, {found['what']}; latency x{found['ratio']:.2f}, drop {found['drop']:+.4f}."
    )
    return f"<div class=verdict>{escape(text)}</div>"


class _Scale:
    """Numbers of one axis as places on the page."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        room = (high - low or abs(high) or 1.0) * 0.08
        self.low, self.high, self._start, self._end = low - room, high + room, start, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self._start + share * (self._end - self._start)


def _plot(trials: Sequence[dict[str, Any]], figures: dict[str, Any]) -> str:
    limits = figures["limits"]
    ms = [trial["latency_ms"] for trial in trials]
    drops = [trial["drop"] for trial in trials]
    x = _Scale([*ms, *([limits["max_latency_ms"]] if limits["max_latency_ms"] else [])], LEFT, WIDTH - RIGHT)
    y = _Scale([*drops, *([limits["max_drop"]] if limits["max_drop"] else [])], HEIGHT - BOTTOM, TOP)
    parts = [_axes(x, y), _limit_lines(limits, x, y), _front_line(trials, figures["front"], x, y)]
    most = max(trial["bytes"] for trial in trials) or 1
    fewest = min(trial["bytes"] for trial in trials)
    # Small bubbles last, so that none hides behind another.
    for trial in sorted(trials, key=lambda t: -t["bytes"]):
        share = (trial["bytes"] - fewest) / (most - fewest) if most > fewest else 0.5
        radius = math.sqrt(BUBBLE[0] ** 2 + share * (BUBBLE[1] ** 2 - BUBBLE[0] ** 2))
        kinds = [
            *(["on"] if trial["number"] in figures["front"] else []),
            *(["base"] if trial["number"] == 0 else []),
            *(["best"] if trial["number"] == figures["best"] else []),
        ]
        place = f"drop {trial['drop']:+.4f}, {milliseconds(trial['latency_ms'])} ms (x{trial['ratio']:.2f})"
        hover = f"trial {trial['number']}: {trial['what']}\n{place}, {trial['bytes']:,} bytes"
        parts.append(
            f"<circle cx={x(trial['latency_ms']):.1f} cy={y(trial['drop']):.1f} r={radius:.1f} "
            f"class='{' '.join(kinds)}'><title>{escape(hover)}</title></circle>"
        )
    note = (
        "Left and down is better. A bubble's area tells its bytes; blue is the Pareto front, the ring is int8 of "
        "the source, a green rim the best within the limits."
    )
    return (
        f"<svg class=plot viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='drop against latency'>"
        f"{''.join(parts)}</svg><p>{note}</p>"
    )


def _axes(x: _Scale, y: _Scale) -> str:
    bottom, parts = HEIGHT - BOTTOM, []
    for value in ticks(x.low, x.high):
        at = x(value)
        parts.append(f"<line class=axis x1={at:.1f} x2={at:.1f} y1={TOP} y2={bottom} />")
        parts.append(f"<text x={at:.1f} y={bottom + 20} text-anchor=middle>{value:g}</text>")
    for value in ticks(y.low, y.high):
        at = y(value)
        parts.append(f"<line class=axis x1={LEFT} x2={WIDTH - RIGHT} y1={at:.1f} y2={at:.1f} />")
        parts.append(f"<text x={LEFT - 8} y={at + 4:.1f} text-anchor=end>{value:g}</text>")
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f"<text x={middle} y={HEIGHT - 14} text-anchor=middle>latency, ms</text>")
    parts.append(
        f"<text transform='translate(16 {(TOP + bottom) / 2}) rotate(-90)' text-anchor=middle>drop</text>"
    )
    return "".join(parts)


def _limit_lines(limits: dict[str, Any], x: _Scale, y: _Scale) -> str:
    parts = []
    if limits["max_latency_ms"]:
        at = x(limits["max_latency_ms"])
        parts.append(f"<line class=limit x1={at:.1f} x2={at:.1f} y1={TOP} y2={HEIGHT - BOTTOM} />")
        parts.append(f"<text class=limit-text x={at - 5:.1f} y={TOP + 12} text-anchor=end>--max-latency-ms</text>")
    if limits["max_drop"]:
        at = y(limits["max_drop"])
        parts.append(f"<line class=limit x1={LEFT} x2={WIDTH - RIGHT} y1={at:.1f} y2={at:.1f} />")
        parts.append(f"<text class=limit-text x={LEFT + 5} y={at - 5:.1f}>--max-drop</text>")
    return "".join(parts)


def _front_line(trials: Sequence[dict[str, Any]], front: Sequence[int], x: _Scale, y: _Scale) -> str:
    """The front in the plane of drop and latency; what only its bytes put there is a blue bubble off the line."""
    points, lowest = [], math.inf
    for trial in trials:  # by latency
        if trial["number"] in front and trial["drop"] < lowest:
            lowest = trial["drop"]
            points.append(f"{x(trial['latency_ms']):.1f},{y(trial['drop']):.1f}")
    return f"<polyline class=front points='{' '.join(points)}' />"


def _table(trials: Sequence[dict[str, Any]], figures: dict[str, Any]) -> str:
    head = ("trial", "drop", "95 % interval", "metric", "latency", "ms", "bytes", "zipped", "seconds")
    cells = "".join(f"<th data-sort title='sort'>{name}</th>" for name in head)
    rows = []
    for t in trials:
        interval = f"{t['low']:+.4f} to {t['high']:+.4f}"
        metric = "-" if t["metric"] is None else f"{t['metric']:.4f}"
        shown = (
            (t["number"], t["number"]), (t["drop"], f"{t['drop']:+.4f}"), (t["low"], interval),
            (t["metric"] or 0, metric), (t["ratio"], f"x{t['ratio']:.2f}"),
            (t["latency_ms"], milliseconds(t["latency_ms"])), (t["bytes"], f"{t['bytes']:,}"),
            (t["zipped"], f"{t['zipped']:,}"), (t["seconds"], f"{t['seconds']:.0f}"),
        )  # fmt: skip
        kind = " class=front" if t["number"] in figures["front"] else ""
        body = "".join(f"<td data-value={value}>{text}</td>" for value, text in shown)
        link = f" <a href='{escape(t['report'])}'>report</a>" if t["report"] else ""
        rows.append(f"<tr{kind}>{body}<td class=what>{escape(t['what'])}{link}</td></tr>")
    return (
        f"<h2>Trials</h2><div class=scroll><table><tr>{cells}<th class=what>recipe</th></tr>{''.join(rows)}"
        "</table></div>"
        "<p>Bold: on the Pareto front.</p>"
    )


def _failed(trials: Sequence[dict[str, Any]]) -> str:
    if not trials:
        return ""
    rows = "".join(
        f"<tr><td>{t['number']}</td><td>{escape(t['reason'])}</td><td>{escape(t['what'])}</td></tr>"
        for t in trials
    )
    return (
        "<h2>Failed</h2><div class='scroll words'><table><tr><th>trial</th><th>why</th><th>recipe</th></tr>"
        f"{rows}</table></div>"
    )

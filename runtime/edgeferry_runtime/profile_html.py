"""A profile as one page that stands alone: the frame as a flame graph hung from above, and the tables."""

from __future__ import annotations

from html import escape
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

from edgeferry_runtime.profile_text import millions, rate, title_of, what_runs

__all__ = ["Box", "flame", "page"]

_STYLE = """
:root { --ink: #17202a; --soft: #55636f; --line: #d9dfe5; --ground: #fbfcfd; --card: #fff; --bar: #2f6fde }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8edf2; --soft: #9aa8b5; --line: #2c3640; --ground: #12171c; --card: #1a2128; --bar: #6ea3ff } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 80rem; padding: 1rem 1rem 3rem; background: var(--ground); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem }
p { margin: .3rem 0; color: var(--soft); overflow-wrap: anywhere }
.flame { position: relative; overflow: hidden; border-radius: .3rem; background: var(--card) }
.flame button { position: absolute; height: 1.75rem; border: 1px solid var(--ground); border-radius: .2rem;
  padding: 0 .3rem; font: .8rem/1.6rem system-ui, sans-serif; color: #17202a; text-align: left;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; cursor: pointer; min-width: 1px }
.flame button.narrow { padding: 0; border-width: 0 0 0 1px; font-size: 0 }
.told { min-height: 3.2rem; padding: .4rem .6rem; margin: .3rem 0; background: var(--card); color: var(--ink);
  border-left: .3rem solid var(--line) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .25rem .5rem; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 500; font-size: .85rem }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9rem; overflow-wrap: anywhere }
td.in { padding-left: 1.5rem; color: var(--soft) }
td.bar { min-width: 4rem; width: 30% } td.bar div { height: .55rem; border-radius: .3rem; background: var(--bar) }
@media (max-width: 30rem) { body { padding: .7rem .7rem 2rem } th, td { padding: .25rem .3rem; font-size: .85rem }
  td.bar { min-width: 3rem; width: auto } th:first-child, td:first-child { min-width: 7rem }
  td.in { padding-left: .8rem } }
"""
# A tap tells what a hover shows, and gives the box the whole width; once more, and all is as before.
_SCRIPT = """
for (const flame of document.querySelectorAll('.flame')) {
  const told = flame.nextElementSibling, boxes = [...flame.children];
  const show = (x, w) => { for (const box of boxes) {
    const left = (box.dataset.x - x) / w * 100, width = box.dataset.w / w * 100;
    const from = Math.max(0, left), to = Math.min(100, left + width);
    box.style.display = to > from ? '' : 'none';
    box.style.left = from + '%'; box.style.width = (to - from) + '%';
    box.classList.toggle('narrow', flame.clientWidth * (to - from) / 100 < 24); } };
  let zoomed = null;
  for (const box of boxes) box.onclick = () => {
    told.textContent = box.title;
    zoomed = zoomed === box ? null : box;
    zoomed ? show(+box.dataset.x, +box.dataset.w) : show(0, 1); };
  show(0, 1);
  addEventListener('resize', () => zoomed ? show(+zoomed.dataset.x, +zoomed.dataset.w) : show(0, 1));
}
"""
_ROW_REM = 1.85
_COLOURS = {
    "frame": "#c9d3dd", "capture": "#b7c8f2", "decode": "#9fd8e6", "preprocess": "#a8e0c0", "wait": "#e3e7eb",
    "invoke": "#ffd28a", "postprocess": "#d9bdf0", "other": "#e3e7eb", "block": "#ffbf80", "operation": "#ffdca3",
}  # fmt: skip
# XNNPACK's and TFLite's names of the same kinds.
_KINDS = (
    ("DEPTHWISE", "#f7a8a0"),
    ("DWConv", "#f7a8a0"),
    ("CONV", "#ffc46b"),
    ("Convolution", "#ffc46b"),
    ("FULLY_CONNECTED", "#f2e07a"),
    ("Fully Connected", "#f2e07a"),
)


class Box(NamedTuple):
    """One bar of the graph.

    Attributes:
        name: what it shows.
        us: how wide it is, microseconds.
        told: what a hover or a tap tells.
        colour: of its ground; letters on it are dark.
        inside: what lies below it, from the left; together at most as wide as it.
    """

    name: str
    us: float
    told: str
    colour: str
    inside: Sequence[Box] = ()


def page(report: Mapping[str, Any]) -> str:
    """The page; it loads nothing.

    Args:
        report: as ``profiling.profile_bundle`` or ``profile_file`` gives it.
    """
    title = "Profile of {}".format(report["bundle"])
    sections = [_flames(report)]
    sections += [_loop(loop) for loop in report["loop"]]
    sections.append(_operations(report["operations"]))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        "<title>{0}</title><style>{1}</style><h1>{0}</h1><p>{2}</p>{3}<script>{4}</script></html>\n"
    ).format(escape(title), _STYLE, escape(what_runs(report)), "\n".join(sections), _SCRIPT)


def _flames(report: Mapping[str, Any]) -> str:
    """A frame from left to right, what happens in it from top to bottom."""
    operations = _boxes(report["operations"])
    if not report["loop"]:
        return "<h2>One invoke</h2>" + flame(_invoke(report["operations"], operations)) if operations else ""
    loop = report["loop"][0]
    note = "" if operations else "<p>Times of single operations are not known.</p>"
    return "<h2>One frame, its stages one after the other</h2>{}{}".format(note, flame(_frame(loop, operations)))


def _invoke(report: Mapping[str, Any], operations: Sequence[Box]) -> Box:
    us = max(report["watched_us"], sum(box.us for box in operations))
    told = "invoke: p50 {} ms, {} ms with the clocks".format(_ms(report["invoke_us"]), _ms(report["watched_us"]))
    return Box("invoke", us, told, _COLOURS["invoke"], operations)


def _frame(loop: Mapping[str, Any], operations: Sequence[Box]) -> Box:
    """Stages as wide as they take on average, the operations scaled to their invoke."""
    period_us = 1e6 * loop["seconds"] / max(loop["frames"], 1)
    stages = []
    for row in loop["stages"]:
        told = "{}: mean {} ms, p50 {} ms, p99 {} ms, {:.1f} % of a frame".format(
            row["stage"], _ms(row["mean_us"]), _ms(row["p50_us"]), _ms(row["p99_us"]), 100 * row["share"]
        )
        inside = _scaled(operations, row["mean_us"]) if row["stage"] == "invoke" else ()
        stages.append(Box(row["stage"], row["mean_us"], told, _COLOURS[row["stage"]], inside))
    rest_us = period_us - sum(box.us for box in stages)
    if rest_us > 0:
        told = "all else between two frames: {} ms, {:.1f} %".format(_ms(rest_us), 100 * rest_us / period_us)
        stages.append(Box("other", rest_us, told, _COLOURS["other"]))
    whole = max(period_us, sum(box.us for box in stages))
    return Box("frame", whole, "a frame: {} ms on average".format(_ms(whole)), _COLOURS["frame"], stages)


def _scaled(boxes: Sequence[Box], us: float) -> list[Box]:
    """The same, together as wide as ``us`` at most."""
    factor = min(1.0, us / max(sum(box.us for box in boxes), 1e-9))
    return [box._replace(us=box.us * factor, inside=_scaled(box.inside, box.us * factor)) for box in boxes]


def _boxes(report: Mapping[str, Any]) -> list[Box]:
    if not report["measured"]:
        return []
    found = []
    for row in report["operations"]:
        told = "{}: p50 {} ms, {:.1f} % of an invoke{}".format(
            title_of(row), _ms(row["p50_us"]), 100 * row["share"], _work(row)
        )
        inside = [_inner(one["name"], one["mean_us"]) for one in row["inside"]]
        colour = _COLOURS["block"] if row["delegate"] else _kind(row["name"])
        found.append(Box(title_of(row), row["p50_us"], told, colour, _scaled(inside, row["p50_us"])))
    return found


def _inner(name: str, us: float) -> Box:
    return Box(name, us, "{}: mean {} ms".format(name, _ms(us)), _kind(name))


def _work(row: Mapping[str, Any]) -> str:
    return ", {} MMAC, {} GMAC/s".format(millions(row["macs"]), rate(row)) if rate(row) else ""


def _kind(name: str) -> str:
    return next((colour for word, colour in _KINDS if word in name), _COLOURS["operation"])


def flame(root: Box) -> str:
    """The graph as HTML; it can be read without its script, which adds taps and a closer look."""
    drawn = []
    depth = 0
    for box, left, level in _placed(root, 0.0, 0):
        depth = max(depth, level)
        x, width = left / root.us if root.us else 0.0, box.us / root.us if root.us else 1.0
        drawn.append(
            "<button title='{told}' data-x={x:.6f} data-w={w:.6f} style='"
            "left:{l:.4f}%;width:{p:.4f}%;top:{top:.2f}rem;background:{colour}'>{name}</button>".format(
                told=escape(box.told, quote=True), x=x, w=width, l=100 * x, p=100 * width,
                top=level * _ROW_REM, colour=box.colour, name=escape(box.name),
            )
        )  # fmt: skip
    return (
        "<div class=flame style='height:{:.2f}rem'>{}</div>"
        "<p class=told>Hover or tap a bar; a tap also widens it, another one brings all back.</p>"
    ).format((depth + 1) * _ROW_REM, "".join(drawn))


def _placed(box: Box, left: float, level: int) -> Iterator[tuple[Box, float, int]]:
    """Each box with where it begins and how deep it lies; those without a width are left out."""
    yield box, left, level
    for inner in box.inside:
        if inner.us > 0:
            yield from _placed(inner, left, level + 1)
        left += inner.us


def _loop(loop: Mapping[str, Any]) -> str:
    rows = [
        [
            escape(row["stage"]),
            *((_percent(row["share"]), _bar(row["share"])) if row["thread"] else ("-", "")),
            *(_ms(row[key]) for key in ("p50_us", "p90_us", "p99_us")),
            escape(row["thread"] or "-"),
        ]
        for row in loop["stages"]
    ]
    busy = ", ".join("{} {:.0f} %".format(name, 100 * share) for name, share in loop["threads"].items())
    return (
        "<h2>The loop, {}: {} frames/s</h2>"
        "<p>{} frames; {}. Threads at work or waiting for the source: {}.</p>{}"
    ).format(
        escape(loop["shape"]), loop["fps"], loop["frames"], escape(loop["bound"]["text"]), escape(busy),
        _table(("stage", "share", "", "p50 ms", "p90 ms", "p99 ms", "thread"), rows),
    )  # fmt: skip


def _operations(report: Mapping[str, Any]) -> str:
    if not report["measured"]:
        rows = [
            [
                escape(title_of(row)),
                _percent(row["macs_share"] or 0.0),
                _bar(row["macs_share"] or 0.0),
                millions(row["macs"]),
            ]
            for row in report["operations"]
            if not row["delegate"]
        ]
        return (
            "<h2>Operations: an estimate, not times</h2>"
            "<p>{} Multiply-accumulates (MAC) are computed from shapes; how long they take depends on the "
            "kernel.</p>{}"
        ).format(escape(report["why"] + "."), _table(("operation", "of all", "", "MMAC"), rows))
    rows = []
    for row in report["operations"]:
        rows.append(
            [
                escape(title_of(row)),
                _percent(row["share"]),
                _bar(row["share"]),
                _ms(row["p50_us"]),
                _ms(row["p90_us"]),
                millions(row["macs"]),
                rate(row),
            ]
        )
        whole = max(report["sum_us"], 1e-9)
        rows += [
            [
                "\t" + escape(one["name"]),
                _percent(one["mean_us"] / whole),
                _bar(one["mean_us"] / whole),
                _ms(one["mean_us"]),
                "",
                "",
                "",
            ]
            for one in row["inside"]
        ]
    note = " Not inside of delegates: {}.".format(report["why"]) if report["why"] else ""
    return (
        "<h2>Operations</h2>"
        "<p>An invoke takes {} ms, {} ms with the clocks; the operations add up to {} ms.{}</p>{}"
    ).format(
        _ms(report["invoke_us"]), _ms(report["watched_us"]), _ms(report["sum_us"]), escape(note),
        _table(("operation", "share", "", "p50 ms", "p90 ms", "MMAC", "GMAC/s"), rows),
    )  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already; a tab begins a row that belongs to the one above."""
    lines = ["<tr>{}</tr>".format("".join("<th>{}</th>".format(escape(cell)) for cell in head))]
    for first, *others in rows:
        kind = " class=in" if first.startswith("\t") else ""
        cells = "".join("<td{}>{}</td>".format(" class=bar" if "<div" in c else "", c) for c in others)
        lines.append("<tr><td{}>{}</td>{}</tr>".format(kind, first.strip(), cells))
    return "<div class=scroll><table>{}</table></div>".format("\n".join(lines))


def _percent(share: float) -> str:
    return "{:.1f} %".format(100 * share)


def _bar(share: float) -> str:
    return "<div style='width:{:.2f}%'></div>".format(100 * min(max(share, 0.0), 1.0))


def _ms(us: float) -> str:
    return "{:.3f}".format(us / 1000) if us >= 100 else "{:.4f}".format(us / 1000)

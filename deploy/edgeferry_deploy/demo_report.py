"""What the demo shows at its end: a table for the terminal and a self-contained page with pictures."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from edgeferry_deploy.console import size_text

__all__ = ["html_report", "text_summary"]


def text_summary(figures: dict[str, Any]) -> str:
    """The demo in a table, drawn by rich."""
    from io import StringIO

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    accuracy = Table(box=SIMPLE_HEAD, title="digits nobody trained on", title_justify="left")
    for column in ("", "Keras", "int8", "on the video", "Keras file", "int8 model", "bundle", "deployed in"):
        accuracy.add_column(column, justify="left" if not column else "right")
    for row in versions(figures):
        accuracy.add_row(*row)
    stages = Table(box=SIMPLE_HEAD, title="each frame on the device, milliseconds", title_justify="left")
    for column in ("", "p50", "p90", "p99", "max"):
        stages.add_column(column, justify="left" if not column else "right")
    summary = figures["runs"][0]["summary"]
    for name, stats in [*summary["stages_us"].items(), ("frame age", summary["age_us"])]:
        stages.add_row(name, *(f"{stats[key] / 1000:.3f}" for key in ("p50", "p90", "p99", "max")))
    text = StringIO()
    console = Console(file=text, width=110, force_terminal=False)
    console.print()
    console.print(accuracy)
    console.print(stages)
    nothing_new = figures["push_with_nothing_new"]
    text.write(
        f"a push with nothing new: {size_text(nothing_new['bytes_sent'])} of files sent, "
        f"{nothing_new['seconds']['total']:.1f} s\n"
        f"the whole demo: {figures['seconds']:.0f} s\n\n"
    )
    for name, path in figures["files"].items():
        text.write(f"{name:<16}{path}\n")
    return text.getvalue()


def versions(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row a version, as texts."""
    rows: list[tuple[str, ...]] = []
    for number, (report, run, push) in enumerate(
        zip(figures["conversions"], figures["runs"], figures["pushes"], strict=True), 1
    ):
        evaluation = report["evaluation"]
        rows.append(
            (
                f"version {number}",
                f"{evaluation['keras_accuracy']:.1%}",
                f"{evaluation['variants']['int8']['accuracy']:.1%}",
                f"{run['accuracy']:.1%}",
                size_text(report["source"]["bytes"]),
                size_text(evaluation["variants"]["int8"]["bytes"]),
                size_text(report["bundle_bytes"]),
                f"{push['seconds']['total']:.1f} s",
            )
        )
    return rows


STYLE = """
:root { --ink: #17202a; --soft: #5d6d7e; --line: #d9dfe5; --ground: #fbfcfd; --card: #fff; --good: #1e8e5a;
        --bad: #d0392b; --blue: #2f6fde; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8edf2; --soft: #9aa8b5; --line: #2c3640; --ground: #12171c; --card: #1a2128; --good: #43c98a;
          --bad: #f2705f; --blue: #6ea3ff; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.2rem 4rem;
       background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem }
p { margin: .3rem 0; color: var(--soft) } code { font-size: .9em }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .8rem;
         margin-top: 1.4rem }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem }
.card b { display: block; font-size: 1.6rem; line-height: 1.3 }
.card span { color: var(--soft); font-size: .85rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .35rem .7rem; white-space: nowrap;
         border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left } th { color: var(--soft); font-weight: 500; font-size: .85rem }
.bar { height: .55rem; border-radius: .3rem; background: var(--blue); min-width: 2px }
td.wide { width: 45% } figure { margin: 0 } figcaption { color: var(--soft); font-size: .85rem }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: .8rem }
.pictures img { width: 100%; border-radius: .5rem; display: block }
svg { width: 100%; height: 2.2rem; display: block; border-radius: .3rem }
"""


def html_report(figures: dict[str, Any], folder: Path) -> str:
    """The page; pictures are inside it, so that it can be sent to somebody.

    Args:
        figures: as demo.json has them.
        folder: what the pictures' names are relative to.
    """
    run, push, report = figures["runs"][0], figures["pushes"][0], figures["conversions"][0]
    int8 = report["evaluation"]["variants"]["int8"]
    cards = [
        (
            f"{int8['accuracy']:.1%}",
            f"int8 on held-out pictures (Keras {report['evaluation']['keras_accuracy']:.1%})",
        ),
        (f"{run['accuracy']:.1%}", f"on {run['summary']['frames']} video frames, on the device"),
        (f"{run['summary']['age_us']['p50'] / 1000:.2f} ms", "median age of a frame at its result"),
        (f"{run['summary']['fps']:.0f}", "frames a second, decoding included"),
        (size_text(int8["bytes"]), f"int8 model ({size_text(report['source']['bytes'])} as Keras)"),
        (f"{push['seconds']['total']:.1f} s", "to deploy, goldens replayed on the device"),
    ]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>edgeferry demo</title><style>{STYLE}</style>",
        "<h1>A Keras model on its way to a device</h1>",
        f"<p>Converted, pushed over SSH to {escape(figures['target'])}, proven there and run on video, "
        f"in {figures['seconds']:.0f} s. The device is a folder on this machine behind a real SSH server: "
        "times are this machine's, a board's will differ.</p>",
        "<div class=cards>"
        + "".join(f"<div class=card><b>{b}</b><span>{escape(s)}</span></div>" for b, s in cards),
        "</div>",
        "<h2>Two versions</h2><p>Accuracy on pictures that neither trained nor calibrated.</p>",
        table(
            ("", "Keras", "int8", "on the video", "Keras file", "int8 model", "bundle", "deployed in"),
            versions(figures),
        ),
        "<h2>Every frame of the video</h2>",
        *(timeline(number, one) for number, one in enumerate(figures["runs"], 1)),
        "<h2>Where a frame's time goes</h2>",
        stage_table(run["summary"]),
        "<h2>What the device saw and said</h2><div class=pictures>",
        *(picture(folder, name, run) for name in run["pictures"]),
        "</div>",
        "<h2>What went over the wire</h2>",
        table(
            (
                "",
                "files",
                "bytes",
                "look s",
                "send s",
                "assemble s",
                "check s",
                "switch s",
                "golden max",
                "allowed",
            ),
            [
                push_row("version 1", figures["pushes"][0]),
                push_row("version 2", figures["pushes"][1]),
                push_row("version 1 once more", figures["push_with_nothing_new"]),
            ],
        ),
        f"<p>Rolled back to {escape(figures['rollback']['release'])}; the device checked it again first.</p>",
        "</html>",
    ]
    return "\n".join(parts)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table of texts."""
    lines = ["<div class=scroll><table><tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "\n".join(lines) + "</table></div>"


def stage_table(summary: dict[str, Any]) -> str:
    """Percentiles of each stage with a bar for the median."""
    longest = max(stats["p50"] for stats in summary["stages_us"].values()) or 1.0
    rows = []
    for name, stats in [*summary["stages_us"].items(), ("frame age", summary["age_us"])]:
        cells = "".join(f"<td>{stats[key] / 1000:.3f}</td>" for key in ("p50", "p90", "p99", "max"))
        width = min(100.0, 100 * stats["p50"] / longest)
        bar = f"<td class=wide><div class=bar style='width:{width:.1f}%'></div></td>"
        rows.append(f"<tr><td>{escape(name)}</td>{cells}{bar}</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("", "p50 ms", "p90 ms", "p99 ms", "max ms", ""))
    caption = f"{summary['backend']}, {summary['threads']} threads; {summary['preprocessing']}"
    return (
        f"<div class=scroll><table><tr>{head}</tr>{''.join(rows)}</table></div>"
        f"<p>{escape(caption)}. The age counts from the moment a frame was read from the file.</p>"
    )


def timeline(number: int, run: dict[str, Any]) -> str:
    """A strip with a line for each frame: right or wrong."""
    count = len(run["truth"])
    wrong = [i for i, (a, t) in enumerate(zip(run["answers"], run["truth"], strict=True)) if a != t]
    strips = "".join(f"<rect x={i} width=1 height=10 fill='var(--bad)'/>" for i in wrong)
    return (
        f"<figure><svg viewBox='0 0 {count} 10' preserveAspectRatio=none>"
        f"<rect width={count} height=10 fill='var(--good)'/>{strips}</svg>"
        f"<figcaption>version {number}: {count - len(wrong)} of {count} frames right"
        f"{'' if not wrong else ', wrong where the strip is red'}</figcaption></figure>"
    )


def picture(folder: Path, name: str, run: dict[str, Any]) -> str:
    """One annotated frame with what it really shows."""
    number = int(Path(name).stem.removeprefix("frame-"))
    data = base64.b64encode((folder / name).read_bytes()).decode("ascii")
    right = "right" if run["answers"][number] == run["truth"][number] else "wrong"
    caption = f"frame {number}: a {run['truth'][number]}, {right}"
    image = f"<img src='data:image/jpeg;base64,{data}' alt='{caption}'>"
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def push_row(name: str, push: dict[str, Any]) -> tuple[str, ...]:
    """One push as texts."""
    seconds, output = push["seconds"], push["check"]["outputs"][0]
    return (
        name,
        f"{push['blobs_sent']} of {push['blobs_total']}",
        size_text(push["bytes_sent"]),
        *(
            f"{seconds[step]:.2f}" if step in seconds else "-"
            for step in ("look", "send", "assemble", "check", "switch")
        ),
        f"{output['max_abs']:.3g}",
        f"{output['max_abs_tolerance']:.3g}",
    )

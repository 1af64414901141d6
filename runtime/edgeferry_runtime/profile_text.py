"""A profile as tables for people, and the words its page uses as well."""

from __future__ import annotations

from typing import Any, Mapping

__all__ = ["millions", "rate", "title_of", "to_text", "what_runs"]

_FEW_FRAMES = 20
_INSIDE_SHOWN = 12


def to_text(report: Mapping[str, Any]) -> str:
    """Tables for people."""
    lines = ["{} on {}".format(report["bundle"], what_runs(report))]
    for loop in report["loop"]:
        lines += ["", *_loop_lines(loop)]
    return "\n".join([*lines, "", *_operation_lines(report["operations"])])


def what_runs(report: Mapping[str, Any]) -> str:
    """Interpreter, delegate, threads and source in a line."""
    threads = report["threads"]
    return "{}{}{}, {} thread{}, {}".format(
        report["variant"] + " with " if report["variant"] else "",
        report["backend"],
        " and " + report["delegate"] if report["delegate"] else "",
        threads,
        "" if threads == 1 else "s",
        report["source"],
    )


def _loop_lines(loop: Mapping[str, Any]) -> list[str]:
    lines = [
        "the loop, {}: {} frames/s ({} frames in {:.1f} s), {}".format(
            loop["shape"], loop["fps"], loop["frames"], loop["seconds"], loop["bound"]["text"]
        )
    ]
    if loop["frames"] < _FEW_FRAMES:
        lines.append("so few frames say little: give a longer source or --seconds")
    lines.append(
        "{:<14}{:<9}{:>10}{:>10}{:>10}{:>9}".format("stage", "thread", "p50 ms", "p90 ms", "p99 ms", "share")
    )
    for row in loop["stages"]:
        cells = "".join("{:>10.3f}".format(row[key] / 1000) for key in ("p50_us", "p90_us", "p99_us"))
        share = "{:>7.1f} %".format(100 * row["share"]) if row["thread"] else "{:>9}".format("-")
        lines.append("{:<14}{:<9}{}{}".format(row["stage"], row["thread"] or "-", cells, share))
    busy = ", ".join("{} {:.0f} %".format(name, 100 * share) for name, share in loop["threads"].items())
    return [*lines, "threads at work or waiting for the source: " + busy]


def _operation_lines(operations: Mapping[str, Any]) -> list[str]:
    if not operations["measured"]:
        return _estimate_lines(operations)
    lines = [
        "operations: an invoke takes {:.3f} ms; {:.3f} ms with the clocks; they add up to {:.3f} ms".format(
            operations["invoke_us"] / 1000, operations["watched_us"] / 1000, operations["sum_us"] / 1000
        )
    ]
    if operations["why"]:
        lines.append("not inside of delegates: " + operations["why"])
    lines.append("{:<44}{:>10}{:>10}{:>9}{:>10}{:>9}".format("", "p50 ms", "p90 ms", "share", "MMAC", "GMAC/s"))
    for row in operations["operations"]:
        lines.append(
            "{:<44}{:>10.4f}{:>10.4f}{:>7.1f} %{:>10}{:>9}".format(
                title_of(row)[:43], row["p50_us"] / 1000, row["p90_us"] / 1000, 100 * row["share"],
                millions(row["macs"]), rate(row),
            )
        )  # fmt: skip
        inside = sorted(row["inside"], key=lambda one: -float(one["mean_us"]))
        lines += [
            "  {:<42}{:>10.4f}".format(one["name"][:41], one["mean_us"] / 1000) for one in inside[:_INSIDE_SHOWN]
        ]
        rest = inside[_INSIDE_SHOWN:]
        if rest:
            took = sum(one["mean_us"] for one in rest) / 1000
            lines.append("  {:<42}{:>10.4f}".format("and {} shorter ones".format(len(rest)), took))
    return lines


def _estimate_lines(operations: Mapping[str, Any]) -> list[str]:
    """Where no time can be had: what is known, and what it may mean."""
    lines = [
        operations["why"] or "operations were not timed",
        "An ESTIMATE from shapes, not a time: multiply-accumulates (MAC) of each operation.",
        "{:<44}{:>10}{:>9}".format("", "MMAC", "of all"),
    ]
    for row in operations["operations"]:
        if row["delegate"]:
            text = "{:<44}{:>10}".format(title_of(row)[:43], "")
        else:
            share = "" if row["macs_share"] is None else "{:.1f} %".format(100 * row["macs_share"])
            text = "{:<44}{:>10}{:>9}".format(title_of(row)[:43], millions(row["macs"]), share)
        lines.append(text.rstrip())
    return lines


def title_of(row: Mapping[str, Any]) -> str:
    """An operation's number and name, and how many a block stands for."""
    stands_for = " for {} operations".format(len(row["stands_for"])) if row["stands_for"] else ""
    return "{} {}{}".format(row["node"], row["name"], stands_for)


def millions(macs: int | None) -> str:
    """MMAC; "" for none to speak of, "?" where it is unknown."""
    if macs is None:
        return "?"
    return "{:.3f}".format(macs / 1e6) if macs else ""


def rate(row: Mapping[str, Any]) -> str:
    """GMAC/s, "" where there is none."""
    return "{:.1f}".format(row["macs"] / row["p50_us"] / 1000) if row["macs"] and row["p50_us"] else ""

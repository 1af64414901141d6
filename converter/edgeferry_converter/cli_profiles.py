"""`edgeferry profiles`: list the device profiles, show or validate one, print the reference."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from edgeferry_runtime.errors import UsageError

from edgeferry_converter.errors import ProfileError
from edgeferry_converter.profile import DeviceProfile, available_profiles, load_profile, reference_file

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "list the device profiles; show or validate one"

_CAVEAT = "Figures were read in public sources; nothing was run on these boards."
_COLUMNS = ("NAME", "ARCH", "RAM MB", "PYTHON", "ACCELERATOR", "INTERPRETER", "DEFAULT", "DESCRIPTION")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "profile",
        nargs="?",
        metavar="NAME_OR_FILE",
        help="the profile to show, with its sources: a name from the list, or the path of your own .toml file, "
        "which is validated by it",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON instead of a table")
    output.add_argument(
        "--reference", action="store_true", help="print the reference file, which explains every key"
    )


def run(args: argparse.Namespace) -> int:
    """Do what the arguments ask; returns the exit code.

    Raises:
        ProfileError: the profile is unknown or broken.  With --json it is printed as JSON instead.
        UsageError: --reference together with a profile.
    """
    if args.reference:
        if args.profile is not None:
            raise UsageError("--reference prints one file and takes no profile.", "Leave one of the two out.")
        sys.stdout.write(reference_file().read_text(encoding="utf-8"))
        return 0
    try:
        if args.profile is None:
            profiles = [load_profile(name) for name in available_profiles()]
            _print_json([_summary(profile) for profile in profiles]) if args.json else _print_list(profiles)
        else:
            profile = load_profile(args.profile)
            _print_json({"valid": True, **_detail(profile)}) if args.json else _print_one(profile)
    except ProfileError as error:
        if not args.json:
            raise
        _print_json(_failure(error))
        return error.exit_code
    return 0


def _summary(profile: DeviceProfile) -> dict[str, Any]:
    return {**profile.values(), "file": str(profile.path)}


def _detail(profile: DeviceProfile) -> dict[str, Any]:
    return {**_summary(profile), "sources": dict(profile.sources)}


def _failure(error: ProfileError) -> dict[str, Any]:
    problems = [{"path": problem.path, "message": problem.message} for problem in error.problems]
    return {"valid": False, "error": error.message, "remedy": error.remedy, "problems": problems}


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, sort_keys=True))


def _print_list(profiles: Sequence[DeviceProfile]) -> None:
    rows = [_row(profile) for profile in profiles]
    if sys.stdout.isatty():
        _print_table(_COLUMNS, rows, caption=f"{_CAVEAT} Details: edgeferry profiles NAME")
    else:
        _print_columns(_COLUMNS, rows)


def _row(profile: DeviceProfile) -> tuple[str, ...]:
    newest = profile.python.maximum
    return (
        profile.name,
        profile.board.arch,
        str(profile.board.ram_mb or "-"),
        profile.python.minimum if newest == profile.python.minimum else f"{profile.python.minimum}-{newest or ''}",
        profile.accelerator.kind,
        profile.interpreter.requirement,
        profile.quantization.default,
        profile.description,
    )


def _print_one(profile: DeviceProfile) -> None:
    columns, rows = ("KEY", "VALUE", "SOURCE"), _key_rows(profile)
    print(f"{profile.name}: {profile.description}\n{profile.path}\n")
    if sys.stdout.isatty():
        _print_table(columns, rows, caption=_CAVEAT)
    else:
        _print_columns(columns, rows)


def _key_rows(profile: DeviceProfile) -> list[tuple[str, ...]]:
    tables = {name: table for name, table in profile.values().items() if isinstance(table, dict)}
    keys = [(f"{name}.{key}", value) for name, table in tables.items() for key, value in table.items()]
    return [(key, _cell(value), profile.sources.get(key, "")) for key, value in keys]


def _cell(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _print_columns(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[at]) for row in (columns, *rows)) for at in range(len(columns))]
    for row in (columns, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> None:
    # Loaded here: most runs of the command line never draw a table.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, caption=caption, caption_justify="left")
    for at, column in enumerate(columns):
        table.add_column(column, no_wrap=at == 0, style="bold" if at == 0 else None)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: brackets in a profile are not markup
    Console().print(table)

"""What the calibration linter says: findings with a code, the number measured and a remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgeferry_converter.errors import DataError

__all__ = ["Finding", "Severity", "raise_for", "to_text"]

Severity = Literal["error", "warning", "note"]
_ORDER: tuple[Severity, ...] = ("error", "warning", "note")
EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with the data, or may be.

    Attributes:
        code: a letter for the severity and a number that stays; docs/calibration-data.md lists them.
        severity: "error": nothing sensible can come out; "warning": an error under ``--strict``; "note".
        message: what was found, with the number measured.
        remedy: what to do.
        examples: names of some samples that show it.
    """

    code: str
    severity: Severity
    message: str
    remedy: str
    examples: tuple[str, ...] = ()


def finding(number: int, severity: Severity, message: str, remedy: str, examples: Sequence[str] = ()) -> Finding:
    """A finding whose code begins with its severity's letter."""
    return Finding(f"{severity[0].upper()}{number}", severity, message, remedy, tuple(examples[:EXAMPLES]))


def to_text(findings: Sequence[Finding]) -> str:
    """Findings as lines for people, the worst first; "" when there are none."""
    lines = []
    for found in sorted(findings, key=lambda f: (_ORDER.index(f.severity), f.code[1:])):
        lines.append(f"{found.code} {found.severity}: {found.message}")
        if found.examples:
            lines.append(f"    for example {', '.join(found.examples)}")
        lines.append(f"    {found.remedy}")
    return "\n".join(lines)


def raise_for(findings: Sequence[Finding], strict: bool = False) -> None:
    """Refuse data with errors; with ``strict`` also with warnings.

    Raises:
        DataError: with every finding that weighs enough.
    """
    heavy = [f for f in findings if f.severity == "error" or (strict and f.severity == "warning")]
    if len(heavy) == 1 and not heavy[0].examples:
        raise DataError(f"{heavy[0].code}: {heavy[0].message}", heavy[0].remedy)
    if heavy:
        lines = "\n    ".join(to_text(heavy).splitlines())
        raise DataError(f"the data does not serve:\n    {lines}", "Repair the data and convert again.")

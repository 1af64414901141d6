"""How an error leaves the process: a sentence and a remedy on stderr, an object for --json, an exit code."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence

from edgeferry_runtime.errors import EdgeferryError

__all__ = ["report"]


def report(error: Exception, words: Sequence[str]) -> int:
    """Tell the user; the exit code.

    Args:
        words: the command line, for --json and --verbose.
    """
    if "--verbose" in words:
        traceback.print_exception(error)
    if isinstance(error, EdgeferryError):
        message, remedy, code = error.message, error.remedy, error.exit_code
    else:
        message = f"{type(error).__name__}: {error}"
        remedy, code = "this is a fault of edgeferry; please report it with the output of --verbose", 1
    if "--json" in words:
        print(json.dumps({"error": message, "remedy": remedy}, indent=2, sort_keys=True))
    print(f"edgeferry: error: {message}" + (f"\n  {remedy}" if remedy else ""), file=sys.stderr)
    return code

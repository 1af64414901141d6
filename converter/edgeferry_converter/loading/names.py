"""Names of inputs and outputs that may be signature names: letters, digits, underscores, each once."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["signature_names"]


def signature_names(names: Iterable[str], fallback: str) -> list[str]:
    """Names as TensorFlow keeps them when it writes a signature.

    Args:
        names: as the model has them; "serving_default_x:0" becomes "serving_default_x".
        fallback: for a name of which nothing remains, "input" for example.
    """
    result: list[str] = []
    for name in names:
        clean = re.sub(r"[^A-Za-z0-9_]+", "_", re.sub(r":[0-9]+$", "", name)).strip("_") or fallback
        if clean[0].isdigit():
            clean = f"{fallback}_{clean}"
        unique, number = clean, 1
        while unique in result:
            unique, number = f"{clean}_{number}", number + 1
        result.append(unique)
    return result

"""Strict JSON: what other parsers let pass in silence is an error here."""

from __future__ import annotations

import json
from typing import Any

from edgeferry_runtime.errors import ManifestError

__all__ = ["MAX_BYTES", "REBUILD", "parse_json"]

MAX_BYTES = 8 << 20  # a manifest is some ten KB; anything near this is not one
REBUILD = "Convert the model again, or copy the bundle again if it was damaged on the way."


def parse_json(data: bytes, where: str) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, no NaN or Infinity, bounded size and depth.

    Raises:
        ManifestError: naming ``where`` and what is wrong.
    """
    if len(data) > MAX_BYTES:
        raise ManifestError("{}: is {} bytes long, more than a manifest can be".format(where, len(data)), REBUILD)
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ManifestError("{}: is nested too deeply to be a manifest".format(where), REBUILD) from None
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError and the two hooks
        raise ManifestError("{}: is not valid JSON: {}".format(where, error), REBUILD) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError("duplicate key {!r}".format(next(key for key in keys if keys.count(key) > 1)))
    return table


def _no_constant(name: str) -> float:
    raise ValueError("{} is not a number".format(name))

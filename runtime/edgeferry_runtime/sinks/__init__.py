"""Sinks: where results go, one small file a kind.

jsonl:-               one JSON object a line on standard output
jsonl:FILE            the same, appended to a file
annotate:FOLDER       each frame with its answer drawn on it, as JPEG (annotate:FOLDER?every=30: one in 30)
"""

from __future__ import annotations

import importlib

from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.fields import did_you_mean
from edgeferry_runtime.sinks.base import Sink

__all__ = ["Sink", "open_sink"]

_CLASSES = {
    "jsonl": ("edgeferry_runtime.sinks.jsonl", "JsonlSink"),
    "annotate": ("edgeferry_runtime.sinks.annotate", "AnnotateSink"),
}


def open_sink(uri: str) -> Sink:
    """Open what ``uri`` names; see the table above.

    Raises:
        UsageError: it names no kind of sink.
        SinkError: it cannot be written.
    """
    scheme, _colon, rest = uri.partition(":")
    if scheme not in _CLASSES or not rest:
        raise UsageError(
            "{!r} is no sink{}".format(uri, did_you_mean(scheme, list(_CLASSES))),
            "Sinks are jsonl:- (standard output), jsonl:FILE and annotate:FOLDER.",
        )
    module, name = _CLASSES[scheme]
    sink: Sink = getattr(importlib.import_module(module), name)(rest)
    return sink

"""Sinks: where results go, one small file a kind.

jsonl:-                 one JSON object a line on standard output
jsonl:FILE              the same, appended to a file
csv:FILE                a row for every class or box
mqtt://HOST/TOPIC       JSON to an MQTT broker; mqtts:// encrypted
webhook:URL             JSON by HTTP POST
gpio:CHIP/LINE          a line that is on while a class is seen
annotate:FOLDER         each frame with its answer drawn on it, as JPEG
annotate:FILE.avi       the same as a video
record:FOLDER           frames as they were, with their results, to replay

Options follow as ``?name=value&name=value``, for webhooks as ``#name=value``; docs/sinks.md lists them.
"""

from __future__ import annotations

import importlib

from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.fields import did_you_mean
from edgeferry_runtime.sinks.base import Sink

__all__ = ["Sink", "open_sink"]

_CLASSES = {
    "jsonl": ("edgeferry_runtime.sinks.jsonl", "JsonlSink"),
    "csv": ("edgeferry_runtime.sinks.csvfile", "CsvSink"),
    "mqtt": ("edgeferry_runtime.sinks.mqtt", "MqttSink"),
    "mqtts": ("edgeferry_runtime.sinks.mqtt", "MqttSink"),
    "webhook": ("edgeferry_runtime.sinks.webhook", "WebhookSink"),
    "gpio": ("edgeferry_runtime.sinks.gpio", "GpioSink"),
    "annotate": ("edgeferry_runtime.sinks.annotate", "AnnotateSink"),
    "record": ("edgeferry_runtime.sinks.record", "RecordSink"),
}


def open_sink(uri: str) -> Sink:
    """Open what ``uri`` names; see the table above.

    Raises:
        UsageError: it names no kind of sink, or its options are wrong.
        SinkError: it cannot be written.
        DependencyError: it needs a package that is absent.
    """
    kind, _colon, rest = uri.partition(":")
    if kind not in _CLASSES or not rest:
        # What follows the kind of an address may hold a password.
        shown = kind + "://..." if rest.startswith("//") else uri
        raise UsageError(
            "{!r} is no sink{}".format(shown, did_you_mean(kind, list(_CLASSES))),
            "Sinks are jsonl:- (standard output), jsonl:FILE, csv:FILE, mqtt://HOST/TOPIC, webhook:https://..., "
            "gpio:CHIP/LINE, annotate:FOLDER, annotate:FILE.avi and record:FOLDER.",
        )
    module, name = _CLASSES[kind]
    sink: Sink = getattr(importlib.import_module(module), name)(uri)
    sink.uri = sink.uri or uri
    return sink

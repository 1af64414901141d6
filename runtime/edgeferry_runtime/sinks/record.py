"""Frames as they were, without loss, with their results: what ``replay:FOLDER`` plays again."""

from __future__ import annotations

from typing import Any

from edgeferry_runtime.errors import FrameError, SinkError
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks.base import Sink
from edgeferry_runtime.sinks.options import Option, read_options
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.sources.recording import RecordingWriter

__all__ = ["RecordSink"]

_OPTIONS = {"every": Option(int, 1, 1, 1e9), "max_mb": Option(float, 1024.0, 0.001, 1e6)}


class RecordSink(Sink):
    """Writes a recording (see sources/recording.py) until it is full.

    Args:
        uri: "record:FOLDER?every=N&max_mb=M": one frame in N, at most M megabytes (1024).

    Raises:
        UsageError: an option is unknown or wrong.
        SinkError: the folder cannot be written, or holds a recording.
        DependencyError: OpenCV is absent.
    """

    wants_pixels = True

    def __init__(self, uri: str) -> None:
        sink, _, text = uri.partition("?")
        options = read_options(text, _OPTIONS, sink)
        self._folder = sink.partition(":")[2]
        self._every = options["every"]
        self._next = 0
        try:
            self._recording = RecordingWriter(self._folder, options["max_mb"])
        except FileExistsError:
            raise SinkError("{}: holds a recording".format(self._folder), "Choose another folder.") from None
        except OSError as error:
            raise SinkError("{}: cannot be made: {}".format(self._folder, error.strerror)) from None

    def write(self, frame: Frame, result: Result) -> None:
        if frame.number < self._next:
            return
        self._next = frame.number + self._every
        try:
            self._recording.write(frame, result.to_json())
        except (OSError, FrameError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise SinkError("{}: cannot be written: {}".format(self._folder, reason)) from None

    def state(self) -> dict[str, Any]:
        return {"recorded": self._recording.written, "dropped": self._recording.refused}

    def close(self) -> None:
        self._recording.close()

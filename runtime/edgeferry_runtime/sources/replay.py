"""Frames of a recording, with the numbers they had: as fast as they are asked for, or as they came."""

from __future__ import annotations

import logging
import time
from bisect import bisect_right

from edgeferry_runtime import opencv
from edgeferry_runtime.errors import SourceError
from edgeferry_runtime.sources.base import Frame, FrameSource, Request
from edgeferry_runtime.sources.clip import Clip, InOrder, Paced
from edgeferry_runtime.sources.options import flag, read_options
from edgeferry_runtime.sources.recording import load_frame, read_entries

__all__ = ["RecordedClip", "open_replay"]

_LOG = logging.getLogger("edgeferry")


def open_replay(uri: str, request: Request) -> FrameSource:
    """Play a recording.

    Args:
        uri: "replay:FOLDER" or "replay:FOLDER/results.jsonl"; "?realtime=1" keeps the time between the frames, as
            a live source.

    Raises:
        UsageError: an option is wrong.
        SourceError: there is no recording.
        DependencyError: OpenCV is absent.
    """
    what, options = read_options(uri[len("replay:") :], {"realtime": flag})
    opencv.load("replaying frames")
    clip = RecordedClip(what)
    return Paced(clip) if options.get("realtime") else InOrder(clip)


class RecordedClip(Clip):
    """The frames of a recording; damaged ones are named in the log and passed over.

    Raises:
        SourceError: there is no recording; while reading: none of its frames can be decoded.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._entries = read_entries(path)
        first = self._entries[0].captured_ns
        # A clock that jumped back while recording must not send the player back.
        self._times: list[int] = []
        for entry in self._entries:
            self._times.append(max(entry.captured_ns - first, self._times[-1] if self._times else 0))
        self._at = 0

    def load(self, index: int) -> Frame | None:
        self._at = max(self._at, index)
        while self._at < len(self._entries):
            entry = self._entries[self._at]
            self._at += 1
            captured = time.monotonic_ns()
            loaded = load_frame(entry)
            if loaded is not None:
                return Frame(loaded[0], loaded[1], entry.number, captured)
            self.skipped += 1
            _LOG.warning("%s: cannot be decoded, passed over", entry.path)
        if self.skipped == len(self._entries):
            raise SourceError("{}: none of its frames can be decoded".format(self._path), "Record it again.")
        return None

    def time_ns(self, index: int) -> int:
        return self._times[min(index, len(self._times) - 1)]

    def due(self, elapsed_ns: int) -> int:
        return bisect_right(self._times, elapsed_ns) - 1

"""Where the flight recorder writes: a folder for each recording, so many of them, and so many bytes a day.

FOLDER/000001-fault/        why is in its name, and at length in about.json
FOLDER/budget.json          bytes that were written, by day
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from typing import TYPE_CHECKING, Callable, NamedTuple, Sequence

from edgeferry_runtime.errors import SinkError
from edgeferry_runtime.recorder_config import RecorderConfig
from edgeferry_runtime.sources.recording import RecordingWriter

if TYPE_CHECKING:
    from edgeferry_runtime.results import Result
    from edgeferry_runtime.sources.base import Frame

__all__ = ["Budget", "Kept", "Store"]

_LOG = logging.getLogger("edgeferry")
_ABOUT, _BUDGET = "about.json", "budget.json"
_FOLDER = re.compile(r"([0-9]{6,})-[a-z0-9-]+\Z")
_DAYS = 8  # of the budget that are remembered


class Kept(NamedTuple):
    """A frame with its result.

    Attributes:
        frame: with memory of its own.
        result: as it went out.
        full: (width, height) of the frame as it came, where ``frame`` was made smaller.
        bytes: of RAM that all of it takes.
    """

    frame: Frame
    result: Result
    full: tuple[int, int] | None
    bytes: int


class Budget:
    """How much may still be written today; remembered in a file, so that restarts do not begin anew.

    A board without a clock of its own begins each start in the same old day: days are kept apart, and a day that
    comes again goes on where it was.

    Args:
        path: of the file; it need not be there.
        bytes_a_day: the budget.
        clock: seconds since 1970.
    """

    def __init__(self, path: str, bytes_a_day: int, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._most = bytes_a_day
        self._clock = clock
        self._days = self._read()  # the last one written to is the last

    @property
    def left(self) -> int:
        """Bytes that may be written today."""
        return max(0, self._most - self._days.get(self._today(), 0))

    def spend(self, count: int) -> None:
        """Note so many bytes, or take them back where negative.

        Raises:
            OSError: the file cannot be written.
        """
        today = self._today()
        self._days[today] = max(0, self._days.pop(today, 0) + count)
        for day in list(self._days)[:-_DAYS]:
            del self._days[day]
        with open(self._path + ".part", "w", encoding="utf-8") as file:
            json.dump({"written": self._days}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(self._path + ".part", self._path)

    def _today(self) -> str:
        return str(int(self._clock() // 86400))

    def _read(self) -> dict[str, int]:
        try:
            with open(self._path, "rb") as file:
                days = json.loads(file.read(65536).decode("utf-8"))["written"]
            return {day: count for day, count in days.items() if isinstance(count, int)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}  # not there yet, or somebody else's


class Store:
    """The folder of recordings; for one thread, but for what it says of itself.

    Args:
        config: folder and limits; the folder is made when it is absent.

    Attributes:
        counts: recordings and frames written, frames that were over the budget.
        last: folder of the last recording, "" before the first.

    Raises:
        SinkError: the folder cannot be made.
    """

    def __init__(self, config: RecorderConfig) -> None:
        try:
            os.makedirs(config.folder, mode=0o700, exist_ok=True)  # what a camera saw is not for everybody
        except OSError as error:
            raise SinkError("{}: cannot be made: {}".format(config.folder, error.strerror)) from None
        self.counts = {"recordings": 0, "frames_written": 0, "over_budget": 0}
        self.last = ""
        self._config = config
        self._budget = Budget(os.path.join(config.folder, _BUDGET), int(config.write_mb_per_day * 1e6))

    @property
    def left(self) -> int:
        """Bytes that may be written today."""
        return self._budget.left

    def write(self, reasons: Sequence[str], kept: list[Kept], release: Callable[[Kept], None]) -> None:
        """Write a recording of the newest frames that the budget allows.

        Args:
            reasons: why; the first word gives the folder its name.
            kept: what to write, in any order; emptied on the way.
            release: told of each that is done with, so that its memory serves again.

        Raises:
            OSError, FrameError: it cannot be written; what was written stays.
        """
        left = self._budget.left
        kept.sort(key=lambda one: one.frame.captured_ns)
        sizes = [_worst_case(one.bytes) for one in kept]
        first = _first_that_fits(sizes, left)
        self.counts["over_budget"] += first
        if first == len(kept):
            why = "today's budget is spent" if kept else "no frame came"
            _LOG.warning("nothing is recorded (%s): %s", reasons[0], why)
            return
        for _ in range(first):
            release(kept.pop(0))
        # First on the account, then on the card: a power cut must not make it free.
        reserved = sum(sizes[first:])
        self._budget.spend(reserved)
        folder = self._next_folder(reasons[0])
        try:
            written = self._write_frames(folder, kept, left, release)
            about = {"why": list(reasons), "time": round(time.time(), 3), "frames": written}
            with open(os.path.join(folder, _ABOUT), "w", encoding="utf-8") as file:
                json.dump(about, file)
        finally:
            self._budget.spend(_size_of(folder) - reserved)
            self._drop_oldest()
        self.last = folder
        self.counts["recordings"] += 1
        self.counts["frames_written"] += written
        _LOG.warning("recorded %d frames in %s: %s", written, folder, "; ".join(reasons))

    def _write_frames(self, folder: str, kept: list[Kept], left: int, release: Callable[[Kept], None]) -> int:
        writer = RecordingWriter(folder, left / 1e6)
        try:
            seen: set[int] = set()
            while kept:
                frame, result, full, _ = kept[0]
                line = result.to_json()
                if full is not None:
                    line["frame_size"] = full
                left -= _worst_case(frame.pixels.nbytes + len(json.dumps(line)))
                if left < 0:
                    self.counts["over_budget"] += len(kept)
                    break
                if frame.number not in seen:  # one that came with a trigger may be in the ring as well
                    writer.write(frame, line)
                seen.add(frame.number)
                release(kept.pop(0))
            return writer.written
        finally:
            writer.close()

    def _next_folder(self, reason: str) -> str:
        number = max((number for number, _ in self._recordings()), default=0) + 1
        kind = re.sub(r"[^a-z0-9]+", "-", reason.partition(":")[0].lower()).strip("-") or "other"
        return os.path.join(self._config.folder, "{:06d}-{}".format(number, kind[:40]))

    def _recordings(self) -> list[tuple[int, str]]:
        """(number, name) of each there is, the oldest first."""
        found = (_FOLDER.match(name) for name in os.listdir(self._config.folder))
        return sorted((int(match.group(1)), match.group()) for match in found if match)

    def _drop_oldest(self) -> None:
        for _, name in self._recordings()[: -self._config.keep]:
            shutil.rmtree(os.path.join(self._config.folder, name), ignore_errors=True)


def _worst_case(size: int) -> int:
    """Bytes of a file with noise in it, names and all."""
    return size + size // 64 + 1024


def _first_that_fits(sizes: Sequence[int], left: int) -> int:
    """From which one on all fit: the newest tell most."""
    first = len(sizes)
    while first and sizes[first - 1] <= left:
        first -= 1
        left -= sizes[first]
    return first


def _size_of(folder: str) -> int:
    return sum(os.path.getsize(os.path.join(where, name)) for where, _, names in os.walk(folder) for name in names)

"""The flight recorder: the last seconds of frames and results in RAM, written only when something happened.

What it writes is a recording (see sources/recording.py), a folder for each trigger; ``replay:FOLDER`` runs it
again, to the same results on the same interpreter.  Writing has a thread of its own and a budget a day, so that
neither the loop nor the SD card suffers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, Mapping

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.pixels import frame_size
from edgeferry_runtime.recorder_config import RecorderConfig
from edgeferry_runtime.recorder_store import Kept, Store
from edgeferry_runtime.shrinker import Shrinker

if TYPE_CHECKING:
    from edgeferry_runtime.model import Model
    from edgeferry_runtime.pipeline import Pipeline
    from edgeferry_runtime.results import Result
    from edgeferry_runtime.sources.base import Frame

__all__ = ["Recorder", "weight"]

_LOG = logging.getLogger("edgeferry")
_FAULTS = ("damaged", "invalid", "away")  # losses that are nobody's wish
_CLOSE_S = 10.0  # for what is being written when the loop ends
_REASONS = 16  # of one recording
# What Python takes for a frame, its result and an answer of some boxes, measured with tracemalloc and rounded up.
_ENTRY_BYTES, _ITEM_BYTES = 2048, 512


def weight(answer: Any) -> int:
    """About how many bytes an answer takes, rather more than less."""
    total = _ENTRY_BYTES
    for value in vars(answer).values():
        if isinstance(value, np.ndarray):
            total += value.nbytes
        elif isinstance(value, dict):
            total += sum(_ITEM_BYTES + getattr(part, "nbytes", 0) for part in value.values())
        elif isinstance(value, tuple):
            total += _ITEM_BYTES * len(value)
            if value and hasattr(value[0], "keypoints"):
                total += _ITEM_BYTES * sum(len(pose.keypoints) for pose in value)
    return total


class Recorder(Observer):
    """Remembers frames, and writes them when told to or when something went wrong.

    Args:
        config: how much of everything.
        clock: seconds, monotonic.

    Raises:
        DependencyError: OpenCV is absent.
        SinkError: the folder cannot be made.
    """

    name = "recorder"

    def __init__(self, config: RecorderConfig, clock: Callable[[], float] = time.monotonic) -> None:
        opencv.load("recording frames")
        self._store = Store(config)
        self._config = config
        self._clock = clock
        self._pipeline: Pipeline | None = None
        self._known: dict[str, int] = {}
        self._trouble = ""
        self._span_ns = int((config.seconds + config.after_s) * 1e9)
        self._period_ns = int(1e9 / config.fps)
        self._due_ns = 0
        self._shrinker: Shrinker | None = None
        self._most = int(config.max_mb * 1e6)
        self._lock = threading.Lock()  # for all below; held for microseconds
        self._ring: Deque[Kept] = deque()
        self._bytes = self._held = 0  # in the ring, and with the thread that writes
        self._reasons: list[str] = []
        self._thread: threading.Thread | None = None
        self._quiet_until = float("-inf")
        self._closing = threading.Event()
        self._not_kept = self._failed = 0

    def attach(self, pipeline: Pipeline) -> None:
        """Look after the faults of this one from now on."""
        self._pipeline = pipeline
        self._known, self._trouble = self._faults()

    def saw(self, frame: Frame, result: Result, model: Model) -> None:
        """Keep it: a JPEG frame as it came (2 us), a raw one when it is due (a copy, or one more resize)."""
        if frame.color == "jpeg":
            self._keep(frame, result, None)
        elif frame.captured_ns >= self._due_ns:
            self._due_ns = max(self._due_ns + self._period_ns, frame.captured_ns + self._period_ns // 2)
            small = self._smaller(frame, model) if self._config.small else None
            self._keep(small or frame, result, frame_size(frame.pixels, frame.color) if small else None)

    def trigger(
        self, why: str, detail: str = "", frame: Frame | None = None, result: Result | None = None
    ) -> bool:
        """Write what is remembered, a few seconds from now; from any thread, returns at once.

        Args:
            why: "fault", "disagreement", "request": lower-case letters and digits, part of the folder's name.
            detail: more words for about.json.
            frame, result: to be in it for certain, even where not all frames are kept.

        Returns:
            False when another one was heard just before; a request is always heard.
        """
        if frame is not None and result is not None:
            self._keep(frame, result, None)
        with self._lock:
            if self._closing.is_set():
                return False
            now = self._clock()
            waiting = bool(self._reasons)
            if not waiting and why != "request" and now < self._quiet_until:
                return False
            self._quiet_until = now + self._config.pause_s
            reason = "{}: {}".format(why, detail) if detail else why
            if reason not in self._reasons and len(self._reasons) < _REASONS:
                self._reasons.append(reason)
            if self._thread is not None:
                return True
            self._thread = threading.Thread(target=self._work, name="edgeferry-recorder", daemon=True)
            self._thread.start()
        return True

    def commands(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """What may be asked of it: "record" writes what is remembered."""
        return {"record": self._record}

    def tick(self) -> None:
        """Look for faults."""
        if self._pipeline is None:
            return
        losses, trouble = self._faults()
        more = [name for name in _FAULTS if losses.get(name, 0) > self._known.get(name, 0)]
        if trouble != self._trouble and trouble:
            more.append(trouble)
        self._known, self._trouble = losses, trouble
        if more:
            self.trigger("fault", ", ".join(more))

    def state(self) -> dict[str, Any]:
        """What is remembered (frames, MB, seconds), what was written, and what may be today."""
        with self._lock:
            ring = self._ring
            seconds = (ring[-1].frame.captured_ns - ring[0].frame.captured_ns) / 1e9 if ring else 0.0
            state: dict[str, Any] = {
                "frames": len(ring),
                "mb": round((self._bytes + self._held) / 1e6, 3),
                "seconds": round(seconds, 1),
                "not_kept": self._not_kept,
                "pending": bool(self._reasons),
                "failed": self._failed,
            }
        state.update(self._store.counts)
        state["left_mb_today"] = round(self._store.left / 1e6, 1)
        state["last"] = self._store.last
        return state

    def close(self) -> None:
        """Write what a trigger waits for, without waiting for more frames."""
        self.tick()
        self._closing.set()
        thread = self._thread
        if thread is not None:
            thread.join(_CLOSE_S)

    def _record(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self.trigger("request")
        return {"folder": self._config.folder, "ready_in_s": self._config.after_s}

    # Remembering, in the loop's thread.

    def _smaller(self, frame: Frame, model: Model) -> Frame | None:
        declared = model.bundle.manifest.preprocessing
        if declared is None:
            return None
        if self._shrinker is None or self._shrinker.declared != declared:
            self._shrinker = Shrinker(declared)
        return self._shrinker(frame)

    def _keep(self, frame: Frame, result: Result, full: tuple[int, int] | None) -> None:
        own = full is not None or (frame.pixels.base is None and frame.color == "jpeg")
        size = frame.pixels.nbytes + weight(result.answer)
        with self._lock:
            if self._held + size > self._most:
                self._not_kept += 1
                return
            self._make_room(size, frame.captured_ns - self._span_ns)
        if not own:  # it may be a view of far more, or memory that is drawn into
            frame = frame._replace(pixels=frame.pixels.copy(order="C"))
        with self._lock:
            self._ring.append(Kept(frame, result, full, size))
            self._bytes += size
            self._make_room(0, 0)  # the writing thread may have taken the ring, or another one put a frame in

    def _make_room(self, size: int, oldest_ns: int) -> None:
        """Let the oldest frames go, those before a moment and those beyond the bound; the lock is held."""
        ring, room = self._ring, self._most - self._held - size
        while ring and (self._bytes > room or ring[0].frame.captured_ns < oldest_ns):
            self._bytes -= ring.popleft().bytes

    def _faults(self) -> tuple[dict[str, int], str]:
        assert self._pipeline is not None  # noqa: S101 - callers saw to it
        state = self._pipeline.state()
        return dict(state["losses"]), str(state["trouble"])

    # Writing, in a thread.

    def _work(self) -> None:
        while True:
            self._closing.wait(self._config.after_s)
            with self._lock:
                reasons, self._reasons = self._reasons, []
                kept = self._take()
            try:
                self._store.write(reasons, kept, self._release)
            except Exception as error:  # a full card, or whatever OpenCV raises; the next one may work
                self._failed += 1
                _LOG.warning("%s: the recording is not whole: %s", self._config.folder, error)
            finally:
                kept.clear()
                with self._lock:
                    self._held = 0
                    done = not self._reasons
                    if done:
                        self._thread = None
            if done:
                return

    def _take(self) -> list[Kept]:
        """All that is remembered; it counts until it is written.  The lock is held."""
        kept, self._ring = list(self._ring), deque()
        self._held, self._bytes = self._bytes, 0
        return kept

    def _release(self, kept: Kept) -> None:
        with self._lock:
            self._held -= kept.bytes

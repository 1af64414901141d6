"""From the source to the interpreter's door: which frames are worth running, and their pixels in a tensor."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgeferry_runtime.errors import FrameError
from edgeferry_runtime.model import Model, Placed
from edgeferry_runtime.preprocessor import Picture, Preprocessor
from edgeferry_runtime.roster import Roster
from edgeferry_runtime.sources.base import WAITING, Frame, FrameSource
from edgeferry_runtime.summary import Tally

if TYPE_CHECKING:
    from edgeferry_runtime.motion import MotionGate
    from edgeferry_runtime.service import Heartbeat

__all__ = ["POLL_S", "Preparation", "Prepared", "smoothed"]

POLL_S = 0.25  # how soon a stop is noticed by a thread that waits
_RINGS = 2  # models whose tensors are kept: two versions that take turns need no new memory


class Prepared(NamedTuple):
    """A frame on its way to the interpreter.  Times are ``time.monotonic_ns()``."""

    frame: Frame
    model: Model
    tensor: np.ndarray | None  # the interpreter's own memory, or a copy that has to go there
    picture: Picture | None  # where there is no tensor yet
    placed: Placed
    began_ns: int
    read_ns: int
    decoded_ns: int
    ready_ns: int


class Preparation:
    """Reads frames until one is worth running, asks which model runs it, and preprocesses it for that one.

    Args:
        source, model, roster: as the pipeline has them.
        tally: where frames that come to nothing are counted.
        fps: at most so many frames a second are taken.
        max_age_ms: older frames are skipped.
        motion: skips frames that show nothing new.
        heartbeat: told when no result is due.

    Attributes:
        model: what was chosen last.
        preprocessor: the last one used.
        ahead: whether frames are prepared while the interpreter runs another: into memory of their own then.
        late: only decode; who runs the interpreter does the rest.
        stopping: give no more frames.
        takes_ns: what a frame takes, smoothed.
        max_age_ns: 0 for no limit.
    """

    def __init__(
        self, source: FrameSource, model: Model, roster: Roster, tally: Tally,
        fps: float | None, max_age_ms: float | None, motion: float | None, heartbeat: Heartbeat | None,
    ) -> None:  # fmt: skip
        assert model.preprocessor is not None  # noqa: S101 - the pipeline saw to it
        self.model = model
        self.preprocessor: Preprocessor = model.preprocessor
        self.ahead = self.late = self.stopping = False
        self.takes_ns = 0
        self.max_age_ns = int(max_age_ms * 1e6) if max_age_ms else 0
        self._source, self._roster, self._tally, self._heartbeat = source, roster, tally, heartbeat
        self._rings: dict[int, _Ring] = {}
        self._gate: MotionGate | None = None
        if motion is not None:
            from edgeferry_runtime.motion import MotionGate

            self._gate = MotionGate(motion)
        self._due_ns = 0
        self.set_fps(fps)

    def set_fps(self, fps: float | None) -> None:
        """Take at most so many frames a second from now on; None takes all."""
        self._period_ns = int(1e9 / fps) if fps else 0

    def next(self) -> Prepared | None:
        """The next frame that is worth running; None at the end, or when it was told to stop.

        Raises:
            SourceError: the source failed.
        """
        clock, source, tally = time.monotonic_ns, self._source, self._tally
        while not self.stopping:
            if self._period_ns:
                self._keep_pace()
            began = clock()
            frame = source.read(POLL_S)
            if frame is None:
                return None
            if frame is WAITING:
                continue
            read = clock()
            if self.max_age_ns and read - frame.captured_ns > self.max_age_ns:
                tally.losses["stale"] += 1
                continue
            try:
                if self._gate is not None and not self._gate.moved(frame):
                    tally.losses["still"] += 1
                    self._idle()
                    continue
                model = self.model = self._roster.choose(self.model, frame)
                preprocessor, tensor = self._place_for(model)
                picture = None
                if tensor is not None:
                    preprocessor(frame.pixels, frame.color, out=tensor)
                elif frame.color == "jpeg":
                    picture = preprocessor.decode(frame.pixels)
                else:
                    picture = Picture(frame.pixels, frame.color, None)
            except FrameError as error:
                tally.survive(error, "damaged", frame.number)
                continue
            ready = clock()
            self.takes_ns = smoothed(self.takes_ns, ready - read)
            decoded = preprocessor.decoded_ns if frame.color == "jpeg" else 0
            placed = Placed(preprocessor.placement, preprocessor.frame_size)
            return Prepared(frame, model, tensor, picture, placed, began, read, decoded, ready)
        return None

    def _place_for(self, model: Model) -> tuple[Preprocessor, np.ndarray | None]:
        """With what, and where to, a frame is preprocessed for a model."""
        if self.ahead:
            ring = self._rings.get(id(model))
            if ring is None or ring.model() is not model:
                ring = self._new_ring(model)
            self.preprocessor = ring.preprocessor
            return ring.preprocessor, None if self.late else ring.tensor()
        assert model.preprocessor is not None  # noqa: S101 - a roster gives models that take frames
        self.preprocessor = model.preprocessor
        return model.preprocessor, None if self.late else model.frame_input

    def _new_ring(self, model: Model) -> _Ring:
        while len(self._rings) >= _RINGS:
            del self._rings[next(iter(self._rings))]
        ring = self._rings[id(model)] = _Ring(model)
        return ring

    def _keep_pace(self) -> None:
        """Wait until the next frame is due."""
        while not self.stopping:
            left_s = (self._due_ns - time.monotonic_ns()) / 1e9
            if left_s <= 0:
                break
            self._idle()
            time.sleep(min(left_s, POLL_S))
        self._due_ns = max(self._due_ns, time.monotonic_ns() - self._period_ns) + self._period_ns

    def _idle(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.idle()


class _Ring:
    """Where frames that are prepared ahead go: three tensors in turn, and a preprocessor of its own.

    One is being written, one is ready, one is being copied into the interpreter's memory.
    """

    def __init__(self, model: Model) -> None:
        self.model = weakref.ref(model)  # one that was retired must not stay in memory for its ring
        spec = model.variant.inputs[0]
        assert model.preprocessor is not None  # noqa: S101 - the pipeline, or its roster, saw to it
        self.preprocessor = Preprocessor(model.preprocessor.declared, spec)
        self._tensors = [np.empty(spec.shape, spec.dtype) for _ in range(3)]
        self._next = 0

    def tensor(self) -> np.ndarray:
        self._next = (self._next + 1) % 3
        return self._tensors[self._next]


def smoothed(known: int, value: int) -> int:
    """A running mean of times, in whatever unit."""
    return known + (value - known) // 8 if known else value

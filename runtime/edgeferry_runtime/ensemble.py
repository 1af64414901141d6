"""An ensemble: several classifiers' answers about the same frame become one.

Only classifiers: boxes of several detectors would have to be matched first, and what their joint score means is
not settled.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any, Deque, NamedTuple, Sequence

import numpy as np

from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.model import Model
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.outlet import Outlet
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks.base import Sink
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.stats import LatencyStats
from edgeferry_runtime.tasks.classify import Classification, ClassScore, class_scores

__all__ = ["HOW", "Ensemble", "Joining", "check_members", "joined", "labels_of"]

_LOG = logging.getLogger("edgeferry")
_WAITING = 8  # frames that may wait for the slowest member; they are a few apart at most
_REMEMBERED = 64


class Joining(NamedTuple):
    """How answers become one.

    Attributes:
        name: of the ensemble.
        how: "mean": a class's score is the mean of its scores.  "vote": it is the share of the members whose best
            class it is; of equal shares the class with the higher mean is the better one.
        labels: one a class, "" for none.
        threshold: lowest joint score to report, 0 to 1.
        top_k: so many classes at most.
    """

    name: str
    how: str = "mean"
    labels: tuple[str, ...] = ()
    threshold: float = 0.0
    top_k: int = 5


def _mean(scores: np.ndarray, means: np.ndarray) -> np.ndarray:
    return means


def _vote(scores: np.ndarray, means: np.ndarray) -> np.ndarray:
    votes = np.bincount(scores.argmax(axis=1), minlength=scores.shape[1])
    shares: np.ndarray = votes / len(scores)
    return shares


HOW = {"mean": _mean, "vote": _vote}


def joined(scores: Sequence[np.ndarray], joining: Joining) -> Classification:
    """One answer from the scores of all members.

    Args:
        scores: float [classes], one array a member, 0 to 1.
        joining: how.

    Raises:
        ValueError: the members have not the same number of classes.
    """
    stacked = np.stack(scores).astype(np.float64)
    means = stacked.mean(axis=0)
    result = HOW[joining.how](stacked, means)
    order = np.lexsort((-means, -result))[: joining.top_k]  # stable: of equals the lower index first
    least = joining.threshold if joining.how == "mean" else max(joining.threshold, 0.5 / len(scores))
    return Classification(
        tuple(
            ClassScore(index, joining.labels[index] if index < len(joining.labels) else "", float(result[index]))
            for index in order.tolist()
            if result[index] >= least
        )
    )


def labels_of(model: Model) -> tuple[str, ...]:
    """A classifier's labels, as many as it has classes; "" where it has none.

    Raises:
        UsageError: it is no classifier.
    """
    declared = model.bundle.manifest.postprocessing
    if declared.task != "classify":
        raise UsageError(
            "{} does {}, and an ensemble joins classifiers".format(model.identity, declared.task),
            "Take it out of the ensemble.",
        )
    if declared.labels:
        return tuple(model.bundle.read(declared.labels).decode("utf-8").splitlines())
    (shape,) = (spec.shape for spec in model.variant.outputs if spec.name == declared.outputs["scores"])
    return ("",) * (2 if declared.scores.startswith("binary") else int(np.prod(shape)))


def check_members(name: str, models: Sequence[Model]) -> tuple[str, ...]:
    """The labels all members agree on.

    Raises:
        UsageError: one is no classifier, or has other classes than the first.
    """
    labels = [labels_of(model) for model in models]
    for model, own in zip(models[1:], labels[1:]):
        if own != labels[0]:
            raise UsageError(
                "ensemble {!r}: {} and {} do not have the same classes: {}".format(
                    name, models[0].identity, model.identity, _difference(labels[0], own)
                ),
                "Train them on the same classes, in the same order.",
            )
    return labels[0]


def _difference(one: Sequence[str], other: Sequence[str]) -> str:
    if len(one) != len(other):
        return "{} and {} of them".format(len(one), len(other))
    index = next(i for i, pair in enumerate(zip(one, other)) if pair[0] != pair[1])
    return "class {} is {!r} and {!r}".format(index, one[index], other[index])


def _scores(model: Model) -> np.ndarray:
    """All scores of the last invoke, float32 [classes]."""
    declared = model.bundle.manifest.postprocessing
    return class_scores(model.outputs()[declared.outputs["scores"]], declared.scores)[0]


class _Waiting:
    """A frame that some members have answered."""

    def __init__(self, frame: Frame, members: int) -> None:
        self.frame = frame
        self.scores: list[np.ndarray | None] = [None] * members
        self.results: list[Result | None] = [None] * members


class Ensemble:
    """Joins what its members say of the same frame, or of the same crop of it, and hands it to its sinks.

    A frame is answered when the last member has answered it.  Members see frames in order: one that has answered
    a later frame will not answer an earlier one, which is then given up and counted as unmatched.

    Args:
        joining: how; with the labels of ``check_members``.
        members: how many.
        sinks: opened by the caller, who also closes them.
        live: of the source.

    Attributes:
        frames: results given.
        unmatched: frames without a joint result: only some members answered.
        age: of the results in microseconds, from the capture.
        trouble: the last thing that went wrong, "" when nothing did.
    """

    def __init__(self, joining: Joining, members: int, sinks: Sequence[Sink], live: bool) -> None:
        self.frames = self.unmatched = 0
        self.age = LatencyStats()
        self.trouble = ""
        self._joining = joining
        self._lock = threading.Lock()
        self._waiting: dict[tuple[int, ...], _Waiting] = {}  # by number of the frame and boxes of the crop
        self._gone: Deque[tuple[int, ...]] = deque(maxlen=_REMEMBERED)  # given up: counted, and not again
        self._away: set[int] = set()
        self._sinks = sinks
        self._outlets = [Outlet(sink, live) for sink in sinks]
        self._wants_pixels = any(sink.wants_pixels for sink in sinks)
        self.members = [_Member(self, index) for index in range(members)]

    def take(self, member: int, frame: Frame, result: Result, scores: np.ndarray) -> None:
        """A member's answer; in its thread."""
        key = (frame.number, *(frame.region.boxes if frame.region else ()))
        with self._lock:  # also for the sinks: results stay in order
            self._give_up([earlier for earlier in self._waiting if earlier < key and self._lacks(earlier, member)])
            waiting = self._waiting.get(key)
            if waiting is None:
                if key in self._gone:
                    return
                if len(self._waiting) >= _WAITING:
                    self._give_up([min(self._waiting)])
                kept = frame if self._wants_pixels else frame._replace(pixels=frame.pixels[:0])
                waiting = self._waiting[key] = _Waiting(kept, len(self.members))
            waiting.scores[member], waiting.results[member] = scores, result
            if all(scores is not None for scores in waiting.scores):
                del self._waiting[key]
                try:
                    self._answer(waiting, result)
                except Exception:
                    self.unmatched += 1
                    raise
            elif any(self._lacks(key, absent) for absent in self._away):
                self._give_up([key])

    def set_away(self, member: int, away: bool) -> None:
        """A member answers no frames for now, or does so again."""
        with self._lock:
            if not away:
                self._away.discard(member)
                return
            self._away.add(member)
            self._give_up([key for key in self._waiting if self._lacks(key, member)])

    def fail(self, error: Exception) -> None:
        """Note what went wrong; named in the log once in a row of the same."""
        text = "{}: {}".format(type(error).__name__, error)
        if text != self.trouble:
            _LOG.error("ensemble %s: %s", self._joining.name, text)
        self.trouble = text

    def finish(self) -> None:
        """All members have ended: give up what waits, write the rest."""
        with self._lock:
            self._give_up(list(self._waiting))
        for outlet in self._outlets:
            outlet.finish()
            if outlet.error is not None:
                self.fail(outlet.error)

    def state(self) -> dict[str, Any]:
        """How it goes, as plain values; may be asked from any thread."""
        return {
            "how": self._joining.how,
            "frames": self.frames,
            "losses": {"unmatched": self.unmatched},
            "age_us": self.age.to_json(),
            "sinks": {outlet.sink.uri: outlet.counts() for outlet in self._outlets},
            "trouble": self.trouble,
        }

    def _lacks(self, key: tuple[int, ...], member: int) -> bool:
        return self._waiting[key].scores[member] is None

    def _give_up(self, keys: Sequence[tuple[int, ...]]) -> None:
        for key in keys:
            del self._waiting[key]
            self._gone.append(key)
            self.unmatched += 1

    def _answer(self, waiting: _Waiting, last: Result) -> None:
        results = [result for result in waiting.results if result is not None]
        answer = joined([scores for scores in waiting.scores if scores is not None], self._joining)
        age = (time.monotonic_ns() - last.captured_ns) / 1000
        # Where the time went is what the last member says; what came after it is counted as postprocessing.
        stages = (*last.stages_us[:-1], last.stages_us[-1] + max(0.0, age - last.age_us))
        result = last._replace(
            bundle="{}({})".format(self._joining.name, "+".join(result.bundle for result in results)),
            variant=self._joining.how,
            backend="+".join(dict.fromkeys(result.backend for result in results)),
            time=time.time(),
            age_us=age,
            stages_us=stages,
            dropped=max(result.dropped for result in results) + self.unmatched,
            answer=answer,
            model=self._joining.name,
        )
        for outlet in self._outlets:
            outlet.put(waiting.frame, result)
        self.frames += 1
        self.age.add(age)


class _Member(Observer):
    """Looks on in a member's loop."""

    def __init__(self, ensemble: Ensemble, index: int) -> None:
        self._ensemble = ensemble
        self._index = index

    def saw(self, frame: Frame, result: Result, model: Model) -> None:
        try:
            self._ensemble.take(self._index, frame, result, _scores(model))
        except Exception as error:  # another version with other classes, a sink that failed: the member goes on
            self._ensemble.fail(error)

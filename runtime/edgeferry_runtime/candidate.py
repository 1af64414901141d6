"""A candidate beside the version that runs: in its shadow, or answering a part of the frames itself.

    checking (goldens, in a child process) -> loading -> running -> promoted, abandoned or refused

In shadow it sees the newest frame that was answered and publishes nothing; in ab its answers are published, and a
frame it fails on is run again by the current version.  Frames are shared, not copied.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Mapping

from edgeferry_runtime import conditions
from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.candidate_config import CandidateConfig
from edgeferry_runtime.comparison import Comparison
from edgeferry_runtime.disagreements import Disagreements
from edgeferry_runtime.errors import BackendError, EdgeferryError, FrameError, UsageError
from edgeferry_runtime.mailbox import Mailbox
from edgeferry_runtime.model import Model
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.promotion import Decision, decide
from edgeferry_runtime.results import STAGES, Result
from edgeferry_runtime.roster import Roster
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.swap import Swap
from edgeferry_runtime.turns import Turns, rest_s
from edgeferry_runtime.versions import require_sound

__all__ = ["Candidate", "memory_of"]

_LOG = logging.getLogger("edgeferry")
_COMPUTING = [STAGES.index(stage) for stage in ("preprocess", "invoke", "postprocess")]
_POLL_S = 0.25
_REMEMBERED = 20  # events in the state
_OVER = ("promoted", "abandoned", "refused", "closed")


def memory_of(model: Model | None) -> float | None:
    """MiB a model's worker has in RAM, or this process for None; None where that is not known."""
    if model is None:
        return conditions.rss_mb()
    of_worker: Callable[[], float | None] | None = getattr(model.interpreter, "rss_mb", None)
    return of_worker() if of_worker is not None else None


class Candidate(Roster, Observer):
    """Tries a candidate beside what an inner roster runs.

    Args:
        config: how.
        open_candidate: opens it by its path, best in a process of its own: a crash or hang stays there.
        check: replays a bundle's goldens in a child process and gives ``check.check_in_child``'s report.
        promote: begins to change to a version by its path, ``Versions.reload``.
        roster: what runs otherwise.
        rss_mb: memory in RAM, MiB: of this process for None, of a model that has a process of its own.
        on_disagreement: told of every frame the two do not agree on, with its result, in the candidate's thread.
        clock: monotonic seconds.
    """

    name = "candidate"

    def __init__(
        self,
        config: CandidateConfig,
        open_candidate: Callable[[str], Model],
        check: Callable[[str], Mapping[str, Any]],
        promote: Callable[[str], Swap],
        roster: Roster | None = None,
        rss_mb: Callable[[Model | None], float | None] = memory_of,
        on_disagreement: Callable[[Frame, Result], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.stage = "checking"
        self.why = ""
        self._open_candidate, self._check, self._promote = open_candidate, check, promote
        self._roster = roster or Roster()
        self._rss_mb, self._on_disagreement, self._clock = rss_mb, on_disagreement, clock
        self._rules = config.rules()
        self._turns = Turns(config)
        self._paired = config.mode == "shadow"
        self._comparison = Comparison(self._paired)
        self._looks = [0, 0]
        self._decision = Decision("wait", "nothing is known yet")
        self.kept = Disagreements(config.keep, config.keep_mb)
        self._identity = ""
        self._current: Model | None = None
        self._compared_to = ("", "")  # the bundle and the variant that run
        self._opened: Model | None = None
        self._chosen: Model | None = None  # the same while frames are given to it, in ab
        self._clear_from: int | None = None  # the first frame that was not prepared for it any more
        self._none_under_way = threading.Event()
        self._failures = 0
        self._busy_s = self._began_s = 0.0
        self._swap: Swap | None = None
        self._swap_why = ""
        self._events: Deque[dict[str, Any]] = deque(maxlen=_REMEMBERED)
        self._lock = threading.RLock()  # of the stage
        self._newest: Mailbox[tuple[Frame, Result]] = Mailbox(1, drop_oldest=True)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._live, name="edgeferry-candidate", daemon=True)

    def start(self) -> Candidate:
        """Begin to check and to load it, in the background."""
        self._thread.start()
        return self

    # In the loop's threads.

    def choose(self, running: Model, frame: Frame) -> Model:
        self._current = self._roster.choose(self._current or running, frame)
        if self._chosen is not None:
            return self._chosen if self._turns.next(self._clock()) else self._current
        if self._clear_from is None and self._ending.is_set():
            self._clear_from = frame.number
        return self._current

    def replace(self, failed: Model, error: BackendError) -> Model:
        """The current version where the candidate failed, else what the inner roster has.

        Raises:
            BackendError: there is nothing else.
        """
        if failed is self._opened and self._current is not None:
            self._failed(error)
            return self._current
        self._current = self._roster.replace(failed, error)
        return self._current

    def invalid(self, model: Model, error: BackendError) -> Model | None:
        """The current version, for a frame the candidate has no answer to; else what the inner roster says."""
        if model is self._opened and self._current is not None:
            self._failed(error)
            return self._current
        return self._roster.invalid(model, error)

    def saw(self, frame: Frame, result: Result, model: Model) -> None:
        of_candidate = model is self._opened
        if self.stage == "running" and self._swap is None:
            if not of_candidate and (result.bundle, result.variant) != self._compared_to:
                self._begin_anew(result)
            if self._paired:
                self._newest.put((frame, result))
            else:
                self._comparison.add_one(of_candidate, result.answer, _computing_us(result))
        elif self._clear_from is not None and frame.number >= self._clear_from:
            self._none_under_way.set()

    def _begin_anew(self, result: Result) -> None:
        """Another version or variant runs: what was counted beside the last one says nothing of it."""
        if self._compared_to[0]:
            self._comparison = Comparison(self._paired)
            self._looks = [0, 0]
        self._compared_to = (result.bundle, result.variant)

    # Once a second.

    def tick(self) -> None:
        """Weigh what is known, and see whether a promotion has come to its end."""
        swap = self._swap
        if swap is not None and swap.over:
            if swap.stage == "swapped":
                self._end("promoted", self._swap_why)
            else:
                self._note("not promoted", swap.why)
            self._swap = None
        if self.stage != "running" or self._swap is not None:
            return
        with contextlib.suppress(Exception):  # a worker that just ended has no memory to read
            self._comparison.rss_mb = (self._rss_mb(None), self._rss_mb(self._opened))
        self._decide()

    def _decide(self) -> None:
        frames = self._comparison.frames
        due = [rule.looks(frames) if rule else 0 for rule in self._rules]
        looked, self._looks = self._looks, due
        promote, abandon = (rule if now > before else None for rule, now, before in zip(self._rules, due, looked))
        if promote is None and abandon is None:
            return
        decision = decide(promote, abandon, self._comparison.evidence())
        self._decision = decision
        try:
            if decision.what == "promote":
                self.promote("by rule: " + decision.why)
            elif decision.what == "abandon":
                self.abandon("by rule: " + decision.why)
        except EdgeferryError as error:
            self._note("not promoted", error.message)

    # From anywhere.

    def promote(self, why: str = "by hand") -> Swap:
        """Let it take over: it is opened anew as the version that runs, as a reload would.

        Raises:
            UsageError: it does not run, or is being promoted.
            EdgeferryError: as ``Versions.reload``.
        """
        with self._lock:
            self._require_running()
            swap = self._promote(self.config.bundle)
            self._swap, self._swap_why = swap, why
        self._note("promoting", why)
        return swap

    def abandon(self, why: str = "by hand") -> None:
        """Run it no more.

        Raises:
            UsageError: it does not run, or is being promoted.
        """
        with self._lock:
            self._require_running()
            self._end("abandoned", why)

    def _require_running(self) -> None:
        if self.stage in _OVER:
            raise UsageError("there is no candidate any more: it was {} ({})".format(self.stage, self.why))
        if self.stage != "running":
            raise UsageError("the candidate is still {}".format(self.stage), "Wait until it runs.")
        if self._swap is not None:
            raise UsageError("the candidate is being promoted")

    def report(self) -> dict[str, Any]:
        """The comparison and who is compared, as plain values; ``comparison.to_text`` shows it."""
        report = self._comparison.to_json()
        report["current"]["bundle"], report["candidate"]["bundle"] = self._compared_to[0], self._identity
        return report

    def state(self) -> dict[str, Any]:
        elapsed = self._clock() - self._began_s
        return {
            "mode": self.config.mode,
            "bundle": self._identity or self.config.bundle,
            "stage": "promoting" if self._swap is not None and self.stage == "running" else self.stage,
            "why": self.why,
            "share": round(self._busy_s / elapsed, 4) if self._paired and self._began_s and elapsed > 0 else None,
            "failures": self._failures,
            "rules": {name: str(rule) for name, rule in zip(("promote", "abandon"), self._rules) if rule},
            "decision": self._decision._asdict(),
            "kept": len(self.kept),
            "events": list(self._events),
            "comparison": self.report(),
        }

    def commands(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """What may be asked for: "compare", "promote" (with "wait_s"), "abandon"."""
        return {
            "compare": lambda request: self.state(),
            "promote": self._promote_command,
            "abandon": self._abandon_command,
        }

    def _promote_command(self, request: Mapping[str, Any]) -> dict[str, Any]:
        swap = self.promote()
        wait_s = request.get("wait_s", 0)
        swap.wait(min(max(0.0, wait_s), 600.0) if isinstance(wait_s, (int, float)) else 0)
        if swap.stage == "refused":
            raise EdgeferryError("the candidate was not promoted: {}".format(swap.why))
        return {"swap": swap.to_json()}

    def _abandon_command(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.abandon()
        return {"stage": self.stage, "bundle": self._identity}

    def close(self) -> None:
        """End it and close what is loaded; the inner roster is closed by who made it.  Harmless twice."""
        self._end("closed", "")
        self._none_under_way.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _end(self, stage: str, why: str) -> None:
        with self._lock:
            if self.stage in _OVER:
                return
            self.stage, self.why = stage, why
            self._chosen = None
            self._ending.set()
        self._newest.close()
        if stage != "closed":
            self._note(stage, why)

    def _note(self, what: str, why: str) -> None:
        """For whoever asks later who decided what."""
        self._events.append({"time": round(time.time(), 3), "what": what, "why": why})
        _LOG.warning("candidate %s %s: %s", self._identity or self.config.bundle, what, why)

    def _failed(self, error: EdgeferryError) -> None:
        self._failures += 1
        if self._failures == 1:
            _LOG.warning("candidate %s failed on a frame: %s", self._identity, error.message)
        if self._failures >= self.config.failures:
            self._end("abandoned", "it failed on {} frames, at last: {}".format(self._failures, error.message))

    # In its own thread.

    def _live(self) -> None:
        try:
            model = self._load()
            if model is None:
                return
            try:
                self._run(model)
            finally:
                self._opened = None
                model.close()
        except EdgeferryError as error:
            self._end("refused", error.message)
        except Exception as error:  # whatever it is, the loop goes on without a candidate
            self._end("abandoned" if self.stage == "running" else "refused", repr(error))

    def _load(self) -> Model | None:
        """The candidate, warmed up; None when it was ended meanwhile."""
        path = self.config.bundle
        with Bundle.open(path) as bundle:
            self._identity = "{}-{}".format(bundle.manifest.name, bundle.manifest.version[:12])
        require_sound(self._check(path))
        if self._ending.is_set():
            return None
        self.stage = "loading"
        model = self._open_candidate(path)
        try:
            if model.preprocessor is None:
                raise FrameError("{} takes tensors, not frames".format(self._identity))
            model.warm_up()
        except BaseException:
            model.close()
            raise
        return model

    def _run(self, model: Model) -> None:
        with self._lock:
            if self.stage in _OVER:
                return
            self._opened, self._began_s = model, self._clock()
            self._chosen = None if self._paired else model
            self.stage = "running"
        _LOG.info("candidate %s runs (%s)", self._identity, self.config.mode)
        if self._paired:
            self._shadow(model)
        else:
            self._ending.wait()
            self._none_under_way.wait()

    def _shadow(self, model: Model) -> None:
        threads = max(1, model.interpreter.threads)
        while not self._ending.is_set():
            item = self._newest.get(_POLL_S)
            if item is None:
                continue
            began = self._clock()
            try:
                self._compare(model, *item)
            except EdgeferryError as error:
                self._failed(error)
            del item  # not while it rests: a frame is large
            busy = (self._clock() - began) * threads
            self._busy_s += busy
            self._ending.wait(rest_s(busy, self.config.share))

    def _compare(self, model: Model, frame: Frame, result: Result) -> None:
        began = time.monotonic_ns()
        model.preprocess(frame.pixels, frame.color)
        if frame.color == "jpeg" and model.preprocessor is not None:
            began = model.preprocessor.decoded_ns
        model.invoke()
        answer = model.decode()
        us = (time.monotonic_ns() - began) / 1000
        similarity = self._comparison.add_pair(result.answer, _computing_us(result), answer, us)
        if similarity.agreement < 1:
            self.kept.offer(similarity.difference, frame, result, answer)
            if self._on_disagreement is not None:
                self._on_disagreement(frame, result)


def _computing_us(result: Result) -> float:
    """What a model's own work took: preprocessing without decoding a JPEG, interpreter, answer."""
    return sum(result.stages_us[i] for i in _COMPUTING)

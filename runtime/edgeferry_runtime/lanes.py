"""Several models on one source: the hub, a lane for each model, cascades and ensembles between them.

Each lane is a pipeline in a thread of its own; what fans frames out, cuts them and joins answers are sources and
observers around it.  One that fails leaves the others running.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from contextlib import ExitStack
from typing import Any, Callable, Mapping, NamedTuple, Sequence

from edgeferry_runtime.backend import available_cores
from edgeferry_runtime.cascade import Crops, Cutting
from edgeferry_runtime.ensemble import Ensemble, Joining, check_members
from edgeferry_runtime.errors import EdgeferryError
from edgeferry_runtime.hub import Hub, Tap
from edgeferry_runtime.lane import Lane, LaneOptions
from edgeferry_runtime.lanes_config import EnsembleConfig, LaneConfig
from edgeferry_runtime.pipeline import Pipeline
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks import open_sink
from edgeferry_runtime.sinks.base import Sink
from edgeferry_runtime.sources.base import Frame, FrameSource
from edgeferry_runtime.summary import Summary

__all__ = ["Lanes", "LanesSummary"]

_LOG = logging.getLogger("edgeferry")
_POLL_S = 0.1  # how soon a stop is noticed
_GRACE_S = 5.0  # for a lane to end when all others have, or when it is told to


class LanesSummary(NamedTuple):
    """What a run of several models amounted to.

    Attributes:
        lanes: by name, what ran; None where no model was ever opened.
        described: by name, what ``Lane.describe`` says.
        ensembles: by name, what ``Ensemble.state`` says.
    """

    lanes: dict[str, Summary | None]
    described: dict[str, dict[str, Any]]
    ensembles: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Plain values: ``{"lanes": {name: ...}, "ensembles": {name: ...}}``."""
        lanes = {
            name: dict(summary.to_json() if summary else {}, **self.described[name])
            for name, summary in self.lanes.items()
        }
        return {"lanes": lanes, "ensembles": self.ensembles}

    def to_text(self) -> str:
        """A table a lane, for people."""
        parts = []
        for name, summary in self.lanes.items():
            said = self.described[name]
            lines = ["{}: {}{}".format(name, said["state"], ", " + said["error"] if said["error"] else "")]
            if said["restarts"]:
                lines.append("started again {} times".format(said["restarts"]))
            if said["unfinished"]:
                lines.append("{} frames under way when it ended".format(said["unfinished"]))
            parts.append("\n".join([*lines, summary.to_text() if summary else "no frame came to it"]))
        for name, said in self.ensembles.items():
            age = said["age_us"]
            lines = [
                "{}: {} joint results by {}, frame age p50 {:.3f} ms, p90 {:.3f} ms".format(
                    name, said["frames"], said["how"], age["p50"] / 1000, age["p90"] / 1000
                )
            ]
            if said["losses"]["unmatched"]:
                lines.append("{} frames were not answered by all members".format(said["losses"]["unmatched"]))
            parts.append("\n".join(lines))
        return "\n\n".join(parts)


class Lanes:
    """Runs several models on one source; a context manager that opens all it runs, and closes it.

    Before the first frame all sinks and all models are opened (but those that are "lazy" and in no ensemble), the
    models side by side; what cannot be opened then ends the run.  Later a lane that fails ends alone.  From live
    sources it is opened anew after 1, 2, 4, ... 30 s.

    Args:
        lanes, ensembles: by name, without problems (``lanes_problems``).
        open_source: opens it; given the (width, height) in pixels that frames should cover.
        options: what opens models, and what else all lanes have in common.
        open_sink: opens a sink by its uri.
        sinks: shared by all lanes and ensembles; opened by the caller, who also closes them.

    Raises:
        What opening raises; UsageError, where models do not fit together.
    """

    def __init__(
        self,
        lanes: Mapping[str, LaneConfig],
        ensembles: Mapping[str, EnsembleConfig],
        open_source: Callable[[tuple[int, int] | None], FrameSource],
        options: LaneOptions,
        open_sink: Callable[[str], Sink] = open_sink,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self.lanes: dict[str, Lane] = {}
        self.ensembles: dict[str, Ensemble] = {}
        self._configs, self._joint = lanes, ensembles
        self._open_source, self._open_sink = open_source, open_sink
        if options.pipelined is None and available_cores() < 2 * len(lanes):
            options = options._replace(pipelined=False)  # no core is left to prepare frames beside the models
        self._options = options
        self._shared = [_Shared(sink) for sink in sinks]
        self._hubs: list[Hub] = []
        self._stopping = False
        self._owned = ExitStack()

    def __enter__(self) -> Lanes:
        with ExitStack() as stack:
            for name, config in self._configs.items():
                self.lanes[name] = Lane(name, config, self._sinks(stack, config.sinks), self._options)
            joint_sinks = {name: self._sinks(stack, joint.sinks) for name, joint in self._joint.items()}
            for lane in self.lanes.values():
                stack.callback(lane.close)
                if lane.config.after is not None:
                    self.lanes[lane.config.after].hands_boxes_on = True
            self._open_models()
            labels = {name: self._labels(name, joint) for name, joint in self._joint.items()}
            source = stack.enter_context(self._open_source(self._wanted_size()))
            self._lay(source, stack)
            for name, joint in self._joint.items():
                self._join(name, joint, Joining(name, joint.how, labels[name], joint.threshold, joint.top_k),
                           joint_sinks[name], source.live, stack)  # fmt: skip
            for lane in self.lanes.values():
                if lane.model is not None:
                    lane.prepare()
            self._owned = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._owned.close()

    @property
    def pipelines(self) -> dict[str, Pipeline]:
        """The loops there are just now, by the lane's name."""
        found = {name: lane.pipeline for name, lane in self.lanes.items()}
        return {name: pipeline for name, pipeline in found.items() if pipeline is not None}

    @property
    def failures(self) -> dict[str, Exception]:
        """What lanes failed with that do not run, by name."""
        lanes = self.lanes.items()
        return {name: lane.error for name, lane in lanes if lane.error is not None and lane.state == "failed"}

    def stop(self) -> None:
        """End after the frames that are under way; may be called from a signal handler or another thread."""
        self._stopping = True  # and no lock: the handler may interrupt who holds it

    def run(self) -> LanesSummary:
        """Run until the source ends, all lanes have done what they should, or it is told to stop.

        Raises:
            The first error, when all lanes that read the source have failed for good, or again and again.
        """
        for lane in self.lanes.values():
            lane.start()
        for hub in self._hubs:
            hub.start()
        try:
            self._watch()
        finally:
            self._end()
        roots = [lane for lane in self.lanes.values() if lane.config.after is None]
        if roots and all(lane.hopeless for lane in roots):
            error = min(roots, key=lambda lane: lane.failed_at).error
            assert error is not None  # noqa: S101 - hopeless lanes have one
            raise error
        return self.summary()

    def summary(self) -> LanesSummary:
        """What was counted so far."""
        return LanesSummary(
            {name: lane.summary() for name, lane in self.lanes.items()},
            {name: lane.describe() for name, lane in self.lanes.items()},
            {name: ensemble.state() for name, ensemble in self.ensembles.items()},
        )

    def state(self) -> dict[str, Any]:
        """How it goes just now, as plain values; may be asked from another thread."""
        pipelines = self.pipelines
        lanes = {
            name: dict(pipelines[name].state() if name in pipelines else {}, **lane.describe())
            for name, lane in self.lanes.items()
        }
        return {"lanes": lanes, "ensembles": {name: joint.state() for name, joint in self.ensembles.items()}}

    # Opening.

    def _sinks(self, stack: ExitStack, uris: Sequence[str]) -> list[Sink]:
        return [*(stack.enter_context(self._open_sink(uri)) for uri in uris), *self._shared]

    def _open_models(self) -> None:
        """All eager ones side by side: most of the time goes into reading files and setting up interpreters.

        Raises:
            The first error, in the order of the lanes; what was opened is closed with the lanes.
        """
        members = {member for joint in self._joint.values() for member in joint.of}
        wanted = [lane for lane in self.lanes.values() if lane.config.load == "eager" or lane.name in members]
        errors: dict[str, BaseException] = {}

        def open_one(lane: Lane) -> None:
            try:
                lane.open()
            except BaseException as error:
                errors[lane.name] = error

        threads = [threading.Thread(target=open_one, args=(lane,), name="edgeferry-open") for lane in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for lane in wanted:
            if lane.name in errors:
                error = errors[lane.name]
                if isinstance(error, EdgeferryError) and len(self.lanes) > 1:
                    error.message = "model {!r}: {}".format(lane.name, error.message)
                raise error

    def _labels(self, name: str, joint: EnsembleConfig) -> tuple[str, ...]:
        models = [self.lanes[member].model for member in joint.of]
        return check_members(name, [model for model in models if model is not None])

    def _wanted_size(self) -> tuple[int, int] | None:
        """What covers the inputs of all models that look at whole frames."""
        models = [lane.model for lane in self.lanes.values() if lane.config.after is None]
        sizes = [model.frame_size for model in models if model is not None and model.frame_size]
        return (max(width for width, _ in sizes), max(height for _, height in sizes)) if sizes else None

    # Laying the ways of the frames.

    def _lay(self, source: FrameSource, stack: ExitStack) -> None:
        """A tap for each lane that looks at whole frames, crops for each of the others."""
        hub = stack.enter_context(Hub(source))
        self._hubs.append(hub)
        groups = _groups(self._joint)
        crops: dict[str, Hub] = {}  # of ensembles' members, which see the same ones
        for name, lane in self.lanes.items():
            config, group = lane.config, groups.get(name)
            if config.after is None:
                lane.source = hub.tap(config.every, group, self._encoded(lane))
            elif group is None:
                lane.source = self._crops(config, source)
            else:
                if group not in crops:
                    crops[group] = stack.enter_context(Hub(self._crops(config, source), waits=True, owned=True))
                    self._hubs.append(crops[group])
                lane.source = crops[group].tap(group=group)
            if isinstance(lane.source, Tap):
                lane.on_away.append(lane.source.set_resting)

    def _encoded(self, lane: Lane) -> bool:
        """Whether a lane decodes JPEG itself: as its bundle declares, or because nobody else wants the pixels."""
        model = lane.model
        if model is None or model.bundle.manifest.preprocessing is None:
            return True
        alone = len(self.lanes) == 1
        return alone or model.bundle.manifest.preprocessing.decode != "full"

    def _crops(self, config: LaneConfig, source: FrameSource) -> Crops:
        cutting = Cutting(config.classes, config.min_score, config.margin, config.max_crops, config.every)
        crops = Crops(cutting, source.live, source)
        assert config.after is not None  # noqa: S101 - whoever asks looked
        before = self.lanes[config.after]
        before.watchers.append(crops)
        before.on_end.append(crops.finish)
        return crops

    def _join(
        self,
        name: str,
        joint: EnsembleConfig,
        joining: Joining,
        sinks: Sequence[Sink],
        live: bool,
        stack: ExitStack,
    ) -> None:
        ensemble = self.ensembles[name] = Ensemble(joining, len(joint.of), sinks, live)
        stack.callback(ensemble.finish)
        for index, member in enumerate(joint.of):
            lane = self.lanes[member]
            lane.watchers.append(ensemble.members[index])
            lane.on_away.append(functools.partial(ensemble.set_away, index))

    # While it runs.

    def _watch(self) -> None:
        roots = [lane for lane in self.lanes.values() if lane.config.after is None]
        backwards = _children_first(self.lanes)
        while not self._stopping:
            running = next((lane for lane in self.lanes.values() if not lane.ended), None)
            if running is None:
                return
            for lane in backwards:
                if lane.watch() and not lane.source.live:
                    for other in self.lanes.values():  # who waited for it did not hang
                        other.excuse()
            if roots and all(lane.hopeless for lane in roots):
                return
            running.join(_POLL_S)

    def _end(self) -> None:
        for lane in self.lanes.values():
            lane.stop()
        deadline = time.monotonic() + _GRACE_S
        for lane in self.lanes.values():
            if not lane.join(max(0.0, deadline - time.monotonic())):
                _LOG.warning("model %s does not end; it is left behind", lane.name)
                lane.source.close()
        for hub in self._hubs:
            hub.close()
        for ensemble in self.ensembles.values():
            ensemble.finish()


class _Shared(Sink):
    """One sink for several lanes, each of which writes from a thread of its own."""

    def __init__(self, sink: Sink) -> None:
        self.uri, self.wants_pixels = sink.uri, sink.wants_pixels
        self.state = sink.state  # type: ignore[method-assign]
        self._sink = sink
        self._lock = threading.Lock()

    def write(self, frame: Frame, result: Result) -> None:
        with self._lock:
            self._sink.write(frame, result)


def _groups(ensembles: Mapping[str, EnsembleConfig]) -> dict[str, str]:
    """Which lanes are given the same frames: members of one ensemble, and of those that share a member.

    Returns:
        A name of the group by the lane's name.
    """
    groups: dict[str, str] = {}
    for name, joint in ensembles.items():
        met = {groups[member] for member in joint.of if member in groups}
        groups.update(dict.fromkeys(joint.of, name))
        groups.update({member: name for member, group in groups.items() if group in met})
    return groups


def _children_first(lanes: Mapping[str, Lane]) -> list[Lane]:
    """Lanes that run what others show before those others."""

    def depth(lane: Lane) -> int:
        return 0 if lane.config.after is None else 1 + depth(lanes[lane.config.after])

    return sorted(lanes.values(), key=depth, reverse=True)

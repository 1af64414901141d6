"""Figures for Prometheus, read from the loops' own tallies when somebody asks; the loop does nothing for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterable, Iterator, Mapping

from edgeferry_runtime.conditions import rss_mb, temperature
from edgeferry_runtime.results import STAGES
from edgeferry_runtime.stats import LatencyStats

if TYPE_CHECKING:
    from edgeferry_runtime.pipeline import Pipeline
    from edgeferry_runtime.view.facade import Runner

__all__ = ["BUCKETS", "Metrics", "cumulative"]

# Upper edges: powers of two of microseconds, 64 us to 8.4 s, which are edges of LatencyStats' own buckets, so
# that no sample is counted on the wrong side of one.
BUCKETS = tuple(range(6, 24))


class Metrics:
    """What /metrics answers, from a registry of its own.

    Args:
        runner: asked each time.
        client: the package prometheus_client.
    """

    def __init__(self, runner: Runner, client: Any) -> None:
        self._runner, self._client, self._core = runner, client, client.core
        self._registry = client.CollectorRegistry()
        self._registry.register(self)

    @property
    def kind(self) -> str:
        """The content type."""
        kind: str = self._client.CONTENT_TYPE_LATEST
        return kind

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        text: bytes = self._client.generate_latest(self._registry)
        return text

    def describe(self) -> Iterable[Any]:
        """Nothing: registering does not ask for the figures."""
        return ()

    def collect(self) -> Iterator[Any]:
        """All families; called by prometheus-client."""
        lanes = dict(self._runner.lanes)
        yield from self._process()
        yield self._info(lanes)
        yield from self._counts(lanes)
        yield from self._histograms(lanes)
        yield from self._alarms(lanes)

    def _process(self) -> Iterator[Any]:
        readings = (
            ("edgeferry_ready", "Whether warm-up and golden frames are over.", float(self._runner.ready)),
            ("edgeferry_resident_memory_bytes", "Memory of this process in RAM.", _times(rss_mb(), 2**20)),
            ("edgeferry_temperature_celsius", "The hottest thermal zone.", temperature()),
        )
        for name, what, value in readings:
            if value is not None:
                yield self._core.GaugeMetricFamily(name, what, value=value)

    def _info(self, lanes: Mapping[str, Pipeline]) -> Any:
        labels = ("lane", "bundle", "variant", "backend", "delegate")
        family = self._core.GaugeMetricFamily("edgeferry_model_info", "What runs; always 1.", labels=labels)
        for lane, pipeline in lanes.items():
            model = pipeline.model
            family.add_metric((lane, model.identity, model.variant.name, model.backend_name, model.delegate), 1)
        return family

    def _counts(self, lanes: Mapping[str, Pipeline]) -> Iterator[Any]:
        make = self._core.CounterMetricFamily
        frames = make("edgeferry_frames", "Frames that came to a result.", labels=("lane",))
        lost = make("edgeferry_frames_lost", "Frames that came to no result, by why.", labels=("lane", "reason"))
        reopened = make("edgeferry_source_reopened", "Times the source was lost and found.", labels=("lane",))
        results = make(
            "edgeferry_sink_results", "Results by what became of them.", labels=("lane", "sink", "fate")
        )
        outage = self._core.GaugeMetricFamily(
            "edgeferry_source_outage", "1 while the source gives no frames.", labels=("lane",)
        )
        for lane, pipeline in lanes.items():
            state = pipeline.state()
            frames.add_metric((lane,), state["frames"])
            for reason, count in state["losses"].items():
                lost.add_metric((lane, reason), count)
            source = state.get("source", {})
            reopened.add_metric((lane,), source.get("reopened", 0))
            outage.add_metric((lane,), 1 if source.get("outage") else 0)
            for sink, counts in state.get("sinks", {}).items():
                for fate in ("written", "failed", "dropped"):
                    results.add_metric((lane, sink, fate), counts.get(fate, 0))
        return iter((frames, lost, reopened, outage, results))

    def _histograms(self, lanes: Mapping[str, Pipeline]) -> Iterator[Any]:
        make = self._core.HistogramMetricFamily
        age = make("edgeferry_frame_age_seconds", "From capture to result.", labels=("lane",))
        stages = make("edgeferry_stage_seconds", "Time in a stage of the loop.", labels=("lane", "stage"))
        for lane, pipeline in lanes.items():
            tally = pipeline.tally
            _add(age, (lane,), tally.age)
            for stage, stats in zip(STAGES, tally.stages):
                _add(stages, (lane, stage), stats)
        return iter((age, stages))

    def _alarms(self, lanes: Mapping[str, Pipeline]) -> Iterator[Any]:
        """What watches the frames says in its part of the state whether something is wrong: 1, or 0."""
        family = self._core.GaugeMetricFamily(
            "edgeferry_alarm", "1 while a part of the state holds an alarm.", labels=("lane", "part")
        )
        state = self._runner.state()
        parts = {("", name): part for name, part in state.items()}
        for lane, pipeline in lanes.items():
            parts.update({(lane, name): part for name, part in pipeline.state().items()})
        for (lane, name), part in parts.items():
            if isinstance(part, Mapping) and "alarm" in part:
                family.add_metric((lane, name), 1 if part["alarm"] else 0)
        yield family


def cumulative(stats: LatencyStats) -> list[tuple[str, int]]:
    """(upper edge in seconds, samples up to it) for each of ``BUCKETS`` and infinity."""
    edges = [repr(2**power / 1e6) for power in BUCKETS]
    below = stats.up_to(BUCKETS)
    return [*zip(edges, below), ("+Inf", max([stats.count, *below]))]


def _add(family: Any, labels: tuple[str, ...], stats: LatencyStats) -> None:
    family.add_metric(labels, cumulative(stats), sum_value=stats.total_us / 1e6)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor

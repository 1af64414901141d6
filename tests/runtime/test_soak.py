"""A hundred thousand frames: memory stays where it is."""

from __future__ import annotations

import pytest
from edgeferry_runtime import Model, Pipeline
from edgeferry_runtime.conditions import rss_mb
from edgeferry_runtime.sinks import open_sink
from edgeferry_runtime.sources import open_source

FRAMES = 100_000


@pytest.mark.slow
@pytest.mark.parametrize("pipelined", [False, True])
def test_a_hundred_thousand_frames_take_no_more_memory_than_ten_thousand(bundle, tmp_path, pipelined):
    if rss_mb() is None:
        pytest.skip("this system does not tell how much memory a process has")
    sink = open_sink(f"jsonl:{tmp_path / 'results.jsonl'}?rotate_mb=1&keep=1")
    with Model.open(bundle, threads=1) as model, open_source("synthetic:160x120") as source, sink:
        early = 0.0
        for frame, _ in Pipeline(source, model, [sink], frames=FRAMES, pipelined=pipelined):
            if frame.number == FRAMES // 10:
                early = rss_mb()
        assert frame.number == FRAMES - 1
        assert rss_mb() - early < 1

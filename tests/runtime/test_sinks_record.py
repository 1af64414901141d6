"""Recording and playing again: the same frames, the same answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from edgeferry_runtime import Pipeline
from edgeferry_runtime.errors import SinkError, UsageError
from edgeferry_runtime.sinks import open_sink
from edgeferry_runtime.sources import open_source


@pytest.mark.parametrize("color", ["bgr", "gray", "jpeg", "i420"])
def test_what_was_recorded_replays_to_the_same_answers(bundle, tmp_path, color):
    def run(source, sinks):
        with Pipeline.open(source, bundle, sinks, frames=6, threads=1) as pipeline:
            return [(frame, result) for frame, result in pipeline]

    recorded = run(f"synthetic:64x48:{color}", [f"record:{tmp_path / 'r'}"])
    replayed = run(f"replay:{tmp_path / 'r'}", [])
    assert [result.frame for _, result in replayed] == list(range(6))
    for (before, first), (after, second) in zip(recorded, replayed, strict=True):
        assert before.color == after.color
        np.testing.assert_array_equal(before.pixels, after.pixels)
        assert first.answer == second.answer
    lines = [json.loads(line) for line in (tmp_path / "r" / "results.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(6))
    assert all(line["classes"] for line in lines)


def test_every_other_frame_and_no_more_than_fit(bundle, tmp_path):
    sink = f"record:{tmp_path / 'r'}?every=2&max_mb=0.01"
    with Pipeline.open("synthetic:64x48:i420", bundle, [sink], frames=20, threads=1) as pipeline:
        counts = pipeline.run().sinks[sink]
    assert (counts["recorded"], counts["dropped"]) == (2, 8)  # 4,736 bytes each
    with open_source(f"replay:{tmp_path / 'r'}") as source:
        assert [source.read().number, source.read().number, source.read()] == [0, 2, None]


def test_what_is_refused(tmp_path):
    open_sink(f"record:{tmp_path / 'r'}").close()
    with pytest.raises(SinkError, match="holds a recording"):
        open_sink(f"record:{tmp_path / 'r'}")
    with pytest.raises(UsageError, match="did you mean 'max_mb'"):
        open_sink(f"record:{tmp_path / 'q'}?max_bm=3")
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="cannot be made"):
        open_sink(f"record:{tmp_path / 'file'}")

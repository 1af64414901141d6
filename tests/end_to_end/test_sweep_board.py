"""Latency from a board, here the local twin: bundles in a folder of their own, measured by `edgeferry bench`."""

from __future__ import annotations

import os

import pytest
from edgeferry_converter import sweep_latency as module
from edgeferry_converter.sweep_latency import BoardMeter, LocalMeter, MeasurementError, invoke_ms

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the local twin needs a POSIX shell")


@pytest.fixture
def meter(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEFERRY_DATA_DIR", str(tmp_path / "data"))
    return BoardMeter(f"local:{tmp_path / 'board'}", seconds=1)


def test_a_board_measures_one_bundle_after_another(meter, make_bundle, tmp_path):
    first, second = make_bundle("first"), make_bundle("second", 1)
    assert meter.measure(first, first).ms > 0
    found = meter.measure(second, first)
    assert found.ms > 0 and found.baseline_ms is None
    home = tmp_path / "board" / ".local" / "share"
    assert [path.name for path in home.iterdir()] == ["edgeferry-sweep"], "what else the board runs is left alone"
    assert os.readlink(home / "edgeferry-sweep" / "current").startswith("releases/second-")


def test_what_a_board_says_is_passed_on(meter, tmp_path, monkeypatch):
    with pytest.raises(MeasurementError, match=r"edgeferry push: .*none\.ferry"):
        meter.measure(tmp_path / "none.ferry", tmp_path / "none.ferry")
    with pytest.raises(MeasurementError, match="says nothing of the invoke stage"):
        invoke_ms({"bench": {"stages_us": {"invoke": {"p50": 0}}}}, "pi@board")
    monkeypatch.setattr(module, "DEADLINE", 0.01)
    with pytest.raises(MeasurementError, match="did not end within"):
        meter.measure(tmp_path / "none.ferry", tmp_path / "none.ferry")


def test_this_machine_measures_in_turns(make_bundle):
    first, second = make_bundle("first"), make_bundle("second", 1)
    alone = LocalMeter().measure(first, first)
    assert alone.ms > 0 and alone.baseline_ms is None
    both = LocalMeter().measure(second, first)
    assert 0.2 < both.ms / both.baseline_ms < 5, "the same file twice"

"""Recordings: what was written comes back, as it was and when it was."""

from __future__ import annotations

import json
import logging
import time

import numpy as np
import pytest
from edgeferry_runtime import opencv
from edgeferry_runtime.errors import SourceError, UsageError
from edgeferry_runtime.pixels import FORMATS
from edgeferry_runtime.sources import Frame, open_source
from edgeferry_runtime.sources.recording import RecordingWriter

PERIOD_NS = 20_000_000


def record(folder, count=5, color="bgr", **options):
    source = open_source(f"synthetic:32x24:{color}", encoded=True)
    frames = []
    writer = RecordingWriter(str(folder), **options)
    for i in range(count):
        frame = source.read()._replace(number=10 + 2 * i, captured_ns=7 * 10**9 + i * PERIOD_NS)
        frames.append(frame)
        writer.write(frame, {"classes": [{"label": "cat"}], "frame": -1})
    writer.close()
    writer.close()
    return frames


def read_all(uri, **options):
    with open_source(uri, **options) as source:
        return list(iter(source.read, None))


@pytest.mark.parametrize("color", FORMATS)
def test_frames_come_back_as_they_were(tmp_path, color):
    frames = record(tmp_path / "r", color=color)
    for uri in (f"replay:{tmp_path / 'r'}", f"replay:{tmp_path / 'r' / 'results.jsonl'}"):
        for ours, theirs in zip(read_all(uri, encoded=True), frames, strict=True):
            assert (ours.number, ours.color) == (theirs.number, theirs.color)
            np.testing.assert_array_equal(ours.pixels, theirs.pixels)
    lines = [json.loads(line) for line in (tmp_path / "r" / "results.jsonl").read_text().splitlines()]
    assert lines[1]["frame"] == 12
    assert lines[1]["classes"] == [{"label": "cat"}]


def test_jpegs_are_decoded_for_whoever_wants_pixels(tmp_path):
    record(tmp_path, color="jpeg")
    assert {f.color for f in read_all(f"replay:{tmp_path}")} == {"bgr"}


def test_realtime_keeps_the_time_between_frames(tmp_path):
    record(tmp_path, count=15)
    with open_source(f"replay:{tmp_path}?realtime=1") as source:
        assert source.live
        first, second = source.read(), source.read()
        assert (first.number, second.number) == (10, 12)
        assert second.captured_ns - first.captured_ns == PERIOD_NS
        time.sleep(0.1)
        third = source.read()
        assert third.number >= 12 + 2 * 5
        assert source.dropped == (third.number - 12) // 2 - 1
        rest = list(iter(source.read, None))
        assert rest[-1].number == 38
        assert third.captured_ns - first.captured_ns == (third.number - 10) // 2 * PERIOD_NS


def test_the_results_of_a_run_serve_as_well(tmp_path):
    """Lines as the jsonl sink writes them, and only some of the frames."""
    frames = record(tmp_path)
    lines = [{"frame": f.number, "time": 1700000000.0 + i * 0.5, "age_ms": 30.0} for i, f in enumerate(frames)]
    text = "\n".join(["[]", "cut off {", '{"frame": true}', '{"frame": 99}', *map(json.dumps, lines), '{"fra'])
    (tmp_path / "results.jsonl").write_text(text)
    (tmp_path / "frames" / "000012.png").unlink()
    assert [f.number for f in read_all(f"replay:{tmp_path}")] == [10, 14, 16, 18]
    with open_source(f"replay:{tmp_path}?realtime=1") as source:
        assert source._clip.time_ns(1) == pytest.approx(1e9, abs=1000)


def test_a_clock_that_jumped_back_does_not_stop_the_player(tmp_path):
    writer = RecordingWriter(str(tmp_path))
    for number, captured in enumerate([100, 200, 50, 300]):
        writer.write(Frame(np.zeros((4, 4), np.uint8), "gray", number, captured * 10**6))
    writer.close()
    with open_source(f"replay:{tmp_path}") as source:
        assert source._clip._times == [0, 10**8, 10**8, 2 * 10**8]
    assert len(read_all(f"replay:{tmp_path}")) == 4


def test_no_more_than_asked_is_written(tmp_path):
    writer = RecordingWriter(str(tmp_path), max_mb=0.002)
    written = [writer.write(Frame(np.zeros((21, 40), np.uint8), "nv12", i, i)) for i in range(5)]
    writer.close()
    assert written == [True, True, False, False, False]
    assert (writer.written, writer.refused) == (2, 3)
    assert len(read_all(f"replay:{tmp_path}")) == 2


def test_a_second_recording_does_not_mix_with_the_first(tmp_path):
    record(tmp_path)
    with pytest.raises(FileExistsError):
        RecordingWriter(str(tmp_path))


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00\x10\x00{'descr':'|u1',}\n"]
)
def test_damaged_frames_are_named_and_passed_over(tmp_path, content, caplog):
    record(tmp_path, color="nv12")
    (tmp_path / "frames" / "000012.npy").write_bytes(content)
    with caplog.at_level(logging.WARNING, "edgeferry"), open_source(f"replay:{tmp_path}") as source:
        assert [f.number for f in iter(source.read, None)] == [10, 14, 16, 18]
        assert source.skipped == 1
    assert "000012.npy: cannot be decoded" in caplog.text


def test_a_header_that_promises_too_much_allocates_nothing(tmp_path):
    record(tmp_path, count=2, color="nv12")
    path = tmp_path / "frames" / "000010.npy"
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (900000000000, 2), }\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(10))
    assert [f.number for f in read_all(f"replay:{tmp_path}")] == [12]


def test_objects_are_never_unpickled(tmp_path):
    record(tmp_path, count=2, color="rgb")
    np.save(tmp_path / "frames" / "000010.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert [f.number for f in read_all(f"replay:{tmp_path}")] == [12]


def test_nothing_but_damaged_frames_is_an_error(tmp_path):
    record(tmp_path, count=1)
    (tmp_path / "frames" / "000010.png").write_bytes(b"text")
    with pytest.raises(SourceError, match="none of its frames can be decoded"):
        read_all(f"replay:{tmp_path}")


@pytest.mark.parametrize("missing", ["frames", "results.jsonl", "all"])
def test_what_is_no_recording(tmp_path, missing):
    folder = tmp_path / "r"
    record(folder, count=1)
    if missing == "results.jsonl":
        (folder / missing).unlink()
    elif missing == "frames":
        (folder / "frames" / "000010.png").unlink()
    else:
        folder = tmp_path / "elsewhere"
    with pytest.raises(SourceError) as caught:
        open_source(f"replay:{folder}")
    assert "results.jsonl" in caught.value.remedy
    assert opencv.available()


def test_wrong_options(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'realtime'"):
        open_source(f"replay:{tmp_path}?realtme=1")

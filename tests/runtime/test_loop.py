"""The loop through the command: sources, sinks, counts, signals, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from edgeferry_runtime import opencv
from edgeferry_runtime.cli import main
from edgeferry_runtime.errors import SinkError, SourceError, UsageError
from edgeferry_runtime.sinks import open_sink
from edgeferry_runtime.sources import open_source
from edgeferry_runtime.stats import LatencyStats


@pytest.fixture
def pictures(tmp_path):
    cv2 = opencv.load("tests")
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for i, name in enumerate(["b.png", "a.jpg", "sub/c.bmp"]):
        cv2.imwrite(str(folder / name), np.full((10 + i, 20, 3), 40 * i, np.uint8))
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture
def video(tmp_path):
    cv2 = opencv.load("tests")
    path = str(tmp_path / "clip.avi")
    writer = cv2.VideoWriter(path, cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter_fourcc(*"MJPG"), 30, (64, 48))
    for i in range(12):
        writer.write(np.full((48, 64, 3), 20 * i, np.uint8))
    writer.release()
    return path


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_folder_to_standard_output(bundle, pictures, capsys):
    assert main(["run", "--bundle", str(bundle), "--source", str(pictures), "--sink", "jsonl:-"]) == 0
    captured = capsys.readouterr()
    results = lines(captured.out)
    assert [r["name"] for r in results] == ["a.jpg", "b.png", os.path.join("sub", "c.bmp")]
    assert [r["frame"] for r in results] == [0, 1, 2]
    for result in results:
        assert result["bundle"].startswith("tiny-")
        assert result["variant"] == "int8"
        assert result["backend"].startswith("ai-edge-litert")
        stages = result["stages_us"]
        assert list(stages) == ["capture", "decode", "preprocess", "wait", "invoke", "postprocess"]
        assert all(us >= 0 for us in stages.values())
        assert min(stages[name] for name in ("capture", "preprocess", "invoke", "postprocess")) > 0
        # All stages but capture add up to the frame's age.
        later = sum(us for name, us in stages.items() if name != "capture")
        assert abs(result["age_ms"] * 1000 - later) < 2
        assert result["dropped"] == 0
        assert result["time"] - result["captured"] == pytest.approx(result["age_ms"] / 1000, abs=1e-5)
        assert len(result["classes"]) == 4
    assert "3 frames in" in captured.err
    assert "frame age" in captured.err


def test_video_appends_to_a_file_and_ends_by_itself(bundle, video, tmp_path, capsys):
    target = tmp_path / "results.jsonl"
    target.write_text('{"earlier": true}\n')
    assert main(["run", "--bundle", str(bundle), "--source", video, "--sink", f"jsonl:{target}", "--json"]) == 0
    results = lines(target.read_text())
    assert results[0] == {"earlier": True}
    assert len(results) == 13
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["frames"] == 12
    assert summary["stages_us"]["invoke"]["p50"] > 0
    assert summary["age_us"]["p99"] >= summary["age_us"]["p50"]


def test_frames_limit_and_synthetic_source(bundle, capsys):
    command = ["run", "--bundle", str(bundle), "--source", "synthetic:64x48", "--sink", "jsonl:-", "--frames", "5"]
    assert main(command) == 0
    assert [r["frame"] for r in lines(capsys.readouterr().out)] == [0, 1, 2, 3, 4]


def test_two_sinks_and_annotated_frames(bundle, video, tmp_path):
    folder = tmp_path / "annotated"
    sinks = ["--sink", f"annotate:{folder}", "--sink", f"jsonl:{tmp_path / 'r.jsonl'}"]
    assert main(["run", "--bundle", str(bundle), "--source", video, "--frames", "2", *sinks]) == 0
    assert sorted(p.name for p in folder.iterdir()) == ["frame-000000.jpg", "frame-000001.jpg"]
    cv2 = opencv.load("tests")
    drawn = cv2.imread(str(folder / "frame-000001.jpg"))
    assert drawn.shape == (48, 64, 3)
    assert (np.abs(drawn.astype(int) - 20) > 60).any()  # something was drawn on the plain frame


def test_annotating_one_frame_in_five(bundle, video, tmp_path):
    sink = f"annotate:{tmp_path / 'few'}?every=5"
    assert main(["run", "--bundle", str(bundle), "--source", video, "--sink", sink]) == 0
    assert [p.name for p in sorted((tmp_path / "few").iterdir())] == [f"frame-{i:06d}.jpg" for i in (0, 5, 10)]
    for wrong in ("every=0", "evry=5", "every=x"):
        with pytest.raises(UsageError, match="is no option"):
            open_sink(f"annotate:{tmp_path / 'few'}?{wrong}")


def test_synthetic_is_the_same_every_time_and_keeps_its_rate():
    first, second = open_source("synthetic:40x30"), open_source("synthetic:40x30")
    for _ in range(3):
        a, b = first.read(), second.read()
        np.testing.assert_array_equal(a.pixels, b.pixels)
    slow = open_source("synthetic:40x30@50")
    started = time.monotonic()
    for _ in range(11):
        slow.read()
    assert time.monotonic() - started >= 0.19


def test_a_frame_belongs_to_whoever_has_it(video):
    source = open_source(video)
    first = source.read()
    kept = first.pixels.copy()
    source.read()
    np.testing.assert_array_equal(first.pixels, kept)


@pytest.mark.parametrize(
    ("uri", "kind", "words"),
    [
        ("synthtic:4x4", UsageError, "did you mean 'synthetic'"),
        ("synthetic:4", UsageError, "no synthetic source"),
        ("synthetic:0x4", UsageError, "sides may be"),
        ("no/such/file.avi", SourceError, "no such file"),
        ("/dev/video97", SourceError, "no such camera"),
        ("97", SourceError, "/dev/video97: no such camera"),
    ],
)
def test_sources_that_are_none(uri, kind, words):
    with pytest.raises(kind, match=words) as caught:
        open_source(uri)
    assert caught.value.remedy or words == "sides may be"


def test_a_camera_this_user_may_not_open_names_the_group(monkeypatch):
    from edgeferry_runtime.sources import camera

    monkeypatch.setattr(camera.os.path, "exists", lambda path: True)
    monkeypatch.setattr(camera.os, "access", lambda path, mode: False)
    with pytest.raises(SourceError) as caught:
        open_source("/dev/video0")
    assert "usermod -aG video" in caught.value.remedy


def test_files_that_are_no_video_and_no_picture(tmp_path):
    (tmp_path / "x.avi").write_text("text")
    with pytest.raises(SourceError, match="no video"):
        open_source(str(tmp_path / "x.avi"))
    (tmp_path / "x.jpg").write_text("text")
    with pytest.raises(SourceError, match="cannot be decoded"):
        open_source(str(tmp_path / "x.jpg")).read()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no picture"):
        open_source(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("uri", "kind", "words"),
    [
        ("json:-", UsageError, "did you mean 'jsonl'"),
        ("jsonl:", UsageError, "is no sink"),
        ("results.jsonl", UsageError, "is no sink"),
        ("jsonl:no/such/folder/x", SinkError, "cannot be written"),
    ],
)
def test_sinks_that_are_none(uri, kind, words):
    with pytest.raises(kind, match=words):
        open_sink(uri)


def test_errors_on_the_command_line(bundle, tmp_path, capsys):
    assert main(["run", "--bundle", str(tmp_path / "no.ferry"), "--source", "synthetic:4x4"]) == 1
    assert "edgeferry-run: error:" in capsys.readouterr().err
    assert main(["run", "--bundle", str(bundle), "--source", "synthetic:4", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["remedy"]
    with pytest.raises(SystemExit) as caught:
        main(["run", "--bundle", str(bundle), "--source", "synthetic:4x4", "--frames", "0"])
    assert caught.value.code == 2


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_loop_with_a_summary(bundle, tmp_path, number):
    target = tmp_path / "r.jsonl"
    command = [sys.executable, "-m", "edgeferry_runtime", "run", "--bundle", str(bundle)]
    process = subprocess.Popen(
        [*command, "--source", "synthetic:32x24@100", "--sink", f"jsonl:{target}"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (target.exists() and target.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    count = len(lines(target.read_text()))
    assert f"{count} frames in" in errors
    assert "Traceback" not in errors


@pytest.mark.skipif(os.name != "posix", reason="POSIX pipes")
def test_a_reader_that_goes_away_ends_it_quietly(bundle):
    command = (
        f'"{sys.executable}" -m edgeferry_runtime run --bundle "{bundle}" --source synthetic:32x24 --sink jsonl:-'
    )
    done = subprocess.run(["sh", "-c", f"{command} | head -n 2"], capture_output=True, text=True, timeout=60)
    assert len(lines(done.stdout)) == 2
    assert "Traceback" not in done.stderr


def test_info(bundle, capsys, monkeypatch):
    assert main(["info", "--bundle", str(bundle), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["name"] == "tiny"
    assert info["here"]["variant"] == "int8"
    assert info["variants"][0]["inputs"][0]["quantization"]["scales"]
    assert main(["info", "--bundle", str(bundle)]) == 0
    assert "xor 0x80" in capsys.readouterr().out


def test_info_works_without_an_interpreter(bundle, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    monkeypatch.setitem(sys.modules, "tflite_runtime", None)
    assert main(["info", "--bundle", str(bundle)]) == 0
    out = capsys.readouterr().out
    assert "cannot run: no interpreter can be used" in out
    assert main(["run", "--bundle", str(bundle), "--source", "synthetic:4x4"]) == 1


def test_percentiles_are_close_and_memory_is_constant():
    stats = LatencyStats()
    samples = np.random.default_rng(0).lognormal(6, 1, 20_000)
    for sample in samples:
        stats.add(sample)
    for percent in (50, 90, 99):
        assert stats.percentile(percent) == pytest.approx(np.percentile(samples, percent), rel=0.03)
    assert stats.to_json()["max"] == pytest.approx(samples.max(), abs=0.1)
    assert stats.to_json()["mean"] == pytest.approx(samples.mean(), rel=1e-3)
    assert LatencyStats().percentile(50) == 0
    extreme = LatencyStats()
    extreme.add(0.0)
    extreme.add(1e30)
    assert extreme.percentile(100) > 1e9

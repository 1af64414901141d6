"""The flight recorder: what it remembers, when it writes, how little it takes, and that a replay is the same."""

from __future__ import annotations

import json
import threading
import time
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from edgeferry_runtime import Model, Pipeline, opencv
from edgeferry_runtime import recorder_store as store
from edgeferry_runtime.errors import SinkError
from edgeferry_runtime.fields import Fields
from edgeferry_runtime.manifest import TensorSpec
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor
from edgeferry_runtime.recorder import Recorder, weight
from edgeferry_runtime.recorder_config import RecorderConfig
from edgeferry_runtime.recorder_store import Budget
from edgeferry_runtime.results import Result
from edgeferry_runtime.shrinker import Shrinker
from edgeferry_runtime.sources import open_source
from edgeferry_runtime.sources.base import Frame, FrameSource
from edgeferry_runtime.tasks.classify import Classification, ClassScore
from edgeferry_runtime.tasks.detect import Box, Detection
from edgeferry_runtime.tasks.embed import Embedding
from hypothesis import given, settings
from hypothesis import strategies as st

S = 10**9
SURE = Classification((ClassScore(0, "a", 0.9), ClassScore(1, "b", 0.1)))
COLORS = ("bgr", "rgb", "gray", "i420", "nv12", "jpeg")


def config(folder, **changes):
    return RecorderConfig(str(folder), **{"after_s": 0.0, "pause_s": 0.0, "fps": 1e9, **changes})


def frame_of(number, at_s, color="bgr", size=(48, 64), seed=None):
    height, width = size
    shape = {"gray": (height, width), "i420": (height * 3 // 2, width), "nv12": (height * 3 // 2, width)}
    random = np.random.default_rng(number if seed is None else seed)
    pixels = random.integers(0, 256, shape.get(color, (height, width, 3)), dtype=np.uint8)
    if color == "jpeg":
        pixels = opencv.load("tests").imencode(".jpg", pixels)[1].reshape(-1)
    return Frame(pixels, color, number, int(at_s * S))


def result_of(frame, answer=SURE):
    return Result(frame.number, "", "tiny-0", "int8", "fake", frame.captured_ns, 1.0, 2.0, (0.0,) * 6, 0, answer)


TAKES_TENSORS = SimpleNamespace(bundle=SimpleNamespace(manifest=SimpleNamespace(preprocessing=None)))


def show(recorder, *frames, answer=SURE):
    for frame in frames:
        recorder.saw(frame, result_of(frame, answer), TAKES_TENSORS)


def finished(recorder):
    """Wait for what is being written; without closing."""
    thread = recorder._thread
    if thread is not None:
        thread.join(30)
        assert not thread.is_alive()


def recordings(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def lines_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


class Given(FrameSource):
    encoded = True

    def __init__(self, frames):
        self._frames = list(frames)

    def _read(self, timeout_s):
        return self._frames.pop(0)._replace(captured_ns=time.monotonic_ns()) if self._frames else None


def tensors_and_answers(model, source):
    """Of every frame: what the interpreter got, and what came out."""
    found = []
    invoke = model.interpreter.invoke
    model.interpreter.invoke = lambda: (found.append(model.frame_input.copy()), invoke())
    try:
        results = [result for _, result in Pipeline(source, model, pipelined=False)]
    finally:
        model.interpreter.invoke = invoke
    tensors = found[-len(results) :]
    return {r.frame: (tensor.tobytes(), r.answer) for r, tensor in zip(results, tensors, strict=False)}


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("color", COLORS)
def test_a_replay_gives_the_same_results_bit_by_bit(bundle, tmp_path, color, small):
    frames = [frame_of(i, i, color) for i in range(12)]
    recorder = Recorder(config(tmp_path / "box", small=small))
    with Model.open(bundle, threads=1) as model:
        expected = tensors_and_answers(model, Given(frames))
        pipeline = Pipeline(Given(frames), model, pipelined=False, observers=[recorder])
        recorder.attach(pipeline)
        pipeline.run()
        recorder.trigger("request")
        recorder.close()
        folder = tmp_path / "box" / "000001-request"
        with open_source(f"replay:{folder}", encoded=True) as source:
            assert tensors_and_answers(model, source) == expected
    lines = lines_of(folder)
    assert [line["frame"] for line in lines] == list(range(12))
    for line in lines:
        assert line["classes"] == json.loads(json.dumps(expected[line["frame"]][1].to_json()))["classes"]
    shrunk = small and color != "jpeg"
    assert all(line.get("frame_size") == ([64, 48] if shrunk else None) for line in lines)
    if shrunk:
        picture = opencv.load("tests").imread(str(folder / "frames" / "000003.png"))
        assert picture.shape == (8, 12, 3)
    about = json.loads((folder / "about.json").read_text())
    assert (about["why"], about["frames"]) == (["request"], 12)


@settings(max_examples=150, deadline=None)
@given(
    geometry=st.sampled_from(["stretch", "letterbox", "center-crop"]),
    resize=st.sampled_from(["bilinear", "bilinear-fast", "nearest"]),
    planes=st.sampled_from(["convert-first", "resize-first"]),
    wanted=st.sampled_from(["rgb", "bgr", "gray"]),
    color=st.sampled_from(COLORS[:-1]),
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    half=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_a_smaller_frame_gives_the_same_tensor(geometry, resize, planes, wanted, color, width, height, half):
    if color in ("i420", "nv12"):
        width, height = 2 * width, 2 * height
    declared = Preprocessing(
        2 * half[0], 2 * half[1], wanted, resize, geometry, 7, 1 / 255, (0.4,), (0.2,), planes=planes
    )
    channels = 1 if wanted == "gray" else 3
    spec = TensorSpec("x", "x", (1, declared.height, declared.width, channels), "float32")
    frame = frame_of(0, 0, color, (height, width))
    small = Shrinker(declared)(frame)
    if small is None:
        return
    assert small.pixels.nbytes < frame.pixels.nbytes
    assert small.pixels.base is None
    preprocessor = Preprocessor(declared, spec)
    expected = preprocessor(frame.pixels, frame.color).copy()
    assert np.array_equal(preprocessor(small.pixels, small.color), expected)


def test_an_ordinary_camera_is_made_smaller():
    for geometry, expected in (("stretch", (224, 224)), ("letterbox", (168, 224)), ("center-crop", (224, 224))):
        small = Shrinker(Preprocessing(224, 224, geometry=geometry))(frame_of(0, 0, "bgr", (480, 640)))
        assert small.pixels.shape == (*expected, 3)


def test_only_the_last_seconds_are_kept(tmp_path):
    recorder = Recorder(config(tmp_path, seconds=2.0))
    show(recorder, *(frame_of(i, i / 10) for i in range(100)))
    state = recorder.state()
    assert (state["frames"], state["seconds"]) == (21, 2.0)
    recorder.trigger("request")
    recorder.close()
    assert [line["frame"] for line in lines_of(tmp_path / "000001-request")] == list(range(79, 100))


def test_raw_frames_are_kept_at_a_rate_and_jpeg_frames_all(tmp_path):
    for color, expected in (("bgr", 21), ("jpeg", 121)):
        recorder = Recorder(config(tmp_path / color, seconds=60, fps=5))
        show(recorder, *(frame_of(i, 5 + i / 30, color) for i in range(121)))
        assert recorder.state()["frames"] == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    ("color", "answer"),
    [
        ("bgr", SURE),
        ("jpeg", SURE),
        ("jpeg", Detection(tuple(Box(i, "thing", 0.5, 1.0, 2.0, 3.0, 4.0) for i in range(50)))),
        ("jpeg", Embedding(np.zeros(2000, np.float32))),
    ],
)
def test_memory_is_bounded(tmp_path, color, answer):
    recorder = Recorder(config(tmp_path, seconds=1000, max_mb=4))
    whole = np.random.default_rng(0).integers(0, 256, (2000, 60, 80, 3), dtype=np.uint8)  # views of 29 MB
    encoded = frame_of(0, 0, "jpeg").pixels
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(2000):
        pixels = whole[i] if color == "bgr" else encoded.copy()
        fresh = answer
        if isinstance(answer, Detection):
            fresh = Detection(tuple(replace(box, x=float(i)) for box in answer.boxes))
        elif isinstance(answer, Embedding):
            fresh = Embedding(answer.vector.copy())
        show(recorder, Frame(pixels, color, i, i * S // 30), answer=fresh)
        del pixels, fresh
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 3.5 <= recorder.state()["mb"] <= 4
    assert peak - before < 4.4e6
    if color == "bgr":
        assert after - before > 3e6  # most of it is frames


def test_weights_are_not_too_low():
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    boxes = Detection(tuple(Box(int(i), "x" * 0, 0.5 + i, i + 0.1, i + 0.2, i + 0.3, i + 0.4) for i in range(200)))
    found = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert found <= weight(boxes) <= 6 * found


@pytest.mark.parametrize("before", [30, 200])  # half of the memory, and all of it
def test_a_slow_card_neither_holds_the_loop_nor_takes_more_memory(tmp_path, monkeypatch, before):
    go, began = threading.Event(), threading.Event()
    real = store.RecordingWriter.write

    def slow(self, *arguments):
        began.set()
        assert go.wait(30)
        return real(self, *arguments)

    monkeypatch.setattr(store.RecordingWriter, "write", slow)
    recorder = Recorder(config(tmp_path, seconds=1000, max_mb=1))
    show(recorder, *(frame_of(i, i, size=(60, 80)) for i in range(before)))
    recorder.trigger("fault")
    assert began.wait(30)
    show(recorder, *(frame_of(i, i, size=(60, 80)) for i in range(200, 400)))  # would wait forever if it waited
    state = recorder.state()
    assert 0.95 < state["mb"] <= 1
    assert (state["not_kept"] > 100) == (before == 200)
    go.set()
    finished(recorder)
    show(recorder, *(frame_of(i, i, size=(60, 80)) for i in range(400, 500)))
    assert recorder.state()["frames"] > 50
    assert recorder.state()["recordings"] == 1
    recorder.close()


def test_some_seconds_after_the_trigger_are_in_it(tmp_path):
    recorder = Recorder(config(tmp_path, after_s=600.0))
    show(recorder, *(frame_of(i, i) for i in range(5)))
    assert recorder.trigger("disagreement", "cat or dog")
    assert recorder.state()["pending"]
    show(recorder, *(frame_of(i, i) for i in range(5, 8)))
    assert recorder.trigger("fault", "damaged")  # before it is written: the same recording
    assert recorder.trigger("fault", "damaged")
    recorder.close()  # does not wait for the rest of ten minutes
    assert recordings(tmp_path) == ["000001-disagreement"]
    assert len(lines_of(tmp_path / "000001-disagreement")) == 8
    about = json.loads((tmp_path / "000001-disagreement" / "about.json").read_text())
    assert about["why"] == ["disagreement: cat or dog", "fault: damaged"]
    assert not recorder.trigger("request")  # closed


def test_the_frame_of_a_trigger_is_in_it(tmp_path):
    recorder = Recorder(config(tmp_path, fps=1))
    shown = [frame_of(i, 10 + i / 10) for i in range(10)]
    show(recorder, *shown)
    for number in (0, 7):  # one that is there already, one that was not kept
        recorder.trigger("disagreement", frame=shown[number], result=result_of(shown[number]))
        finished(recorder) if number else None
    recorder.close()
    numbers = sorted(line["frame"] for name in recordings(tmp_path) for line in lines_of(tmp_path / name))
    assert 7 in numbers
    assert numbers.count(0) <= 2


def test_after_one_trigger_others_are_not_heard_but_requests(tmp_path):
    now = [0.0]
    recorder = Recorder(config(tmp_path, pause_s=60.0), lambda: now[0])
    for at, why, heard in (
        (0, "fault", True), (10, "fault", False), (20, "disagreement", False), (30, "request", True),
        (80, "fault", False), (91, "fault", True),
    ):  # fmt: skip
        now[0] = float(at)
        show(recorder, frame_of(at, at))
        assert recorder.trigger(why) == heard
        finished(recorder)
    assert recordings(tmp_path) == ["000001-fault", "000002-request", "000003-fault"]
    recorder.close()


def test_faults_are_noticed(bundle, tmp_path):
    recorder = Recorder(config(tmp_path / "box"))
    frames = [frame_of(i, i, "jpeg") for i in range(10)]
    torn = frames[5].pixels.copy()
    torn[2:60] = 0
    with Model.open(bundle, threads=1) as model:
        pipeline = Pipeline(Given(frames[:5]), model, pipelined=False, observers=[recorder])
        recorder.attach(pipeline)
        pipeline.run()
        recorder.tick()
        finished(recorder)
        assert recordings(tmp_path / "box") == []
        broken = Pipeline(
            Given([*frames[:5], frames[5]._replace(pixels=torn), *frames[6:]]), model, pipelined=False,
            observers=[recorder],
        )  # fmt: skip
        recorder.attach(broken)
        broken.run()
        recorder.tick()
        recorder.tick()  # said once
        finished(recorder)
    recorder.close()
    assert recordings(tmp_path / "box") == ["000001-fault"]
    why = json.loads((tmp_path / "box" / "000001-fault" / "about.json").read_text())["why"]
    assert len(why) == 1
    assert why[0].startswith("fault: damaged, ")


def test_on_request(tmp_path):
    recorder = Recorder(config(tmp_path, after_s=0.0))
    show(recorder, frame_of(0, 0))
    assert recorder.commands()["record"]({}) == {"folder": str(tmp_path), "ready_in_s": 0.0}
    finished(recorder)
    state = recorder.state()
    assert state["last"] == str(tmp_path / "000001-request")
    assert (state["recordings"], state["frames_written"], state["frames"]) == (1, 1, 0)
    json.dumps(state)
    recorder.close()


def test_without_a_frame_nothing_is_written(tmp_path, caplog):
    recorder = Recorder(config(tmp_path))
    recorder.trigger("request")
    recorder.close()
    recorder.close()
    assert recordings(tmp_path) == []
    assert "no frame came" in caplog.text


def written_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "budget.json")


def test_the_budget_holds_over_restarts_and_the_newest_frames_are_taken(tmp_path, caplog):
    for start in range(8):
        recorder = Recorder(config(tmp_path, write_mb_per_day=0.5, seconds=1000))
        show(recorder, *(frame_of(i, i, size=(60, 80)) for i in range(20)))  # 288 kB of noise
        recorder.trigger("request")
        recorder.close()
        assert written_bytes(tmp_path) <= 500_000
        spent = sum(json.loads((tmp_path / "budget.json").read_text())["written"].values())
        assert spent == written_bytes(tmp_path)
        if start == 1:
            numbers = [line["frame"] for line in lines_of(tmp_path / "000002-request")]
            assert numbers == list(range(20 - len(numbers), 20))
            assert 5 < len(numbers) < 20
    assert recorder.state()["over_budget"] == 20
    assert "today's budget is spent" in caplog.text


def test_days_of_the_budget(tmp_path):
    now = [0.0]  # a board without a clock begins in 1970
    path = str(tmp_path / "budget.json")

    def opened():
        return Budget(path, 1000, lambda: now[0])

    opened().spend(900)
    now[0] = 20000 * 86400.0
    assert opened().left == 1000
    opened().spend(300)
    now[0] = 0.0
    assert opened().left == 100  # the same day again
    for day in range(20001, 20040):
        now[0] = day * 86400.0
        opened().spend(10)
    assert opened().left == 990
    opened().spend(-50)
    assert opened().left == 1000
    assert len(json.loads((tmp_path / "budget.json").read_text())["written"]) == 8
    for damage in (b"", b"[]", b'{"written": 3}', b'{"written": {"20039": "x"}}', b"\xff"):
        (tmp_path / "budget.json").write_bytes(damage)
        assert opened().left == 1000
    assert [p.name for p in tmp_path.iterdir()] == ["budget.json"]


def test_the_oldest_recordings_go(tmp_path):
    (tmp_path / "000003-fault").mkdir()  # what a power cut left
    (tmp_path / "mine").mkdir()
    recorder = Recorder(config(tmp_path, keep=3))
    for i in range(5):
        show(recorder, frame_of(i, i))
        recorder.trigger("request")
        finished(recorder)
    recorder.close()
    assert recordings(tmp_path) == ["000006-request", "000007-request", "000008-request", "mine"]


def test_a_full_card_is_named_and_the_next_one_tried(tmp_path, monkeypatch, caplog):
    def full(self, *arguments):
        raise OSError(28, "No space left on device")

    recorder = Recorder(config(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(store.RecordingWriter, "write", full)
        show(recorder, frame_of(0, 0))
        recorder.trigger("fault")
        finished(recorder)
    assert "No space left on device" in caplog.text
    assert recorder.state()["failed"] == 1
    assert recorder.state()["mb"] == 0
    show(recorder, frame_of(1, 1))
    recorder.trigger("fault")
    recorder.close()
    assert recorder.state()["recordings"] == 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="cannot be made"):
        Recorder(config(tmp_path / "file" / "box"))


def read(value):
    fields = Fields(value)
    made = RecorderConfig.read(fields)
    return made, fields.finish()


def test_the_config():
    assert read({"folder": "/var/box"}) == (RecorderConfig("/var/box"), [])
    made, problems = read({"folder": "x", "seconds": 5, "small": False, "keep": 2, "write_mb_per_day": 10})
    assert (made, problems) == (RecorderConfig("x", seconds=5, small=False, keep=2, write_mb_per_day=10), [])
    assert read({})[1] == ["folder: is missing"]
    assert "keep: is 0, must be at least 1" in read({"folder": "x", "keep": 0})[1]
    assert any("folder" in problem for problem in read({"folder": "a\nb"})[1])

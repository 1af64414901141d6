"""run.json: every problem at once, no secrets, the same text for the same config; `run --config`; looped video."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from edgeferry_runtime import opencv, run_config, sinks, sources
from edgeferry_runtime.cli import _parser, main
from edgeferry_runtime.errors import SourceError, UsageError
from edgeferry_runtime.run_config import LoopConfig, ModelConfig, RunConfig, load
from edgeferry_runtime.running import choices_of, with_config
from edgeferry_runtime.sources import WAITING, open_source
from edgeferry_runtime.sources.clip import Clip, InOrder, Looped, Paced
from hypothesis import given
from hypothesis import strategies as st

WHOLE = {
    "schema_version": 1,
    "source": "/data/door.avi?loop=1",
    "sinks": ["jsonl:-", "mqtt://broker:1883/doors/a@b?username=door&password_file=/etc/edgeferry/mqtt"],
    "model": {
        "variant": "int8", "backend": "tflite-runtime", "threads": "auto", "delegate": "edgetpu:usb:0",
        "xnnpack": False, "require_delegate": 0.9, "threshold": 0.4, "top_k": 3, "any_arch": True,
    },
    "loop": {"fps": 5, "max_age_ms": 200, "motion": 0.01, "pipelined": "on", "realtime": True},
}  # fmt: skip


def parse(value):
    return RunConfig.parse(json.dumps(value).encode(), "run.json")


def refused(value):
    with pytest.raises(UsageError) as caught:
        parse(value)
    assert caught.value.remedy
    return caught.value.message


def with_source(source):
    return {"schema_version": 1, "source": source}


def with_sinks(*uris):
    return {"schema_version": 1, "source": "0", "sinks": list(uris)}


# The contract.


def test_the_whole_file():
    config = parse(WHOLE)
    assert config.sinks[0] == "jsonl:-"
    assert config.model == ModelConfig("int8", "tflite-runtime", "auto", "edgetpu:usb:0", False, 0.9, 0.4, 3, True)
    assert config.loop == LoopConfig(5.0, 200.0, 0.01, "on", True)
    assert json.loads(config.to_json()) == WHOLE


def test_the_least_file_and_what_is_null():
    least = parse({"schema_version": 1, "source": "picamera2:0"})
    assert least == RunConfig("picamera2:0")
    nulls = {"sinks": None, "model": {"threads": None, "threshold": None}, "loop": None}
    assert parse({"schema_version": 1, "source": "picamera2:0", **nulls}) == least
    assert least.to_json() == '{\n "schema_version": 1,\n "source": "picamera2:0"\n}\n'


SEVERAL = {
    "schema_version": 1,
    "source": "/dev/video0",
    "models": {
        "finder": {"every": 2, "sinks": ["jsonl:/tmp/boxes.jsonl"]},
        "plates": {"bundle": "/opt/plates", "after": "finder", "classes": ["car"], "margin": 0.1, "top_k": 1},
        "a": {"bundle": "/opt/a", "process": "worker", "load": "lazy"},
        "b": {"bundle": "/opt/b", "threads": 2},
    },
    "ensembles": {"both": {"of": ["a", "b"], "how": "vote", "sinks": ["csv:/tmp/both.csv"]}},
    "memory_mb": 200.0,
    "recorder": {"folder": "/var/lib/edgeferry/flights"},
    "drift": {"window": 100},
    "view": {"listen": "127.0.0.1:8081"},
}  # fmt: skip
TRIED = {
    "schema_version": 1,
    "source": "/dev/video0",
    "candidate": {"bundle": "/opt/next", "promote": "agreement >= 0.98 over 5000 frames and p90 <= 1.1x"},
    "governor": {"ladder": [{}, {"fps": 5.0}, {"variant": "int8", "fps": 2.0}], "max_temperature_c": 70.0},
}


@pytest.mark.parametrize("content", [SEVERAL, TRIED])
def test_files_with_several_models_and_with_two_versions(content):
    config = parse(content)
    assert json.loads(config.to_json()) == content
    assert RunConfig.parse(config.to_json().encode()) == config


def test_one_model_and_several_are_either_or():
    message = refused(dict(SEVERAL, model={"top_k": 1}, candidate={"bundle": "/opt/next"}))
    assert "run.json: model: is for one model, and `models` names several" in message
    assert "run.json: candidate: is for one model, and `models` names several" in message


def test_what_models_are_together_is_looked_at():
    content = json.loads(json.dumps(SEVERAL))
    content["models"]["finder"]["after"] = "plates"
    content["ensembles"]["both"]["of"][1] = "bb"
    content["sinks"] = ["csv:/tmp/both.csv"]
    message = refused(content)
    for words in ("models.finder.after: goes in a circle", "ensembles.both.of[1]: 'bb' is no model",
                  "ensembles.both.sinks[0]: writes where"):  # fmt: skip
        assert words in message


def test_two_sinks_on_one_file_are_refused():
    assert "sinks[1]: writes where sinks[0] writes already" in refused(
        with_sinks("csv:/tmp/a", "csv:/tmp/../tmp/a")
    )


shares = st.none() | st.floats(0, 1)
words = st.none() | st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, blacklist_categories=["Cc"]), min_size=1
)
configs = st.builds(
    RunConfig,
    st.sampled_from(["0", "/dev/video1?fps=3", "picamera2:0", "@/etc/cam", "rtsp://host/a?b=c", "C:\\x.avi"]),
    st.lists(
        st.sampled_from(["jsonl:-", "csv:a b", "webhook:https://h/x#token_file=t"]), max_size=3, unique=True
    ).map(tuple),
    st.builds(
        ModelConfig, words, st.none() | st.sampled_from(run_config.BACKENDS),
        st.none() | st.just("auto") | st.integers(1, 64), words, st.booleans(), shares, shares,
        st.none() | st.integers(1), st.booleans(),
    ),
    st.builds(
        LoopConfig, st.none() | st.floats(1e-6, 1e6), st.none() | st.floats(1e-6, 1e6), shares,
        st.sampled_from(run_config.PIPELINED),
    ),
)  # fmt: skip


@given(configs)
def test_round_trip(config):
    text = config.to_json()
    again = RunConfig.parse(text.encode())
    assert again == config
    assert again.to_json() == text


@given(st.binary(max_size=200))
def test_no_bytes_surprise_the_reader(data):
    with pytest.raises(UsageError):
        RunConfig.parse(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(list(WHOLE)), st.sampled_from([*WHOLE["model"], *WHOLE["loop"], ""]), json_values)
def test_no_value_surprises_the_reader(key, inner, value):
    part = WHOLE[key]
    changed = dict(WHOLE, **{key: dict(part, **{inner: value}) if inner and isinstance(part, dict) else value})
    try:
        config = run_config.from_table(changed)
    except UsageError as error:
        assert error.message.startswith("run.json: ")
    else:
        assert RunConfig.parse(config.to_json().encode()) == config


def test_all_problems_at_once_with_their_paths():
    message = refused(
        {
            "schema_version": 1,
            "souce": "x",
            "source": "synthetc:4x4",
            "sinks": ["jsnl:x", 5],
            "model": {"treads": 1, "threads": 0, "backend": "tflite", "threshold": 1.5, "top_k": 0, "xnnpack": 1},
            "loop": {"fps": 0, "motion": -1, "pipelined": "yes", "max_age_ms": "1"},
        }
    )
    for words in (
        "run.json: souce: is unknown, did you mean 'source'?",
        "run.json: source: is no kind of source, did you mean 'synthetic'?",
        "run.json: sinks[0]: is no sink, did you mean 'jsonl'?",
        "run.json: sinks[1]: must be a string",
        "run.json: model.treads: is unknown, did you mean 'threads'?",
        "run.json: model.threads: is 0, must be at least 1",
        "run.json: model.backend: is 'tflite', must be one of",
        "run.json: model.threshold: is 1.5, must be at most 1",
        "run.json: model.top_k: is 0, must be at least 1",
        "run.json: model.xnnpack: must be true or false",
        "run.json: loop.fps: is 0.0, must be greater than 0",
        "run.json: loop.motion: is -1.0, must be at least 0",
        "run.json: loop.pipelined: is 'yes', must be one of",
        "run.json: loop.max_age_ms: must be a number",
    ):
        assert words in message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not valid JSON"),
        (b"[]", "must be an object"),
        (b"\xff", "is not valid JSON"),
        (b'{"source": "0", "source": "1"}', "duplicate key"),
        (b'{"source": NaN}', "is not a number"),
        (b"[" * 60000, "is nested too deeply"),
        (b" " * 70000, "is longer than"),
        (b'{"schema_version": 1}', "source: is missing"),
        (b'{"source": "0"}', "schema_version: is missing"),
        (b'{"schema_version": 1, "source": ""}', "source: must be one line"),
        (b'{"schema_version": 1, "source": "a\\nb"}', "source: must be one line"),
        (b'{"schema_version": 1, "source": "\\ud800"}', "source: must be one line"),
        (b'{"schema_version": 0, "source": "0"}', "schema_version: is 0"),
        (b'{"schema_version": 1, "source": "0", "model": {"threads": "two"}}', "must be one of 'auto'"),
        (b'{"schema_version": 1, "source": "0", "model": {"threads": true}}', "model.threads: must be an integer"),
        (b'{"schema_version": 1, "source": "@f", "loop": {"realtime": true}}', "loop.realtime: is for video"),
        (b'{"schema_version": 1, "source": "0?fps=3", "loop": {"realtime": true}}', "loop.realtime: is for video"),
        (
            b'{"schema_version": 1, "source": "http://h/", "loop": {"realtime": true}}',
            "loop.realtime: is for video",
        ),
    ],
)
def test_what_is_no_config(data, words):
    with pytest.raises(UsageError) as caught:
        RunConfig.parse(data, "x.json")
    assert words in caught.value.message
    assert "x.json: " in caught.value.message
    assert "manifest" not in str(caught.value)


def test_a_newer_schema_says_what_to_install():
    with pytest.raises(UsageError) as caught:
        parse({"schema_version": 2, "models": []})
    assert "schema version 2" in caught.value.message
    assert "pip install --upgrade edgeferry-runtime" in caught.value.remedy


@pytest.mark.parametrize(
    "uri",
    [
        "rtsp://admin:hunter2@cam/stream",
        "rtsp://admin@cam/stream",
        "http://admin:hun/ter2@cam/x.mjpg",
        "http://admin:hun?ter2@cam/x.mjpg",
        "http://admin:hun#ter2@cam/x.mjpg",
        "fault:eof@50:rtsp://admin:hunter2@cam/stream",
        "rtsp://cam/user=admin_password=hunter2_channel=1",
        "http://cam/x.mjpg?user=admin&PWD=hunter2",
    ],
)
def test_no_password_in_a_source_and_none_in_the_message(uri):
    message = refused(with_source(uri))
    assert message.startswith("run.json: source: holds a user or a password")
    assert "@FILE" in message
    assert "hunter" not in message
    assert "ter2" not in message


@pytest.mark.parametrize(
    "uri",
    ["mqtt://u:hunter2@broker/t", "webhook:https://u:hunter2@host/x", "webhook:https://host/x?token=hunter2"],
)
def test_no_password_in_a_sink(uri):
    message = refused(with_sinks("jsonl:-", uri))
    assert message.startswith("run.json: sinks[1]: holds a user or a password")
    assert "password_file=" in message
    assert "hunter2" not in message


@pytest.mark.parametrize("uri", ["stdin:640x480:bgr", "stdin:mjpeg?live=1", "fault:eof@50:stdin:mjpeg"])
def test_a_service_has_no_standard_input(uri):
    assert "source: is stdin" in refused(with_source(uri))


@pytest.mark.parametrize(
    "uri", ["http://cam:8080/a@b.mjpg", "rtsp://[fe80::1]:554/a@b", "@/etc/edgeferry/camera", "clip@home.avi", "0"]
)
def test_sources_without_a_password(uri):
    assert parse(with_source(uri)).source == uri


def find_python37():
    """A Python 3.7, which boards still have."""
    names = [shutil.which("python3.7") or ""]
    for root in (os.environ.get("PYENV_ROOT", ""), str(Path.home() / ".pyenv")):
        names += [str(p) for p in sorted(Path(root, "versions").glob("3.7.*/bin/python"))] if root else []
    for name in filter(None, names):
        probe = "import sys; print('%d.%d' % sys.version_info[:2])"
        if subprocess.run([name, "-c", probe], capture_output=True, text=True).stdout.strip() == "3.7":
            return name
    return pytest.skip("no Python 3.7 on this machine")


def test_the_kinds_are_those_that_open():
    assert set(run_config.SOURCES) == set(sources._OPENERS)
    assert set(run_config.SINKS) == set(sinks._CLASSES)


def test_on_python_37():
    code = (
        "import sys; from edgeferry_runtime.run_config import RunConfig\n"
        "config = RunConfig.parse(sys.stdin.buffer.read()); sys.stdout.write(config.to_json())"
    )
    text = parse(WHOLE).to_json()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "runtime")}
    argv = [find_python37(), "-c", code]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, env=environment)
    assert done.stdout == text, done.stderr


# run --config


def arguments(*words):
    return with_config(_parser().parse_args(["run", "--bundle", "b", *words]))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(WHOLE))
    return str(path)


def test_the_file_says_what_the_command_line_does_not(file):
    given = arguments("--config", file)
    assert (given.source, given.sink) == (WHOLE["source"], WHOLE["sinks"])
    config = load(file)
    for part in (config.model, config.loop):
        for field in fields(part):
            assert getattr(given, field.name) == getattr(part, field.name), field.name
    choices = choices_of(given)
    assert (choices.xnnpack, choices.any_arch, choices.threads, choices.top_k) == (False, True, None, 3)


def test_flags_override_the_file(file):
    given = arguments(
        "--config", file, "--source", "synthetic:4x4", "--sink", "jsonl:x", "--threads", "2", "--threshold", "0",
        "--fps", "7", "--motion", "--pipelined", "auto", "--variant", "float",
    )  # fmt: skip
    assert (given.source, given.sink, given.threads, given.threshold) == ("synthetic:4x4", ["jsonl:x"], 2, 0.0)
    assert (given.fps, given.motion, given.pipelined, given.variant) == (7.0, 0.005, "auto", "float")
    assert given.top_k == 3


def test_without_a_file_all_is_as_it_was():
    given = arguments("--source", "0")
    assert (given.sink, given.pipelined, given.realtime, given.xnnpack) == ([], "auto", False, True)
    assert (given.any_arch, given.threads, given.fps, given.annotate) == (False, None, None, [])
    assert choices_of(arguments("--source", "0", "--no-xnnpack")).xnnpack is False


def test_a_source_must_come_from_somewhere(tmp_path, capsys):
    assert main(["run", "--bundle", "b"]) == 2
    assert "--source, or a file that does with --config" in capsys.readouterr().err
    assert main(["run", "--bundle", "b", "--config", str(tmp_path / "none.json")]) == 2
    assert "none.json: cannot be read" in capsys.readouterr().err


def test_a_run_by_its_file(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    content = {
        "schema_version": 1,
        "source": "synthetic:64x48",
        "sinks": ["jsonl:out.jsonl"],
        "model": {"threads": 1},
    }
    Path("run.json").write_text(json.dumps(content))
    assert main(["run", "--bundle", str(bundle), "--config", "run.json", "--frames", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["frames"] == 3
    assert len(Path("out.jsonl").read_text().splitlines()) == 3  # relative to the working directory


# A video that starts over.


def write_video(path, count=5, codec="MJPG", api="CAP_OPENCV_MJPEG"):
    cv2 = opencv.load("tests")
    writer = cv2.VideoWriter(str(path), getattr(cv2, api), cv2.VideoWriter_fourcc(*codec), 50, (64, 48))
    assert writer.isOpened()
    for i in range(count):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    return str(path)


@pytest.fixture(params=[("clip.avi", "MJPG", "CAP_OPENCV_MJPEG"), ("clip.mp4", "mp4v", "CAP_FFMPEG")])
def video(request, tmp_path):
    name, codec, api = request.param
    return write_video(tmp_path / name, 5, codec, api)


def test_a_looped_video_goes_on(video):
    with open_source(video + "?loop=1") as source:
        assert not source.live
        frames = [source.read() for _ in range(13)]
        assert [frame.number for frame in frames] == list(range(13))
        assert [round(frame.pixels.mean() / 40) for frame in frames] == [i % 5 for i in range(13)]
        assert all(a.captured_ns < b.captured_ns for a, b in pairwise(frames))
        assert (source.skipped, source.reopened, source.outage) == (0, 0, "")


def test_a_looped_video_at_its_own_rate(video):
    with open_source(video + "?realtime=1&loop=1") as source:
        assert source.live
        frames = [source.read() for _ in range(3)]
        time.sleep(0.53)  # five rounds of 0.1 s
        frames += [source.read() for _ in range(8)]
        numbers = [frame.number for frame in frames]
        assert numbers == sorted(set(numbers))
        assert numbers[-1] > 25
        assert [round(f.pixels.mean() / 40) for f in frames] == [n % 5 for n in numbers]
        assert source.dropped == numbers[-1] + 1 - len(numbers)
        gaps = {round((b.captured_ns - a.captured_ns) / (b.number - a.number) / 1e6) for a, b in pairwise(frames)}
        assert gaps <= {19, 20, 21}
        while source.read(0) is not WAITING:
            pass


def test_without_loop_it_ends(video):
    with open_source(video + "?loop=0") as source:
        assert len(list(iter(source.read, None))) == 5


class Five(Clip):
    """Five frames, the last of them damaged."""

    rate = 1000.0
    opened = 0

    def __init__(self):
        Five.opened += 1
        self._given = 0

    def load(self, index):
        self._at = max(self._at, index)
        if self._at < 4:
            self._at += 1
            self._given += 1
            return sources.Frame(np.zeros((2, 2, 3), np.uint8), "bgr", self._at - 1, 0)
        self.skipped += self._at == 4
        self._at = 5
        if not self._given:
            raise SourceError("holds no frame")
        return None


def test_a_damaged_end_is_counted_in_each_round():
    source = InOrder(Looped(Five))
    assert [source.read().number for _ in range(9)] == [0, 1, 2, 3, 5, 6, 7, 8, 10]
    assert source.skipped == 2


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_any_steps_give_rising_frames_not_before_what_was_asked_for(steps):
    clip, index, last = Looped(Five), 0, -1
    for step in steps:
        number = clip.load(index).number
        assert number >= index - 0
        assert number > last
        assert number % 5 < 4
        assert number <= index + 1
        last = number
        index = number + step


def test_a_video_that_is_gone_or_has_no_frame():
    class Empty(Five):
        def load(self, index):
            raise SourceError("holds no frame")

    with pytest.raises(SourceError):
        InOrder(Looped(Empty)).read()
    clips = [Five(), Empty()]
    source = InOrder(Looped(lambda: clips.pop(0)))
    assert [source.read().number for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(SourceError):
        source.read()


def test_paced_and_looped_wait(video):
    assert isinstance(open_source(video + "?loop=1&realtime=1"), Paced)
    with pytest.raises(UsageError, match="loop is 'yes', must be 0 or 1"):
        open_source(video + "?loop=yes")


def test_realtime_joins_the_options_of_the_source(bundle, video, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    run = ["run", "--bundle", str(bundle), "--source", video + "?loop=1", "--realtime", "--threads", "1"]
    assert main([*run, "--frames", "12", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["frames"] == 12


def test_equal_configs_are_equal_and_changed_ones_are_not():
    config = parse(WHOLE)
    assert replace(config, loop=LoopConfig()) != config

"""run.toml: the same contract in TOML, there and back; a profile's camera; the examples of the docs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from edgeferry_deploy.run_toml import compile_toml, default_config, to_toml
from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.run_config import BACKENDS, PIPELINED, LoopConfig, ModelConfig, RunConfig
from hypothesis import given
from hypothesis import strategies as st


def blocks(repository, language):
    text = (repository / "docs" / "run-json.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_example_of_the_docs(repository):
    examples = blocks(repository, "toml")
    assert len(examples) == 5
    for example in examples:
        config = compile_toml(example.encode())
        assert RunConfig.parse(config.to_json().encode()) == config
        assert compile_toml(to_toml(config).encode()) == config


def test_every_key_is_in_the_docs(repository):
    text = (repository / "docs" / "run-json.md").read_text(encoding="utf-8")
    for part, kind in (("model", ModelConfig), ("loop", LoopConfig)):
        documented = set(re.findall(rf"^\| `{part}\.(\w+)`", text, re.MULTILINE))
        assert documented == set(kind.__dataclass_fields__)


def test_from_a_file_and_from_bytes(tmp_path):
    text = 'source = "/dev/video0"\r\nsinks = ["jsonl:-"]\r\n[model]\r\nthreads = "auto"\r\n[loop]\r\nfps = 5\r\n'
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())  # as some editors write it
    expected = RunConfig("/dev/video0", ("jsonl:-",), ModelConfig(threads="auto"), LoopConfig(fps=5.0))
    assert compile_toml(path) == compile_toml(str(path)) == compile_toml(text.encode()) == expected


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "source: is missing"),
        (b"source = ", "is no TOML: Invalid value"),
        (b"source = 'a'\nsource = 'b'", "is no TOML: Cannot overwrite"),
        (b"\xff", "is no TOML"),
        (b"a = " + b"[" * 50000, "is no TOML"),
        (b"#" * 70000, "is longer than"),
        (b"schema_version = 9\nsource = '0'", "schema version 9"),
        (b"source = 2026-01-01", "source: must be a string"),
        (b"source = '0'\n[model]\nthreshold = nan", "model.threshold: must be a number"),
        (b"source = '0'\n[model]\ntreshold = 0.5", "model.treshold: is unknown, did you mean 'threshold'?"),
        (b"source = '0'\n[lop]", "lop: is unknown, did you mean 'loop'?"),
        (b"source = '0'\nmodel = 'x'", "model: must be an object"),
        (b"source = 'rtsp://u:hunter2@h/'", "source: holds a user or a password"),
    ],
)
def test_problems_name_file_and_key(tmp_path, data, words):
    path = tmp_path / "door.toml"
    path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        compile_toml(path)
    assert str(path) in caught.value.message
    assert words in caught.value.message
    assert caught.value.remedy
    assert "hunter2" not in caught.value.message


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"none\.toml: cannot be read"):
        compile_toml(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        compile_toml(tmp_path)


shares = st.none() | st.floats(0, 1)
words = st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1)
lines = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20)
configs = st.builds(
    RunConfig,
    lines.map("clip \"\\'é".__add__).map(str.strip),
    st.lists(st.sampled_from(["jsonl:-", "csv:a \"b'\\c"]), max_size=3, unique=True).map(tuple),
    st.builds(
        ModelConfig, words, st.none() | st.sampled_from(BACKENDS),
        st.none() | st.just("auto") | st.integers(1, 64), words, st.booleans(), shares, shares,
        st.none() | st.integers(1, 2**62), st.booleans(),
    ),
    st.builds(
        LoopConfig, st.none() | st.floats(1e-300, 1e299), st.none() | st.floats(1e-6, 1e6), shares,
        st.sampled_from(PIPELINED), st.booleans(),
    ),
)  # fmt: skip


@given(configs)
def test_there_and_back(config):
    text = to_toml(config)
    assert compile_toml(text.encode()) == config
    assert to_toml(compile_toml(text.encode())) == text


def test_tables_in_tables_and_lists_of_tables_are_written_as_they_are_read():
    text = """source = "/dev/video0"

[models.finder]
every = 2

[models.plates]
bundle = "/opt/plates"
after = "finder"
classes = [
    "car",
]

[governor]
ladder = [
    {  },
    { variant = "int8", fps = 5.0 },
]

[view]
"""
    assert to_toml(compile_toml(text.encode())) == text


# A profile's camera.


def with_camera(manifest, camera):
    return replace(manifest, profile={"name": "board", "values": {"camera": camera}})


@pytest.mark.parametrize(
    ("camera", "source"),
    [
        ({"source": "picamera2:0", "width": 1280, "height": 720, "fps": 30}, "picamera2:0?size=1280x720&fps=30"),
        ({"source": "camera:1", "width": 640, "height": 480, "fps": 29.97}, "/dev/video1?size=640x480&fps=29.97"),
        ({"source": "camera:0"}, "/dev/video0"),
        ({"source": "camera:0", "width": 640, "fps": 10}, "/dev/video0?fps=10"),
        ({"source": "http://cam/x.mjpg", "width": 640, "height": 480, "fps": 30}, "http://cam/x.mjpg"),
        ({"source": "picamera2:0", "sensor": "imx219"}, "picamera2:0"),
    ],
)
def test_the_camera_of_a_profile(tiny_manifest, camera, source):
    assert default_config(with_camera(tiny_manifest, camera)) == RunConfig(source)


@pytest.mark.parametrize(
    "profile", [{}, {"name": "x"}, {"values": None}, {"values": []}, {"values": {"board": {}}}]
)
def test_no_camera(tiny_manifest, profile):
    assert default_config(replace(tiny_manifest, profile=profile)) is None


def test_a_model_of_tensors_has_no_camera(tiny_manifest):
    manifest = with_camera(tiny_manifest, {"source": "camera:0"})
    assert default_config(replace(manifest, preprocessing=None)) is None


@pytest.mark.parametrize(
    ("camera", "words"),
    [
        ([], "camera: must be an object"),
        ({}, "camera.source: is missing"),
        ({"source": 5}, "camera.source: must be a string"),
        ({"source": "camera:0", "fps": "30"}, "camera.fps: must be a number"),
        ({"source": "camera:0", "width": -1}, "camera.width: is -1"),
        ({"source": "camra:0"}, "source: is no kind of source"),
        ({"source": "rtsp://u:p@h/"}, "source: holds a user or a password"),
    ],
)
def test_a_profile_that_makes_no_sense(tiny_manifest, camera, words):
    with pytest.raises(UsageError) as caught:
        default_config(with_camera(tiny_manifest, camera))
    assert words in caught.value.message
    assert "profile of bundle tiny" in caught.value.message


def test_every_profile_that_comes_with_us_has_a_camera_that_opens(repository, tiny_manifest):
    import tomllib

    for path in sorted((repository / "device_profiles").glob("*.toml")):
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        if path.stem == "reference":
            continue
        found = default_config(replace(tiny_manifest, profile={"values": values}))
        assert found is not None, path
        assert Path(path).name and found.source.startswith(("picamera2:", "/dev/video"))

"""Ribbon-cable cameras, against a fake of picamera2 with its real shapes."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from edgeferry_runtime.errors import DependencyError, SourceError, UsageError
from edgeferry_runtime.sources import WAITING, open_source
from edgeferry_runtime.sources.picamera import Settings, compact_i420, lores_size, main_size


@pytest.fixture
def fake(monkeypatch):
    path = Path(__file__).with_name("fake_picamera2.py")
    spec = importlib.util.spec_from_file_location("picamera2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "picamera2", module)
    return module


@pytest.mark.parametrize("padding", [0, 64])
def test_the_small_stream_comes_compact_and_in_the_shape_of_the_main_one(fake, padding):
    fake.world.stride_extra = padding
    with open_source("picamera2:0", want=(224, 224)) as source:
        frame = source.read()
        age_ms = (time.monotonic_ns() - frame.captured_ns) / 1e6
        assert 20 <= age_ms < 2000
    assert (frame.color, frame.pixels.shape) == ("i420", (252 * 3 // 2, 448))
    expected = fake.i420_buffer(448, 252, 448).reshape(-1, 448)
    np.testing.assert_array_equal(frame.pixels, expected)
    assert fake.world.open == fake.world.unreleased == 0
    assert fake.world.worst == 1


@pytest.mark.parametrize("padding", [0, 64])
def test_the_main_stream_is_rgb(fake, padding):
    fake.world.stride_extra = padding
    with open_source("picamera:0?stream=main&size=640x480") as source:
        frame = source.read()
    assert (frame.color, frame.pixels.shape) == ("rgb", (480, 640, 3))
    assert (frame.pixels == fake.SENSOR_RGB).all()


def test_sizes_and_rate_as_asked(fake):
    seen = []
    configure = fake.Picamera2.configure
    fake.Picamera2.configure = lambda self, config: (seen.append(config), configure(self, config))
    with open_source("picamera2:?size=640x480&fps=50") as source:
        assert source.read().pixels.shape == (720, 640)
    (config,) = seen
    assert config["main"]["size"] == (1280, 960)
    assert config["lores"]["size"] == (640, 480)
    assert config["controls"] == {"FrameDurationLimits": (20000, 20000)}
    assert (config["buffer_count"], config["queue"], config["raw"]) == (4, False, None)


@pytest.mark.parametrize(
    ("settings", "main"),
    [
        (Settings(), (1280, 720)),
        (Settings(want=(224, 224)), (1280, 720)),
        (Settings(want=(1300, 700)), (1920, 1080)),
        (Settings(want=(640, 800)), (1920, 1080)),
        (Settings(size=(224, 224)), (1344, 1344)),
        (Settings(size=(1920, 1080)), (1920, 1080)),
        (Settings(size=(640, 480), stream="main"), (640, 480)),
    ],
)
def test_the_main_stream_is_large_enough(settings, main):
    assert main_size(settings) == main


@pytest.mark.parametrize(
    ("main", "want", "size"),
    [
        ((1280, 720), (224, 224), (448, 252)),
        ((1280, 720), (96, 96), (192, 108)),
        ((1280, 960), (320, 240), (320, 240)),
        ((1280, 720), (1280, 720), (1280, 720)),
        ((1280, 720), (1000, 100), (1024, 576)),
    ],
)
def test_the_small_stream_covers_the_model(main, want, size):
    assert lores_size(main, want) == size
    assert size[1] % 2 == 0


@pytest.mark.parametrize(("width", "height", "stride"), [(448, 252, 512), (6, 10, 64), (64, 30, 64), (62, 30, 64)])
def test_padding_is_left_out(fake, width, height, stride):
    padded = fake.i420_buffer(width, height, stride).reshape(height * 3 // 2, stride)
    frame = compact_i420(padded, width, height)
    np.testing.assert_array_equal(frame, fake.i420_buffer(width, height, width).reshape(-1, width))
    assert frame.flags.c_contiguous
    assert not np.shares_memory(frame, padded)


def test_a_camera_that_stops_is_started_again_and_no_buffer_is_lost(fake):
    fake.world.fail_after = 20
    with open_source("picamera2:0", timeout_s=0.5) as source:
        deadline = time.monotonic() + 15
        while not source.outage and time.monotonic() < deadline:
            source.read(0.05)
        assert "gives no frames" in source.outage
        fake.world.fail_after = None
        while not source.reopened and time.monotonic() < deadline:
            source.read(0.05)
        assert source.reopened == 1
        while source.read().number < 60:
            pass
    assert fake.world.open == fake.world.unreleased == 0


def test_an_error_while_copying_releases_the_request(fake, monkeypatch):
    def broken(*args):
        raise MemoryError

    with open_source("picamera2:0", timeout_s=0.5) as source:
        monkeypatch.setattr("edgeferry_runtime.sources.picamera.compact_i420", broken)
        time.sleep(0.5)
        monkeypatch.undo()
        sys.modules["picamera2"] = fake
        deadline = time.monotonic() + 10
        while not source.reopened and time.monotonic() < deadline:
            source.read(0.05)
        assert source.reopened == 1
    del sys.modules["picamera2"]
    assert fake.world.open == fake.world.unreleased == 0


def test_a_camera_that_hangs_is_left_to_its_thread(fake):
    with open_source("picamera2:0", timeout_s=0.2) as source:
        source.read()
        hang = fake.world.hang = threading.Event()
        deadline = time.monotonic() + 10
        while not source.outage and time.monotonic() < deadline:
            assert source.read(0.05) is not None
        while not source.reopened and time.monotonic() < deadline:
            source.read(0.05)
        assert source.reopened == 1
        assert fake.world.open == 2
        hang.set()
        while fake.world.open > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert fake.world.open == 1
        assert source.read(5) is not WAITING
    assert fake.world.open == fake.world.unreleased == 0


@pytest.mark.parametrize(
    ("change", "uri", "words"),
    [
        ({"models": []}, "picamera2:0", "no such camera; there is none"),
        ({"models": ["imx219", "ov5647"]}, "picamera2:2", "there is 0: imx219, 1: ov5647"),
        ({"busy": True}, "picamera2:0", "cannot be opened: Camera __init__"),
    ],
)
def test_what_is_wrong_at_the_start_is_said(fake, change, uri, words):
    vars(fake.world).update(change)
    with pytest.raises(SourceError, match=words) as caught:
        open_source(uri)
    assert "rpicam-hello" in caught.value.remedy
    assert fake.world.open == 0


def test_a_configuration_the_camera_refuses(fake, monkeypatch):
    monkeypatch.setattr("edgeferry_runtime.sources.picamera.main_size", lambda settings: (320, 240))
    with pytest.raises(SourceError, match="lores stream dimensions may not exceed main stream"):
        open_source("picamera2:0?size=640x480")
    assert fake.world.open == 0


def test_without_picamera2_its_install_line_is_shown(monkeypatch):
    monkeypatch.setitem(sys.modules, "picamera2", None)
    with pytest.raises(DependencyError, match="needs picamera2") as caught:
        open_source("picamera2:0")
    assert "apt install python3-picamera2 --no-install-recommends" in caught.value.remedy
    assert "--system-site-packages" in caught.value.remedy


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("picamera2:front", "names no camera"),
        ("picamera2:0?stream=raw", "one of lores, main"),
        ("picamera2:0?size=641x480", "are even"),
        ("picamera2:0?frames=3", "is no option"),
        ("picamra2:0", "did you mean 'picamera2'"),
    ],
)
def test_wrong_uris(fake, uri, words):
    with pytest.raises(UsageError, match=words) as caught:
        open_source(uri)
    assert caught.value.remedy

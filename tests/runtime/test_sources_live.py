"""The newest frame of a device, and getting it back after every kind of fault."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import threading
import time
import tracemalloc

import numpy as np
import pytest
from edgeferry_runtime.errors import DependencyError, SourceError, UsageError
from edgeferry_runtime.sources import WAITING, Frame, open_source
from edgeferry_runtime.sources.damage import BlackWatch, damage
from edgeferry_runtime.sources.device import Device, Grab
from edgeferry_runtime.sources.fault import KINDS, Fault, FaultScript, FaultyDevice
from edgeferry_runtime.sources.live import LiveSource

TIMEOUT_S = 0.4


class Camera(Device):
    """Gray frames that hold their number, every ``period_s``; counts openings and closings."""

    opened = closed = 0

    def __init__(self, period_s=0.005, end=None):
        type(self).opened += 1
        self.period_s, self.end, self.count = period_s, end, 0

    def grab(self):
        time.sleep(self.period_s)
        if self.end is not None and self.count >= self.end:
            return None
        self.count += 1
        return Grab(np.full((6, 8), 100 + self.count % 100, np.uint8), "gray", time.monotonic_ns())

    def close(self):
        type(self).closed += 1


@pytest.fixture
def camera():
    return type("CountedCamera", (Camera,), {"opened": 0, "closed": 0})


def capture_threads():
    return [t for t in threading.enumerate() if t.name == "capture"]


def test_the_newest_frame_is_given_and_older_ones_are_counted(camera):
    with LiveSource("cam", camera) as source:
        first = source.read()
        time.sleep(0.2)
        second = source.read()
        assert source.live
        assert second.number - first.number > 5
        assert source.dropped == second.number - first.number - 1
        # Age: of the newest frame, not of one that waited.
        assert time.monotonic_ns() - second.captured_ns < 150e6
    assert camera.opened == camera.closed == 1
    assert capture_threads() == []


def test_waiting_is_said_and_then_the_frame_comes(camera):
    with LiveSource("cam", lambda: camera(period_s=0.3)) as source:
        assert source.read(0.01) is WAITING
        assert source.read().number == 0
        assert source.read(5.0).number == 1


def test_a_device_that_ends_gives_its_last_frame_first(camera):
    with LiveSource("clip", lambda: camera(end=3)) as source:
        time.sleep(0.2)
        assert source.read().number == 2
        assert source.read() is None
        assert source.read(0.1) is None


@pytest.mark.parametrize("kind", KINDS)
def test_frames_come_again_after_a_fault(camera, kind, caplog):
    script = FaultScript([Fault(5, kind, 0.5)])

    def connect():
        script.check_open()
        return FaultyDevice(camera(), script)

    with caplog.at_level(logging.WARNING, "edgeferry"), LiveSource("cam", connect, TIMEOUT_S) as source:
        deadline, last, worst, times = time.monotonic() + 20, None, 0.0, 0
        while times < 100 and time.monotonic() < deadline:
            frame = source.read(0.05)
            if frame is WAITING:
                continue
            now = time.monotonic()
            worst, last, times = max(worst, now - (last or now)), now, times + 1
        assert times == 100
        # The fault lasts half a second; then one time-out and one second are allowed.
        assert worst < 0.5 + TIMEOUT_S + 1
        lost = kind in ("stall", "torn", "eof", "exception")
        assert bool(source.reopened) == lost
        assert source.outage == ""
        words = [record.getMessage() for record in caplog.records]
        assert sum("lost" in w for w in words) == source.reopened
        assert sum("back after" in w for w in words) == source.reopened
        assert source.skipped > 0 if kind == "torn" else source.skipped == 0
    gc.collect()
    assert camera.opened - camera.closed == (1 if capture_threads() else 0)


def test_fifty_faults_leak_nothing(camera, caplog):
    caplog.set_level(logging.CRITICAL, "edgeferry")  # the log of a test is kept, and would count as a leak
    kinds = itertools.cycle(["torn", "exception", "eof", "stall", "torn"])
    faults = [Fault(10 * i, next(kinds), 0.08) for i in range(1, 51)]
    script = FaultScript(faults)

    def connect():
        script.check_open()
        return FaultyDevice(camera(0.001), script)

    def used():
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    fds = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    tracemalloc.start()
    try:
        with LiveSource("cam", connect, 0.05) as source:
            early, deadline = None, time.monotonic() + 60
            while source._count < 540 and time.monotonic() < deadline:
                source.read(0.02)
                assert len(capture_threads()) <= 2
                if early is None and source.reopened >= 5:
                    early = used()
            assert source._count >= 540
            assert source.reopened >= 20
            assert used() - early < 20_000
    finally:
        tracemalloc.stop()
    assert camera.opened > 20
    for _ in range(50):  # the last stall may still be sleeping
        if not capture_threads():
            break
        time.sleep(0.05)
    assert capture_threads() == []
    assert camera.opened == camera.closed
    if fds:
        assert len(os.listdir("/proc/self/fd")) <= fds


def test_at_most_one_hanging_thread_is_left_behind(camera):
    release = threading.Event()

    class Hanging(camera):
        def grab(self):
            release.wait(30)
            return super().grab()

    with LiveSource("cam", Hanging, 0.1) as source:
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            assert source.read(0.05) is WAITING
            assert len(capture_threads()) <= 2
        assert "no frame for" in source.outage
        assert camera.opened <= 2
        release.set()
        assert source.read(5.0).number == 0
        assert source.outage == ""
        while len(capture_threads()) > 1 and time.monotonic() < deadline + 5:
            time.sleep(0.01)
        # The one that was left behind let go of its own device, and published nothing.
        assert Hanging.opened - Hanging.closed == 1


def test_what_a_hanging_thread_brings_when_it_wakes_is_not_published(camera):
    release, made = threading.Event(), itertools.count(1)

    class Hanging(camera):
        def __init__(self):
            super().__init__()
            self.level = 50 * next(made)

        def grab(self):
            if self.level == 50:
                release.wait(30)
            return super().grab()._replace(pixels=np.full((6, 8), self.level, np.uint8))

    with LiveSource("cam", Hanging, 0.2) as source:
        assert source.read().pixels[0, 0] == 100
        release.set()
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            assert source.read().pixels[0, 0] == 100


def test_a_frame_put_in_just_before_the_end_is_not_lost(camera):
    source = LiveSource("cam", camera)
    source.close()
    frame = Frame(np.zeros((2, 2), np.uint8), "gray", 7, 0)

    class Slot:
        closed, answers = True, [None, frame, None, None]

        def get(self, timeout_s):
            return self.answers.pop(0)

    source._slot = Slot()
    assert source.read() is frame
    assert source.read() is None


def test_a_single_torn_frame_is_passed_over_and_many_open_the_device_again(camera):
    torn = set()

    class Torn(camera):
        def grab(self):
            grab = super().grab()
            return grab._replace(pixels=grab.pixels.reshape(-1)) if self.count in torn else grab

    torn.update({3, 5})
    with LiveSource("cam", Torn) as source:
        while source.read().number < 10:
            pass
        assert (source.skipped, source.reopened) == (2, 0)
        torn.update(range(30, 33))
        deadline = time.monotonic() + 10
        while not source.reopened and time.monotonic() < deadline:
            source.read()
        assert source.reopened == 1


def test_a_changed_size_is_no_fault(camera):
    script = FaultScript([Fault(3, "size", 0.2)])
    with LiveSource("cam", lambda: FaultyDevice(camera(), script)) as source:
        shapes = {source.read().pixels.shape for _ in range(60)}
        assert shapes == {(6, 8), (3, 4)}
        assert source.reopened == 0


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (SourceError("cam: no such camera", "Look."), SourceError, "no such camera"),
        (DependencyError("no picamera2"), DependencyError, "picamera2"),
        (RuntimeError("driver says no"), SourceError, "cam: cannot be read: RuntimeError"),
    ],
)
def test_a_device_that_does_not_open_at_the_start_is_an_error_at_once(error, kind, words):
    def connect():
        raise error

    started = time.monotonic()
    with pytest.raises(kind, match=words):
        LiveSource("cam", connect)
    assert time.monotonic() - started < 2
    assert capture_threads() == []


def test_what_cannot_be_opened_again_ends_with_its_error(camera):
    script = FaultScript([Fault(2, "eof", 0.0)])
    with LiveSource("pipe", lambda: FaultyDevice(camera(), script), heals=False) as source:
        with pytest.raises(SourceError, match="as the script says"):
            for _ in range(10):
                assert source.read() is not WAITING
        with pytest.raises(SourceError):
            source.read()


def test_closing_lets_a_waiting_reader_go(camera):
    source = LiveSource("cam", lambda: camera(period_s=0.5))
    threading.Timer(0.05, source.close).start()
    assert source.read() is None
    source.close()


@pytest.mark.parametrize(
    ("shape", "color", "words"),
    [
        ((4, 6, 3), "bgr", ""),
        ((4, 6), "gray", ""),
        ((6, 6), "i420", ""),
        ((7, 6), "i420", "torn"),
        ((6, 5), "nv12", "torn"),
        ((4, 6, 4), "bgr", "torn"),
        ((4, 6), "rgb", "torn"),
        ((24,), "gray", "torn"),
        ((0, 6, 3), "bgr", "empty"),
        ((24,), "jpeg", "torn JPEG"),
    ],
)
def test_damage_is_named(shape, color, words):
    found = damage(np.zeros(shape, np.uint8), color)
    assert words in found
    assert bool(found) == bool(words)


def test_other_numbers_than_bytes_are_damage():
    assert damage(np.zeros((4, 6), np.float32), "gray") == "a frame of float32"


def test_black_is_said_once_and_so_is_light():
    watch = BlackWatch(after_s=3, every_s=1)
    black, light = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 90, np.uint8)
    said = [watch.look(light if t in (2, 14) else black, "bgr", int(t * 1e9) + 1) for t in range(20)]
    assert {t: word for t, word in enumerate(said) if word} == {5: "black", 14: "light", 17: "black"}
    assert watch.look(black, "bgr", int(19.5e9)) == ""


def test_a_covered_lens_is_named_in_the_log(camera, caplog, monkeypatch):
    monkeypatch.setattr("edgeferry_runtime.sources.live.BlackWatch", lambda: BlackWatch(0.1, 0.01))
    script = FaultScript([Fault(5, "black", 0.4)])
    with caplog.at_level(logging.WARNING, "edgeferry"):
        with LiveSource("cam", lambda: FaultyDevice(camera(), script)) as source:
            while source.read().number < 150:
                pass
        words = [record.getMessage() for record in caplog.records]
    assert words == ["cam: shows nothing but black; is the lens covered?", "cam: sees again"]


def test_faults_by_uri():
    with open_source("fault:torn@5,exception@20x0.2:synthetic:64x48@200", timeout_s=TIMEOUT_S) as source:
        deadline = time.monotonic() + 20
        while not source.reopened and time.monotonic() < deadline:
            frame = source.read(0.1)
            assert frame is WAITING or frame.pixels.shape == (48, 64, 3)
        assert source.skipped == 1
        assert source.reopened == 1
        assert source.read().color == "bgr"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("fault:stal@5:synthetic:4x4", "did you mean 'stall'"),
        ("fault:stall:synthetic:4x4", "is no fault"),
        ("fault:stall@5x:synthetic:4x4", "is no fault"),
        ("fault:stall@5", "names no source"),
        ("fault:eof@5:synthetic:4", "no synthetic source"),
        ("fault:eof@5:synthtic:4x4", "did you mean 'synthetic'"),
    ],
)
def test_faults_that_are_none(uri, words):
    with pytest.raises(UsageError, match=words):
        open_source(uri)

"""A GPIO line through fakes of both gpiod packages; each has the names and signatures of the real one."""

from __future__ import annotations

import enum
import sys
import time
import types
from dataclasses import dataclass

import numpy as np
import pytest
from edgeferry_runtime.errors import DependencyError, SinkError, UsageError
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks import open_sink
from edgeferry_runtime.sources.base import Frame
from edgeferry_runtime.tasks.classify import Classification, ClassScore
from edgeferry_runtime.tasks.detect import Box, Detection

FRAME = Frame(np.zeros((2, 2, 3), np.uint8), "bgr", 0, 0)
URI = "gpio:gpiochip0/17?class=person&above=0.8"


def result(label, score, index=1):
    answer = Classification((ClassScore(5, "cat", 0.9), ClassScore(index, label, score)))
    return Result(0, "", "pets-01234567", "int8", "fake", 0, 1e9, 2500.0, (1.0,) * 6, 0, answer)


class Wire:
    """What happens on the one line of both fakes: (seconds, level) from its request on, and its release."""

    def __init__(self):
        self.levels = []
        self.active_low = False
        self.consumer = ""
        self.released = 0
        self.broken = None

    def set(self, active):
        if self.broken:
            raise self.broken
        assert not self.released
        self.levels.append((time.monotonic(), int(active) ^ int(self.active_low)))

    def release(self):
        self.released += 1

    def open(self, path):
        if self.broken:
            raise self.broken
        if path != "/dev/gpiochip0":
            raise FileNotFoundError(2, "No such file or directory")


def version_2(wire):
    """gpiod 2: bindings/python/gpiod/__init__.py, line.py, line_settings.py, line_request.py."""
    gpiod = types.ModuleType("gpiod")
    gpiod.line = types.ModuleType("gpiod.line")
    gpiod.line.Value = enum.Enum("Value", {"INACTIVE": 0, "ACTIVE": 1})
    gpiod.line.Direction = enum.Enum("Direction", {"AS_IS": 1, "INPUT": 2, "OUTPUT": 3})

    @dataclass
    class LineSettings:
        direction: object = gpiod.line.Direction.AS_IS
        active_low: bool = False
        output_value: object = gpiod.line.Value.INACTIVE

    class LineRequest:
        def set_value(self, line, value):
            assert line == 17
            wire.set(value is gpiod.line.Value.ACTIVE)

        def release(self):
            wire.release()

    def request_lines(path, config, consumer=None, event_buffer_size=None, output_values=None):
        wire.open(path)
        ((line, settings),) = config.items()
        if line > 53:
            raise ValueError("line offset of out range")
        assert settings.direction is gpiod.line.Direction.OUTPUT
        wire.active_low, wire.consumer = settings.active_low, consumer
        wire.set(settings.output_value is gpiod.line.Value.ACTIVE)
        return LineRequest()

    gpiod.LineSettings, gpiod.request_lines = LineSettings, request_lines
    return gpiod


def version_1(wire):
    """gpiod 1.6: bindings/python/gpiodmodule.c."""
    gpiod = types.ModuleType("gpiod")
    gpiod.LINE_REQ_DIR_OUT, gpiod.LINE_REQ_FLAG_ACTIVE_LOW = 3, 4

    class Line:
        def request(self, consumer, type=1, flags=0, default_vals=None):
            assert type == gpiod.LINE_REQ_DIR_OUT
            wire.active_low, wire.consumer = bool(flags & gpiod.LINE_REQ_FLAG_ACTIVE_LOW), consumer
            wire.set(default_vals[0])

        def set_value(self, value):
            wire.set(value)

        def release(self):
            wire.release()

    class Chip:
        def __init__(self, description, how=1):
            wire.open(description)

        def get_line(self, offset):
            if offset > 53:
                raise OSError(22, "Invalid argument")
            assert offset == 17
            return Line()

    gpiod.Chip = Chip
    return gpiod


@pytest.fixture(params=[version_1, version_2])
def wire(request, monkeypatch):
    wire = Wire()
    monkeypatch.setitem(sys.modules, "gpiod", request.param(wire))
    return wire


def levels(wire):
    return [level for _, level in wire.levels]


def test_the_line_follows_the_class(wire):
    with open_sink(URI) as sink:
        assert wire.consumer == "edgeferry"
        for label, score in (("person", 0.8), ("dog", 0.99), ("person", 0.81), ("person", 0.9), ("dog", 0.9)):
            sink.write(FRAME, result(label, score))
        assert levels(wire) == [0, 1, 0]
        sink.write(FRAME, result("person", 1.0))
        assert sink.state() == {"on": True}
    assert levels(wire) == [0, 1, 0, 1, 0]
    assert wire.released == 1
    assert sink.state() == {"on": False}
    sink.close()
    assert wire.released == 1


def test_active_low(wire):
    with open_sink(URI.replace("gpiochip0", "/dev/gpiochip0") + "&active_low=1") as sink:
        sink.write(FRAME, result("person", 1.0))
        assert levels(wire) == [1, 0]
    assert levels(wire) == [1, 0, 1]


def test_boxes_indices_and_other_answers(wire):
    with open_sink("gpio:gpiochip0/17?class=7&above=0.5") as sink:
        sink.write(FRAME, result("", 0.6, index=7))
        sink.write(FRAME, result("named", 0.6, index=7))
        sink.write(FRAME, result("x", 0.1)._replace(answer=Detection((Box(7, "", 0.9, 0, 0, 1, 1),))))
        sink.write(FRAME, result("x", 0.1)._replace(answer=Detection(())))
        assert levels(wire) == [0, 1, 0, 1, 0]


def test_it_is_held_and_then_cleared_without_another_result(wire):
    with open_sink(URI + "&hold_ms=300") as sink:
        sink.write(FRAME, result("person", 1.0))
        sink.write(FRAME, result("dog", 1.0))
        deadline = time.monotonic() + 30
        while len(wire.levels) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert levels(wire) == [0, 1, 0]
        assert wire.levels[2][0] - wire.levels[1][0] >= 0.3
        assert sink.state() == {"on": False}


def test_a_class_that_comes_back_while_it_is_held_keeps_it(wire):
    with open_sink(URI + "&hold_ms=100") as sink:
        for label in ("person", "dog", "person"):
            sink.write(FRAME, result(label, 1.0))
        time.sleep(0.4)
        assert sink.state() == {"on": True}
        sink.write(FRAME, result("dog", 1.0))
        assert levels(wire) == [0, 1, 0]


def test_closing_while_it_is_held(wire):
    with open_sink(URI + "&hold_ms=3600000") as sink:
        sink.write(FRAME, result("person", 1.0))
        sink.write(FRAME, result("dog", 1.0))
    assert levels(wire) == [0, 1, 0]
    assert wire.released == 1


def test_lines_that_cannot_be_had(wire):
    with pytest.raises(SinkError, match="line 17 of /dev/gpiochip9 cannot be had: No such file"):
        open_sink(URI.replace("gpiochip0", "gpiochip9"))
    with pytest.raises(SinkError, match="line 99 of /dev/gpiochip0 cannot be had"):
        open_sink(URI.replace("/17", "/99"))
    wire.broken = PermissionError(13, "Permission denied")
    with pytest.raises(SinkError, match="Permission denied") as caught:
        open_sink(URI)
    assert "usermod -aG gpio" in caught.value.remedy


def test_a_chip_that_vanishes_and_returns(wire):
    with open_sink(URI) as sink:
        wire.broken = OSError(19, "No such device")
        with pytest.raises(SinkError, match="cannot be set: No such device"):
            sink.write(FRAME, result("person", 1.0))
        wire.broken = None
        sink.write(FRAME, result("person", 1.0))
        assert levels(wire) == [0, 1]
        wire.broken = OSError(19, "No such device")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("gpio:17?class=a&above=0.5", "names no GPIO line"),
        ("gpio:gpiochip0/GPIO17?class=a&above=0.5", "names no GPIO line"),
        ("gpio:gpiochip0/-1?class=a&above=0.5", "names no GPIO line"),
        ("gpio:/17?class=a&above=0.5", "names no GPIO line"),
        ("gpio:gpiochip0/17", "'class' is missing; 'above' is missing"),
        ("gpio:gpiochip0/17?class=&above=0.5", "class must be not empty"),
        ("gpio:gpiochip0/17?class=a&above=1.5", "above must be at most 1"),
        ("gpio:gpiochip0/17?clas=a&above=0.5", "did you mean 'class'"),
    ],
)
def test_uris_that_are_wrong(uri, words):
    with pytest.raises(UsageError, match=words):
        open_sink(uri)


def test_a_label_with_a_space(wire):
    with open_sink("gpio:gpiochip0/17?class=traffic%20light&above=0.5") as sink:
        sink.write(FRAME, result("traffic light", 0.6))
        assert levels(wire) == [0, 1]


@pytest.mark.parametrize("module", [None, types.ModuleType("gpiod")])
def test_without_gpiod(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "gpiod", module)
    with pytest.raises(DependencyError, match="needs libgpiod's gpiod") as caught:
        open_sink(URI)
    assert "apt install python3-libgpiod" in caught.value.remedy

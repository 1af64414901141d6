"""A GPIO line that is on while a class is seen, through libgpiod's Python package, version 1 or 2."""

from __future__ import annotations

import contextlib
import importlib
import re
import threading
import time
from typing import Any, Callable

from edgeferry_runtime.errors import DependencyError, SinkError, UsageError
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks.base import Sink
from edgeferry_runtime.sinks.options import REQUIRED, Option, read_options
from edgeferry_runtime.sources.base import Frame

__all__ = ["GpioSink"]

_OPTIONS = {
    "class": Option(str, REQUIRED),
    "above": Option(float, REQUIRED, 0, 1),
    "hold_ms": Option(int, 0, 0, 3600000),
    "active_low": Option(bool, False),
}
_CONSUMER = "edgeferry"  # what gpioinfo shows


class GpioSink(Sink):
    """Sets a line when a result has the class with a score greater than ``above``, clears it when one has not.

    A line that was set stays so for at least ``hold_ms`` from the last result that had the class.  It keeps its
    level while no result comes, and is cleared at close.

    Args:
        uri: "gpio:gpiochip0/17?class=person&above=0.8&hold_ms=500&active_low=1"; the class by its label, or by
            its index where it has none.

    Raises:
        UsageError: the line or an option is wrong.
        SinkError: the line cannot be had.
        DependencyError: gpiod is absent.
    """

    def __init__(self, uri: str) -> None:
        sink, _, text = uri.partition("?")
        chip, _, line = sink.partition(":")[2].rpartition("/")
        if not chip or not re.match(r"[0-9]{1,5}\Z", line):
            raise UsageError(
                "{!r} names no GPIO line".format(sink), "Write gpio:gpiochip0/17, the chip and the line's number."
            )
        options = read_options(text, _OPTIONS, sink)
        self._class, self._above = options["class"], options["above"]
        self._hold_s = options["hold_ms"] / 1000
        self._until = 0.0
        self._seen = self._on = False
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._line: _Line | None = _request(
            chip if "/" in chip else "/dev/" + chip, int(line), options["active_low"]
        )

    def write(self, frame: Frame, result: Result) -> None:
        seen = self._sees(result)
        with self._lock:
            self._seen = seen
            if seen:
                self._until = time.monotonic() + self._hold_s
                self._set(True)
            else:
                self._clear_when_due()

    def state(self) -> dict[str, Any]:
        return {"on": self._on}

    def close(self) -> None:
        with self._lock:
            line, self._line = self._line, None
            if self._timer is not None:
                self._timer.cancel()
        if line is not None:
            self._on = False
            with contextlib.suppress(OSError):  # the chip is gone, and its line with it
                line.set(False)
                line.release()

    def _sees(self, result: Result) -> bool:
        answer = result.answer.to_json()
        return any(
            entry["score"] > self._above and (entry["label"] or str(entry["index"])) == self._class
            for entry in answer.get("classes") or answer.get("boxes") or ()
        )

    def _set(self, on: bool) -> None:
        if self._line is None or on == self._on:
            return
        try:
            self._line.set(on)
        except OSError as error:
            raise SinkError("the GPIO line cannot be set: {}".format(error.strerror or error)) from None
        self._on = on

    def _clear_when_due(self) -> None:
        """Clear the line now, or when it was held long enough."""
        left = self._until - time.monotonic()
        if left <= 0:
            self._set(False)
        elif self._on and self._timer is None:
            self._timer = threading.Timer(left, self._expire)
            self._timer.daemon = True
            self._timer.start()

    def _expire(self) -> None:
        with self._lock:
            self._timer = None
            if not self._seen:
                with contextlib.suppress(SinkError):  # the next result meets it again
                    self._clear_when_due()


class _Line:
    """A line that was requested as an output and is clear; the same for both versions of gpiod.

    Source: libgpiod 2, bindings/python/gpiod; libgpiod 1.6, bindings/python/gpiodmodule.c.
    """

    def __init__(self, gpiod: Any, chip: str, line: int, active_low: bool) -> None:
        if hasattr(gpiod, "request_lines"):
            value = gpiod.line.Value
            settings = gpiod.LineSettings(
                direction=gpiod.line.Direction.OUTPUT, active_low=active_low, output_value=value.INACTIVE
            )
            request = gpiod.request_lines(chip, consumer=_CONSUMER, config={line: settings})
            self.set: Callable[[bool], Any] = lambda on: request.set_value(
                line, value.ACTIVE if on else value.INACTIVE
            )
            self.release: Callable[[], Any] = request.release
            return
        self._chip = gpiod.Chip(chip)  # closed when it is collected, so it is kept as long as its line
        one = self._chip.get_line(line)
        flags = gpiod.LINE_REQ_FLAG_ACTIVE_LOW if active_low else 0
        # default_vals: versions before 1.5 know no default_val.
        one.request(consumer=_CONSUMER, type=gpiod.LINE_REQ_DIR_OUT, flags=flags, default_vals=[0])
        self.set = lambda on: one.set_value(int(on))
        self.release = one.release


def _request(chip: str, line: int, active_low: bool) -> _Line:
    try:
        gpiod = importlib.import_module("gpiod")
        if not hasattr(gpiod, "request_lines") and not hasattr(gpiod, "LINE_REQ_DIR_OUT"):
            raise ImportError("another package of that name")
    except ImportError as error:
        raise DependencyError(
            "the GPIO sink needs libgpiod's gpiod, which cannot be used: {}".format(error),
            "Install it: apt install python3-libgpiod, or pip install 'gpiod>=2'",
        ) from None
    try:
        return _Line(gpiod, chip, line, active_low)
    except (OSError, ValueError) as error:  # ValueError: the chip has no such line
        remedy = "gpioinfo lists chips and lines, and who holds them."
        if isinstance(error, PermissionError):
            remedy = "Add the user to the group that owns it, on Raspberry Pi OS: sudo usermod -aG gpio USER"
        raise SinkError(
            "line {} of {} cannot be had: {}".format(line, chip, getattr(error, "strerror", None) or error), remedy
        ) from None

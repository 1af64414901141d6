"""A source that fails as it is told, for tests and for trying out how recovery looks.

    fault:stall@100x3,torn@50:synthetic:640x480@30

Faults are KIND@FRAME or KIND@FRAMExSECONDS, in any order; frames count from 0 through all reopenings.

stall       the device hangs
torn        the frame is cut off, and all that follow within the time
size        the frame comes in half its size, and all that follow within the time
eof         the device says that there are no more frames, and cannot be opened for the time
exception   the driver raises something, and the device cannot be opened for the time
black       the frame is black, and all that follow within the time
"""

from __future__ import annotations

import re
import time
from typing import Callable, NamedTuple, Sequence

import numpy as np

from edgeferry_runtime.errors import SourceError, UsageError
from edgeferry_runtime.fields import did_you_mean
from edgeferry_runtime.sources.base import FrameSource, Request
from edgeferry_runtime.sources.device import Device, Grab
from edgeferry_runtime.sources.live import LiveSource
from edgeferry_runtime.sources.options import redacted

__all__ = ["KINDS", "Fault", "FaultScript", "FaultyDevice", "SourceDevice", "open_fault"]

KINDS = ("stall", "torn", "size", "eof", "exception", "black")
_FAULT = re.compile(r"([a-z]+)@(\d{1,9})(?:x(\d{1,5}(?:\.\d{1,3})?))?\Z")


class Fault(NamedTuple):
    """One thing that goes wrong.

    Attributes:
        at_frame: which frame it befalls.
        kind: one of ``KINDS``.
        seconds: how long it lasts; 0 is one frame.
    """

    at_frame: int
    kind: str
    seconds: float = 0.0


class FaultScript:
    """What goes wrong when; shared by all openings of one device, so that each fault happens once."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._waiting = sorted(faults)
        self._frame = 0
        self._gone_until = 0.0
        self._marred_until = 0.0
        self._marring = ""

    def check_open(self) -> None:
        """Fail while the device is gone.

        Raises:
            SourceError: it is.
        """
        if time.monotonic() < self._gone_until:
            raise SourceError("the device is gone, as the script says")

    def befall(self, take: Callable[[], Grab | None]) -> Grab | None:
        """Let the next frame's fault happen to it."""
        frame, self._frame = self._frame, self._frame + 1
        if self._waiting and self._waiting[0].at_frame <= frame:
            fault = self._waiting.pop(0)
            until = time.monotonic() + fault.seconds
            if fault.kind == "stall":
                time.sleep(fault.seconds)
            elif fault.kind in ("eof", "exception"):
                self._gone_until = until
                raise SourceError("the end, as the script says") if fault.kind == "eof" else RuntimeError("driver")
            else:
                self._marring, self._marred_until = fault.kind, until
        grab = take()
        if grab is None or not self._marring:
            return grab
        marred = _MARS[self._marring](grab)
        if time.monotonic() >= self._marred_until:
            self._marring = ""
        return marred


def _torn(grab: Grab) -> Grab:
    return grab._replace(pixels=grab.pixels.reshape(-1)[: grab.pixels.size // 2])


def _smaller(grab: Grab) -> Grab:
    if grab.color not in ("bgr", "rgb", "gray"):
        raise SourceError("frames of {} cannot be made smaller".format(grab.color), "Take bgr, rgb or gray.")
    return grab._replace(pixels=np.ascontiguousarray(grab.pixels[::2, ::2]))


def _blackened(grab: Grab) -> Grab:
    if grab.color == "jpeg":
        raise SourceError("frames of jpeg cannot be made black", "Take another format.")
    black = np.zeros_like(grab.pixels)
    if grab.color in ("i420", "nv12"):
        black[black.shape[0] * 2 // 3 :] = 128
    return grab._replace(pixels=black)


_MARS: dict[str, Callable[[Grab], Grab]] = {"torn": _torn, "size": _smaller, "black": _blackened}


class FaultyDevice(Device):
    """A device whose frames befalls what the script says."""

    def __init__(self, device: Device, script: FaultScript) -> None:
        self._device = device
        self._script = script

    def grab(self) -> Grab | None:
        return self._script.befall(self._device.grab)

    def close(self) -> None:
        self._device.close()


class SourceDevice(Device):
    """Any source as a device, for faults to befall it."""

    def __init__(self, source: FrameSource) -> None:
        self._source = source
        source.encoded = True  # whoever reads the faulty source decides

    def grab(self) -> Grab | None:
        frame = self._source.read()
        return None if frame is None else Grab(frame.pixels, frame.color, frame.captured_ns)

    def close(self) -> None:
        self._source.close()


def open_fault(uri: str, request: Request) -> FrameSource:
    """A live source that fails as its uri says; see the top of this file.

    Raises:
        UsageError: the uri is malformed.
        SourceError, DependencyError: the source inside cannot be opened.
    """
    from edgeferry_runtime import sources

    _, _, tail = uri.partition(":")
    spec, _, inner = tail.partition(":")
    faults = [_parse(text) for text in spec.split(",")]
    if not inner:
        raise UsageError(
            "{!r}: names no source to befall".format(redacted(uri)), "Write fault:eof@50:synthetic:640x480@30."
        )
    script = FaultScript(faults)

    def connect() -> Device:
        script.check_open()
        return FaultyDevice(
            SourceDevice(sources.open_source(inner, request.want, True, request.timeout_s)), script
        )

    return LiveSource(redacted(uri), connect, request.timeout_s)


def _parse(text: str) -> Fault:
    match = _FAULT.match(text)
    if not match or match.group(1) not in KINDS:
        kind = text.partition("@")[0]
        raise UsageError(
            "{!r} is no fault{}".format(text, "" if kind in KINDS else did_you_mean(kind, KINDS)),
            "Write KIND@FRAME or KIND@FRAMExSECONDS; kinds are {}.".format(", ".join(KINDS)),
        )
    return Fault(int(match.group(2)), match.group(1), float(match.group(3) or 0))

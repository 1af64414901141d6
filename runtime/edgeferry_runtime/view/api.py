"""What machines ask: health, figures, state, history, results; a picture in, a command."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import TYPE_CHECKING, Any, Callable, Mapping

from edgeferry_runtime.errors import EdgeferryError, FrameError, UsageError
from edgeferry_runtime.fields import did_you_mean
from edgeferry_runtime.strict_json import parse_json
from edgeferry_runtime.view.access import Gate
from edgeferry_runtime.view.http import Refused, Request, Response, as_json, in_thread, refused_by
from edgeferry_runtime.view.metrics import Metrics
from edgeferry_runtime.view.predict import MAX_BYTES, BusyError, Predictor
from edgeferry_runtime.view.watching import COLUMNS, LaneView

if TYPE_CHECKING:
    from edgeferry_runtime.view.facade import Runner

__all__ = ["Api", "health", "known_lane"]

_LOG = logging.getLogger("edgeferry")
STILL_S = 10.0  # a loop that did not move for longer is not well
COMMAND_BYTES = 64 << 10
_STATE_S = 0.5  # a state so old is told to all who ask
_CALL_S = 60.0  # what is asked of the process has to answer within


class Api:
    """Answers with JSON, each method a route.

    Args:
        gate: who may do what.
        runner: what runs.
        lanes: what is known of each lane.
        predictor: by lane, for those that take pictures.
    """

    def __init__(
        self,
        gate: Gate,
        runner: Runner,
        lanes: Callable[[], Mapping[str, LaneView]],
        metrics: Metrics,
        predictor: Callable[[str], Predictor | None],
    ) -> None:
        self._gate, self._runner, self._lanes = gate, runner, lanes
        self._metrics, self._predictor = metrics, predictor
        self._state: tuple[float, dict[str, Any]] = (-_STATE_S, {})

    async def health(self, request: Request, _: str) -> Response:
        state = await self._told()
        lanes = {name: lane.still_s() for name, lane in self._lanes().items()}
        ok, what = health(self._runner.ready, state.get("still_s"), lanes)
        return as_json({"ok": ok, **what}, 200 if ok else 503)

    async def readiness(self, request: Request, _: str) -> Response:
        ready = bool(self._runner.ready)
        why = "ready" if ready else "the model is being loaded, warmed up and checked"
        return as_json({"ok": ready, "reason": why}, 200 if ready else 503)

    async def figures(self, request: Request, _: str) -> Response:
        return Response(200, await in_thread(self._metrics.text), self._metrics.kind)

    async def whole_state(self, request: Request, _: str) -> Response:
        views = self._lanes()
        lanes = {
            name: dict(
                pipeline.state(),
                still_s=round(views[name].still_s(), 1) if name in views else None,
                versions=views[name].versions() if name in views else [],
            )
            for name, pipeline in dict(self._runner.lanes).items()
        }
        view = {
            "time": round(time.time(), 3),
            "ready": bool(self._runner.ready),
            "lanes": lanes,
            "token": self._gate.has_token,
            "writable": self._gate.knows(request),
            "commands": sorted(self._runner.commands),
        }
        return as_json(dict(await self._told(), view=view))

    async def history(self, request: Request, _: str) -> Response:
        since = _number(request.query.get("since", "0"))
        rows = {name: lane.history(since) for name, lane in self._wanted(request).items()}
        return as_json({"columns": COLUMNS, "lanes": rows})

    async def results(self, request: Request, _: str) -> Response:
        return as_json({"lanes": {name: lane.recent() for name, lane in self._wanted(request).items()}})

    async def predict(self, request: Request, _: str) -> Response:
        name = request.query.get("model")
        lane = next(iter(self._lanes()), "") if name is None else name
        predictor = self._predictor(lane)
        if lane not in self._runner.lanes or predictor is None:
            known = sorted(name for name in self._runner.lanes if self._predictor(name) is not None)
            raise Refused(
                404,
                "no model {!r} takes pictures here{}".format(lane[:64], did_you_mean(lane[:64], known)),
                "Those that do: {}.".format(", ".join(repr(name) for name in known) or "none (view.predict)"),
            )
        data = await request.body(MAX_BYTES)
        if not data:
            raise Refused(400, "there is no picture", "Send the bytes of a JPEG or PNG file as the body.")
        return await self._predicted(predictor, data)

    async def _predicted(self, predictor: Predictor, data: bytes) -> Response:
        try:
            predictor.enter()
            return as_json(await _in_time(lambda: predictor.predict(data)))
        except BusyError:
            wait = (("retry-after", "1"),)
            raise Refused(429, "pictures come faster than the model runs", "Send it again later.", wait) from None
        except FrameError as error:
            raise refused_by(error, 400) from None
        except EdgeferryError as error:
            _LOG.warning("a picture that was sent in came to no result: %s", error.message)
            raise refused_by(error, 500) from None

    async def command(self, request: Request, name: str) -> Response:
        command = self._runner.commands.get(name)
        if command is None:
            known = sorted(self._runner.commands)
            raise Refused(
                404,
                "there is no command {!r}{}".format(name[:64], did_you_mean(name[:64], known)),
                "There are: {}.".format(", ".join(known) or "none"),
            )
        arguments = _arguments(await request.body(COMMAND_BYTES))
        _LOG.info("the live page asks: %s", name)
        try:
            answer = await _in_time(lambda: command(arguments))
        except UsageError as error:
            raise refused_by(error, 400) from None
        except EdgeferryError as error:
            raise refused_by(error, 409) from None
        return as_json(dict({"ok": True}, **answer))

    async def _told(self) -> dict[str, Any]:
        """The runner's state, asked for at most so often however many look."""
        at, state = self._state
        if time.monotonic() - at >= _STATE_S:
            state = dict(await in_thread(self._runner.state))
            self._state = time.monotonic(), state
        return state

    def _wanted(self, request: Request) -> Mapping[str, LaneView]:
        lanes, lane = self._lanes(), request.query.get("lane")
        if lane is None:
            return lanes
        lane = known_lane(lanes, lane)
        return {lane: lanes[lane]}


def health(
    ready: bool, still_s: float | None, lanes: Mapping[str, float], limit_s: float = STILL_S
) -> tuple[bool, dict[str, Any]]:
    """Whether the process is well, and why.

    Args:
        ready: before that nothing has to move.
        still_s: for how many seconds no frame was done that was due, as the watchdog counts; None: as ``lanes``.
        lanes: for how long each lane did not move.  One that moves is enough: the others are started again.
    """
    told = {"lanes": {name: round(still, 1) for name, still in lanes.items()}}
    if not ready:
        return True, dict(told, reason="starting")
    if not isinstance(still_s, (int, float)):
        still_s = min(lanes.values()) if lanes else 0.0
    if still_s > limit_s:
        return False, dict(told, reason="no frame was done for {:.0f} s".format(still_s))
    return True, dict(told, reason="frames move")


def known_lane(lanes: Mapping[str, Any], lane: str) -> str:
    """The lane of that name; "" is the first one where each has a name.

    Raises:
        Refused: there is none.
    """
    lane = lane or next(iter(lanes), "")
    if lane not in lanes:
        raise Refused(404, "there is no model {!r} here".format(lane[:64]))
    return lane


def _arguments(body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    try:
        value = parse_json(body, "the body")
    except EdgeferryError as error:
        raise refused_by(error, 400) from None
    if not isinstance(value, dict):
        raise Refused(400, "the body is no JSON object", 'Send {"key": value}, or nothing.')
    return value


async def _in_time(call: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    try:
        return await asyncio.wait_for(in_thread(call), _CALL_S)
    except asyncio.TimeoutError:
        raise Refused(504, "there was no answer within {:g} s".format(_CALL_S)) from None


def _number(text: str) -> float:
    try:
        number = float(json.loads(text))
    except (ValueError, TypeError):
        raise Refused(400, "since is {!r}, it must be a number".format(text[:50])) from None
    return number

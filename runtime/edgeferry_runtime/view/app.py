"""The page's routes as one ASGI application: a table, and a function a route."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Awaitable, Callable, Mapping

from edgeferry_runtime.view import page
from edgeferry_runtime.view.access import Gate
from edgeferry_runtime.view.api import Api, known_lane
from edgeferry_runtime.view.http import Receive, Refused, Request, Response, Send, head, refusal, respond
from edgeferry_runtime.view.picture import Pictures
from edgeferry_runtime.view.watching import LaneView

__all__ = ["App"]

_LOG = logging.getLogger("edgeferry")
STREAMS = 8  # live pictures at a time
_BOUNDARY = b"edgeferry-picture"


class App:
    """Answers every request; nothing a request holds, or a handler meets, gets past it.

    Args:
        gate: who may do what.
        lanes: what is known of each lane.
        pictures: of the lanes.
        api: what machines ask.

    Attributes:
        streams: live pictures that somebody looks at.
        closing: set to end them.
    """

    def __init__(
        self, gate: Gate, lanes: Callable[[], Mapping[str, LaneView]], pictures: Pictures, api: Api
    ) -> None:
        self._gate, self._lanes, self._pictures, self._api = gate, lanes, pictures, api
        self._failing: set[str] = set()
        self.streams = 0
        self.closing = False

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            response = await self._answer(request, send)
        except Refused as error:
            response = page.locked() if error.status == 401 and request.path == "/" else refusal(error)
        except Exception as error:
            if request.path not in self._failing:  # once a path
                _LOG.error("the live page cannot answer %s: %r", request.path, error)
            self._failing.add(request.path)
            response = refusal(Refused(500, "this cannot be answered just now", "The service's log says why."))
        if response is not None:
            await respond(send, response, request.method != "HEAD")

    async def _answer(self, request: Request, send: Send) -> Response | None:
        route, argument = _route(request.path)
        wanted, handler = _ROUTES[route]
        method = "GET" if request.method == "HEAD" else request.method
        if method != wanted:
            allow = (("allow", "GET, HEAD" if wanted == "GET" else wanted),)
            raise Refused(405, "{} is not for {}".format(request.path[:100], method[:20]), "", allow)
        moved = self._gate.exchange(request) if route == "/" else None
        if moved is not None:
            return moved
        if method == "POST":
            self._gate.check_write(request, free_without_token=route == "/api/predict")
        else:
            self._gate.check(request)
        return await handler(self, request, argument, send)

    async def _page(self, request: Request, path: str, send: Send) -> Response:
        return page.static(path, request.headers.get("if-none-match", ""))

    async def _stream(self, request: Request, lane: str, send: Send) -> None:
        """The lane's pictures one after the other, as long as somebody looks (multipart/x-mixed-replace)."""
        lane = known_lane(self._lanes(), lane)
        if self.streams >= STREAMS:
            raise Refused(503, "{} look already".format(STREAMS), "Close another page.")
        self.streams += 1
        gone = asyncio.ensure_future(_until_gone(request.receive))
        try:
            with self._pictures.watch(lane):
                kind = "multipart/x-mixed-replace; boundary=" + _BOUNDARY.decode("ascii")
                await send(head(200, kind, (("connection", "close"),)))
                if request.method != "HEAD":
                    await self._send_pictures(lane, gone, send)
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.streams -= 1
            gone.cancel()

    async def _send_pictures(self, lane: str, gone: asyncio.Future[None], send: Send) -> None:
        # A browser shows a part when the next one begins: so each is followed by the next one's boundary.
        start, number = b"--" + _BOUNDARY + b"\r\n", 0
        while not (gone.done() or self.closing):
            picture = await self._pictures.after(lane, number, 1.0)
            if picture is None:
                continue
            number = picture.number
            part = b"content-type: image/jpeg\r\ncontent-length: %d\r\n\r\n" % len(picture.data)
            body = b"".join((start, part, picture.data, b"\r\n--", _BOUNDARY, b"\r\n"))
            start = b""
            await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _still(self, request: Request, lane: str, send: Send) -> Response:
        """One picture."""
        lane = known_lane(self._lanes(), lane)
        with self._pictures.watch(lane):
            picture = await self._pictures.after(lane, 0, 3.0)
        if picture is None:
            raise Refused(503, "there is no picture yet", "Ask again when the first result is there.")
        return Response(200, picture.data, "image/jpeg")


_Handler = Callable[[App, Request, str, Send], Awaitable["Response | None"]]


def _asked(name: str) -> _Handler:
    """A route of the Api's."""

    async def handler(app: App, request: Request, argument: str, send: Send) -> Response | None:
        response: Response = await getattr(app._api, name)(request, argument)
        return response

    return handler


# By path; a "*" takes what stands in its place.
_ROUTES: dict[str, tuple[str, _Handler]] = {
    **dict.fromkeys(page.FILES, ("GET", App._page)),
    "/stream/*.mjpg": ("GET", App._stream),
    "/picture/*.jpg": ("GET", App._still),
    "/healthz": ("GET", _asked("health")),
    "/readyz": ("GET", _asked("readiness")),
    "/metrics": ("GET", _asked("figures")),
    "/api/state": ("GET", _asked("whole_state")),
    "/api/history": ("GET", _asked("history")),
    "/api/results": ("GET", _asked("results")),
    "/api/predict": ("POST", _asked("predict")),
    "/api/command/*": ("POST", _asked("command")),
}
_OPEN = [tuple(route.split("*")) for route in _ROUTES if "*" in route]
# The only lane of a loop with one model has no name.
_SHORT = {"/stream.mjpg": "/stream/*.mjpg", "/picture.jpg": "/picture/*.jpg"}


def _route(path: str) -> tuple[str, str]:
    """The route of a path, and what stands for its "*"; the path itself where it has none.

    Raises:
        Refused: there is none.
    """
    if path in _ROUTES and "*" not in path:
        return path, path
    if path in _SHORT:
        return _SHORT[path], ""
    for before, after in _OPEN:
        if path.startswith(before) and path.endswith(after) and len(path) > len(before) + len(after):
            return before + "*" + after, path[len(before) : len(path) - len(after)]
    raise Refused(404, "there is nothing at {}".format(path[:100]), "The page is at /.")


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

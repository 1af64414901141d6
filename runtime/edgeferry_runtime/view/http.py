"""Requests and answers of the page: read with a limit and a deadline, sent with the headers that keep it safe."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
from typing import Any, Awaitable, Callable, Mapping, NamedTuple, Sequence, TypeVar
from urllib.parse import unquote

from edgeferry_runtime.errors import EdgeferryError

__all__ = ["Refused", "Request", "Response", "as_json", "head", "in_thread", "refusal", "respond"]

T = TypeVar("T")
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Headers = Sequence["tuple[str, str]"]

BODY_S = 30.0  # a body has to arrive within
# Nothing from elsewhere and nothing inline; nobody may frame the page or embed its picture.
SECURITY: Headers = (
    (
        "content-security-policy",
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
)


class Response(NamedTuple):
    """An answer that is there as a whole."""

    status: int
    body: bytes
    kind: str = "application/json"
    headers: Headers = ()


class Refused(Exception):  # noqa: N818 - an answer rather than an error
    """A request that is answered with why it was not done.

    Args:
        status: of HTTP.
        message, remedy: what happened, and what to do next.
    """

    def __init__(self, status: int, message: str, remedy: str = "", headers: Headers = ()) -> None:
        super().__init__(message)
        self.status, self.message, self.remedy, self.headers = status, message, remedy, headers


class Request:
    """One request.

    Attributes:
        method, path: as they came, the path without its escapes.
        query: the first value of each key.
        headers: by name in lower case; of several with one name the first.
    """

    def __init__(self, scope: Mapping[str, Any], receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query = parse_query(scope["query_string"].decode("latin-1"))
        self.headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            self.headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
        self.receive = receive

    @property
    def cookies(self) -> dict[str, str]:
        """By name."""
        pairs = (part.strip().partition("=") for part in self.headers.get("cookie", "").split(";"))
        return {name: value for name, _, value in pairs}

    async def body(self, limit: int) -> bytes:
        """All of it.

        Raises:
            Refused: it is larger than ``limit`` bytes (found out before it is read where its length is said),
                does not arrive in time, or the other side went away.
        """
        said = self.headers.get("content-length", "")
        if said.isdigit() and int(said) > limit:
            raise _too_large(limit)
        try:
            return await asyncio.wait_for(self._read(limit), BODY_S)
        except asyncio.TimeoutError:
            raise Refused(408, "the body did not arrive within {:g} s".format(BODY_S), headers=_CLOSE) from None

    async def _read(self, limit: int) -> bytes:
        body = bytearray()
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the connection ended before the body did", headers=_CLOSE)
            body += message.get("body", b"")
            if len(body) > limit:
                raise _too_large(limit)
            if not message.get("more_body", False):
                return bytes(body)


_CLOSE: Headers = (("connection", "close"),)


def _too_large(limit: int) -> Refused:
    return Refused(413, "the body is larger than {} KiB".format(limit >> 10), "Send a smaller one.", _CLOSE)


def parse_query(text: str) -> dict[str, str]:
    """Key to first value; a "+" stands for itself, tokens may hold one."""
    found: dict[str, str] = {}
    for part in text.split("&"):
        key, _, value = part.partition("=")
        found.setdefault(unquote(key), unquote(value))
    return found


def as_json(value: Any, status: int = 200) -> Response:
    """A value as strict JSON; what is no number becomes null."""
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), allow_nan=False)
    return Response(status, text.encode("utf-8"))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def refusal(error: Refused) -> Response:
    """Why, in the words ``--json`` has everywhere."""
    said = as_json({"ok": False, "error": error.message, "remedy": error.remedy}, error.status)
    return said._replace(headers=error.headers)


def refused_by(error: EdgeferryError, status: int) -> Refused:
    """A known failure as an answer."""
    return Refused(status, error.message, error.remedy)


def head(status: int, kind: str, headers: Headers = ()) -> Mapping[str, Any]:
    """What begins an answer."""
    named = {name for name, _ in headers}
    both = [("content-type", kind), *([] if "cache-control" in named else [("cache-control", "no-store")])]
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (*both, *SECURITY, *headers)]
    return {"type": "http.response.start", "status": status, "headers": encoded}


async def respond(send: Send, response: Response, with_body: bool = True) -> None:
    """Send an answer; without its body as HEAD wants it."""
    length = ("content-length", str(len(response.body)))
    await send(head(response.status, response.kind, (length, *response.headers)))
    await send({"type": "http.response.body", "body": response.body if with_body else b""})


async def in_thread(call: Callable[[], T]) -> T:
    """What a call gives that may take long, run in a daemon thread: one that hangs keeps no process from ending.

    Raises:
        What the call raises.
    """
    loop = asyncio.get_event_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def deliver(error: BaseException | None, value: Any) -> None:
        if outcome.done():  # whoever asked has gone
            return
        if error is None:
            outcome.set_result(value)
        else:
            outcome.set_exception(error)

    def run() -> None:
        try:
            error, value = None, call()
        except BaseException as raised:
            error, value = raised, None
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(deliver, error, value)

    threading.Thread(target=run, name="edgeferry-view-call", daemon=True).start()
    return await outcome

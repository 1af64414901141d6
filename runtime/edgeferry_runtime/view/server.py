"""The page's web server: a socket that is taken at once, uvicorn in a daemon thread, bounds for what others send.

It begins before the model is loaded, so that a port in use is found out at the start, which it ends: a service
whose page is missing looks as one that is well and cannot be seen.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any, Callable

from edgeferry_runtime.errors import DependencyError, UsageError
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.view.access import Gate, address_of, read_token
from edgeferry_runtime.view.api import Api
from edgeferry_runtime.view.app import App
from edgeferry_runtime.view.metrics import Metrics
from edgeferry_runtime.view.picture import Pictures
from edgeferry_runtime.view.predict import Predictor
from edgeferry_runtime.view.watching import LaneView
from edgeferry_runtime.view_config import Address, ViewConfig, listen_problem, parse_listen

if TYPE_CHECKING:
    from edgeferry_runtime.model import Model
    from edgeferry_runtime.view.facade import Runner

__all__ = ["View"]

_LOG = logging.getLogger("edgeferry")
REQUESTS = 64  # at a time; more are answered with 503
CONNECTIONS = 128  # at a time; more are closed as they come: a camera that is opened anew needs file descriptors
HEADER_S = 10.0  # a request's head has to arrive within, from the first byte or the connection on
STALLED_S = 20.0  # a reader that takes nothing for so long is let go
_HEAD_BYTES = 16 << 10


class View:
    """The live page.

        view = View(config)                        # the port is ours, or it raises
        Pipeline(..., observers=[view.lane("")])   # for each lane
        view.start(runner, open_model)             # from here on it answers
        view.close()

    Args:
        config: where it listens, and who may look.

    Attributes:
        address: where it listens, with the port that was taken.
        url: what people open on the device.

    Raises:
        UsageError: the address is none, is in use or not this device's, or the token is missing.
        DependencyError: uvicorn or prometheus-client is absent.
    """

    def __init__(self, config: ViewConfig) -> None:
        problem = listen_problem(config.listen, bool(config.token_file))
        address = parse_listen(config.listen)
        if problem or address is None:
            raise UsageError("view.listen {}".format(problem))
        token = read_token(config.token_file) if config.token_file else ""
        self._uvicorn, self._prometheus = _packages()
        self._predicts = config.predict
        self._socket = _bind(address)
        self.address = Address(address.host, self._socket.getsockname()[1])
        self.url = address_of(self.address)
        self._gate = Gate(self.address, token)
        self._lanes: dict[str, LaneView] = {}
        self._predictors: dict[str, Predictor] = {}
        self._open_model: Callable[[str], Model] | None = None
        self._runner: Runner | None = None
        self._pictures = Pictures(lambda: self._lanes)
        self._app: App | None = None
        self._server: Any = None
        self._thread: threading.Thread | None = None

    def lane(self, name: str) -> Observer:
        """What looks on a lane; the same for a lane that is started again."""
        view = self._lanes.get(name)
        if view is None:
            view = LaneView(moves=functools.partial(self._moves, name))
            self._lanes = dict(self._lanes, **{name: view})  # as a whole: the page may be reading it
        return view

    def start(self, runner: Runner, open_model: Callable[[str], Model] | None = None) -> View:
        """Answer from now on.

        Args:
            runner: what runs; its lanes may still be coming.
            open_model: opens what a lane runs just now once more, for pictures that are sent in.
        """
        self._runner = runner
        self._open_model = open_model if self._predicts else None
        api = Api(self._gate, runner, lambda: self._lanes, Metrics(runner, self._prometheus), self._predictor)
        self._app = App(self._gate, lambda: self._lanes, self._pictures, api)
        uvicorn = self._uvicorn
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app,
                http=_protocol(uvicorn),
                loop="asyncio",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=REQUESTS,
                timeout_keep_alive=10,
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=_HEAD_BYTES,
            )
        )
        self._socket.listen(128)
        self._thread = threading.Thread(target=self._serve, name="edgeferry-view", daemon=True)
        self._thread.start()
        _LOG.info("the live page is at %s", self.url)
        return self

    def close(self) -> None:
        """Stop answering; harmless twice."""
        if self._app is not None:
            self._app.closing = True
        self._pictures.close()
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(10.0)
        self._socket.close()
        for predictor in self._predictors.values():
            predictor.close()

    def _serve(self) -> None:
        loop = asyncio.SelectorEventLoop()
        try:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(self._server.serve(sockets=[self._socket]))
        except Exception as error:  # the loop it shows goes on
            _LOG.error("the live page has ended: %r", error)
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    def _moves(self, name: str) -> int:
        """Frames the lane is done with, whatever they came to."""
        pipeline = self._runner.lanes.get(name) if self._runner is not None else None
        return pipeline.tally.frames + pipeline.tally.lost if pipeline is not None else 0

    def _predictor(self, name: str) -> Predictor | None:
        if self._open_model is None or name not in self._lanes:
            return None
        if name not in self._predictors:
            lane, open_model = self._lanes[name], self._open_model
            self._predictors[name] = Predictor(
                functools.partial(open_model, name),
                outdated=lambda identity: lane.seen is not None and not lane.runs(identity),
            )
        return self._predictors[name]


def _bind(address: Address) -> socket.socket:
    """A socket of that address, not listening yet.

    Raises:
        UsageError: it is in use, or not this device's.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # there it would share the port
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address.host == "::" else 1)
        taken.bind((address.host, address.port))
        # Another process that only bound it is found out here; nothing is answered before start().
        taken.listen(1)
        taken.setblocking(False)
    except OSError as error:
        taken.close()
        raise UsageError(
            "view.listen {}: {}".format(address, error.strerror or error),
            "Another program may use this port, or this service already runs: choose another port, or end that "
            "one (`ss -ltnp` names it).",
        ) from None
    return taken


def _packages() -> tuple[Any, Any]:
    """uvicorn and prometheus_client."""
    try:
        import prometheus_client.core
        import uvicorn
        import uvicorn.protocols.http.h11_impl
    except ImportError as error:
        raise DependencyError(
            "the live page needs uvicorn and prometheus-client: {}".format(error),
            "Install them: pip install 'edgeferry-runtime[view]'",
        ) from None
    return uvicorn, prometheus_client


def _protocol(uvicorn: Any) -> type:
    """uvicorn's HTTP/1.1 protocol with the deadlines and the bound it does not have.

    Idle connections, heads that come a byte at a time and readers that take nothing would each hold a connection
    for ever.
    """
    base: Any = uvicorn.protocols.http.h11_impl.H11Protocol

    class Bounded(base):  # type: ignore[misc]
        _waiting: Any = None  # for a whole head
        _stalled: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > CONNECTIONS:
                transport.abort()
            else:
                self._wait()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:  # a head is there
                self._stop_waiting()
            elif before is None or before.response_complete:
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            self.resume_writing()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stalled = self._stalled or self.loop.call_later(STALLED_S, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._stalled is not None:
                self._stalled.cancel()
                self._stalled = None

        def _wait(self) -> None:
            self._waiting = self._waiting or self.loop.call_later(HEADER_S, self.transport.abort)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return Bounded

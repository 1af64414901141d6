"""Results to an MQTT broker, through paho-mqtt 1.6 or 2."""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import sys
import threading
from collections import deque
from typing import Any, Deque
from urllib.parse import unquote, urlsplit

from edgeferry_runtime.errors import DependencyError, SinkError, UsageError
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks.base import Sink
from edgeferry_runtime.sinks.jsonl import json_text
from edgeferry_runtime.sinks.options import Option, read_options, read_secret
from edgeferry_runtime.sinks.outbox import Outbox
from edgeferry_runtime.sources.base import Frame

__all__ = ["MqttSink"]

_LOG = logging.getLogger("edgeferry")
_OPTIONS = {
    "qos": Option(int, 0, 0, 2),
    "retain": Option(bool, False),
    "client_id": Option(str, ""),
    "username": Option(str),
    "password_file": Option(str),
    "tls": Option(bool, False),
    "ca": Option(str),
    "buffer": Option(int, 1000, 1, 1e6),
    "status_topic": Option(str),
}
# Below the 20 that paho sends at once: its own queue stays empty, what waits does so in the outbox.
_UNDER_WAY = 16
_KEEPALIVE_S = 30  # a broker that fell silent is noticed after one and a half of it
_CLOSE_S = 5.0
_LEAVE_S = 2.0


class MqttSink(Sink):
    """Publishes each result as JSON, at least once with qos=1, in order.

    The connection is made and made again in the background.  Without one the last ``buffer`` results are kept.
    The retained status is {"state":"online"} or {"state":"offline"}; the latter is also the last will.

    Args:
        uri: "mqtt://HOST:PORT/TOPIC?name=value", or "mqtts://" with TLS; options as in ``_OPTIONS``.

    Raises:
        UsageError: the address or an option is wrong.
        SinkError: a password or certificate file cannot be read.
        DependencyError: paho-mqtt is absent.
    """

    def __init__(self, uri: str) -> None:
        address, _, text = uri.partition("?")
        scheme, host, port, self._topic = _read_address(address)
        options = read_options(text, _OPTIONS, "the MQTT sink")
        self._qos, self._retain = options["qos"], options["retain"]
        self._status_topic = options["status_topic"] or self._topic + "/status"
        _check_topic(self._topic)
        _check_topic(self._status_topic)
        secure = scheme == "mqtts" or options["tls"]
        if options["ca"] and not secure:
            raise UsageError("the MQTT sink: ca means nothing without TLS", "Write mqtts:// instead of mqtt://.")
        if options["password_file"] and not options["username"]:
            raise UsageError("the MQTT sink: password_file needs username", "Add username=NAME.")

        self._server = "{}:{}".format(host, port or (8883 if secure else 1883))
        self._error = ""
        self._closing = False
        self._connected = False
        self._resuming = False  # a new connection: what was under way has to be settled first
        self._lost = 0  # with qos=0, what was under way when the connection broke
        self._under_way: set[int] = set()  # touched by the outbox' thread alone
        self._arrived: Deque[int] = deque()  # filled by paho's thread
        self._news = threading.Event()
        self._client = client = _client(options["client_id"])
        if options["username"]:
            file = options["password_file"]
            client.username_pw_set(options["username"], read_secret(file, "password") if file else None)
        if secure:
            client.tls_set_context(_tls_context(options["ca"]))
        client.will_set(self._status_topic, _status("offline"), qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.reconnect_delay_set(1, 60)
        client.connect_async(host, int(self._server.rpartition(":")[2]), keepalive=_KEEPALIVE_S)
        self._outbox = Outbox(self._send, options["buffer"])
        client.loop_start()

    def write(self, frame: Frame, result: Result) -> None:
        self._outbox.put(json_text(result.to_json()).encode())

    def state(self) -> dict[str, Any]:
        state = {
            "connected": self._connected,
            "waiting": len(self._outbox),
            "dropped": self._outbox.dropped + self._lost,
        }
        return dict(state, error=self._error) if self._error else state

    def close(self) -> None:
        """Deliver what waits for a few seconds, say that we are offline, and leave."""
        if self._closing:
            return
        self._closing = True
        self._outbox.close(_CLOSE_S if self._connected else 0.0)
        if self._connected:
            # MQTT keeps the order: the broker has the results when it has this.
            info = self._client.publish(self._status_topic, _status("offline"), qos=1, retain=True)
            with contextlib.suppress(RuntimeError, ValueError):  # the connection broke just now
                info.wait_for_publish(_LEAVE_S)
        self._settle()
        self._lost += len(self._under_way)
        self._client.disconnect()
        # A hung connection would hold loop_stop until its keep-alive is over.
        stopper = threading.Thread(target=self._client.loop_stop, daemon=True)
        stopper.start()
        stopper.join(_LEAVE_S)
        self._connected = False

    # In the outbox' thread.

    def _send(self, payload: bytes) -> bool:
        while True:
            self._settle()
            if not self._connected:
                return False
            if self._resuming:
                if self._qos == 0:  # nobody sends these again
                    self._lost += len(self._under_way)
                    self._under_way.clear()
                # With qos=1 paho sends them again: newer ones wait, so that the order holds.
                self._resuming = bool(self._under_way)
            if not self._resuming and len(self._under_way) < _UNDER_WAY:
                break
            self._news.wait(1.0)
            self._news.clear()
        info = self._client.publish(self._topic, payload, qos=self._qos, retain=self._retain)
        if self._qos == 0 and info.rc != 0:
            return False
        self._under_way.add(info.mid)
        return True

    def _settle(self) -> None:
        while self._arrived:
            self._under_way.discard(self._arrived.popleft())

    # In paho's thread.  The arguments differ between its versions; the first four are those named here.

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, *more: Any) -> None:
        if getattr(reason, "value", reason) != 0:
            self._note("refuses the connection: {}".format(_reason_text(reason)))
            return
        self._note("")
        client.publish(self._status_topic, _status("online"), retain=True)
        self._resuming = True
        self._connected = True
        self._news.set()
        self._outbox.nudge()

    def _on_connect_fail(self, client: Any, data: Any) -> None:
        # paho calls this while it handles the exception, and does not hand it over.
        self._note("cannot be reached: {}".format(sys.exc_info()[1]))

    def _on_disconnect(self, *arguments: Any) -> None:
        was, self._connected = self._connected, False
        self._news.set()
        if was and not self._closing:
            self._note("closed the connection")

    def _on_publish(self, client: Any, data: Any, mid: int, *more: Any) -> None:
        self._arrived.append(mid)
        self._news.set()

    def _note(self, error: str) -> None:
        """Name what is new, once."""
        if error and error != self._error:
            _LOG.warning("MQTT broker %s %s", self._server, error)
        elif self._error and not error:
            _LOG.warning("MQTT broker %s is connected again", self._server)
        self._error = error


def _read_address(address: str) -> tuple[str, str, int | None, str]:
    """Scheme, host, port and topic; no message shows the address, which may hold a password.

    Raises:
        UsageError: it is no address, or names a user.
    """
    try:
        parts = urlsplit(address, allow_fragments=False)
        host, port = parts.hostname or "", parts.port
        sound = address.startswith(parts.scheme + "://") and bool(host.encode("idna")) and port != 0
    except ValueError:
        sound = False
    if "@" in address.partition("://")[2].partition("/")[0]:
        raise UsageError(
            "the MQTT address holds a user or a password, which every process list would show",
            "Write mqtt://HOST/TOPIC?username=NAME&password_file=FILE, and the password into the file.",
        )
    if not sound:
        raise UsageError(
            "the MQTT address has no host, or no port from 1 to 65535", "Write mqtt://HOST:1883/TOPIC."
        )
    return parts.scheme, host, port, unquote(parts.path[1:])


def _check_topic(topic: str) -> None:
    # Source: MQTT 3.1.1, 4.7.1 and 4.7.3.
    size = len(topic.encode("utf-8", "replace"))
    if not 0 < size <= 65535 or re.search("[+#\\x00\ud800-\udfff]", topic):
        raise UsageError(
            "the MQTT topic is {!r}".format(topic[:80]),
            "Topics are 1 to 65535 bytes without +, # and NUL: mqtt://HOST/cameras/door.",
        )


def _status(state: str) -> str:
    return json_text({"state": state})


def _tls_context(ca: str | None) -> Any:
    import ssl  # costs a start without TLS nothing

    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise SinkError(
            "{}: no certificates can be read: {}".format(ca, error.strerror or error), "ca takes a PEM file."
        ) from None


def _paho() -> Any:
    try:
        return importlib.import_module("paho.mqtt.client")
    except ImportError:
        raise DependencyError(
            "the MQTT sink needs paho-mqtt, which is not installed",
            "Install it: pip install paho-mqtt  (Raspberry Pi OS, Debian: apt install python3-paho-mqtt)",
        ) from None


def _client(client_id: str) -> Any:
    paho = _paho()
    if hasattr(paho, "CallbackAPIVersion"):  # 2.0 and later
        return paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=client_id)
    return paho.Client(client_id=client_id)


def _reason_text(reason: Any) -> str:
    return _paho().connack_string(reason) if isinstance(reason, int) else str(reason)

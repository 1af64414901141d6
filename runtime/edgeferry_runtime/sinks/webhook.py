"""Results to a web server: each a POST of JSON, on one connection that is kept."""

from __future__ import annotations

import http.client
import logging
import re
from typing import Any
from urllib.parse import urlsplit

from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.results import Result
from edgeferry_runtime.sinks.base import Sink
from edgeferry_runtime.sinks.jsonl import json_text
from edgeferry_runtime.sinks.options import Option, read_options, read_secret
from edgeferry_runtime.sinks.outbox import Outbox
from edgeferry_runtime.sources.base import Frame

__all__ = ["WebhookSink"]

_LOG = logging.getLogger("edgeferry")
_OPTIONS = {
    "timeout_s": Option(float, 5.0, 0.1, 300),
    "buffer": Option(int, 100, 1, 1e6),
    "token_file": Option(str),
}
_AGAIN = (408, 429)  # of 4xx these alone mean "later", as all of 5xx does
_CLOSE_S = 5.0
_BODY = 65536  # bytes of an answer that are read so that its connection can be used again


class WebhookSink(Sink):
    """Posts each result, at least once, in order; what cannot be posted now is tried again with back-off.

    An answer 2xx takes the result.  5xx, 408, 429, and no answer within the time mean "again later".  Any other
    refuses the result for good: it is dropped, counted, and the reason named once.  Redirects are not followed,
    so that the token reaches no other server.

    Args:
        uri: "webhook:URL#timeout_s=5&buffer=100&token_file=FILE"; the URL's own query stays as it is.

    Raises:
        UsageError: the URL or an option is wrong.
        SinkError: the token cannot be read.
    """

    def __init__(self, uri: str, first_pause_s: float = 1.0) -> None:
        url, _, text = uri.partition(":")[2].partition("#")
        options = read_options(text, _OPTIONS, "the webhook")
        secure, host, port, self._path = _read_url(url)
        # A path may be as good as a password: neither messages nor the state file show it.
        self.uri = "webhook:{}://{}{}/...".format(
            "https" if secure else "http", host, "" if port is None else ":{}".format(port)
        )
        self._headers = {"Content-Type": "application/json", "User-Agent": "edgeferry-runtime"}
        if options["token_file"]:
            token = read_secret(options["token_file"], "token")
            if not re.match(r"[!-~]+\Z", token):  # a header takes nothing else
                raise UsageError("{}: a token has no spaces".format(options["token_file"]), "Check the file.")
            self._headers["Authorization"] = "Bearer " + token
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._connection = kind(host, port, timeout=options["timeout_s"])
        self._error = ""
        self._refused = 0
        self._outbox = Outbox(self._send, options["buffer"], first_pause_s)

    def write(self, frame: Frame, result: Result) -> None:
        self._outbox.put(json_text(result.to_json()).encode())

    def state(self) -> dict[str, Any]:
        state = {"waiting": len(self._outbox), "dropped": self._outbox.dropped + self._refused}
        return dict(state, error=self._error) if self._error else state

    def close(self) -> None:
        self._outbox.close(_CLOSE_S)
        self._connection.close()

    def _send(self, payload: bytes) -> bool:
        try:
            status = self._post(payload)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self._note("cannot be reached: {}".format(error or type(error).__name__))
            return False
        if 200 <= status < 300:
            self._note("")
            return True
        elsewhere = " (redirects are not followed)" if 300 <= status < 400 else ""
        self._note("answers {} {}{}".format(status, http.client.responses.get(status, ""), elsewhere))
        if status >= 500 or status in _AGAIN:
            return False
        self._refused += 1
        return True

    def _post(self, payload: bytes) -> int:
        kept = self._connection.sock is not None
        try:
            return self._exchange(payload)
        except (ConnectionError, http.client.BadStatusLine):
            if not kept:
                raise
        self._connection.close()  # the server closed it while it was idle, as it may
        return self._exchange(payload)

    def _exchange(self, payload: bytes) -> int:
        self._connection.request("POST", self._path, payload, self._headers)
        response = self._connection.getresponse()
        response.read(_BODY)
        if not response.isclosed():
            self._connection.close()
        return response.status

    def _note(self, error: str) -> None:
        """Name what is new, once."""
        if error and error != self._error:
            _LOG.warning("%s %s", self.uri, error)
        elif self._error and not error:
            _LOG.warning("%s works again", self.uri)
        self._error = error


def _read_url(url: str) -> tuple[bool, str, int | None, str]:
    """Whether it is https, host, port, and path with query; no message shows the URL, which may hold a secret.

    Raises:
        UsageError: it is no such URL, or names a user.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        sound = parts.scheme in ("http", "https") and bool(host) and port != 0 and re.match(r"[!-~]+\Z", url)
    except ValueError:
        sound = None
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise UsageError(
            "the webhook's URL holds a user or a password, which every process list would show",
            "Write a token into a file: webhook:https://HOST/PATH#token_file=FILE.",
        )
    if not sound:
        raise UsageError(
            "the webhook has no URL that begins with http:// or https:// and a host",
            "Write webhook:https://HOST/PATH; what is not ASCII is percent-encoded.",
        )
    path = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    return parts.scheme == "https", host, port, path

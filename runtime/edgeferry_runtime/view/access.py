"""Who may do what: tokens, the cookie that stands for one, and what a browser was talked into by another page."""

from __future__ import annotations

import hashlib
import hmac
import re
from urllib.parse import urlsplit

from edgeferry_runtime.errors import UsageError
from edgeferry_runtime.view.http import Refused, Request, Response
from edgeferry_runtime.view_config import Address, is_loopback

__all__ = ["COOKIE", "Gate", "address_of", "read_token"]

COOKIE = "edgeferry_view"
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}\Z")  # RFC 6750, 2.1
_MAKE_ONE = "Make one: python3 -c 'import secrets; print(secrets.token_urlsafe())' > FILE; chmod 600 FILE"
_ANY = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to


def read_token(path: str) -> str:
    """The secret a file holds as its only line; no message ever shows it.

    Raises:
        UsageError: it cannot be read, or holds none that is long enough.
    """
    try:
        with open(path, encoding="utf-8") as file:
            token = file.read(1024).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is no text"
        raise UsageError("view.token_file {}: cannot be read: {}".format(path, reason), _MAKE_ONE) from None
    if not _TOKEN.match(token):
        raise UsageError(
            "view.token_file {}: must hold one line of 16 to 512 letters, digits and ._~+/=-".format(path),
            _MAKE_ONE,
        )
    return token


class Gate:
    """Decides about each request.

    Reading needs the token unless the page listens on loopback alone; writing always does, and is off where there
    is no token.

    Args:
        address: where the page listens.
        token: "" for none.
    """

    def __init__(self, address: Address, token: str) -> None:
        self._local = is_loopback(address.host)
        self._hosts = {"localhost", "127.0.0.1", "::1", address.host.lower()}
        self._token = token.encode("utf-8")
        self._cookie = hmac.new(self._token, b"edgeferry view cookie", hashlib.sha256).hexdigest().encode("ascii")

    @property
    def has_token(self) -> bool:
        """Whether there is one at all."""
        return bool(self._token)

    def check(self, request: Request) -> None:
        """Let a request in that only reads.

        Raises:
            Refused: another site's name led here, or the token is needed and is not there.
        """
        # A name an attacker's DNS points to 127.0.0.1 makes the attacker's page and this one the same origin.
        if self._local and _host(request.headers.get("host", "")) not in self._hosts:
            raise Refused(
                403,
                "the host {!r} is not this page's".format(request.headers.get("host", "")[:100]),
                "Open it as http://localhost:PORT/.",
            )
        if not self._local and not self.knows(request):
            raise Refused(401, "this page needs its token", "Open it once with ?token=TOKEN.", _CHALLENGE)

    def check_write(self, request: Request, free_without_token: bool = False) -> None:
        """Let a request in that changes something.

        Args:
            free_without_token: lets everybody in where no token is configured.

        Raises:
            Refused: another page sent it, or the token is not there.
        """
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower():
            raise Refused(403, "the page {!r} may not ask this".format(origin[:100]))
        if not self.has_token:
            if not free_without_token:
                raise Refused(403, "writing is off: there is no token", "Name a file with one: view.token_file.")
            self.check(request)
        elif not self.knows(request):
            raise Refused(401, "this needs the token", "Send it: Authorization: Bearer TOKEN.", _CHALLENGE)

    def knows(self, request: Request) -> bool:
        """Whether the request shows the token, or the cookie that stands for it."""
        if not self.has_token:
            return False
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(given.strip(), self._token):
            return True
        return _same(request.cookies.get(COOKIE, ""), self._cookie)

    def exchange(self, request: Request) -> Response | None:
        """The way on without the token in the address, with a cookie in its place; None where none was given.

        Raises:
            Refused: it is the wrong one.
        """
        given = request.query.get("token")
        if given is None or request.method not in ("GET", "HEAD"):
            return None
        if not self.has_token or not _same(given, self._token):
            raise Refused(
                401, "the token is not this page's", "Look into the file of view.token_file.", _CHALLENGE
            )
        cookie = "{}={}; Path=/; HttpOnly; SameSite=Strict; Max-Age=31536000".format(
            COOKIE, self._cookie.decode("ascii")
        )
        # Relative, so that it also holds behind a proxy, and to the page alone: the path is not the client's.
        return Response(303, b"", "text/plain", (("location", "./"), ("set-cookie", cookie)))


_CHALLENGE = (("www-authenticate", 'Bearer realm="edgeferry"'),)


def _same(given: str, wanted: bytes) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted)


def _host(header: str) -> str:
    """The host of a Host header, without port and brackets, in lower case."""
    match = re.match(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]@/]+))(?::[0-9]{1,5})?\Z", header.strip())
    return ((match.group(1) or match.group(2)) if match else "").lower()


def address_of(address: Address) -> str:
    """What people type to open the page on the device itself."""
    host = "localhost" if address.host in _ANY else str(Address(address.host, 0)).rsplit(":", 1)[0]
    return "http://{}:{}/".format(host, address.port)

"""The files of the page, as they lie beside this module."""

from __future__ import annotations

import hashlib
import pkgutil

from edgeferry_runtime.view.http import Headers, Response

__all__ = ["FILES", "locked", "static"]

# By path: the file and its type.
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/chart.js": ("chart.js", "text/javascript; charset=utf-8"),
    "/parts.js": ("parts.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_known: dict[str, tuple[bytes, Headers]] = {}


def static(path: str, unless: str = "") -> Response:
    """One of ``FILES``; nothing but a 304 for a browser that has it.

    Args:
        unless: the If-None-Match header.
    """
    name, kind = FILES[path]
    body, headers = _load(name)
    if unless and unless == headers[0][1]:
        return Response(304, b"", kind, headers)
    return Response(200, body, kind, headers)


def locked() -> Response:
    """What a person without the token sees."""
    return Response(401, _load("locked.html")[0], "text/html; charset=utf-8")


def _load(name: str) -> tuple[bytes, Headers]:
    if name not in _known:
        body = pkgutil.get_data(__package__, "static/" + name)
        assert body is not None  # noqa: S101 - a loader that cannot read data raises
        tag = '"{}"'.format(hashlib.sha256(body).hexdigest()[:16])
        _known[name] = body, (("etag", tag), ("cache-control", "no-cache"))
    return _known[name]

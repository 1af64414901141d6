"""The part `view` of run.json: where the live page listens, and who may do what there.

Part of the contract: the workstation reads it, too, so it knows neither numpy nor a web server.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from edgeferry_runtime.fields import Fields

__all__ = ["DEFAULT_LISTEN", "Address", "ViewConfig", "is_loopback", "parse_listen"]

DEFAULT_LISTEN = "127.0.0.1:8080"
_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9][A-Za-z0-9.-]*)):([0-9]{1,5})\Z")
_MEANS = "must be ADDRESS:PORT, as in 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080"
NEEDS_TOKEN = (
    "is not this device's own address, so others could look on; name a file with a secret in `token_file`, or "
    "listen on " + DEFAULT_LISTEN
)


class Address(NamedTuple):
    """Where to listen.

    Attributes:
        host: an IP address without brackets, or a name.
        port: 0 takes any that is free.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return ("[{}]:{}" if ":" in self.host else "{}:{}").format(*self)


@dataclass(frozen=True)
class ViewConfig:
    """The live page; it is off where run.json has no such part.

    Attributes:
        listen: ADDRESS:PORT.
        token_file: a file on the device that holds the secret, its only line; None for none.
        predict: whether pictures may be sent in; the first one loads a model of its own, beside the loop's.
    """

    listen: str = DEFAULT_LISTEN
    token_file: str | None = None
    predict: bool = True

    @classmethod
    def read(cls, fields: Fields) -> ViewConfig:
        """Read it, noting every problem in ``fields``."""
        before = len(fields.problems)
        listen = fields.text("listen", DEFAULT_LISTEN)
        said = len(fields.problems) > before
        token_file = fields.optional("token_file", fields.text)
        problem = "" if said else listen_problem(listen, token_file is not None)
        if problem:
            fields.problem("listen", problem)
        return cls(listen, token_file, fields.boolean("predict", True))


def parse_listen(text: str) -> Address | None:
    """ADDRESS:PORT; None where the text is none."""
    match = _LISTEN.match(text)
    if not match or int(match.group(3)) > 65535:
        return None
    return Address(match.group(1) or match.group(2), int(match.group(3)))


def listen_problem(text: str, has_token: bool) -> str:
    """What is wrong with an address to listen on, "" where nothing is."""
    address = parse_listen(text)
    if address is None:
        return "is {!r}, {}".format(text, _MEANS)
    return "" if has_token or is_loopback(address.host) else "{} {}".format(address.host, NEEDS_TOKEN)


def is_loopback(host: str) -> bool:
    """Whether only programs on this device can reach it; a name other than localhost may be anywhere."""
    import ipaddress  # a device without the page need not load it

    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""What ~/.ssh/config says of a host, as far as edgeferry follows it; nothing here opens a connection.

Format: ssh_config(5).  The first value of a keyword counts, only IdentityFile adds up; Host takes
patterns with * ? and !, Include takes globs below ~/.ssh.  paramiko's own reader passes over Include, names no
line when it fails, and is slow to import; this one is needed before it is known that SSH is.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from edgeferry_deploy.errors import TargetError, printable

__all__ = ["HostSettings", "Line", "SshConfig", "local_user"]

KEYWORD = re.compile(r"([A-Za-z]+)(?:\s*=\s*|\s+|$)(.*)")
WORD = re.compile(r'\s*(?:"([^"]*)"|([^\s"]+))')
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
DEEPEST = 16  # files that include each other; as in OpenSSH


@dataclass(frozen=True)
class Line:
    """A line with a keyword.

    Attributes:
        conditions: the Host and Match lines it stands under; all have to fit.
        where: file and number, for messages.
    """

    keyword: str
    words: tuple[str, ...]
    where: str
    conditions: tuple[Line, ...] = ()

    def wrong(self, why: str) -> TargetError:
        """The error for a value that is none."""
        shown = printable(" ".join((self.keyword, *self.words)), 80)
        return TargetError(f"{self.where}: '{shown}' {why}", "correct that line; `man ssh_config` explains it")


@dataclass(frozen=True)
class HostSettings:
    """What the configuration says of one host; empty or None where it says nothing.

    Attributes:
        named: a Host line speaks of it by more than `*`.
        host: the name or address to connect to.
        jumps: USER@HOST:PORT or alias of each hop, the first first.
        identities: key files to offer in place of the default ones.
        identities_only: the agent's other keys are not offered.
        connect_seconds: how long connecting may take.
        known_hosts: files in place of ~/.ssh/known_hosts.
    """

    named: bool = False
    host: str = ""
    user: str = ""
    port: int | None = None
    jumps: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()
    identities_only: bool = False
    connect_seconds: float | None = None
    known_hosts: tuple[str, ...] = ()


class SshConfig:
    """A configuration as its lines.

    Args:
        lines: in the order of the file, what it includes in its place.
    """

    def __init__(self, lines: Iterable[Line] = ()) -> None:
        self._lines = tuple(lines)

    @classmethod
    def load(cls, path: Path | None = None) -> SshConfig:
        """The user's file, or another; an absent one says nothing.

        Raises:
            TargetError: it cannot be read, or a line of it cannot; names file and line.
        """
        return cls(read(path or Path.home() / ".ssh" / "config"))

    def settings(self, host: str, user: str = "") -> HostSettings:
        """What is said of a host as it was typed.

        Args:
            user: the user that was typed with it.

        Raises:
            TargetError: a value is none, or asks for what edgeferry does not do; names file and line.
        """
        found: dict[str, Line] = {}
        files: list[Line] = []
        named = False
        for line in self._lines:
            known = {key: value.words[0] for key, value in found.items() if value.words}
            names = (host, expand(known.get("hostname", host), h=host), user or known.get("user", local_user()))
            if not all(fits(condition, *names) for condition in line.conditions):
                continue
            named |= any(by_name(condition, host) for condition in line.conditions)
            if line.keyword in READERS and not line.words:
                raise line.wrong("has no value")
            if line.keyword == "identityfile":
                files.append(line)
            found.setdefault("proxy" if line.keyword.startswith("proxy") else line.keyword, line)
        values = {line.keyword: READERS[line.keyword](line) for line in found.values() if line.keyword in READERS}
        address = expand(values.get("hostname", ""), h=host)
        login = user or values.get("user", "")
        tokens = {"h": address or host, "r": login, "u": local_user(), "d": str(Path.home()), "p": ""}

        def paths(names: Iterable[str]) -> tuple[str, ...]:
            return tuple(str(Path(expand(name, **tokens)).expanduser()) for name in names if name != "none")

        return HostSettings(
            named=named,
            host=address,
            user=values.get("user", ""),
            port=values.get("port"),
            jumps=values.get("proxyjump", ()),
            identities=paths(line.words[0] for line in files),
            identities_only=values.get("identitiesonly", False),
            connect_seconds=values.get("connecttimeout"),
            known_hosts=paths(values.get("userknownhostsfile", ())),
        )


def read(path: Path, conditions: tuple[Line, ...] = (), depth: int = 0) -> Iterator[Line]:
    """The lines of a file and of those it includes.

    Raises:
        TargetError: a file cannot be read, or a line has no keyword or an open quote.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise TargetError(
            f"{path} cannot be read: {error.strerror}", "make it readable, or move it away"
        ) from None
    here = conditions
    for number, raw in enumerate(text.splitlines(), 1):
        stripped = raw.strip()
        if not stripped or stripped.startswith("#"):
            continue
        where = f"{path}, line {number}"
        found = KEYWORD.fullmatch(stripped)
        if not found:
            raise Line(printable(stripped, 60), (), where).wrong("has no keyword")
        line = Line(found[1].lower(), (), where, here)
        line = Line(line.keyword, split(found[2], line), where, here)
        if line.keyword in ("host", "match"):
            if not line.words:
                raise line.wrong("names nothing")
            here = (*conditions, line)
        elif line.keyword == "include":
            if depth == DEEPEST:
                raise line.wrong("includes files without end")
            for pattern in line.words:
                for file in included(pattern):
                    yield from read(file, here, depth + 1)
        yield line


def included(pattern: str) -> list[Path]:
    """The files an Include names; as in OpenSSH a pattern that fits nothing is no mistake."""
    path = Path(pattern).expanduser()
    if not path.is_absolute():
        path = Path.home() / ".ssh" / path
    return sorted(found for found in path.parent.glob(path.name) if found.is_file())


def split(text: str, line: Line) -> tuple[str, ...]:
    """Words, quoted or not; what follows a # that begins a word is a comment.

    Raises:
        TargetError: a quote is not closed.
    """
    words: list[str] = []
    at = 0
    while text[at:].strip():
        found = WORD.match(text, at)
        if not found:
            raise Line(line.keyword, (text,), line.where).wrong("has a quote that is not closed")
        if found[2] and found[2].startswith("#"):
            break
        words.append(found[1] if found[1] is not None else found[2])
        at = found.end()
    return tuple(words)


def fits(condition: Line, typed: str, host: str, user: str) -> bool:
    """Whether a Host or Match line speaks of a connection."""
    if condition.keyword == "host":
        return listed(condition.words, typed)
    subjects = {"host": host, "originalhost": typed, "user": user, "localuser": local_user()}
    words = list(condition.words)
    while words:
        criterion = words.pop(0).lower()
        if criterion == "all":
            continue
        negated, name = criterion.startswith("!"), criterion.removeprefix("!")
        # exec would run a command, canonical and final need a second pass: such a block does not apply.
        if name not in subjects or not words:
            return False
        if listed(words.pop(0).split(","), subjects[name]) is negated:
            return False
    return True


def by_name(condition: Line, typed: str) -> bool:
    """Whether a Host line names a host by more than `*`."""
    return condition.keyword == "host" and listed([word for word in condition.words if word != "*"], typed)


def listed(patterns: Sequence[str], name: str) -> bool:
    """Whether patterns with * and ? fit; a negated one that fits wins."""
    found = False
    for pattern in patterns:
        negated = pattern.startswith("!")
        # OpenSSH knows no brackets.
        if fnmatchcase(name.lower(), pattern.removeprefix("!").lower().replace("[", "[[]")):
            if negated:
                return False
            found = True
    return found


def expand(text: str, **tokens: str) -> str:
    """`%h` and its like; an unknown one stays as it is."""
    return re.sub(r"%(.)", lambda found: {"%": "%", **tokens}.get(found[1], found[0]), text)


def local_user() -> str:
    """Who runs this, as OpenSSH logs in when nobody is named; empty when the system does not say."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def read_port(line: Line) -> int:
    text = line.words[0]
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise line.wrong("is not a port from 1 to 65535")
    return int(text)


def read_yes(line: Line) -> bool:
    answer = {"yes": True, "true": True, "no": False, "false": False}.get(line.words[0].lower())
    if answer is None:
        raise line.wrong("is neither yes nor no")
    return answer


def read_seconds(line: Line) -> float | None:
    if line.words[0].lower() == "none":
        return None
    found = re.fullmatch(r"([0-9]{1,6})([smh]?)", line.words[0].lower())
    if not found or not int(found[1]):
        raise line.wrong("is not a time in seconds")
    return float(int(found[1]) * SECONDS[found[2]])


def read_jumps(line: Line) -> tuple[str, ...]:
    if line.words[0].lower() == "none":
        return ()
    hops = tuple(hop.strip().removeprefix("ssh://").rstrip("/") for hop in "".join(line.words).split(","))
    if not all(hops):
        raise line.wrong("names a hop without a host")
    return hops


def refuse_command(line: Line) -> None:
    if line.words[0].lower() != "none":
        error = line.wrong("is a command, and edgeferry runs none to reach a device")
        raise TargetError(error.message, "write ProxyJump with the host in between, in its place")


def first(line: Line) -> str:
    return line.words[0]


# What reads each keyword that is followed; every other one is passed over.
READERS: dict[str, Callable[[Line], Any]] = {
    "hostname": first,
    "user": first,
    "port": read_port,
    "identityfile": first,
    "identitiesonly": read_yes,
    "connecttimeout": read_seconds,
    "userknownhostsfile": lambda line: line.words,
    "proxyjump": read_jumps,
    "proxycommand": refuse_command,
}

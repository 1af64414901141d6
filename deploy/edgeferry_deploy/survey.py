"""One look at a device: one command, one parser, nothing written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from edgeferry_deploy import commands
from edgeferry_deploy.errors import DeviceUnfitError, printable
from edgeferry_deploy.owner import Holder
from edgeferry_deploy.release import Blob, Record, member_lines
from edgeferry_deploy.transport import Transport, checked, reply_error

__all__ = ["RELEASE", "Python", "Survey", "look", "parse_survey", "reply_lines", "require_python"]

RELEASE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}-[0-9a-f]{12}")
DIGEST = re.compile(r"[0-9a-f]{64}")
ENV = re.compile(r"[0-9a-f]{12}")
GLIBC = re.compile(r"glibc (\d{1,4}\.\d{1,4})(?:\.\d+)*", re.ASCII)
OLDEST_PYTHON = (3, 7)
INTERPRETERS = ("ai_edge_litert", "tflite_runtime")


@dataclass(frozen=True)
class Python:
    """The Python the device offers.

    Attributes:
        path: its absolute path.
        version: (3, 11, 2); empty when the program did not answer like a Python.
        modules: which of numpy, ai_edge_litert and tflite_runtime it can find.
        machine: `uname -m`.
        bits: of its pointers: 32 on a 64-bit kernel with a 32-bit userland; 0 when not said.
        glibc: "2.36"; empty where it is another libc, or not said.
        ram_mb: MiB the system can use; 0 when not said.
        edgetpu: whether an Edge TPU is plugged in; None when not said.
        said: the first words of its answer, for messages.
    """

    path: str
    version: tuple[int, ...] = ()
    modules: frozenset[str] = frozenset()
    machine: str = ""
    bits: int = 0
    glibc: str = ""
    ram_mb: int = 0
    edgetpu: bool | None = None
    said: str = ""


@dataclass(frozen=True)
class Survey:
    """What a device looks like.

    Attributes:
        root: absolute path of edgeferry's folder.
        obstacle: the existing path that cannot be written to; empty when all is well.
        blobs: of those asked for, the ones that are there, and whether their content is right.
        parts: bytes of each partial upload, by digest.
        damaged: members of the release asked for that are missing or altered.
        releases: what `releases/` holds, by id; None for a release that was never switched to.
        envs: what `env/` holds, and whether it is whole.
        free_kib: space an unprivileged user may still fill; None when the device does not say.
        used_kib: what the root takes.
        holder: who is changing the device now.
        manager: who keeps a service running there: system, user, supervised; empty when nothing was set up.
        config: SHA-256 of shared/run.json; empty when there is none.
        trial: the release that somebody switched to and nobody has proven yet.
    """

    root: str
    obstacle: str = ""
    python: Python | None = None
    blobs: dict[str, bool] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    current: str = ""
    previous: str = ""
    releases: dict[str, Record | None] = field(default_factory=dict)
    envs: dict[str, bool] = field(default_factory=dict)
    free_kib: int | None = None
    used_kib: int = 0
    holder: Holder | None = None
    manager: str = ""
    config: str = ""
    trial: str = ""


def look(
    transport: Transport, root: str, *, blobs: Iterable[Blob] = (), release: str = "", python: str = ""
) -> Survey:
    """Ask the device what it has: one round trip.

    Args:
        root: edgeferry's folder there, absolute or below `~`.
        blobs: content whose presence matters.
        release: the id those blobs make up; its members are verified when it exists.
        python: the Python to use; by default ROOT/venv/bin/python3, then python3.

    Raises:
        CommandError, ConnectError: the device cannot be asked.
        DeviceReplyError: it answered something else.
    """
    argv = commands.survey(root, release, python)
    # Hashing on a slow card takes its time: 16 MB/s is what a Pi Zero's card reads.
    wanted = tuple(blobs)
    seconds = 60 + 2 * sum(blob.size for blob in wanted) / 16e6
    done = checked(transport, argv, member_lines(wanted), seconds)
    try:
        return parse_survey(done.stdout)
    except ValueError as error:
        raise reply_error(argv, transport.name, done.stdout, str(error)) from None


def reply_lines(raw: bytes, first: str) -> Iterator[list[str]]:
    """The tab-separated lines between `first` and `end`; what a login shell printed before is skipped.

    Raises:
        ValueError: either line is missing.
    """
    lines = raw.decode("utf-8", errors="replace").split("\n")
    if first not in lines:
        raise ValueError("does not begin as it should")
    body = lines[lines.index(first) + 1 :]
    if "end" not in body:
        raise ValueError("breaks off")
    for line in body[: body.index("end")]:
        yield line.split("\t")


def parse_survey(raw: bytes) -> Survey:
    """The survey in a reply.

    Raises:
        ValueError: it is no reply of the survey command; says why.
    """
    values: dict[tuple[str, str], str] = {}
    blobs: dict[str, bool] = {}
    parts: dict[str, int] = {}
    damaged: list[str] = []
    releases: dict[str, Record | None] = {}
    envs: dict[str, bool] = {}
    holder: Holder | None = None
    for words in reply_lines(raw, "edgeferry-survey 1"):
        if len(words) < 3:
            raise ValueError(f"has a line it should not have: {printable(words[0], 40)!r}")
        kind, name, rest = words[0], words[1], words[2:]
        if kind == "blob" and DIGEST.fullmatch(name):
            blobs[name] = rest[0] == "good"
        elif kind == "part" and DIGEST.fullmatch(name):
            parts[name] = int(rest[0]) if rest[0].isdecimal() else 0
        elif kind == "damaged":
            damaged.append(printable(rest[0], 200))
        elif kind == "release" and RELEASE.fullmatch(name):
            releases[name] = Record.from_json(rest[0])
        elif kind == "env" and ENV.fullmatch(name):
            envs[name] = rest[0] == "ready"
        elif kind == "lease":
            holder = Holder.parse(words[1:])
        elif kind == "probe":
            values[kind, rest[0]] = rest[1] if len(rest) > 1 else ""
            values.setdefault(("probe", ""), "\t".join(rest))
        else:
            values[kind, name] = rest[0]
    root = next((name for kind, name in values if kind == "root"), "")
    if not root.startswith("/") or not root.isprintable():
        raise ValueError("names no root")
    writable, _, base = values["root", root].partition(" ")
    current = linked(values.get(("link", "current"), ""))
    links = [linked(values.get(("link", name), "")) for name in ("previous", "undo")]
    # Equal links are a switch that was cut between its two renames: undo has what previous was.
    previous = links[0] if links[0] != current else links[1]
    return Survey(
        root=root,
        obstacle=(printable(base) or root) if writable == "unwritable" else "",
        python=parse_python(values),
        blobs=blobs,
        parts=parts,
        damaged=tuple(damaged),
        current=current,
        previous=previous if previous != current else "",
        releases=releases,
        envs=envs,
        free_kib=number(values.get(("disk", "free"), ""), 3),
        used_kib=number(values.get(("disk", "used"), ""), 0) or 0,
        holder=holder,
        manager=printable(values.get(("service", "manager"), "").partition(" ")[0], 20),
        config=digest if DIGEST.fullmatch(digest := values.get(("service", "config"), "")) else "",
        trial=printable(values.get(("service", "trial"), ""), 100),
    )


def parse_python(values: dict[tuple[str, str], str]) -> Python | None:
    """The Python a survey found; None when there is none."""
    path = values.get(("python", "path"), "")
    if not path:
        return None
    probed = {key: value for (kind, key), value in values.items() if kind == "probe"}
    version = probed.get("version", "").split(".")
    executable = probed.get("executable", "")
    return Python(
        path=executable if executable.startswith("/") and executable.isprintable() else path,
        version=tuple(int(part) for part in version if part.isdecimal()),
        modules=frozenset(name for name in ("numpy", *INTERPRETERS) if probed.get(name) == "yes"),
        machine=printable(probed.get("machine", ""), 32),
        bits=number(probed.get("bits", ""), 0) or 0,
        glibc=glibc[1] if (glibc := GLIBC.fullmatch(probed.get("libc", ""))) else "",
        ram_mb=number(probed.get("ram", ""), 0) or 0,
        edgetpu={"yes": True, "no": False}.get(probed.get("edgetpu", "")),
        said=printable(probed.get("", ""), 120),
    )


def linked(text: str) -> str:
    """The release a link names; empty for anything else."""
    folder, _, name = text.rpartition("/")
    return name if folder == "releases" and RELEASE.fullmatch(name) else ""


def number(line: str, column: int) -> int | None:
    """A column of df's or du's output; None when there is none."""
    words = line.split()
    return int(words[column]) if len(words) > column and words[column].isdecimal() else None


def require_python(survey: Survey, device: str, chosen: str = "") -> Python:
    """The device's Python, when it can run the runtime.

    Args:
        device: its name, for the message.
        chosen: what --python named.

    Raises:
        DeviceUnfitError: no Python, one that is too old or broken, no numpy, no interpreter.
    """
    venv = f"{survey.root}/venv"
    # Debian's own Python takes no packages (PEP 668), so a venv; numpy<2 because tflite-runtime breaks on 2.
    fresh = f"python3 -m venv {venv} && {venv}/bin/pip install ai-edge-litert opencv-python-headless"
    old = "(32-bit, or Python before 3.9: pip install tflite-runtime 'numpy<2' opencv-python-headless)"
    build = f"on the board: {fresh} {old}"
    python = survey.python
    if python is None:
        where = f"no {chosen}" if chosen else f"neither {venv}/bin/python3 nor python3 on PATH"
        raise DeviceUnfitError(
            f"{device} has no Python: {where}",
            "name one with --python" if chosen else "on the board: sudo apt install python3; push brings the rest",
        )
    if not python.version:
        raise DeviceUnfitError(
            f"{python.path} on {device} does not answer like a Python: {python.said or 'it printed nothing'}",
            f"name another with --python; or {build}",
        )
    if python.version[:2] < OLDEST_PYTHON:
        found = ".".join(map(str, python.version))
        raise DeviceUnfitError(
            f"{python.path} on {device} is Python {found}; the runtime needs 3.7", "name a newer one with --python"
        )
    install = f"leave --env board out, and push brings it; or {build}; or name another Python with --python"
    if "numpy" not in python.modules:
        raise DeviceUnfitError(f"{python.path} on {device} has no numpy", install)
    if not python.modules.intersection(INTERPRETERS):
        raise DeviceUnfitError(
            f"{python.path} on {device} has no interpreter: neither ai-edge-litert nor tflite-runtime", install
        )
    return python

"""Blobs that cross the wire compressed or as a difference, and are rebuilt by the device's Python."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from edgeferry_deploy import commands
from edgeferry_deploy.delta import Delivery, plan_delivery
from edgeferry_deploy.errors import CommandError
from edgeferry_deploy.release import Blob
from edgeferry_deploy.sent import SentBlobs
from edgeferry_deploy.survey import reply_lines
from edgeferry_deploy.transport import Transport, checked, reply_error

__all__ = ["Holdings", "Packed", "Wanted", "ask_holdings", "pack", "parse_holdings", "rebuild"]

WORTH_ASKING = 64 * 1024  # bytes of a payload whose first half may be there from an upload that was cut
TRIED = 3  # bases a blob
ALIKE = 4  # a base differs in length by at most one part in so many
SLOWEST = 1e6  # bytes a second that the slowest board unpacks

HOLDINGS = r"""
set -u
export LC_ALL=C
echo 'edgeferry-holdings 1'
cd -- "$1/blobs" 2>/dev/null && wc -c -- * 2>/dev/null
echo end
"""

REBUILD = r"""
set -u
umask 022
cd -- "$1/blobs" || exit
exec "$2" -S -c "$3"
"""

LINE = re.compile(r"\s*(\d{1,15})\s+([0-9a-f]{64})(\.part)?")


@dataclass(frozen=True)
class Holdings:
    """Bytes of each blob and of each partial upload on the device, by SHA-256."""

    blobs: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """A blob the device lacks: its bytes, and how many of them are missing there."""

    blob: Blob
    data: bytes
    missing: int


@dataclass(frozen=True)
class Packed:
    """A blob, the form it is sent in, and how much of that form is there already."""

    blob: Blob
    form: Delivery
    offset: int = 0

    @property
    def payload(self) -> Blob:
        """What is sent, as a blob of its own."""
        return Blob(self.blob.member, self.form.digest, len(self.form.payload), self.form.payload)

    @property
    def line(self) -> str:
        """What the rebuild command reads."""
        form, blob = self.form, self.blob
        return f"{form.digest} {form.codec} {blob.sha256} {blob.size} {form.base or '-'} {form.split}\n"


def pack(wanted: Iterable[Wanted], kept: SentBlobs, holdings: Callable[[], Holdings]) -> tuple[Packed, ...]:
    """The blobs that are worth packing, each in its smallest form.

    Args:
        kept: what was sent before.
        holdings: asks the device what it has; called once at most, and only when the answer can matter.
    """
    there: Holdings | None = None
    sizes, found = kept.sizes(), []
    for item in wanted:
        likely = alike(item.blob, sizes)
        if likely and there is None:
            there = holdings()
        usable = [name for name in likely if there and there.blobs.get(name) == sizes[name]][:TRIED]
        bases = {name: data for name in usable if (data := kept.read(name)) is not None}
        form = plan_delivery(item.data, item.missing, bases)
        if form.how == "full":
            continue
        offset = 0
        if form.size > WORTH_ASKING:
            there = there or holdings()
            part = there.parts.get(form.digest, 0)
            offset = part if part <= form.size else 0
        found.append(Packed(item.blob, form, offset))
    return tuple(found)


def alike(blob: Blob, sizes: Mapping[str, int]) -> list[str]:
    """Blobs of about the same length; those of the very same length first, then as they were given."""
    near = [name for name, size in sizes.items() if abs(size - blob.size) * ALIKE <= blob.size]
    return sorted((name for name in near if name != blob.sha256), key=lambda name: sizes[name] != blob.size)


def ask_holdings(transport: Transport, root: str) -> Holdings:
    """What lies in the device's store: one round trip.

    Raises:
        CommandError, DeviceReplyError: the device did not answer as it should.
    """
    argv = commands.script("holdings", HOLDINGS, root)
    done = checked(transport, argv)
    try:
        return parse_holdings(done.stdout)
    except ValueError as error:
        raise reply_error(argv, transport.name, done.stdout, str(error)) from None


def parse_holdings(raw: bytes) -> Holdings:
    """The answer of the holdings command; lines that name no blob are passed over.

    Raises:
        ValueError: it is no such answer.
    """
    blobs: dict[str, int] = {}
    parts: dict[str, int] = {}
    for words in reply_lines(raw, "edgeferry-holdings 1"):
        found = LINE.fullmatch(words[0])
        if found and len(words) == 1:
            (parts if found[3] else blobs)[found[2]] = int(found[1])
    return Holdings(blobs, parts)


def rebuild(transport: Transport, root: str, python: str, packed: Sequence[Packed]) -> set[str]:
    """Have the device turn payloads into partial uploads of the blobs; the digests of those it could not.

    A device whose Python lacks a codec, runs out of memory or lost the base only costs time: the caller sends
    the blob itself.

    Raises:
        LinkLostError: the session broke.
    """
    if not packed:
        return set()
    source = pkgutil.get_data("edgeferry_runtime", "patching.py") or b""
    argv = commands.script("rebuild", REBUILD, root, python, source.decode())
    seconds = 60 + sum(item.blob.size for item in packed) / SLOWEST
    try:
        done = checked(transport, argv, "".join(item.line for item in packed).encode(), seconds)
        lines = [words for words in reply_lines(done.stdout, "edgeferry-rebuild 1") if len(words) > 1]
    except (CommandError, ValueError):
        lines = []
    rebuilt = {words[1] for words in lines if words[0] == "rebuilt"}
    return {item.blob.sha256 for item in packed} - rebuilt

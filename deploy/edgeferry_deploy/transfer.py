"""Send missing blobs: resumed where a cut upload stopped, hashed on the device before they count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from edgeferry_deploy import commands
from edgeferry_deploy.errors import TransferError
from edgeferry_deploy.release import Blob
from edgeferry_deploy.survey import reply_lines
from edgeferry_deploy.transport import SLICE, Transport, checked, reply_error

__all__ = ["Upload", "plan_uploads", "send_blobs", "slices"]

Read = Callable[[Blob], bytes]
Advance = Callable[[int], None]

SMALL = 64 * 1024  # bytes; blobs up to this share a stream, for each command costs three round trips of the link
SLOWEST = 16 * 1024  # bytes a second; slower than a bad mobile link means the device is stuck


@dataclass(frozen=True)
class Upload:
    """A blob that has to be sent from `offset` bytes on."""

    blob: Blob
    offset: int = 0

    @property
    def size(self) -> int:
        """Bytes still to send."""
        return self.blob.size - self.offset


def plan_uploads(wanted: Iterable[Blob], have: dict[str, bool], parts: dict[str, int]) -> tuple[Upload, ...]:
    """What has to be sent, each content once.

    Args:
        have: blobs on the device, and whether their content is right.
        parts: bytes of each partial upload there.
    """
    missing = {blob.sha256: blob for blob in wanted if not have.get(blob.sha256)}
    uploads = []
    for blob in missing.values():
        there = parts.get(blob.sha256, 0)
        # What is small is sent whole: that is cheaper than a command of its own.
        uploads.append(Upload(blob, there if SMALL < blob.size >= there else 0))
    return tuple(uploads)


def send_blobs(
    transport: Transport,
    root: str,
    python: str,
    uploads: Iterable[Upload],
    read: Read,
    advance: Advance | None = None,
) -> None:
    """Send blobs and have the device hash and keep them; a wrong one is sent whole once more.

    Args:
        python: the device's Python, which takes the small ones apart.
        read: gives a blob's bytes.
        advance: told how many bytes went out, for a progress bar.

    Raises:
        TransferError: content arrived wrong twice.
        CommandError: the device could not write; a partial upload stays and is resumed by the next push.
    """
    pending = tuple(uploads)
    for attempt in ("as planned", "whole"):
        small = [upload.blob for upload in pending if upload.blob.size <= SMALL]
        if small:
            send_small(transport, root, python, small, read, advance)
        for upload in pending:
            if upload.blob.size > SMALL and upload.size:
                send(transport, root, upload, read(upload.blob), advance)
        wrong = publish(transport, root, [upload.blob for upload in pending])
        if not wrong:
            return
        pending = tuple(Upload(upload.blob) for upload in pending if upload.blob.sha256 in wrong)
        if attempt == "whole":
            break
    names = ", ".join(upload.blob.member for upload in pending)
    raise TransferError(
        f"{names} arrived at {transport.name} with another SHA-256 twice",
        "the device's memory or card may be failing: run `sudo badblocks -sv` on the card, or try another",
    )


def send_small(
    transport: Transport, root: str, python: str, blobs: Sequence[Blob], read: Read, advance: Advance | None
) -> None:
    """Send many small blobs in one stream."""

    def stream() -> Iterator[bytes]:
        for blob in blobs:
            data = read(blob)
            yield f"{blob.sha256} {len(data)}\n".encode() + data
            if advance:
                advance(len(data))

    checked(transport, commands.receive_many(root, python), stream(), 60 + sum(b.size for b in blobs) / SLOWEST)


def send(transport: Transport, root: str, upload: Upload, data: bytes, advance: Advance | None) -> None:
    """Feed the rest of a blob into its partial file."""
    path = f"{root}/blobs/{upload.blob.sha256}.part"
    seconds = 60 + upload.size / SLOWEST
    transport.upload(slices(data, upload.offset, advance), path, upload.offset, seconds)


def slices(data: bytes, offset: int = 0, advance: Advance | None = None) -> Iterator[bytes]:
    """`data` from `offset` on, in packets; `advance` hears of each before the next is asked for."""
    for start in range(offset, len(data), SLICE):
        part = data[start : start + SLICE]
        yield part
        if advance:
            advance(len(part))


def publish(transport: Transport, root: str, blobs: Iterable[Blob]) -> set[str]:
    """Have the device hash partial uploads and keep the right ones; the digests of the wrong ones."""
    wanted = {blob.sha256: blob for blob in blobs}
    if not wanted:
        return set()
    argv = commands.publish(root)
    stdin = "".join(f"{blob.sha256} {blob.size}\n" for blob in wanted.values()).encode()
    seconds = 60 + 2 * sum(blob.size for blob in wanted.values()) / 8e6  # read and fsync on a slow card
    done = checked(transport, argv, stdin, seconds)
    try:
        stored = {words[1] for words in reply_lines(done.stdout, "edgeferry-publish 1") if words[0] == "stored"}
    except (ValueError, IndexError) as error:
        raise reply_error(argv, transport.name, done.stdout, str(error)) from None
    return set(wanted) - stored

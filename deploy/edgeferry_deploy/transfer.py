"""Send missing blobs in their smallest form: resumed where a cut upload stopped, hashed on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from edgeferry_deploy import commands
from edgeferry_deploy.errors import TransferError
from edgeferry_deploy.packed import Packed, Wanted, ask_holdings, pack, rebuild
from edgeferry_deploy.release import Blob
from edgeferry_deploy.sent import SentBlobs
from edgeferry_deploy.survey import reply_lines
from edgeferry_deploy.transport import SLICE, Transport, checked, reply_error

__all__ = ["Sent", "Upload", "plan_uploads", "send_blobs", "slices"]

Read = Callable[[Blob], bytes]
Advance = Callable[[int], None]

SMALL = 64 * 1024  # bytes; blobs up to this share a stream, for each command costs three round trips of the link
SLOWEST = 16 * 1024  # bytes a second; slower than a bad mobile link means the device is stuck


@dataclass(frozen=True)
class Upload:
    """A blob that has to be sent from `offset` bytes on.

    Attributes:
        stands_for: bytes of the blob that it becomes on the device; 0 when it is that blob.
    """

    blob: Blob
    offset: int = 0
    stands_for: int = 0

    @property
    def size(self) -> int:
        """Bytes still to send."""
        return self.blob.size - self.offset


@dataclass(frozen=True)
class Sent:
    """How a blob went.

    Attributes:
        how: full, compressed or delta.
        size: bytes that crossed the wire for it.
    """

    blob: Blob
    how: str
    size: int


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
    kept: SentBlobs | None = None,
) -> tuple[Sent, ...]:
    """Send blobs and have the device hash and keep them; a wrong one is sent whole once more.

    Args:
        python: the device's Python, which takes the small ones apart and rebuilds compressed ones.
        read: gives a blob's bytes.
        advance: told how many of the uploads' bytes are done, for a progress bar; a compressed blob counts
            as many as it stands for.
        kept: what was sent before, by default this workstation's cache.

    Returns:
        How each blob went.

    Raises:
        TransferError: content arrived wrong twice.
        CommandError: the device could not write; a partial upload stays and is resumed by the next push.
    """
    kept = kept if kept is not None else SentBlobs()
    planned = {upload.blob.sha256: upload for upload in uploads}
    large = (Wanted(u.blob, content(u.blob, read), u.size) for u in planned.values() if worth_packing(u))
    packed = {item.blob.sha256: item for item in pack(large, kept, lambda: ask_holdings(transport, root))}
    sent = {digest: planned_way(upload, packed.get(digest)) for digest, upload in planned.items()}

    def send_whole(digests: set[str]) -> None:
        again = [Upload(planned[digest].blob) for digest in sorted(digests)]
        send_all(transport, root, python, again, read, None)
        for upload in again:
            digest = upload.blob.sha256
            sent[digest] = Sent(upload.blob, "full", sent[digest].size + upload.size)

    first = [as_payload(u, packed[digest]) if digest in packed else u for digest, u in planned.items()]
    send_all(transport, root, python, first, read, advance)
    send_whole(rebuild(transport, root, python, tuple(packed.values())))
    wrong = publish(transport, root, [upload.blob for upload in planned.values()])
    send_whole(wrong)
    wrong = publish(transport, root, [planned[digest].blob for digest in sorted(wrong)])
    if wrong:
        names = ", ".join(upload.blob.member for digest, upload in planned.items() if digest in wrong)
        raise TransferError(
            f"{names} arrived at {transport.name} with another SHA-256 twice",
            "the device's memory or card may be failing: run `sudo badblocks -sv` on the card, or try another",
        )
    for digest, upload in planned.items():
        if upload.blob.size > SMALL and not upload.blob.path:
            kept.keep(digest, content(upload.blob, read))
    return tuple(sent.values())


def worth_packing(upload: Upload) -> bool:
    """Whether another form may be smaller: wheels, which lie in files of their own, are zips already."""
    return upload.size > SMALL and upload.blob.path is None


def planned_way(upload: Upload, packed: Packed | None) -> Sent:
    """How a blob goes when nothing is lost on the way."""
    if packed is None:
        return Sent(upload.blob, "full", upload.size)
    return Sent(upload.blob, packed.form.how, packed.form.size - packed.offset)


def as_payload(upload: Upload, packed: Packed) -> Upload:
    """The upload of a payload in place of the blob's own."""
    return Upload(packed.payload, packed.offset, upload.size)


def content(blob: Blob, read: Read) -> bytes:
    """A blob's bytes."""
    return blob.data if blob.data is not None else read(blob)


def send_all(
    transport: Transport, root: str, python: str, uploads: Sequence[Upload], read: Read, advance: Advance | None
) -> None:
    """Send blobs as they are: the small ones in one stream, each other from where it was cut."""
    small = [upload for upload in uploads if upload.blob.size <= SMALL]
    if small:
        send_small(transport, root, python, small, read, advance)
    for upload in uploads:
        if upload.blob.size > SMALL and upload.size:
            send(transport, root, upload, content(upload.blob, read), advance)


def send_small(
    transport: Transport, root: str, python: str, uploads: Sequence[Upload], read: Read, advance: Advance | None
) -> None:
    """Send many small blobs in one stream."""

    def stream() -> Iterator[bytes]:
        for upload in uploads:
            data = content(upload.blob, read)
            yield f"{upload.blob.sha256} {len(data)}\n".encode() + data
            tell = scaled(advance, upload)
            if tell:
                tell(len(data))

    seconds = 60 + sum(upload.blob.size for upload in uploads) / SLOWEST
    checked(transport, commands.receive_many(root, python), stream(), seconds)


def send(transport: Transport, root: str, upload: Upload, data: bytes, advance: Advance | None) -> None:
    """Feed the rest of a blob into its partial file."""
    path = f"{root}/blobs/{upload.blob.sha256}.part"
    seconds = 60 + upload.size / SLOWEST
    transport.upload(slices(data, upload.offset, scaled(advance, upload)), path, upload.offset, seconds)


def scaled(advance: Advance | None, upload: Upload) -> Advance | None:
    """`advance` in bytes of what the upload stands for, so that a bar's total stays what was planned."""
    if advance is None or not upload.stands_for:
        return advance
    hear, done, told = advance, 0, 0

    def tell(count: int) -> None:
        nonlocal done, told
        done += count
        reached = upload.stands_for * done // max(1, upload.size)
        hear(reached - told)
        told = reached

    return tell


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

"""The bundle: one file (or folder) with everything a device needs, opened without trusting it.

A ``.ferry`` file is a zip whose members are stored, sorted and dated 1980-01-01, so that the same inputs give
the same bytes.  A folder with the same members is a bundle too; a release on the device is one.  Nothing is
handed out before its size and SHA-256 match the manifest: interpreters crash on a truncated model and run a
bit-flipped one without a word.
"""

from __future__ import annotations

import hashlib
import os
import stat
from types import TracebackType
from typing import IO, TYPE_CHECKING

from edgeferry_runtime.errors import BundleError, IntegrityError, MemberError
from edgeferry_runtime.manifest import MANIFEST_NAME, FileEntry, Manifest, is_member_name
from edgeferry_runtime.strict_json import MAX_BYTES

if TYPE_CHECKING:
    import tempfile
    from zipfile import ZipFile, ZipInfo

__all__ = ["Bundle", "file_entry", "write_bundle"]

MAX_MEMBERS = 4096
COPY_AGAIN = "Copy the bundle again, or convert the model again."
DAMAGED = "The file is damaged or was changed. " + COPY_AGAIN
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can hold
_CHUNK = 1 << 20


class Bundle:
    """An open bundle; use it as a context manager.

    Attributes:
        path: file or folder it was opened from.
        manifest: parsed and checked.
        manifest_bytes: manifest.json as it lies in the bundle.
    """

    def __init__(self, path: str, manifest_bytes: bytes, archive: ZipFile | None) -> None:
        self.path = path
        self.manifest_bytes = manifest_bytes
        self.manifest = Manifest.from_bytes(manifest_bytes, "{} in {}".format(MANIFEST_NAME, path))
        self._archive = archive
        self._verified: set[str] = set()
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open a ``.ferry`` file or a folder and check its manifest and its list of members.

        Raises:
            BundleError: it is no bundle (and its subclasses: ManifestError, MemberError, IntegrityError).
        """
        path = os.fspath(path)
        if os.path.isdir(path):
            return cls._open_folder(path)
        if not os.path.exists(path):
            raise BundleError("{}: no such bundle".format(path), "Check the path; convert writes NAME.ferry.")
        return cls._open_zip(path)

    @classmethod
    def _open_folder(cls, path: str) -> Bundle:
        manifest_path = os.path.join(path, MANIFEST_NAME)
        try:
            with open(manifest_path, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise BundleError(
                "{}: the folder is no bundle: {}".format(path, error.strerror),
                "Name a .ferry file or a release.",
            ) from None
        bundle = cls(path, data, None)
        for name, entry in bundle.manifest.files.items():
            bundle._check_size(name, entry, _regular_size(path, name))
        return bundle

    @classmethod
    def _open_zip(cls, path: str) -> Bundle:
        import zipfile  # a release on a board is a folder: its start does not pay for this

        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise BundleError(
                "{}: is no bundle, or only a part of one: {}".format(path, error), COPY_AGAIN
            ) from None
        try:
            members = _checked_members(path, archive)
            data = _read_zip(path, archive, MANIFEST_NAME)
            bundle = cls(path, data, archive)
            expected = set(bundle.manifest.files) | {MANIFEST_NAME}
            for name in sorted(expected ^ set(members)):
                kind = "is missing" if name in expected else "is not in the manifest"
                raise MemberError("{}: member {} {}".format(path, name, kind), DAMAGED)
            for name, entry in bundle.manifest.files.items():
                bundle._check_size(name, entry, members[name].file_size)
        except BaseException:
            archive.close()
            raise
        return bundle

    def read(self, name: str) -> bytes:
        """A member's bytes, verified.

        Raises:
            MemberError: the manifest does not name it, or it is gone.
            IntegrityError: its size or SHA-256 is not the manifest's.
        """
        entry = self._entry(name)
        if self._archive is not None:
            data = _read_zip(self.path, self._archive, name)
        else:
            _regular_size(self.path, name)
            with open(self._join(name), "rb") as file:
                data = file.read(entry.size + 1)
        self._check_size(name, entry, len(data))
        self._check_sha256(name, entry, hashlib.sha256(data).hexdigest())
        return data

    def verify(self) -> None:
        """Check every member's size and SHA-256.

        Raises:
            MemberError, IntegrityError: for the first member that is wrong.
        """
        for name in sorted(self.manifest.files):
            if self._archive is not None:
                self.read(name)
            else:
                self._verify_file(name)

    def file_path(self, name: str) -> str:
        """A path an interpreter can map into memory; the file behind it is verified.

        A member of a zip is unpacked into a private folder that lives as long as the bundle is open.
        """
        if self._archive is None:
            if name not in self._verified:
                self._verify_file(name)
            return self._join(name)
        if self._unpacked is None:
            import tempfile

            self._unpacked = tempfile.TemporaryDirectory(prefix="edgeferry-")
        path = os.path.join(self._unpacked.name, name.replace("/", "_"))
        if name not in self._verified:
            data = self.read(name)
            with open(path, "wb") as file:
                file.write(data)
            self._verified.add(name)
        return path

    def close(self) -> None:
        """Close the file and remove what was unpacked; harmless twice."""
        if self._archive is not None:
            self._archive.close()
        if self._unpacked is not None:
            self._unpacked.cleanup()
            self._unpacked = None
            self._verified.clear()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _entry(self, name: str) -> FileEntry:
        try:
            return self.manifest.files[name]
        except KeyError:
            raise MemberError("{}: has no member {}".format(self.path, name), COPY_AGAIN) from None

    def _join(self, name: str) -> str:
        return os.path.join(self.path, *name.split("/"))

    def _verify_file(self, name: str) -> None:
        entry = self._entry(name)
        self._check_size(name, entry, _regular_size(self.path, name))
        with open(self._join(name), "rb") as file:
            self._check_sha256(name, entry, _sha256(file))
        self._verified.add(name)

    def _check_size(self, name: str, entry: FileEntry, size: int) -> None:
        if size != entry.size:
            raise IntegrityError(
                "{}: member {} has {} bytes, the manifest says {}".format(self.path, name, size, entry.size),
                DAMAGED,
            )

    def _check_sha256(self, name: str, entry: FileEntry, digest: str) -> None:
        if digest != entry.sha256:
            raise IntegrityError(
                "{}: member {} has SHA-256 {}, the manifest says {}".format(self.path, name, digest, entry.sha256),
                DAMAGED,
            )


def file_entry(data: bytes) -> FileEntry:
    """What the manifest says of a member with these bytes."""
    return FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def write_bundle(path: str | os.PathLike[str], manifest: Manifest, members: dict[str, bytes]) -> str:
    """Write a ``.ferry`` file, whole or not at all.

    Args:
        path: where it goes; an existing file is replaced at once, never half.
        manifest: its ``files`` must describe exactly ``members``.
        members: bytes by member name.

    Returns:
        The bundle's content version.

    Raises:
        MemberError: manifest and members do not belong together, or a name may not be used.
    """
    import zipfile

    if manifest.files != {name: file_entry(data) for name, data in members.items()}:
        raise MemberError("the manifest does not describe the members it is to be written with")
    data = manifest.to_bytes()
    version = Manifest.from_bytes(data).version  # what cannot be read back is never written
    path = os.fspath(path)
    import tempfile

    handle, partial = tempfile.mkstemp(prefix=".", suffix=".part", dir=os.path.dirname(os.path.abspath(path)))
    try:
        with os.fdopen(handle, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, content in [(MANIFEST_NAME, data), *sorted(members.items())]:
                    info = zipfile.ZipInfo(name, _EPOCH)
                    info.create_system = 3  # the writer's system must not show in the bytes
                    info.external_attr = (stat.S_IFREG | 0o644) << 16
                    archive.writestr(info, content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    return version


def _checked_members(path: str, archive: ZipFile) -> dict[str, ZipInfo]:
    """Members by name, after every way a zip can lie about them has been ruled out."""
    import zipfile

    members: dict[str, ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename
        problem = ""
        if not is_member_name(name):
            problem = "has a name that could leave the folder it is unpacked in"
        elif name in members:
            problem = "is there twice"
        elif stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            problem = "is no regular file"
        elif info.flag_bits & 0x1:
            problem = "is encrypted"
        elif info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            problem = "is compressed, members of a bundle are stored"
        if problem:
            raise MemberError("{}: member {!r} {}".format(path, name, problem), COPY_AGAIN)
        members[name] = info
    # Stored members that overlap are a zip bomb without compression.
    if len(members) > MAX_MEMBERS or sum(i.file_size for i in members.values()) > os.path.getsize(path):
        raise MemberError("{}: claims more data than the file holds".format(path), COPY_AGAIN)
    if MANIFEST_NAME not in members:
        raise MemberError("{}: has no {}, so it is no bundle".format(path, MANIFEST_NAME), COPY_AGAIN)
    if members[MANIFEST_NAME].file_size > MAX_BYTES:
        raise MemberError("{}: {} is too large".format(path, MANIFEST_NAME), COPY_AGAIN)
    return members


def _read_zip(path: str, archive: ZipFile, name: str) -> bytes:
    import zipfile

    try:
        return archive.read(name)
    except (zipfile.BadZipFile, KeyError, EOFError, OSError, ValueError, RuntimeError) as error:
        raise IntegrityError("{}: member {} cannot be read: {}".format(path, name, error), DAMAGED) from None


def _regular_size(folder: str, name: str) -> int:
    """Size of a member of a folder, which must be a regular file reached without symbolic links.

    Hard links are fine: a release on the device consists of them.
    """
    here = folder
    for part in name.split("/"):
        here = os.path.join(here, part)
        try:
            mode = os.lstat(here)
        except OSError as error:
            raise MemberError(
                "{}: member {} is missing: {}".format(folder, name, error.strerror), DAMAGED
            ) from None
        if stat.S_ISLNK(mode.st_mode):
            raise MemberError("{}: member {} is a symbolic link".format(folder, name), COPY_AGAIN)
    if not stat.S_ISREG(mode.st_mode):
        raise MemberError("{}: member {} is no regular file".format(folder, name), COPY_AGAIN)
    return mode.st_size


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in iter(lambda: file.read(_CHUNK), b""):
        digest.update(chunk)
    return digest.hexdigest()

"""What was sent before, kept on this workstation: a difference needs the bytes that the device has.

Nothing depends on it: a file that is missing, damaged or not writable costs bytes on the wire and no more.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from pathlib import Path

__all__ = ["SentBlobs", "cache_folder"]

LIMIT = 512 * 1024 * 1024  # bytes; the blobs that were longest not used go first
DIGEST = re.compile(r"[0-9a-f]{64}")


def cache_folder() -> Path:
    """Where edgeferry keeps what it can do without; EDGEFERRY_CACHE_DIR overrides the system's place."""
    chosen = os.environ.get("EDGEFERRY_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "edgeferry" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeferry"


class SentBlobs:
    """Blobs by their SHA-256.

    Args:
        folder: by default `sent` in the cache folder.
        limit: bytes that are kept.
    """

    def __init__(self, folder: Path | None = None, limit: int = LIMIT) -> None:
        self._folder = folder if folder is not None else cache_folder() / "sent"
        self._limit = limit

    def sizes(self) -> dict[str, int]:
        """Bytes of each blob that is kept, the one used last first."""
        found = []
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                with contextlib.suppress(OSError):
                    if DIGEST.fullmatch(path.name):
                        seen = path.stat()
                        found.append((seen.st_mtime, path.name, seen.st_size))
        return {name: size for _, name, size in sorted(found, reverse=True)}

    def read(self, sha256: str) -> bytes | None:
        """A blob's bytes; None when it is not there, or not what its name says."""
        path = self._folder / sha256
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def keep(self, sha256: str, data: bytes) -> None:
        """Keep a blob that a device has now, and drop old ones beyond the limit."""
        if len(data) > self._limit:
            return
        path = self._folder / sha256
        with contextlib.suppress(OSError):
            if path.exists():
                os.utime(path)
                return
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=".sent-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        self._prune()

    def _prune(self) -> None:
        total = 0
        for name, size in self.sizes().items():
            total += size
            if total > self._limit:
                with contextlib.suppress(OSError):
                    (self._folder / name).unlink()

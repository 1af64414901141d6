"""Notices that the path of a bundle leads to another version."""

from __future__ import annotations

import logging
import os

from edgeferry_runtime.errors import EdgeferryError, UsageError
from edgeferry_runtime.manifest import MANIFEST_NAME
from edgeferry_runtime.observer import Observer
from edgeferry_runtime.versions import Versions

__all__ = ["Watcher"]

_LOG = logging.getLogger("edgeferry")


class Watcher(Observer):
    """Asks for a reload when the path of the bundle leads to another version, or when somebody asked for one.

    What it finds must lie still for a tick: a file that is being copied is not looked at.

    Args:
        versions: told to reload.
    """

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._asked = False
        self._known = self._seen = _signature(versions.path)

    def ask(self) -> None:
        """Reload at the next tick; may be called by a signal's handler."""
        self._asked = True

    def tick(self) -> None:
        found = _signature(self._versions.path)
        changed = found != self._known and found == self._seen and found is not None
        self._seen = found
        if not (changed or self._asked):
            return
        asked, self._asked = self._asked, False
        try:
            self._versions.reload()
        except EdgeferryError as error:
            if isinstance(error, UsageError) and "still being loaded" in error.message:
                self._asked = True
                return
            if asked or not isinstance(error, UsageError):
                _LOG.warning("no other version is loaded: %s", error.message)
        self._known = found


def _signature(path: str) -> tuple[object, ...] | None:
    """What changes when the bundle behind a path does; None where there is none."""
    real = os.path.realpath(path)
    manifest = os.path.join(real, MANIFEST_NAME)
    try:
        found = os.stat(manifest if os.path.isdir(real) else real)
    except OSError:
        return None
    return real, found.st_ino, found.st_size, found.st_mtime_ns

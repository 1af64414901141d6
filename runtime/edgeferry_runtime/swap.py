"""One attempt to change what runs, from the first check to its end."""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["Swap"]


class Swap:
    """One attempt to change the version.

    Attributes:
        path: the bundle's, resolved: not the link it was reached by.
        identity: name and short version of what is to run, and its variant where one was asked for.
        variant: to open; None leaves the choice to who opens it.
        stage: "checking", "loading", "ready", "swapped" or "refused".
        why: it was refused.
        gap_ms: between the last result before and the first of the new version; None before that.
    """

    def __init__(self, path: str, identity: str, variant: str | None, began: float) -> None:
        self.path = path
        self.identity = identity
        self.variant = variant
        self.began = began
        self.stage = "checking"
        self.why = ""
        self.gap_ms: float | None = None
        self._over = threading.Event()

    @property
    def over(self) -> bool:
        """Whether it has come to its end, good or bad."""
        return self._over.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; returns whether it has come."""
        return self._over.wait(timeout_s)

    def end(self, stage: str, why: str = "") -> None:
        """It ended, as ``stage`` says; only the first end counts."""
        if not self._over.is_set():
            self.stage, self.why = stage, why
            self._over.set()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "bundle": self.identity,
            "path": self.path,
            "stage": self.stage,
            "why": self.why,
            "gap_ms": self.gap_ms,
        }

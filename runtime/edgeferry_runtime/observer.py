"""What looks on while a loop runs: told of every result, asked for its state from another thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeferry_runtime.model import Model
    from edgeferry_runtime.results import Result
    from edgeferry_runtime.sources.base import Frame

__all__ = ["Observer"]


class Observer:
    """Base of all that look on; each does what it likes with any of these.

    Attributes:
        name: the key of its part in the state, "" for none.
    """

    name = ""

    def saw(self, frame: Frame, result: Result, model: Model) -> None:
        """A result went out.

        Called in the loop's thread, for each result: it must take microseconds, and it must not raise.
        """

    def tick(self) -> None:
        """Called about once a second in the thread that writes the state file."""

    def state(self) -> dict[str, Any]:
        """How it is, as plain JSON values; may be asked from any thread."""
        return {}

    def close(self) -> None:
        """Let go of what it holds; harmless twice."""

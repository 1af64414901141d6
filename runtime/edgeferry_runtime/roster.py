"""Which model runs a frame: the seam for accelerators that come and go, new versions and trials of two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeferry_runtime.errors import BackendError

if TYPE_CHECKING:
    from edgeferry_runtime.model import Model
    from edgeferry_runtime.sources.base import Frame

__all__ = ["Roster"]


class Roster:
    """The model that runs goes on running, and its failure ends the loop; base of all others.

    A model that is no longer chosen may still have frames under way that were prepared for it.  So the loop never
    closes one, and who retires it only lets go of its reference.
    """

    def choose(self, running: Model, frame: Frame) -> Model:
        """The model to run a frame with.

        Called before the frame is preprocessed, in the thread that does that: it must take microseconds.

        Args:
            running: what ran last, or was chosen last.
        """
        return running

    def replace(self, failed: Model, error: BackendError) -> Model:
        """What to run a frame with on which a model failed; in the interpreter's thread.

        Raises:
            ModelAwayError: there will be something again; this frame is lost.
            BackendError: there is nothing else; the loop ends.
        """
        raise error

    def invalid(self, model: Model, error: BackendError) -> Model | None:
        """What to run a frame with again to which a model gave an answer that is none; None loses the frame.

        Called in the interpreter's thread.
        """
        return None

    def close(self) -> None:
        """Let go of what it holds."""

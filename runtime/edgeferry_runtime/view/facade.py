"""What the page needs of what runs: the lanes, their state, what may be asked of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Mapping

if TYPE_CHECKING:
    from typing import Protocol

    from edgeferry_runtime.pipeline import Pipeline
else:
    Protocol = object  # Python 3.7 has none

__all__ = ["Runner"]


class Runner(Protocol):
    """Everything that runs in this process; all of it may be asked from any thread.

    Attributes:
        lanes: a pipeline a model, by name; one named "" when there is a single model.
        commands: what ``ctl`` and the page may ask; each takes plain JSON values and answers with such.
        ready: warm-up and goldens are over.
    """

    @property
    def lanes(self) -> Mapping[str, Pipeline]: ...

    @property
    def commands(self) -> Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]]: ...

    @property
    def ready(self) -> bool: ...

    def state(self) -> Mapping[str, Any]:
        """How it goes, as plain JSON values."""

"""Every error edgeferry raises on purpose, in one tree.

    EdgeferryError                 a known failure; exit code 1
    ├── UsageError                 bad arguments or configuration; exit code 2   (ValueError)
    ├── BundleError                the bundle cannot be trusted                  (ValueError)
    │   ├── ManifestError          manifest.json is not what the contract says
    │   │   └── SchemaError        written by a newer edgeferry
    │   ├── MemberError            a member is missing, unexpected or badly named
    │   └── IntegrityError         size or SHA-256 differs from the manifest
    ├── FrameError                 pixels are not a frame the contract knows     (ValueError)
    ├── BackendError               no interpreter, or it refuses the model       (RuntimeError)
    │   ├── BackendMissingError    no interpreter is installed                   (ImportError)
    │   └── ModelAwayError         it failed and is being brought back
    ├── GoldenError                golden outputs are outside their tolerance
    ├── SourceError                frames cannot be read                         (OSError)
    ├── SinkError                  results cannot be written                     (OSError)
    └── DependencyError            an optional package is absent                 (ImportError)

The converter and the deployer grow their own branches from the same root.  A message says what
happened, to which file, tensor or device, and what to do next: the last part travels separately as
``remedy`` so that ``--json`` can carry it too.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BackendMissingError",
    "BundleError",
    "DependencyError",
    "EdgeferryError",
    "FrameError",
    "GoldenError",
    "IntegrityError",
    "ManifestError",
    "MemberError",
    "ModelAwayError",
    "SchemaError",
    "SinkError",
    "SourceError",
    "UsageError",
]


class EdgeferryError(Exception):
    """A failure with a name: what happened, and what to do next.

    Args:
        message: what happened, to what.
        remedy: the next step, as a sentence or a command; empty when there is none.

    Attributes:
        exit_code: what the process returns when this error ends it.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy or ""

    def __str__(self) -> str:
        return "{}\n  {}".format(self.message, self.remedy) if self.remedy else self.message


class UsageError(EdgeferryError, ValueError):
    """Arguments or a configuration file ask for something impossible."""

    exit_code = 2


class BundleError(EdgeferryError, ValueError):
    """The bundle cannot be trusted, so nothing in it is used."""


class ManifestError(BundleError):
    """manifest.json breaks the contract; ``problems`` lists every fault with its path."""

    def __init__(self, message: str, remedy: str | None = None, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message, remedy)
        self.problems = tuple(problems)


class SchemaError(ManifestError):
    """The manifest's schema is newer than this runtime."""


class MemberError(BundleError):
    """A member is missing, unexpected, or has a name that may not be opened."""


class IntegrityError(BundleError):
    """A member's size or SHA-256 differs from what the manifest promises."""


class FrameError(EdgeferryError, ValueError):
    """Pixels or tensor with a shape, dtype or range the contract does not know."""


class BackendError(EdgeferryError, RuntimeError):
    """The interpreter refuses the model, or the model is not what its manifest says."""


class BackendMissingError(BackendError, ImportError):
    """Neither ai-edge-litert nor tflite-runtime can be imported."""


class ModelAwayError(BackendError):
    """No model can run a frame just now, and one is being brought back: the frame is lost, the loop goes on."""


class GoldenError(EdgeferryError):
    """This machine's outputs for the golden frames are outside the bundle's tolerance."""


class SourceError(EdgeferryError, OSError):
    """Frames cannot be read from the source."""


class SinkError(EdgeferryError, OSError):
    """Results cannot be written to the sink."""


class DependencyError(EdgeferryError, ImportError):
    """An optional package is absent; the remedy is its install line."""

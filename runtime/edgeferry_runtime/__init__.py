"""The on-device half of edgeferry: verified bundles, exact preprocessing, the camera loop.

from edgeferry_runtime import Model, Pipeline
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeferry_runtime.model import Model as Model
    from edgeferry_runtime.pipeline import Pipeline as Pipeline

__all__ = ["Model", "Pipeline", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported when asked for: who reads a manifest or asks for --help does not wait for numpy.
    if name == "Model":
        from edgeferry_runtime.model import Model

        return Model
    if name == "Pipeline":
        from edgeferry_runtime.pipeline import Pipeline

        return Pipeline
    raise AttributeError("module {!r} has no attribute {!r}".format(__name__, name))

"""How many threads the model runs with: as somebody said, as was measured here before, or as is measured now."""

from __future__ import annotations

import logging
import os

from edgeferry_runtime.model import Model, profile_threads
from edgeferry_runtime.opening import Choices, open_model
from edgeferry_runtime.sources import open_source
from edgeferry_runtime.sources.base import PICTURES, WAITING, FrameSource

__all__ = ["choose_threads"]

_LOG = logging.getLogger("edgeferry")


def choose_threads(
    choices: Choices, asked: int | str | None, uri: str, model: Model, source: FrameSource
) -> tuple[Model, FrameSource]:
    """The model with the number of threads that is best here, measured at the first start.

    Args:
        choices: what the model was opened with.
        asked: a number (nothing is measured), "auto" (measured, or remembered), or None: as the profile says,
            else as "auto".
        uri: of the source, to open it once more where its frames have to be read to know what reading costs.
        model, source: open; the model is closed when another takes its place.
    """
    if isinstance(asked, int) or (asked is None and profile_threads(model.bundle.manifest)):
        return model, source
    from edgeferry_runtime import tuning

    key = tuning.loop_key(model)
    choice = tuning.recall(*key)
    if choice is None:
        frame = source.read(tuning.BUDGET_S)
        if frame is None or frame is WAITING:
            return model, source
        first = frame

        def frames() -> FrameSource:
            # A video that is decoded while it is read costs time no repeated frame would show.
            if os.path.isfile(uri) and not uri.lower().endswith(PICTURES) and first.color != "jpeg":
                return open_source(uri)
            return tuning.Repeated(first)

        _LOG.info("measuring how many threads are best here; this is done once")
        choice = tuning.measure(lambda threads: open_model(choices._replace(threads=threads)), frames)
        tuning.remember(*key, choice)
        if not source.live:
            source = tuning.Again(first, source)
    _LOG.info("%s", choice)
    if choice.threads == model.interpreter.threads:
        return model, source
    model.close()
    return open_model(choices._replace(threads=choice.threads)), source

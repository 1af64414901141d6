"""Tasks: what the outputs of a model mean, one small file a kind."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Sequence

from edgeferry_runtime.errors import BackendError
from edgeferry_runtime.fields import did_you_mean

if TYPE_CHECKING:
    from edgeferry_runtime.postprocessing import Postprocessing
    from edgeferry_runtime.tasks.base import Task

__all__ = ["make_task"]

# Imported when asked for: a classifier's start does not pay for detectors.
_CLASSES = {
    "classify": ("edgeferry_runtime.tasks.classify", "Classify"),
    "detect": ("edgeferry_runtime.tasks.detect", "Detect"),
    "segment": ("edgeferry_runtime.tasks.segment", "Segment"),
    "keypoints": ("edgeferry_runtime.tasks.keypoints", "Keypoints"),
    "regress": ("edgeferry_runtime.tasks.regress", "Regress"),
    "embed": ("edgeferry_runtime.tasks.embed", "Embed"),
    "raw": ("edgeferry_runtime.tasks.raw", "Raw"),
}


def make_task(
    declared: Postprocessing, labels: Sequence[str] = (), input_size: tuple[int, int] | None = None
) -> Task:
    """The task that a bundle declares.

    Args:
        declared: the bundle's postprocessing.
        labels: one a class, or empty.
        input_size: (width, height) of the model's input in pixels, None where it takes no picture.

    Raises:
        BackendError: there is no such task, or what is declared of it cannot be carried out.
    """
    if declared.task not in _CLASSES:
        raise BackendError(
            "task {!r} is unknown{}".format(declared.task, did_you_mean(declared.task, list(_CLASSES))),
            "Convert the model again, or install a newer runtime: pip install --upgrade edgeferry-runtime",
        )
    module, name = _CLASSES[declared.task]
    task: Task = getattr(importlib.import_module(module), name)(declared, labels, input_size)
    return task

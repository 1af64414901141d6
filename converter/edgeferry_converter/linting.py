"""The linter with the model beside it: what `convert` and `edgeferry lint` both run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from edgeferry_runtime.manifest import TensorSpec
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor
from edgeferry_runtime.tasks.classify import class_scores

from edgeferry_converter.data.lint import Finding, Judge, lint
from edgeferry_converter.feeding import as_delivered
from edgeferry_converter.loading.source import SourceModel
from edgeferry_converter.material import Material

__all__ = ["judge_for", "lint_material"]


def lint_material(material: Material, post: Postprocessing) -> list[Finding]:
    """Everything that can be said of the data, with the model's own answers where it is a classifier."""
    judge = judge_for(material.source, post) if post.task == "classify" and material.feed.declared else None
    return lint(
        material.dataset,
        material.feed.declared,
        judge,
        material.source.first_layers,
        material.division.calibration,
    )


def judge_for(source: SourceModel, post: Postprocessing) -> Judge:
    """The float model as the linter asks it."""
    name, output = source.inputs[0].name, post.outputs["scores"]

    def judge(declared: Preprocessing, frames: Sequence[np.ndarray]) -> np.ndarray:
        shape = (1, declared.height, declared.width, declared.channels)
        preprocessor = Preprocessor(declared, TensorSpec(name, name, shape, "float32", "NHWC"))
        batch = np.concatenate([preprocessor(*as_delivered(declared, frame)).copy() for frame in frames])
        return class_scores(source.predict({name: batch})[output], post.scores)

    return judge

"""The standard TFLite metadata of a packed model, where it is true of it."""

from __future__ import annotations

from collections.abc import Sequence

from edgeferry_runtime.manifest import TensorSpec
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Preprocessing

from edgeferry_converter.metadata import pixel_normalization, uint8_pixel_error, with_metadata
from edgeferry_converter.tflite_file import read_model

__all__ = ["described"]

PIXEL_ERROR = 1.0  # levels; more and a reader that feeds bare pixels computes something else


def described(
    model: bytes,
    name: str,
    declared: Preprocessing | None,
    post: Postprocessing,
    labels: Sequence[str],
    inputs: Sequence[TensorSpec],
) -> tuple[bytes, str]:
    """A model with its labels, names and normalisation in it, for MediaPipe and other readers of the standard.

    Args:
        model: the .tflite.
        name: of the bundle.
        declared: the preprocessing.
        post: the task; only classifiers are described.
        labels: one a class.
        inputs: the model's.

    Returns:
        The model, described or as it was, and why it was left as it was ("" when it was described).
    """
    if declared is None or post.task != "classify" or not labels:
        return model, "only image classifiers with labels are described"
    if declared.color == "bgr":
        return model, "the standard has no name for BGR"
    if post.scores.startswith("binary"):
        return model, "one output for two labels has no standard form"
    mean, std = pixel_normalization(declared.scale, declared.mean, declared.std)
    if inputs[0].dtype == "uint8" and uint8_pixel_error(read_model(model), mean, std) > PIXEL_ERROR:
        return model, "readers of the standard feed bare pixels to uint8 inputs, this model wants others"
    logits = post.scores == "logits"
    result = with_metadata(
        model,
        name=name,
        description=f"{name}, converted by edgeferry",
        input_name=inputs[0].name,
        mean=mean,
        std=std,
        labels=labels,
        output_name=post.outputs["scores"],
        color=declared.color,
        minimum=-1e6 if logits else 0.0,
        maximum=1e6 if logits else 1.0,
    )
    return result, ""

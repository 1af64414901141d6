"""Golden frames: which held-out frames the bundle carries, and how far a device's answers to them may be off."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from edgeferry_runtime.golden import deviation, probe_frame, tensor_sha256
from edgeferry_runtime.manifest import Tolerance
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.resize import resize
from edgeferry_runtime.tensors import resolution

from edgeferry_converter.data.folders import Image, decode
from edgeferry_converter.evaluation import FloatModel, VariantScore
from edgeferry_converter.variants import VariantRunner

__all__ = ["GoldenFrames", "choose_frames", "npy_bytes", "tells_a_dead_model", "tolerance"]

MIN_FRAMES = 8
MAX_FRAMES = 16
# Float outputs of one model differ between builds of the interpreter by rounding alone: sums of thousands of
# products in another order.  The allowance is relative to the largest output.
FLOAT_ROUNDING = {"float32": 2.0**-16, "float16": 2.0**-11, "int8": 2.0**-11}


@dataclass(frozen=True)
class GoldenFrames:
    """Frames with everybody's answers.

    Attributes:
        frames: uint8 [h, w, 3] BGR each.
        reference: the Keras model's output, float32 [frames, ...].
        outputs: variant name -> its output, float32 [frames, ...].
        input_sha256: variant name -> hashes of its input tensors, the probe frame's last.
    """

    frames: tuple[np.ndarray, ...]
    reference: np.ndarray
    outputs: dict[str, np.ndarray]
    input_sha256: dict[str, tuple[str, ...]]


def choose_frames(
    images: Sequence[Image], declared: Preprocessing, keras_model: FloatModel, runners: Sequence[VariantRunner]
) -> GoldenFrames:
    """Take frames of as many classes as there are, so that an interpreter that answers the same for every
    picture cannot pass.

    Args:
        images: the held-out ones.
        declared: the preprocessing; frames far larger than the model's input are made smaller first, since a
            bundle travels over slow links.
    """  # fmt: skip
    by_label: dict[int, list[Image]] = {}
    for image in images:
        by_label.setdefault(image.label, []).append(image)
    rounds = [queue[i] for i in range(MAX_FRAMES) for _, queue in sorted(by_label.items()) if i < len(queue)]
    wanted = min(MAX_FRAMES, max(MIN_FRAMES, len(by_label)))
    frames = tuple(_bounded(pixels, declared) for _, pixels in decode(rounds[:wanted]))
    return GoldenFrames(
        frames=frames,
        reference=keras_model.predict([keras_model.tensor(pixels) for pixels in frames]),
        outputs={r.variant.name: np.concatenate([r(pixels) for pixels in frames]) for r in runners},
        input_sha256={r.variant.name: _input_hashes(r, (*frames, probe_frame())) for r in runners},
    )


def tolerance(score: VariantScore, runner: VariantRunner, golden: GoldenFrames, span: float) -> Tolerance:
    """How far a device may be from this workstation, from the quantisation error that was measured.

    Another build of the interpreter rounds elsewhere: its answers are off the Keras model's about as far as this
    one's are, but in other directions.  By the triangle inequality the two then differ by at most twice that
    error, and a device that differs by more lost more than quantisation did.  The error is the larger of that
    over all held-out frames and that over the golden frames, which may be harder than the average.  Where
    quantisation lost nothing measurable, a step of the output, or rounding for float outputs, takes its place.

    Args:
        score: the error on held-out frames.
        runner: whose output it is.
        golden: the frames a device will replay.
        span: largest |output| of the Keras model.
    """
    step = resolution(runner.outputs[0]) or FLOAT_ROUNDING[runner.variant.scheme.name] * span
    error = golden.outputs[runner.variant.name].astype(np.float64) - golden.reference
    rms = max(score.rms_error, float(np.sqrt(np.mean(error**2))), step)
    return Tolerance(max_abs=2 * max(score.max_error, float(np.abs(error).max()), step), rms=2 * rms)


def tells_a_dead_model(golden: GoldenFrames, variant: str, allowed: Tolerance) -> bool:
    """Whether a device that answers the same for every frame is outside the tolerance, as it must be."""
    outputs = golden.outputs[variant]
    constant = np.broadcast_to(outputs.mean(axis=0), outputs.shape)
    return not deviation("", constant, outputs, allowed).ok


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _bounded(pixels: np.ndarray, declared: Preprocessing) -> np.ndarray:
    """At most twice the model's input a side, aspect ratio kept."""
    limit = 2 * max(declared.width, declared.height)
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if longest <= limit:
        return pixels
    size = (max(1, width * limit // longest), max(1, height * limit // longest))
    return resize(pixels, *size, kernel="bilinear")


def _input_hashes(runner: VariantRunner, frames: Sequence[np.ndarray]) -> tuple[str, ...]:
    if runner.preprocessor.declared.resize == "bilinear-fast":
        return ()  # declared to differ by up to one level between builds of OpenCV
    return tuple(tensor_sha256(runner.preprocessor(pixels, "bgr")) for pixels in frames)

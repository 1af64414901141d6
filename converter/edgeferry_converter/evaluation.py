"""Judging: the Keras model and every variant on the same held-out frames, through the board's preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from edgeferry_runtime.manifest import TensorSpec
from edgeferry_runtime.postprocessing import SCORES
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor
from edgeferry_runtime.tasks.classify import class_scores

from edgeferry_converter.data.folders import Image
from edgeferry_converter.errors import ConversionError
from edgeferry_converter.quantization import INPUT_NAME
from edgeferry_converter.variants import VariantRunner

__all__ = ["Evaluation", "FloatModel", "VariantScore", "evaluate", "scores_kind"]

BATCH = 64


class FloatModel:
    """The Keras model behind the same preprocessing, with a float input.

    Args:
        model: a keras.Model with one input [n, height, width, channels] and one output.
        declared: the preprocessing.
    """

    def __init__(self, model: Any, declared: Preprocessing) -> None:
        shape = (1, declared.height, declared.width, declared.channels)
        self._model = model
        self._preprocessor = Preprocessor(declared, TensorSpec(INPUT_NAME, INPUT_NAME, shape, "float32", "NHWC"))

    def tensor(self, pixels: np.ndarray, color: str = "bgr") -> np.ndarray:
        """A frame as the model's input: float32 [1, height, width, channels], the caller's own."""
        return self._preprocessor(pixels, color).copy()

    def predict(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        """Outputs for a batch, float32 [n, ...]."""
        return np.asarray(self._model(np.concatenate(tensors), training=False), np.float32)


@dataclass
class VariantScore:
    """What a variant did on the held-out frames.

    Attributes:
        correct: frames whose best class is the label's.
        agree: frames whose best class is the Keras model's.
        squared_error, values: sum over all outputs of (variant - Keras)^2, and how many values that is.
        max_error: largest |variant - Keras| of any value.
    """

    correct: int = 0
    agree: int = 0
    squared_error: float = 0.0
    values: int = 0
    max_error: float = 0.0

    @property
    def rms_error(self) -> float:
        """Root mean square of (variant - Keras) over all outputs, in real units."""
        return float(np.sqrt(self.squared_error / max(1, self.values)))


@dataclass
class Evaluation:
    """Results over ``frames`` held-out frames.

    Attributes:
        keras_correct: frames the Keras model has right.
        span: largest |output| of the Keras model, for judging float rounding.
        variants: by name.
    """

    frames: int = 0
    keras_correct: int = 0
    span: float = 0.0
    variants: dict[str, VariantScore] = field(default_factory=dict)


def evaluate(
    keras_model: FloatModel,
    runners: Sequence[VariantRunner],
    frames: Iterator[tuple[Image, np.ndarray]],
    kind: str,
) -> Evaluation:
    """Run everything on every frame; frames stream, none is kept.

    Args:
        keras_model: the reference.
        runners: the variants.
        frames: held-out images with their pixels, BGR.
        kind: what the outputs are, one of ``postprocessing.SCORES``.

    Raises:
        ConversionError: a model answers NaN.
    """
    result = Evaluation(variants={runner.variant.name: VariantScore() for runner in runners})
    batch: list[tuple[Image, np.ndarray, list[np.ndarray]]] = []

    def flush() -> None:
        if not batch:
            return
        reference = keras_model.predict([tensor for _, tensor, _ in batch])
        _check_finite(reference, "the Keras model")
        labels = np.array([image.label for image, _, _ in batch])
        best = class_scores(reference, kind).argmax(axis=1)
        result.frames += len(batch)
        result.keras_correct += int((best == labels).sum())
        result.span = max(result.span, float(np.abs(reference).max()))
        for i, runner in enumerate(runners):
            answers = np.concatenate([outputs[i] for _, _, outputs in batch])
            _check_finite(answers, f"variant {runner.variant.name}")
            _count(result.variants[runner.variant.name], answers, reference, best, labels, kind)
        batch.clear()

    for image, pixels in frames:
        batch.append((image, keras_model.tensor(pixels), [runner(pixels) for runner in runners]))
        if len(batch) == BATCH:
            flush()
    flush()
    return result


def _count(
    score: VariantScore,
    answers: np.ndarray,
    reference: np.ndarray,
    best: np.ndarray,
    labels: np.ndarray,
    kind: str,
) -> None:
    found = class_scores(answers, kind).argmax(axis=1)
    error = answers.astype(np.float64) - reference
    score.correct += int((found == labels).sum())
    score.agree += int((found == best).sum())
    score.squared_error += float((error**2).sum())
    score.values += error.size
    score.max_error = max(score.max_error, float(np.abs(error).max()))


def _check_finite(outputs: np.ndarray, what: str) -> None:
    if not np.isfinite(outputs).all():
        raise ConversionError(
            f"{what} answers NaN or infinity for a held-out image",
            "Check --preprocess: a wrong range of pixel values overflows some models.",
        )


def scores_kind(model: Any, outputs: np.ndarray) -> str:
    """What a classifier's outputs are, told by its last activation and by the numbers themselves.

    Args:
        model: the keras.Model.
        outputs: of some frames, float32 [n, classes].

    Returns:
        One of ``postprocessing.SCORES``.
    """
    activation = getattr(getattr(model.layers[-1], "activation", None), "__name__", "")
    inside = bool((outputs >= 0).all() and (outputs <= 1).all())
    flat = outputs.reshape(len(outputs), -1)
    if flat.shape[1] == 1:
        kind = "binary-probability" if activation == "sigmoid" or inside else "binary-logit"
    else:
        sums_to_one = inside and bool(np.allclose(flat.sum(axis=1), 1.0, atol=1e-3))
        # Independent sigmoids do not sum to one, but each is a score from 0 to 1 already.
        kind = "probabilities" if activation in ("softmax", "sigmoid") or sums_to_one else "logits"
    assert kind in SCORES  # noqa: S101 - the contract's own list
    return kind

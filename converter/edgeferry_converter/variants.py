"""Variants on the workstation: a .tflite file with its tensors by name, run by the runtime's own interpreter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from edgeferry_runtime.backend import Interpreter
from edgeferry_runtime.manifest import TensorSpec
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor
from edgeferry_runtime.tensors import dequantize

from edgeferry_converter.quantization import QuantizationScheme

__all__ = ["ConvertedVariant", "VariantRunner"]


@dataclass(frozen=True)
class ConvertedVariant:
    """One .tflite file.

    Attributes:
        scheme: what it was made with.
        path: where it lies.
        size: bytes.
    """

    scheme: QuantizationScheme
    path: Path
    size: int

    @property
    def name(self) -> str:
        """The variant's name in the bundle."""
        return self.scheme.name


class VariantRunner:
    """Runs a variant exactly as a device will: the bundle's preprocessing, the runtime's interpreter.

    Attributes:
        variant: what it runs.
        inputs, outputs: its tensors, named as in the model's signature.
        preprocessor: frames to tensor.
        input: the interpreter's input memory.
    """

    def __init__(self, variant: ConvertedVariant, declared: Preprocessing, threads: int | None = None) -> None:
        self.variant = variant
        self.interpreter = Interpreter(str(variant.path), threads=threads)
        names = self.interpreter.signature_names()
        self.inputs = [_named(spec, names) for spec in self.interpreter.inputs]
        self.outputs = [_named(spec, names) for spec in self.interpreter.outputs]
        self.preprocessor = Preprocessor(declared, self.inputs[0])
        self.input = self.interpreter.input(self.inputs[0].tensor)

    def __call__(self, pixels: np.ndarray, color: str = "bgr") -> np.ndarray:
        """The first output for one frame, in real numbers: float32 [1, ...]."""
        self.preprocessor(pixels, color, out=self.input)
        self.interpreter.invoke()
        spec = self.outputs[0]
        return np.array(dequantize(self.interpreter.output(spec.tensor), spec))


def _named(spec: TensorSpec, names: dict[str, str]) -> TensorSpec:
    layout = spec.layout if len(spec.shape) == 4 else ""
    return replace(spec, name=names.get(spec.tensor, spec.tensor), layout=layout)

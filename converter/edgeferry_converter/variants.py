"""Variants on the workstation: a .tflite file with its tensors by name, run by the runtime's own interpreter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from edgeferry_runtime.backend import Interpreter
from edgeferry_runtime.manifest import TensorSpec
from edgeferry_runtime.preprocessor import Preprocessor
from edgeferry_runtime.tensors import dequantize, quantize

from edgeferry_converter.data.dataset import Sample
from edgeferry_converter.feeding import Feed
from edgeferry_converter.quantization import QuantizationScheme

__all__ = ["ConvertedVariant", "VariantRunner"]


@dataclass(frozen=True)
class ConvertedVariant:
    """One .tflite file.

    Attributes:
        scheme: what it was made with.
        path: where it lies.
        size: bytes.
        title: names one that is made only to compare; else it has its scheme's name.
    """

    scheme: QuantizationScheme
    path: Path
    size: int
    title: str = ""

    @property
    def name(self) -> str:
        """The variant's name in the bundle and in the report."""
        return self.title or self.scheme.label


class VariantRunner:
    """Runs a variant exactly as a device will: the bundle's preprocessing, the runtime's interpreter.

    Attributes:
        variant: what it runs.
        inputs, outputs: its tensors, named as in the model's signature.
        preprocessor: frames to tensor; None where inputs are tensors.
    """

    def __init__(self, variant: ConvertedVariant, feed: Feed, threads: int | None = None) -> None:
        self.variant = variant
        self.interpreter = Interpreter(str(variant.path), threads=threads)
        names = self.interpreter.signature_names()
        self.inputs = [_named(spec, names) for spec in self.interpreter.inputs]
        self.outputs = [_named(spec, names) for spec in self.interpreter.outputs]
        self._feed = feed
        self.preprocessor = Preprocessor(feed.declared, self.inputs[0]) if feed.declared else None
        self._memory = {spec.name: self.interpreter.input(spec.tensor) for spec in self.inputs}

    def __call__(self, sample: Sample) -> dict[str, np.ndarray]:
        """All outputs for one sample, in real numbers: float32 [1, ...] by name."""
        if self.preprocessor is not None:
            self.preprocessor(*self._feed.delivered(sample), out=next(iter(self._memory.values())))
        else:
            real = self._feed.real(sample)
            for spec in self.inputs:
                np.copyto(self._memory[spec.name], quantize(real[spec.name], spec))
        self.interpreter.invoke()
        return {
            spec.name: np.array(dequantize(self.interpreter.output(spec.tensor), spec)) for spec in self.outputs
        }


def _named(spec: TensorSpec, names: dict[str, str]) -> TensorSpec:
    return replace(spec, name=names.get(spec.tensor, spec.tensor))

"""The workshop: variants out of a loaded model, each checked on the file before anybody runs it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np

from edgeferry_converter.errors import OptionError
from edgeferry_converter.material import Material
from edgeferry_converter.progress import Progress
from edgeferry_converter.quantization import LayerError, QuantizationScheme, layer_errors, quantize
from edgeferry_converter.requantization import requantize
from edgeferry_converter.tflite_checks import check_fit, per_channel_dense
from edgeferry_converter.tflite_file import read_model
from edgeferry_converter.variants import ConvertedVariant, VariantRunner

__all__ = ["Workshop"]

LAYER_SAMPLES = 32  # of the calibration data; the error of a layer settles after a few


class Workshop:
    """Makes variants of one model; use it as a context manager.

    Args:
        material: the model and its data.
        folder: where the .tflite files go.
        progress: told of the calibration.
    """

    def __init__(self, material: Material, folder: Path, progress: Progress) -> None:
        self._material = material
        self._folder = folder
        self._progress = progress
        self._stack = ExitStack()
        self._saved: tuple[Path, str] | None = None
        self._made: dict[QuantizationScheme, ConvertedVariant] = {}
        self._runners: dict[Path, VariantRunner] = {}

    def make(self, scheme: QuantizationScheme) -> ConvertedVariant:
        """The model in a scheme, checked: no unfrozen variable, no NaN, no operation the device does not know.

        Raises:
            ConversionError: TensorFlow's converter failed, or what it made may not leave.
        """
        if scheme not in self._made:
            self._progress.step(f"converting {scheme.label}")
            data = self._convert(scheme)
            # TensorFlow leaves operations float that have no int8 form: the report and a warning name each one.
            check_fit(data, scheme, allow_float=True)
            path = self._folder / f"{len(self._made)}-{scheme.label}.tflite"
            path.write_bytes(data)
            self._made[scheme] = ConvertedVariant(scheme, path, len(data))
        return self._made[scheme]

    def runner(self, variant: ConvertedVariant) -> VariantRunner:
        """The variant, loaded once."""
        if variant.path not in self._runners:
            self._runners[variant.path] = VariantRunner(variant, self._material.feed)
        return self._runners[variant.path]

    def errors(self, scheme: QuantizationScheme) -> list[LayerError]:
        """The error of each layer of an int8 model, worst first; empty for other schemes and for ready files."""
        if scheme.name != "int8" or self._material.model.tflite_path is not None:
            return []
        self._progress.step("looking for the layers that lose")
        runner = self.runner(self.make(QuantizationScheme("float32")))
        order = [spec.name for spec in runner.inputs]
        folder, signature = self._saved_model()
        plain = replace(scheme, keep_float=(), input_dtype="float32", output_dtype="float32")
        return layer_errors(folder, signature, plain, lambda: islice(self._representative(), LAYER_SAMPLES), order)

    def keep_float(self, scheme: QuantizationScheme, pattern: str) -> QuantizationScheme:
        """The scheme with every layer kept float that the pattern finds in its tensor's name.

        Raises:
            OptionError: it is no regular expression, or finds nothing.
        """
        try:
            wanted = re.compile(pattern)
        except re.error as error:
            raise OptionError(f"--keep-float {pattern!r} is no regular expression: {error}", "") from None
        errors = self.errors(scheme)
        found = tuple(sorted(error.tensor for error in errors if wanted.search(error.tensor)))
        if not found:
            names = ", ".join(sorted({error.layer for error in errors})[:12])
            raise OptionError(f"--keep-float {pattern!r} matches no layer", f"Layers are, among others: {names}")
        return replace(scheme, keep_float=found)

    def ready_scheme(self) -> QuantizationScheme:
        """The scheme of a .tflite that is packed as it is, told from the file."""
        source = self._material.model
        assert source.tflite_path is not None  # noqa: S101 - callers looked
        model = read_model(source.tflite_path.read_bytes())
        dense = "per-channel" if per_channel_dense(model) else "per-tensor"
        return QuantizationScheme(source.quantization, model.inputs[0].dtype, model.outputs[0].dtype, dense)

    def _convert(self, scheme: QuantizationScheme) -> bytes:
        source = self._material.model
        if source.tflite_path is not None:
            data = source.tflite_path.read_bytes()
            return data if scheme.name == source.quantization else requantize(data, scheme, self._calibration())
        if self._material.qat is not None and scheme.name == "int8" and not scheme.keep_float:
            from edgeferry_converter.compression.qat_export import export_int8

            return export_int8(self._material.qat, scheme=scheme, options=source.options)
        folder, signature = self._saved_model()
        return quantize(folder, signature, scheme, self._calibration)

    def _saved_model(self) -> tuple[Path, str]:
        if self._saved is None:
            self._saved = self._stack.enter_context(self._material.model.saved_model())
        return self._saved

    def _representative(self) -> Iterator[Mapping[str, np.ndarray]]:
        return (self._material.feed.real(sample) for sample in self._material.calibration())

    def _calibration(self) -> Iterator[Mapping[str, np.ndarray]]:
        count = len(self._material.division.calibration)
        return self._progress.track(self._representative(), count, "calibrating")

    def __enter__(self) -> Workshop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

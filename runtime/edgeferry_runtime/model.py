"""A model ready to run: bundle, interpreter, preprocessing and task; a frame goes in, a result comes out."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Mapping, Sequence

import numpy as np

from edgeferry_runtime.backend import Backend, Interpreter, find_backend, installed_backends
from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.errors import BackendError, BackendMissingError, FrameError, UsageError
from edgeferry_runtime.fields import did_you_mean
from edgeferry_runtime.manifest import Manifest, TensorSpec, Variant
from edgeferry_runtime.preprocessor import Preprocessor
from edgeferry_runtime.tasks import make_task
from edgeferry_runtime.tasks.base import Answer
from edgeferry_runtime.tensors import dequantize, quantize

__all__ = ["Model", "choose_variant"]


def choose_variant(
    manifest: Manifest, backends: Sequence[str], accelerators: Sequence[str] = (), name: str | None = None
) -> Variant:
    """The first variant of the bundle that this device can run.

    Args:
        manifest: the bundle's.
        backends: names of the interpreters that are installed.
        accelerators: delegates that are there.
        name: take this one and no other.

    Raises:
        UsageError: no variant has that name.
        BackendError: none can run here; the message says why for each.
    """
    names = [variant.name for variant in manifest.variants]
    if name is not None and name not in names:
        raise UsageError(
            "the bundle has no variant {!r}{}".format(name, did_you_mean(name, names)),
            "It has: {}.".format(", ".join(names)),
        )
    reasons = []
    for variant in manifest.variants:
        if name is not None and variant.name != name:
            continue
        if variant.delegate and variant.delegate not in accelerators:
            reasons.append("{} needs {}".format(variant.name, variant.delegate))
        elif not set(variant.backends) & set(backends):
            reasons.append("{} runs on {}".format(variant.name, " or ".join(variant.backends)))
        else:
            return variant
    raise BackendError("no variant of the bundle can run here ({})".format("; ".join(reasons)))


class Model:
    """A loaded, verified model.

    Use :meth:`open`.  The stages are separate so that a pipeline can time and place them; ``__call__`` runs
    them in order.

    Attributes:
        bundle: what it was loaded from.
        variant: which file of it.
        interpreter: what runs it.
        preprocessor: frames to tensor; None for a model whose inputs come as tensors.
        inputs: the interpreter's own input memory, by input name.
        identity: name and short version, as in "digits-0123456789ab".
    """

    def __init__(self, bundle: Bundle, variant: Variant, interpreter: Interpreter) -> None:
        self.bundle = bundle
        self.variant = variant
        self.interpreter = interpreter
        manifest = bundle.manifest
        self.identity = "{}-{}".format(manifest.name, manifest.version[:12])
        _check_tensors(variant.inputs, interpreter.inputs, variant.file)
        _check_tensors(variant.outputs, interpreter.outputs, variant.file)
        self.inputs = {spec.name: interpreter.input(spec.tensor) for spec in variant.inputs}
        self._specs = {spec.name: spec for spec in variant.inputs}
        declared = manifest.preprocessing
        self.preprocessor = Preprocessor(declared, variant.inputs[0]) if declared else None
        self._frame_input = self.inputs[variant.inputs[0].name]
        self._frame_size: tuple[int, int] | None = None
        labels: list[str] = []
        if manifest.postprocessing.labels:
            labels = bundle.read(manifest.postprocessing.labels).decode("utf-8").splitlines()
        read = set(manifest.postprocessing.outputs.values())
        self._answer = [spec for spec in variant.outputs if spec.name in read or not read]
        self._task = make_task(
            manifest.postprocessing, labels, (declared.width, declared.height) if declared else None
        )

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | Bundle,
        variant: str | None = None,
        backend: str | None = None,
        threads: int | None = None,
    ) -> Model:
        """Verify a bundle, choose a variant and load it.

        Args:
            path: a ``.ferry`` file, a folder, or an open bundle (which the model closes with itself).
            variant: its name; None takes the first that can run here.
            backend: "ai-edge-litert" or "tflite-runtime"; None takes the first that is installed.
            threads: None takes the profile's number, or a default where the profile leaves it open.

        Raises:
            BundleError, BackendError, UsageError: and their subclasses.
        """
        bundle = path if isinstance(path, Bundle) else Bundle.open(path)
        try:
            manifest = bundle.manifest
            found: list[Backend] = [find_backend((backend,))] if backend else installed_backends()
            if not found:
                find_backend()  # raises, and says why for each
            chosen = choose_variant(manifest, [b.name for b in found], name=variant)
            engine = next((b for b in found if b.name in chosen.backends), None)
            if engine is None:
                raise BackendMissingError("no interpreter for variant {}".format(chosen.name))
            if threads is None:
                threads = profile_threads(manifest)
            return cls(bundle, chosen, Interpreter(bundle.file_path(chosen.file), engine, threads))
        except BaseException:
            if bundle is not path:
                bundle.close()
            raise

    def preprocess(self, pixels: np.ndarray, color: str = "bgr") -> None:
        """Write a frame into the interpreter's input memory.

        Args:
            pixels: uint8 [h, w, 3] or, for gray, [h, w].
            color: "bgr" (as OpenCV reads), "rgb" or "gray".

        Raises:
            FrameError: the pixels are no frame, or the model takes no frames.
        """
        if self.preprocessor is None:
            raise FrameError(
                "{} takes tensors ({}), not frames".format(self.identity, ", ".join(self.inputs)),
                "Give them with Model.set_inputs({name: numbers}).",
            )
        self.preprocessor(pixels, color, out=self._frame_input)
        self._frame_size = (pixels.shape[1], pixels.shape[0])

    def set_inputs(self, real: Mapping[str, np.ndarray]) -> None:
        """Put real numbers in, by input name; each is quantised as its tensor wants it.

        Raises:
            FrameError: a name or a shape differs from the model's, or a number is NaN or infinite.
        """
        if set(real) != set(self._specs):
            raise FrameError("the model's inputs are {}, not {}".format(sorted(self._specs), sorted(real)))
        self._forget_frame()
        for name, values in real.items():
            spec = self._specs[name]
            _check_shape(spec, values)
            np.copyto(self.inputs[name], quantize(values, spec))

    def set_tensor(self, tensor: np.ndarray, name: str | None = None) -> None:
        """Put a ready tensor in, past preprocessing and quantisation.

        Args:
            tensor: of the input's shape and dtype.
            name: of the input; None for a model with one.

        Raises:
            FrameError: shape or dtype differ from the input's, or it holds NaN.
        """
        spec = self._specs[name] if name else self.variant.inputs[0]
        if tensor.dtype.name != spec.dtype:
            raise FrameError("input {!r} is {}, not {}".format(spec.name, spec.dtype, tensor.dtype))
        _check_shape(spec, tensor)
        self._forget_frame()
        np.copyto(self.inputs[spec.name], tensor)

    def _forget_frame(self) -> None:
        """A tensor comes from no frame: what is decoded next stays in the input's coordinates."""
        self._frame_size = None
        if self.preprocessor is not None:
            self.preprocessor.placement = None

    def invoke(self) -> None:
        """Run the interpreter on what the input holds."""
        self.interpreter.invoke()

    def outputs(self) -> dict[str, np.ndarray]:
        """All outputs of the last invoke in real numbers, float32, by name; copies."""
        return {
            spec.name: np.array(dequantize(self.interpreter.output(spec.tensor), spec))
            for spec in self.variant.outputs
        }

    def decode(self) -> Answer:
        """The task's answer from the outputs of the last invoke.

        Raises:
            BackendError: an output is not finite.
        """
        real = {spec.name: dequantize(self.interpreter.output(spec.tensor), spec) for spec in self._answer}
        placement = self.preprocessor.placement if self.preprocessor else None
        return self._task(real, placement, self._frame_size)

    def __call__(self, pixels: np.ndarray, color: str = "bgr") -> Answer:
        """One frame to one answer."""
        self.preprocess(pixels, color)
        self.invoke()
        return self.decode()

    def close(self) -> None:
        """Give the bundle's files back; results that were handed out stay valid."""
        self.bundle.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def profile_threads(manifest: Manifest) -> int | None:
    """The profile's thread count, None where it leaves the choice to the device (0 or absent)."""
    interpreter = manifest.profile.get("values", {}).get("interpreter", {})
    threads = interpreter.get("threads", 0) if isinstance(interpreter, dict) else 0
    return threads if isinstance(threads, int) and threads > 0 else None


def _check_shape(spec: TensorSpec, values: np.ndarray) -> None:
    if values.shape != spec.shape:
        raise FrameError(
            "input {!r} has the shape {}, not {}".format(spec.name, list(spec.shape), list(values.shape)),
            "Give one sample, batch dimension included.",
        )
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        raise FrameError("numbers for input {!r} hold NaN or infinity".format(spec.name))


def _check_tensors(promised: Sequence[TensorSpec], found: Sequence[TensorSpec], file: str) -> None:
    """The file's tensors must be what the manifest says of them, or numbers would be misread."""
    by_name = {spec.tensor: spec for spec in found}
    for spec in promised:
        real = by_name.pop(spec.tensor, None)
        same = real is not None and (real.shape, real.dtype, real.quantization) == (
            spec.shape,
            spec.dtype,
            spec.quantization,
        )
        if not same:
            raise BackendError(
                "{}: tensor {!r} is not what the manifest says of it".format(file, spec.tensor),
                "Convert it again.",
            )
    if by_name:
        raise BackendError(
            "{}: tensor {!r} is not in the manifest".format(file, next(iter(by_name))), "Convert it again."
        )

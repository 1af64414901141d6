"""A model ready to run: bundle, interpreter, preprocessing and task; a frame goes in, a result comes out."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from types import TracebackType
from typing import Callable, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from edgeferry_runtime import opencv
from edgeferry_runtime.backend import Backend, Interpreter, default_threads, find_backend, installed_backends
from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.delegate import DelegateSpec, default_delegate, edgetpu_devices, load, parse_delegate
from edgeferry_runtime.errors import BackendError, BackendMissingError, FrameError, UsageError
from edgeferry_runtime.fields import did_you_mean
from edgeferry_runtime.manifest import Manifest, TensorSpec, Variant
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Placement
from edgeferry_runtime.preprocessor import Picture, Preprocessor
from edgeferry_runtime.tasks import make_task
from edgeferry_runtime.tasks.base import Answer
from edgeferry_runtime.tensors import Stored, dequantize, quantize

__all__ = ["InterpreterFactory", "Model", "Placed", "choose_variant", "in_process"]

# The .tflite file, what runs it, threads, delegate, and whether XNNPACK may be used.
InterpreterFactory = Callable[[str, Backend, Optional[int], Optional[DelegateSpec], bool], Interpreter]


class Placed(NamedTuple):
    """Where a frame's pixels went, to map an answer back to it.

    Attributes:
        placement: in the model's input; None for tensors that come from no frame: what is decoded then stays in
            the input's coordinates.
        size: (width, height) of the frame.
    """

    placement: Placement | None
    size: tuple[int, int] | None


_NOWHERE = Placed(None, None)


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


def in_process(
    file: str, backend: Backend, threads: int | None, spec: DelegateSpec | None, xnnpack: bool
) -> Interpreter:
    """An interpreter with its delegate in this very process."""
    loaded = load(spec, backend, threads or default_threads()) if spec else None
    return Interpreter(file, backend, threads, loaded, xnnpack)


class Model:
    """A loaded, verified model.

    Use :meth:`open`.  The stages are separate so that a pipeline can time and place them; ``__call__`` runs
    them in order.

    Attributes:
        bundle: what it was loaded from.
        variant: which file of it.
        interpreter: what runs it.
        backend_name: its package and version, as results name it.
        delegate: what else the interpreter hands operations to, "" where there is nothing.
        preprocessor: frames to tensor; None for a model whose inputs come as tensors.
        frame_input: the interpreter's memory that frames go to.
        placed: where the pixels of the last frame went.
        inputs: the interpreter's own input memory, by input name.
        identity: name and short version, as in "digits-0123456789ab".
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        interpreter: Interpreter,
        threshold: float | None = None,
        top_k: int | None = None,
    ) -> None:
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
        self.frame_input = self.inputs[variant.inputs[0].name]
        self.frame_size = (declared.width, declared.height) if declared else None
        self.placed = _NOWHERE
        self.backend_name = str(interpreter.backend)
        self.delegate = ""
        labels: list[str] = []
        if manifest.postprocessing.labels:
            labels = bundle.read(manifest.postprocessing.labels).decode("utf-8").splitlines()
        read = set(manifest.postprocessing.outputs.values())
        # The interpreter's own memory, which stays where it is: decoding begins without a copy.
        self._answer = {
            spec.name: Stored(interpreter.output(spec.tensor), spec)
            for spec in variant.outputs
            if spec.name in read or not read
        }
        self._task = make_task(_asked_for(manifest.postprocessing, threshold, top_k), labels, self.frame_size)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | Bundle,
        variant: str | None = None,
        backend: str | None = None,
        threads: int | None = None,
        delegate: str | None = None,
        xnnpack: bool = True,
        accelerators: Sequence[str] | None = None,
        threshold: float | None = None,
        top_k: int | None = None,
        make: InterpreterFactory = in_process,
    ) -> Model:
        """Verify a bundle, choose a variant and load it.

        Args:
            path: a ``.ferry`` file, a folder, or an open bundle (which the model closes with itself).
            variant: its name; None takes the first that can run here.
            backend: "ai-edge-litert" or "tflite-runtime"; None takes the first that is installed.
            threads: None takes the profile's number, or a default where the profile leaves it open.
            delegate: as ``delegate.parse_delegate`` reads it ("edgetpu", "libfoo.so?key=value"); None takes the
                one the variant is for.
            xnnpack: False keeps the interpreter from using XNNPACK.
            accelerators: kinds that may be used; None asks the system which are there.
            threshold, top_k: in the place of the bundle's; None leaves those.
            make: makes the interpreter once all is chosen.

        Raises:
            BundleError, BackendError, DependencyError, UsageError: and their subclasses.
        """
        wanted = parse_delegate(delegate) if delegate else None
        if accelerators is None:
            accelerators = ["edgetpu"] if (wanted and wanted.kind == "edgetpu") or edgetpu_devices() else []
        bundle = path if isinstance(path, Bundle) else Bundle.open(path)
        try:
            manifest = bundle.manifest
            found: list[Backend] = [find_backend((backend,))] if backend else installed_backends()
            if not found:
                find_backend()  # raises, and says why for each
            chosen = choose_variant(manifest, [b.name for b in found], accelerators, variant)
            engine = next((b for b in found if b.name in chosen.backends), None)
            if engine is None:
                raise BackendMissingError("no interpreter for variant {}".format(chosen.name))
            if threads is None:
                threads = profile_threads(manifest)
            if wanted is None and chosen.delegate:
                wanted = parse_delegate(chosen.delegate)
            elif wanted is None and xnnpack:
                wanted = default_delegate(chosen.scheme, engine)
            file = _verified(bundle, chosen.file)
            interpreter, used = _interpreter(
                make, file, engine, threads, wanted, asked=bool(delegate or chosen.delegate), xnnpack=xnnpack
            )
            model = cls(bundle, chosen, interpreter, threshold, top_k)
            model.delegate = used
            return model
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
        self.preprocessor(pixels, color, out=self.frame_input)
        self.placed = Placed(self.preprocessor.placement, self.preprocessor.frame_size)

    def place(self, picture: Picture) -> None:
        """The same for a frame that was decoded before, see ``Preprocessor.decode``."""
        assert self.preprocessor is not None  # noqa: S101 - who decoded it had one
        self.preprocessor.place(picture, out=self.frame_input)
        self.placed = Placed(self.preprocessor.placement, self.preprocessor.frame_size)

    def load(self, tensor: np.ndarray) -> None:
        """Copy a preprocessed frame into the interpreter's input memory.

        Args:
            tensor: of the input's shape and dtype, from a preprocessor of this model's declaration.
        """
        np.copyto(self.frame_input, tensor)

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
        self.placed = _NOWHERE

    def warm_up(self, invokes: int = 2) -> None:
        """Run the interpreter on whatever its input holds: the first invoke sets up kernels and pages."""
        for _ in range(invokes):
            self.invoke()

    def invoke(self) -> None:
        """Run the interpreter on what the input holds."""
        self.interpreter.invoke()

    def outputs(self) -> dict[str, np.ndarray]:
        """All outputs of the last invoke in real numbers, float32, by name; copies."""
        return {
            spec.name: np.array(dequantize(self.interpreter.output(spec.tensor), spec))
            for spec in self.variant.outputs
        }

    def decode(self, placed: Placed | None = None) -> Answer:
        """The task's answer from the outputs of the last invoke.

        Args:
            placed: where the pixels of the frame that was run went; None takes the last one preprocessed.

        Raises:
            BackendError: an output is not finite.
        """
        placement, size = placed or self.placed
        return self._task(self._answer, placement, size)

    def __call__(self, pixels: np.ndarray, color: str = "bgr") -> Answer:
        """One frame to one answer."""
        self.preprocess(pixels, color)
        self.invoke()
        return self.decode()

    def close(self) -> None:
        """Give the bundle's files back and end a worker process; results that were handed out stay valid."""
        self.bundle.close()
        close = getattr(self.interpreter, "close", None)  # an interpreter in this process needs none
        if close is not None:
            close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _verified(bundle: Bundle, member: str) -> str:
    """The path of a member; while it is read and hashed, OpenCV is imported, which takes about as long."""
    outcome: list[str | BaseException] = []

    def verify() -> None:
        try:
            outcome.append(bundle.file_path(member))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=verify, name="edgeferry-verify")
    thread.start()
    opencv.available()
    thread.join()
    (found,) = outcome
    if isinstance(found, BaseException):
        raise found
    return found


def _interpreter(
    make: InterpreterFactory,
    file: str,
    backend: Backend,
    threads: int | None,
    spec: DelegateSpec | None,
    asked: bool,
    xnnpack: bool,
) -> tuple[Interpreter, str]:
    """An interpreter with its delegate, and that one's name; a delegate nobody asked for may be left out."""
    try:
        interpreter = make(file, backend, threads, spec, xnnpack)
        return interpreter, str(spec) if interpreter.delegate is not None else ""
    except BackendError:
        if asked or spec is None:
            raise
        return make(file, backend, threads, None, xnnpack), ""


def _asked_for(declared: Postprocessing, threshold: float | None, top_k: int | None) -> Postprocessing:
    """The bundle's postprocessing with what the user wants otherwise.

    Raises:
        UsageError: a value is out of range.
    """
    if threshold is not None:
        if not 0 <= threshold <= 1:
            raise UsageError("the threshold is {}, it must be 0 to 1".format(threshold))
        declared = replace(declared, threshold=threshold)
    if top_k is not None:
        if top_k < 1:
            raise UsageError("top_k is {}, it must be 1 or more".format(top_k))
        declared = replace(declared, top_k=top_k)
    return declared


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

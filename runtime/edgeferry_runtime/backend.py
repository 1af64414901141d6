"""Interpreters: which one is installed, and one face for both; the only door to either package.

ai-edge-litert is preferred: it hands int8 models to XNNPACK, which tflite-runtime leaves out unless it is told
(see ``delegate.default_delegate``).  tflite-runtime serves armv7l and old Pythons.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import time
from typing import Any, NamedTuple, Sequence

import numpy as np

from edgeferry_runtime.errors import BackendError, BackendMissingError, UsageError
from edgeferry_runtime.fields import did_you_mean
from edgeferry_runtime.manifest import Quantization, TensorSpec

__all__ = [
    "Backend",
    "Interpreter",
    "Operation",
    "available_cores",
    "default_threads",
    "find_backend",
    "installed_backends",
    "loaded_backends",
]

_MODULES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
}
INSTALL = (
    "Install one: pip install ai-edge-litert  (64-bit, Python 3.9 or newer); "
    "elsewhere: pip install tflite-runtime 'numpy<2'"
)
# What an interpreter says, and what it means here.  The first that fits is told.
_REMEDIES = (
    (
        "unresolved custom op: edgetpu-custom-op",
        "The file is compiled for an Edge TPU: run it with --delegate edgetpu, or take the bundle's CPU variant.",
    ),
    (
        "Unsupported data type in custom op handler",
        "libedgetpu and this interpreter are of different TensorFlow versions: install the libedgetpu that was "
        "built for it (github.com/feranick/libedgetpu/releases), see docs/delegates.md.",
    ),
)
_REFUSED = "Convert the model again; if it persists, try the other interpreter with --backend."


class Backend(NamedTuple):
    """An interpreter package that can be imported here.

    Attributes:
        name: "ai-edge-litert" or "tflite-runtime".
        version: of the package.
        module: its interpreter module.
    """

    name: str
    version: str
    module: Any

    def __str__(self) -> str:
        return "{} {}".format(self.name, self.version)


class Operation(NamedTuple):
    """A node of the main graph.

    Attributes:
        name: as TFLite spells it ("CONV_2D"); "DELEGATE" for a block a delegate runs in one piece.
        inputs, outputs: tensor indices, -1 for an optional input that is left out.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def find_backend(allowed: Sequence[str] = tuple(_MODULES)) -> Backend:
    """The first of ``allowed`` that can be imported here.

    Raises:
        UsageError: a name is no backend.
        BackendMissingError: none can be imported; the message says why for each.
    """
    reasons = []
    for name in allowed:
        if name not in _MODULES:
            raise UsageError(
                "{!r} is no backend{}".format(name, did_you_mean(name, list(_MODULES))),
                "Backends are {}.".format(" and ".join(_MODULES)),
            )
        try:
            return _import_backend(name)
        except ImportError as error:
            reasons.append("{}: {}".format(name, error))
    raise BackendMissingError("no interpreter can be used ({})".format("; ".join(reasons)), INSTALL)


def installed_backends() -> list[Backend]:
    """Every interpreter package that can be imported here, preferred first."""
    found = []
    for name in _MODULES:
        try:
            found.append(_import_backend(name))
        except ImportError:
            continue
    return found


def loaded_backends() -> list[Backend]:
    """Those of ``installed_backends`` that this process has already loaded."""
    return [_import_backend(name) for name, module in _MODULES.items() if sys.modules.get(module) is not None]


def _import_backend(name: str) -> Backend:
    if name == "tflite-runtime" and int(np.__version__.split(".")[0]) >= 2:
        # It imports and then fails in Interpreter() with a SystemError that names nothing.
        importlib.import_module("tflite_runtime")
        raise ImportError("needs numpy older than 2, found {}: pip install 'numpy<2'".format(np.__version__))
    module = importlib.import_module(_MODULES[name])
    package = importlib.import_module(_MODULES[name].split(".")[0])
    return Backend(name, getattr(package, "__version__", "") or _metadata_version(name), module)


def _metadata_version(distribution: str) -> str:
    try:
        from importlib.metadata import PackageNotFoundError, version
    except ImportError:  # Python 3.7
        return "unknown version"
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown version"


def available_cores() -> int:
    """Processor cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def default_threads() -> int:
    """Threads when nobody chose: the cores this process may use, at most 4.

    Beyond 4 the boards in question have no cores, and workstations gain nothing on models this small.
    """
    return max(1, min(4, available_cores()))


class Interpreter:
    """A loaded model with its tensors in place.

    Inputs and outputs are views of the interpreter's own memory, taken once: writing into an input and reading
    an output copies nothing.  An output's values hold until the next ``invoke``.

    Args:
        model_path: a .tflite file; it is mapped, so it must stay while this lives.
        backend: which package; None takes the preferred one.
        threads: for the kernels; None takes ``default_threads()``.
        delegate: what ``delegate.load`` gave; it is asked before XNNPACK.  None for none.
        xnnpack: False keeps every operation in the interpreter's own kernels, for comparisons.

    Attributes:
        backend: the package that runs it.
        delegate, xnnpack: as given.
        load_us, allocate_us: microseconds for mapping the file, and for preparing kernels and memory.
        inputs, outputs: as the file describes them, in the file's order; named by tensor.

    Raises:
        BackendError: the interpreter refuses the file.
    """

    def __init__(
        self,
        model_path: str,
        backend: Backend | None = None,
        threads: int | None = None,
        delegate: Any = None,
        xnnpack: bool = True,
    ) -> None:
        self.backend = backend or find_backend()
        self.threads = threads or default_threads()
        self.model_path = model_path
        self.delegate = delegate
        self.xnnpack = xnnpack
        options: dict[str, Any] = {"num_threads": self.threads}
        if delegate is not None:
            options["experimental_delegates"] = [delegate]
        if not xnnpack:
            options["experimental_op_resolver_type"] = _without_xnnpack(self.backend)
        try:
            began = time.perf_counter()
            self._interpreter = self.backend.module.Interpreter(model_path=model_path, **options)
            loaded = time.perf_counter()
            self._interpreter.allocate_tensors()
            self.load_us = (loaded - began) * 1e6
            self.allocate_us = (time.perf_counter() - loaded) * 1e6
        except (ValueError, RuntimeError, TypeError, SystemError, OSError) as error:
            said = str(error).strip()
            raise BackendError(
                "{} refuses {}: {}".format(self.backend, model_path, said), _remedy(said, _REFUSED)
            ) from None
        self.inputs, self._inputs = self._bind(self._interpreter.get_input_details())
        self.outputs, self._outputs = self._bind(self._interpreter.get_output_details())

    def input(self, tensor: str) -> np.ndarray:
        """The memory of an input tensor; write the whole of it before ``invoke``."""
        return self._inputs[tensor]

    def output(self, tensor: str) -> np.ndarray:
        """The memory of an output tensor; copy what must outlive the next ``invoke``."""
        return self._outputs[tensor]

    def invoke(self) -> None:
        """Run the model once on what the inputs hold.

        Raises:
            BackendError: a kernel failed.
        """
        try:
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            said = str(error).strip()
            raise BackendError(
                "{} failed while running {}: {}".format(self.backend, self.model_path, said), _remedy(said)
            ) from None

    def operations(self) -> list[Operation] | None:
        """The nodes of the main graph as the file has them, then one "DELEGATE" for each delegated block.

        None where this version of the interpreter does not tell: neither package makes it public
        (``Interpreter._get_ops_details``).
        """
        try:
            nodes = self._interpreter._get_ops_details()
            return [
                Operation(
                    node["op_name"],
                    tuple(int(index) for index in node["inputs"]),
                    tuple(int(index) for index in node["outputs"]),
                )
                for node in nodes
            ]
        except (AttributeError, KeyError, ValueError):
            return None

    def signature_names(self) -> dict[str, str]:
        """Tensor name -> the name people gave it in the model's signature, where the file has one."""
        names: dict[str, str] = {}
        for key in self._interpreter.get_signature_list():
            runner = self._interpreter.get_signature_runner(key)
            for details in (runner.get_input_details(), runner.get_output_details()):
                names.update({detail["name"]: name for name, detail in details.items()})
        return names

    def _bind(self, details: list[dict[str, Any]]) -> tuple[list[TensorSpec], dict[str, np.ndarray]]:
        specs = [_spec(detail) for detail in details]
        views = {spec.tensor: self._view(detail, spec) for spec, detail in zip(specs, details)}
        if len(views) != len(details):
            raise BackendError("{}: two tensors have the same name".format(self.model_path), "Convert it again.")
        return specs, views

    def _view(self, detail: dict[str, Any], spec: TensorSpec) -> np.ndarray:
        try:
            memory = self._interpreter.tensor(detail["index"])()
        except ValueError as error:  # a shape that is only known when the model runs has no memory yet
            raise BackendError(
                "{}: tensor {!r} has no memory: {}".format(self.model_path, spec.tensor, error),
                "Convert the model again with every dimension fixed (batch 1).",
            ) from None
        address, size = memory.ctypes.data, memory.nbytes
        # A view made by tensor() makes every invoke raise while it lives, one made from the bare address does
        # not.  The address stays: all shapes are fixed and tensors are never allocated again.
        del memory
        if size == 0:
            raise BackendError("{}: tensor {!r} is empty".format(self.model_path, spec.tensor), "Fix its shape.")
        buffer: Any = (ctypes.c_byte * size).from_address(address)
        buffer.owner = self._interpreter  # the memory must not go while a view of it is in use
        return np.frombuffer(buffer, np.dtype(detail["dtype"])).reshape(spec.shape)


def _without_xnnpack(backend: Backend) -> Any:
    try:
        return backend.module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    except AttributeError:  # an old tflite-runtime
        raise BackendError("{} cannot run without XNNPACK".format(backend), "Leave --no-xnnpack out.") from None


def _remedy(said: str, otherwise: str = "") -> str:
    return next((remedy for words, remedy in _REMEDIES if words in said), otherwise)


def _spec(detail: dict[str, Any]) -> TensorSpec:
    parameters = detail["quantization_parameters"]
    scales = tuple(float(scale) for scale in parameters["scales"])
    quantization = None
    if scales:
        axis = int(parameters["quantized_dimension"]) if len(scales) > 1 else None
        quantization = Quantization(scales, tuple(int(zero) for zero in parameters["zero_points"]), axis)
    shape = tuple(int(side) for side in detail["shape"])
    name = detail["name"]
    return TensorSpec(
        name, name, shape, np.dtype(detail["dtype"]).name, "NHWC" if len(shape) == 4 else "", quantization
    )

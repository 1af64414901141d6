"""Delegates: which one is asked for, and whether it can be loaded here.

    xnnpack                            for 8-bit models on tflite-runtime; ai-edge-litert applies it by itself
    edgetpu                            the first Edge TPU; edgetpu:usb:0, edgetpu:pci:1 and edgetpu::1 name one
    edgetpu:usb:0?performance=Max      with a clock, Low to Max
    /path/libfoo.so?key=value&key=b    any external delegate, with its options

Sources: tensorflow/lite/delegates/external/external_delegate_interface.h; libedgetpu's options and USB ids from
feranick/libedgetpu (debian/, tflite/).
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Sequence

from edgeferry_runtime import xnnpack
from edgeferry_runtime.backend import Backend, Interpreter, find_backend
from edgeferry_runtime.errors import BackendError, DependencyError, EdgeferryError, UsageError
from edgeferry_runtime.fields import did_you_mean

__all__ = [
    "DelegateSpec",
    "EdgeTpu",
    "default_delegate",
    "edgetpu_devices",
    "load",
    "parse_delegate",
    "probe_in_child",
]

_NAMED = ("edgetpu", "xnnpack")
_FORMS = "Delegates are xnnpack, edgetpu[:usb:N|:pci:N|::N][?performance=Max] and PATH.so[?key=value&...]."
_PERFORMANCE = ("Low", "Medium", "High", "Max")
_EDGETPU_DEVICE = re.compile(r"(usb|pci)?(:\d+)?\Z")
_EDGETPU_LIBRARIES = {"darwin": "libedgetpu.1.dylib", "win32": "edgetpu.dll"}
_EDGETPU_USB = (("1a6e", "089a"), ("18d1", "9302"))  # before and after the first load of its firmware
_ENTRY_POINTS = ("tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate")
EIGHT_BIT = ("int8", "int8-mixed")


@dataclass(frozen=True)
class DelegateSpec:
    """A delegate that is asked for.

    Attributes:
        kind: "edgetpu", "xnnpack" or "external".
        library: shared library, a path or a name the system's loader finds; "" for xnnpack.
        options: handed to the library as they are.
        text: as the user wrote it.
    """

    kind: str
    library: str = ""
    options: dict[str, str] = field(default_factory=dict)
    text: str = ""

    def __str__(self) -> str:
        return self.text or self.library or self.kind


class EdgeTpu(NamedTuple):
    """An Edge TPU the kernel sees.

    Attributes:
        bus: "usb" or "pci".
        path: its folder in sysfs, or its device file.
    """

    bus: str
    path: str


def parse_delegate(text: str) -> DelegateSpec:
    """Read one of the forms at the top of this module.

    Raises:
        UsageError: it is none of them, or has an option the delegate does not know.
    """
    target, question, query = text.partition("?")
    options = _options(text, query) if question else {}
    kind, _colon, device = target.partition(":")
    if kind == "edgetpu":
        return _edgetpu(text, device, options)
    if target == "xnnpack":
        if options:
            raise UsageError("delegate {!r}: xnnpack has no options".format(text), "Threads come from --threads.")
        return DelegateSpec("xnnpack", "", {}, text)
    if os.sep in target or "/" in target or re.search(r"\.(so|dylib|dll)(\.|\Z)", target):
        return DelegateSpec("external", target, options, text)
    raise UsageError("{!r} is no delegate{}".format(text, did_you_mean(kind, _NAMED)), _FORMS)


def _options(text: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in query.split("&"):
        key, equals, value = pair.partition("=")
        if not key or not equals or key in options:
            raise UsageError(
                "delegate {!r}: {!r} is no option".format(text, pair), "Options are key=value, each once, with &."
            )
        options[key] = value
    return options


def _edgetpu(text: str, device: str, options: dict[str, str]) -> DelegateSpec:
    for key in options:
        if key not in ("performance", "library"):
            raise UsageError(
                "delegate {!r}: {!r} is no option{}".format(
                    text, key, did_you_mean(key, ("performance", "library"))
                ),
                "The Edge TPU has performance ({}) and library (a path).".format(", ".join(_PERFORMANCE)),
            )
    if not _EDGETPU_DEVICE.match(device):
        raise UsageError("delegate {!r}: {!r} names no Edge TPU".format(text, device), _FORMS)
    performance = options.get("performance")
    passed = {}
    if performance is not None:
        if performance not in _PERFORMANCE:
            raise UsageError(
                "delegate {!r}: performance is {}, not {!r}{}".format(
                    text, ", ".join(_PERFORMANCE), performance, did_you_mean(performance.title(), _PERFORMANCE)
                )
            )
        passed["Performance"] = performance
        if not re.search(r":\d+\Z", device):
            device += ":0"  # without an index libedgetpu drops the option and says nothing
    if device:
        passed["device"] = device
    library = options.get("library") or _EDGETPU_LIBRARIES.get(sys.platform, "libedgetpu.so.1")
    return DelegateSpec("edgetpu", library, passed, text)


def edgetpu_devices(root: str = "/") -> list[EdgeTpu]:
    """The Edge TPUs the kernel sees: USB by vendor and product, PCIe by its driver's device files.

    Args:
        root: where sys and dev are; another one in tests.
    """
    found = []
    usb = os.path.join(root, "sys/bus/usb/devices")
    for name in _listing(usb):
        folder = os.path.join(usb, name)
        if (_line(os.path.join(folder, "idVendor")), _line(os.path.join(folder, "idProduct"))) in _EDGETPU_USB:
            found.append(EdgeTpu("usb", folder))
    dev = os.path.join(root, "dev")
    return found + [EdgeTpu("pci", os.path.join(dev, n)) for n in _listing(dev) if re.match(r"apex_\d+\Z", n)]


def _listing(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _line(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


def load(spec: DelegateSpec, backend: Backend, threads: int = 1) -> Any:
    """Load a delegate for ``Interpreter(..., delegate=...)``.

    A library of the wrong version can end the process: try it with ``probe_in_child`` first.

    Args:
        spec: which one.
        backend: whose interpreter will use it.
        threads: for XNNPACK; others have none.

    Returns:
        What the backend takes as a delegate, to be kept as long as the interpreter; None where the backend
        applies this delegate by itself.

    Raises:
        DependencyError: the library is not installed.
        BackendError: it cannot be used: no device, no delegate in it, or it refuses its options.
    """
    if spec.kind == "xnnpack":
        return xnnpack.load(backend, threads)
    _check_library(spec)
    try:
        return backend.module.load_delegate(spec.library, spec.options)
    except (ValueError, RuntimeError, OSError) as error:
        # libedgetpu gives no reason at all when no device answers.
        said = str(error).replace("Failed to load delegate from {}".format(spec.library), "").strip()
        if spec.kind == "edgetpu":
            raise _no_edgetpu(spec, said) from None
        raise BackendError(
            "delegate {} cannot be made{}".format(spec.library, ": " + said if said else ""),
            "Check its options ({}) and its device.".format(spec.options or "none given"),
        ) from None


def _check_library(spec: DelegateSpec) -> None:
    try:
        library = ctypes.CDLL(spec.library)
    except OSError as error:
        if spec.kind == "edgetpu":
            remedy = (
                "Install the Edge TPU runtime: apt install libedgetpu1-std, from the package source for your "
                "interpreter's version; see docs/delegates.md."
            )
        else:
            remedy = "Check the path, and that it was built for this machine."
        raise DependencyError("delegate {} cannot be loaded: {}".format(spec, error), remedy) from None
    missing = [name for name in _ENTRY_POINTS if not hasattr(library, name)]
    if missing:
        raise BackendError(
            "{} is no delegate: it has no {}".format(spec.library, " and no ".join(missing)),
            "An external delegate exports both functions of external_delegate_interface.h.",
        )


def _no_edgetpu(spec: DelegateSpec, said: str) -> BackendError:
    said = ": " + said if said else ""
    ids = " or ".join(":".join(pair) for pair in _EDGETPU_USB)
    devices = edgetpu_devices()
    if not devices:
        return BackendError(
            "{}: no Edge TPU is connected (no USB device {}, no /dev/apex_*){}".format(spec, ids, said),
            "Plug it in, into a port that gives 900 mA; in a container, pass the device through.",
        )
    return BackendError(
        "{}: no free Edge TPU answers, though the system has {}{}".format(
            spec, ", ".join("{} ({})".format(device.path, device.bus) for device in devices), said
        ),
        "The user must be in the group of its udev rule (plugdev for USB ids {}, apex for PCIe), no other process "
        "may hold it, and its number must exist: sudo usermod -aG plugdev $USER, log in again.".format(ids),
    )


def default_delegate(scheme: str, backend: Backend) -> DelegateSpec | None:
    """The delegate to take when none is named: XNNPACK for 8-bit models where tflite-runtime leaves it out."""
    if scheme in EIGHT_BIT and backend.name == "tflite-runtime" and xnnpack.library(backend) is not None:
        return DelegateSpec("xnnpack", "", {}, "xnnpack")
    return None


def probe_in_child(spec: DelegateSpec, model_path: str, backend_name: str, timeout_s: float = 30.0) -> str | None:
    """Load the delegate and the model and run it once, in a child process that may die in our place.

    Args:
        spec: its ``text`` is what the child is given.
        model_path: the .tflite file meant for it.
        backend_name: "ai-edge-litert" or "tflite-runtime".
        timeout_s: how long it may take; an Edge TPU needs some seconds for its firmware.

    Returns:
        None when all went well, else the reason in words.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH", "")) if part)
    import subprocess

    code = "import sys; from edgeferry_runtime.delegate import main; sys.exit(main(sys.argv[1:]))"
    try:
        child = subprocess.run(
            [sys.executable, "-c", code, str(spec), model_path, backend_name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, PYTHONPATH=path),
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return "it hung: no answer within {:g} s".format(timeout_s)
    except OSError as error:
        return "it cannot be tried: {}".format(error)
    if child.returncode == 0:
        return None
    lines = [line.strip() for line in child.stdout.decode("utf-8", "replace").splitlines() if line.strip()]
    last = lines[-1] if lines else "no word"
    if child.returncode < 0:
        return "it ended the process with {} ({})".format(_signal_name(-child.returncode), last)
    return last


def _signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return "signal {}".format(number)


def main(arguments: Sequence[str]) -> int:
    """What the child of ``probe_in_child`` runs: DELEGATE MODEL BACKEND."""
    text, model_path, backend_name = arguments
    try:
        backend = find_backend((backend_name,))
        delegate = load(parse_delegate(text), backend)
        Interpreter(model_path, backend, 1, delegate).invoke()
    except EdgeferryError as error:
        print(" ".join(error.message.split()), file=sys.stderr)
        return 1
    return 0

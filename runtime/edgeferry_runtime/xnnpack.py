"""XNNPACK for 8-bit models on tflite-runtime, whose default takes float operations alone.

The C interface of tensorflow/lite/delegates/xnnpack/xnnpack_delegate.h, which the x86-64 and aarch64 wheels of
2.11 to 2.14 export, takes 8-bit operations in when it is told.  ai-edge-litert does so by itself and exports
nothing.
"""

from __future__ import annotations

import ctypes
from typing import Any

from edgeferry_runtime.backend import Backend
from edgeferry_runtime.errors import BackendError

__all__ = ["Xnnpack", "library", "load"]

_QS8_AND_QU8 = 0x1 | 0x2  # TFLITE_XNNPACK_DELEGATE_FLAG_QS8 and _QU8


class _Options(ctypes.Structure):
    # The first two fields alone are used: later versions append to them, and zero is the default of all others.
    _fields_ = (("threads", ctypes.c_int32), ("flags", ctypes.c_uint32), ("later", ctypes.c_uint64 * 62))


class Xnnpack:
    """A delegate as the interpreter takes one; it must live as long as the interpreter, which keeps it.

    Args:
        library: what :func:`library` gave.
        threads: of its own pool.
    """

    def __init__(self, library: Any, threads: int) -> None:
        self._library = library
        library.TfLiteXNNPackDelegateCreate.restype = ctypes.c_void_p
        library.TfLiteXNNPackDelegateCreate.argtypes = [ctypes.POINTER(_Options)]
        library.TfLiteXNNPackDelegateDelete.restype = None
        library.TfLiteXNNPackDelegateDelete.argtypes = [ctypes.c_void_p]
        options = _Options(threads, _QS8_AND_QU8)
        self._pointer = library.TfLiteXNNPackDelegateCreate(ctypes.byref(options))
        if not self._pointer:
            raise BackendError("XNNPACK cannot be used on this processor", "Leave --delegate xnnpack out.")

    def _get_native_delegate_pointer(self) -> int:
        return self._pointer

    def __del__(self) -> None:
        if getattr(self, "_pointer", None):
            self._library.TfLiteXNNPackDelegateDelete(self._pointer)


def library(backend: Backend) -> Any:
    """The backend's shared library where it exports XNNPACK, else None."""
    try:
        found = ctypes.CDLL(backend.module._interpreter_wrapper.__file__)
    except (AttributeError, OSError):
        return None
    wanted = ("TfLiteXNNPackDelegateCreate", "TfLiteXNNPackDelegateDelete")
    return found if all(hasattr(found, name) for name in wanted) else None


def load(backend: Backend, threads: int) -> Xnnpack | None:
    """XNNPACK with its 8-bit operations; None for ai-edge-litert, which brings it.

    Raises:
        BackendError: this build has none.
    """
    if backend.name == "ai-edge-litert":
        return None
    found = library(backend)
    if found is None:
        raise BackendError(
            "this build of {} has no XNNPACK".format(backend),
            "Its 32-bit wheels never have it: leave --delegate xnnpack out, or use a 64-bit system.",
        )
    return Xnnpack(found, threads)

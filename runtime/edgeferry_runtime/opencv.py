"""The one door to OpenCV: loaded when something needs it, named with its install line when it is absent."""

from __future__ import annotations

from typing import Any

from edgeferry_runtime.errors import DependencyError

__all__ = ["available", "load"]

_module: Any = None
_absent = False


def available() -> bool:
    """Whether OpenCV can be imported; the first call imports it."""
    global _module, _absent
    if _module is None and not _absent:
        try:
            import cv2
        except ImportError:
            _absent = True
        else:
            _module = cv2
    return _module is not None


def load(purpose: str) -> Any:
    """The cv2 module.

    Args:
        purpose: what it is wanted for, for the message.

    Raises:
        DependencyError: it is not installed.
    """
    if not available():
        raise DependencyError(
            "{} needs OpenCV, which is not installed".format(purpose),
            "Install it: pip install opencv-python-headless  (Raspberry Pi OS 32-bit: apt install python3-opencv)",
        )
    return _module

"""Published wheels and where they run: a table, with what is known against some of them and its sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeferry_runtime.wheel_lock import SystemPackage

__all__ = ["COMPANIONS", "LITERT", "NUMPY", "OPENCV", "SYSTEM", "TFLITE", "WHEELS", "Version", "Wheel"]

Version = tuple[int, int]


@dataclass(frozen=True)
class Wheel:
    """One published version of a package and where its wheels run.

    Attributes:
        pythons: oldest and newest minor version of Python 3.
        glibc: least C library by architecture; an architecture that is not there has no wheel.
        abi: "cp" for one wheel a Python, "abi3" for one that serves them all, "none" for Python code alone.
        numpy: the numpy it works with, as a specifier; empty when any does.
        doubts: why to take another version first, by architecture.
        source: where that is written.
    """

    package: str
    version: str
    pythons: tuple[int, int]
    glibc: Mapping[str, Version]
    abi: str = "cp"
    numpy: str = ""
    doubts: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


LITERT, TFLITE, NUMPY, OPENCV = "ai-edge-litert", "tflite-runtime", "numpy", "opencv-python-headless"

_X86_ARM: Mapping[str, Version] = {"x86_64": (2, 27), "aarch64": (2, 27)}
_X86_ARM_2014: Mapping[str, Version] = {"x86_64": (2, 17), "aarch64": (2, 17)}
_ALL_2014: Mapping[str, Version] = {**_X86_ARM_2014, "armv7l": (2, 17)}
_EVERYWHERE: Mapping[str, Version] = {"x86_64": (2, 0), "aarch64": (2, 0), "armv7l": (2, 0)}
_SEGFAULTS = {"aarch64": "segfaulted in allocate_tensors in one of two emulated systems; 2.1.6 never did"}
_INDEX = "file names of the package index, 2026-11-21"
_NUMPY_1 = f"{_INDEX}; built against numpy 1: with numpy 2 the interpreter raises SystemError"
_OPENCV_5 = f"{_INDEX}; its metadata asks for numpy>=2 from Python 3.9 on"

# Better ones first within a package.  Versions that compute wrong results are not here: tflite-runtime before 2.10
# answers a constant for per-channel Dense layers.
WHEELS = (
    Wheel(LITERT, "2.3.0", (10, 14), _X86_ARM, doubts=_SEGFAULTS, source=_INDEX),
    Wheel(LITERT, "2.2.0", (10, 14), _X86_ARM, doubts=_SEGFAULTS, source=_INDEX),
    Wheel(LITERT, "2.1.6", (10, 14), _X86_ARM, source=_INDEX),
    Wheel(LITERT, "2.1.0", (9, 13), _X86_ARM, source=_INDEX),
    Wheel(TFLITE, "2.14.0", (8, 11), {"x86_64": (2, 17), "aarch64": (2, 34), "armv7l": (2, 34)}, "cp", "<2",
          source=_NUMPY_1),
    Wheel(TFLITE, "2.13.0", (8, 10), _ALL_2014, "cp", "<2", source=_NUMPY_1),
    Wheel(TFLITE, "2.11.0", (7, 9), _ALL_2014, "cp", "<2", source=_NUMPY_1),
    Wheel(NUMPY, "2.4.6", (11, 14), _X86_ARM, source=_INDEX),
    Wheel(NUMPY, "2.2.6", (10, 13), _X86_ARM_2014, source=_INDEX),
    Wheel(NUMPY, "2.0.2", (9, 12), _X86_ARM_2014, source=_INDEX),
    Wheel(NUMPY, "1.26.4", (9, 12), _X86_ARM_2014, source=_INDEX),
    Wheel(NUMPY, "1.24.4", (8, 11), _X86_ARM_2014, source=_INDEX),
    Wheel(NUMPY, "1.21.6", (7, 10), _X86_ARM_2014, source=_INDEX),
    Wheel(OPENCV, "5.0.0.93", (7, 14), _X86_ARM_2014, "abi3", ">=2", source=_OPENCV_5),
    Wheel(OPENCV, "4.11.0.86", (7, 14), _X86_ARM_2014, "abi3", source=_INDEX),
)  # fmt: skip

# Python code that the MQTT sink and the live page need, 0.4 MB of download beside the 60 of the rest: each
# environment has it, so that a changed run.json needs no other one.  What has no version for a Python, that Python
# does not need.
COMPANIONS = (
    Wheel("paho-mqtt", "2.1.0", (7, 99), _EVERYWHERE, "none", source=_INDEX),
    Wheel("prometheus-client", "0.17.1", (7, 99), _EVERYWHERE, "none", source=_INDEX),
    Wheel("uvicorn", "0.33.0", (8, 99), _EVERYWHERE, "none", source=_INDEX),
    Wheel("uvicorn", "0.22.0", (7, 7), _EVERYWHERE, "none", source=_INDEX),
    Wheel("h11", "0.16.0", (8, 99), _EVERYWHERE, "none", source=_INDEX),
    Wheel("h11", "0.14.0", (7, 7), _EVERYWHERE, "none", source=_INDEX),
    Wheel("click", "8.1.8", (7, 99), _EVERYWHERE, "none", source=_INDEX),
    Wheel("typing-extensions", "4.12.2", (8, 10), _EVERYWHERE, "none", source=_INDEX),
    Wheel("typing-extensions", "4.7.1", (7, 7), _EVERYWHERE, "none", source=_INDEX),
    Wheel("importlib-metadata", "6.7.0", (7, 7), _EVERYWHERE, "none", source=_INDEX),
    Wheel("zipp", "3.15.0", (7, 7), _EVERYWHERE, "none", source=_INDEX),
)

# What Debian and its descendants bring where there is no wheel: armv7l has none of these two.
SYSTEM = {
    NUMPY: SystemPackage("python3-numpy", "numpy"),
    OPENCV: SystemPackage("python3-opencv", "cv2"),
}

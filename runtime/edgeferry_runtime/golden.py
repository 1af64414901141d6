"""Golden frames: frames whose outputs are known, replayed before a release is trusted.

A model can load without a word and answer the same for every picture (an operator version the interpreter only
seems to know).  Only running known frames on the very device shows that.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.errors import MemberError
from edgeferry_runtime.manifest import Tolerance
from edgeferry_runtime.model import Model
from edgeferry_runtime.pixels import PLANAR

__all__ = [
    "GoldenReport",
    "OutputDeviation",
    "deviation",
    "load_array",
    "load_frame",
    "probe_frame",
    "replay",
    "tensor_sha256",
]


@dataclass(frozen=True)
class OutputDeviation:
    """How far one output is from its golden values over all frames, in real units, beside what is allowed."""

    name: str
    max_abs: float
    max_abs_tolerance: float
    rms: float
    rms_tolerance: float

    @property
    def ok(self) -> bool:
        # Written so that NaN fails.
        return self.max_abs <= self.max_abs_tolerance and self.rms <= self.rms_tolerance


@dataclass(frozen=True)
class GoldenReport:
    """What replaying the golden frames on this machine gave."""

    bundle: str
    variant: str
    backend: str
    frames: int
    preprocessing_differs: tuple[int, ...]
    outputs: tuple[OutputDeviation, ...]

    @property
    def ok(self) -> bool:
        return not self.preprocessing_differs and all(output.ok for output in self.outputs)

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``error`` and ``remedy`` are null when all is as it should be."""
        error = remedy = None
        wrong = ", ".join(
            "output {!r} differs by {:.4g} (allowed {:.4g}), rms {:.4g} (allowed {:.4g})".format(
                o.name, o.max_abs, o.max_abs_tolerance, o.rms, o.rms_tolerance
            )
            for o in self.outputs
            if not o.ok
        )
        if wrong:
            error = "{} runs this model wrongly: {}".format(self.backend, wrong)
            remedy = "Use another interpreter or version on this device; the bundle names what may run it."
        if self.preprocessing_differs:
            # Named first: with other inputs, other outputs are no wonder.
            error = "preprocessing gives other bytes here than on the workstation for golden frames {}".format(
                list(self.preprocessing_differs)
            )
            remedy = "Report this with the versions of numpy and OpenCV; without OpenCV installed, numpy is used."
        return {
            "ok": self.ok,
            "bundle": self.bundle,
            "variant": self.variant,
            "backend": self.backend,
            "frames": self.frames,
            "outputs": [
                {
                    "name": o.name,
                    "max_abs": _number(o.max_abs),
                    "max_abs_tolerance": o.max_abs_tolerance,
                    "rms": _number(o.rms),
                    "rms_tolerance": o.rms_tolerance,
                }
                for o in self.outputs
            ],
            "preprocessing_differs": list(self.preprocessing_differs),
            "error": error,
            "remedy": remedy,
        }


def replay(model: Model) -> GoldenReport:
    """Run every golden frame through preprocessing and interpreter and compare with the stored outputs.

    Raises:
        BundleError: a golden member is damaged.
        BackendError: the interpreter failed.
    """
    golden = model.bundle.manifest.golden
    results: dict[str, list[np.ndarray]] = {spec.name: [] for spec in model.variant.outputs}
    differs = []
    # Empty hashes: the kernel promises no equal bytes.
    hashes = model.variant.input_sha256 or (None,) * (len(golden.frames) + 1)
    tensors = {name: load_array(model.bundle, member) for name, member in golden.inputs.items()}
    for i in range(golden.count):
        if model.preprocessor is not None:
            model.preprocess(load_frame(model.bundle, golden.frames[i], golden.color), golden.color)
            if hashes[i] not in (None, _input_sha256(model)):
                differs.append(i)
        else:
            model.set_inputs({name: values[i : i + 1] for name, values in tensors.items()})
        model.invoke()
        for name, output in model.outputs().items():
            results[name].append(output)
    if model.preprocessor is not None:
        color = golden.color if golden.color in PLANAR else "bgr"
        model.preprocess(probe_frame(color), color)
        if hashes[-1] not in (None, _input_sha256(model)):
            differs.append(len(golden.frames))
    outputs = []
    for name, values in results.items():
        expected = load_array(model.bundle, model.variant.golden[name])
        found = np.concatenate(values)
        if expected.shape != found.shape:
            raise MemberError(
                "{}: {} has the shape {}, the model gives {}".format(
                    model.bundle.path, model.variant.golden[name], list(expected.shape), list(found.shape)
                ),
                "Convert the model again.",
            )
        outputs.append(deviation(name, found, expected, model.variant.tolerance[name]))
    return GoldenReport(
        bundle=model.bundle.manifest.version,
        variant=model.variant.name,
        backend=str(model.interpreter.backend),
        frames=golden.count,
        preprocessing_differs=tuple(differs),
        outputs=tuple(outputs),
    )


def _input_sha256(model: Model) -> str:
    return tensor_sha256(next(iter(model.inputs.values())))


def probe_frame(color: str = "bgr") -> np.ndarray:
    """A 640x480 frame of hash noise, the same on every machine.

    Golden frames may already have the model's size; this one always goes through the resize.

    Args:
        color: "bgr", or "i420" or "nv12" where the golden frames are such planes.

    Returns:
        uint8 [480, 640, 3], or [720, 640] for planes.
    """
    shape = (720, 640) if color in PLANAR else (480, 640, 3)
    index = np.arange(np.prod(shape), dtype=np.uint32)
    noise = index * np.uint32(2654435761)  # Knuth's multiplicative hash, wrapping at 32 bits
    return (noise >> np.uint32(13)).astype(np.uint8).reshape(shape)


def tensor_sha256(tensor: np.ndarray) -> str:
    """SHA-256 in hex of a tensor's values, little endian."""
    values = np.ascontiguousarray(tensor)
    return hashlib.sha256(values.astype(values.dtype.newbyteorder("<")).tobytes()).hexdigest()


def deviation(name: str, found: np.ndarray, expected: np.ndarray, tolerance: Tolerance) -> OutputDeviation:
    """Compare outputs, both float32 [frames, ...] in real units."""
    difference = np.asarray(found, np.float64) - np.asarray(expected, np.float64)
    return OutputDeviation(
        name=name,
        max_abs=float(np.max(np.abs(difference))),
        max_abs_tolerance=tolerance.max_abs,
        rms=float(np.sqrt(np.mean(difference**2))),
        rms_tolerance=tolerance.rms,
    )


def load_array(bundle: Bundle, member: str) -> np.ndarray:
    """A verified .npy member; never unpickles.

    Raises:
        MemberError: it is no plain array.
    """
    try:
        array = np.load(io.BytesIO(bundle.read(member)), allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError, OverflowError, SyntaxError) as error:
        raise MemberError(
            "{}: {} is no array: {}".format(bundle.path, member, error), "Convert the model again."
        ) from None
    if not isinstance(array, np.ndarray):  # np.load also opens .npz
        raise MemberError("{}: {} is no single array".format(bundle.path, member), "Convert the model again.")
    return array


def load_frame(bundle: Bundle, member: str, color: str) -> np.ndarray:
    """A golden frame: uint8, of the shape that ``pixels.FORMATS`` gives for ``color``.

    A JPEG is the member's own bytes, so that the device itself decodes it; any other frame is an .npy file.

    Raises:
        MemberError: it is no plain array.
    """
    if color == "jpeg":
        return np.frombuffer(bundle.read(member), np.uint8)
    return load_array(bundle, member)


def _number(value: float) -> float | None:
    """NaN and infinity have no JSON; null says that there is no such number."""
    return value if np.isfinite(value) else None

"""Compiling for the Edge TPU when the profile has one: done where the compiler is, said where it is not."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeferry_converter.edgetpu import compile_model, constraints, find_compiler, install_hint, placement
from edgeferry_converter.profile import DeviceProfile
from edgeferry_converter.tflite_file import read_model

__all__ = ["compile_for", "wants_edgetpu"]


def wants_edgetpu(profile: DeviceProfile) -> bool:
    """Whether the profile's board has an Edge TPU."""
    return profile.accelerator.kind.startswith("edgetpu")


def compile_for(profile: DeviceProfile, name: str, model: bytes) -> tuple[bytes | None, dict[str, Any]]:
    """The compiled model, or None without a compiler; and what the report says of it.

    Args:
        profile: its runtime version limits what the compiler may use.
        name: of the bundle, for the command that the hint names.
        model: the full int8 .tflite.

    Raises:
        ConversionError: the compiler is there and failed.
    """
    findings = [str(finding) for finding in constraints(read_model(model))]
    runtime = profile.accelerator.runtime
    if find_compiler() is None:
        return None, {"compiled": False, "hint": install_hint(f"{name}.tflite", runtime), "constraints": findings}
    with tempfile.TemporaryDirectory(prefix="edgeferry-") as folder:
        path = Path(folder) / f"{name}.tflite"
        path.write_bytes(model)
        result = compile_model(path, folder, runtime)
        data = result.path.read_bytes()
    where = placement(read_model(data), read_model(model))
    return data, {
        "compiled": where.compiled,
        "mapped": where.mapped,
        "on_cpu": where.on_cpu,
        "unmapped": [asdict(row) for row in result.log.unmapped],
        "constraints": findings,
    }

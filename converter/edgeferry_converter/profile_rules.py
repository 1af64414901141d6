"""Rules of a device profile that no single value can break: between keys, and between facts and their sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeferry_converter.schema import RULES_TABLE, Problem, did_you_mean, lookup

__all__ = ["contradictions", "uncited"]


def contradictions(data: dict[str, Any], path: Path) -> list[Problem]:
    """Rules between keys of a profile whose single values are right."""
    faults: list[tuple[str, str]] = []
    board, python, accelerator = data["board"], data["python"], data["accelerator"]
    if data["name"] != path.stem:
        faults.append(("name", f'is "{data["name"]}", but the file is called "{path.stem}"; make them equal'))
    if _version(python["minimum"]) > _version(python.get("maximum", python["minimum"])):
        faults.append(("python.maximum", f"{python['maximum']} is older than python.minimum, {python['minimum']}"))
    if data["service"]["memory_max_mb"] > board.get("ram_mb", data["service"]["memory_max_mb"]):
        faults.append(("service.memory_max_mb", f"is more than the board's RAM, {board['ram_mb']} MB"))
    for side in ("width", "height"):
        if data["camera"][side] % 2:
            faults.append((f"camera.{side}", f"{data['camera'][side]} is odd; YUV frames need even sizes"))
    faults += _edgetpu_faults(data) if accelerator["kind"] != "none" else _idle_faults(data)
    return [Problem(path.name, *fault) for fault in faults + _dense(data)]


def _edgetpu_faults(data: dict[str, Any]) -> list[tuple[str, str]]:
    accelerator, kind = data["accelerator"], data["accelerator"]["kind"]
    faults = [
        (f"accelerator.{key}", f"missing; {kind} needs it")
        for key in ("library", "device")
        if key not in accelerator
    ]
    bus, device = kind.removeprefix("edgetpu-"), accelerator.get("device", ":0")
    if not device.startswith((":", bus)):
        faults.append(("accelerator.device", f'"{device}" is not on the bus of {kind}; write "{bus}:0"'))
    if data["quantization"]["default"] != "int8":
        faults.append(("quantization.default", "an Edge TPU runs int8 only"))
    return faults


def _idle_faults(data: dict[str, Any]) -> list[tuple[str, str]]:
    idle = [key for key in data["accelerator"] if key != "kind"]
    return [(f"accelerator.{key}", 'means nothing while accelerator.kind is "none"') for key in idle]


def _dense(data: dict[str, Any]) -> list[tuple[str, str]]:
    old = data["interpreter"]["package"] == "tflite-runtime" or data["accelerator"]["kind"] != "none"
    if not old or data["quantization"]["dense"] == "per-tensor":
        return []
    return [
        ("quantization.dense", "must be per-tensor here: old interpreters compute garbage with per-channel ones")
    ]


def uncited(data: dict[str, Any], reference: dict[str, Any], file: str) -> list[Problem]:
    """Facts without a source, and sources of facts that the profile does not state."""
    sources, cited = data["sources"], reference[RULES_TABLE]["cited"]
    missing = [key for key in cited if lookup(data, key) is not None and not sources.get(key, "").strip()]
    problems = [
        Problem(file, key, f'has no entry in [sources]; add "{key}" = "where it was read"') for key in missing
    ]
    for key in sources:
        if lookup(data, key) is None:
            hint = did_you_mean(key, [known for known in cited if lookup(data, known) is not None])
            problems.append(
                Problem(file, f'sources."{key}"', f"cites a key that this profile does not have{hint}")
            )
    return problems


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))

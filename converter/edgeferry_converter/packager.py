"""Packing: everything that was proven becomes one manifest and its members."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from edgeferry_runtime.bundle import file_entry, write_bundle
from edgeferry_runtime.manifest import BACKENDS, Baseline, Golden, Manifest, Requires, Tolerance, Variant
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Preprocessing

from edgeferry_converter.goldens import Goldens, npy_bytes
from edgeferry_converter.profile import DeviceProfile
from edgeferry_converter.variants import VariantRunner

__all__ = ["Contents", "bundle_name", "pack"]

LABELS = "labels.txt"
EDGETPU = "model-edgetpu.tflite"


@dataclass(frozen=True)
class Contents:
    """What goes into a bundle.

    Attributes:
        name: of the bundle.
        profile: the device it is for.
        preprocessing: as declared; None for a model whose inputs come as tensors.
        postprocessing: as declared; the labels' member is filled in here.
        labels: one a class; may be empty.
        runners: the variants, preferred first.
        models: variant name -> bytes of the .tflite that is packed.
        compiled: the int8 variant compiled for the Edge TPU, None without one.
        tolerances: variant name -> output name -> tolerance.
        goldens: samples with answers.
        provenance: where all of it came from.
        baseline: what was normal; None where nothing could be measured.
    """

    name: str
    profile: DeviceProfile
    preprocessing: Preprocessing | None
    postprocessing: Postprocessing
    labels: Sequence[str]
    runners: Sequence[VariantRunner]
    models: dict[str, bytes]
    compiled: bytes | None
    tolerances: dict[str, dict[str, Tolerance]]
    goldens: Goldens
    provenance: dict[str, Any]
    baseline: Baseline | None = None


def pack(path: Path, contents: Contents) -> str:
    """Write the bundle.

    Returns:
        Its content version; the same contents give the same.
    """
    members: dict[str, bytes] = {}
    if contents.labels:
        members[LABELS] = ("\n".join(contents.labels) + "\n").encode()
    goldens = contents.goldens
    # A JPEG stays the file it is: the board decodes it itself.
    ending, stored = ("jpg", np.ndarray.tobytes) if goldens.color == "jpeg" else ("npy", npy_bytes)
    frames = tuple(f"golden/frame-{i:02d}.{ending}" for i in range(len(goldens.frames)))
    members |= {name: stored(pixels) for name, pixels in zip(frames, goldens.frames, strict=True)}
    inputs = _stack("input", goldens.inputs, members)
    reference = _stack("reference", goldens.reference, members)
    variants = [_variant(contents, runner, members) for runner in contents.runners]
    twin = next((variant for variant in variants if variant.scheme == "int8"), None)
    if contents.compiled is not None and twin is not None:
        # It computes the same numbers from the same tensors, so it is held to the same goldens.
        members[EDGETPU] = contents.compiled
        variants.insert(0, replace(twin, name="edgetpu", file=EDGETPU, delegate="edgetpu"))
    manifest = Manifest(
        name=contents.name,
        profile={"name": contents.profile.name, "values": contents.profile.values()},
        requires=_requires(contents.profile),
        preprocessing=contents.preprocessing,
        postprocessing=replace(contents.postprocessing, labels=LABELS if contents.labels else ""),
        variants=tuple(variants),
        golden=Golden(goldens.count, goldens.color, frames, inputs, reference),
        files={name: file_entry(data) for name, data in members.items()},
        provenance=contents.provenance,
        baseline=contents.baseline,
    )
    return write_bundle(path, manifest, members)


def bundle_name(path: Path) -> str:
    """A name every system accepts, from the file's."""
    name = re.sub(r"[^a-z0-9._-]+", "-", path.name.removesuffix(".ferry").lower()).strip("-._")
    return name[:63] or "model"


def _stack(kind: str, arrays: dict[str, Any], members: dict[str, bytes]) -> dict[str, str]:
    """Arrays as members; a tensor may have any name, a member may not, so members are numbered."""
    names = {name: f"golden/{kind}-{i}.npy" for i, name in enumerate(arrays)}
    members |= {member: npy_bytes(arrays[name]) for name, member in names.items()}
    return names


def _variant(contents: Contents, runner: VariantRunner, members: dict[str, bytes]) -> Variant:
    name = runner.variant.name
    model = f"model-{name}.tflite"
    members[model] = contents.models[name]
    return Variant(
        name=name,
        file=model,
        scheme=runner.variant.scheme.label,
        delegate="",
        backends=tuple(sorted(BACKENDS, key=lambda b: b != contents.profile.interpreter.package)),
        inputs=tuple(runner.inputs),
        outputs=tuple(runner.outputs),
        golden=_stack(name, contents.goldens.outputs[name], members),
        tolerance=contents.tolerances[name],
        input_sha256=contents.goldens.input_sha256[name],
    )


def _requires(profile: DeviceProfile) -> Requires:
    board = profile.board
    return Requires(
        arch=() if board.arch == "any" else (board.arch,),
        min_glibc=board.glibc_min or "",
        min_ram_mb=0,  # nothing was measured that would justify a number
        accelerator="",
    )

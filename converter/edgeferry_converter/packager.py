"""Packing: everything that was proven becomes one manifest and its members."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeferry_runtime.bundle import file_entry, write_bundle
from edgeferry_runtime.manifest import BACKENDS, Golden, Manifest, Requires, Tolerance, Variant
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Preprocessing

from edgeferry_converter.goldens import GoldenFrames, npy_bytes
from edgeferry_converter.profile import DeviceProfile
from edgeferry_converter.variants import VariantRunner

__all__ = ["Contents", "bundle_name", "pack"]

LABELS = "labels.txt"


@dataclass(frozen=True)
class Contents:
    """What goes into a bundle.

    Attributes:
        name: of the bundle.
        profile: the device it is for.
        preprocessing, postprocessing: as declared; postprocessing's output and labels are filled in here.
        labels: one a class.
        runners: the variants, preferred first.
        tolerances: variant name -> tolerance of its output.
        golden: frames with answers.
        provenance: where all of it came from.
    """

    name: str
    profile: DeviceProfile
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    labels: Sequence[str]
    runners: Sequence[VariantRunner]
    tolerances: dict[str, Tolerance]
    golden: GoldenFrames
    provenance: dict[str, Any]


def pack(path: Path, contents: Contents) -> str:
    """Write the bundle.

    Returns:
        Its content version; the same contents give the same.
    """
    members: dict[str, bytes] = {LABELS: ("\n".join(contents.labels) + "\n").encode()}
    output = contents.runners[0].outputs[0].name
    frames = []
    for i, pixels in enumerate(contents.golden.frames):
        frames.append(f"golden/frame-{i:02d}.npy")
        members[frames[-1]] = npy_bytes(pixels)
    members["golden/reference.npy"] = npy_bytes(contents.golden.reference)
    variants = [_variant(contents, runner, members) for runner in contents.runners]
    manifest = Manifest(
        name=contents.name,
        profile={"name": contents.profile.name, "values": contents.profile.values()},
        requires=_requires(contents.profile),
        preprocessing=contents.preprocessing,
        postprocessing=replace(contents.postprocessing, outputs={"scores": output}, labels=LABELS),
        variants=tuple(variants),
        golden=Golden(len(frames), "bgr", tuple(frames), {}, {output: "golden/reference.npy"}),
        files={name: file_entry(data) for name, data in members.items()},
        provenance=contents.provenance,
    )
    return write_bundle(path, manifest, members)


def bundle_name(path: Path) -> str:
    """A name every system accepts, from the file's."""
    name = re.sub(r"[^a-z0-9._-]+", "-", path.name.removesuffix(".ferry").lower()).strip("-._")
    return name[:63] or "model"


def _variant(contents: Contents, runner: VariantRunner, members: dict[str, bytes]) -> Variant:
    name = runner.variant.name
    model, golden = f"model-{name}.tflite", f"golden/{name}.npy"
    members[model] = runner.variant.path.read_bytes()
    members[golden] = npy_bytes(contents.golden.outputs[name])
    output = runner.outputs[0].name
    return Variant(
        name=name,
        file=model,
        scheme=runner.variant.scheme.name,
        delegate="",
        backends=tuple(sorted(BACKENDS, key=lambda b: b != contents.profile.interpreter.package)),
        inputs=tuple(runner.inputs),
        outputs=tuple(runner.outputs),
        golden={output: golden},
        tolerance={output: contents.tolerances[name]},
        input_sha256=contents.golden.input_sha256[name],
    )


def _requires(profile: DeviceProfile) -> Requires:
    board = profile.board
    return Requires(
        arch=() if board.arch == "any" else (board.arch,),
        min_glibc=board.glibc_min or "",
        min_ram_mb=0,  # nothing was measured that would justify a number
        accelerator="",
    )

"""What a bundle is and how it would run on this device, without running it."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

import numpy as np

from edgeferry_runtime import __version__, opencv
from edgeferry_runtime.backend import installed_backends
from edgeferry_runtime.bundle import Bundle
from edgeferry_runtime.delegated import delegated_share
from edgeferry_runtime.errors import BackendError
from edgeferry_runtime.model import Model
from edgeferry_runtime.tuning import loop_key, recall

__all__ = ["describe", "to_text"]


def describe(path: str, variant: str | None, backend: str | None, threads: int | None) -> dict[str, Any]:
    """Everything `edgeferry-run info` shows, as plain values.

    Where no interpreter can run the bundle, ``here`` says why instead of how.
    """
    with Bundle.open(path) as bundle:
        bundle.verify()
        manifest = bundle.manifest
        try:
            with Model.open(bundle, variant, backend, threads) as model:
                here: dict[str, Any] = {
                    "variant": model.variant.name,
                    "backend": str(model.interpreter.backend),
                    "threads": model.interpreter.threads,
                    "threads_measured": _measured(model),
                    "delegate": model.delegate,
                    "delegated_share": delegated_share(model.interpreter),
                    "preprocessing": _paths(model),
                }
        except BackendError as error:
            here = {"error": error.message, "remedy": error.remedy}
        return {
            "name": manifest.name,
            "version": manifest.version,
            "schema_version": manifest.schema_version,
            "profile": manifest.profile.get("name", ""),
            "requires": asdict(manifest.requires),
            "preprocessing": asdict(manifest.preprocessing) if manifest.preprocessing else None,
            "postprocessing": asdict(manifest.postprocessing),
            "variants": [
                {
                    "name": v.name,
                    "scheme": v.scheme,
                    "bytes": manifest.files[v.file].size,
                    "backends": list(v.backends),
                    "inputs": [asdict(spec) for spec in v.inputs],
                    "outputs": [asdict(spec) for spec in v.outputs],
                }
                for v in manifest.variants
            ],
            "golden_frames": manifest.golden.count,
            "gate": manifest.provenance.get("gate", {}),
            "here": here,
            "device": {
                "machine": platform.machine(),
                "python": platform.python_version(),
                "edgeferry_runtime": __version__,
                "backends": [str(b) for b in installed_backends()],
            },
        }


def _measured(model: Model) -> dict[str, float] | None:
    """Frames a second by thread count, where the loop measured them on this board."""
    choice = recall(*loop_key(model))
    return choice.rates if choice else None


def _paths(model: Model) -> dict[str, str]:
    """How frames of each usual format get into the model's input here; one entry where it takes tensors."""
    if model.preprocessor is None:
        return {"tensors": "none"}
    width, height = _EXAMPLE
    frames = {"bgr": np.zeros((height, width, 3), np.uint8), "i420": np.zeros((height * 3 // 2, width), np.uint8)}
    if opencv.available():
        frames["jpeg"] = opencv.load("info").imencode(".jpg", frames["bgr"])[1].reshape(-1)
    paths = {}
    for color, pixels in frames.items():
        model.preprocess(pixels, color)
        paths[color] = model.preprocessor.path
    return paths


_EXAMPLE = (1280, 720)  # the size of frame that the ways are shown for
_PREPROCESSING = (
    "{color} {width}x{height} {geometry}, {resize}; (pixel * {scale:.6g} - {mean}) / {std}; "
    "decode {decode}, planes {planes}"
)


def to_text(d: dict[str, Any]) -> str:
    """The same for people."""
    declared, here = d["preprocessing"], d["here"]
    lines = [
        "{}  {}".format(d["name"], d["version"][:12]),
        "made for       {}".format(d["profile"] or "no profile"),
        "task           {}, scores are {}".format(d["postprocessing"]["task"], d["postprocessing"]["scores"]),
        "preprocessing  " + (_PREPROCESSING.format(**declared) if declared else "none, inputs come as tensors"),
        "golden frames  {}".format(d["golden_frames"]),
    ]
    for v in d["variants"]:
        tensors = [
            "{} {} {}".format(t["name"], "x".join(map(str, t["shape"])), t["dtype"])
            for t in v["inputs"] + v["outputs"]
        ]
        lines.append("variant        {}: {:,} bytes, {}".format(v["name"], v["bytes"], "; ".join(tensors)))
    if "error" in here:
        lines += [
            "here           cannot run: {}".format(here["error"]),
            "               {}".format(here["remedy"]),
        ]
    else:
        lines.append("here           {variant} on {backend}, {threads} threads".format(**here))
        if here["threads_measured"]:
            rates = sorted(here["threads_measured"].items())
            lines.append("threads        measured: " + ", ".join("{}: {:.0f}/s".format(*rate) for rate in rates))
        if here["delegated_share"] is not None:
            lines.append(
                "delegated      {:.0%} of the operations{}".format(
                    here["delegated_share"], ", " + here["delegate"] if here["delegate"] else ""
                )
            )
        lines += ["frames         {}: {}".format(color, path) for color, path in here["preprocessing"].items()]
    lines.append(
        "device         {machine}, Python {python}, edgeferry-runtime {edgeferry_runtime}".format(**d["device"])
    )
    return "\n".join(lines)

"""What the bench of the deployer pushes: one model, calibrated twice; made once and kept in a cache.

python bench/deploy_material.py FOLDER    makes it there (TensorFlow)
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import runtime_material
from runtime_material import CLASSES, PICTURES, cache, scenes, write_model


@dataclass(frozen=True)
class Material:
    """Two bundles of one MobileNetV2 in int8, each calibrated with pictures of its own, judged with the same."""

    folder: Path

    @property
    def first(self) -> Path:
        return self.folder / "first.ferry"

    @property
    def again(self) -> Path:
        return self.folder / "again.ferry"


def material() -> Material:
    """Make what is missing, in a process of its own: TensorFlow would stay in this one's memory."""
    sources = [Path(__file__), Path(runtime_material.__file__)]
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    folder = cache() / f"deploy-{code}"
    if not folder.is_dir():
        print("making two bundles, once ...", file=sys.stderr)
        for old in cache().glob("deploy-*"):
            shutil.rmtree(old)
        subprocess.run([sys.executable, __file__, str(folder)], check=True)
    return Material(folder)


def write_bundles(folder: Path) -> None:
    import numpy as np
    from edgeferry_converter.convert import ConversionRequest, convert
    from rich.console import Console

    write_model(folder / "model.keras")
    (folder / "labels.txt").write_text("".join(f"class {i}\n" for i in range(CLASSES)), "utf-8")
    frames = scenes(320, 240)
    for name in ("judge", "first", "again"):
        part = np.stack(list(islice(frames, PICTURES)))
        np.savez(folder / f"{name}.npz", x=part[..., ::-1], y=np.arange(PICTURES) % 4)
    for name in ("first", "again"):
        request = ConversionRequest(
            folder / "model.keras",
            "host",
            folder / f"{name}.npz",
            eval_data=folder / "judge.npz",
            labels=folder / "labels.txt",
            preprocess="unit",
            schemes=("int8",),
            max_drop=0,  # no gate: an untrained network is right about nothing
            output=folder / "model.ferry",
        )
        convert(request, Console(file=io.StringIO()))
        (folder / "model.ferry").replace(folder / f"{name}.ferry")
    for path in [*folder.glob("*.npz"), folder / "model.keras"]:
        path.unlink()


def main() -> None:
    from edgeferry_converter.quiet import quiet

    folder = Path(sys.argv[1])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with quiet(verbose=False), tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        half = Path(scratch) / "half"  # renamed when whole: a broken run leaves nothing that looks made
        half.mkdir()
        write_bundles(half)
        half.rename(folder)


if __name__ == "__main__":
    main()

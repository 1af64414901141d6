"""What the runtime's benches run: models, a video and the peers' environments, made once and kept in a cache.

python bench/runtime_material.py FOLDER    makes the models and the video there (TensorFlow)
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CLASSES = 1000
PICTURES = 40  # a fifth of them calibrates; the weights are random, nothing is learnt from them
WIDTH, HEIGHT, FRAMES, QUALITY = 1280, 720, 300, 90
BUNDLES = {  # name: (preprocessing, variants, type of input and output)
    "stretch": ({"geometry": "stretch"}, ("int8", "float32"), "int8"),
    "letterbox": ({"geometry": "letterbox"}, ("int8",), "int8"),
    "letterbox-fast": ({"geometry": "letterbox", "resize": "bilinear-fast"}, ("int8",), "int8"),
    "uint8": ({"geometry": "stretch"}, ("int8",), "uint8"),  # MediaPipe refuses int8 inputs
}
MEDIAPIPE = "1.2.2"
PILLOW = "13.0.0"
TFLITE_RUNTIME = "2.11.0"


@dataclass(frozen=True)
class Material:
    """Where everything lies: bundles as folders, as releases on a device are, and the video."""

    folder: Path

    @property
    def video(self) -> Path:
        return self.folder / "video.avi"

    def bundle(self, name: str) -> Path:
        return self.folder / name

    def tflite(self, name: str, scheme: str = "int8") -> Path:
        """The .tflite of a bundle: peers run the very file that we run."""
        (path,) = self.bundle(name).rglob(f"*{scheme}*.tflite")
        return path


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeferry-bench"


def material() -> Material:
    """Make what is missing, in a process of its own: TensorFlow would stay in this one's memory."""
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    folder = cache() / f"material-{code}"
    if not folder.is_dir():
        print("making models and video, once ...", file=sys.stderr)
        for old in cache().glob("material-*"):
            shutil.rmtree(old)
        subprocess.run([sys.executable, __file__, str(folder)], check=True)
    return Material(folder)


def environment(name: str, python: str, packages: list[str]) -> Path:
    """A peer's virtual environment; returns its python."""
    folder = cache() / f"venv-{name}"
    wanted, made = "\n".join([python, *packages]), folder / "made-with"
    if not made.is_file() or made.read_text("utf-8") != wanted:
        print(f"making the environment {name}, once ...", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages], check=True)
        made.write_text(wanted, "utf-8")
    return folder / "bin" / "python"


def mediapipe_python() -> Path:
    return environment("mediapipe", sys.executable, [f"mediapipe=={MEDIAPIPE}"])


def pil_python() -> Path:
    """The same interpreter, numpy and OpenCV as ours, and Pillow."""
    ours = [f"{name}=={version(name)}" for name in ("ai-edge-litert", "numpy", "opencv-python-headless")]
    return environment("pil", sys.executable, [*ours, f"pillow=={PILLOW}"])


def old_python() -> Path | None:
    """Python 3.7 with tflite-runtime, or None where there is no such Python."""
    found = [*sorted(Path.home().glob(".pyenv/versions/3.7*/bin/python")), shutil.which("python3.7")]
    python = next((path for path in found if path), None)
    packages = [f"tflite-runtime=={TFLITE_RUNTIME}", "numpy<1.22", "opencv-python-headless"]
    return environment("python37", str(python), packages) if python else None


def scenes(width: int = WIDTH, height: int = HEIGHT) -> Iterator:
    """Endless BGR frames with the spectrum of a photograph, in motion, with a little of a sensor's noise."""
    import cv2
    import numpy as np

    random = np.random.default_rng(0)
    margin = 160
    ground = np.zeros((height + margin, width + margin, 3), np.float32)
    for octave in range(1, 8):  # amplitude falls as frequency rises
        noise = random.standard_normal((2**octave * 9 // 8, 2**octave * 2, 3), np.float32)
        ground += cv2.resize(noise, (width + margin, height + margin), interpolation=cv2.INTER_CUBIC) / 1.8**octave
    # A little too much contrast: photographs have some full black and full white, and calibration wants them.
    ground = (ground - np.quantile(ground, 0.02)) * (255 / np.ptp(np.quantile(ground, (0.02, 0.98))))
    grain = random.normal(0, 2, (height + margin, width + margin, 3)).astype(np.float32)
    number = 0
    while True:
        x, y = (int((1 + np.sin(number / rate)) * margin / 2) for rate in (40, 27))
        v, w = random.integers(0, margin, 2)
        frame = ground[y : y + height, x : x + width] + grain[v : v + height, w : w + width]
        yield np.clip(frame, 0, 255).astype(np.uint8)
        number += 1


def write_video(path: Path) -> None:
    import cv2

    code = cv2.VideoWriter_fourcc(*"MJPG")  # OpenCV's own writer: the only one that takes a quality
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, code, 30, (WIDTH, HEIGHT))
    writer.set(cv2.VIDEOWRITER_PROP_QUALITY, QUALITY)
    for _, frame in zip(range(FRAMES), scenes(), strict=False):
        writer.write(frame)
    writer.release()


def write_model(path: Path) -> None:
    """MobileNetV2 with random weights and BatchNorm statistics that fit them, so that no activation dies."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(input_shape=(224, 224, 3), weights=None, classes=CLASSES)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:
        layer.momentum, usual = 0.0, layer.momentum
    batch = np.stack([frame for _, frame in zip(range(8), scenes(224, 224), strict=False)])
    model(batch.astype(np.float32) / 255, training=True)
    for layer in norms:
        layer.momentum = usual
    model.save(path)


def profile(folder: Path, dtype: str) -> str:
    """The host's device profile, or one that differs from it in the type of input and output."""
    if dtype == "int8":
        return "host"
    path = folder / f"bench-{dtype}.toml"
    text = (REPOSITORY / "device_profiles" / "host.toml").read_text("utf-8")
    for key in ("input_dtype", "output_dtype"):
        text = text.replace(f'{key} = "int8"', f'{key} = "{dtype}"')
    path.write_text(text.replace('name = "host"', f'name = "{path.stem}"'), "utf-8")
    return str(path)


def write_bundles(model: Path, scratch: Path, target: Path) -> None:
    import json

    import numpy as np
    from edgeferry_converter.convert import ConversionRequest, convert
    from rich.console import Console

    pictures = np.stack([frame for _, frame in zip(range(PICTURES), scenes(640, 360), strict=False)])
    np.savez(
        scratch / "pictures.npz", x=pictures[..., ::-1], y=np.arange(PICTURES) % 4
    )  # several a class: they are divided
    (scratch / "labels.txt").write_text("".join(f"class {i}\n" for i in range(CLASSES)), "utf-8")
    for name, (declared, schemes, dtype) in BUNDLES.items():
        (scratch / "preprocess.json").write_text(json.dumps({"preset": "unit", **declared}), "utf-8")
        request = ConversionRequest(
            model,
            profile(scratch, dtype),
            scratch / "pictures.npz",
            labels=scratch / "labels.txt",
            preprocess=str(scratch / "preprocess.json"),
            schemes=schemes,
            max_drop=0,  # no gate: an untrained network is right about nothing
            output=scratch / f"{name}.ferry",
        )
        convert(request, Console(file=io.StringIO()))
        with zipfile.ZipFile(scratch / f"{name}.ferry") as bundle:
            bundle.extractall(target / name)


def main() -> None:
    from edgeferry_converter.quiet import quiet

    folder = Path(sys.argv[1])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with quiet(verbose=False), tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        half = Path(scratch) / "half"  # renamed when whole: a broken run leaves nothing that looks made
        half.mkdir()
        write_video(half / "video.avi")
        write_model(Path(scratch) / "mobilenet.keras")
        write_bundles(Path(scratch) / "mobilenet.keras", Path(scratch), half)
        half.rename(folder)


if __name__ == "__main__":
    main()

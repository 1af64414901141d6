"""Fixtures every test may use: tiny bundles that need no TensorFlow, and the real models where they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgeferry_runtime.backend import Interpreter
from edgeferry_runtime.bundle import file_entry, write_bundle
from edgeferry_runtime.golden import probe_frame, tensor_sha256
from edgeferry_runtime.manifest import BACKENDS, Golden, Manifest, Requires, Tolerance, Variant
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.preprocessor import Preprocessor
from edgeferry_runtime.tensors import dequantize

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = REPOSITORY / "tests" / "contract" / "data"


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Trained models and images that are not the project's to publish."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real models and images beside the repository (../shared/data)")
    return folder


def npy(array: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def tiny_contents(name: str = "tiny", seed: int = 0) -> tuple[Manifest, dict[str, bytes]]:
    """A manifest and its members around the committed int8 model, goldens computed here."""
    path = TINY / "tiny_int8.tflite"
    interpreter = Interpreter(str(path), threads=1)
    inputs = tuple(replace(spec, name="image") for spec in interpreter.inputs)
    outputs = tuple(replace(spec, name="scores", layout="") for spec in interpreter.outputs)
    declared = Preprocessing(width=12, height=8)
    preprocessor = Preprocessor(declared, inputs[0])
    frames = np.random.default_rng(seed).integers(0, 256, (8, 20, 30, 3), dtype=np.uint8)
    # Levels that differ a lot from frame to frame: answers that differ, too.
    frames = (frames // (1 + np.arange(8)[:, None, None, None] % 5)).astype(np.uint8)
    answers, hashes = [], []
    for frame in frames:
        preprocessor(frame, "bgr", out=interpreter.input(inputs[0].tensor))
        hashes.append(tensor_sha256(interpreter.input(inputs[0].tensor)))
        interpreter.invoke()
        answers.append(dequantize(interpreter.output(outputs[0].tensor), outputs[0]).copy())
    hashes.append(tensor_sha256(preprocessor(probe_frame(), "bgr")))
    members = {f"golden/frame-{i:02d}.npy": npy(frame) for i, frame in enumerate(frames)}
    members["golden/int8.npy"] = members["golden/reference.npy"] = npy(np.concatenate(answers))
    members["labels.txt"] = b"alpha\nbeta\ngamma\ndelta\n"
    members["model-int8.tflite"] = path.read_bytes()
    variant = Variant(
        name="int8",
        file="model-int8.tflite",
        scheme="int8",
        delegate="",
        backends=BACKENDS,
        inputs=inputs,
        outputs=outputs,
        golden={"scores": "golden/int8.npy"},
        tolerance={"scores": Tolerance(max_abs=0.02, rms=0.01)},
        input_sha256=tuple(hashes),
    )
    manifest = Manifest(
        name=name,
        profile={"name": "host", "values": {"interpreter": {"threads": 1}}},
        requires=Requires((), "", 0, ""),
        preprocessing=declared,
        postprocessing=Postprocessing("classify", {"scores": "scores"}, labels="labels.txt"),
        variants=(variant,),
        golden=Golden(
            8, "bgr", tuple(f"golden/frame-{i:02d}.npy" for i in range(8)), {}, {"scores": "golden/reference.npy"}
        ),
        files={name: file_entry(data) for name, data in members.items()},
        provenance={"seed": seed},
    )
    return manifest, members


@pytest.fixture(scope="session")
def make_contents() -> Callable[[str, int], tuple[Manifest, dict[str, bytes]]]:
    """Manifest and members of a tiny classifier, another one for each seed."""
    return tiny_contents


@pytest.fixture(scope="session")
def tiny_manifest() -> Manifest:
    return tiny_contents()[0]


@pytest.fixture
def contents() -> tuple[Manifest, dict[str, bytes]]:
    return tiny_contents()


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Write a tiny bundle; ``change`` may alter manifest and members before."""

    def make(name: str = "tiny", seed: int = 0, change: Callable | None = None) -> Path:
        manifest, members = tiny_contents(name, seed)
        if change is not None:
            manifest, members = change(manifest, members)
            manifest = replace(manifest, files={n: file_entry(data) for n, data in members.items()})
        path = tmp_path / f"{name}-{seed}.ferry"
        write_bundle(path, manifest, members)
        return path

    return make


@pytest.fixture
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()


@pytest.fixture
def bundle_folder(bundle: Path, tmp_path: Path) -> Path:
    """The same bundle as a folder, as a release on a device is."""
    import zipfile

    folder = tmp_path / "release"
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(folder)
    return folder

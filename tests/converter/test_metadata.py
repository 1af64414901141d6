"""TFLite metadata: what is written is read back, interpreters do not notice, MediaPipe shows the labels."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from edgeferry_converter.errors import ConversionError, ModelError
from edgeferry_converter.metadata import (
    TfliteMetadata,
    pixel_normalization,
    read_metadata,
    uint8_pixel_error,
    with_metadata,
)
from edgeferry_converter.tflite_file import read_model
from hypothesis import given, settings
from hypothesis import strategies as st

DATA = Path(__file__).resolve().parent.parent / "contract" / "data"
MODELS = {name: (DATA / f"tiny_{name}.tflite").read_bytes() for name in ("int8", "float32")}
LABELS = ("alpha", "beta", "gamma", "delta")
VALUES = {
    "name": "tiny",
    "description": "four classes",
    "input_name": "image",
    "mean": (127.5,),
    "std": (127.5,),
    "labels": LABELS,
    "output_name": "scores",
}


def answers(data: bytes) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    given_tensor, wanted = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    random = np.random.default_rng(0)
    results = []
    for _ in range(5):
        values = random.integers(-100, 100, given_tensor["shape"]).astype(given_tensor["dtype"])
        interpreter.set_tensor(given_tensor["index"], values)
        interpreter.invoke()
        results.append(interpreter.get_tensor(wanted["index"]))
    return np.array(results)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_what_is_written_is_read(model: bytes) -> None:
    assert read_metadata(model) is None
    assert read_metadata(with_metadata(model, **VALUES)) == TfliteMetadata(**VALUES)


words = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20)
numbers = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=150, deadline=2000)
@given(
    name=words,
    description=words,
    input_name=words,
    output_name=words,
    mean=st.lists(numbers, min_size=3, max_size=3).map(tuple),
    std=st.lists(numbers.filter(lambda value: abs(value) > 1e-3), min_size=3, max_size=3).map(tuple),
    labels=st.none() | st.lists(words, min_size=4, max_size=4).map(tuple),
    color=st.sampled_from(["rgb", "gray"]),
    minimum=numbers,
    maximum=numbers,
)
def test_round_trip(**values) -> None:
    read = read_metadata(with_metadata(MODELS["float32"], **values))
    uniform = len(set(values["mean"])) == len(set(values["std"])) == 1
    kept = slice(1) if uniform else slice(3)
    expected = {
        **values,
        "mean": values["mean"][kept],
        "std": values["std"][kept],
        "labels": values["labels"] or (),
    }
    assert read == TfliteMetadata(**expected)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_nothing_of_the_model_changes(model: bytes) -> None:
    made = with_metadata(model, **VALUES)
    before, after = read_model(model), read_model(made)
    assert (before.operators, before.tensors, before.signatures) == (
        after.operators,
        after.tensors,
        after.signatures,
    )
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert old.constant == new.constant and (not old.constant or (old.data == new.data).all())
    assert set(after.metadata) - set(before.metadata) == {"TFLITE_METADATA"}
    assert all((after.metadata[name] == before.metadata[name]).all() for name in before.metadata)
    np.testing.assert_array_equal(answers(made), answers(model))


def test_real_models_answer_the_same(real_data: Path) -> None:
    model = (real_data / "coral" / "mobilenet_v1_0.25_128_quant.tflite").read_bytes()
    made = with_metadata(model, **{**VALUES, "labels": [f"class {i}" for i in range(1001)]})
    np.testing.assert_array_equal(answers(made), answers(model))
    assert read_metadata(model).labels[1] == "tench, Tinca tinca"  # written by Google's own tool
    assert read_metadata(made).labels[-1] == "class 1000"


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_buffer_stays_aligned(model: bytes) -> None:
    made = with_metadata(model, **VALUES)
    file = schema.Model.GetRootAs(made, 0)
    buffers = [file.Buffers(i) for i in range(file.BuffersLength())]
    starts = [b._tab.Vector(b._tab.Offset(4)) for b in buffers if b.DataLength()]
    assert len(starts) > 5 and all(start % 16 == 0 for start in starts)


def test_the_same_arguments_give_the_same_bytes() -> None:
    once = with_metadata(MODELS["int8"], **VALUES)
    assert with_metadata(MODELS["int8"], **VALUES) == once
    # Written twice, or over others: only the last ones are there.
    assert with_metadata(once, **VALUES) == once
    other = with_metadata(MODELS["int8"], **{**VALUES, "name": "other", "labels": None})
    assert read_metadata(with_metadata(other, **VALUES)) == read_metadata(once)
    assert with_metadata(once, **{**VALUES, "labels": None}).count(b"PK\x03\x04") == 0


def test_the_labels_are_a_stored_file_with_a_fixed_date() -> None:
    with zipfile.ZipFile(io.BytesIO(with_metadata(MODELS["int8"], **VALUES))) as archive:
        (entry,) = archive.infolist()
        assert (entry.filename, entry.compress_type, entry.date_time[0]) == (
            "labels.txt",
            zipfile.ZIP_STORED,
            1980,
        )
        assert archive.read(entry) == b"alpha\nbeta\ngamma\ndelta\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS[:3]}, "3 labels for 4 values"),
        ({"labels": ("a\nb", *LABELS[1:])}, "line break"),
        ({"mean": (1.0, 2.0)}, "mean has 2 values for 3 channels"),
        ({"std": (1.0, 0.0, 1.0)}, "std not 0"),
        ({"std": (1e-60,)}, "std not 0"),
        ({"mean": (float("nan"),)}, "numbers below"),
        ({"std": (1e-30,)}, "std not 0"),
        ({"mean": (1e30,)}, "below 1e"),
        ({"maximum": float("inf")}, "range"),
        ({"color": "bgr"}, "no colour order 'bgr'"),
    ],
)
def test_metadata_that_would_be_untrue_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ConversionError, match=message) as caught:
        with_metadata(MODELS["int8"], **{**VALUES, **change})
    assert caught.value.remedy


def test_compiled_models_are_refused(real_data: Path) -> None:
    model = (real_data / "coral" / "mobilenet_v1_0.25_128_quant_edgetpu.tflite").read_bytes()
    with pytest.raises(ConversionError, match="write metadata first"):
        with_metadata(model, **{**VALUES, "labels": None})
    # What edgetpu_compiler made of it: the labels are still there.
    assert len(read_metadata(model).labels) == 1001


def test_broken_models_and_broken_metadata_are_errors() -> None:
    made = with_metadata(MODELS["int8"], **VALUES)
    with pytest.raises(ModelError):
        with_metadata(made[:500], **VALUES)
    with pytest.raises(ModelError, match=r"labels\.txt"):
        read_metadata(made[: made.index(b"PK\x03\x04")])
    with pytest.raises(ModelError, match="version"):
        read_metadata(made.replace(b"M001", b"M002"))


MADE = with_metadata(MODELS["int8"], **VALUES)


@settings(max_examples=300, deadline=2000)
@given(st.lists(st.tuples(st.integers(0, len(MADE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_flipped_bytes_never_crash_the_reader(changes: list[tuple[int, int]]) -> None:
    data = bytearray(MADE)
    for position, value in changes:
        data[position] = value
    try:
        read_metadata(bytes(data))
    except ModelError as error:
        assert error.remedy


def test_damage_where_only_the_writer_looks_is_an_error() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(MODELS["int8"])
        for position in random.integers(8, len(data), 3):
            data[position] = random.integers(256)
        try:
            made = with_metadata(bytes(data), **VALUES)
        except (ModelError, ConversionError):
            continue
        assert made[4:8] == b"TFL3"


def test_weights_behind_the_flatbuffer_are_refused() -> None:
    import flatbuffers

    model = schema.ModelT.InitFromPackedBuf(bytearray(MODELS["int8"]), 0)
    model.buffers[0].offset, model.buffers[0].size = 100, 4
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    with pytest.raises(ConversionError, match="behind the flatbuffer"):
        with_metadata(bytes(builder.Output()), **VALUES)


def test_normalisation_moves_to_pixels_of_0_to_255() -> None:
    mean, std = pixel_normalization(1 / 255, (0.485, 0.456), (0.229, 0.224))
    assert mean == pytest.approx((123.675, 116.28)) and std == pytest.approx((58.395, 57.12))


def test_uint8_input_against_the_pixels() -> None:
    def model(scale: float, zero: int):
        from dataclasses import replace

        tiny = read_model(MODELS["int8"])
        changed = replace(tiny.inputs[0], dtype="uint8", scales=(scale,), zero_points=(zero,))
        return replace(tiny, inputs=(changed,))

    assert uint8_pixel_error(model(1 / 255, 0), (0.0,), (255.0,)) == 0
    assert uint8_pixel_error(model(1 / 127.5, 127), (127.5,), (127.5,)) <= 1
    assert uint8_pixel_error(model(0.02, 114), (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)) > 5
    with pytest.raises(ModelError, match="uint8"):
        uint8_pixel_error(read_model(MODELS["int8"]), (0.0,), (255.0,))


CLASSIFY = """
import json, sys
import mediapipe as mp
import numpy as np
from mediapipe.tasks import python
from mediapipe.tasks.python import vision

answers = {}
for path in sys.argv[1:]:
    try:
        base = python.BaseOptions(model_asset_path=path)
        classifier = vision.ImageClassifier.create_from_options(vision.ImageClassifierOptions(base_options=base))
        answers[path] = []
        for color in [(250, 5, 5), (5, 250, 5), (5, 5, 250)]:
            image = mp.Image(image_format=mp.ImageFormat.SRGB, data=np.full((32, 48, 3), color, np.uint8))
            answers[path].append(classifier.classify(image).classifications[0].categories[0].category_name)
    except ValueError as error:
        answers[path] = str(error)
print("ANSWERS" + json.dumps(answers))
"""


@pytest.fixture
def mediapipe(tmp_path: Path) -> Path:
    """A Python with MediaPipe, in an environment of its own because its pins disagree with TensorFlow's."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, capture_output=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "mediapipe"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), done.stderr[-300:])
        pytest.skip(f"mediapipe cannot be installed: {reason}")
    return python


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings(r"ignore:\s*Warning. tf.lite.Interpreter is deprecated:UserWarning")
def test_mediapipe_shows_the_labels(mediapipe: Path, keras, color_model: Path, tmp_path: Path) -> None:
    from edgeferry_converter.quantization import QuantizationScheme, quantize

    def pictures():
        random = np.random.default_rng(0)
        for _ in range(30):
            yield {"image": random.choice([0.0, 255.0], (1, 16, 16, 3)).astype(np.float32)}

    schemes = {
        "uint8": QuantizationScheme("int8", "uint8", "uint8"),
        "uint8-float": QuantizationScheme("int8", "uint8", "float32"),
        "float32": QuantizationScheme("float32"),
        "float16": QuantizationScheme("float16"),
        "int8": QuantizationScheme("int8"),
    }
    paths = {name: tmp_path / f"{name}.tflite" for name in schemes}
    spec = keras.InputSpec(shape=(1, 16, 16, 3), dtype="float32", name="image")
    keras.models.load_model(color_model).export(
        tmp_path / "saved", format="tf_saved_model", input_signature=[spec], verbose=False
    )
    for name, scheme in schemes.items():
        data = quantize(tmp_path / "saved", "serving_default", scheme, pictures)
        values = {**VALUES, "mean": (0.0,) * 3, "std": (1.0,), "labels": ["blue", "green", "red"]}
        paths[name].write_bytes(with_metadata(data, **values))
    assert uint8_pixel_error(read_model(paths["uint8"].read_bytes()), (0.0,), (1.0,)) <= 1
    script = tmp_path / "classify.py"
    script.write_text(textwrap.dedent(CLASSIFY))
    run = [str(mediapipe), str(script), *map(str, paths.values())]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=300)
    answer = json.loads(done.stdout.split("ANSWERS")[1])
    for name in ("uint8", "uint8-float", "float32", "float16"):
        assert answer[str(paths[name])] == ["red", "green", "blue"], name
    # Why a bundle for MediaPipe needs another input type.
    assert "INT8" in answer[str(paths["int8"])]

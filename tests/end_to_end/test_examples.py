"""Every script in examples/ runs on real input, and does what its first line says."""

from __future__ import annotations

import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from edgeferry_runtime.errors import SourceError
from edgeferry_runtime.manifest import TensorSpec
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Preprocessing
from edgeferry_runtime.sources import open_source

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
README = EXAMPLES / "README.md"
SIDE = 8  # of the models' input, in pixels
COLORS = {"red": (0, 0, 255), "green": (0, 255, 0), "blue": (255, 0, 0)}  # BGR
DETECT = Postprocessing(
    "detect", {"head": "scores"}, labels="labels.txt", decoder="yolo-v8", box_unit="fraction", threshold=0.5
)
EMBED = Postprocessing("embed", {"embedding": "scores"})


def run(name: str, *arguments: object) -> str:
    done = subprocess.run(command(name, *arguments), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(EXAMPLES / name), *map(str, arguments)]


def color_model(cells: int, boxes: bool) -> bytes:
    """A .tflite that means the colours of a grid's cells: float32 [1, 8, 8, 3] to [1, cells * cells, 3].

    With boxes it is a detector in YOLO's manner, whose classes are the colours: [1, cells * cells, 4 + 3].
    """
    count, part, builtin = cells * cells, SIDE // cells, schema.BuiltinOperator
    centres = [((i % cells + 0.5) / cells, (i // cells + 0.5) / cells, 1 / cells, 1 / cells) for i in range(count)]
    shapes = [(1, SIDE, SIDE, 3), (1, cells, cells, 3), (1, count, 3), (1, count, 4), (1, count, 7)]
    pool = schema.Pool2DOptionsT(filterWidth=part, filterHeight=part, strideW=part, strideH=part, padding=1)
    reshape, join = schema.ReshapeOptionsT(newShape=list(shapes[2])), schema.ConcatenationOptionsT(axis=2)
    options = schema.BuiltinOptions
    steps = [
        (builtin.AVERAGE_POOL_2D, [0], 1, options.Pool2DOptions, pool),
        (builtin.RESHAPE, [1], 2, options.ReshapeOptions, reshape),
        (builtin.CONCATENATION, [3, 2], 4, options.ConcatenationOptions, join),
    ][: 3 if boxes else 2]
    graph = schema.SubGraphT(
        inputs=[0],
        outputs=[steps[-1][2]],
        tensors=[
            schema.TensorT(shape=list(shape), type=schema.TensorType.FLOAT32, name=f"t{i}", buffer=int(i == 3))
            for i, shape in enumerate(shapes[: 5 if boxes else 3])
        ],
        operators=[
            schema.OperatorT(
                opcodeIndex=i, inputs=takes, outputs=[gives], builtinOptionsType=kind, builtinOptions=value
            )
            for i, (_, takes, gives, kind, value) in enumerate(steps)
        ],
    )
    model = schema.ModelT(
        version=3,
        operatorCodes=[
            schema.OperatorCodeT(builtinCode=s[0], deprecatedBuiltinCode=s[0], version=1) for s in steps
        ],
        subgraphs=[graph],
        buffers=[schema.BufferT(), schema.BufferT(data=list(np.float32(centres).tobytes()))],
    )
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@pytest.fixture
def make_color_bundle(make_bundle) -> Callable[..., Path]:
    """A bundle around ``color_model``: what its answers are can be told from the pictures."""

    def make(name: str, task: Postprocessing, labels=tuple(COLORS), cells: int = 1, frames: bool = True) -> Path:
        boxes = task.task == "detect"
        outputs = (1, cells * cells, 7 if boxes else 3)

        def change(manifest, members):
            (variant,) = manifest.variants
            members[variant.file] = color_model(cells, boxes)
            members["labels.txt"] = "\n".join(labels).encode()
            variant = replace(
                variant,
                scheme="float32",
                inputs=(TensorSpec("image", "t0", (1, SIDE, SIDE, 3), "float32", "NHWC"),),
                outputs=(TensorSpec("scores", "t4" if boxes else "t2", outputs, "float32"),),
                input_sha256=(),
            )
            golden = manifest.golden
            if not frames:
                golden = replace(golden, frames=(), inputs={"image": golden.frames[0]})
            return replace(
                manifest,
                preprocessing=Preprocessing(width=SIDE, height=SIDE, scale=1 / 255) if frames else None,
                postprocessing=task,
                variants=(variant,),
                golden=golden,
            ), members

        return make_bundle(name, change=change)

    return make


@pytest.fixture
def colors(make_color_bundle) -> Path:
    """A classifier that says red, green or blue."""
    return make_color_bundle("colors", Postprocessing("classify", {"scores": "scores"}, labels="labels.txt"))


@pytest.fixture
def detector(make_color_bundle) -> Path:
    """A detector that finds red things ("person"), green and blue ones in the four quarters of a frame."""
    return make_color_bundle("detector", DETECT, ("person", "cat", "dog"), cells=2)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """One picture for each colour, named after it: JPEG, which reaches the pipeline undecoded."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, color in COLORS.items():
        cv2.imwrite(str(folder / f"{name}.jpg"), np.full((30, 40, 3), color, np.uint8))
    return folder


@pytest.fixture
def street(tmp_path) -> Path:
    """Four frames of 64x48: nobody; a striped person; that one, another and a striped cat; the first one again."""
    folder = tmp_path / "street"
    folder.mkdir()
    empty = np.zeros((48, 64, 3), np.uint8)
    alone = empty.copy()
    alone[:24, :32] = COLORS["red"]
    stripes = np.arange(32) % 8 < 4  # squares of 8 pixels would hide them
    alone[:24, :32][:, stripes] = (90, 90, 255)
    several = alone.copy()
    several[24:, 32:] = COLORS["red"]
    several[:24, 32:] = COLORS["green"]
    several[:24, 32:][:, stripes] = (90, 255, 90)
    for i, picture in enumerate((empty, alone, several, alone)):
        cv2.imwrite(str(folder / f"{i}.png"), picture)
    return folder


@pytest.fixture
def recording(tmp_path) -> Path:
    """A numpy file of RGB frames: red, red, red, red, blue, red, red, red."""
    frames = np.zeros((8, 12, 16, 3), np.uint8)
    frames[..., 0] = 255
    frames[4] = (0, 0, 255)
    path = tmp_path / "frames.npy"
    np.save(path, frames)
    return path


@pytest.fixture
def video(recording, tmp_path) -> Path:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter_fourcc(*"MJPG"), 30, (16, 12))
    for frame in np.load(recording):
        writer.write(frame[..., ::-1].copy())
    writer.release()
    return path


def test_classify_picture(colors, pictures):
    lines = run("classify_picture.py", colors, pictures / "green.jpg").splitlines()
    assert re.match(r"(100\.0|99\.\d)%  green", lines[0].strip())
    assert {line.split()[1] for line in lines} == set(COLORS)


def test_watch_source(colors, pictures, tmp_path):
    out = run("watch_source.py", colors, pictures, f"csv:{tmp_path / 'seen.csv'}")
    assert re.findall(r"^ +(\d) +\d+\.\d\d ms  (\w+) ", out, re.M) == [("0", "blue"), ("1", "green"), ("2", "red")]
    assert "3 frames in" in out
    assert "green" in (tmp_path / "seen.csv").read_text()


def test_live_view(colors):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(command("live_view.py", colors, "synthetic:64x48@50", port), stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                view = open_source(f"http://localhost:{port}/")
                break
            except SourceError:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline, "it does not serve"
                time.sleep(0.1)
        with view:
            first, second = view.read(), view.read()
        assert first.pixels.shape == second.pixels.shape == (48, 64, 3)
        assert (first.pixels != second.pixels).any()
        assert (
            first.pixels[-10:].max(axis=2) < 40
        ).mean() > 0.1  # the footer's ground; the source has no black there
    finally:
        process.kill()
        process.communicate()


def test_crop_detections(detector, street, tmp_path):
    out = run("crop_detections.py", detector, street, tmp_path / "crops")
    assert re.findall(r"(\d+-\d).jpg  (\w+)", out) == [
        ("000001-0", "person"),
        ("000002-0", "person"),
        ("000002-1", "cat"),
        ("000002-2", "person"),
        ("000003-0", "person"),
    ]
    for name, rows, columns in (
        ("0", slice(24), slice(32)),
        ("1", slice(24), slice(32, 64)),
        ("2", slice(24, 48), slice(32, 64)),
    ):
        before = cv2.imread(str(street / "2.png"))[rows, columns]
        crop = cv2.imread(str(tmp_path / "crops" / f"000002-{name}.jpg"))
        assert crop.shape == (24, 32, 3)
        assert np.abs(crop.mean(axis=(0, 1)) - before.mean(axis=(0, 1))).max() < 20


def test_hide_people(detector, street, tmp_path):
    video = tmp_path / "hidden.avi"
    run("hide_people.py", detector, street, video)
    with open_source(str(video)) as hidden:
        after = [hidden.read().pixels for _ in range(4)][2]
        assert hidden.read() is None
    before = cv2.imread(str(street / "2.png"))
    # Gray, as JPEG keeps the colours of every second pixel only.
    person, cat = (
        [cv2.cvtColor(p, cv2.COLOR_BGR2GRAY)[4, x : x + 8].std() for p in (before, after)] for x in (0, 40)
    )
    assert person[1] < 0.2 * person[0]  # within one square
    assert cat[1] > 0.8 * cat[0]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_hide_people_leaves_a_whole_video_when_interrupted(detector, tmp_path):
    video = tmp_path / "hidden.avi"
    process = subprocess.Popen(command("hide_people.py", detector, "synthetic:64x48@100", video))
    deadline = time.monotonic() + 60
    while not video.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    capture = cv2.VideoCapture(str(video))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0
    assert capture.read()[0]


def test_count_objects(detector, street):
    lines = run("count_objects.py", detector, street).splitlines()
    assert all(re.match(r"\d\d:\d\d ", line) for line in lines)
    assert "2 person, 1 cat" in [line[6:] for line in lines]  # others are there when a minute ends on the way


def test_react_when_seen(colors, video):
    out = run("react_when_seen.py", colors, video, "red", sys.executable, "-c", "print('miaow')")
    assert out.split("\n") == ["frame 2: red", "miaow", "frame 7: red", "miaow", ""]


def test_own_sink(colors, video, tmp_path):
    assert "8 frames in" in run("own_sink.py", colors, video, tmp_path / "seen.db")
    rows = (
        sqlite3.connect(tmp_path / "seen.db").execute("SELECT frame, label FROM seen WHERE score > 0.6").fetchall()
    )
    assert rows == [(i, "blue" if i == 4 else "red") for i in range(8)]


def test_own_source(colors, recording):
    lines = run("own_source.py", colors, recording).splitlines()
    assert [line.split() for line in lines] == [[str(i), "blue" if i == 4 else "red", "100%"] for i in range(8)]


def test_two_models(detector, colors, street):
    assert run("two_models.py", detector, colors, street).splitlines()[1:] == [
        "     2  person at 0,0: red 100%",
        "     2  cat at 32,0: green 100%",
        "     2  person at 32,24: red 100%",
        "     3  person at 0,0: red 100%",
    ]


def test_compare_bundles(colors, make_color_bundle, pictures):
    task = Postprocessing("classify", {"scores": "scores"}, labels="labels.txt", threshold=1.0)
    other = make_color_bundle("other", task, ("red", "green", "cyan"))
    assert run("compare_bundles.py", colors, other, pictures).splitlines() == [
        "blue.jpg: blue 100%, cyan 100%",
        "the same answer for 2 of 3 pictures",
    ]


def test_find_similar(make_color_bundle, pictures, tmp_path):
    cv2.imwrite(str(tmp_path / "orange.png"), np.full((10, 10, 3), (0, 128, 255), np.uint8))
    out = run("find_similar.py", make_color_bundle("embedder", EMBED), tmp_path / "orange.png", pictures)
    assert [line.split()[1] for line in out.splitlines()] == ["red.jpg", "green.jpg", "blue.jpg"]
    assert float(out.split()[0]) == pytest.approx(255 / np.hypot(255, 128), abs=0.01)


def test_run_on_numbers(make_color_bundle, tmp_path):
    task = Postprocessing("classify", {"scores": "scores"}, labels="labels.txt")
    samples = np.tile([[0.25, 0.5, 0.125], [0.75, 0.0, 0.5]], SIDE * SIDE)
    np.savetxt(tmp_path / "samples.csv", samples, delimiter=",")
    out = run("run_on_numbers.py", make_color_bundle("numbers", task, frames=False), tmp_path / "samples.csv")
    assert out.splitlines() == [
        "green 50%",
        "  scores: [0.25, 0.5, 0.125]",
        "red 75%",
        "  scores: [0.75, 0.0, 0.5]",
    ]


def test_look_into_bundle(make_bundle):
    def judged(manifest, members):
        exact = {"metric": 0.9, "agreement": 1.0, "rms_error": 0.00123}
        unlabelled = exact | {"metric": None}
        gate = {"metric": "top-1 accuracy", "frames": 40, "variants": {"int8": exact, "float16": unlabelled}}
        return replace(manifest, provenance={"gate": gate}), members

    path = make_bundle(seed=3, change=judged)
    out = run("look_into_bundle.py", path)
    assert re.search(r"^tiny [0-9a-f]{64}$", out, re.M)
    assert re.search(r"^        23  [0-9a-f]{12}  labels.txt$", out, re.M)
    assert "top-1 accuracy, on 40 samples\n" in out
    assert "int8: metric 0.9, agreement 1, rms_error 0.00123\n" in out
    assert "float16: agreement 1, rms_error 0.00123\n" in out


def test_push_from_python(bundle, tmp_path):
    out = run("push_from_python.py", bundle, f"local:{tmp_path / 'board'}")
    assert "is current" in out
    assert "allowed" in out


def test_the_readme_runs(colors, pictures):
    code = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S))
    for name, path in (("digits.ferry", colors), ("/dev/video0", pictures)):
        assert name in code
        code = code.replace(name, path.as_posix())
    code = "import numpy as np\npixels = np.full((6, 8, 3), (255, 0, 0), np.uint8)\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["blue", "100%"],
        ["0", "blue"],
        ["1", "green"],
        ["2", "red"],
    ], done.stderr


def test_no_example_is_forgotten():
    tests = Path(__file__).read_text(encoding="utf-8")
    table = README.read_text(encoding="utf-8")
    names = [path.name for path in EXAMPLES.glob("*.py")]
    assert len(names) >= 12
    assert [name for name in names if f'"{name}"' not in tests] == []
    assert [name for name in names if f"({name})" not in table] == []


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_say_how_to_run_them(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith('"""')
    assert lines[2].startswith(f"python examples/{path.name} ")
    assert len(lines) <= 50

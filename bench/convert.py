"""What a conversion costs beside the bare call of TensorFlow's converter with the same data, and where it goes.

make bench-convert
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import numpy as np
from edgeferry_converter import convert as conversion
from edgeferry_converter.convert import ConversionRequest, convert, open_material
from edgeferry_converter.progress import Progress
from edgeferry_converter.quantization import QuantizationScheme
from edgeferry_converter.quiet import quiet
from edgeferry_converter.workshop import Workshop
from rich.console import Console
from table import Row, report

REPOSITORY = Path(__file__).resolve().parent.parent
DIGITS = REPOSITORY / "examples" / "digits"
RESNET8 = REPOSITORY.parent / "shared" / "data" / "mlcommons_tiny" / "resnet8_cifar10_keras2.h5"
PICTURES = 1000  # a fifth of them calibrates
CALIBRATION = 200
ROUNDS = 5
WHOLE_ROUNDS = 2
GOAL = 1.3
INT8 = QuantizationScheme("int8")
STAGES = {  # by what the progress bar says
    "loading": "loading",
    "looking at the data": "linting",
    "converting float32": "converting",
    "converting int8": "converting",
    "calibrating": "converting",
    "judging": "judging",
    "looking for the layers that lose": "layer errors",
    "timing": "timing",
    "packing": "packing",
}


class Stopwatch(Progress):
    """A progress bar that also adds up how long each stage takes."""

    seconds: dict[str, float]

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        Stopwatch.seconds = dict.fromkeys(STAGES.values(), 0.0)
        self._stage, self._since = "loading", time.perf_counter()

    def step(self, description: str) -> None:
        self._enter(description)
        super().step(description)

    def track(self, items: Iterator, total: int, description: str) -> Iterator:
        self._enter(description)
        yield from super().track(items, total, description)

    def _enter(self, description: str) -> None:
        now = time.perf_counter()
        self.seconds[self._stage] += now - self._since
        self._stage, self._since = STAGES[description], now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._enter("packing")
        super().__exit__(kind, error, trace)


def export(model, folder: str) -> None:
    """The bare way's SavedModel, as Keras' documentation has it."""
    import keras
    import tensorflow as tf

    archive = keras.export.ExportArchive()
    archive.track(model)
    spec = tf.TensorSpec((1, *model.inputs[0].shape[1:]), tf.float32)
    archive.add_endpoint("serve", lambda x: model(x, training=False), input_signature=[spec])
    archive.write_out(folder, verbose=False)


def bare(folder: str, images: list[Path], shape: tuple[int, int, int]) -> bytes:
    """The bare call: decode and resize in the representative data set, convert."""
    import tensorflow as tf

    height, width, channels = shape
    order = cv2.COLOR_BGR2GRAY if channels == 1 else cv2.COLOR_BGR2RGB

    def representative() -> Iterator[list[np.ndarray]]:
        for path in images:
            pixels = cv2.cvtColor(cv2.imread(str(path)), order)
            small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
            yield [small.astype(np.float32).reshape(1, *shape)]

    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def measure(name: str, path: Path, data: Path, console: Console) -> list[Row]:
    """Bare and ours in turns, then whole conversions."""
    request = ConversionRequest(path, "host", data, preprocess="raw", max_drop=0)  # no gate: time alone counts
    material = open_material(request)
    images = [data / sample.name for sample in material.calibration()]
    assert len(images) == CALIBRATION, len(images)

    model = material.source.keras
    shape = tuple(model.inputs[0].shape[1:])

    def theirs() -> tuple[tuple[float, float], tuple[float, float]]:
        with tempfile.TemporaryDirectory() as folder:
            return timed(lambda: export(model, folder)), timed(lambda: bare(folder, images, shape))

    def ours() -> None:
        with (
            Progress(console) as progress,
            tempfile.TemporaryDirectory() as folder,
            Workshop(material, Path(folder), progress) as workshop,
        ):
            workshop.make(INT8)

    theirs(), ours()
    whole_ratios, call_ratios, bare_seconds, our_seconds = [], [], [], []
    for _ in range(ROUNDS):
        (exported, called), mine = theirs(), timed(ours)
        wall, cpu = (e + c for e, c in zip(exported, called, strict=True))
        whole_ratios.append((mine[0] / wall, mine[1] / cpu))
        call_ratios.append(mine[0] / called[0])
        bare_seconds.append(wall)
        our_seconds.append(mine[0])
    rows = [
        Row(f"{name}: int8 variant, ours / bare", [r[0] for r in whole_ratios], "ratio", GOAL, "lower"),
        Row(f"{name}: the same, CPU time", [r[1] for r in whole_ratios], "ratio", None, "lower"),
        Row(f"{name}: ours / bare without its export", call_ratios, "ratio", None, "lower"),
        Row(f"{name}: bare", bare_seconds, "s", None, "lower"),
        Row(f"{name}: ours", our_seconds, "s", None, "lower"),
    ]
    return rows + whole(name, request, rows[3].value, console)


def whole(name: str, request: ConversionRequest, base: float, console: Console) -> list[Row]:
    """What `edgeferry convert` does beside converting, each stage as a multiple of the bare call."""
    runs = []
    for _ in range(WHOLE_ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            options = vars(request) | {"output": Path(folder) / "m.ferry"}
            convert(ConversionRequest(**options), console)
        runs.append({stage: seconds / base for stage, seconds in Stopwatch.seconds.items()})
    rows = [Row(f"{name}: whole convert / bare", [sum(run.values()) for run in runs], "ratio", None, "lower")]
    for stage in dict.fromkeys(STAGES.values()):
        rows.append(Row(f"{name}:   of it {stage}", [run[stage] for run in runs], "ratio", None, "lower"))
    return rows


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def mobilenet(folder: Path) -> Path:
    """A network of the usual size; what it answers does not matter here."""
    import keras

    keras.utils.set_random_seed(0)
    path = folder / "mobilenet.keras"
    keras.applications.MobileNetV2(input_shape=(96, 96, 3), weights=None, classes=10).save(path)
    return path


def main() -> None:
    sys.path.insert(0, str(DIGITS))
    from scene import write_folders

    warnings.simplefilter("ignore")  # TensorFlow's, of its own innards
    conversion.Progress = Stopwatch
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "pictures"
        write_folders(data, PICTURES)
        small = ("resnet8 32x32", RESNET8) if RESNET8.is_file() else ("digits", DIGITS / "digits.keras")
        rows = []
        with quiet(verbose=False):
            for name, path in (small, ("MobileNetV2 96x96", mobilenet(Path(scratch)))):
                rows += measure(name, path, data, Console(file=io.StringIO()))
    report("convert", rows)


if __name__ == "__main__":
    main()

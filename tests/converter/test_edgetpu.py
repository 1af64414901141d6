"""The Edge TPU: placement of real pairs, the compiler's log, and the compiler played by a script."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgeferry_converter.edgetpu import (
    CUSTOM_OPERATION,
    CompilerLog,
    Placement,
    compile_model,
    constraints,
    find_compiler,
    install_hint,
    parse_log,
    placement,
)
from edgeferry_converter.errors import ConversionError, ModelError, ModelNotFoundError
from edgeferry_converter.tflite_file import TfliteGraph, TfliteModel, TfliteOperator, TfliteTensor, read_model
from hypothesis import given
from hypothesis import strategies as st

TINY = Path(__file__).resolve().parent.parent / "contract" / "data"

# google-coral/edgetpu#60 (2.1), with rows of #317 and #461.
LOG = """\
Edge TPU Compiler version 2.1.302470888

Model compiled successfully in 12264 ms.

Input model: model2.tflite
Input size: 8.11MiB
Output model: model2_edgetpu.tflite
Output size: 9.47MiB
On-chip memory used for caching model parameters: 6.86MiB
On-chip memory remaining for caching model parameters: 7.75KiB
Off-chip memory used for streaming uncached model parameters: 1.22MiB
Number of Edge TPU subgraphs: 1
Total number of operations: 93
Operation log: model2_edgetpu.log

Model successfully compiled but not all operations are supported by the Edge TPU. A percentage of the model will \
instead run on the CPU, which is slower.
Number of operations that will run on Edge TPU: 83
Number of operations that will run on CPU: 10

Operator                       Count      Status

LOGISTIC                       1          More than one subgraph is not supported
ADD                            10         Mapped to Edge TPU
QUANTIZE                       1          Operation is otherwise supported, but not mapped due to some \
unspecified limitation
CAST                           1          Operation is working on an unsupported data type
GELU                           2          Operation not supported
SOFTMAX                        1          Operation version not supported
MEAN                           1          Tensor has unsupported rank (up to 3 innermost dimensions mapped)
PACK                           3          The moon is in the wrong house
"""
MAPPED_LOG = """\
Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 58 ms.

On-chip memory used for caching model parameters: 80.00KiB
On-chip memory available for caching model parameters: 7.68MiB
Off-chip memory used for streaming uncached model parameters: 0.00B
Number of Edge TPU subgraphs: 1
Total number of operations: 191
See the operation log file for individual operation details.
"""
FAILED_LOG = """\
Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.
ERROR: Restored original execution plan after delegate application failure.
Compilation failed: Compilation failed due to large activation tensors in model.
Compilation child process completed within timeout period.
Compilation failed!
"""

PAIRS = {
    "keras_lstm_mnist_ptq": {
        **{"QUANTIZE": 2, "FULLY_CONNECTED": 1, "RESHAPE": 1, "SOFTMAX": 1, "UNIDIRECTIONAL_SEQUENCE_LSTM": 1}
    },
    "mobilenet_v1_0.25_128_quant": {
        **{"CONV_2D": 15, "DEPTHWISE_CONV_2D": 13, "AVERAGE_POOL_2D": 1, "RESHAPE": 1, "SOFTMAX": 1}
    },
    "split_concat": {"CONCATENATION": 2, "SPLIT": 1},
}


@pytest.fixture
def tiny() -> TfliteModel:
    return read_model((TINY / "tiny_int8.tflite").read_bytes())


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put an ``edgetpu_compiler`` on PATH whose body is Python; ``argv``, ``out`` and ``model`` are set for it."""

    def install(body: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        script = folder / "edgetpu_compiler"
        head = """\
            import pathlib, shutil, subprocess, sys, time
            argv = sys.argv[1:]
            model = pathlib.Path(argv[-1])
            out = pathlib.Path(argv[argv.index("-o") + 1]) / (model.stem + "_edgetpu.tflite")
            """
        script.write_text(f"#!{sys.executable}\n{textwrap.dedent(head)}{textwrap.dedent(body)}")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return script

    return install


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def with_operators(model: TfliteModel, operators: tuple[TfliteOperator, ...]) -> TfliteModel:
    """The model with other operations in its main graph."""
    return replace(model, graphs=(replace(model.graphs[0], operators=operators), *model.graphs[1:]))


def operator(kind: str, *shapes: tuple[int, ...], dtype: str = "int8", constants: tuple = ()) -> TfliteModel:
    """A model of one operation: the last shape is the output's."""
    tensors = [TfliteTensor(f"t{i}", shape, dtype) for i, shape in enumerate(shapes)]
    inputs = [
        *tensors[:-1],
        *(TfliteTensor("c", c.shape, dtype, data=c.view(np.uint8).ravel()) for c in constants),
    ]
    op = TfliteOperator(kind, False, 1, tuple(inputs), (tensors[-1],))
    return TfliteModel("", (TfliteGraph(tuple(tensors), (op,)),), (tensors[0],), (tensors[-1],), (), {})


@pytest.mark.parametrize("name", PAIRS)
def test_placement_of_real_pairs(real_data: Path, name: str) -> None:
    original = read_model((real_data / "coral" / f"{name}.tflite").read_bytes())
    compiled = read_model((real_data / "coral" / f"{name}_edgetpu.tflite").read_bytes())
    assert placement(compiled, original) == Placement(1, {}, PAIRS[name], {})
    assert placement(compiled, original).mapped_count == sum(PAIRS[name].values())
    alone = placement(compiled)
    assert alone.compiled and alone.cpu_count == 0 and alone.mapped is None and alone.mapped_count is None
    assert placement(original) == Placement(0, PAIRS[name], {}, {})
    # Its own compiler took all of them, so nothing may be found wrong.
    assert constraints(original) == []


def test_every_real_pair_is_in_the_table(real_data: Path) -> None:
    found = {path.name.removesuffix("_edgetpu.tflite") for path in (real_data / "coral").glob("*_edgetpu.tflite")}
    assert found == set(PAIRS)


def test_placement_counts_what_stayed_on_the_cpu(tiny: TfliteModel) -> None:
    block = replace(tiny.operators[0], type=CUSTOM_OPERATION, custom=True)
    compiled = with_operators(tiny, (block, *tiny.operators[2:]))
    result = placement(compiled, tiny)
    assert result.on_cpu == {"FULLY_CONNECTED": 1, "SOFTMAX": 1} and result.cpu_count == 2
    assert result.mapped == {"CONV_2D": 1, "MEAN": 1} and result.mapped_count == 2 and result.added == {}
    extra = with_operators(compiled, (*compiled.operators, replace(block, type="QUANTIZE", custom=False)))
    assert placement(extra, tiny).added == {"QUANTIZE": 1}


def test_models_with_other_tensors_are_no_pair(tiny: TfliteModel) -> None:
    other = read_model((TINY / "tiny_float32.tflite").read_bytes())
    with pytest.raises(ModelError, match="differ"):
        placement(tiny, other)


def test_log_with_everything() -> None:
    log = parse_log(LOG)
    assert (log.version, log.milliseconds, log.subgraphs, log.operations) == ("2.1.302470888", 12264, 1, 93)
    assert (log.edgetpu_operations, log.cpu_operations) == (83, 10)
    assert log.on_chip_used == round(6.86 * 1024**2)
    assert log.on_chip_remaining == round(7.75 * 1024)
    assert log.off_chip == round(1.22 * 1024**2)
    assert [(row.operator, row.count) for row in log.mapped] == [("ADD", 10)]
    assert {row.operator: row.status for row in log.unmapped} == {
        "LOGISTIC": "More than one subgraph is not supported",
        "QUANTIZE": "Operation is otherwise supported, but not mapped due to some unspecified limitation",
        "CAST": "Operation is working on an unsupported data type",
        "GELU": "Operation not supported",
        "SOFTMAX": "Operation version not supported",
        "MEAN": "Tensor has unsupported rank (up to 3 innermost dimensions mapped)",
        "PACK": "The moon is in the wrong house",
    }
    assert log.errors == ()


def test_log_of_2019_and_of_a_model_that_maps_completely() -> None:
    log = parse_log(MAPPED_LOG)
    assert log.on_chip_remaining == round(7.68 * 1024**2)
    assert (log.on_chip_used, log.off_chip, log.operations, log.cpu_operations) == (81920, 0, 191, 0)
    assert log.rows == ()


def test_log_without_lines() -> None:
    assert parse_log("") == CompilerLog()
    assert parse_log("On-chip memory used for caching model parameters: many\n").on_chip_used is None


@given(st.text() | st.lists(st.sampled_from(LOG.splitlines())).map("\n".join))
def test_no_log_breaks_the_parser(text: str) -> None:
    parse_log(text)


def test_hint_gives_one_command() -> None:
    assert install_hint().endswith("\n    edgetpu_compiler -s -m 14 MODEL")
    assert install_hint("m.tflite", None).splitlines()[-1] == "    edgetpu_compiler -s m.tflite"


def test_without_a_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    assert find_compiler() is None
    with pytest.raises(ConversionError) as caught:
        compile_model(TINY / "tiny_int8.tflite", folder)
    assert "edgetpu_compiler -s" in caught.value.remedy


def test_compiles_a_real_pair(real_data: Path, compiler: Callable, folder: Path) -> None:
    pair = real_data / "coral" / "mobilenet_v1_0.25_128_quant_edgetpu.tflite"
    body = f"""\
        assert argv[:3] == ["-s", "-m", "14"] and argv[3] == "-o", argv
        print({LOG!r})
        shutil.copy({str(pair)!r}, out)
        out.with_suffix(".log").write_text("x")
        """
    script = compiler(body)
    assert find_compiler() == str(script)
    result = compile_model(real_data / "coral" / "mobilenet_v1_0.25_128_quant.tflite", folder, min_runtime=14)
    assert result.path == folder / "mobilenet_v1_0.25_128_quant_edgetpu.tflite"
    assert result.path.read_bytes() == pair.read_bytes()
    assert result.placement.mapped_count == 31 and result.placement.cpu_count == 0
    assert result.log.cpu_operations == 10
    assert os.listdir(folder) == [result.path.name]
    with pytest.raises(ConversionError, match="compiled already"):
        compile_model(result.path, folder)


def test_a_name_that_looks_like_an_option(compiler: Callable, folder: Path, tmp_path: Path, monkeypatch) -> None:
    compiler("shutil.copy(model, out)")
    monkeypatch.chdir(tmp_path)
    shutil.copy(TINY / "tiny_int8.tflite", tmp_path / "-a b.tflite")
    result = compile_model("-a b.tflite", folder)
    assert result.path.name == "-a b_edgetpu.tflite" and not result.placement.compiled


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (f"print({FAILED_LOG!r}); sys.exit(1)", r"status 1: .*large activation tensors"),
        (f"print({FAILED_LOG!r})", r"wrote no model: .*large activation tensors"),
        ("pass", "wrote no model: it printed nothing"),
        ("sys.stdout.buffer.write(b'\\xff\\0 bad'); sys.exit(3)", "status 3: .* bad"),
    ],
)
def test_a_compiler_that_fails_leaves_nothing(body: str, words: str, compiler: Callable, folder: Path) -> None:
    compiler(body)
    with pytest.raises(ConversionError, match=words) as caught:
        compile_model(TINY / "tiny_int8.tflite", folder)
    assert caught.value.remedy
    assert os.listdir(folder) == []


def test_half_a_model_is_refused(compiler: Callable, folder: Path) -> None:
    compiler("out.write_bytes(model.read_bytes()[:1000])")
    with pytest.raises(ModelError):
        compile_model(TINY / "tiny_int8.tflite", folder)
    assert os.listdir(folder) == []


def test_a_compiler_that_hangs_is_ended_with_all_it_started(
    compiler: Callable, folder: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "alive"
    late = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    compiler(f"subprocess.Popen([sys.executable, '-c', {late!r}]); time.sleep(60)")
    began = time.monotonic()
    with pytest.raises(ConversionError, match="not done after 1 s"):
        compile_model(TINY / "tiny_int8.tflite", folder, timeout=1)
    assert time.monotonic() - began < 10
    time.sleep(3.5)
    assert not mark.exists() and os.listdir(folder) == []


def test_a_compiler_that_cannot_run(compiler: Callable, folder: Path) -> None:
    compiler("pass").write_text("#!/no/such/interpreter\n")
    with pytest.raises(ConversionError, match="cannot be started"):
        compile_model(TINY / "tiny_int8.tflite", folder)


def test_the_model_must_be_one(compiler: Callable, folder: Path, tmp_path: Path) -> None:
    compiler("pass")
    with pytest.raises(ModelNotFoundError):
        compile_model(tmp_path / "none.tflite", folder)
    (tmp_path / "bad.tflite").write_bytes(b"no model")
    with pytest.raises(ModelError):
        compile_model(tmp_path / "bad.tflite", folder)


def test_the_tiny_model_fulfils_the_constraints(tiny: TfliteModel) -> None:
    assert constraints(tiny) == []


def test_constraints_name_float_operations() -> None:
    findings = [str(finding) for finding in constraints(read_model((TINY / "tiny_float32.tflite").read_bytes()))]
    assert any(text.startswith("the input serving_default_image:0 is float32") for text in findings)
    assert any(text.startswith("SOFTMAX (StatefulPartitionedCall:0): works on float32") for text in findings)


def test_constraints_name_dynamic_shapes_and_per_channel_dense(tiny: TfliteModel) -> None:
    first = tiny.operators[0]
    moving = replace(first, outputs=(replace(first.outputs[0], dynamic=True),))
    dense = next(op for op in tiny.operators if op.type == "FULLY_CONNECTED")
    scaled = replace(dense, inputs=(dense.inputs[0], replace(dense.inputs[1], scales=(0.1, 0.2))))
    findings = [str(finding) for finding in constraints(with_operators(tiny, (moving, scaled)))]
    assert findings[0].startswith("it has dynamic shapes")
    assert "a scale for each output" in findings[1]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (operator("GELU", (1, 4), (1, 4)), "not among the operations"),
        (operator("ADD", (1, 4), (1, 4), dtype="int16"), "works on int16"),
        (operator("RESHAPE", (2, 4, 4, 3), (2, 48)), "innermost"),
        (operator("FULLY_CONNECTED", (1, 6, 4), (1, 6, 2)), "more than one dimension"),
        (operator("SOFTMAX", (1, 20000), (1, 20000)), "more than 16000 classes"),
        (operator("SOFTMAX", (1, 9, 4), (1, 9, 4)), "one-dimensional"),
        (operator("PRELU", (1, 8, 8, 3), (1, 8, 8, 3), constants=(np.ones((8, 8, 3), np.int8),)), "shared_axes"),
        (operator("CONCATENATION", (1, 4), (1, 6), constants=(np.ones((1, 2), np.int8),)), "all zero"),
    ],
)
def test_constraints_by_operation(model: TfliteModel, words: str) -> None:
    assert any(words in str(finding) and finding.operation for finding in constraints(model))


@pytest.mark.parametrize(
    "model",
    [
        operator("SOFTMAX", (1, 1000), (1, 1000)),
        operator("PRELU", (1, 8, 8, 3), (1, 8, 8, 3), constants=(np.ones((1, 1, 3), np.int8),)),
        operator("CONCATENATION", (1, 4), (1, 6), constants=(np.zeros((1, 2), np.int8),)),
        operator("CONV_2D", (1, 8, 8, 3), (1, 8, 8, 5), constants=(np.ones((5, 3, 3, 3), np.int8),)),
    ],
)
def test_constraints_let_the_good_pass(model: TfliteModel) -> None:
    assert constraints(model) == []

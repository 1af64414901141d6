"""The Edge TPU: what its compiler will not take, the compiler itself, and what a compiled file says was mapped."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeferry_converter.errors import ConversionError, ModelError, ModelNotFoundError
from edgeferry_converter.tflite_checks import NamedOperation, operations_by_type, per_channel_dense
from edgeferry_converter.tflite_file import TfliteModel, TfliteOperator, read_model

__all__ = [
    "CompiledModel",
    "CompilerLog",
    "Finding",
    "LogRow",
    "Placement",
    "compile_model",
    "constraints",
    "find_compiler",
    "install_hint",
    "parse_log",
    "placement",
]

COMPILER = "edgetpu_compiler"
CUSTOM_OPERATION = "edgetpu-custom-op"
MAPPED = "Mapped to Edge TPU"
INT8 = frozenset({"int8", "uint8"})

# coral.ai/docs/edgetpu/compiler and the operation tables in google-coral/edgetpu issues.  No list is official:
# what is absent here may be mapped by a newer compiler, and what is present may be too large.
SUPPORTED = frozenset(
    """ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D EXPAND_DIMS FULLY_CONNECTED L2_NORMALIZATION
    LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL PACK PAD PRELU QUANTIZE REDUCE_MAX REDUCE_MIN RELU RELU6
    RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SQUEEZE
    STRIDED_SLICE SUB TANH TRANSPOSE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM""".split()  # noqa: SIM905 - else forty lines
)
SOFTMAX_LIMIT = 16_000
_UNITS = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


@dataclass(frozen=True)
class Placement:
    """Which part of a model runs where, as the file itself says.

    Attributes:
        blocks: how many compiled blocks it holds; 0 is a model that was never compiled, or where nothing fitted.
        on_cpu: operations the CPU runs, by type.
        mapped: operations inside the blocks, by type; None without the uncompiled model to compare with.
        added: operations the compiler put in, by type; None likewise.
    """

    blocks: int
    on_cpu: dict[str, int]
    mapped: dict[str, int] | None = None
    added: dict[str, int] | None = None

    @property
    def compiled(self) -> bool:
        """Something runs on the Edge TPU."""
        return self.blocks > 0

    @property
    def cpu_count(self) -> int:
        """How many operations the CPU runs."""
        return sum(self.on_cpu.values())

    @property
    def mapped_count(self) -> int | None:
        """How many operations the Edge TPU runs; None where the file alone cannot tell."""
        return None if self.mapped is None else sum(self.mapped.values())


@dataclass(frozen=True)
class LogRow:
    """One row of the compiler's table; one operation can have several.

    Attributes:
        operator, count, status: as printed.
        mapped: the Edge TPU runs them; any status that is not known counts as not mapped.
    """

    operator: str
    count: int
    status: str

    @property
    def mapped(self) -> bool:
        """The Edge TPU runs these."""
        return self.status == MAPPED


@dataclass(frozen=True)
class CompilerLog:
    """What the compiler printed; None for a line that was not there.  Sizes are bytes, time is ms.

    Attributes:
        on_chip_used, on_chip_remaining: the parameter cache, about 8 MB.
        off_chip: parameters sent over again for every frame.
        cpu_operations: 0 where the log counts operations and is silent about the CPU, as it is when all map.
        rows: with ``-s``: the table.
        errors: lines in which it complains, as printed.
    """

    version: str | None = None
    milliseconds: int | None = None
    on_chip_used: int | None = None
    on_chip_remaining: int | None = None
    off_chip: int | None = None
    subgraphs: int | None = None
    operations: int | None = None
    edgetpu_operations: int | None = None
    cpu_operations: int | None = None
    rows: tuple[LogRow, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def mapped(self) -> tuple[LogRow, ...]:
        """Rows the Edge TPU runs."""
        return tuple(row for row in self.rows if row.mapped)

    @property
    def unmapped(self) -> tuple[LogRow, ...]:
        """Rows that stay on the CPU; the status is the compiler's reason."""
        return tuple(row for row in self.rows if not row.mapped)


@dataclass(frozen=True)
class CompiledModel:
    """What the compiler made: the file, its log and where the operations went."""

    path: Path
    log: CompilerLog
    placement: Placement


@dataclass(frozen=True)
class Finding:
    """Why the compiler will not map something; ``operation`` is None where it concerns the whole model."""

    reason: str
    operation: NamedOperation | None = None

    def __str__(self) -> str:
        return self.reason if self.operation is None else f"{self.operation}: {self.reason}"


def placement(model: TfliteModel, original: TfliteModel | None = None) -> Placement:
    """Read where a model's operations run from its custom operations, never from its file name.

    Args:
        model: compiled or not.
        original: the model it was compiled from.  A compiled block does not say what it holds; the
            difference does.

    Raises:
        ModelError: the two have different inputs or outputs, so one was not made from the other.
    """
    counts = operations_by_type(model)
    blocks = counts.pop(CUSTOM_OPERATION, 0)
    if original is None:
        return Placement(blocks, counts, None if blocks else {}, None if blocks else {})
    if _interface(model) != _interface(original):
        raise ModelError(
            "the compiled model's inputs and outputs differ from those of the model it is compared with",
            "Compare it with the very file that was given to edgetpu_compiler.",
        )
    before, after = Counter(operations_by_type(original)), Counter(counts)
    return Placement(blocks, counts, dict(before - after), dict(after - before))


def find_compiler() -> str | None:
    """The path of edgetpu_compiler, or None."""
    return shutil.which(COMPILER)


def install_hint(model: str | Path = "MODEL", min_runtime: int | None = 14) -> str:
    """What to tell whoever has no compiler: plain words and the one command to run elsewhere.

    Args:
        model: the file to name in the command.
        min_runtime: the Edge TPU runtime the board's library reports, for ``-m``.
    """
    command = " ".join([COMPILER, *_flags(min_runtime), str(model)])
    return (
        f"{COMPILER} is not installed here, so the model is not compiled and its operations run on the CPU. "
        f"Google's package of it is for x86-64 Debian and Ubuntu only. Run there:\n    {command}"
    )


def compile_model(
    path: str | Path, folder: str | Path, min_runtime: int | None = None, timeout: float = 600.0
) -> CompiledModel:
    """Run edgetpu_compiler; the result is ``NAME_edgetpu.tflite`` in ``folder``, complete or not there.

    Args:
        path: a full int8 .tflite.
        folder: where the result goes; it must exist.
        min_runtime: the Edge TPU runtime that must be able to run it, for ``-m``; None: the compiler's
            own default.
        timeout: seconds until the compiler and all it started are killed.

    Raises:
        ModelNotFoundError: there is no such model.
        ModelError: the model is damaged.
        ConversionError: no compiler, it failed or took too long, what it wrote is no model, or the model was
            compiled before.
    """
    path, folder = Path(path).resolve(), Path(folder)
    compiler = find_compiler()
    if compiler is None:
        raise ConversionError(f"{path.name} cannot be compiled for the Edge TPU", install_hint(path, min_runtime))
    if not path.is_file():
        raise ModelNotFoundError(f"there is no model {path}", "Name a .tflite file.")
    original = read_model(path.read_bytes())
    if placement(original).compiled:
        raise ConversionError(f"{path.name} is compiled already", "Give the model it was compiled from.")
    with tempfile.TemporaryDirectory(prefix=".edgetpu-", dir=folder) as scratch:
        text = _run([compiler, *_flags(min_runtime), "-o", scratch, str(path)], Path(scratch) / "output", timeout)
        made = Path(scratch) / f"{path.stem}_edgetpu.tflite"
        if not made.is_file():
            raise ConversionError(f"{COMPILER} ended well and wrote no model: {_complaint(text)}", _REMEDY)
        where = placement(read_model(made.read_bytes()), original)
        made.replace(folder / made.name)
    return CompiledModel(folder / made.name, parse_log(text), where)


def parse_log(text: str) -> CompilerLog:
    """Read what edgetpu_compiler prints, versions of 2019 to 16; lines that are absent stay None."""

    def find(pattern: str) -> str | None:
        match = re.search(pattern, text, re.MULTILINE)
        return match.group(1) if match else None

    def number(pattern: str) -> int | None:
        found = find(pattern + r"\s*(\d{1,15})\b")
        return None if found is None else int(found)

    def size(pattern: str) -> int | None:
        found = find(pattern + r":\s*(\d{1,15}(?:\.\d{1,15})?\s*(?:B|KiB|MiB|GiB))\s*$")
        if found is None:
            return None
        value, unit = re.findall(r"[\d.]+|[A-Za-z]+", found)
        return round(float(value) * _UNITS[unit])

    operations = number(r"^Total number of operations:")
    cpu = number(r"^Number of operations that will run on CPU:")
    return CompilerLog(
        version=find(r"^Edge TPU Compiler version\s+(\S+)"),
        milliseconds=number(r"^Models? compiled successfully in"),
        on_chip_used=size(r"^On-chip memory used for caching model parameters"),
        # "available" is the wording of 2019.
        on_chip_remaining=size(r"^On-chip memory (?:remaining|available) for caching model parameters"),
        off_chip=size(r"^Off-chip memory used for streaming uncached model parameters"),
        subgraphs=number(r"^Number of Edge TPU subgraphs:"),
        operations=operations,
        edgetpu_operations=number(r"^Number of operations that will run on Edge TPU:"),
        cpu_operations=0 if cpu is None and operations is not None else cpu,
        rows=tuple(_rows(text)),
        errors=tuple(re.findall(r"^(?:ERROR:|Compilation failed|Invalid model|Internal compiler).*$", text, re.M)),
    )


def constraints(model: TfliteModel) -> list[Finding]:
    """What the compiler is known to leave on the CPU, in the order of the file; empty is no promise.

    Everything after the first operation that is not mapped stays on the CPU as well, and there are limits of
    size that nobody published: only the compiler's own table tells.
    """
    findings = []
    if any(tensor.dynamic for op in model.operators for tensor in op.activations):
        findings.append(Finding("it has dynamic shapes; the compiler wants every dimension fixed"))
    findings += [
        Finding(f"the {what} {tensor.name} is {tensor.dtype}; with int8 or uint8 no conversion stays on the CPU")
        for what, tensors in (("input", model.inputs), ("output", model.outputs))
        for tensor in tensors
        if tensor.dtype not in INT8
    ]
    dense = {op.tensor for op in per_channel_dense(model)}
    for op in model.operators:
        output = next((t.name for t in op.outputs if t is not None), "")
        reason = next((text for rule in _RULES if (text := rule(op))), "")
        if op.type == "FULLY_CONNECTED" and output in dense:
            reason = reason or "Dense weights have a scale for each output; per-tensor is what it takes"
        if reason:
            findings.append(Finding(reason, NamedOperation(op.type, output, op.version)))
    return findings


def _unknown(op: TfliteOperator) -> str:
    return "" if op.type in SUPPORTED else "not among the operations the Edge TPU is known to run"


def _not_int8(op: TfliteOperator) -> str:
    other = sorted({t.dtype for t in op.activations} - INT8)
    return f"works on {', '.join(other)}; only int8 and uint8 are mapped" if other else ""


def _rank(op: TfliteOperator) -> str:
    high = any(any(size != 1 for size in t.shape[:-3]) for t in op.activations)
    return "a tensor has more than its 3 innermost dimensions larger than 1" if high else ""


def _dense_output(op: TfliteOperator) -> str:
    wide = op.type == "FULLY_CONNECTED" and any(
        size != 1 for t in op.outputs if t is not None for size in t.shape[:-1]
    )
    return "its output has more than one dimension larger than 1" if wide else ""


def _softmax(op: TfliteOperator) -> str:
    if op.type != "SOFTMAX" or not op.activations:
        return ""
    shape = op.activations[0].shape
    if any(size != 1 for size in shape[:-1]):
        return "only a one-dimensional softmax is mapped"
    return f"more than {SOFTMAX_LIMIT} classes" if shape and shape[-1] > SOFTMAX_LIMIT else ""


def _prelu(op: TfliteOperator) -> str:
    alpha = op.inputs[1] if op.type == "PRELU" and len(op.inputs) > 1 else None
    wide = alpha is not None and any(size != 1 for size in alpha.shape[:-1])
    return "alpha must be one value a channel: shared_axes=[1, 2] in Keras" if wide else ""


def _concatenation(op: TfliteOperator) -> str:
    constants = [t for t in op.inputs if t is not None and t.data is not None]
    if op.type != "CONCATENATION" or not constants:
        return ""
    zero = all(not np.any(t.data) for t in constants)
    return (
        "" if zero and len(op.inputs) == 2 else "a constant input is taken only all zero and with one other input"
    )


_RULES: tuple[Callable[[TfliteOperator], str], ...] = (
    _unknown,
    _not_int8,
    _rank,
    _dense_output,
    _softmax,
    _prelu,
    _concatenation,
)

_REMEDY = "Read the compiler's words; `edgeferry inspect` on the uncompiled model names what it does not take."


def _flags(min_runtime: int | None) -> list[str]:
    return ["-s", *([] if min_runtime is None else ["-m", str(min_runtime)])]


def _interface(model: TfliteModel) -> list[list[tuple[tuple[int, ...], str]]]:
    return [[(t.shape, t.dtype) for t in tensors] for tensors in (model.inputs, model.outputs)]


def _run(argv: list[str], output: Path, timeout: float) -> str:
    """Run it with its output in a file: a pipe would stay open as long as any grandchild lives."""
    with output.open("wb") as sink:
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise ConversionError(f"{argv[0]} cannot be started: {error}", "Install it once more.") from error
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ConversionError(
                f"{COMPILER} was not done after {timeout:g} s and was ended", "Give it longer, or a smaller model."
            ) from None
        finally:  # also when a person presses Ctrl-C
            _end(process)
    text = output.read_text("utf-8", "replace")
    if status != 0:
        raise ConversionError(f"{COMPILER} failed with status {status}: {_complaint(text)}", _REMEDY)
    return text


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _rows(text: str) -> Iterator[LogRow]:
    header = re.search(r"^Operator\s+Count\s+Status\s*$", text, re.MULTILINE)
    if header is None:
        return
    for line in text[header.end() :].splitlines():
        match = re.match(r"^\s*(\S+)\s+(\d{1,15})\s+(\S.*?)\s*$", line)
        if match:
            yield LogRow(match.group(1), int(match.group(2)), match.group(3))


def _complaint(text: str, most: int = 3) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(parse_log(text).errors or lines[-most:])[:600] or "it printed nothing"

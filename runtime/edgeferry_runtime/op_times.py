"""What each operation of a model takes on this machine, measured in a child process that may die in our place."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any, Callable, Sequence

import numpy as np

from edgeferry_runtime.backend import Backend, Interpreter, Operation, default_threads, find_backend
from edgeferry_runtime.delegate import DelegateSpec, default_delegate, load
from edgeferry_runtime.errors import BackendError, EdgeferryError
from edgeferry_runtime.golden import load_array, load_frame
from edgeferry_runtime.macs import macs
from edgeferry_runtime.model import Model
from edgeferry_runtime.op_profiler import OpProfiler, Probe
from edgeferry_runtime.opening import Choices, open_model

__all__ = ["operation_times"]

_WARM_UP = 3
_LEAST_ROUNDS = 5
_MOST_ROUNDS = 2000
_GRACE_S = 120.0  # for opening the model, and an accelerator's firmware
# What is asked for, until one child lives to tell: operations inside delegates too, the nodes alone, no times.
_WAYS = ("inside", "nodes", "none")


def operation_times(
    choices: Choices, seconds: float = 2.0, model_path: str | None = None, ways: Sequence[str] = _WAYS
) -> dict[str, Any]:
    """Measure every operation by itself.

    Args:
        choices: the bundle and how it is run.
        seconds: how long to measure.
        model_path: a .tflite file in the place of a bundle, run on random numbers; the choices of backend,
            threads and XNNPACK hold for it.
        ways: what to try, in this order.

    Returns:
        Plain values: ``measured`` (whether there are times), ``why`` (there are none, or not all), ``backend``,
        ``threads``, ``rounds``, ``invoke_us`` and ``watched_us`` (p50 of an invoke without and with the clocks),
        ``sum_us`` (of all p50), and ``operations``: each with ``node``, ``name``, ``delegate``, ``stands_for``
        (names and MACs of what a delegate's block took over), ``macs`` (None where unknown), ``macs_share``,
        and where measured ``p50_us``, ``p90_us``, ``share`` and ``inside`` (``name`` and ``mean_us``, from whole
        microseconds, rounded down).

    Raises:
        BackendError: the model cannot be run at all.
    """
    task = {"choices": list(choices), "seconds": seconds, "model": model_path}
    reasons: list[str] = []
    found: dict[str, Any] = {}
    for way in ways:
        found = _in_child(dict(task, way=way), seconds + _GRACE_S)
        if "operations" in found:
            return dict(found, why=_why(found["measured"], reasons))
        reasons += [found["error"]] if found["error"] not in reasons else []
    raise BackendError("the model cannot be profiled: {}".format(reasons[-1]), found.get("remedy", ""))


def _why(measured: bool, reasons: Sequence[str]) -> str:
    """What is missing, and why; "" where nothing is."""
    if measured:
        return "; ".join(reasons)
    return "this interpreter has no profiler: times of single operations cannot be had ({})".format(
        "; ".join(reasons) or "none were asked for"
    )


def _in_child(task: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """What the child found, or {"error": why there is nothing} with a remedy where one is known."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH", "")) if part)
    code = "import sys; from edgeferry_runtime.op_times import main; sys.exit(main(sys.argv[1]))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(task)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ, PYTHONPATH=path),
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return {"error": "the measurement hung for {:.0f} s".format(timeout_s)}
    except OSError as error:
        return {"error": "a process for it cannot be started: {}".format(error)}
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    try:
        found = json.loads(lines[-1])
        if isinstance(found, dict):
            return found
    except (ValueError, IndexError):
        pass
    last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    return {"error": "measuring ended its process with {}: {}".format(done.returncode, "".join(last) or "no word")}


def main(text: str) -> int:
    """What the child runs; prints one line of JSON."""
    task = json.loads(text)
    try:
        print(json.dumps(_measured(task)))
    except EdgeferryError as error:
        print(json.dumps({"error": error.message, "remedy": error.remedy}))
        return 1
    return 0


def _measured(task: dict[str, Any]) -> dict[str, Any]:
    way, choices = task["way"], Choices(*task["choices"])
    made: list[OpProfiler] = []

    def make(
        file: str, backend: Backend, threads: int | None, spec: DelegateSpec | None, xnnpack: bool
    ) -> Interpreter:
        inner = load(spec, backend, threads or default_threads()) if spec else None
        if way == "none":
            return Interpreter(file, backend, threads, inner, xnnpack)
        profiler = OpProfiler(inner, inside=way == "inside")
        interpreter = Interpreter(file, backend, threads, profiler, xnnpack)
        interpreter.delegate = inner
        made.append(profiler)
        return interpreter

    if task["model"]:
        backend = find_backend((choices.backend,)) if choices.backend else find_backend()
        interpreter = _of_file(task["model"], backend, choices, make)
        return _report(interpreter, made, task["seconds"])
    with open_model(choices, make=make) as model:
        _fill(model)
        report = _report(model.interpreter, made, task["seconds"])
        gc.collect()
        return dict(report, variant=model.variant.name, delegate=model.delegate)


def _of_file(path: str, backend: Backend, choices: Choices, make: Callable[..., Interpreter]) -> Interpreter:
    """A model file's interpreter, as a bundle's would be made; its inputs hold random numbers."""
    plain = Interpreter(path, backend, 1, None, False)
    eight_bit = all(spec.dtype in ("int8", "uint8") for spec in plain.inputs)
    spec = default_delegate("int8", backend) if eight_bit and choices.xnnpack else None
    interpreter = make(path, backend, choices.threads, spec, choices.xnnpack)
    random = np.random.default_rng(0)
    for tensor in interpreter.inputs:
        memory = interpreter.input(tensor.tensor)
        if memory.dtype.kind == "f":
            memory[...] = random.random(memory.shape, np.float32)
        elif memory.dtype.itemsize == 1:
            memory[...] = random.integers(0, 128, memory.shape, dtype=np.int8).astype(memory.dtype)
        else:  # an index or a size: nothing but zero is safe
            memory[...] = 0
    return interpreter


def _fill(model: Model) -> None:
    """The first golden frame: what NON_MAX_SUPPRESSION takes depends on what there is to find."""
    golden = model.bundle.manifest.golden
    if model.preprocessor is not None:
        model.preprocess(load_frame(model.bundle, golden.frames[0], golden.color), golden.color)
    else:
        model.set_inputs({name: load_array(model.bundle, member)[:1] for name, member in golden.inputs.items()})


def _report(interpreter: Interpreter, made: list[OpProfiler], seconds: float) -> dict[str, Any]:
    operations = interpreter.operations()
    report: dict[str, Any] = {
        "measured": False,
        "backend": str(interpreter.backend),
        "threads": interpreter.threads,
        "operations": _listed(operations or [], _shapes(interpreter)),
    }
    if not made:
        return report
    profiler = made[-1]
    profiler.attach(operations)
    plain, watched = _rounds(interpreter, profiler, seconds)
    report.update(measured=True, rounds=len(plain), invoke_us=_us(plain), watched_us=_us(watched))
    known = {row["node"]: row for row in report["operations"]}
    rows = [dict(known[probe.node], **_times(probe)) for probe in profiler.probes]
    report["sum_us"] = round(sum(row["p50_us"] for row in rows), 3)
    for row in rows:
        row["share"] = row["p50_us"] / report["sum_us"] if report["sum_us"] else 0.0
    report["operations"] = rows
    return report


def _rounds(interpreter: Interpreter, profiler: OpProfiler, seconds: float) -> tuple[list[int], list[int]]:
    """Invokes without clocks, with them, and with reports from inside delegates, in turn.

    Returns:
        Nanoseconds of the first two.
    """
    times: tuple[list[int], ...] = ([], [], [])
    clock = time.perf_counter_ns
    for _ in range(_WARM_UP):
        interpreter.invoke()
    until = time.monotonic() + seconds
    while len(times[2]) < _LEAST_ROUNDS or (time.monotonic() < until and len(times[2]) < _MOST_ROUNDS):
        for kept, (nodes, inside) in zip(times, ((False, False), (True, False), (False, True))):
            profiler.watch(nodes, inside)
            began = clock()
            interpreter.invoke()
            kept.append(clock() - began)
    profiler.watch(False)
    return times[0], times[1]


def _us(times_ns: Sequence[int]) -> float:
    return round(median(times_ns) / 1000, 3)


def _times(probe: Probe) -> dict[str, Any]:
    times = sorted(probe.times_ns) or [0]
    row: dict[str, Any] = {
        "p50_us": _us(times),
        "p90_us": round(times[int(0.9 * (len(times) - 1))] / 1000, 3),
        "inside": [
            {"name": name, "mean_us": round(_usual_mean(values), 2)}
            for (_, name), values in sorted(probe.inside_us.items())
        ],
    }
    if probe.custom_name:
        row["name"] = probe.custom_name
    return row


def _usual_mean(values: Sequence[int]) -> float:
    """Without the longest tenth; of whole microseconds a mean tells more than a median."""
    usual = sorted(values)[: max(1, len(values) * 9 // 10)]
    return sum(usual) / len(usual)


def _shapes(interpreter: Interpreter) -> dict[int, tuple[int, ...]]:
    """Shapes by tensor index, as far as the interpreter tells."""
    try:
        details = interpreter._interpreter.get_tensor_details()
    except (AttributeError, ValueError, RuntimeError):
        return {}
    return {int(detail["index"]): tuple(int(side) for side in detail["shape"]) for detail in details}


def _listed(operations: Sequence[Operation], shapes: dict[int, tuple[int, ...]]) -> list[dict[str, Any]]:
    """One row a node; MACs are computed from shapes."""
    counted = [macs(operation, shapes) for operation in operations]
    total = sum(count for count in counted if count)
    rows: list[dict[str, Any]] = []
    for node, operation in enumerate(operations):
        taken = _taken(operations, operation) if operation.name == "DELEGATE" else []
        count = sum(counted[i] or 0 for i in taken) if taken else counted[node]
        rows.append(
            {
                "node": node,
                "name": operation.name,
                "delegate": operation.name == "DELEGATE",
                "stands_for": [{"node": i, "name": operations[i].name, "macs": counted[i]} for i in taken],
                "macs": count,
                "macs_share": count / total if count and total else None,
            }
        )
    return rows


def _taken(operations: Sequence[Operation], block: Operation) -> list[int]:
    """What a delegate's block took over: all between the tensors it reads and those it gives."""
    producer = {t: i for i, own in enumerate(operations) if own.name != "DELEGATE" for t in own.outputs}
    reads, ahead, taken = set(block.inputs), list(block.outputs), set()
    while ahead:
        tensor = ahead.pop()
        i = producer.get(tensor)
        if i is not None and i not in taken and tensor not in reads:
            taken.add(i)
            ahead.extend(operations[i].inputs)
    return sorted(taken)

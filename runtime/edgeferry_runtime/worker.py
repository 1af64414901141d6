"""The child's side of a model in a process of its own, and the words that ``remote`` and it speak.

    python -m edgeferry_runtime.worker PARENT

Requests come in on the standard input and answers go out where the standard output was: a header, then as many
bytes as it says.  Tensors lie in memory that both have mapped; they never go through a pipe.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import sys
import threading
import time
from dataclasses import asdict
from typing import Any, Callable, Sequence

import numpy as np

from edgeferry_runtime.backend import Interpreter, find_backend
from edgeferry_runtime.delegate import load, parse_delegate
from edgeferry_runtime.errors import BackendError, EdgeferryError
from edgeferry_runtime.manifest import TensorSpec

__all__ = ["HEADER", "MAX_BYTES", "layout", "main", "views"]

HEADER = struct.Struct("<cII")  # kind, number of the request, bytes behind it
START, RUN, OPERATIONS, NAMES = b"S", b"R", b"O", b"N"
DONE, FAILED = b"=", b"!"
MAX_BYTES = 1 << 24  # of one answer: the operations of the largest models are a few hundred kB
_ALIGNMENT = 64  # of tensors: a cache line, and what SIMD kernels like
_PARENT_POLL_S = 1.0


def layout(specs: Sequence[TensorSpec]) -> tuple[list[int], int]:
    """Where each tensor begins in the shared memory, and the bytes of it all.

    Args:
        specs: all inputs, then all outputs.
    """
    offsets, end = [], 0
    for spec in specs:
        offsets.append(end)
        bytes_ = int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
        end += -(-bytes_ // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def views(memory: mmap.mmap, specs: Sequence[TensorSpec]) -> list[np.ndarray]:
    """The tensors in the shared memory, as arrays of their shape and dtype; they keep it mapped."""
    return [
        np.frombuffer(memory, spec.dtype, int(np.prod(spec.shape)), offset).reshape(spec.shape)
        for spec, offset in zip(specs, layout(specs)[0])
    ]


def main(arguments: Sequence[str]) -> int:
    """Serve one model until the parent lets go."""
    if os.name == "posix":  # elsewhere the end of the pipe has to do
        thread = threading.Thread(target=_end_with, args=(int(arguments[0]),), daemon=True)
        thread.start()
    requests, answers = _pipes()
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        _serve(requests, answers)
    return 0


def _pipes() -> tuple[int, int]:
    """The two pipes, moved to where no library that prints can disturb them."""
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return requests, answers


def _end_with(parent: int) -> None:
    """End when the parent did, also in the middle of an invoke that hangs: the pipe's end is not seen there."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os._exit(0)


def _serve(requests: int, answers: int) -> None:
    served: _Served | None = None
    while True:
        header = _read(requests, HEADER.size)
        if len(header) < HEADER.size:
            return
        kind, number, size = HEADER.unpack(header)
        payload = _read(requests, size)
        try:
            if kind == START:
                served = _Served(json.loads(payload.decode("utf-8")))
            assert served is not None  # noqa: S101 - the parent starts with START
            kind, answer = DONE, served.answers[kind]()
        except EdgeferryError as error:
            kind, answer = FAILED, json.dumps([error.message, error.remedy]).encode("utf-8")
        os.write(answers, HEADER.pack(kind, number, len(answer)) + answer)


def _read(pipe: int, count: int) -> bytes:
    """So many bytes, or fewer where the pipe ends."""
    data = b""
    while len(data) < count:
        part = os.read(pipe, count - len(data))
        if not part:
            break
        data += part
    return data


class _Served:
    """The interpreter, and its tensors in the memory that is shared.

    Args:
        asked: model_path, backend, threads, delegate (as text, or null), xnnpack, nice, and memory: a descriptor
            this process has inherited, or a path.

    Attributes:
        answers: what to do by the request's kind.
    """

    def __init__(self, asked: dict[str, Any]) -> None:
        if asked["nice"] and hasattr(os, "nice"):
            os.nice(asked["nice"])
        backend = find_backend((asked["backend"],))
        delegate = (
            load(parse_delegate(asked["delegate"]), backend, asked["threads"]) if asked["delegate"] else None
        )
        self._interpreter = Interpreter(asked["model_path"], backend, asked["threads"], delegate, asked["xnnpack"])
        inputs, outputs = self._interpreter.inputs, self._interpreter.outputs
        shared = views(_map(asked["memory"], layout([*inputs, *outputs])[1]), [*inputs, *outputs])
        self._inputs = [(self._interpreter.input(spec.tensor), view) for spec, view in zip(inputs, shared)]
        self._outputs = [
            (view, self._interpreter.output(spec.tensor)) for spec, view in zip(outputs, shared[len(inputs) :])
        ]
        self.answers: dict[bytes, Callable[[], bytes]] = {
            START: self._describe,
            RUN: self._run,
            OPERATIONS: lambda: _json(self._interpreter.operations()),
            NAMES: lambda: _json(self._interpreter.signature_names()),
        }

    def _describe(self) -> bytes:
        interpreter = self._interpreter
        return _json(
            {
                "load_us": interpreter.load_us,
                "allocate_us": interpreter.allocate_us,
                "delegate": interpreter.delegate is not None,
                "inputs": [asdict(spec) for spec in interpreter.inputs],
                "outputs": [asdict(spec) for spec in interpreter.outputs],
            }
        )

    def _run(self) -> bytes:
        for own, shared in self._inputs:
            np.copyto(own, shared)
        self._interpreter.invoke()
        for shared, own in self._outputs:
            np.copyto(shared, own)
        return b""


def _map(where: int | str, size: int) -> mmap.mmap:
    """The shared memory, made as large as it must be."""
    file = where if isinstance(where, int) else os.open(where, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.ftruncate(file, size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)  # a full disk is an error now, not a SIGBUS later
        return mmap.mmap(file, size)
    except OSError as error:
        raise BackendError(
            "no room for {:.1f} MB of tensors in shared memory: {}".format(size / 2**20, error.strerror),
            "Make room in /dev/shm, or in the folder that TMPDIR names.",
        ) from None
    finally:
        os.close(file)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

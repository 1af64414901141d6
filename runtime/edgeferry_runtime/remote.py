"""A model in a process of its own: what crashes or hangs there leaves this one running.

Tensors lie in memory that both processes have mapped: frames are preprocessed straight into it, and answers are
decoded straight from it.  An invoke is a message of nine bytes over a pipe, and one back.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import mmap
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from typing import Any

from edgeferry_runtime.backend import Backend, Interpreter, Operation, default_threads, find_backend
from edgeferry_runtime.delegate import DelegateSpec, _signal_name
from edgeferry_runtime.errors import BackendError
from edgeferry_runtime.fields import Fields
from edgeferry_runtime.manifest import TensorSpec
from edgeferry_runtime.model import Model
from edgeferry_runtime.opening import Choices, open_model
from edgeferry_runtime.worker import DONE, FAILED, HEADER, MAX_BYTES, NAMES, OPERATIONS, RUN, START, layout, views

__all__ = ["RemoteInterpreter", "open_remote_model"]

TIMEOUT_S = 10.0  # the slowest model on the slowest board takes seconds
START_TIMEOUT_S = 120.0  # a Zero 2 W imports numpy for seconds, an Edge TPU loads its firmware
_ENDING_S = 2.0  # how long a process that was killed, or closed its pipe, may take to be gone
_SHM = "/dev/shm"  # noqa: S108 - memory on every Linux; a private name, unlinked at once
_SHM_LEAST = 1 << 25  # bytes that must be free there: containers often have little
_COMMAND = ("-m", "edgeferry_runtime.worker")
_NOT_FOR_WORKERS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_REMEDY = "It is opened anew; if that goes on, try another interpreter (--backend) or leave the delegate out."


def open_remote_model(
    choices: Choices, accelerators: list[str] | None = None, nice: int = 0, timeout_s: float = TIMEOUT_S
) -> Model:
    """As ``opening.open_model``, with the interpreter in a process of its own.

    Args:
        choices: what to open.
        accelerators: kinds that may be used; None asks the system which are there.
        nice: how much the worker's priority is lowered, 0 to 19.
        timeout_s: how long an invoke may take before the worker is held to hang.

    Raises:
        UsageError, BundleError, BackendError, DependencyError.
    """
    make = functools.partial(RemoteInterpreter, nice=nice, timeout_s=timeout_s)
    return open_model(choices, accelerators, make)


class RemoteInterpreter(Interpreter):
    """A twin of ``Interpreter`` whose model runs in a worker process.

    The worker ends with :meth:`close`, when the last reference to this is dropped, and when this process ends,
    however it does.

    Args:
        model_path, backend, threads, xnnpack: as for ``Interpreter``.
        spec: the delegate that the worker loads, None for none.
        nice: how much the worker's priority is lowered, 0 to 19.
        timeout_s: how long an invoke may take.
        start_timeout_s: how long it may take to start the worker and load the model.

    Attributes:
        delegate: ``spec`` where the worker loaded one, None where the backend brings it.

    Raises:
        BackendError: the worker cannot be started, or the interpreter or the delegate in it refuses, or ended it.
    """

    def __init__(
        self,
        model_path: str,
        backend: Backend | None = None,
        threads: int | None = None,
        spec: DelegateSpec | None = None,
        xnnpack: bool = True,
        nice: int = 0,
        timeout_s: float = TIMEOUT_S,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self.backend = backend or find_backend()
        self.threads = threads or default_threads()
        self.model_path = model_path
        self.xnnpack = xnnpack
        self._timeout_s = timeout_s
        self._operations: list[Operation] | bool | None = False  # False: not asked yet
        with _SharedFile() as file:
            asked = {
                "model_path": os.path.abspath(model_path), "backend": self.backend.name, "threads": self.threads,
                "delegate": str(spec) if spec else None, "xnnpack": xnnpack, "nice": nice, "memory": file.name,
            }  # fmt: skip
            self._worker = _Worker(model_path, file.inherited, nice)
            self._finalizer = weakref.finalize(self, self._worker.let_go)
            try:
                told = self._worker.learn(START, start_timeout_s, json.dumps(asked).encode("utf-8"))
                self.load_us, self.allocate_us = float(told["load_us"]), float(told["allocate_us"])
                self.delegate = spec if told["delegate"] else None
                self.inputs, self.outputs = _specs(told["inputs"]), _specs(told["outputs"])
                specs = [*self.inputs, *self.outputs]
                tensors = views(mmap.mmap(file.descriptor, layout(specs)[1]), specs)
            except (KeyError, TypeError, ValueError) as error:
                self.close()
                said = "the worker of {} says what cannot be: {!r}".format(model_path, error)
                raise BackendError(said) from None
            except BaseException:
                self.close()
                raise
        self._inputs = {spec.tensor: view for spec, view in zip(self.inputs, tensors)}
        self._outputs = {spec.tensor: view for spec, view in zip(self.outputs, tensors[len(self.inputs) :])}

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._worker.process.pid

    def invoke(self) -> None:
        """Run the model once on what the inputs hold.

        Raises:
            BackendError: a kernel failed; or the worker died, hung or answered nonsense, and is gone then.
        """
        self._worker.ask(RUN, self._timeout_s)

    def operations(self) -> list[Operation] | None:
        if isinstance(self._operations, bool):
            told = self._worker.learn(OPERATIONS, self._timeout_s)
            self._operations = told and [Operation(name, tuple(ins), tuple(outs)) for name, ins, outs in told]
        return self._operations

    def signature_names(self) -> dict[str, str]:
        names: dict[str, str] = self._worker.learn(NAMES, self._timeout_s)
        return names

    def rss_mb(self) -> float | None:
        """Memory the worker has in RAM, MiB; None where the system does not tell, or it is gone."""
        try:
            with open("/proc/{}/statm".format(self.pid), "rb") as file:
                pages = int(file.read(200).split()[1])
        except (OSError, IndexError, ValueError):
            return None
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)

    def close(self) -> None:
        """End the worker; harmless twice.  Tensors that are in use stay valid."""
        self._worker.end()
        self._finalizer.detach()


def _specs(told: Any) -> list[TensorSpec]:
    found = []
    for value in told:
        fields = Fields(value)
        found.append(TensorSpec.read(fields))
        if fields.finish():
            raise BackendError("the worker describes its tensors wrongly: {}".format("; ".join(fields.problems)))
    return found


class _SharedFile:
    """A file for the tensors; no name of it is left where the system allows that.

    Attributes:
        descriptor: this process's.
        name: what the worker finds it by: the descriptor it inherits, or a path.
        inherited: descriptors to hand down.
    """

    def __init__(self) -> None:
        self.descriptor, self._path = tempfile.mkstemp(prefix="edgeferry-", dir=_memory_folder())
        self.name: int | str = self._path
        self.inherited: tuple[int, ...] = ()
        if os.name == "posix":
            os.unlink(self._path)
            self.name, self.inherited = self.descriptor, (self.descriptor,)

    def __enter__(self) -> _SharedFile:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the descriptor: what is mapped stays mapped."""
        os.close(self.descriptor)
        if os.name != "posix":  # Windows keeps a file while it is mapped; its temporary folder is cleaned there
            with contextlib.suppress(OSError):
                os.unlink(self._path)


def _memory_folder() -> str | None:
    """Where a file is memory and no disk; None for the usual folder."""
    with contextlib.suppress(OSError):
        if os.access(_SHM, os.W_OK) and shutil.disk_usage(_SHM).free >= _SHM_LEAST:
            return _SHM
    return None


class _Worker:
    """The process and the two pipes to it; one request at a time.

    Attributes:
        gone: why it can be asked nothing more, "" while it can.
    """

    def __init__(self, model_path: str, inherited: tuple[int, ...], nice: int) -> None:
        self.gone = ""
        self._what = "the worker of {}".format(os.path.basename(model_path))
        self._number = 0
        self._reaped = False
        self._lock = threading.Lock()
        options: dict[str, Any] = {"start_new_session": True, "pass_fds": inherited}
        if sys.platform == "win32":
            flags = subprocess.CREATE_NEW_PROCESS_GROUP | (subprocess.BELOW_NORMAL_PRIORITY_CLASS if nice else 0)
            options = {"creationflags": flags}
        try:
            self.process = subprocess.Popen(
                [sys.executable, *_COMMAND, str(os.getpid())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment(), bufsize=0, **options,
            )  # fmt: skip
        except OSError as error:
            raise BackendError("{} cannot be started: {}".format(self._what, error), "Free memory.") from None
        assert self.process.stdin is not None and self.process.stdout is not None  # noqa: S101 - both are pipes
        self._to, self._from = self.process.stdin.fileno(), self.process.stdout.fileno()
        self._poll = None
        if hasattr(select, "poll"):  # not on Windows, where a timer ends a worker that hangs
            self._poll = select.poll()
            self._poll.register(self._from, select.POLLIN)

    def ask(self, kind: bytes, timeout_s: float, payload: bytes = b"") -> bytes:
        """Send a request and wait for its answer.

        Raises:
            BackendError: it says why it could not, or it is gone.
        """
        with self._lock:
            if self.gone:
                raise BackendError(self.gone, _REMEDY)
            deadline = time.monotonic() + timeout_s
            timer = None
            if self._poll is None:
                timer = threading.Timer(timeout_s, self._kill)
                timer.start()
            try:
                self._number = (self._number + 1) & 0xFFFFFFFF
                os.write(self._to, HEADER.pack(kind, self._number, len(payload)) + payload)
                kind, number, size = HEADER.unpack(self._take(HEADER.size, deadline))
                if kind not in (DONE, FAILED) or number != self._number or size > MAX_BYTES:
                    raise self._lost("answered nonsense")
                answer = self._take(size, deadline)
            except TimeoutError:
                raise self._lost("hung: no answer within {:g} s".format(timeout_s)) from None
            except (EOFError, OSError):
                hung = timer is not None and time.monotonic() >= deadline
                how = "hung: no answer within {:g} s".format(timeout_s) if hung else self._how_it_ended()
                raise self._lost(how) from None
            finally:
                if timer is not None:
                    timer.cancel()
        if kind == FAILED:
            message, remedy = json.loads(answer.decode("utf-8"))
            raise BackendError(message, remedy)
        return answer

    def learn(self, kind: bytes, timeout_s: float, payload: bytes = b"") -> Any:
        """As :meth:`ask`, for an answer in JSON."""
        return json.loads(self.ask(kind, timeout_s, payload).decode("utf-8"))

    def _take(self, count: int, deadline: float) -> bytes:
        data = b""
        while len(data) < count:
            if self._poll is not None:
                left_ms = math.ceil((deadline - time.monotonic()) * 1000)
                if left_ms <= 0 or not self._poll.poll(left_ms):
                    raise TimeoutError
            part = os.read(self._from, count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def _how_it_ended(self) -> str:
        """In words, of a process that closed its pipe."""
        try:
            code = self.process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return "ended with {}".format(_signal_name(-code) if code < 0 else "exit code {}".format(code))

    def _lost(self, how: str) -> BackendError:
        """Kill what is left of it; the error to raise."""
        if not self.gone:
            self.gone = "{} {}".format(self._what, how)
        self._kill()
        self._reap()
        return BackendError(self.gone, _REMEDY)

    def end(self) -> None:
        """Kill it and wait until it is gone.  An invoke that is under way in another thread fails."""
        if not self.gone:
            self.gone = "{} was closed".format(self._what)
        self._kill()
        with self._lock:
            self._reap()

    def let_go(self) -> None:
        """As :meth:`end`, without waiting: whichever thread drops the last reference may be the loop's."""
        self.gone = "{} was let go".format(self._what)
        self._kill()
        try:
            threading.Thread(target=self._reap, name="edgeferry-reap", daemon=True).start()
        except RuntimeError:  # the interpreter shuts down: no new threads
            self._reap()

    def _kill(self) -> None:
        """With all of its process group, which it leads."""
        if self._reaped:  # its number may be another's by now
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.name == "posix":
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()

    def _reap(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_ENDING_S)
            self._reaped = True
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _environment() -> dict[str, str]:
    """This process's, with the very package that runs here first in the path, and nothing of systemd's."""
    package_parent = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [package_parent] + [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_WORKERS}
    return dict(kept, PYTHONPATH=os.pathsep.join(paths))

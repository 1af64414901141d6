"""A model in a process of its own: the same answers, and nothing that happens there happens here."""

from __future__ import annotations

import errno
import gc
import importlib.util
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from edgeferry_runtime import Model, golden, remote
from edgeferry_runtime.backend import Interpreter, find_backend
from edgeferry_runtime.delegate import parse_delegate
from edgeferry_runtime.errors import BackendError
from edgeferry_runtime.manifest import DTYPES, TensorSpec
from edgeferry_runtime.opening import Choices, open_model
from edgeferry_runtime.remote import RemoteInterpreter, open_remote_model
from edgeferry_runtime.worker import layout
from hypothesis import given
from hypothesis import strategies as st

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "contract" / "data"
TINY = str(DATA / "tiny_int8.tflite")
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals")

spec = importlib.util.spec_from_file_location("fake_backend", HERE / "fake_backend.py")
fake_backend = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake_backend)


def alive(pid):
    """Whether a process still runs; one that only waits for its parent to ask does not."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return not Path("/proc").is_dir()


def ends(pid, within_s=30.0):
    deadline = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


@pytest.fixture
def interpreter():
    interpreter = RemoteInterpreter(TINY, threads=1)
    yield interpreter
    interpreter.close()


@pytest.fixture
def talks(monkeypatch):
    """Workers that run this code instead of the real one's."""

    def talk(code):
        monkeypatch.setattr(remote, "_COMMAND", ("-c", "import os, struct, sys, time\nos.read(0, 9)\n" + code))

    return talk


@pytest.mark.parametrize("file", ["tiny_int8.tflite", "tiny_float32.tflite"])
def test_it_is_a_twin_of_the_interpreter_in_this_process(file):
    own, twin = Interpreter(str(DATA / file), threads=1), RemoteInterpreter(str(DATA / file), threads=1)
    random = np.random.default_rng(3)
    assert (twin.inputs, twin.outputs, twin.operations()) == (own.inputs, own.outputs, own.operations())
    assert twin.signature_names() == own.signature_names()
    public = {name for name in [*vars(own), *dir(own)] if not name.startswith("_")}
    assert public <= {name for name in [*vars(twin), *dir(twin)] if not name.startswith("_")}
    for _ in range(20):
        for tensor in own.inputs:
            values = random.integers(-128, 128, tensor.shape).astype(tensor.dtype)
            np.copyto(own.input(tensor.tensor), values)
            np.copyto(twin.input(tensor.tensor), values)
        own.invoke()
        twin.invoke()
        for tensor in own.outputs:
            assert own.output(tensor.tensor).tobytes() == twin.output(tensor.tensor).tobytes()
    assert twin.rss_mb() is None or twin.rss_mb() > 5
    twin.close()
    twin.close()
    assert twin.rss_mb() is None


def test_a_model_does_not_know_where_its_interpreter_runs(bundle):
    frames = np.random.default_rng(1).integers(0, 256, (10, 20, 30, 3), dtype=np.uint8)
    choices = Choices(str(bundle), threads=1, top_k=2)
    with open_model(choices) as here, open_remote_model(choices) as there:
        assert isinstance(there.interpreter, RemoteInterpreter)
        assert [there(frame) for frame in frames] == [here(frame) for frame in frames]
        assert (there.identity, there.variant, there.delegate) == (here.identity, here.variant, here.delegate)
        assert golden.replay(there).ok
        pid = there.interpreter.pid
    assert ends(pid)


@given(
    st.lists(
        st.builds(
            lambda shape, dtype: TensorSpec("a", "a", tuple(shape), dtype),
            st.lists(st.integers(1, 40), min_size=1, max_size=3),
            st.sampled_from(DTYPES),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_tensors_lie_beside_each_other_in_memory(specs):
    offsets, size = layout(specs)
    ends = [o + int(np.prod(s.shape)) * np.dtype(s.dtype).itemsize for o, s in zip(offsets, specs, strict=True)]
    assert all(offset % 64 == 0 for offset in offsets)
    assert all(end <= after for end, after in zip(ends, [*offsets[1:], size], strict=True))


@POSIX
def test_nothing_is_left_where_the_tensors_lie(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_memory_folder", lambda: str(tmp_path))
    interpreter = RemoteInterpreter(TINY, threads=1)
    assert os.listdir(tmp_path) == []
    interpreter.invoke()
    interpreter.close()


def test_by_name_where_descriptors_are_not_inherited(tmp_path, monkeypatch):
    class ByName(remote._SharedFile):
        def __init__(self):
            self.descriptor, self.name = os.open(tmp_path / "m", os.O_RDWR | os.O_CREAT), str(tmp_path / "m")
            self.inherited = ()

    monkeypatch.setattr(remote, "_SharedFile", ByName)
    interpreter = RemoteInterpreter(TINY, threads=1)
    interpreter.invoke()
    interpreter.close()


def test_what_the_interpreter_refuses_is_said_as_it_says_it(tmp_path):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"this is no model at all, but long enough to be one")
    with pytest.raises(BackendError) as here:
        Interpreter(str(broken), threads=1)
    with pytest.raises(BackendError) as there:
        RemoteInterpreter(str(broken), threads=1)
    assert str(there.value) == str(here.value)


@POSIX
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_dies_is_an_error_with_its_signal(interpreter, number):
    interpreter.invoke()
    os.kill(interpreter.pid, number)
    with pytest.raises(BackendError, match=f"tiny_int8.tflite ended with {number.name}"):
        interpreter.invoke()
    with pytest.raises(BackendError, match=number.name):  # and stays one
        interpreter.operations()
    assert interpreter.input(interpreter.inputs[0].tensor).any() in (True, False)  # its memory is still there


@POSIX
@pytest.mark.parametrize("poll", [True, False])
def test_a_worker_that_hangs_is_killed(monkeypatch, poll):
    if not poll:  # as on Windows
        monkeypatch.delattr(select, "poll")
    interpreter = RemoteInterpreter(TINY, threads=1, timeout_s=0.5)
    interpreter.invoke()
    os.kill(interpreter.pid, signal.SIGSTOP)
    with pytest.raises(BackendError, match=r"hung: no answer within 0\.5 s"):
        interpreter.invoke()
    assert not alive(interpreter.pid)


def test_an_accelerator_that_dies_takes_its_worker_and_nothing_else(tmp_path):
    library = fake_backend.build_delegate(tmp_path)
    crashing = RemoteInterpreter(TINY, threads=1, spec=parse_delegate(f"{library}?crash_after=2"), xnnpack=False)
    failing = RemoteInterpreter(TINY, threads=1, spec=parse_delegate(f"{library}?die_after=2"), xnnpack=False)
    assert crashing.delegate is not None
    for interpreter in (crashing, failing):
        interpreter.invoke()
        interpreter.invoke()
    with pytest.raises(BackendError, match="SIGABRT"):
        crashing.invoke()
    with pytest.raises(BackendError, match="failed while running"):
        failing.invoke()
    assert alive(failing.pid)  # it said so itself
    failing.close()


def test_a_worker_whose_accelerator_hangs_ends_with_its_whole_group(tmp_path):
    library = fake_backend.build_delegate(tmp_path)
    delegate = parse_delegate(f"{library}?hang_after=0")
    interpreter = RemoteInterpreter(TINY, threads=1, spec=delegate, xnnpack=False, timeout_s=0.5)
    with pytest.raises(BackendError, match="hung"):
        interpreter.invoke()
    assert not alive(interpreter.pid)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("sys.exit(3)", "ended with exit code 3"),
        ("os.abort()", "ended with SIGABRT"),
        ("os.write(1, b'hello, world')", "answered nonsense"),
        ("os.write(1, struct.pack('<cII', b'=', 2, 0))", "answered nonsense"),  # to another request
        ("os.write(1, struct.pack('<cII', b'=', 1, 1 << 31))", "answered nonsense"),
        ("os.write(1, struct.pack('<cII', b'=', 1, 2) + b'{}'); time.sleep(60)", "says what cannot be"),
        ("os.write(1, struct.pack('<cII', b'=', 1, 2) + b'{]'); time.sleep(60)", "says what cannot be"),
        ("os.write(1, struct.pack('<cII', b'=', 1, 9) + b'{}')", "ended with exit code 0"),
        ("os.close(1); time.sleep(60)", "closed its pipe"),
        ("time.sleep(60)", "hung"),
    ],
)
def test_a_worker_that_makes_no_sense(talks, monkeypatch, code, words):
    monkeypatch.setattr(remote, "_ENDING_S", 0.5 if "close" in code else 20.0)
    talks(code)
    with pytest.raises(BackendError, match=words):
        RemoteInterpreter(TINY, threads=1, start_timeout_s=0.5 if words == "hung" else 60.0)


def test_no_python_to_start(monkeypatch):
    monkeypatch.setattr(remote.sys, "executable", "/nowhere/python")
    with pytest.raises(BackendError, match="cannot be started"):
        RemoteInterpreter(TINY, threads=1)


def test_a_worker_ends_when_its_model_is_dropped(bundle):
    model = open_remote_model(Choices(str(bundle), threads=1))
    pid, process = model.interpreter.pid, model.interpreter._worker.process
    view = model.frame_input
    model.bundle.close()
    del model
    gc.collect()
    assert ends(pid)
    for thread in threading.enumerate():
        if thread.name == "edgeferry-reap":
            thread.join()
    assert process.returncode is not None
    view[...] = 1  # who still has the memory may write to it


def test_closing_from_another_thread_ends_an_invoke(tmp_path):
    library = fake_backend.build_delegate(tmp_path)
    delegate = parse_delegate(f"{library}?hang_after=0")
    interpreter = RemoteInterpreter(TINY, threads=1, spec=delegate, xnnpack=False, timeout_s=120.0)
    timer = threading.Timer(0.2, interpreter.close)
    timer.start()
    with pytest.raises(BackendError, match="was closed"):
        interpreter.invoke()
    timer.join()


PARENT = """
import sys, time
from edgeferry_runtime.delegate import parse_delegate
from edgeferry_runtime.remote import RemoteInterpreter
delegate = parse_delegate(sys.argv[2]) if len(sys.argv) > 2 else None
interpreter = RemoteInterpreter(sys.argv[1], threads=1, spec=delegate, xnnpack=False)
print(interpreter.pid, flush=True)
interpreter.invoke()
time.sleep(600)
"""


@POSIX
@pytest.mark.parametrize("hanging", [False, True])
def test_a_worker_ends_with_its_parent(tmp_path, hanging):
    delegate = [fake_backend.build_delegate(tmp_path) + "?hang_after=0"] if hanging else []
    command = [sys.executable, "-c", PARENT, TINY, *delegate]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        time.sleep(0.3)  # it is in its invoke
        parent.kill()
    assert ends(pid)


@POSIX
def test_its_priority_is_lowered(bundle):
    with open_remote_model(Choices(str(bundle), threads=1), nice=3) as model:
        here = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, model.interpreter.pid) == min(here + 3, 19)


def test_a_worker_knows_nothing_of_the_watchdog(monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    environment = remote._environment()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(environment)
    assert environment["PATH"] == os.environ["PATH"]


def test_no_room_for_the_tensors(monkeypatch, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")

    class Full(remote._SharedFile):
        def __init__(self):
            self.descriptor, self.name, self.inherited = os.open(os.devnull, os.O_RDWR), "/dev/full", ()

    monkeypatch.setattr(remote, "_SharedFile", Full)
    with pytest.raises(BackendError, match=r"no room for 0\.0 MB of tensors"):
        RemoteInterpreter(TINY, threads=1)


def test_the_same_backend_runs_there(interpreter):
    assert interpreter.backend == find_backend()
    assert Model.open  # one class for both

"""XNNPACK for 8-bit models on tflite-runtime: the options that reach it, and that it is let go in time."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from edgeferry_runtime import xnnpack
from edgeferry_runtime.backend import Backend, Interpreter, find_backend
from edgeferry_runtime.delegate import default_delegate, load, parse_delegate
from edgeferry_runtime.delegated import delegated_share
from edgeferry_runtime.errors import BackendError

STUB = """
#include <stdint.h>
int32_t threads, deleted; uint32_t flags, later;
void* TfLiteXNNPackDelegateCreate(const char* options) {
  threads = ((const int32_t*)options)[0];
  flags = ((const uint32_t*)options)[1];
  for (int i = 8; i < 504; i++) later |= (uint8_t)options[i];
  return threads < 99 ? &threads : 0;
}
void TfLiteXNNPackDelegateDelete(void* delegate) { deleted += delegate == (void*)&threads; }
"""


@pytest.fixture
def stub(tmp_path):
    """A tflite-runtime whose library is the stub above, and that library."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "stub.c").write_text(STUB)
    path = tmp_path / "stub.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, tmp_path / "stub.c"], check=True)
    module = SimpleNamespace(_interpreter_wrapper=SimpleNamespace(__file__=str(path)))
    return Backend("tflite-runtime", "2.14.0", module), ctypes.CDLL(str(path))


def test_the_options_that_reach_the_library(stub):
    backend, library = stub
    delegate = load(parse_delegate("xnnpack"), backend, threads=3)
    values = {name: ctypes.c_int32.in_dll(library, name).value for name in ("threads", "flags", "later")}
    assert values == {"threads": 3, "flags": 3, "later": 0}
    address = ctypes.addressof(ctypes.c_int32.in_dll(library, "threads"))
    assert delegate._get_native_delegate_pointer() == address
    assert ctypes.c_int32.in_dll(library, "deleted").value == 0
    del delegate
    assert ctypes.c_int32.in_dll(library, "deleted").value == 1


def test_a_processor_xnnpack_refuses(stub):
    with pytest.raises(BackendError, match="XNNPACK cannot be used on this processor"):
        load(parse_delegate("xnnpack"), stub[0], threads=99)


def test_it_is_the_default_for_8_bit_models_of_tflite_runtime_alone(stub):
    assert default_delegate("int8", stub[0]).kind == "xnnpack"
    assert default_delegate("int8-mixed", stub[0]).kind == "xnnpack"
    assert default_delegate("float32", stub[0]) is None
    assert default_delegate("int8", stub[0]._replace(name="ai-edge-litert")) is None


def test_a_build_without_it():
    module = SimpleNamespace(_interpreter_wrapper=ctypes)  # some file that is no library of theirs
    backend = Backend("tflite-runtime", "2.14.0", module)
    assert xnnpack.library(backend) is None
    assert default_delegate("int8", backend) is None
    with pytest.raises(BackendError, match=r"tflite-runtime 2\.14\.0 has no XNNPACK"):
        load(parse_delegate("xnnpack"), backend)


def test_litert_brings_its_own():
    litert = find_backend()
    if litert.name != "ai-edge-litert":
        pytest.skip("ai-edge-litert is not installed here")
    assert load(parse_delegate("xnnpack"), litert) is None


def test_tflite_runtime_delegates_int8_and_answers_the_same(repository):
    backend = find_backend()
    if backend.name != "tflite-runtime":
        pytest.skip("tflite-runtime is not what runs here: it needs numpy<2 in an environment of its own")
    path = str(repository / "tests" / "contract" / "data" / "tiny_int8.tflite")
    plain = Interpreter(path, backend, 1)
    fast = Interpreter(path, backend, 1, load(parse_delegate("xnnpack"), backend))
    assert (delegated_share(plain), delegated_share(fast)) == (0.0, 0.75)
    random = np.random.default_rng(0)
    for _ in range(20):
        values = random.integers(-128, 128, plain.inputs[0].shape)
        answers = []
        for interpreter in (plain, fast):
            interpreter.input(interpreter.inputs[0].tensor)[...] = values
            interpreter.invoke()
            answers.append(interpreter.output(interpreter.outputs[0].tensor).astype(int))
        assert np.abs(answers[0] - answers[1]).max() <= 1

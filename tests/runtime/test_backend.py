"""Backends: chosen in order, named when absent, memory views that hold over invokes."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest
from edgeferry_runtime import backend as backends
from edgeferry_runtime.backend import Interpreter, find_backend, installed_backends
from edgeferry_runtime.errors import BackendError, BackendMissingError, UsageError


@pytest.fixture
def tiny_int8(repository):
    return str(repository / "tests" / "contract" / "data" / "tiny_int8.tflite")


def test_litert_is_preferred():
    assert find_backend().name == "ai-edge-litert"
    assert installed_backends()[0] == find_backend()
    assert str(find_backend()).startswith("ai-edge-litert 2.")


def test_unknown_backend():
    with pytest.raises(UsageError, match="did you mean 'tflite-runtime'"):
        find_backend(("tflite-runtme",))


def test_absent_backends_are_named_with_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    monkeypatch.setitem(sys.modules, "tflite_runtime", None)
    assert installed_backends() == []
    with pytest.raises(BackendMissingError) as caught:
        find_backend()
    assert "ai-edge-litert:" in caught.value.message
    assert "tflite-runtime:" in caught.value.message
    assert "pip install ai-edge-litert" in caught.value.remedy
    assert isinstance(caught.value, ImportError)


def test_tflite_runtime_with_numpy_2_is_refused_in_plain_words(monkeypatch):
    import types

    monkeypatch.setitem(sys.modules, "tflite_runtime", types.ModuleType("tflite_runtime"))
    monkeypatch.setattr(backends.np, "__version__", "2.1.0")
    with pytest.raises(BackendMissingError, match=r"needs numpy older than 2, found 2\.1\.0"):
        find_backend(("tflite-runtime",))


def test_views_are_the_interpreters_own_memory(tiny_int8):
    interpreter = Interpreter(tiny_int8, threads=1)
    tensor = interpreter.inputs[0].tensor
    index = interpreter._interpreter.get_input_details()[0]["index"]
    out_index = interpreter._interpreter.get_output_details()[0]["index"]
    random = np.random.default_rng(0)
    for _ in range(20):
        values = random.integers(-128, 128, interpreter.input(tensor).shape).astype(np.int8)
        interpreter.input(tensor)[...] = values
        np.testing.assert_array_equal(interpreter._interpreter.get_tensor(index), values)
        interpreter.invoke()
        found = interpreter.output(interpreter.outputs[0].tensor)
        np.testing.assert_array_equal(interpreter._interpreter.get_tensor(out_index), found)


def test_a_view_outlives_its_interpreter(tiny_int8):
    interpreter = Interpreter(tiny_int8, threads=1)
    view = interpreter.input(interpreter.inputs[0].tensor)
    view[...] = 5
    del interpreter
    gc.collect()
    junk = [np.ones(100_000, np.int8) for _ in range(50)]
    assert (view == 5).all()
    assert len(junk) == 50


def test_signature_names(tiny_int8):
    interpreter = Interpreter(tiny_int8, threads=1)
    names = interpreter.signature_names()
    assert names[interpreter.inputs[0].tensor] == "image"


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x00" * 1000])
def test_what_is_no_model(tmp_path, data):
    path = tmp_path / "x.tflite"
    path.write_bytes(data)
    with pytest.raises(BackendError, match="refuses") as caught:
        Interpreter(str(path))
    assert caught.value.remedy


def test_an_operation_the_interpreter_does_not_know(real_data):
    with pytest.raises(BackendError, match="unresolved custom op: fake-op-double"):
        Interpreter(str(real_data / "coral" / "model_invoking_error.tflite"), threads=1)


def test_a_kernel_that_fails_while_it_runs(tiny_int8, monkeypatch):
    interpreter = Interpreter(tiny_int8, threads=1)

    class Failing:
        def invoke(self):
            raise RuntimeError("Node number 3 failed to invoke")

    monkeypatch.setattr(interpreter, "_interpreter", Failing())
    with pytest.raises(BackendError, match="Node number 3 failed"):
        interpreter.invoke()


def test_a_tensor_without_memory_is_named(tiny_int8, monkeypatch):
    interpreter = Interpreter(tiny_int8, threads=1)

    class Shapeless:
        def tensor(self, index):
            def view():
                raise ValueError("Tensor data is null. Run allocate_tensors() first")

            return view

    monkeypatch.setattr(interpreter, "_interpreter", Shapeless())
    with pytest.raises(BackendError, match="has no memory: Tensor data is null"):
        interpreter._view({"index": 0}, interpreter.inputs[0])


def test_loaded_backends_loads_none(monkeypatch):
    assert find_backend() in backends.loaded_backends()
    monkeypatch.delitem(sys.modules, "ai_edge_litert.interpreter")
    assert all(backend.name != "ai-edge-litert" for backend in backends.loaded_backends())


def test_xnnpack_can_be_switched_off(tiny_int8):
    with_it = Interpreter(tiny_int8, threads=1)
    without = Interpreter(tiny_int8, threads=1, xnnpack=False)
    assert "DELEGATE" in [operation.name for operation in with_it.operations()]
    assert [operation.name for operation in without.operations()] == [
        "CONV_2D",
        "MEAN",
        "FULLY_CONNECTED",
        "SOFTMAX",
    ]
    assert without.operations()[0].outputs == (without.operations()[1].inputs[0],)


def test_a_backend_that_cannot_run_without_xnnpack(tiny_int8):
    import types

    old = find_backend()._replace(module=types.SimpleNamespace(Interpreter=find_backend().module.Interpreter))
    with pytest.raises(BackendError, match="cannot run without XNNPACK"):
        Interpreter(tiny_int8, old, 1, xnnpack=False)
    assert Interpreter(tiny_int8, old, 1).operations()


@pytest.mark.parametrize("error", [AttributeError, KeyError, ValueError])
def test_operations_are_unknown_where_nobody_tells(tiny_int8, monkeypatch, error):
    interpreter = Interpreter(tiny_int8, threads=1)

    def nothing():
        raise error("_get_ops_details")

    monkeypatch.setattr(interpreter._interpreter, "_get_ops_details", nothing)
    assert interpreter.operations() is None


def test_a_model_for_the_edge_tpu_names_the_delegate(real_data):
    with pytest.raises(BackendError, match="edgetpu-custom-op") as caught:
        Interpreter(str(real_data / "coral" / "split_concat_edgetpu.tflite"), threads=1)
    assert "--delegate edgetpu" in caught.value.remedy


def test_a_libedgetpu_of_another_version_is_explained(tiny_int8):
    import types

    class Mismatched:
        def __init__(self, **options):
            raise RuntimeError("Internal: Unsupported data type in custom op handler: 0Node number 0 failed")

    backend = find_backend()._replace(module=types.SimpleNamespace(Interpreter=Mismatched))
    with pytest.raises(BackendError, match="Unsupported data type") as caught:
        Interpreter(tiny_int8, backend, 1)
    assert "different TensorFlow versions" in caught.value.remedy

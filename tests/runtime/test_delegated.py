"""The share of a model that runs in a delegate: counted from the graph, demanded, warned of."""

from __future__ import annotations

import pytest
from edgeferry_runtime.backend import Backend, Interpreter, Operation, find_backend
from edgeferry_runtime.delegated import delegated_share, require_delegate, share_of, undelegated_warning
from edgeferry_runtime.errors import BackendError, UsageError


def op(name, inputs, outputs):
    return Operation(name, tuple(inputs), tuple(outputs))


CHAIN = [op("CONV_2D", [0, 9], [1]), op("RELU", [1], [2]), op("CUSTOM", [2], [3]), op("SOFTMAX", [3, -1], [4])]


@pytest.mark.parametrize(
    ("blocks", "share"),
    [
        ([], 0.0),
        ([op("DELEGATE", [0, 9], [2])], 0.5),
        ([op("DELEGATE", [0, 9], [4])], 1.0),
        ([op("DELEGATE", [0, 9], [2]), op("DELEGATE", [3], [4])], 0.75),
        ([op("DELEGATE", [2], [3])], 0.25),
        ([op("DELEGATE", [1], [1])], 0.0),  # passes a tensor through
    ],
)
def test_share_of_a_chain(blocks, share):
    assert share_of([*CHAIN, *blocks]) == share


def test_share_of_a_fork():
    fork = [op("SPLIT", [0], [1, 2]), op("A", [1], [3]), op("B", [2], [4]), op("ADD", [3, 4], [5])]
    assert share_of([*fork, op("DELEGATE", [0], [5])]) == 1.0
    assert share_of([*fork, op("DELEGATE", [2, 3], [5])]) == 0.5  # A feeds the block from outside
    assert share_of([*fork, op("DELEGATE", [1, 2], [3, 4])]) == 0.5  # two outputs


def test_share_of_nothing():
    assert share_of([]) == 0.0


@pytest.fixture
def tiny(repository):
    return str(repository / "tests" / "contract" / "data" / "tiny_int8.tflite")


def test_xnnpack_takes_all_but_the_int8_softmax(tiny):
    assert delegated_share(Interpreter(tiny, threads=1)) == 0.75
    assert delegated_share(Interpreter(tiny.replace("int8", "float32"), threads=1)) == 1.0
    assert delegated_share(Interpreter(tiny, threads=1, xnnpack=False)) == 0.0


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("split_concat", 0.6, 0.7),  # 2 CONCATENATION of 3
        ("keras_lstm_mnist_ptq", 0.1, 0.9),
        ("mobilenet_v1_0.25_128_quant", 0.8, 1.0),
    ],
)
def test_real_models_are_delegated_in_part(real_data, name, least, most):
    path = str(real_data / "coral" / f"{name}.tflite")
    assert least < delegated_share(Interpreter(path, threads=1)) < most


def test_a_share_that_is_required(tiny):
    interpreter = Interpreter(tiny, threads=1)
    require_delegate(interpreter, 0.0)
    require_delegate(interpreter, 0.75)
    with pytest.raises(BackendError, match=r"75 % of the operations of .*tiny_int8.tflite .* 90 % are required"):
        require_delegate(interpreter, 0.9)


@pytest.mark.parametrize("share", [-0.1, 1.1, 90.0, float("nan")])
def test_a_share_that_is_none(tiny, share):
    with pytest.raises(UsageError, match="must be a share from 0 to 1"):
        require_delegate(Interpreter(tiny, threads=1), share)


def test_a_share_that_nobody_knows_is_not_enough(tiny, monkeypatch):
    interpreter = Interpreter(tiny, threads=1)
    monkeypatch.setattr(interpreter, "operations", lambda: None)
    assert delegated_share(interpreter) is None
    with pytest.raises(BackendError, match="does not tell what it delegates"):
        require_delegate(interpreter, 0.0)


def test_an_undelegated_8_bit_model_is_named():
    litert, tflite = find_backend(), Backend("tflite-runtime", "2.14.0", None)
    warning = undelegated_warning("int8", 0.0, tflite)
    assert "no operation runs in a delegate" in warning
    assert "tflite-runtime 2.14.0" in warning
    assert "install ai-edge-litert" in warning
    assert "only 33 %" in undelegated_warning("int8", 1 / 3, litert)
    assert "XNNPACK is switched off" in undelegated_warning("int8-mixed", 0.0, litert)


@pytest.mark.parametrize(
    ("scheme", "share"), [("int8", 0.5), ("int8", 1.0), ("int8", None), ("float32", 0.0), ("int16x8", 0.0)]
)
def test_nothing_to_warn_of(scheme, share):
    assert undelegated_warning(scheme, share, find_backend()) is None

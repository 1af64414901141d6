"""Delegates: read from text, loaded, refused in words, and tried in a child process that may die."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from edgeferry_runtime import delegate as delegates
from edgeferry_runtime.backend import Interpreter, find_backend
from edgeferry_runtime.delegate import (
    DelegateSpec,
    EdgeTpu,
    edgetpu_devices,
    load,
    parse_delegate,
    probe_in_child,
)
from edgeferry_runtime.errors import BackendError, DependencyError, UsageError

HERE = Path(__file__).resolve().parent
TINY = str(HERE.parent / "contract" / "data" / "tiny_int8.tflite")

spec = importlib.util.spec_from_file_location("fake_backend", HERE / "fake_backend.py")
fake_backend = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake_backend)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return fake_backend.build_delegate(tmp_path_factory.mktemp("delegate"))


@pytest.mark.parametrize(
    ("text", "kind", "options"),
    [
        ("xnnpack", "xnnpack", {}),
        ("edgetpu", "edgetpu", {}),
        ("edgetpu:usb", "edgetpu", {"device": "usb"}),
        ("edgetpu:usb:0", "edgetpu", {"device": "usb:0"}),
        ("edgetpu:pci:12", "edgetpu", {"device": "pci:12"}),
        ("edgetpu::1", "edgetpu", {"device": ":1"}),
        # Performance reaches the device with an index only.
        ("edgetpu?performance=Max", "edgetpu", {"Performance": "Max", "device": ":0"}),
        ("edgetpu:usb?performance=Low", "edgetpu", {"Performance": "Low", "device": "usb:0"}),
        ("edgetpu:usb:1?performance=Low", "edgetpu", {"Performance": "Low", "device": "usb:1"}),
        ("/opt/libfoo.so", "external", {}),
        ("libfoo.so.2?a=1&b=x=y", "external", {"a": "1", "b": "x=y"}),
        ("./foo?empty=", "external", {"empty": ""}),
        ("foo.dll", "external", {}),
    ],
)
def test_what_can_be_asked_for(text, kind, options):
    found = parse_delegate(text)
    assert (found.kind, found.options, str(found)) == (kind, options, text)


def test_the_library(monkeypatch):
    assert parse_delegate("libfoo.so.2?a=1").library == "libfoo.so.2"
    assert parse_delegate("edgetpu?library=/opt/e.so").library == "/opt/e.so"
    for platform, name in (
        ("linux", "libedgetpu.so.1"),
        ("darwin", "libedgetpu.1.dylib"),
        ("win32", "edgetpu.dll"),
    ):
        monkeypatch.setattr(delegates.sys, "platform", platform)
        assert parse_delegate("edgetpu").library == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is no delegate"),
        ("edgtpu", "did you mean 'edgetpu'"),
        ("xnpack", "did you mean 'xnnpack'"),
        ("gpu", "'gpu' is no delegate"),
        ("xnnpack?threads=2", "xnnpack has no options"),
        ("edgetpu:usb:x", "'usb:x' names no Edge TPU"),
        ("edgetpu:0", "'0' names no Edge TPU"),
        ("edgetpu?perfomance=Max", "did you mean 'performance'"),
        ("edgetpu?performance=max", "did you mean 'Max'"),
        ("edgetpu?performance=fast", "performance is Low, Medium, High, Max"),
        ("edgetpu?", "'' is no option"),
        ("a.so?x", "'x' is no option"),
        ("a.so?=1", "'=1' is no option"),
        ("a.so?x=1&x=2", "'x=2' is no option"),
    ],
)
def test_what_cannot(text, words):
    with pytest.raises(UsageError) as caught:
        parse_delegate(text)
    assert words in caught.value.message


def test_edge_tpus_are_found_by_their_ids(tmp_path):
    assert edgetpu_devices(str(tmp_path)) == []
    usb = tmp_path / "sys" / "bus" / "usb" / "devices"
    ids = {"1-1": "1a6e:089a", "2-1": "18d1:9302", "2-2": "18d1:089a", "3-1": "046d:0825", "usb1": "\xff:"}
    for name, pair in ids.items():
        (usb / name).mkdir(parents=True)
        vendor, product = pair.encode("latin-1").split(b":")
        (usb / name / "idVendor").write_bytes(vendor + b"\n")
        (usb / name / "idProduct").write_bytes(product + b"\n")
    (usb / "4-0:1.0").mkdir()  # an interface has no ids
    (tmp_path / "dev").mkdir()
    for name in ("apex_0", "apex_1x", "video0"):
        (tmp_path / "dev" / name).touch()
    assert edgetpu_devices(str(tmp_path)) == [
        EdgeTpu("usb", str(usb / "1-1")),
        EdgeTpu("usb", str(usb / "2-1")),
        EdgeTpu("pci", str(tmp_path / "dev" / "apex_0")),
    ]


def test_an_absent_library_names_the_package():
    with pytest.raises(DependencyError, match=r"edgetpu:usb:0 cannot be loaded.*libedgetpu-none") as caught:
        load(DelegateSpec("edgetpu", "libedgetpu-none.so.1", {}, "edgetpu:usb:0"), find_backend())
    assert "apt install libedgetpu1-std" in caught.value.remedy
    with pytest.raises(DependencyError, match=r"nowhere\.so"):
        load(parse_delegate("/nowhere.so"), find_backend())


def test_a_file_that_is_no_library(tmp_path):
    (tmp_path / "x.so").write_text("not a library")
    with pytest.raises(DependencyError, match="cannot be loaded"):
        load(parse_delegate(str(tmp_path / "x.so")), find_backend())


def test_a_library_that_is_no_delegate():
    found = importlib.util.find_spec("_ctypes").origin
    with pytest.raises(BackendError, match="is no delegate: it has no tflite_plugin_create_delegate"):
        load(DelegateSpec("external", found), find_backend())


def test_an_edge_tpu_that_does_not_answer(library, tmp_path, monkeypatch):
    (tmp_path / "gone").touch()
    # The fake in libedgetpu's place refuses an option of its own; what it says travels on.
    asked = DelegateSpec("edgetpu", library, {"dead_while": str(tmp_path / "gone")}, "edgetpu")
    monkeypatch.setattr(delegates, "edgetpu_devices", lambda: [])
    with pytest.raises(BackendError, match=r"no Edge TPU is connected.*1a6e:089a or 18d1:9302.*no device"):
        load(asked, find_backend())
    monkeypatch.setattr(delegates, "edgetpu_devices", lambda: [EdgeTpu("usb", "/sys/x/2-1")])
    with pytest.raises(BackendError, match=r"no free Edge TPU answers.*/sys/x/2-1") as caught:
        load(asked, find_backend())
    assert "plugdev" in caught.value.remedy


def test_an_option_the_library_refuses(library):
    with pytest.raises(BackendError, match="unknown option colour"):
        load(parse_delegate(library + "?colour=red"), find_backend())


def run(interpreter: Interpreter) -> np.ndarray:
    interpreter.input(interpreter.inputs[0].tensor)[...] = np.arange(interpreter.inputs[0].shape[2])[:, None]
    interpreter.invoke()
    return interpreter.output(interpreter.outputs[0].tensor).astype(int).copy()


def test_an_external_delegate_runs_its_operation(library):
    backend = find_backend()
    plain = run(Interpreter(TINY, backend, 1, xnnpack=False))
    interpreter = Interpreter(TINY, backend, 1, load(parse_delegate(library), backend), xnnpack=False)
    assert [op.name for op in interpreter.operations()].count("DELEGATE") == 1
    assert np.abs(run(interpreter) - plain).max() <= 1
    assert len(set(plain.ravel().tolist())) > 1


def test_a_delegate_that_dies_is_an_error_and_another_interpreter_goes_on(library):
    backend = find_backend()
    dying = Interpreter(TINY, backend, 1, load(parse_delegate(library + "?die_after=3"), backend))
    answers = [run(dying) for _ in range(3)]
    with pytest.raises(BackendError, match="fake accelerator: device lost"):
        run(dying)
    assert np.abs(run(Interpreter(TINY, backend, 1)) - answers[0]).max() <= 1


def test_a_delegate_that_comes_back(library, tmp_path):
    backend, gone = find_backend(), tmp_path / "gone"
    spec = parse_delegate(f"{library}?dead_while={gone}")
    interpreter = Interpreter(TINY, backend, 1, load(spec, backend))
    expected = run(interpreter)
    gone.touch()
    with pytest.raises(BackendError, match="device lost"):
        run(interpreter)
    with pytest.raises(BackendError, match="no device"):
        load(spec, backend)
    gone.unlink()
    np.testing.assert_array_equal(run(Interpreter(TINY, backend, 1, load(spec, backend))), expected)


def test_a_probe_that_goes_well(library):
    assert probe_in_child(parse_delegate(library), TINY, find_backend().name) is None


def test_a_probe_says_what_failed(library, tmp_path):
    name = find_backend().name
    (tmp_path / "gone").touch()
    reason = probe_in_child(parse_delegate(f"{library}?dead_while={tmp_path / 'gone'}"), TINY, name)
    assert "no device" in reason
    assert "\n" not in reason
    assert "refuses" in probe_in_child(parse_delegate(library), __file__, name)
    assert "cannot be loaded" in probe_in_child(parse_delegate("/nowhere.so"), TINY, name)


def test_a_delegate_that_kills_its_process_kills_the_child_alone(library):
    assert "SIGABRT" in probe_in_child(parse_delegate(library + "?crash_after=0"), TINY, find_backend().name)


def test_a_delegate_that_hangs_is_ended(library):
    hanging = parse_delegate(library + "?hang_after=0")
    assert probe_in_child(hanging, TINY, find_backend().name, timeout_s=3.0) == "it hung: no answer within 3 s"


def test_a_probe_without_an_interpreter_to_run_it(monkeypatch):
    monkeypatch.setattr(delegates.sys, "executable", "/nowhere/python")
    assert "cannot be tried" in probe_in_child(parse_delegate("x.so"), TINY, "tflite-runtime")


def test_the_failing_backend_fails_and_comes_back():
    back = []
    backend = fake_backend.failing_backend(find_backend(), 2, lambda: bool(back))
    interpreter = Interpreter(TINY, backend, 1)
    first = run(interpreter)
    run(interpreter)
    with pytest.raises(BackendError, match="device lost"):
        run(interpreter)
    with pytest.raises(BackendError, match="device lost"):
        Interpreter(TINY, backend, 1)
    back.append(True)
    for _ in range(5):
        np.testing.assert_array_equal(run(interpreter), first)

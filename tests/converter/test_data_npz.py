"""Arrays: frames or tensors, which labels, never whole in memory, broken files refused by name."""

from __future__ import annotations

import io
import re
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from edgeferry_converter.data.npz import NpzDataset
from edgeferry_converter.errors import DataError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

IMAGE = (("pixels", (8, 8, 3)),)
VECTOR = (("x", (5,)),)
RANDOM = np.random.default_rng(0)


@pytest.fixture
def save(tmp_path):
    def save(compressed=False, **arrays):
        path = tmp_path / "data.npz"
        (np.savez_compressed if compressed else np.savez)(path, **arrays)
        return path

    return save


@pytest.mark.parametrize("compressed", [False, True])
def test_uint8_pictures_are_frames_in_rgb(save, compressed):
    pixels = RANDOM.integers(0, 256, (12, 10, 9, 3), dtype=np.uint8)
    data = NpzDataset(save(compressed, pixels=pixels, labels=np.arange(12) % 3), IMAGE, ["a", "b", "c"], 3)
    assert (data.kind, data.task_hint, data.labels, len(data), data.notes) == (
        "frames", "classify", ("a", "b", "c"), 12, ())  # fmt: skip
    sample = data.load(4)
    assert np.array_equal(sample.frame, pixels[4][..., ::-1])
    assert (sample.label, sample.name, data.label_key(4)) == (1, "data.npz[4]", 1)
    sample.frame[:] = 0  # the caller's own
    assert np.array_equal(data.load(4).frame, pixels[4][..., ::-1])
    assert len({data.content_key(i) for i in range(12)}) == 12


@pytest.mark.parametrize("shape", [(12, 8, 8), (12, 8, 8, 1)])
def test_gray_pictures_become_frames(save, shape):
    pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    data = NpzDataset(save(pixels=pixels), (("pixels", (8, 8, 1)),))
    assert (data.kind, data.task_hint, data.label_key(0), data.load(0).label) == ("frames", "", None, None)
    assert np.array_equal(data.load(3).frame, np.repeat(pixels[3].reshape(8, 8, 1), 3, axis=2))


def test_arrays_in_column_order(save):
    values = np.asfortranarray(RANDOM.normal(0, 1, (7, 5)))
    assert not values.flags.c_contiguous
    for compressed in (False, True):
        data = NpzDataset(save(compressed, x=values), VECTOR)
        assert np.array_equal(data.load(6).inputs["x"], values[6].astype(np.float32))


def test_several_inputs_of_any_kind(save):
    inputs = (("audio", (20, 4)), ("ids", (3,)), ("free", (None, 2)))
    path = save(
        audio=RANDOM.normal(0, 1, (6, 20, 4)),
        ids=np.arange(18).reshape(6, 3),
        free=np.zeros((6, 9, 2), np.float16),
        labels=RANDOM.normal(0, 1, (6, 2)),
    )
    data = NpzDataset(path, inputs)
    sample = data.load(2)
    assert {n: (a.dtype, a.shape) for n, a in sample.inputs.items()} == {
        "audio": (np.float32, (20, 4)),
        "ids": (np.int64, (3,)),
        "free": (np.float32, (9, 2)),
    }
    assert (data.kind, data.task_hint, sample.label.dtype, sample.label.shape) == (
        "tensors", "regress", np.float32, (2,))  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "task", "third"),
    [
        (np.arange(6, dtype=np.uint8).reshape(6, 1) % 3, "classify", 2),
        (np.eye(3)[np.arange(6) % 3], "classify", 2),
        (np.arange(6.0), "regress", [2.0]),
        (np.full((6, 4, 4), 2), "segment", np.full((4, 4), 2)),
    ],
)
def test_kinds_of_labels(save, labels, task, third):
    data = NpzDataset(save(x=np.ones((6, 5)), labels=labels), VECTOR, None, 3)
    assert data.task_hint == task
    assert np.array_equal(data.load(2).label, third)


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (("x", "y"), "array 'x' taken for input 'pixels' and 'y' for the labels"),
        (("x_test", "y_test", "x_train", "y_train"), "array 'x_test' taken .*'y_test'"),
        (("anything", "labels"), "array 'anything' taken .*'labels'"),
    ],
)
def test_customary_names(save, names, note):
    arrays = {
        n: np.zeros(4, int) if n.startswith(("y", "labels")) else np.zeros((4, 8, 8, 3), np.uint8) for n in names
    }
    data = NpzDataset(save(**arrays), IMAGE)
    assert data.task_hint == "classify"
    assert re.search(note, data.notes[0])
    assert len(data.notes) == (2 if len(names) > 2 else 1)


@pytest.mark.parametrize(
    ("arrays", "inputs", "words"),
    [
        ({"pixel": 1, "other": 1}, IMAGE, r"has no array 'pixels', did you mean 'pixel'\?"),
        (
            {"x": np.zeros((4, 5)), "labels": np.zeros(3, int)},
            VECTOR,
            r"count the same samples \(x: 4, labels: 3\)",
        ),
        ({"x": np.zeros((0, 5))}, VECTOR, "count the same samples"),
        ({"x": np.float32(1)}, VECTOR, "no axis"),
        ({"x": np.zeros((4, 6))}, VECTOR, r"shape \[6\], the model takes \[5\]"),
        ({"x": np.zeros((4, 5)).astype("U1")}, VECTOR, "<U1, not numbers"),
        ({"x": np.zeros((4, 5), complex)}, VECTOR, "complex128, not numbers"),
        ({"x": np.zeros((4, 5)), "labels": np.array([0, 1, 2, 3])}, VECTOR, "holds class 3, the model tells 3"),
        ({"x": np.zeros((4, 5)), "labels": np.array([0, 1, 2, -1])}, VECTOR, "holds class -1"),
        ({"x": np.zeros((4, 5)), "labels": np.array(list("abcd"))}, VECTOR, "of no known kind"),
        ({"x": np.zeros((4, 5)), "labels": np.full((4, 3), 2)}, VECTOR, "neither classes"),
        ({"pixels": np.zeros((4, 8, 8, 3))}, (("a", (8, 8, 3)), ("b", (2,))), "has no array 'a', 'b'"),
        ({"pixels": np.zeros((4, 9, 8, 3))}, IMAGE, r"shape \[9, 8, 3\], the model takes \[8, 8, 3\]"),
    ],
)
def test_what_does_not_fit(save, arrays, inputs, words):
    with pytest.raises(DataError, match=words) as caught:
        NpzDataset(save(**arrays), inputs, None, 3)
    assert caught.value.remedy


def test_labels_must_be_as_many_as_classes(save):
    with pytest.raises(DataError, match="2 lines, the model tells 3"):
        NpzDataset(save(x=np.zeros((4, 5))), VECTOR, ["a", "b"], 3)


def test_bad_values_are_named_when_loaded(save):
    values = np.ones((4, 5))
    values[2, 1] = np.nan
    masks = np.zeros((4, 3, 3), int)
    masks[1] = 7
    data = NpzDataset(save(x=values, labels=masks), VECTOR, None, 3)
    assert data.load(0).label.dtype == np.uint8
    with pytest.raises(DataError, match=r"data.npz\[2\], input 'x': holds NaN"):
        data.load(2)
    with pytest.raises(DataError, match=r"\[1\]: the mask holds class 7"):
        data.load(1)


def test_pickles_are_refused(save):
    with pytest.raises(DataError, match="pickled objects"):
        NpzDataset(save(x=np.array([{}, {}], object)), VECTOR)


@pytest.mark.parametrize("compressed", [False, True])
def test_large_files_stream(save, compressed):
    path = save(compressed, pixels=np.zeros((40_000, 32, 32, 3), np.uint8), labels=np.arange(40_000) % 10)
    tracemalloc.start()
    data = NpzDataset(path, (("pixels", (32, 32, 3)),), None, 10)
    for i in range(0, 40_000, 7):
        data.load(i)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000 < 40_000 * 32 * 32 * 3
    folder = data._files
    assert folder.is_dir()
    del data
    assert not folder.exists()


def broken(data: bytes, at: int, byte: int, cut: int) -> bytes:
    at %= len(data)
    return (data[:at] + bytes([byte]) + data[at + 1 :])[: max(0, len(data) - cut)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    compressed=st.booleans(),
    at=st.integers(0, 10_000),
    byte=st.integers(0, 255),
    cut=st.sampled_from([0, 0, 1, 99]),
)
def test_damaged_files_are_refused_by_name(tmp_path, compressed, at, byte, cut):
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, x=np.ones((6, 5)), labels=np.arange(6) % 2)
    path = tmp_path / "broken.npz"
    path.write_bytes(broken(buffer.getvalue(), at, byte, cut))
    try:
        data = NpzDataset(path, VECTOR, None, 2)
        for i in range(len(data)):
            data.load(i)
    except DataError as error:
        assert error.remedy


def test_a_header_that_promises_more_than_is_there(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 5)})
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "x.npz", "w", kind) as archive:
            archive.writestr("x.npy", buffer.getvalue() + bytes(40))
        with pytest.raises(DataError, match="says it has"):
            NpzDataset(tmp_path / "x.npz", VECTOR)
    Path(tmp_path / "x.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"no readable \.npz"):
        NpzDataset(tmp_path / "x.npz", VECTOR)

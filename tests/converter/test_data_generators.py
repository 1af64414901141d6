"""The user's own code: run once, kept on disk, and its faults told with their place."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from edgeferry_converter.data.generators import GeneratorDataset
from edgeferry_converter.data.open import open_dataset
from edgeferry_converter.data.split import split
from edgeferry_converter.errors import DataError, OptionError

VECTOR = (("x", (3,)),)
TWO = (("a", (3,)), ("b", (2, 2)))
IMAGE = (("pixels", (8, 8, 3)),)
CODE = """
import itertools
import numpy as np
calls = 0
number = 5

def vectors():
    global calls
    calls += 1
    return (np.full(3, i, np.float64) for i in range(7))

def classes():
    for i in range(20):
        yield {"x": np.full((1, 3), i)}, i % 2

def two():
    for i in range(4):
        yield {"b": np.full((2, 2), i, np.float32), "a": [i, i, i]}, np.float32(i)

def pictures():
    for i in range(4):
        yield np.dstack([np.full((9, 5), c, np.uint8) for c in (1, 2, i)]), np.full((9, 5), i)

def endless():
    for i in itertools.count():
        yield np.full(3, i)

def fails():
    yield np.zeros(3)
    raise RuntimeError("the disk is on fire")

def wrong_shape():
    yield np.zeros(3)
    yield np.zeros(4)

def mixed():
    yield np.zeros((8, 8, 3), np.uint8)
    yield np.zeros((8, 8, 3), np.float32)

def strings():
    yield "abc"

def ragged():
    yield [[1, 2], [3]]

def labels_change():
    yield np.zeros(3), 1
    yield np.zeros(3), 1.5

def nothing():
    return []

def none():
    pass

def too_high():
    yield np.zeros(3), 9

def nan():
    yield np.full(3, np.nan)

def leaves():
    raise SystemExit(3)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "calibration_samples_of_a_test"
    (tmp_path / f"{name}.py").write_text(CODE)
    yield name
    sys.modules.pop(name, None)


def test_arrays(here):
    path = list(sys.path)
    data = open_dataset(f"{here}:vectors", VECTOR)
    assert (data.kind, data.task_hint, len(data), data.notes) == ("tensors", "", 7, ())
    assert data.load(2).inputs["x"].tolist() == data.load(2).inputs["x"].tolist() == [2, 2, 2]
    assert data.load(2).inputs["x"].dtype == np.float32
    assert len({data.content_key(i) for i in range(7)}) == 7
    assert sys.modules[here].calls == 1
    assert sys.path == path
    folder = data._folder
    del data
    assert not folder.exists()


def test_labels_and_several_inputs(here):
    data = open_dataset(f"{here}:classes", VECTOR, None, 2)
    assert (data.task_hint, data.label_key(3), data.load(3).label) == ("classify", 1, 1)
    parts = split(data)
    assert len(parts.calibration) == 4
    data = GeneratorDataset(f"{here}:two", TWO)
    sample = data.load(3)
    assert data.task_hint == "regress"
    assert (sample.inputs["a"].tolist(), sample.inputs["b"].shape, sample.label.tolist()) == (
        [3, 3, 3], (2, 2), [3.0])  # fmt: skip


def test_pictures_are_rgb(here):
    data = GeneratorDataset(f"{here}:pictures", IMAGE)
    assert (data.kind, data.task_hint) == ("frames", "segment")
    assert data.load(3).frame[0, 0].tolist() == [3, 2, 1]
    assert data.load(3).label.dtype == np.uint8


def test_endless_ones_are_cut(here):
    data = GeneratorDataset(f"{here}:endless", VECTOR, cap=9)
    assert len(data) == 9
    assert "first 9 samples" in data.notes[0]
    assert GeneratorDataset(f"{here}:vectors", VECTOR, cap=7).notes == ()


@pytest.mark.parametrize(
    ("function", "inputs", "kind", "words"),
    [
        ("vektors", VECTOR, OptionError, "has no 'vektors', did you mean 'vectors'"),
        ("number", VECTOR, OptionError, "no function"),
        ("fails", VECTOR, DataError, r"failed at .*:\d+: RuntimeError: the disk is on fire"),
        ("leaves", VECTOR, DataError, "SystemExit"),
        ("wrong_shape", VECTOR, DataError, r"\[1\], input 'x': has shape \[4\], the model takes \[3\]"),
        ("mixed", IMAGE, DataError, "the first one was a uint8 picture"),
        ("strings", VECTOR, DataError, "no numbers"),
        ("ragged", VECTOR, DataError, "is no array"),
        ("labels_change", VECTOR, DataError, "another kind"),
        ("nothing", VECTOR, DataError, "yields nothing"),
        ("none", VECTOR, DataError, "returns NoneType"),
        ("too_high", VECTOR, DataError, "holds class 9, the model tells 2"),
        ("nan", VECTOR, DataError, "NaN"),
        ("vectors", TWO, DataError, "is one array, the model has the inputs a, b"),
        ("classes", TWO, DataError, "has x, the model's inputs are a, b"),
    ],
)
def test_faults(here, function, inputs, kind, words):
    with pytest.raises(kind, match=words) as caught:
        open_dataset(f"{here}:{function}", inputs, None, 2)
    assert caught.value.remedy


def test_modules_that_cannot_be_imported(here, tmp_path):
    with pytest.raises(OptionError, match=f"no module {here[:-1]!r}, did you mean {here!r}"):
        open_dataset(f"{here[:-1]}:vectors", VECTOR)
    (tmp_path / "broken_of_a_test.py").write_text("import numpy\n1 / 0\n")
    with pytest.raises(DataError, match=r"cannot be imported at .*broken_of_a_test\.py:2: ZeroDivisionError"):
        open_dataset("broken_of_a_test:x", VECTOR)
    (tmp_path / "needs_of_a_test.py").write_text("import no_such_package_anywhere\n")
    with pytest.raises(DataError, match="No module named 'no_such_package_anywhere'"):
        open_dataset("needs_of_a_test:x", VECTOR)

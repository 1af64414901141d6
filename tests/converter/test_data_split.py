"""The split: no picture that calibrated judges, every class on both sides, the same seed the same split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgeferry_converter.data.folders import (
    CALIBRATION_MAX,
    FolderDataset,
    Image,
    class_order,
    list_images,
    split_images,
)
from edgeferry_converter.data.npz import NpzDataset
from edgeferry_converter.data.split import divide, split
from edgeferry_converter.errors import DataError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

contents = st.lists(
    st.lists(st.integers(0, 12), min_size=2, max_size=15).filter(lambda c: len(set(c)) > 1), min_size=2, max_size=5
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(classes=contents, seed=st.integers(0, 9))
def test_nothing_is_on_both_sides(tmp_path, classes, seed):
    images = []
    for label, files in enumerate(classes):
        for i, content in enumerate(files):
            path = tmp_path / f"{label}-{i}"
            path.write_bytes(bytes([label, content]))  # files of one content are copies
            images.append(Image(path, label))
    split = split_images(images, seed)
    assert sorted(map(str, [i.path for i in split.calibration + split.evaluation])) == sorted(
        str(i.path) for i in images
    )
    calibrated = {i.path.read_bytes() for i in split.calibration}
    judged = {i.path.read_bytes() for i in split.evaluation}
    assert not calibrated & judged
    assert {i.label for i in split.calibration} == {i.label for i in split.evaluation} == set(range(len(classes)))
    assert split.duplicates == len(images) - len(calibrated | judged)
    assert split == split_images(list(reversed(images)), seed) or sorted(
        i.path.read_bytes() for i in split.calibration
    ) == sorted(i.path.read_bytes() for i in split_images(list(reversed(images)), seed).calibration)


def test_shares_and_bounds(tmp_path):
    images = []
    for i in range(4000):
        path = tmp_path / f"{i}"
        path.write_bytes(i.to_bytes(2, "big"))
        images.append(Image(path, i % 4))
    small, large = split_images(images[:400]), split_images(images)
    assert len(small.calibration) == 80
    assert len(large.calibration) == CALIBRATION_MAX
    assert split_images(images[:400], 1).calibration != small.calibration
    assert small.calibration_sha256() == split_images(images[:400]).calibration_sha256()
    assert small.calibration_sha256() != split_images(images[:400], 1).calibration_sha256()


def test_folders_are_classes_in_the_order_keras_gives_them(image_folders):
    folders = list_images(image_folders, None, 3)
    assert folders.labels == ("blue", "green", "red")
    assert [i.label for i in folders.images] == [0] * 20 + [1] * 20 + [2] * 20
    assert list_images(image_folders, ["red", "green", "blue"], 3).images[0].path.parent.name == "red"


@pytest.mark.parametrize(
    ("folders", "labels", "order"),
    [
        (["10", "2"], None, ["10", "2"]),
        (["0", "1"], ["zero", "one"], ["0", "1"]),
        (["cat", "dog"], ["dog", "cat"], ["dog", "cat"]),
    ],
)
def test_order(folders, labels, order):
    assert class_order(folders, labels, 2, Path("data")) == order


def test_half_known_folder_names_are_a_mistake():
    with pytest.raises(DataError, match="folder 'bird' is no label"):
        class_order(["bird", "dog"], ["cat", "dog"], 2, Path("data"))


# Any data set.


def npz(tmp_path, name, values, **labels):
    np.savez(tmp_path / name, x=values, **labels)
    return NpzDataset(tmp_path / name, (("x", (2,)),))


def rows(*numbers):
    return np.array([[n, n] for n in numbers], np.float32)


def test_folders_are_divided_as_ever(image_folders):
    folders = list_images(image_folders, None, 3)
    old, new = split_images(folders.images, 3), split(FolderDataset(folders), 3)
    assert [i.path for i in old.calibration] == [folders.images[i].path for i in new.calibration]
    assert [i.path for i in old.evaluation] == [folders.images[i].path for i in new.evaluation]
    assert new.record() == {
        "calibration": 12,
        "evaluation": 48,
        "seed": 3,
        "duplicates": 0,
        "evaluation_apart": False,
        "overlap_removed": 0,
        "calibration_sha256": old.calibration_sha256(),
    }


def test_a_data_set_of_its_own_judges_and_never_calibrates(tmp_path):
    data = npz(tmp_path, "a.npz", rows(*range(1000), 5, 6), labels=np.arange(1002) % 4)
    other = npz(tmp_path, "b.npz", rows(1, 2, 3, 3, -7))
    parts = split(data, 0, other)
    assert parts.evaluation == (0, 1, 2, 3, 4)
    assert (len(parts.calibration), parts.overlap, parts.duplicates, parts.apart) == (CALIBRATION_MAX, 3, 2, True)
    assert not {data.content_key(i) for i in parts.calibration} & {other.content_key(i) for i in range(5)}
    assert parts == split(data, 0, other) != split(data, 1, other)
    small = npz(tmp_path, "c.npz", rows(1, 2, 9))
    assert split(small, 0, other).calibration == (2,)
    with pytest.raises(DataError, match="holds every sample"):
        split(npz(tmp_path, "d.npz", rows(1, 3)), 0, other)


def test_the_same_picture_in_a_file_and_in_an_array(tmp_path, image_folders):
    folders = FolderDataset(list_images(image_folders, None, 3))
    pixels = np.stack([folders.load(i).frame[..., ::-1] for i in (0, 30)])
    np.savez(tmp_path / "eval.npz", image=pixels, labels=[0, 1])
    judging = NpzDataset(tmp_path / "eval.npz", (("image", (24, 32, 3)),))
    parts = split(folders, 0, judging)
    assert (parts.overlap, len(parts.calibration)) == (2, 58)
    with pytest.raises(DataError, match="--data holds frames, --eval-data holds tensors"):
        split(folders, 0, npz(tmp_path, "t.npz", rows(1)))


def test_different_classes(image_folders):
    folders = list_images(image_folders, None, 3)
    renamed = FolderDataset(replace(folders, labels=("blue", "green", "rot")))
    with pytest.raises(DataError, match=r"different classes \(red, rot\)"):
        split(FolderDataset(folders), 0, renamed)


def test_values_need_no_classes_and_copies_stay_together(tmp_path):
    data = npz(tmp_path, "a.npz", rows(1, 1, 1, 2), labels=np.zeros((4, 2)))
    parts = split(data)
    assert {parts.calibration, parts.evaluation} == {(0, 1, 2), (3,)}
    with pytest.raises(DataError, match="copies of one image"):
        split(npz(tmp_path, "b.npz", rows(1, 1)))


@given(
    samples=st.lists(st.tuples(st.integers(0, 20), st.none() | st.integers(0, 4)), min_size=1, max_size=40),
    seed=st.integers(0, 3),
)
def test_classes_that_may_be_absent(samples, seed):
    """Boxes: rare classes, images without any; only copies of a single image cannot be divided."""
    keys = [f"{content:064x}" for content, _ in samples]
    classes = [label for _, label in samples]
    try:
        parts = divide(keys, classes, seed, str, each_class=False)
    except DataError:
        assert len(set(keys)) == 1
        return
    assert sorted(parts.calibration + parts.evaluation) == list(range(len(samples)))
    assert parts.calibration
    assert parts.evaluation
    assert not {keys[i] for i in parts.calibration} & {keys[i] for i in parts.evaluation}


@pytest.mark.parametrize("classes", [3, 7, 300, 800])
def test_the_bound_holds_whatever_rounding_does(classes):
    keys = [f"{i:064x}" for i in range(4000)]
    parts = divide(keys, [i % classes for i in range(4000)], 0, str)
    assert len(parts.calibration) == max(CALIBRATION_MAX, classes) or len(parts.calibration) <= CALIBRATION_MAX
    assert len({i % classes for i in parts.calibration}) == classes

"""The split: no picture that calibrated judges, every class on both sides, the same seed the same split."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgeferry_converter.data.folders import CALIBRATION_MAX, Image, class_order, list_images, split_images
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

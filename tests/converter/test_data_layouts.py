"""Folders of images with boxes, masks or classes: recognised by content, every fault named at once."""

from __future__ import annotations

import json
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
from edgeferry_converter.data.coco import CocoDataset
from edgeferry_converter.data.dataset import Box
from edgeferry_converter.data.masks import MaskDataset, read_mask
from edgeferry_converter.data.open import open_dataset
from edgeferry_converter.data.pictures import decode_picture
from edgeferry_converter.data.split import split
from edgeferry_converter.data.yolo import YoloDataset
from edgeferry_converter.errors import DataError, OptionError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

INPUTS = (("image", (16, 16, 3)),)
fast = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def draw(folder, count, ending="png"):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i}.{ending}"), random.integers(0, 256, (20, 30, 3), dtype=np.uint8))


def coco_json(count=6):
    return {
        "info": {"year": 2026},
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat", "supercategory": "animal"}],
        "images": [{"id": 10 + i, "file_name": f"{i}.png", "width": 30, "height": 20} for i in range(count)],
        "annotations": [
            {"id": i, "image_id": 10 + i, "category_id": 7 if i % 2 else 3, "bbox": [1, 2, 3.5, 4]}
            for i in range(count)
        ],
    }


@pytest.fixture
def coco(tmp_path):
    draw(tmp_path / "images", 6)
    (tmp_path / "annotations.json").write_text(json.dumps(coco_json()))
    return tmp_path


@pytest.fixture
def yolo(tmp_path):
    draw(tmp_path / "images", 5)
    (tmp_path / "labels").mkdir()
    for i in range(4):  # the last image shows nothing
        (tmp_path / "labels" / f"{i}.txt").write_text(f"{i % 2} 0.5 0.5 0.2 0.4\n\n1 0.1 0.25 0.2 0.5\n")
    return tmp_path


@pytest.fixture
def masks(tmp_path):
    draw(tmp_path / "images", 4, "jpg")
    (tmp_path / "masks").mkdir()
    for i in range(4):
        cv2.imwrite(str(tmp_path / "masks" / f"{i}.png"), np.full((20, 30), i % 3, np.uint8))
    return tmp_path


# COCO.


def test_coco(coco):
    for spec in (coco, coco / "annotations.json"):
        data = open_dataset(str(spec), INPUTS)
        assert (type(data), data.kind, data.task_hint, data.labels) == (
            CocoDataset, "frames", "detect", ("cat", "dog"))  # fmt: skip
        assert data.load(1).label == (Box(1, 1, 2, 3.5, 4),)
        assert (data.label_key(0), data.name(0), data.image_path(0)) == (0, "0.png", coco / "images" / "0.png")
        assert "6 images with 6 boxes" in data.description
    assert open_dataset(str(coco), INPUTS, ["dog", "bird", "cat"], 3).load(1).label[0].label == 0
    parts = split(data)
    assert sorted(parts.calibration + parts.evaluation) == list(range(6))


def test_coco_as_it_is_published(coco):
    (coco / "annotations").mkdir()
    (coco / "images").rename(coco / "val2017")
    (coco / "annotations.json").rename(coco / "annotations" / "instances_val2017.json")
    assert len(open_dataset(str(coco), INPUTS)) == 6
    (coco / "annotations" / "instances_train2017.json").write_text('{"annotations": []}')
    with pytest.raises(DataError, match="2 annotation files"):
        open_dataset(str(coco), INPUTS)


def test_coco_crowds_and_points_are_passed_over(coco):
    value = coco_json()
    value["annotations"][0] |= {"iscrowd": 1, "segmentation": {"counts": [1]}}
    value["annotations"][1]["bbox"] = [1, 1, 0, 5]
    (coco / "annotations.json").write_text(json.dumps(value))
    data = open_dataset(str(coco), INPUTS)
    assert data.notes == ("1 crowds passed over", "1 boxes without area passed over")
    assert (data.load(0).label, data.label_key(0)) == ((), None)


def test_coco_names_every_problem(coco):
    value = coco_json()
    value["categories"].append({"id": 3, "name": "bird"})
    value["images"][0]["file_name"] = "../secret.png"
    value["images"][1]["width"] = "wide"
    value["annotations"][2]["category_id"] = 4
    value["annotations"][3]["image_id"] = 99
    value["annotations"][4]["bbox"] = [1, 2, 3]
    value["annotations"][5]["bbox"] = [1, 2, 300, 4]
    (coco / "annotations.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match="problems in the annotations") as caught:
        open_dataset(str(coco), INPUTS)
    for words in (
        "categories[2]: id 3 or name 'bird' is there twice",
        "images[0].file_name: must be a path inside the images' folder, is '../secret.png'",
        "images[1].width: must be an integer of at least 1, is 'wide'",
        "annotations[2].category_id: no category 4",
        "annotations[3].image_id: no image 99",
        "annotations[4].bbox: must be four numbers",
        "annotations[5].bbox: [1.0, 2.0, 300.0, 4.0] reaches out of 5.png (30x20)",
    ):
        assert words in caught.value.message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\ud800"])
def test_coco_that_is_none(coco, text):
    path = coco / "annotations.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError):
        CocoDataset(path)


def test_coco_that_does_not_fit(coco):
    with pytest.raises(DataError, match="2 classes, the model tells 3"):
        open_dataset(str(coco), INPUTS, None, 3)
    with pytest.raises(DataError, match="category 'dog' is no label"):
        open_dataset(str(coco), INPUTS, ["cat", "bird"], 2)
    cv2.imwrite(str(coco / "images" / "0.png"), np.zeros((30, 20, 3), np.uint8))
    with pytest.raises(DataError, match="is 20x30, its annotations are for 30x20"):
        open_dataset(str(coco), INPUTS).load(0)
    (coco / "images" / "3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png: is missing"):
        open_dataset(str(coco), INPUTS)


scalars = st.none() | st.booleans() | st.integers(-5, 40) | st.floats() | st.text(max_size=4)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=3), v), max_leaves=6
)
keys = st.sampled_from(
    ["id", "name", "file_name", "width", "height", "image_id", "category_id", "bbox", "iscrowd"]
)


@fast
@given(part=st.sampled_from(["categories", "images", "annotations"]), at=st.integers(0, 1), key=keys, value=values)
def test_coco_with_any_value_anywhere(coco, part, at, key, value):
    whole = coco_json()
    if key == "name" and at:
        whole[part] = value
    elif key == "id" and at:
        whole[part][at] = value
    else:
        whole[part][at][key] = value
    (coco / "annotations.json").write_text(json.dumps(whole))
    try:
        data = CocoDataset(coco / "annotations.json")
        boxes = [box for sample in data.samples(range(len(data))) for box in sample.label]
        assert all(box.w > 0 and box.h > 0 and box.label in (0, 1) for box in boxes)
    except DataError as error:
        assert error.remedy


# YOLO.


def test_yolo(yolo):
    data = open_dataset(str(yolo), INPUTS, None, 2)
    assert (type(data), data.task_hint, data.labels) == (YoloDataset, "detect", ())
    first, second = data.load(0).label
    assert first == pytest.approx((0, 12, 6, 6, 8))
    assert second == pytest.approx((1, 0, 0, 6, 10))
    assert data.load(4).label == ()
    assert [data.label_key(i) for i in range(5)] == [0, 1, 0, 1, None]
    (yolo / "classes.txt").write_text("cat\ndog\n")
    assert open_dataset(str(yolo), INPUTS).labels == ("cat", "dog")
    with pytest.raises(DataError, match="names 2 classes, the model tells 3"):
        open_dataset(str(yolo), INPUTS, None, 3)
    (yolo / "classes.txt").rename(yolo / "data.yaml")
    assert "data.yaml is not read" in open_dataset(str(yolo), INPUTS).notes[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.2", "line 1: has 4 values, needs 5"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2", "polygons are not read"),
        ("a 0.5 0.5 0.2 0.2", "class 'a' is no whole number"),
        ("2 0.5 0.5 0.2 0.2", r"class 2, there are 2 \(0 to 1\)"),
        ("0 0.5 x 0.2 0.2", "no number"),
        ("0 15 5 3 2", "not in shares of the image"),
        ("0 0.5 0.5 0 0.2", "with an area"),
        ("0 nan 0.5 0.1 0.2", "not in shares"),
        ("0 0.9 0.5 0.4 0.2", "reaches out"),
    ],
)
def test_yolo_faults(yolo, line, words):
    (yolo / "labels" / "0.txt").write_text(line)
    with pytest.raises(DataError, match=words):
        open_dataset(str(yolo), INPUTS, None, 2)


def test_yolo_files_that_do_not_match(yolo):
    (yolo / "labels" / "9.txt").write_text("")
    (yolo / "labels" / "1.txt").write_bytes(b"\xff\xfe")
    cv2.imwrite(str(yolo / "images" / "0.jpg"), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(DataError, match="3 problems") as caught:
        open_dataset(str(yolo), INPUTS, None, 2)
    for words in ("9.txt: has no image", "1.txt: is not UTF-8", "has the same labels file"):
        assert words in caught.value.message


@fast
@given(text=st.text(alphabet="0123456789 .-enaif\n\t\u0663", max_size=40) | st.binary(max_size=20))
def test_yolo_with_any_text(yolo, text):
    data = text if isinstance(text, bytes) else text.encode()
    (yolo / "labels" / "0.txt").write_bytes(data)
    try:
        boxes = YoloDataset(yolo, None, 2).load(0).label
        assert all(b.label in (0, 1) and b.w > 0 and b.x > -1 and b.x + b.w < 31 for b in boxes)
    except DataError as error:
        assert error.remedy


# Masks.


def test_masks(masks):
    data = open_dataset(str(masks), INPUTS, ["a", "b", "c"], 3)
    assert (type(data), data.task_hint, data.labels) == (MaskDataset, "segment", ("a", "b", "c"))
    assert np.array_equal(data.load(2).label, np.full((20, 30), 2, np.uint8))
    assert sum(map(len, (split(data).calibration, split(data).evaluation))) == 4


def palette_png(indices, colors):
    """A palette PNG made by hand: OpenCV writes none."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = indices.shape
    rows = b"".join(b"\0" + row.tobytes() for row in indices)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">2L5B", width, height, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", np.asarray(colors, np.uint8).tobytes())
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_palette_masks_give_indices_not_colours(tmp_path):
    indices = np.random.default_rng(0).integers(0, 5, (7, 9), dtype=np.uint8)
    colors = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    (tmp_path / "m.png").write_bytes(palette_png(indices, colors))
    assert np.array_equal(read_mask(tmp_path / "m.png"), indices)
    (tmp_path / "m.png").write_bytes(palette_png(indices, [(1, 2, 3)] * 5))
    with pytest.raises(DataError, match="one colour for several classes"):
        read_mask(tmp_path / "m.png")


@fast
@given(at=st.integers(8, 200), byte=st.integers(0, 255))
def test_damaged_masks(tmp_path, at, byte):
    data = bytearray(palette_png(np.zeros((4, 4), np.uint8), [(0, 0, 0), (9, 9, 9)]))
    data[at % len(data)] = byte
    (tmp_path / "m.png").write_bytes(data)
    try:
        assert read_mask(tmp_path / "m.png").dtype == np.uint8
    except DataError as error:
        assert error.remedy


def test_masks_that_do_not_serve(masks):
    cv2.imwrite(str(masks / "masks" / "0.png"), np.zeros((20, 30, 3), np.uint8))
    cv2.imwrite(str(masks / "masks" / "1.png"), np.full((20, 30), 9, np.uint8))
    cv2.imwrite(str(masks / "masks" / "2.png"), np.zeros((30, 20), np.uint8))
    cv2.imwrite(str(masks / "masks" / "3.png"), np.full((20, 30), 255, np.uint8))
    data = open_dataset(str(masks), INPUTS, None, 3)
    for i, words in (
        (0, "gray or palette"),
        (1, "holds class 9, the model tells 3"),
        (2, "is 20x30, its image 30x20"),
    ):
        with pytest.raises(DataError, match=words):
            data.load(i)
    assert (data.load(3).label == 255).all()
    (masks / "masks" / "3.png").rename(masks / "masks" / "4.png")
    with pytest.raises(DataError, match="2 problems") as caught:
        open_dataset(str(masks), INPUTS)
    assert "3.png: is missing" in caught.value.message
    assert "4.png: has no image" in caught.value.message


def test_a_png_that_promises_gigabytes_is_refused_before_it_is_decoded(tmp_path):
    data = bytearray(palette_png(np.zeros((4, 4), np.uint8), [(0, 0, 0)]))
    data[33] = 255  # the palette's length
    (tmp_path / "m.png").write_bytes(data)
    for read in (read_mask, decode_picture):
        begin = time.perf_counter()
        with pytest.raises(DataError, match="cannot be decoded"):
            read(tmp_path / "m.png")
        assert time.perf_counter() - begin < 1


# Opening.


def test_class_folders_and_bare_ones(image_folders):
    data = open_dataset(str(image_folders), INPUTS, None, 3)
    assert (data.labels, data.task_hint, data.label_key(59)) == (("blue", "green", "red"), "classify", 2)
    assert (data.load(59).label, data.name(59)) == (2, "red/19.png")
    assert open_dataset(str(image_folders), INPUTS).labels == ("blue", "green", "red")
    bare = open_dataset(str(image_folders / "red"), INPUTS)
    assert (bare.task_hint, bare.label_key(0), bare.load(0).label, len(bare)) == ("", None, None, 20)
    with pytest.raises(DataError, match="no class folders"):
        open_dataset(str(image_folders / "red"), INPUTS, None, 3)


def test_what_cannot_be_opened(tmp_path, image_folders):
    (tmp_path / "data").mkdir()
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "x.csv").write_text("1,2")
    for spec, words in (
        (tmp_path / "dat", "no such folder or file, did you mean 'data'"),
        (tmp_path / "no" / "no", "no such folder or file"),
        (tmp_path / "data", "holds no images"),
        (tmp_path / "x.npy", "single array"),
        (tmp_path / "x.csv", "no known layout"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            open_dataset(str(spec), INPUTS)
        assert caught.value.remedy
    with pytest.raises(DataError, match=r"does not take one image \(x \[16\]\)"):
        open_dataset(str(image_folders), (("x", (16,)),))
    with pytest.raises(OptionError, match="no module 'nomodule'"):
        open_dataset("nomodule:samples", INPUTS)

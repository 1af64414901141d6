"""Training data: the same numbers as in calibration, the same batches for a seed, misfits refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from edgeferry_converter.compression.augment import augmented
from edgeferry_converter.compression.train_data import TrainData, open_train_data
from edgeferry_converter.compression.training import TrainOptions, fine_tune
from edgeferry_converter.data.open import open_dataset
from edgeferry_converter.errors import DataError, OptionError
from edgeferry_converter.feeding import FrameFeed, TensorFeed
from edgeferry_converter.loading.chain import load_source
from edgeferry_converter.loading.source import LoadOptions
from edgeferry_converter.preprocess_option import read_preprocessing
from hypothesis import given
from hypothesis import strategies as st

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def source(color_model):
    return load_source(color_model, LoadOptions())


@pytest.fixture(scope="module")
def feed():
    return FrameFeed(read_preprocessing("unit", 16, 16, 3), "pixels")


@pytest.fixture
def frames(tmp_path):
    """20 uint8 pictures of three classes."""
    path = tmp_path / "train.npz"
    x = RANDOM.integers(0, 256, (20, 24, 20, 3), dtype=np.uint8)
    np.savez(path, x=x, y=np.arange(20) % 3)
    return path


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of functions; spec of one of them."""
    monkeypatch.chdir(tmp_path)

    def write(code: str) -> str:
        name = f"pipeline{abs(hash(code))}"
        (tmp_path / f"{name}.py").write_text("import numpy as np\n" + code)
        return f"{name}:train"

    return write


def test_batches_hold_what_calibration_would_feed(frames, source, feed):
    data = open_train_data(str(frames), source, feed, 3)
    dataset = open_dataset(str(frames), [("pixels", (16, 16, 3))], None, 3)
    expected = {feed.real(dataset.load(i))["pixels"].tobytes(): dataset.load(i).label for i in range(20)}
    seen = {}
    for x, y in data.batches(5, augment="none"):
        assert x.shape == (5, 16, 16, 3) and x.dtype == np.float32 and y.dtype == np.int32
        seen |= {row.tobytes(): int(label) for row, label in zip(x, y, strict=True)}
    assert seen == expected
    assert (data.size, data.task, data.classes, data.images) == (20, "classify", 3, True)


def test_data_beyond_the_limit_is_prepared_a_batch_at_a_time(frames, source, feed):
    kept = open_train_data(str(frames), source, feed, 3).batches(6, seed=3)
    anew = open_train_data(str(frames), source, feed, 3, cache_bytes=100).batches(6, seed=3)
    for (x, y), (x2, y2) in zip(kept, anew, strict=True):
        np.testing.assert_array_equal(x, x2)
        np.testing.assert_array_equal(y, y2)


def test_seed_and_epoch_decide_the_batches(frames, source, feed):
    data = open_train_data(str(frames), source, feed, 3)
    one, same, other = (data.batches(6, seed=seed) for seed in (1, 1, 2))
    assert len(one) == 3  # two are left over
    np.testing.assert_array_equal(one[1][0], same[1][0])
    assert (one[1][0] != other[1][0]).any()
    first = one[1][0].copy()
    one.epoch = 1
    assert (one[1][0] != first).any()
    one.epoch = 0
    np.testing.assert_array_equal(one[1][0], first)
    assert len(data.batches(64)) == 1 and len(data.batches(64)[0][0]) == 20


def test_held_out_samples_are_apart(frames, source, feed):
    data = open_train_data(str(frames), source, feed, 3)
    train, rest = data.hold_out(0.25, seed=1)
    assert (train.size, rest.size, data.size) == (15, 5, 20)
    rows = [{row.tobytes() for x, _ in part.batches(5, augment="none") for row in x} for part in (train, rest)]
    assert len(rows[0]) == 15 and len(rows[1]) == 5 and not rows[0] & rows[1]
    with pytest.raises(DataError, match="nothing or everything"):
        data.hold_out(0.001)


def test_folders_are_classes_and_some_samples_may_be_chosen(image_folders, source, feed):
    data = open_train_data(str(image_folders), source, feed, 3, labels=["blue", "green", "red"])
    counts = np.bincount(np.concatenate([y for _, y in data.batches(10)]))
    assert counts.tolist() == [20, 20, 20]
    dataset = open_dataset(str(image_folders), [("pixels", (16, 16, 3))], None, 3)
    some = TrainData(dataset, source, feed, 3, indices=range(40))
    assert some.size == 40 and "class 2" in some.notes[-1]


def test_samples_that_judge_as_well_are_counted(image_folders, frames, source, feed):
    dataset = open_dataset(str(image_folders), [("pixels", (16, 16, 3))], None, 3)
    data = TrainData(dataset, source, feed, 3, indices=range(0, 60, 2))
    assert data.overlap(dataset, range(10)) == 5
    assert data.hold_out(0.5)[0].overlap(dataset, range(60)) == 15
    arrays = open_dataset(str(frames), [("pixels", (16, 16, 3))], None, 3)
    assert data.overlap(arrays, range(20)) == 0


def test_pictures_without_labels_serve_too(tmp_path, source, feed):
    np.savez(tmp_path / "bare.npz", x=RANDOM.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8))
    data = open_train_data(str(tmp_path / "bare.npz"), source, feed, 3)
    assert data.task == "" and [len(batch) for batch in data.batches(3)] == [1, 1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 16, 16, 3), np.uint8), "y": [0, 1, 2, 3]}, "holds class 3, the model tells 3"),
        ({"x": np.zeros((4, 8, 16, 3), np.float32), "y": [0, 1, 2, 0]}, r"shape \[8, 16, 3\], the model takes"),
        ({"x": np.zeros((0, 16, 16, 3), np.uint8), "y": np.zeros(0, int)}, "must count the same samples"),
        ({"x": np.zeros((2, 16, 16, 3), np.uint8), "y": np.zeros((2, 5, 5), int)}, "labels to segment"),
        ({"x": np.full((2, 16, 16, 3), np.nan, np.float32), "y": [0, 1]}, "NaN"),
        ({"x_train": np.zeros((2, 16, 16, 3), np.uint8), "x_test": np.zeros((2, 16, 16, 3), np.uint8)}, "x_test"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, source, feed, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=message):
        open_train_data(str(tmp_path / "bad.npz"), source, feed, 3)


def test_other_class_folders_are_refused(image_folders, source, feed):
    with pytest.raises(DataError, match="3 class folders, the model tells 10"):
        open_train_data(str(image_folders), source, feed, 10)
    with pytest.raises(DataError, match="is a picture, but the model is calibrated with ready tensors"):
        open_train_data(str(image_folders), source, TensorFeed(source.shapes()), 3)


DATASET = """
import tensorflow as tf
def train():
    x = np.random.default_rng(0).integers(0, 256, (20, 24, 20, 3), dtype=np.uint8)
    return tf.data.Dataset.from_tensor_slices((x, np.arange(20) % 3))
"""
PYDATASET = """
import keras
class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 5
    def __getitem__(self, i):
        random = np.random.default_rng(i)
        return random.normal(0, 1, (4, 16, 16, 3)), np.eye(3)[random.integers(0, 3, 4)]
def train():
    return Batches()
"""


@pytest.mark.parametrize("ending", ["", ".batch(4)", ".batch(4).filter(lambda x, y: True)"])
def test_a_tf_data_pipeline(keras, module, source, feed, frames, ending):
    spec = module(DATASET.replace("% 3))", "% 3))" + ending))
    data = open_train_data(spec, source, feed, 3)
    assert (data.size, data.task) == (20, "classify")
    expected = np.concatenate([x for x, _ in _in_order(frames, source, feed)])
    for _ in range(2):  # epochs
        batches = data.batches(4)
        assert len(batches) == 5
        found = list(batches)
        assert np.concatenate([x for x, _ in found]).shape == expected.shape
        assert np.concatenate([y for _, y in found]).tolist() == [i % 3 for i in range(20)]
        assert found[0][0].min() >= 0 and found[0][0].max() <= 1  # preprocessed
    with pytest.raises(DataError, match="in order only"):
        data.batches(4)[3]


def _in_order(frames, source, feed):
    dataset = open_dataset(str(frames), [("pixels", (16, 16, 3))], None, 3)
    return [(feed.real(dataset.load(i))["pixels"], i % 3) for i in range(20)]


@pytest.mark.parametrize("pipeline", ["DATASET", "PYDATASET"])
def test_a_model_trains_on_a_pipeline(keras, module, source, feed, pipeline):
    spec = module({"DATASET": DATASET.replace("% 3))", "% 3)).batch(4)"), "PYDATASET": PYDATASET}[pipeline])
    model = keras.models.clone_model(source.keras)
    data = open_train_data(spec, source, feed, 3)
    history = fine_tune(model, data, TrainOptions(3, 0.01), validation=data)
    assert len(history.epochs) == 3 and history.epochs[2]["loss"] < history.epochs[0]["loss"]
    assert model.optimizer.iterations == 15


def test_a_keras_pydataset_of_ready_tensors_and_one_hot_labels(keras, module, source, feed):
    data = open_train_data(module(PYDATASET), source, feed, 3)
    assert (data.size, data.task, data.images) == (20, "classify", True)
    batches = data.batches(99)
    random = np.random.default_rng(2)
    x, y = batches[2]
    np.testing.assert_array_equal(x, random.normal(0, 1, (4, 16, 16, 3)).astype(np.float32))
    assert y.tolist() == random.integers(0, 3, 4).tolist()
    moved = data.batches(99, augment="flip-shift")[2][0]
    assert moved.shape == x.shape and (moved != x).any()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (DATASET.replace("% 3))", "% 4))"), "holds class 3, the model tells 3"),
        (DATASET.replace("% 3))", "% 3)).repeat()"), "repeats for ever"),
        (DATASET.replace("% 3))", "% 3)).take(0)"), "yields nothing"),
        (DATASET.replace("return", "raise OSError('gone')\n    return"), "failed at .*OSError: gone"),
        (PYDATASET.replace("(4, 16, 16, 3)", "(4, 16, 8, 3)"), r"is \[16, 8, 3\] a sample"),
        (PYDATASET.replace("return 5", "return 0"), "yields nothing"),
    ],
)
def test_pipelines_that_do_not_fit(keras, module, source, feed, code, message):
    with pytest.raises(DataError, match=message):
        open_train_data(module(code), source, feed, 3)


def test_a_function_that_yields_samples_is_taken_as_for_calibration(module, source, feed):
    code = "def train():\n    for i in range(7):\n        yield np.full((9, 9, 3), i, np.uint8), i % 3\n"
    data = open_train_data(module(code), source, feed, 3)
    assert (data.size, data.task, data.images) == (7, "classify", True)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3)),
    kind=st.sampled_from(["shift", "flip-shift"]),
    seed=st.integers(0, 99),
)
def test_augmentation_moves_pixels_and_invents_none(shape, kind, seed):
    batch = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    found = augmented(batch, kind, np.random.default_rng(seed))
    assert found.shape == batch.shape and found.dtype == batch.dtype
    for before, after in zip(batch, found, strict=True):
        pixels = {pixel.tobytes() for pixel in before.reshape(-1, shape[3])}
        assert {pixel.tobytes() for pixel in after.reshape(-1, shape[3])} <= pixels
    np.testing.assert_array_equal(found, augmented(batch, kind, np.random.default_rng(seed)))


def test_a_shift_keeps_the_direction_and_a_flip_turns_it():
    ramp = np.broadcast_to(np.arange(32.0)[None, None, :, None], (64, 32, 32, 1))

    def steps(kind):  # in the middle, which reflection does not reach
        found = augmented(ramp, kind, np.random.default_rng(0))
        return set(np.diff(found[:, 16, 8:24, 0]).flatten().tolist())

    assert steps("none") == steps("shift") == {1.0}
    assert steps("flip-shift") == {1.0, -1.0}


def test_tensors_are_not_augmented(tmp_path, source):
    np.savez(tmp_path / "t.npz", pixels=RANDOM.normal(0, 1, (6, 16, 16, 3)).astype(np.float32))
    data = open_train_data(str(tmp_path / "t.npz"), source, TensorFeed(source.shapes()), 3)
    assert not data.images
    with pytest.raises(OptionError, match="only images can be augmented"):
        data.batches(2, augment="flip-shift")

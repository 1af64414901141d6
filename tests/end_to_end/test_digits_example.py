"""The demo's digits: nothing leaks from held-out to train, scenes repeat, and what is committed is small."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("sklearn")

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits"
MODELS = ("digits", "digits-v2")


def load(name: str) -> ModuleType:
    """Import a script of the example by its path; it is no package and is not installed."""
    spec = importlib.util.spec_from_file_location(f"digits_example_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


scene = load("scene")


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- the split


def test_the_split_covers_every_digit_once():
    from sklearn.datasets import load_digits

    train, held_out = scene.split_digits()
    assert (len(train.images), len(held_out.images)) == (1300, 497)
    together = np.concatenate([train.images, held_out.images]).reshape(1797, -1)
    bundled = load_digits().data.astype(np.float32) / 16
    assert sorted(map(tuple, together)) == sorted(map(tuple, bundled))


def test_no_held_out_picture_is_among_the_train_ones():
    train, held_out = scene.split_digits()
    known = {image.tobytes() for image in train.images}
    assert not [image for image in held_out.images if image.tobytes() in known]


def test_the_split_has_all_classes_on_both_sides_and_cannot_be_written_to():
    for digits in scene.split_digits():
        assert set(digits.labels.tolist()) == set(range(10))
        with pytest.raises(ValueError, match="read-only"):
            digits.images[0] = 0


# --- the renderer


def test_a_frame_is_bgr_bytes_of_the_size_asked_for():
    digit = scene.split_digits()[1].images[0]
    frame = scene.render(digit, generator(), (320, 240))
    assert frame.shape == (240, 320, 3)
    assert frame.dtype == np.uint8


def test_the_same_seed_draws_the_same_frame_and_another_seed_does_not():
    digit = scene.split_digits()[1].images[0]
    first, again, other = (scene.render(digit, generator(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("size", [(160, 120), (320, 240), (64, 48)])
def test_the_digit_lies_wholly_within_the_frame(size):
    rng = generator(3)
    for digit in scene.split_digits()[1].images[:150]:
        mask = scene.ink_mask(digit, scene.random_pose(rng), size, scene.random_look(rng).blur)
        rim = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert mask.max() > 0.3
        assert rim.max() == 0


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_no_ink_is_lost_in_the_corners(corner):
    pose = scene.Pose(scale=0.5, angle=10, aspect=1.1, across=corner[0], down=corner[1])
    for digit in scene.split_digits()[1].images[:40]:
        glyph = scene.glyph_of(digit)
        matrix = scene.place(glyph, pose, (320, 240), margin=1)
        expected = glyph.sum() * abs(np.linalg.det(matrix[:, :2]))
        assert scene.ink_mask(digit, pose, (320, 240)).sum() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("scale", [0.3, 0.6, 0.85])
def test_scale_is_the_share_of_the_frame_height(scale):
    pose = scene.Pose(scale=scale, angle=0, aspect=1, across=0.5, down=0.5)
    for digit in scene.split_digits()[1].images[:20]:
        rows = np.nonzero(scene.ink_mask(digit, pose, (320, 240)).max(axis=1))[0]
        assert rows[-1] - rows[0] + 1 == pytest.approx(scale * 240, abs=4)


def test_the_ink_is_brighter_than_what_surrounds_it():
    rng = generator(8)
    for digit in scene.split_digits()[1].images[:50]:
        pose, look = scene.random_pose(rng), scene.random_look(rng)
        mask = scene.ink_mask(digit, pose, scene.FOLDER_SIZE, look.blur)
        frame = scene.render(digit, rng, pose=pose, look=look).astype(float)
        assert frame[mask > 0.5 * mask.max()].mean() > frame[mask == 0].mean() + 15


# --- folders


def test_folders_hold_all_ten_classes_in_equal_parts(tmp_path):
    paths = scene.write_folders(tmp_path, count=50, seed=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == list(scene.CLASSES)
    assert {name: len(list((tmp_path / name).iterdir())) for name in scene.CLASSES} == dict.fromkeys(
        scene.CLASSES, 5
    )
    assert len(paths) == 50
    assert all(cv2.imread(str(path)).shape == (120, 160, 3) for path in paths)


def test_folders_are_the_same_for_the_same_seed_and_carry_nothing_over(tmp_path):
    scene.write_folders(tmp_path / "a", count=30, seed=2)
    scene.write_folders(tmp_path / "b", count=45, seed=9)
    (tmp_path / "b" / "3" / "mine.png").write_bytes(b"not a scene")
    scene.write_folders(tmp_path / "b", count=30, seed=2)
    a, b = (
        {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*.png")}
        for root in (tmp_path / "a", tmp_path / "b")
    )
    assert b.pop("3/mine.png") == b"not a scene"  # only its own scenes are cleared away
    assert a == b


# --- video


def test_the_video_has_a_truth_for_every_frame(tmp_path):
    path = tmp_path / "digits.avi"
    truth = scene.write_video(path, seconds=3, fps=10, seed=4)
    about = json.loads(scene.truth_path(path).read_text(encoding="utf-8"))
    assert about == {"fps": 10, "seed": 4, "width": 320, "height": 240, "frames": truth}
    frames = read_video(path)
    assert len(frames) == len(truth) == 30
    assert {frame.shape for frame in frames} == {(240, 320, 3)}


def read_video(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    assert capture.isOpened()
    frames = []
    while True:
        there, frame = capture.read()
        if not there:
            capture.release()
            return frames
        frames.append(frame)


def test_the_video_repeats_for_the_same_seed(tmp_path):
    for name in ("a.avi", "b.avi"):
        scene.write_video(tmp_path / name, seconds=1, fps=10, seed=4)
    for first, again in zip(read_video(tmp_path / "a.avi"), read_video(tmp_path / "b.avi"), strict=True):
        assert np.array_equal(first, again)


def test_a_digit_stays_a_second_and_the_next_one_is_another():
    truth = [number for _, number in scene.video_frames(40 * 3, fps=3, size=(32, 24))]
    shots = [truth[start : start + 3] for start in range(0, len(truth), 3)]
    assert all(len(set(shot)) == 1 for shot in shots)
    assert all(before[0] != after[0] for before, after in itertools.pairwise(shots))
    assert {shot[0] for shot in shots[:10]} == set(range(10))


def test_a_video_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "taken.avi").mkdir()
    with pytest.raises(OSError, match="could not open"):
        scene.write_video(tmp_path / "taken.avi", seconds=1)


def test_the_command_line_writes_both(tmp_path, capsys):
    where = ["--folders", str(tmp_path / "f"), "--video", str(tmp_path / "v.avi")]
    scene.main([*where, "--count", "10", "--seconds", "0.5", "--fps", "10", "--seed", "3"])
    assert len(list((tmp_path / "f").rglob("*.png"))) == 10
    assert len(json.loads((tmp_path / "v.avi.truth.json").read_text(encoding="utf-8"))["frames"]) == 5
    assert "10 pictures" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        scene.main([])


# --- what is committed


def test_committed_files_are_small():
    sizes = {path.name: path.stat().st_size for path in EXAMPLE.iterdir() if path.is_file()}
    assert {f"{name}.keras" for name in MODELS} <= sizes.keys()
    assert {name: size for name, size in sizes.items() if size >= 500_000} == {}
    assert max(sizes[f"{name}.keras"] for name in MODELS) < 200_000


def test_labels_are_in_the_order_of_the_folders():
    assert tuple((EXAMPLE / "labels.txt").read_text(encoding="utf-8").splitlines()) == scene.CLASSES


@pytest.mark.parametrize("name", MODELS)
def test_each_model_says_what_it_reached_and_expects(name):
    about = json.loads((EXAMPLE / f"{name}.json").read_text(encoding="utf-8"))
    assert about["held_out_accuracy"] >= 0.97
    assert about["input"]["shape"] == [None, 48, 48, 1]
    assert about["labels"] == list(scene.CLASSES)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # two minutes on two free cores
def test_training_again_lands_within_half_a_point(tmp_path):
    if importlib.util.find_spec("tensorflow") is None:  # asked for without importing it: that takes seconds
        pytest.skip("tensorflow is not installed")
    output = tmp_path / "again.keras"
    subprocess.run([sys.executable, str(EXAMPLE / "train.py"), "-o", str(output)], check=True)
    reached, committed = (
        json.loads(path.read_text(encoding="utf-8"))["held_out_accuracy"]
        for path in (output.with_suffix(".json"), EXAMPLE / "digits.json")
    )
    assert math.isclose(reached, committed, abs_tol=0.005)

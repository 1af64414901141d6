"""Draws scikit-learn's handwritten digits into camera-like frames: the pictures and the video of the demo.

The 1797 digits are split once and for ever: what `train.py` learns from (TRAIN) and what the written folders
and videos show (HELD_OUT) never overlap, so an accuracy measured on them is an accuracy on unseen digits.
Needs numpy, cv2 and scikit-learn; no TensorFlow.

    python scene.py --folders scenes --video digits.avi --seed 1 --seconds 20
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits

CLASSES = tuple(str(number) for number in range(10))
TRAIN_COUNT = 1300  # of 1797; the other 497 are held out
SPLIT_SEED = 20240229  # changing it leaks digits the committed models were trained on into the evaluation
FOLDER_SIZE = (160, 120)  # width, height in pixels
VIDEO_SIZE = (320, 240)

_GLYPH_ZOOM = 8  # glyph pixels per cell of the 8x8 original
_INK_FLOOR = 0.02  # below this the glyph is paper: cubic interpolation rings around every stroke


@dataclass(frozen=True)
class Digits:
    """Digits and what they show: `images` float32 (N, 8, 8) in 0..1, `labels` int64 (N,) in 0..9."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Pose:
    """Where a digit stands, in terms that do not depend on the frame's size.

    scale: height of the upright box around the ink, as a share of the frame's height
    angle: rotation in degrees, counter-clockwise
    aspect: width factor against the original, 1 is unchanged
    across, down: position within the room the box leaves free, each 0..1
    """

    scale: float
    angle: float
    aspect: float
    across: float
    down: float


@dataclass(frozen=True)
class Look:
    """Light and sensor: levels in 0..255, `blur` (sigma) as a share of the frame's height."""

    background: float
    ink: float
    gradient: float  # difference between the lit side and the dark side, in levels
    gradient_angle: float  # radians
    tint: tuple[float, float, float]  # factor per channel, B G R
    blur: float
    noise: float  # sigma in levels, independent for every pixel and channel


@cache
def split_digits() -> tuple[Digits, Digits]:
    """Return (train, held out): 1300 and 497 digits, the same ones on every call and every machine."""
    bundled = load_digits()
    images = (bundled.images / 16.0).astype(np.float32)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    parts = (np.sort(order[:TRAIN_COUNT]), np.sort(order[TRAIN_COUNT:]))
    train, held_out = (Digits(images[part], bundled.target[part]) for part in parts)
    for digits in (train, held_out):  # cached, so nobody may write into them
        digits.images.flags.writeable = digits.labels.flags.writeable = False
    return train, held_out


def random_pose(rng: np.random.Generator) -> Pose:
    """Draw a pose: 30 to 90 % of the frame's height, up to 12 degrees aslant, anywhere in the frame."""
    return Pose(
        scale=rng.uniform(0.3, 0.9),
        angle=rng.uniform(-12, 12),
        aspect=rng.uniform(0.9, 1.15),
        across=rng.uniform(0, 1),
        down=rng.uniform(0, 1),
    )


def random_look(rng: np.random.Generator) -> Look:
    """Draw light and sensor for bright ink on a darker ground; the two stay at least 80 levels apart."""
    background = rng.uniform(15, 110)
    return Look(
        background=background,
        ink=rng.uniform(background + 80, 250),
        gradient=rng.uniform(0, 50),
        gradient_angle=rng.uniform(0, 2 * math.pi),
        tint=tuple(rng.uniform(0.92, 1.08, size=3)),
        blur=rng.uniform(0.002, 0.01),
        noise=rng.uniform(2, 10),
    )


def glyph_of(digit: np.ndarray) -> np.ndarray:
    """Enlarge a digit, (8, 8) in 0..1, to a smooth glyph, float32 (80, 80) in 0..1 with an empty rim."""
    padded = np.pad(digit.astype(np.float32), 1)  # strokes that touch the edge fade out instead of being cut
    side = padded.shape[0] * _GLYPH_ZOOM
    glyph = np.clip(cv2.resize(padded, (side, side), interpolation=cv2.INTER_CUBIC), 0, 1)
    glyph[glyph < _INK_FLOOR] = 0
    return glyph


def place(glyph: np.ndarray, pose: Pose, size: tuple[int, int], margin: float) -> np.ndarray:
    """Return the 2x3 matrix, float64, that maps glyph pixels to frame pixels.

    The box around the turned ink lies wholly inside the frame, `margin` pixels away from its edges.
    """
    width, height = size
    turn = math.radians(pose.angle)
    linear = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    linear = linear * [pose.aspect, 1.0]
    low, high = _ink_box(glyph, linear)
    box_width, box_height = high - low
    room = np.array([width - 1 - 2 * margin, height - 1 - 2 * margin])
    zoom = min(pose.scale * height / box_height, room[0] / box_width, room[1] / box_height)
    corner = margin + (room - zoom * (high - low)) * [pose.across, pose.down]
    return np.column_stack([zoom * linear, corner - zoom * low])


def _ink_box(glyph: np.ndarray, linear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (low, high), float64 (2,) x and y each: the upright box of the ink after `linear`."""
    rows, columns = np.nonzero(glyph)
    # Bilinear sampling spreads every ink pixel by up to one pixel to all sides.
    corners = [np.stack([columns + dx, rows + dy], axis=1) for dx in (-1, 1) for dy in (-1, 1)]
    turned = np.concatenate(corners) @ linear.T
    return turned.min(axis=0), turned.max(axis=0)


def ink_mask(digit: np.ndarray, pose: Pose, size: tuple[int, int], blur: float = 0.0) -> np.ndarray:
    """Return how much ink covers each pixel: float32 (height, width) in 0..1.

    digit: (8, 8) in 0..1; size: (width, height) in pixels; blur: sigma as a share of the frame's height
    """
    glyph = glyph_of(digit)
    sigma = blur * size[1]
    reach = math.ceil(3 * sigma)
    matrix = place(glyph, pose, size, margin=reach + 1)
    mask = cv2.warpAffine(glyph, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    if reach:
        mask = cv2.GaussianBlur(mask, (2 * reach + 1, 2 * reach + 1), sigma)
    return mask


def backdrop(look: Look, size: tuple[int, int]) -> np.ndarray:
    """Return the empty scene, a straight gradient around `look.background`: float32 (height, width)."""
    width, height = size
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32) * math.cos(look.gradient_angle)
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32) * math.sin(look.gradient_angle)
    return np.float32(look.background) + np.float32(look.gradient) * (x[None, :] + y[:, None])


def render(
    digit_8x8: np.ndarray,
    rng: np.random.Generator,
    size: tuple[int, int] = FOLDER_SIZE,
    pose: Pose | None = None,
    look: Look | None = None,
) -> np.ndarray:
    """Draw one digit, (8, 8) in 0..1, as a camera would see it: uint8 BGR (height, width, 3).

    size is (width, height) in pixels. Pose and look are drawn from `rng` unless given, the noise always
    is: the same arguments and the same generator state give the same frame.
    """
    pose = pose or random_pose(rng)
    look = look or random_look(rng)
    ground = backdrop(look, size)
    mask = ink_mask(digit_8x8, pose, size, look.blur)
    gray = ground + mask * (np.float32(look.ink) - ground)
    frame = rng.standard_normal((*gray.shape, 3), dtype=np.float32)
    frame *= np.float32(look.noise)
    frame += gray[..., None] * np.array(look.tint, dtype=np.float32)
    return np.clip(np.rint(frame, out=frame), 0, 255, out=frame).astype(np.uint8)


def write_folders(out_dir: Path | str, count: int = 600, seed: int = 1) -> list[Path]:
    """Write `count` frames of held-out digits as out_dir/CLASS/scene-NNNN.png and return their paths.

    The classes take turns, so each gets the same number of pictures, give or take one. PNG is lossless: what
    is measured on these files is not blurred by a codec. Scenes of an earlier run in the folders are removed.
    """
    out_dir = Path(out_dir)
    for name in CLASSES:
        (out_dir / name).mkdir(parents=True, exist_ok=True)
        for old in (out_dir / name).glob("scene-*.png"):
            old.unlink()
    picks = _picks(np.random.default_rng((seed, 0)))
    paths = []
    for index in range(count):
        number = index % len(CLASSES)
        frame = render(next(picks[number]), np.random.default_rng((seed, 1, index)), FOLDER_SIZE)
        path = out_dir / CLASSES[number] / f"scene-{index:04d}.png"
        if not cv2.imwrite(str(path), frame):
            raise OSError(f"could not write {path}")
        paths.append(path)
    return paths


def _picks(rng: np.random.Generator) -> list[Iterator[np.ndarray]]:
    """Return, for each class, an endless shuffled walk through its held-out digits, each (8, 8) in 0..1."""

    def walk(images: np.ndarray, walk_rng: np.random.Generator) -> Iterator[np.ndarray]:
        while True:
            yield from images[walk_rng.permutation(len(images))]

    held_out = split_digits()[1]
    walks = rng.spawn(len(CLASSES))
    return [walk(held_out.images[held_out.labels == number], walks[number]) for number in range(len(CLASSES))]


def video_frames(
    count: int, fps: int = 30, seed: int = 1, size: tuple[int, int] = VIDEO_SIZE
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield `count` pairs of (uint8 BGR frame (height, width, 3), class): one digit a second, drifting.

    A digit glides from one random pose to another under one light; then the next one takes its place at once.
    Two digits in a row are never of one class, so every change can be seen in the classes alone.
    """
    plan_rng, noise_rng = np.random.default_rng((seed, 2)).spawn(2)
    picks, order = _picks(plan_rng), _class_order(plan_rng)
    for index in range(count):
        if index % fps == 0:
            number = next(order)
            digit = next(picks[number])
            start, end, look = random_pose(plan_rng), random_pose(plan_rng), random_look(plan_rng)
        pose = _between(start, end, (index % fps) / max(fps - 1, 1))
        yield render(digit, noise_rng, size, pose, look), number


def _class_order(rng: np.random.Generator) -> Iterator[int]:
    """Yield classes for ever, all ten in every ten, never the same one twice in a row."""
    last = -1
    while True:
        block = rng.permutation(len(CLASSES)).tolist()
        if block[0] == last:
            block = block[1:] + block[:1]
        yield from block
        last = block[-1]


def _between(start: Pose, end: Pose, share: float) -> Pose:
    """Return the pose `share` (0..1) of the way, slow at both ends as a hand moves."""
    eased = share * share * (3 - 2 * share)
    values = {f.name: getattr(start, f.name) * (1 - eased) + getattr(end, f.name) * eased for f in fields(Pose)}
    return Pose(**values)


def write_video(
    path: Path | str, seconds: float = 20, fps: int = 30, seed: int = 1, size: tuple[int, int] = VIDEO_SIZE
) -> list[int]:
    """Write an MJPG .avi of held-out digits and `PATH.truth.json`; return the class of every frame.

    The JSON holds fps, seed, width, height, and `frames`: the class, 0..9, of each frame in order.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # OpenCV's own writer: in every build, with or without FFmpeg.
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter.fourcc(*"MJPG"), float(fps), size)
    if not writer.isOpened():
        raise OSError(f"could not open {path} for writing; the name must end in .avi")
    truth = []
    try:
        writer.set(cv2.VIDEOWRITER_PROP_QUALITY, 85)
        for frame, number in video_frames(round(seconds * fps), fps, seed, size):
            writer.write(frame)
            truth.append(number)
    finally:
        writer.release()
    about = {"fps": fps, "seed": seed, "width": size[0], "height": size[1], "frames": truth}
    truth_path(path).write_text(json.dumps(about) + "\n", encoding="utf-8")
    return truth


def truth_path(video: Path | str) -> Path:
    """Return where the ground truth of a video lies: beside it, with `.truth.json` after its name."""
    return Path(f"{video}.truth.json")


def main(arguments: list[str] | None = None) -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description="Render held-out handwritten digits as a camera sees them.")
    parser.add_argument("--folders", type=Path, metavar="DIR", help="write pictures, one folder a class")
    parser.add_argument("--count", type=int, default=600, help="how many pictures (default: %(default)s)")
    parser.add_argument("--video", type=Path, metavar="FILE", help="write an .avi and FILE.truth.json")
    parser.add_argument("--seconds", type=float, default=20, help="length of the video (default: %(default)s)")
    parser.add_argument("--fps", type=int, default=30, help="frames a second (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same scenes (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not (options.folders or options.video):
        parser.error("nothing to do: give --folders DIR, --video FILE or both")
    if options.folders:
        paths = write_folders(options.folders, options.count, options.seed)
        print(f"{len(paths)} pictures in {options.folders}")
    if options.video:
        truth = write_video(options.video, options.seconds, options.fps, options.seed)
        print(f"{len(truth)} frames in {options.video}, their classes in {truth_path(options.video)}")


if __name__ == "__main__":
    main()

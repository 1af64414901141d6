"""Linting without a model: what pictures, tensors and labels show by themselves."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from edgeferry_converter.data.dataset import Dataset
from edgeferry_converter.data.finding import Finding, Severity, finding
from edgeferry_converter.data.picture_facts import FileFacts, PictureFacts, file_facts, picture_facts
from edgeferry_converter.data.pictures import read_bytes
from edgeferry_converter.data.split import CALIBRATION_MAX
from edgeferry_converter.errors import DataError

__all__ = ["LIMIT", "lint_classes", "lint_count", "lint_images", "lint_tensors", "near_duplicates"]

LIMIT = 1000  # samples looked at, evenly taken
MIN_CALIBRATION = 100
MIN_A_CLASS = 10
SHARE = 0.05  # of the samples; what fewer show is a note, what more show a warning
GRAY_SHARE = 0.1
DUPLICATE_SHARE = 0.1
HAMMING = 4  # of 64 bits
THUMB_DIFFERENCE = 6.0  # levels, mean over the thumbnail: hashes of plain pictures meet by chance

Named = tuple[str, PictureFacts, FileFacts]


def lint_images(
    dataset: Dataset,
    input_size: tuple[int, int],
    calibration: Sequence[int] | None = None,
    limit: int = LIMIT,
) -> list[Finding]:
    """Every check that needs pictures only.

    Args:
        dataset: of frames.
        input_size: (width, height) of the model's input.
        calibration: which samples calibrate; None for all.
        limit: pictures looked at.
    """
    findings = [*lint_count(dataset, calibration), *lint_classes(dataset)]
    facts, broken = _look(dataset, _evenly(len(dataset), limit))
    if broken:
        message = f"{_of(broken, len(facts) + len(broken))} cannot be decoded or do not fit their labels"
        findings.append(finding(101, "error", message, "Remove them, or save them again.", broken))
    if not facts:
        return findings
    return [
        *findings,
        *_flat(facts),
        *_duplicates(facts),
        *_small(facts, input_size),
        *_files(facts),
        *_gray(facts),
    ]


def lint_tensors(dataset: Dataset, calibration: Sequence[int] | None = None, limit: int = LIMIT) -> list[Finding]:
    """Every check of ready tensors; their copies are counted byte by byte."""
    findings = [*lint_count(dataset, calibration), *lint_classes(dataset)]
    flat: list[str] = []
    broken: list[str] = []
    hashes: Counter[bytes] = Counter()
    chosen = _evenly(len(dataset), limit)
    for i in chosen:
        try:
            sample = dataset.load(i)
        except DataError:
            broken.append(dataset.name(i))
            continue
        arrays = [sample.inputs[name] for name in sorted(sample.inputs)]
        hashes[hashlib.sha256(b"".join(a.tobytes() for a in arrays)).digest()] += 1
        if all(a.size and (a == a.flat[0]).all() for a in arrays) and sum(a.size for a in arrays) > 1:
            flat.append(sample.name)
    if broken:
        message = f"{_of(broken, len(chosen))} cannot be read (NaN, infinity, or another shape)"
        findings.append(finding(101, "error", message, "Remove or repair them.", broken))
    findings += _constant(flat, len(chosen), "hold one number all over")
    copies = sum(count for count in hashes.values() if count > 1)
    if copies >= DUPLICATE_SHARE * len(chosen) and copies > 1:
        message = f"{copies} of {len(chosen)} samples ({copies / len(chosen):.0%}) are copies of one another"
        findings.append(finding(104, "warning", message, "Calibrate with samples that differ."))
    return findings


def lint_count(dataset: Dataset, calibration: Sequence[int] | None = None) -> list[Finding]:
    """Too few samples to calibrate with, in all or of a class."""
    indices = range(len(dataset)) if calibration is None else calibration
    findings = []
    if len(indices) < MIN_CALIBRATION:
        message = f"{len(indices)} samples calibrate, {MIN_CALIBRATION} at least give settled ranges"
        findings.append(finding(102, "warning", message, "Add samples (a fifth of --data calibrates)."))
    counts = Counter(key for key in map(dataset.label_key, indices) if key is not None)
    # Classes that --data holds, so that one without any calibration sample counts as well.
    known = {key for key in map(dataset.label_key, range(len(dataset))) if key is not None}
    needed = min(MIN_A_CLASS, CALIBRATION_MAX // len(known)) if known else 0
    poor = sorted((counts[key], key) for key in known if counts[key] < needed)
    if poor and dataset.task_hint == "classify":
        message = f"{len(poor)} of {len(known)} classes calibrate with fewer than {needed} samples"
        told = [f"{_class_name(dataset, key)}: {count}" for count, key in poor]
        findings.append(finding(103, "warning", message, "Add samples of these classes.", told))
    return findings


def lint_classes(dataset: Dataset) -> list[Finding]:
    """One class only."""
    if dataset.task_hint != "classify":
        return []
    keys = [dataset.label_key(i) for i in range(len(dataset))]
    present = {key for key in keys if key is not None}
    if len(present) == 1:
        message = f"all {len(keys)} samples are of one class ({_class_name(dataset, present.pop())})"
        return [finding(105, "error", message, "A classifier cannot be judged on one class; add the others.")]
    return []


def near_duplicates(facts: Sequence[PictureFacts]) -> list[tuple[int, int]]:
    """Pairs (earlier, later) of pictures that look alike, one for each later picture that has such a pair.

    Alike are pictures whose hashes differ in 4 of 64 bits at most and whose thumbnails, each without its mean,
    differ by 6 levels at most on the average.
    """
    hashes = np.array([f.dhash for f in facts], np.uint64).view(np.uint8).reshape(-1, 8)
    thumbs = np.stack([f.thumb for f in facts])
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1).astype(np.uint8)
    pairs = []
    for i in range(1, len(facts)):  # a row at a time: all pairs at once would take n^2 memory
        distance = bits[hashes[:i] ^ hashes[i]].sum(axis=1)
        near = np.flatnonzero(distance <= HAMMING)
        alike = near[np.abs(thumbs[near] - thumbs[i]).mean(axis=1) <= THUMB_DIFFERENCE]
        if len(alike):
            pairs.append((int(alike[0]), i))
    return pairs


def _look(dataset: Dataset, indices: Sequence[int]) -> tuple[list[Named], list[str]]:
    facts, broken = [], []
    for i in indices:
        path = dataset.image_path(i)
        try:
            frame = dataset.load(i).frame
            of_file = FileFacts() if path is None else file_facts(path, read_bytes(path))
        except DataError:
            broken.append(dataset.name(i))
            continue
        facts.append((dataset.name(i), picture_facts(frame), of_file))
    return facts, broken


def _evenly(count: int, limit: int) -> list[int]:
    return list(range(count)) if count <= limit else [i * count // limit for i in range(limit)]


def _flat(facts: Sequence[Named]) -> list[Finding]:
    names = [name for name, picture, _ in facts if picture.flat]
    black = sum(picture.black for _, picture, _ in facts)
    return _constant(names, len(facts), f"are black or of one colour all over ({black} black)")


def _constant(names: Sequence[str], total: int, what: str) -> list[Finding]:
    if names and len(names) == total:
        remedy = "Nothing can be learnt from them: give --data real samples."
        return [finding(106, "error", f"all {total} samples {what}", remedy, names)]
    remedy = "Remove them: a camera that was covered or not warm yet says nothing about the model's ranges."
    return _shared(107, names, total, what, remedy)


def _duplicates(facts: Sequence[Named]) -> list[Finding]:
    lively = [(name, picture) for name, picture, _ in facts if not picture.flat]
    if len(lively) < 2:
        return []
    pairs = near_duplicates([picture for _, picture in lively])
    alike = len({i for pair in pairs for i in pair})
    if alike < DUPLICATE_SHARE * len(facts):
        return []
    message = f"{_of(range(alike), len(facts))} look like another one"
    remedy = "Take every n-th frame of a video, or fewer of a burst: such images calibrate like one."
    examples = [f"{lively[a][0]} and {lively[b][0]}" for a, b in pairs]
    return [finding(104, "warning", message, remedy, examples)]


def _small(facts: Sequence[Named], input_size: tuple[int, int]) -> list[Finding]:
    width, height = input_size
    names = [name for name, p, _ in facts if p.width < width or p.height < height]
    what = f"are smaller than the model's input ({width}x{height})"
    return _shared(
        108, names, len(facts), what, "Enlarged pixels are not what the camera gives: use larger images."
    )


def _files(facts: Sequence[Named]) -> list[Finding]:
    checks: tuple[tuple[int, Callable[[FileFacts], bool], str, str], ...] = (
        (
            109,
            lambda f: f.orientation != 1,
            "carry an EXIF rotation, which is carried out here and which other tools pass over",
            "Check that training saw them upright, or save the pixels rotated and without the tag.",
        ),
        (
            110,
            lambda f: f.alpha,
            "have an alpha channel, which is dropped: hidden colours come to light",
            "Put them on the background that training had and save them without alpha.",
        ),
        (
            111,
            lambda f: f.deep,
            "have more than 8 bits a channel, of which the upper 8 are used",
            "Save them with 8 bits, scaled as in training: 10 or 12 bits in 16 become nearly black.",
        ),
    )
    findings = []
    for number, shows, what, remedy in checks:
        names = [name for name, _, of_file in facts if shows(of_file)]
        if names:
            findings.append(finding(number, "warning", f"{_of(names, len(facts))} {what}", remedy, names))
    return findings


def _gray(facts: Sequence[Named]) -> list[Finding]:
    names = [name for name, picture, _ in facts if picture.gray and not picture.flat]
    colored = len(facts) - len(names)
    if not colored or len(names) < GRAY_SHARE * len(facts):
        return []
    message = f"{_of(names, len(facts))} are gray, the others have colours"
    remedy = "Remove them, or check that the camera gives gray pictures as well."
    return [finding(112, "warning", message, remedy, names)]


def _shared(number: int, names: Sequence[str], total: int, what: str, remedy: str) -> list[Finding]:
    if not names:
        return []
    severity: Severity = "warning" if len(names) >= SHARE * total else "note"
    return [finding(number, severity, f"{_of(names, total)} {what}", remedy, names)]


def _of(some: Sequence[object], total: int) -> str:
    return f"{len(some)} of {total} samples ({len(some) / total:.0%})"


def _class_name(dataset: Dataset, key: int) -> str:
    return repr(dataset.labels[key]) if key < len(dataset.labels) else f"class {key}"

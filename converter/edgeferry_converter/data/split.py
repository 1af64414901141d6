"""The division into samples that calibrate and samples that judge: seeded, stratified, nothing on both sides."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgeferry_converter.data.dataset import Dataset
from edgeferry_converter.errors import DataError

__all__ = ["CALIBRATION_MAX", "CALIBRATION_SHARE", "Division", "Split", "divide", "split"]

CALIBRATION_SHARE = 0.2
CALIBRATION_MAX = 500  # min/max ranges settle long before; more only costs time
MIN_CONTENTS = 2  # of a class: one to calibrate with, one to judge by


@dataclass(frozen=True)
class Division:
    """Numbers of samples on each side; ``duplicates`` is how many samples are copies of another."""

    calibration: tuple[int, ...]
    evaluation: tuple[int, ...]
    duplicates: int


@dataclass(frozen=True)
class Split:
    """Samples to calibrate with and samples to judge by; no content is in both.

    Attributes:
        calibration: numbers in the data set.
        evaluation: numbers in the evaluation data set when ``apart``, else in the data set.
        seed: of the shuffle.
        duplicates: how many samples of the data set are copies of another one in it; copies stay on one side.
        overlap: how many samples of the data set were left out because the evaluation data set holds them too.
        apart: whether the evaluation samples are a data set of their own.
        calibration_sha256: over the calibration samples' contents, in order.
    """

    calibration: tuple[int, ...]
    evaluation: tuple[int, ...]
    seed: int
    duplicates: int
    overlap: int
    apart: bool
    calibration_sha256: str

    def record(self) -> dict[str, Any]:
        """What the report says of it; plain values, no paths."""
        return {
            "calibration": len(self.calibration),
            "evaluation": len(self.evaluation),
            "seed": self.seed,
            "duplicates": self.duplicates,
            "evaluation_apart": self.apart,
            "overlap_removed": self.overlap,
            "calibration_sha256": self.calibration_sha256,
        }


def split(dataset: Dataset, seed: int = 0, evaluation: Dataset | None = None) -> Split:
    """Divide a data set, or take all of it to calibrate with where another one judges.

    Without ``evaluation`` a fifth calibrates, 500 samples at most (but one of each class), every class in the same
    share.  With it all of ``dataset`` may calibrate, again 500 at most, except what ``evaluation`` holds too.

    Args:
        dataset: what ``--data`` names.
        seed: the same seed and the same contents give the same division.
        evaluation: what ``--eval-data`` names.

    Raises:
        DataError: too little is left for one of the sides, or the two data sets have different classes.
    """
    if evaluation is None:
        keys = [dataset.content_key(i) for i in range(len(dataset))]
        classes = [dataset.label_key(i) for i in range(len(dataset))]
        parts = divide(keys, classes, seed, dataset.name, each_class=dataset.task_hint == "classify")
        sha256 = _sha256(keys, parts.calibration)
        return Split(parts.calibration, parts.evaluation, seed, parts.duplicates, 0, False, sha256)
    _check_same(dataset, evaluation)
    key = _key(dataset, evaluation)
    judging = {key(evaluation, i) for i in range(len(evaluation))}
    keys = [key(dataset, i) for i in range(len(dataset))]
    left = [i for i, content in enumerate(keys) if content not in judging]
    if not left:
        raise DataError(
            "the evaluation data holds every sample of the calibration data",
            "What judges must not have calibrated: give --eval-data other samples, or leave it out.",
        )
    groups = _groups(left, keys)
    chosen = _sample(groups, dataset.label_key, seed)
    duplicates = len(left) - len(groups)
    everything = tuple(range(len(evaluation)))
    return Split(chosen, everything, seed, duplicates, len(keys) - len(left), True, _sha256(keys, chosen))


def divide(
    keys: Sequence[str],
    classes: Sequence[int | None],
    seed: int,
    name: Callable[[int], str],
    each_class: bool = True,
) -> Division:
    """Divide samples given by content and class.

    Args:
        keys: a content's hash a sample.
        classes: a class a sample, or None.
        seed: of the shuffle.
        name: of a sample, for messages.
        each_class: every class must be on both sides; else classes of a single content are divided together.

    Raises:
        DataError: a class, or everything, consists of copies of one sample.
    """
    share = min(CALIBRATION_SHARE, CALIBRATION_MAX / max(1, len(keys)))
    groups = _groups(range(len(keys)), keys)
    strata = _strata(groups, classes.__getitem__)
    if not each_class:
        rare = [c for c, members in strata.items() if len(members) < MIN_CONTENTS]
        strata.setdefault(None, []).extend(group for c in rare if c is not None for group in strata[c])
        strata = {c: members for c, members in strata.items() if members and (c is None or c not in rare)}
        if len(strata.get(None, [])) == 1 and len(strata) > 1:  # a single rest has to join another stratum
            strata[min(c for c in strata if c is not None)] += strata.pop(None)
    calibration: list[int] = []
    evaluation: list[int] = []
    cuts = _cuts(strata, share, 1)
    for label, members in sorted(strata.items(), key=_by_class):
        if len(members) < MIN_CONTENTS:
            what = "samples" if label is None else f"images of class {label}"
            raise DataError(f"the {what} are copies of one image ({name(members[0][0])})", "Add different ones.")
        random.Random(f"{seed}/{label}").shuffle(members)  # noqa: S311 - a division, not a secret
        calibration += [i for group in members[: cuts[label]] for i in group]
        evaluation += [i for group in members[cuts[label] :] for i in group]
    if not calibration:
        raise DataError("the data holds no sample", "Give --data something to calibrate with.")
    return Division(tuple(calibration), tuple(evaluation), len(keys) - len(groups))


def _groups(indices: Sequence[int], keys: Sequence[str]) -> list[list[int]]:
    """Samples of one content together, in the order of their hashes, whatever order they came in."""
    groups: dict[str, list[int]] = {}
    for i in indices:
        groups.setdefault(keys[i], []).append(i)
    return [group for _, group in sorted(groups.items())]


def _strata(
    groups: Sequence[list[int]], label_key: Callable[[int], int | None]
) -> dict[int | None, list[list[int]]]:
    strata: dict[int | None, list[list[int]]] = {}
    for group in groups:
        strata.setdefault(label_key(group[0]), []).append(group)
    return strata


def _by_class(item: tuple[int | None, Any]) -> tuple[bool, int]:
    return item[0] is not None, item[0] or 0


def _cuts(strata: dict[int | None, list[list[int]]], share: float, left: int) -> dict[int | None, int]:
    """How many contents of each class calibrate: one at least, ``left`` less than all at most.

    Rounding each class by itself may exceed the bound in total; the largest cuts give way.
    """
    cuts = {c: min(len(members) - left, max(1, round(share * len(members)))) for c, members in strata.items()}
    while sum(cuts.values()) > max(CALIBRATION_MAX, len(cuts)):
        largest = max(cuts.values())
        for c in [c for c, cut in cuts.items() if cut == largest][: sum(cuts.values()) - CALIBRATION_MAX]:
            cuts[c] -= 1
    return cuts


def _sample(groups: Sequence[list[int]], label_key: Callable[[int], int | None], seed: int) -> tuple[int, ...]:
    """Up to ``CALIBRATION_MAX`` contents, one sample of each, every class in the same share."""
    share = min(1.0, CALIBRATION_MAX / len(groups))
    chosen: list[int] = []
    strata = _strata(groups, label_key)
    cuts = _cuts(strata, share, 0)
    for label, members in sorted(strata.items(), key=_by_class):
        random.Random(f"{seed}/{label}").shuffle(members)  # noqa: S311 - a choice, not a secret
        chosen += [group[0] for group in members[: cuts[label]]]
    return tuple(chosen)


def _key(dataset: Dataset, evaluation: Dataset) -> Callable[[Dataset, int], str]:
    """A content's hash that means the same in both data sets."""
    if dataset.keyed_by == evaluation.keyed_by and dataset.kind == evaluation.kind:
        return lambda data, i: data.content_key(i)
    return _decoded_key  # a file's bytes tell nothing about an array's: compare pixels


def _decoded_key(dataset: Dataset, i: int) -> str:
    digest = hashlib.sha256()
    for _, array in sorted(dataset.load(i).inputs.items()):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _check_same(dataset: Dataset, evaluation: Dataset) -> None:
    if dataset.kind != evaluation.kind:
        raise DataError(
            f"--data holds {dataset.kind}, --eval-data holds {evaluation.kind}",
            "Both must reach the model the same way: images in both, or ready tensors in both.",
        )
    if dataset.labels and evaluation.labels and dataset.labels != evaluation.labels:
        strange = sorted(set(dataset.labels) ^ set(evaluation.labels)) or ["their order"]
        raise DataError(
            f"--data and --eval-data have different classes ({', '.join(strange[:5])})",
            "Name the classes alike in both, or give --labels.",
        )
    if not len(evaluation):
        raise DataError("the evaluation data holds no sample", "Give --eval-data something to judge by.")


def _sha256(keys: Sequence[str], indices: Sequence[int]) -> str:
    digest = hashlib.sha256()
    for i in indices:
        digest.update(bytes.fromhex(keys[i]))
    return digest.hexdigest()

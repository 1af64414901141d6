"""Whether a pose estimator puts keypoints where the float model does."""

from __future__ import annotations

import numpy as np
from edgeferry_runtime.postprocessing import Postprocessing
from edgeferry_runtime.preprocessing import Placement
from edgeferry_runtime.tasks.keypoints import Keypoints

from edgeferry_converter.errors import DataError
from edgeferry_converter.metric import Metric, Outputs

__all__ = ["DISTANCE", "KeypointAgreement"]

DISTANCE = 0.05  # of the input's sides


class KeypointAgreement(Metric):
    """Share of the float model's keypoints that lie within ``DISTANCE``; the label is the float model's outputs.

    Judged are the keypoints whose score (and whose pose's, where the model scores poses) reaches the declared
    threshold in the float model.  A pose is compared with the one that lies nearest, since two poses of about
    one score may change places.  Source: PCK, the percentage of correct keypoints (Yang and Ramanan, Articulated
    Human Detection with Flexible Mixtures of Parts, 2013), with the input's sides as the measure.
    """

    name = f"PCK@{DISTANCE:g}"

    def __init__(self, declared: Postprocessing) -> None:
        self._keypoints = Keypoints(declared)
        self._threshold = np.float32(declared.threshold)
        self._hits: list[int] = []
        self._judged: list[int] = []

    def __len__(self) -> int:
        return len(self._judged)

    def add(
        self,
        outputs: Outputs,
        label: Outputs,
        placement: Placement | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> None:
        here, there = self._keypoints.candidates(outputs), self._keypoints.candidates(label)
        if here.points.shape != there.points.shape:
            raise DataError(f"poses are {list(here.points.shape)}, the float model's {list(there.points.shape)}")
        judged = there.scores >= self._threshold
        if self._keypoints.declared.decoder == "movenet-multipose":
            judged &= (there.poses >= self._threshold)[:, None]
        hits = 0
        for points, seen in zip(there.points, judged, strict=True):
            if seen.any():
                distances = np.linalg.norm(here.points[:, seen] - points[seen], axis=2)
                nearest = distances[distances.mean(axis=1).argmin()]
                hits += int((nearest <= DISTANCE).sum())
        self._hits.append(hits)
        self._judged.append(int(judged.sum()))

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        judged = weights @ np.array(self._judged, np.float64)
        hits = weights @ np.array(self._hits, np.float64)
        return np.where(judged > 0, hits / np.maximum(judged, 1), np.nan)

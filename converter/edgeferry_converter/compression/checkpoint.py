"""Checkpoints of a training run: one file with all it takes to go on, replaced as a whole after every epoch."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeferry_converter.errors import TrainingError

__all__ = ["CHECKPOINT", "TrainingError", "TrainingState", "load_state", "put", "save_state", "values"]

CHECKPOINT = "training.npz"
META = "meta"


@dataclass
class TrainingState:
    """A run after some whole epochs.

    Attributes:
        run: what tells this run from others: options, shapes, data; JSON values.
        epochs: the figures of each finished epoch, by name.
        weights: every variable of the model, in its order.
        optimizer: every variable of the optimiser.
        best: the weights of the best epoch, empty where none is chosen.
        best_value: the monitored figure there.
        best_epoch: its number from 0; -1 for none.
    """

    run: Mapping[str, Any]
    epochs: list[dict[str, float]] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    optimizer: list[np.ndarray] = field(default_factory=list)
    best: list[np.ndarray] = field(default_factory=list)
    best_value: float = float("inf")
    best_epoch: int = -1


_ARRAYS = ("weights", "optimizer", "best")


def save_state(state: TrainingState, folder: Path) -> Path:
    """Write ``folder/training.npz`` beside the one that is there, then in its place.

    Raises:
        TrainingError: the file cannot be written; the one before is still there.
    """
    path = folder / CHECKPOINT
    part = path.with_suffix(".part")
    meta = {key: getattr(state, key) for key in ("run", "epochs", "best_value", "best_epoch")}
    arrays = {f"{kind}.{i}": array for kind in _ARRAYS for i, array in enumerate(getattr(state, kind))}
    arrays[META] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise TrainingError(
            f"{path}: the checkpoint cannot be written: {error.strerror}", "Make room, or name another folder."
        ) from error
    return path


def load_state(folder: Path, run: Mapping[str, Any]) -> TrainingState | None:
    """The checkpoint of an interrupted run; None where there is none.

    Raises:
        TrainingError: it is damaged, or of a run with other options, another model or other data.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            fields: dict[str, Any] = json.loads(file[META].tobytes())
            for kind in _ARRAYS:
                fields[kind] = [file[f"{kind}.{i}"] for i in range(_count(file.files, kind))]
        state = TrainingState(**fields)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(
            f"{path}: is no readable checkpoint: {error}", "Remove it to begin anew.", path
        ) from error
    other = [key for key in (*run, *state.run) if state.run.get(key) != run.get(key)]
    if other:
        told = ", ".join(f"{key} {state.run.get(key)!r} there, {run.get(key)!r} here" for key in other[:3])
        raise TrainingError(
            f"{path}: is of another run ({told})"[:600],
            "Go on with the same model, data and options, or remove the file to begin anew.",
            path,
        )
    return state


def _count(names: list[str], kind: str) -> int:
    return sum(name.startswith(f"{kind}.") for name in names)


def values(variables: Iterable[Any]) -> list[np.ndarray]:
    """Copies of Keras variables' values."""
    return [np.asarray(variable).copy() for variable in variables]


def put(variables: Iterable[Any], arrays: Iterable[np.ndarray]) -> None:
    """Give Keras variables the values of arrays, in order."""
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)

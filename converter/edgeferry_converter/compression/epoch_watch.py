"""The callback that watches a training run: stops at NaN, keeps the best epoch, writes a checkpoint after each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from edgeferry_converter.compression.checkpoint import (
    CHECKPOINT,
    TrainingError,
    TrainingState,
    put,
    save_state,
    values,
)

__all__ = ["EpochWatch", "Sequence"]

Tell = Callable[[int, int, Mapping[str, float]], None]


class Sequence(keras.utils.PyDataset):  # type: ignore[misc] # Keras is not annotated
    """Batches by number, as Keras takes them."""

    def __init__(self, batches: Any) -> None:
        super().__init__()
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        return self.batches[i]


class EpochWatch(keras.callbacks.Callback):  # type: ignore[misc] # Keras is not annotated
    """See the module; the last callback of a run, so that it sees what the others made of the weights.

    Args:
        state: the run so far; kept up to date.
        batches: whose ``epoch`` is set.
        patience: epochs without a better ``monitor`` before the run stops; 0 for all epochs, and the last weights.
        settled_step: epochs that end before this optimiser step are neither best nor waited for.
        monitor: name of the figure that is to fall.
        folder: for checkpoints; None for none.
        progress: called after every step.
    """

    def __init__(
        self,
        state: TrainingState,
        batches: Any,
        patience: int,
        settled_step: int,
        monitor: str,
        folder: Path | None,
        progress: Tell | None,
    ) -> None:
        super().__init__()
        self.state, self._batches, self._patience = state, batches, patience
        self._settled_step, self._monitor, self._folder, self._tell = settled_step, monitor, folder, progress

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._batches.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        figures = logs or {}
        if not math.isfinite(figures.get("loss", 0.0)):
            raise self._diverged(f"the loss is {figures['loss']} at step {batch + 1}")
        if self._tell is not None:
            done = len(self.state.epochs) * self.params["steps"] + batch + 1
            self._tell(done, self.params["epochs"] * self.params["steps"], figures)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        figures = {name: float(value) for name, value in (logs or {}).items()}
        weights = values(self.model.variables)
        if not all(np.isfinite(array).all() for array in weights if array.dtype.kind == "f"):
            raise self._diverged("weights are NaN or infinite after its last step")
        state = self.state
        state.epochs.append(figures)
        state.weights, state.optimizer = weights, values(self.model.optimizer.variables)
        self._judge(figures[self._monitor], epoch)
        if self._folder is not None:
            save_state(state, self._folder)

    def _judge(self, value: float, epoch: int) -> None:
        state = self.state
        if not self._patience or int(self.model.optimizer.iterations) < self._settled_step:
            return
        if value < state.best_value:
            state.best, state.best_value, state.best_epoch = state.weights, value, epoch
        elif epoch - state.best_epoch >= self._patience:
            self.model.stop_training = True

    def _diverged(self, what: str) -> TrainingError:
        """Training must stop; the model gets the weights of the last good epoch back."""
        number = len(self.state.epochs)
        if self.state.weights:
            put(self.model.variables, self.state.weights)
        told = f"the weights of epoch {number} are kept" if number else "no epoch was finished"
        return TrainingError(
            f"training diverged in epoch {number + 1} ({what}); {told}",
            "Lower the learning rate, look at the data, and train into another checkpoint folder.",
            self._folder / CHECKPOINT if self._folder is not None and number else None,
        )

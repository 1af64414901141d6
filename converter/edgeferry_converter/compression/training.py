"""Fine-tuning: a model, data and options in; trained weights, a history and checkpoints out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgeferry_converter.compression.checkpoint import TrainingError, TrainingState, load_state, put, values
from edgeferry_converter.errors import OptionError

if TYPE_CHECKING:
    from edgeferry_converter.compression.epoch_watch import Tell

__all__ = [
    "Batches",
    "Data",
    "History",
    "TrainOptions",
    "TrainingError",
    "choose_loss",
    "fine_tune",
    "gives_probabilities",
    "steps_per_epoch",
]

OPTIMIZERS = ("adam", "sgd")
MOMENTUM = 0.9
PASSING = ("Dropout", "Flatten", "Identity", "Reshape")  # layers that change no number when the model answers
SUM_TOLERANCE = 0.05  # how far the sum of probabilities may be from 1; of quantised ones it is never quite 1


class Batches(Protocol):
    """One epoch's batches by number: (inputs, labels), or (inputs,) without labels.

    Inputs are float32 [n, ...] as the model takes them, one array or a tuple; labels int32 [n] (classes),
    int32 [n, 1] (for a single output) or float32 [n, k].

    Attributes:
        epoch: decides order and augmentation; set it before reading.
    """

    epoch: int

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> tuple[Any, ...]: ...

    def __iter__(self) -> Iterator[tuple[Any, ...]]: ...


class Data(Protocol):
    """What a model is trained with.

    Attributes:
        classes: how many the model tells apart, None where it tells none apart.
        task: "classify", "regress", or "" without labels or with the model's own.
        description: for messages and reports.
    """

    classes: int | None
    task: str
    description: str

    @property
    def size(self) -> int:
        """How many samples there are."""

    def batches(self, batch_size: int, seed: int = 0, augment: str | None = None) -> Batches:
        """The same batches for the same arguments; ``augment`` None is what suits the data."""


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        epochs: how often all samples are seen.
        learning_rate: at the start; it falls to 0 along a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983).
        batch_size: samples a step.
        seed: of everything random.
        patience: epochs without a better loss before training stops; the best weights are then taken.  The loss
            is that of the validation data where there is any.  0: all epochs, the last weights.
        optimizer: "adam", or "sgd" with momentum 0.9.
        weight_decay: decoupled, a step; 0 for none.
        augment: "none", "shift", "flip-shift"; None for what suits the data.

    Raises:
        OptionError: a value is out of its range.
    """

    epochs: int = 10
    learning_rate: float = 1e-3
    batch_size: int = 128
    seed: int = 0
    patience: int = 0
    optimizer: str = "adam"
    weight_decay: float = 0.0
    augment: str | None = None

    def __post_init__(self) -> None:
        rules = {
            "epochs is 1 or more": self.epochs >= 1,
            "learning_rate is greater than 0": self.learning_rate > 0,
            "batch_size is 1 or more": self.batch_size >= 1,
            "patience is 0 or more": self.patience >= 0,
            "weight_decay is 0 or more": self.weight_decay >= 0,
            f"optimizer is one of {', '.join(OPTIMIZERS)}": self.optimizer in OPTIMIZERS,
        }
        broken = [rule for rule, kept in rules.items() if not kept]
        if broken:
            raise OptionError(f"cannot train so: {'; '.join(broken)}", "Correct the recipe or the options.")


@dataclass(frozen=True)
class History:
    """What happened.

    Attributes:
        epochs: figures of each epoch by name: loss, accuracy, val_loss, ...
        best_epoch: whose weights were taken, from 0.
        resumed_at: how many epochs an earlier, interrupted run had finished.
        stopped_early: patience ran out.
    """

    epochs: tuple[Mapping[str, float], ...]
    best_epoch: int
    resumed_at: int
    stopped_early: bool


def fine_tune(
    model: Any,
    data: Data,
    options: TrainOptions,
    callbacks: Sequence[Any] = (),
    folder: Path | None = None,
    progress: Tell | None = None,
    *,
    validation: Data | None = None,
    loss: Any = None,
    metrics: Sequence[Any] = (),
) -> History:
    """Train a model in place.

    A run that was interrupted goes on after its last whole epoch when it is called again in the same way; on one
    machine its weights are then those of an uninterrupted one.  Two attributes of callbacks are known here:
    ``settled_step``, before which no epoch is the best (a pruning schedule's end), and ``settings``, a text that
    an interrupted run must have in common with the one that goes on with it.

    Args:
        model: a keras.Model; it is compiled here.
        data: what to train with.
        options: how.
        callbacks: keras.callbacks.Callback each, run before this function's own.
        folder: where the checkpoint ``training.npz`` is kept; None for none.
        progress: called as (steps done, of how many, figures so far in this epoch).
        validation: data that says when to stop; never what judges the result.
        loss: None for the one that suits labels and output, see ``choose_loss``.
        metrics: with a loss of one's own; else accuracy for classes.

    Raises:
        OptionError: no loss suits, see ``choose_loss``.
        TrainingError: the loss became NaN (the model then has its last good weights, and the last good checkpoint
            is kept), or the checkpoint is damaged or of another run.
    """
    import keras

    from edgeferry_converter.compression.epoch_watch import EpochWatch, Sequence

    keras.utils.set_random_seed(options.seed)
    batches = data.batches(options.batch_size, options.seed, options.augment)
    if loss is None:
        loss, metrics = choose_loss(model, data, batches[0])
    optimizer = _optimizer(options, len(batches))
    # XLA on a CPU compiles for longer than it saves, and knows no fake quantisation.
    model.compile(optimizer, loss=loss, metrics=list(metrics), jit_compile=False)
    optimizer.build(model.trainable_variables)
    run = _run(model, data, options, callbacks, len(batches))
    state = (load_state(folder, run) if folder is not None else None) or TrainingState(run)
    resumed_at = len(state.epochs)
    if resumed_at:
        put(model.variables, state.weights)
        put(optimizer.variables, state.optimizer)
    else:
        state.weights = values(model.variables)
    stopped = _has_stopped(state, options)
    if not stopped and resumed_at < options.epochs:
        settled = max((getattr(callback, "settled_step", 0) for callback in callbacks), default=0)
        monitor = "val_loss" if validation is not None else "loss"
        watch = EpochWatch(state, batches, options.patience, settled, monitor, folder, progress)
        model.fit(
            Sequence(batches),
            epochs=options.epochs,
            initial_epoch=resumed_at,
            callbacks=[*callbacks, watch],
            validation_data=_validation(validation, options),
            shuffle=False,  # the batches are, by seed and epoch
            verbose=0,
        )
    if state.best_epoch >= 0:
        put(model.variables, state.best)
    epochs = tuple(state.epochs)
    best = state.best_epoch if state.best_epoch >= 0 else len(epochs) - 1
    return History(epochs, best, resumed_at, len(epochs) < options.epochs)


def steps_per_epoch(data: Data, options: TrainOptions) -> int:
    """Optimiser steps an epoch, which schedules are counted in."""
    return len(data.batches(options.batch_size, options.seed, options.augment))


def choose_loss(model: Any, data: Data, batch: tuple[Any, ...]) -> tuple[Any, list[str]]:
    """The loss and metrics that suit labels and output.

    Classes: cross-entropy, of logits where the output is no probability; values: mean squared error; otherwise
    the loss the model is compiled with.

    Args:
        batch: one of the data's.

    Raises:
        OptionError: there are no labels, or none of these fits and the model is not compiled.
    """
    import keras

    if len(batch) > 1 and len(model.outputs or ()) < 2:
        if data.task == "regress":
            return keras.losses.MeanSquaredError(), []
        if data.task == "classify":
            logits = not gives_probabilities(model, batch[0])
            single = np.ndim(batch[1]) == 2
            loss = keras.losses.BinaryCrossentropy if single else keras.losses.SparseCategoricalCrossentropy
            threshold = 0.0 if logits else 0.5
            accuracy = keras.metrics.BinaryAccuracy("accuracy", threshold=threshold) if single else "accuracy"
            return loss(from_logits=logits), [accuracy]
    if len(batch) > 1 and getattr(model, "compiled", False) and getattr(model, "loss", None):
        return model.loss, []
    if len(batch) < 2:
        raise OptionError(
            f"{data.description}: has no labels to train with",
            "Give labelled data, distil from a teacher, or recalibrate only.",
        )
    raise OptionError(
        f"no loss suits the model {model.name!r} and {data.description}: only classes and values are known here",
        "Give a model that is compiled with its own loss.",
    )


def gives_probabilities(model: Any, inputs: Any) -> bool:
    """Whether the one output is a softmax or sigmoid already, told by the layers, or else by the answers."""
    activation = _last_activation(model)
    if activation:
        return activation in ("softmax", "sigmoid")
    answers = np.asarray(model(inputs, training=False))
    inside = answers.min() >= 0 and answers.max() <= 1
    return bool(inside and (answers.shape[-1] == 1 or np.abs(answers.sum(axis=-1) - 1).max() < SUM_TOLERANCE))


def _last_activation(model: Any) -> str:
    """The activation before the one output, "linear" for none; "" where layers do not tell."""
    outputs = getattr(model, "outputs", None) or []
    if len(outputs) != 1:
        return ""
    tensor = outputs[0]
    while True:
        layer = tensor._keras_history.operation
        kind = type(layer).__name__
        if getattr(layer, "outputs", None):  # a nested model
            return _last_activation(layer)
        if kind in ("Softmax", "Sigmoid"):
            return kind.lower()
        if (function := getattr(layer, "activation", None)) is not None:
            return str(getattr(function, "__name__", type(function).__name__)).lower()
        if kind not in PASSING:
            return ""
        tensor = layer.input


def _optimizer(options: TrainOptions, steps: int) -> Any:
    import keras

    rate = keras.optimizers.schedules.CosineDecay(options.learning_rate, options.epochs * steps)
    decay = options.weight_decay or None
    if options.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=MOMENTUM, weight_decay=decay)
    return keras.optimizers.Adam(rate, weight_decay=decay)


def _run(model: Any, data: Data, options: TrainOptions, callbacks: Sequence[Any], steps: int) -> dict[str, Any]:
    """What an interrupted run must have in common with the one that goes on with it."""
    return {
        **asdict(options),
        "data": data.description,
        "size": data.size,
        "steps": steps,
        "callbacks": [getattr(callback, "settings", type(callback).__name__) for callback in callbacks],
        "weights": [list(variable.shape) for variable in model.variables],
    }


def _has_stopped(state: TrainingState, options: TrainOptions) -> bool:
    waited = len(state.epochs) - 1 - state.best_epoch
    return bool(options.patience and state.best_epoch >= 0 and waited >= options.patience)


def _validation(validation: Data | None, options: TrainOptions) -> Any:
    if validation is None:
        return None
    from edgeferry_converter.compression.epoch_watch import Sequence

    return Sequence(validation.batches(options.batch_size, options.seed, "none"))

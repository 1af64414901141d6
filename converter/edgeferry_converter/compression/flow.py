"""A recipe carried out, top to bottom: prune, recalibrate, train, round; a smaller model and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from edgeferry_converter.compression import importance
from edgeferry_converter.compression.channel_pruning import ChannelBudget, share_that_fits, shrink
from edgeferry_converter.compression.distillation import DistillOptions, distill
from edgeferry_converter.compression.macs import macs
from edgeferry_converter.compression.qat import QatOptions, computed_in_float, freeze, observe, prepare, strip
from edgeferry_converter.compression.recalibration import recalibrate
from edgeferry_converter.compression.reconstruction import reconstruct
from edgeferry_converter.compression.rounded_statistics import rounded_statistics
from edgeferry_converter.compression.schedule import ConstantSparsity, PolynomialDecay, Schedule
from edgeferry_converter.compression.training import Data, History, TrainOptions, fine_tune, steps_per_epoch
from edgeferry_converter.errors import ModelError, OptionError
from edgeferry_converter.recipe import Prune, Recipe

__all__ = ["Compression", "Measures", "compress"]

RECONSTRUCTED = 32  # batches that layers are fitted on when channels went
RANKED_ON = 64  # batches that say which channels matter
RANKED_BATCH = 16  # gradients of a large batch cancel before they are squared
HELD_OUT = 0.1  # of the training data, that says when to stop early
OBSERVED = 32  # batches that give QAT its first ranges

Tell = Callable[[str, int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Measures:
    """What a target may be a share of beside MACs and parameters; each takes a keras.Model.

    Attributes:
        bytes: of its int8 file.
        latency: milliseconds of its int8 file on this machine.
    """

    bytes: Callable[[Any], float]
    latency: Callable[[Any], float]


@dataclass
class Compression:
    """What a recipe made of a model.

    Attributes:
        model: a plain keras.Model, not compiled: the source's layers, or fewer channels of them.
        qat: the model with its roundings, whose int8 file needs no calibration; None without QAT.  ``model`` has
            its weights as they were rounded, and activations that are not.
        control: trained as long without rounding; None without QAT.
        figures: what was done and measured, as plain values.
    """

    model: Any
    qat: Any | None = None
    control: Any | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def compress(
    source: Any, recipe: Recipe, data: Data, teacher: Any, measures: Measures, folder: Path, tell: Tell
) -> Compression:
    """Carry a recipe out.

    Args:
        source: a functional or Sequential keras.Model; it is not changed.
        recipe: one that needs data; without prune and qat only the statistics of BatchNormalization change.
        data: to rank channels and to train with.
        teacher: the keras.Model whose answers are learned from, where the recipe distils.
        measures: for targets in bytes or latency.
        folder: where checkpoints go; a run that was interrupted goes on from them.
        tell: hears (what is trained, steps done, of how many, figures so far).

    Raises:
        ModelError: the model cannot be pruned or rounded; says what still works.
        OptionError: the recipe does not fit the model or the data.
        TrainingError: training diverged; the last good checkpoint is kept.
    """
    # Statistics of other images alone can cost points: everything below begins with those of these images.
    trainer = _Trainer(recipe, data, _recalibrated(teacher, data), folder, tell)
    found = Compression(_recalibrated(source, data), figures={"recipe": recipe.values()})
    if recipe.prune is not None:
        steps = {"channels": _channels, "magnitude": _magnitude}
        steps[recipe.prune.kind](found, recipe.prune, trainer, measures)
    if recipe.qat is not None:
        _rounded(found, recipe, trainer)
    found.figures["training"] = trainer.histories
    found.figures["macs"] = _macs(source, found.model)
    found.figures["parameters"] = [int(source.count_params()), int(found.model.count_params())]
    return found


class _Trainer:
    """Trains a model in place, by labels or by a teacher too, each time in a folder of its own."""

    def __init__(self, recipe: Recipe, data: Data, teacher: Any, folder: Path, tell: Tell) -> None:
        self._all, self.data, self.recipe = data, data, recipe
        self._validation: Data | None = None
        if recipe.train.patience and hasattr(data, "hold_out"):
            self.data, self._validation = data.hold_out(HELD_OUT, recipe.train.seed)
        self.histories: list[dict[str, Any]] = []
        self._teacher, self._folder, self._tell = teacher, folder, tell
        self._teacher_is_ready = False

    def options(self, **changes: Any) -> TrainOptions:
        """The recipe's, with changes."""
        train = asdict(self.recipe.train)
        train["augment"] = None if train["augment"] else "none"
        return TrainOptions(**{**train, **changes})

    def train(self, name: str, model: Any, options: TrainOptions, callbacks: tuple[Any, ...] = ()) -> None:
        """Train; what happened is in ``histories``."""
        folder = self._folder / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)

        def told(done: int, total: int, figures: Mapping[str, float]) -> None:
            self._tell(name, done, total, figures)

        distilling = self.recipe.distill
        standing = None
        if distilling is None:
            history = fine_tune(model, self.data, options, callbacks, folder, told, validation=self._validation)
        else:
            self._prepare_teacher(distilling.teacher_epochs, distilling.teacher_learning_rate)
            how = DistillOptions(distilling.temperature, 1 - distilling.alpha, force=distilling.allow_weak)
            done = distill(
                model, self._teacher, self.data, options, how, callbacks, folder, told,
                validation=self._validation,
            )  # fmt: skip
            history, standing = done.history, done.standing
        self.histories.append(_history(name, history) | ({"teacher": asdict(standing)} if standing else {}))

    def _prepare_teacher(self, epochs: int, rate: float) -> None:
        """Train the teacher itself, once: what it teaches on is augmented, and it must know such images."""
        if epochs and not self._teacher_is_ready:
            plain = _Trainer(replace(self.recipe, distill=None), self._all, None, self._folder, self._tell)
            plain.train("teacher", self._teacher, plain.options(epochs=epochs, learning_rate=rate))
            self.histories += plain.histories
        self._teacher_is_ready = True


def _history(name: str, history: History) -> dict[str, Any]:
    return {
        "name": name,
        "epochs": [{key: round(float(value), 5) for key, value in epoch.items()} for epoch in history.epochs],
        "best_epoch": history.best_epoch,
        "resumed_at": history.resumed_at,
        "stopped_early": history.stopped_early,
    }


def _channels(found: Compression, prune: Prune, trainer: _Trainer, measures: Measures) -> None:
    """Remove channels in rounds, each followed by recalibration and training."""
    if prune.start_epochs:
        found.model = _copy(found.model)
        trainer.train("before pruning", found.model, trainer.options(epochs=prune.start_epochs))
    score = _score(prune.importance, trainer.data, trainer.recipe.train.seed)
    unit = prune.measure if prune.measure in ("macs", "parameters") else "macs"
    budget = ChannelBudget(unit, prune.align)
    target = prune.target
    if prune.measure in ("bytes", "latency"):
        measure = measures.bytes if prune.measure == "bytes" else measures.latency
        target = share_that_fits(found.model, measure, prune.target * measure(found.model), score, budget)
    epochs = dict.fromkeys(range(1, prune.rounds), prune.round_epochs)
    rounds = iter(range(1, prune.rounds + 1))
    images = _some_inputs(trainer.data) if prune.reconstruct else None

    def restore(tracing: Any, keeps: Mapping[str, Any], smaller: Any) -> None:
        if images is not None:
            reconstruct(tracing, keeps, smaller, images)

    def train(model: Any) -> None:
        recalibrate(model, trainer.data)
        number = next(rounds)
        options = trainer.options()
        trainer.train(f"round {number}", model, replace(options, epochs=epochs.get(number, options.epochs)))

    shrunk = shrink(found.model, target, score, prune.rounds, train, budget, restore)
    found.model = shrunk.model
    found.figures["prune"] = {
        "kind": "channels",
        "unit": unit,
        "before": shrunk.before,
        "after": shrunk.after,
        "channels": {name: list(counts) for name, counts in shrunk.counts.items()},
        "untouched": dict(shrunk.untouched),
    }


def _score(name: str, data: Data, seed: int) -> Callable[[Any], Mapping[str, Any]]:
    """How much channels matter, by the recipe's name for it."""
    if name == "l1":
        return importance.l1
    if name == "batch-norm":
        return importance.batch_norm_scale

    def taylor(tracing: Any) -> Mapping[str, Any]:
        batches = data.batches(RANKED_BATCH, seed, "none")
        loss = _loss(tracing.model, data, batches[0])
        return importance.taylor(tracing, islice(iter(batches), RANKED_ON), loss)

    return taylor


def _loss(model: Any, data: Data, batch: tuple[Any, ...]) -> Any:
    """The loss that channels are ranked by; None without labels."""
    from edgeferry_converter.compression.training import choose_loss

    return choose_loss(model, data, batch)[0] if len(batch) > 1 else None


def _magnitude(found: Compression, prune: Prune, trainer: _Trainer, measures: Measures) -> None:
    """Zero the smallest weights while the model trains; its layers stay as they are."""
    from edgeferry_converter.compression.magnitude import MagnitudePruning, zero_share

    model = _copy(found.model)
    options = trainer.options()
    steps = steps_per_epoch(trainer.data, options) * options.epochs
    callback = MagnitudePruning(
        _schedule(prune, steps), prune.pattern, include=prune.include, exclude=prune.exclude
    )
    trainer.train("magnitude pruning", model, options, (callback,))
    recalibrate(model, trainer.data)
    found.model = model
    found.figures["prune"] = {
        "kind": "magnitude",
        "zeros": {path: round(share, 4) for path, share in zero_share(model).items()},
        "skipped": dict(callback.skipped),
        "note": "zeros make the file smaller when it is compressed for transfer; its latency is the same",
    }


def _schedule(prune: Prune, steps: int) -> Schedule:
    end = max(1, round(steps * prune.until))
    frequency = max(1, min(100, end // 10))
    if prune.schedule == "constant":
        return ConstantSparsity(prune.sparsity, 0, end, frequency)
    return PolynomialDecay(prune.initial_sparsity, prune.sparsity, 0, end, frequency=frequency)


def _rounded(found: Compression, recipe: Recipe, trainer: _Trainer) -> None:
    """Train with the roundings of int8 in the loop."""
    qat = recipe.qat
    assert qat is not None  # noqa: S101 - the caller looked
    if recipe.prune is not None and recipe.prune.kind == "magnitude":
        raise OptionError(
            "QAT would train the zeros of magnitude pruning away", "Take one of [prune] and [qat], or channels."
        )
    if qat.float_epochs and recipe.prune is None:
        found.model = _copy(found.model)
        trainer.train("before rounding", found.model, trainer.options(epochs=qat.float_epochs))
        recalibrate(found.model, trainer.data)
    options = trainer.options(epochs=qat.epochs, learning_rate=qat.learning_rate)
    found.control = _copy(found.model)
    trainer.train("without rounding", found.control, options)
    how = QatOptions(qat.weights, qat.bits)
    rounded_statistics(found.model, trainer.data, how)
    prepared = prepare(found.model, how)
    observe(prepared, islice(_inputs(trainer.data), OBSERVED))
    trainer.train("with rounding", prepared, options)
    freeze(prepared)
    found.model, found.qat = _with_rounded_weights(prepared), prepared
    in_float = dict(computed_in_float(prepared))
    found.figures["qat"] = {"weights": qat.weights, "bits": qat.bits, "in_float": in_float}


def _with_rounded_weights(prepared: Any) -> Any:
    """The plain float model whose kernels have the values they have in the int8 file."""
    model = strip(prepared)
    for layer in prepared.layers:
        if type(layer).__name__ == "QuantizedKernel":
            model.get_layer(layer.layer.name).weights[0].assign(layer.quantized_kernel())
    return model


def _some_inputs(data: Data) -> Any:
    """Inputs that layers are fitted on, float32 [n, ...]; None where the model takes several."""
    first = list(islice(_inputs(data), RECONSTRUCTED))
    return None if isinstance(first[0], tuple) else np.concatenate(first)


def _inputs(data: Data) -> Iterator[Any]:
    return (batch[0] for batch in data.batches(32, 0, "none"))


def _recalibrated(model: Any, data: Data) -> Any:
    """A copy with the training data's own statistics in BatchNormalization; None for no model."""
    if model is None:
        return None
    copied = _copy(model)
    recalibrate(copied, data)
    return copied


def _copy(model: Any) -> Any:
    """The same layers with weights of their own."""
    import keras

    try:
        copied = keras.models.clone_model(model, clone_function=_named_copy)
    except ValueError as error:  # a subclass of keras.Model
        raise ModelError(
            f"{model.name}: cannot be copied layer by layer: {error}",
            "Build it with the functional API, or quantise it as it is.",
        ) from None
    copied.set_weights(model.get_weights())
    return copied


def _named_copy(layer: Any) -> Any:
    """A layer by its config; a class of one's own may leave its name out of that, and outputs are called by it."""
    copied = type(layer).from_config(layer.get_config())
    copied.name = layer.name
    return copied


def _macs(before: Any, after: Any) -> list[int] | None:
    """Multiply-accumulates before and after; None where they cannot be counted, as within a model's own class."""
    try:
        counted = [int(macs(before)), int(macs(after))]
    except ModelError:
        return None
    return counted if all(counted) else None

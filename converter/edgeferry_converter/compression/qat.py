"""Quantisation-aware training: a Keras model whose every rounding is there while it trains with plain ``fit``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgeferry_converter.compression.fold import (
    KERNEL_AXES,
    copy_layer,
    fold_batch_norm,
    producer,
    rebuilt,
    unfoldable,
)
from edgeferry_converter.compression.qat_plan import Plan, Rounding, plan
from edgeferry_converter.errors import ModelError, OptionError

__all__ = ["QatOptions", "computed_in_float", "freeze", "is_prepared", "observe", "prepare", "strip"]


@dataclass(frozen=True)
class QatOptions:
    """How to simulate an int8 model.

    Attributes:
        weights: "per-channel" (a scale for each output channel of Conv2D and DepthwiseConv2D) or "per-tensor".
        bits: of the weights, 8 or 4; activations have 8.
        delay_steps: training steps that only observe the ranges of activations; weights are rounded from the
            first step on.
        ranges: of activations: "averaged" over the batches, or "learned" by gradient after ``delay_steps``.
        momentum: of the averages.

    Raises:
        OptionError: for any other value.
    """

    weights: str = "per-channel"
    bits: int = 8
    delay_steps: int = 0
    ranges: str = "averaged"
    momentum: float = 0.99

    def __post_init__(self) -> None:
        wrong = [
            f"{name} = {getattr(self, name)!r} ({rule})"
            for name, good, rule in (
                ("weights", self.weights in ("per-channel", "per-tensor"), "per-channel or per-tensor"),
                ("bits", self.bits in (4, 8), "4 or 8"),
                ("delay_steps", self.delay_steps >= 0, "0 or more"),
                ("ranges", self.ranges in ("averaged", "learned"), "averaged or learned"),
                ("momentum", 0 <= self.momentum < 1, "0 or more, below 1"),
            )
            if not good
        ]
        if wrong:
            raise OptionError(f"quantisation-aware training cannot use {', '.join(wrong)}", "Correct the recipe.")


def prepare(model: Any, options: QatOptions = QatOptions()) -> Any:
    """A model to train with ``compile`` and ``fit`` that computes what the int8 model will.

    BatchNormalization is folded, kernels are fake-quantised, and activations are rounded where the int8 model
    rounds.  Names of layers stay.  ``keras.saving`` restores a saved one once ``fake_quant`` is imported.

    Folded BatchNormalization adapts to new data no more, and without it weights learn at a smaller rate: fine-tune
    the float model first, then train this one shortly at a tenth of the rate.

    Args:
        model: functional or Sequential; it is not changed.
        options: how.

    Returns:
        A functional model, not compiled.  Before ``fit`` or ``observe`` its ranges are -6 to 6.

    Raises:
        ModelError: a subclass of keras.Model, a model that is prepared already, of mixed precision, or without
            any layer to quantise.
    """
    if is_prepared(model):
        raise ModelError(f"{model.name} is prepared already", "Train it, or strip it first.")
    folded = _activations_apart(fold_batch_norm(model))
    decided = plan(folded)
    half = [layer.name for layer in folded.layers if layer.compute_dtype in ("float16", "bfloat16")]
    if half:
        raise ModelError(
            f"{model.name}: {', '.join(half[:3])} compute in 16 bits, in which int8 cannot be simulated",
            "Build the model with the dtype policy float32 and load the weights into it.",
        )
    if all(rounding in (Rounding.FLOAT, Rounding.KEPT) for rounding in decided.roundings.values()):
        raise ModelError(
            f"{model.name}: no layer can be quantised: {', '.join(decided.in_float) or 'it has none'}",
            "Build the model of Conv2D, DepthwiseConv2D and Dense layers with the functional API.",
        )
    return _Preparation(folded, decided, options).result()


def observe(model: Any, batches: Iterable[Any]) -> None:
    """Set the ranges of a prepared model from inputs alone; nothing else in it changes.

    Args:
        model: prepared.
        batches: what the model takes, float32 [n, ...] each.
    """
    rounders = _fake_quants(model)
    try:
        for layer in rounders:
            layer.watching = True
        for batch in batches:
            model(batch, training=False)
    finally:
        for layer in rounders:
            layer.watching = False


def freeze(model: Any) -> None:
    """Keep the ranges of a prepared model from now on; ``compile`` it again where they are learned."""
    for layer in _fake_quants(model):
        layer.freeze()


def strip(model: Any) -> Any:
    """The plain float model with the weights of a prepared one: BatchNormalization folded, nothing rounded.

    Returns:
        A functional model of Keras' own layers, not compiled.
    """
    import keras

    from edgeferry_converter.compression.fake_quant import FakeQuant, QuantizedActivation, QuantizedKernel

    activations = [layer for layer in model.layers if isinstance(layer, QuantizedActivation)]
    splits = {layer.name: layer.activation for layer in activations if layer.split}

    def make(layer: Any) -> Any:
        if isinstance(layer, QuantizedKernel):
            split = splits.get(_split_name(layer))
            return copy_layer(layer.layer, **({"activation": split} if split else {}))
        if isinstance(layer, QuantizedActivation) and not layer.split:
            return keras.layers.Activation(layer.activation, name=layer.name)
        return copy_layer(layer)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, FakeQuant):
            return args[0], args[0]  # in place of the step, which no one takes
        if isinstance(layer, QuantizedActivation):
            return args[0]
        return layer(args[0]) if type(layer).__name__ in KERNEL_AXES else layer(*args, **kwargs)

    return rebuilt(model, make, call)


def computed_in_float(model: Any) -> dict[str, str]:
    """Operations of a model, prepared or not, that will compute in float between int8 ones, and why.

    They cost time, and an accelerator for int8 ends before them.
    """
    folded = _activations_apart(strip(model) if is_prepared(model) else fold_batch_norm(model))
    return {**plan(folded).in_float, **unfoldable(folded)}


def is_prepared(model: Any) -> bool:
    """Whether ``prepare`` made the model."""
    return any(type(layer).__name__ == "FakeQuant" for layer in getattr(model, "layers", ()))


def _fake_quants(model: Any) -> list[Any]:
    return [layer for layer in model.layers if type(layer).__name__ == "FakeQuant"]


def _activations_apart(model: Any) -> Any:
    """The model with a QuantizedActivation after each layer whose activation is not fused."""
    from edgeferry_converter.compression.fake_quant import QuantizedActivation

    names = plan(model).activations
    after: dict[str, Any] = {}

    def make(layer: Any) -> Any:
        if layer.name not in names:
            return copy_layer(layer)
        after[layer.name] = QuantizedActivation(layer.activation, True, name=_split_name(layer))
        return copy_layer(layer, activation="linear")

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = layer(*args, **kwargs)
        return after[layer.name](outputs) if layer.name in after else outputs

    return rebuilt(model, make, call) if names else model


def _split_name(layer: Any) -> str:
    return f"{layer.name}_activation"


class _Preparation:
    """The prepared model in the making: who rounds what, by tensor."""

    def __init__(self, model: Any, decided: Plan, options: QatOptions) -> None:
        self._model = model
        self._plan = decided
        self._options = options
        self._rounders: dict[str, Any] = {}
        # The levels a tensor is on: the tensor, so that its id stays its own, the FakeQuant and its step.
        self._levels: dict[int, tuple[Any, Any, Any]] = {}

    def result(self) -> Any:
        return rebuilt(self._model, self._make, self._call, enter=self._enter)

    def _make(self, layer: Any) -> Any:
        from edgeferry_converter.compression.fake_quant import QuantizedActivation, QuantizedKernel

        kind = type(layer).__name__
        if kind in KERNEL_AXES:
            return QuantizedKernel(copy_layer(layer), self._options.bits, self._options.weights == "per-channel")
        if kind == "Activation":
            return QuantizedActivation(layer.activation, name=layer.name)
        return copy_layer(layer)

    def _enter(self, tensor: Any) -> Any:
        return self._rounded(tensor, self._rounder(producer(tensor).name, Rounding.OWN))

    def _call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        import keras

        taken = [self._levels[id(x)] for x in keras.tree.flatten((args, kwargs)) if id(x) in self._levels]
        if taken and type(layer).__name__ == "QuantizedKernel":
            kwargs["step"] = taken[0][2]
        outputs = layer(*args, **kwargs)
        rounding = self._plan.roundings[layer.name]
        if rounding is Rounding.LATER:
            return outputs
        if taken and rounding is Rounding.KEPT:
            self._levels[id(outputs)] = (outputs, *taken[0][1:])
            return outputs
        if taken and rounding is Rounding.INPUT:
            return self._rounded(outputs, taken[0][1], average=True)
        return self._rounded(outputs, self._rounder(layer.name, rounding))

    def _rounded(self, tensor: Any, rounder: Any, **how: Any) -> Any:
        """The tensor after ``rounder``; indices and tuples of tensors stay as they are."""
        if "float" not in str(getattr(tensor, "dtype", "")):
            return tensor
        rounded, step = rounder(tensor, **how)
        self._levels[id(rounded)] = (rounded, rounder, step)
        return rounded

    def _rounder(self, name: str, rounding: Rounding) -> Any:
        """One FakeQuant for all calls of an operation."""
        from edgeferry_converter.compression.fake_quant import TANH, UNIT, FakeQuant

        if name not in self._rounders:
            fixed = {Rounding.UNIT: UNIT, Rounding.TANH: TANH}.get(rounding)
            self._rounders[name] = FakeQuant(
                fixed,
                momentum=self._options.momentum,
                delay_steps=self._options.delay_steps,
                learned=self._options.ranges == "learned",
                name=f"{name}_range",
            )
        return self._rounders[name]

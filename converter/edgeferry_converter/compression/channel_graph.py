"""Follow the channels through a Keras model: who makes them, who passes them on, who reads them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeferry_converter.compression.channel_groups import OUT, Axis, Slots, Tracing, Weight, grouped
from edgeferry_converter.compression.channel_rules import RULES, Call, Untraced, kind_of
from edgeferry_converter.compression.macs import KERNELS, macs_per_element, nodes
from edgeferry_converter.compression.unfolding import unfolded

__all__ = ["prunable"]


def prunable(model: Any) -> Tracing:
    """Which channels of a model can be removed, and what has to go with them.

    The model's inputs and outputs stay as they are.  So does everything that touches a layer which mixes channels
    in a way that is not known here (``Tracing.untouched`` names it), and a layer that is called several times.
    The dependencies are those of Fang et al. 2023 (arXiv:2301.12900), kept channel by channel.

    Args:
        model: a functional or Sequential keras.Model, channels last; models inside it are unfolded.

    Raises:
        ModelError: a subclass of keras.Model, which has no graph.
    """
    trace = _Trace(unfolded(model))
    for node in nodes(trace.model):
        trace.visit(node)
    for tensor in trace.model.outputs:
        trace.slots.freeze(trace.at(tensor), "its channels are the model's output")
    return trace.result()


@dataclass
class _Made:
    """The channels a layer makes, to say later why they stay."""

    layer: str
    slots: np.ndarray


class _Trace:
    """What is known while the graph is walked."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.slots = Slots()
        self._tensors: dict[int, np.ndarray] = {}
        self._weights: list[Weight] = []
        self._sizes: dict[str, tuple[str, np.ndarray]] = {}
        self._made: list[_Made] = []
        self._opaque: dict[str, str] = {}
        self._calls = Counter(id(node.operation) for node in nodes(model))
        for tensor in model.inputs:
            self.slots.freeze(self._new(tensor), "its channels are the model's input")

    def at(self, tensor: Any) -> np.ndarray:
        """The slots of a tensor's last axis."""
        return self._tensors[id(tensor)]

    def visit(self, node: Any) -> None:
        """Give the outputs of one call their slots."""
        operation = node.operation
        inputs = [self.at(tensor) for tensor in node.input_tensors]
        call, before = Call(operation, node, inputs, self.slots), len(self.slots)
        try:
            rule = RULES.get(kind_of(operation))
            if rule is None:
                raise Untraced("what it does with the channels is not known")
            output = rule(call)
            if self._calls[id(operation)] > 1 and (call.axes or call.size):
                raise Untraced("it is called several times with the same weights")
        except Untraced as reason:
            self.slots.freeze(np.arange(before, len(self.slots)), str(reason))
            self._keep_whole(node, inputs, str(reason))
            return
        self._tensors[id(node.output_tensors[0])] = output
        self._record(call)

    def result(self) -> Tracing:
        """The groups, once every call was visited."""
        classes = self.slots.classes()
        weights = [_in_classes(weight, classes) for weight in self._weights]
        weights = [weight for weight in weights if weight.axes]
        sizes = {name: (key, classes[slots]) for name, (key, slots) in self._sizes.items()}
        reasons = {made.layer: self.slots.reason(int(made.slots[0])) for made in self._made if len(made.slots)}
        stays = {made.layer for made in self._made if (classes[made.slots] < 0).all()}
        untouched = {
            name: reason for name, reason in reasons.items() if name in stays and name not in self._opaque
        }
        return Tracing(self.model, grouped(weights), tuple(weights), sizes, {**self._opaque, **untouched})

    def _keep_whole(self, node: Any, inputs: list[np.ndarray], reason: str) -> None:
        operation = node.operation
        name, kind = operation.name, type(operation).__name__
        free = not all(self.slots.frozen(slots) for slots in inputs)
        if free or any(w.name in KERNELS for w in getattr(operation, "weights", ())):
            self._opaque[name] = f"{kind}: {reason}"
        for slots in inputs:
            self.slots.freeze(slots, f"its channels go to {name} ({kind}), which stays whole: {reason}")
        for tensor in node.output_tensors:
            self.slots.freeze(self._new(tensor), f"{kind}: {reason}")

    def _record(self, call: Call) -> None:
        name = call.layer.name
        if call.size is not None:
            self._sizes[name] = call.size
        macs = macs_per_element(call.node)
        for index, weight in enumerate(getattr(call.layer, "weights", ())):
            axes = tuple(Axis(*axis) for axis in call.axes.get(weight.name, ()))
            uses = macs if weight.name in KERNELS else 0
            if axes:
                self._weights.append(Weight(name, index, weight.name, tuple(weight.shape), uses, axes))
            self._made += [_Made(name, axis.slots) for axis in axes if axis.role == OUT and weight.name in KERNELS]

    def _new(self, tensor: Any) -> np.ndarray:
        last = tensor.shape[-1] if len(tensor.shape) else None
        slots = self._tensors[id(tensor)] = self.slots.new(last or 0)
        return slots


def _in_classes(weight: Weight, classes: np.ndarray) -> Weight:
    """The weight with the axes that can be cut."""
    axes = [replace(axis, slots=classes[axis.slots]) for axis in weight.axes]
    return replace(weight, axes=tuple(axis for axis in axes if (axis.slots >= 0).any()))

"""How many multiply-accumulates and parameters a model has, and would have with fewer channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeferry_converter.compression.channel_choice import CostTable
from edgeferry_converter.compression.channel_groups import Group, Tracing, Weight
from edgeferry_converter.compression.unfolding import unfolded
from edgeferry_converter.errors import ModelError

__all__ = ["KERNELS", "cost_table", "macs", "macs_per_element", "nodes", "parameters"]

# Every element of a kernel is used once for each output position; a transposed one once for each input position.
COUNTED = {
    **dict.fromkeys(("Dense", "Conv1D", "Conv2D", "Conv3D", "SeparableConv1D", "SeparableConv2D"), "out"),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), "out"),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), "in"),
}
KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel")


def nodes(model: Any) -> list[Any]:
    """The calls of a functional model in an order in which they can be computed, without its inputs."""
    by_depth = model._nodes_by_depth
    ordered = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    return [node for node in ordered if not node.is_input]


def macs_per_element(node: Any) -> int | None:
    """How often each element of the called layer's kernels is multiplied for one image.

    Returns:
        0 for a layer without kernels, None where the size of the feature map is not known.
    """
    kinds = [kind.__name__ for kind in type(node.operation).__mro__ if kind.__name__ in COUNTED]
    if not kinds:
        return 0
    tensor = (node.output_tensors if COUNTED[kinds[0]] == "out" else node.input_tensors)[0]
    positions = tensor.shape[1:-1]
    if getattr(node.operation, "data_format", "") == "channels_first":
        positions = tensor.shape[2:]
    return None if None in positions else int(np.prod(positions, dtype=np.int64))


def macs(model: Any) -> int:
    """Multiply-accumulates for one image: kernel elements times the positions at which they are applied.

    Convolutions of all kinds and Dense count, with the padding they multiply; biases, BatchNormalization, pooling,
    activations and attention do not (the definition of the MobileNet papers, arXiv:1704.04861 section 3.1).

    Args:
        model: a functional or Sequential keras.Model.

    Raises:
        ModelError: the size of a feature map is not known.
    """
    return sum(_node_macs(node) for node in nodes(unfolded(model)))


def parameters(model: Any) -> int:
    """All weights of a keras.Model, BatchNorm's statistics as well."""
    return int(model.count_params())


def cost_table(tracing: Tracing, unit: str = "macs", per_layer: Mapping[str, float] | None = None) -> CostTable:
    """What the model costs for every choice of channel counts.

    Args:
        unit: "macs" or "parameters".
        per_layer: layer name to the price of one unit there, 1 where it is missing: with milliseconds for each
            multiply-accumulate, measured layer by layer, the table ranks by latency.

    Raises:
        ModelError: the size of a feature map is not known.
        ValueError: an unknown unit.
    """
    if unit not in ("macs", "parameters"):
        raise ValueError(f"costs are in macs or parameters, not {unit!r}")
    prices = per_layer or {}
    terms = [(prices.get(w.layer, 1.0) * _uses(w, unit), w) for w in tracing.weights]
    whole = _whole(tracing.model, unit, prices)
    shape = (len(terms), 2, len(tracing.groups))
    factors, counts, fixed = np.zeros(len(terms)), np.zeros(shape), np.ones(shape[:2])
    for i, (uses, weight) in enumerate(terms):
        cut = int(np.prod([len(axis.slots) for axis in weight.axes]))
        factors[i] = uses * np.prod(weight.shape) / cut
        for j, axis in enumerate(weight.axes):
            counts[i, j] = [_occurrences(axis.slots, group) for group in tracing.groups]
            fixed[i, j] = np.count_nonzero(axis.slots < 0)
    table = CostTable(tuple((g.name, g.size) for g in tracing.groups), factors, counts, fixed, 0.0)
    return table.plus(whole - table.total(table.sizes))


def _uses(weight: Weight, unit: str) -> int:
    if unit == "parameters":
        return 1
    if weight.macs is None:
        raise _unknown_size(weight.layer)
    return weight.macs if weight.name in KERNELS else 0


def _whole(model: Any, unit: str, prices: Mapping[str, float]) -> float:
    if unit == "macs":
        return sum(prices.get(node.operation.name, 1.0) * _node_macs(node) for node in nodes(model))
    return sum(prices.get(layer.name, 1.0) * layer.count_params() for layer in model.layers)


def _occurrences(slots: np.ndarray, group: Group) -> int:
    return int(np.count_nonzero(slots == group.classes[0]))


def _node_macs(node: Any) -> int:
    uses = macs_per_element(node)
    if uses is None:
        raise _unknown_size(node.operation.name)
    if not uses:
        return 0
    return uses * sum(int(np.prod(w.shape)) for w in node.operation.weights if w.name in KERNELS)


def _unknown_size(layer: str) -> ModelError:
    return ModelError(
        f"{layer}: the size of its feature map is not known, so its multiply-accumulates cannot be counted",
        "Give the model's input size with --input-shape, or set the target in parameters.",
    )

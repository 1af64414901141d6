"""Magnitude pruning as a Keras callback: the smallest weights become zero and stay so, nothing is wrapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import keras
import numpy as np

from edgeferry_converter.compression.masks import BLOCK, STRUCTURES, common_shares
from edgeferry_converter.compression.schedule import Schedule
from edgeferry_converter.errors import OptionError

__all__ = ["MagnitudePruning", "zero_share"]

SCOPES = ("global", "layer")

# Layer -> its prunable weights and their input axis; None where a weight sums over positions, not over inputs.
# More special classes come first.
_KERNELS: tuple[tuple[type, Mapping[str, int | None]], ...] = (
    (keras.layers.SeparableConv1D, {"depthwise_kernel": None, "pointwise_kernel": -2}),
    (keras.layers.SeparableConv2D, {"depthwise_kernel": None, "pointwise_kernel": -2}),
    (keras.layers.DepthwiseConv1D, {"kernel": None}),
    (keras.layers.DepthwiseConv2D, {"kernel": None}),
    (keras.layers.Conv1DTranspose, {"kernel": -1}),
    (keras.layers.Conv2DTranspose, {"kernel": -1}),
    (keras.layers.Conv1D, {"kernel": -2}),
    (keras.layers.Conv2D, {"kernel": -2}),
    (keras.layers.Conv3D, {"kernel": -2}),
    (keras.layers.Dense, {"kernel": -2}),
)


@dataclass
class _Kernel:
    """One weight that is pruned: the layer it belongs to, its input axis, its mask (None before the first)."""

    layer: str
    variable: Any
    axis: int
    mask: Any = None


class MagnitudePruning(keras.callbacks.Callback):  # type: ignore[misc] # Keras is not annotated
    """Prunes while the model trains, to the schedule's sparsity.

    Masks are renewed at the schedule's steps and applied after every optimiser step, because momentum would revive
    zeros.  Steps are the optimiser's own (``optimizer.iterations``), so that a resumed run goes on where it was.
    Nothing is wrapped: the model keeps its layers, and there is nothing to strip.

    Args:
        schedule: how sparse at which step.
        structure: "unstructured", "1x4" or "2:4", see ``masks``.
        scope: "global" ranks the weights of all layers together, so that small layers that matter stay denser;
            "layer" gives every layer the same sparsity.  2:4 is the same in every layer anyway.
        include: patterns (fnmatch) of the names of layers to prune.
        exclude: patterns of the names of layers to leave whole.

    Attributes:
        skipped: layer name -> why it stays whole although its name was included.

    Raises:
        OptionError: no such structure; when training begins: no layer to prune is left, or the schedule ends after
            the training.
    """

    def __init__(
        self,
        schedule: Schedule,
        structure: str = "unstructured",
        scope: str = "global",
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if structure not in STRUCTURES:
            raise OptionError(
                f"there is no structure {structure!r} to prune to", f"Take one of {', '.join(STRUCTURES)}."
            )
        if scope not in SCOPES:
            raise OptionError(f"there is no scope {scope!r} of pruning", f"Take one of {', '.join(SCOPES)}.")
        if structure == "2:4" and schedule.final != 0.5:
            raise OptionError(f"2:4 sparsity is 50 %, the schedule ends at {schedule.final:.0%}", "End it at 0.5.")
        self.schedule, self.structure, self.scope = schedule, structure, scope
        self.include, self.exclude = tuple(include), tuple(exclude)
        self.skipped: dict[str, str] = {}
        self._kernels: list[_Kernel] = []

    @property
    def settled_step(self) -> int:
        """From this optimiser step on the sparsity grows no more; earlier weights are not the pruned model's."""
        return self.schedule.settled_step

    @property
    def settings(self) -> str:
        """What it was made with; a run that is resumed must have the same."""
        return f"{self.schedule}, {self.structure}, {self.scope}, {self.include} without {self.exclude}"

    def on_train_begin(self, logs: Any = None) -> None:
        self._check_schedule()
        self._kernels = list(self._find())
        if not self._kernels:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.skipped.items())
            raise OptionError(
                f"the model {self.model.name!r} has no layer to prune"
                f" (include {', '.join(self.include)}; exclude {', '.join(self.exclude) or 'nothing'})"
                + (f": {reasons}" if reasons else ""),
                "Patterns are compared with layer names; Conv, Dense and depthwise layers can be pruned.",
            )
        # Of a resumed run the zeros are the smallest weights, so that the same masks come out.
        if (update := self.schedule.last_update(self._step())) is not None:
            self._renew(update)
            self._apply()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.schedule.updates(step := self._step()):
            self._renew(step)
        self._apply()

    def sparsity(self) -> dict[str, float]:
        """Share of zeros by weight path, of the weights that are pruned."""
        return {kernel.variable.path: _zeros(kernel.variable) for kernel in self._kernels}

    def _step(self) -> int:
        return int(self.model.optimizer.iterations)

    def _renew(self, step: int) -> None:
        weights = [np.asarray(kernel.variable) for kernel in self._kernels]
        shares = [self.schedule.sparsity(step)] * len(weights)
        if self.scope == "global":
            shares = common_shares(weights, [kernel.axis for kernel in self._kernels], self.structure, shares[0])
        for kernel, array, share in zip(self._kernels, weights, shares, strict=True):
            mask = STRUCTURES[self.structure](array, share, kernel.axis)
            kernel.mask = keras.ops.convert_to_tensor(mask.astype(kernel.variable.dtype))

    def _apply(self) -> None:
        for kernel in self._kernels:
            if kernel.mask is not None:
                kernel.variable.assign(kernel.variable * kernel.mask)

    def _find(self) -> Any:
        self.skipped = {}
        # Keras has no public way to layers inside layers.
        for layer in self.model._flatten_layers(include_self=False, recursive=True):
            if not self._is_meant(layer.name):
                continue
            kernels = next((weights for kind, weights in _KERNELS if isinstance(layer, kind)), {})
            for attribute, axis in kernels.items():
                variable = getattr(layer, attribute)
                if why := self._obstacle(variable, axis):
                    self.skipped[layer.name] = why
                else:
                    yield _Kernel(layer.name, variable, -1 if axis is None else axis)

    def _is_meant(self, name: str) -> bool:
        return any(fnmatchcase(name, p) for p in self.include) and not any(
            fnmatchcase(name, p) for p in self.exclude
        )

    def _obstacle(self, variable: Any, axis: int | None) -> str:
        if not variable.trainable:
            return "is frozen"
        if self.structure == "unstructured":
            return ""
        if axis is None:
            return f"sums over positions, not over inputs, so there is no {self.structure}"
        if (inputs := variable.shape[axis]) % BLOCK:
            return f"has {inputs} inputs, no multiple of {BLOCK}"
        return ""

    def _check_schedule(self) -> None:
        params = self.params or {}
        if not params.get("steps") or not params.get("epochs"):
            return
        total = params["steps"] * params["epochs"]
        if self.settled_step > total:
            raise OptionError(
                f"the pruning schedule ends at step {self.settled_step}, the training after {total}"
                f" ({params['epochs']} epochs of {params['steps']} steps)",
                "End it earlier, or train longer.",
            )


def zero_share(model: Any) -> dict[str, float]:
    """Share of zeros of every prunable weight of a model, by weight path; for reports."""
    shares = {}
    for layer in model._flatten_layers(include_self=False, recursive=True):
        for attribute in next((weights for kind, weights in _KERNELS if isinstance(layer, kind)), {}):
            variable = getattr(layer, attribute)
            shares[variable.path] = _zeros(variable)
    return shares


def _zeros(variable: Any) -> float:
    array = np.asarray(variable)
    return 1 - np.count_nonzero(array) / array.size

"""Where a quantised graph rounds: which tensors get a range of their own, and which share or inherit one.

The rules are those of TensorFlow's converter (TFLite's quantisation specification): it fuses ReLU into what comes
before, moves data without rounding, and gives all inputs of a concatenation its output's scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from edgeferry_converter.compression.fold import KERNEL_AXES, outputs_of, users

__all__ = ["Plan", "Rounding", "plan"]


class Rounding(Enum):
    """What happens to the output of an operation."""

    OWN = "a range of its own"
    KEPT = "the input's levels, which it only moves"
    INPUT = "the input's range, to which it rounds again"
    UNIT = "0 to 255/256, as the specification says"
    TANH = "-1 to 127/128, as the specification says"
    LATER = "none: the operation after it rounds for both"
    FLOAT = "a range of its own; the operation computes in float"


@dataclass(frozen=True)
class Plan:
    """What to do with each operation of a functional model.

    Attributes:
        roundings: by the operation's name.
        activations: layers whose activation has to become one of its own, since what it takes is rounded too.
        in_float: operations with no quantised form, and why; they work, slowly.
    """

    roundings: dict[str, Rounding]
    activations: tuple[str, ...]
    in_float: dict[str, str]


FUSED = ("relu", "relu6")
ACTIVATIONS = {
    **dict.fromkeys(("linear", "relu", "relu6", "leaky_relu", "gelu"), Rounding.OWN),
    **dict.fromkeys(("silu", "swish", "hard_silu", "hard_swish"), Rounding.OWN),
    **dict.fromkeys(("softmax", "sigmoid"), Rounding.UNIT),
    "tanh": Rounding.TANH,
}
LAYERS = {
    **dict.fromkeys(KERNEL_AXES, Rounding.OWN),
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Concatenate"), Rounding.OWN),
    **dict.fromkeys(("GlobalAveragePooling2D", "Mean", "LeakyReLU"), Rounding.OWN),
    **dict.fromkeys(("MaxPooling2D", "GlobalMaxPooling2D", "Flatten", "Reshape", "Permute"), Rounding.KEPT),
    **dict.fromkeys(("ZeroPadding2D", "Cropping2D", "RepeatVector", "Identity"), Rounding.KEPT),
    **dict.fromkeys(("Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout"), Rounding.KEPT),
    "ActivityRegularization": Rounding.KEPT,
    "AveragePooling2D": Rounding.INPUT,
    "Softmax": Rounding.UNIT,
    "Sigmoid": Rounding.UNIT,
    "Tanh": Rounding.TANH,
}
ACTIVATION_LAYERS = ("Activation", "QuantizedActivation", "ReLU", "Relu", "Relu6")
# Operations that TFLite's kernels can end with a ReLU.
FUSING = {*KERNEL_AXES, "Add", "Subtract", "Multiply"}


def plan(model: Any) -> Plan:
    """Decide for a functional model, its BatchNormalization folded."""
    used, made = users(model), outputs_of(model)
    operations = {operation.name: operation for operation in model.operations if operation.name in made}
    roundings = {name: _rounding(operation) for name, operation in operations.items()}
    in_float = {
        name: f"TFLite has no int8 form of {_described(operations[name])}"
        for name, rounding in roundings.items()
        if rounding is Rounding.FLOAT
    }
    activations = tuple(
        name
        for name, operation in operations.items()
        if type(operation).__name__ in KERNEL_AXES and _activation(operation) not in ("linear", *FUSED)
    )
    for name, rounding in roundings.items():
        consumers = used.get(id(made[name][0]), [])
        alone = len(made[name]) == 1 and len(consumers) == 1 and name not in activations
        if rounding is Rounding.OWN and alone and _rounds_for(operations[name], consumers[0]):
            roundings[name] = Rounding.LATER
    return Plan(roundings, activations, in_float)


def _rounding(operation: Any) -> Rounding:
    kind = type(operation).__name__
    if kind in ACTIVATION_LAYERS:
        return ACTIVATIONS.get(_activation(operation), Rounding.FLOAT)
    if kind == "UpSampling2D":
        return Rounding.KEPT if operation.interpolation == "nearest" else Rounding.INPUT
    if kind == "Rescaling":
        return Rounding.OWN if operation.offset == 0 else Rounding.FLOAT
    return LAYERS.get(kind, Rounding.FLOAT)


def _activation(operation: Any) -> str:
    """The name of the activation function; "linear" for none."""
    kind = type(operation).__name__
    if kind in ("Relu", "Relu6"):
        return kind.lower()
    if kind == "ReLU":
        if operation.negative_slope or operation.threshold or operation.max_value not in (None, 6, 6.0):
            return "another relu"
        return "relu" if operation.max_value is None else "relu6"
    function = getattr(operation, "activation", None)
    return "linear" if function is None else str(getattr(function, "__name__", type(function).__name__)).lower()


def _rounds_for(operation: Any, consumer: Any) -> bool:
    """Whether the only consumer's output is rounded instead of the operation's."""
    if consumer is None:
        return False
    if type(consumer).__name__ == "Concatenate":
        return True
    fusable = type(consumer).__name__ in ACTIVATION_LAYERS and _activation(consumer) in FUSED
    return fusable and type(operation).__name__ in FUSING and _activation(operation) == "linear"


def _described(operation: Any) -> str:
    kind = type(operation).__name__
    return f"{kind} ({_activation(operation)})" if kind in ACTIVATION_LAYERS else kind

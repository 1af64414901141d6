"""What each kind of layer does with the channels of its input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from edgeferry_converter.compression.channel_groups import ALONG, IN, OUT, Slots

__all__ = ["RULES", "Call", "Untraced", "kind_of"]

CutAxis = tuple[int, str, np.ndarray]  # an axis counted from the end, its role, its slots


class Untraced(Exception):  # noqa: N818 - not an error: the layer stays whole, and the message is told as the reason
    """The channels cannot be followed through this call."""


@dataclass
class Call:
    """One call of a layer; a rule returns the slots of its output and notes which weights follow.

    Attributes:
        layer: the keras.Layer or keras.Operation.
        node: the call in the graph.
        inputs: slots of each input tensor's last axis.
        slots: all slots, to make, join and freeze some.
        axes: weight name to the axes that follow the channels.
        size: key of the layer's configuration that says how many channels it makes, and their slots.
    """

    layer: Any
    node: Any
    inputs: list[np.ndarray]
    slots: Slots
    axes: Mapping[str, tuple[CutAxis, ...]] = field(default_factory=dict)
    size: tuple[str, np.ndarray] | None = None

    @property
    def only(self) -> np.ndarray:
        """The slots of the one input there is."""
        if len(self.inputs) != 1:
            raise Untraced("it has several inputs")
        return self.inputs[0]

    @property
    def in_shape(self) -> tuple[int | None, ...]:
        """Of the first input."""
        return tuple(self.node.input_tensors[0].shape)

    @property
    def out_shape(self) -> tuple[int | None, ...]:
        """Of the output."""
        return tuple(self.node.output_tensors[0].shape)

    def follow(self, axes: Mapping[str, tuple[CutAxis, ...]]) -> None:
        """Cut these weights along with the channels, provided that the layer has no others."""
        if strange := [weight.name for weight in self.layer.weights if weight.name not in axes]:
            raise Untraced(f"it has weights of an unknown kind: {', '.join(strange)}")
        self.axes = axes


def kind_of(operation: Any) -> str:
    """ "Conv2D" for Keras' own layer of that name, "ops.Add" for an operation; "" for anything of another hand."""
    module, name = type(operation).__module__, type(operation).__name__
    if module.startswith("keras.src.layers."):
        return name
    return f"ops.{name}" if module.startswith("keras.src.ops.") else ""


def _pass(call: Call) -> np.ndarray:
    """Each channel by itself, no weights."""
    _check_layout(call)
    return call.only


def _rescaling(call: Call) -> np.ndarray:
    if np.size(call.layer.scale) > 1 or np.size(call.layer.offset) > 1:
        raise Untraced("it has a factor for each channel")
    return call.only


def _activation(call: Call) -> np.ndarray:
    if not _elementwise(call.layer.activation):
        raise Untraced(f"the activation {_name(call.layer.activation)} mixes channels, or is not known")
    return call.only


def _made(call: Call, key: str, axes: Callable[[np.ndarray], Mapping[str, tuple[CutAxis, ...]]]) -> np.ndarray:
    """New channels out of a kernel."""
    _check_layout(call)
    if getattr(call.layer, "groups", 1) != 1:
        raise Untraced("a grouped convolution ties channels to their groups")
    made = call.slots.new(getattr(call.layer, key))
    call.follow(axes(made))
    call.size = (key, made)
    _apply_activation(call, made)
    return made


def _convolution(call: Call) -> np.ndarray:
    read = call.only
    return _made(call, "filters", lambda made: {"kernel": ((-2, IN, read), (-1, OUT, made)), **_bias(made)})


def _transposed(call: Call) -> np.ndarray:
    read = call.only
    return _made(call, "filters", lambda made: {"kernel": ((-2, OUT, made), (-1, IN, read)), **_bias(made)})


def _dense(call: Call) -> np.ndarray:
    read = call.only
    return _made(call, "units", lambda made: {"kernel": ((-2, IN, read), (-1, OUT, made)), **_bias(made)})


def _separable(call: Call) -> np.ndarray:
    read = call.only
    wide = np.repeat(read, call.layer.depth_multiplier)
    kernels = {"depthwise_kernel": ((-2, IN, read),)}
    return _made(
        call, "filters", lambda m: {**kernels, "pointwise_kernel": ((-2, ALONG, wide), (-1, OUT, m)), **_bias(m)}
    )


def _depthwise(call: Call) -> np.ndarray:
    """Channel c becomes the channels c * depth_multiplier and following."""
    _check_layout(call)
    wide = np.repeat(call.only, call.layer.depth_multiplier)
    call.follow({"kernel": ((-2, ALONG, call.only),), "bias": ((-1, ALONG, wide),)})
    _apply_activation(call, wide)
    return wide


def _batch_normalization(call: Call) -> np.ndarray:
    if call.layer.axis not in (-1, len(call.in_shape) - 1):
        raise Untraced("it normalises another axis than the channels")
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    call.follow(dict.fromkeys(names, ((-1, ALONG, call.only),)))
    return call.only


def _prelu(call: Call) -> np.ndarray:
    shared = call.layer.alpha.shape[-1] == 1
    call.follow({"alpha": () if shared else ((-1, ALONG, call.only),)})
    return call.only


def _flatten(call: Call) -> np.ndarray:
    """[H, W, C] in memory order: the channels, once for each position."""
    _check_layout(call)
    return np.tile(call.only, _positions(call))


def _reshape(call: Call) -> np.ndarray:
    """Rows are kept in memory order, so a reshape that keeps the last axis keeps the channels."""
    slots, before, after = call.only, call.in_shape, call.out_shape
    if after[-1] == before[-1]:
        made = slots
    elif len(after) == 2:
        made = np.tile(slots, _positions(call))
    else:
        raise Untraced("it cuts through the axis of the channels")
    call.size = ("target_shape", made)
    return made


def _joined(call: Call) -> np.ndarray:
    """Element by element over several tensors; one channel meets all of another tensor's."""
    width = max(len(slots) for slots in call.inputs)
    full = [slots for slots in call.inputs if len(slots) == width]
    for slots in call.inputs:
        if len(slots) == 1 < width:
            call.slots.freeze(slots, f"its one channel goes to all of {call.layer.name}'s")
        elif len(slots) != width:
            raise Untraced("the numbers of its inputs' channels differ")
    for slots in full[1:]:
        call.slots.join(full[0], slots)
    return full[0]


def _binary(call: Call) -> np.ndarray:
    """An operation with two tensors, or with a tensor and one number for all channels."""
    if len(call.inputs) == 2:
        return _joined(call)
    arguments = [*call.node.arguments.args, *call.node.arguments.kwargs.values()]
    tensor = call.node.input_tensors[0]
    if any(np.size(value) > 1 for value in arguments if value is not tensor and value is not None):
        raise Untraced("it has a constant for each channel")
    return call.only


def _concatenate(call: Call) -> np.ndarray:
    if call.layer.axis not in (-1, len(call.in_shape) - 1):
        return _joined(call)
    return np.concatenate(call.inputs)


def _bias(made: np.ndarray) -> dict[str, tuple[CutAxis, ...]]:
    return {"bias": ((-1, OUT, made),)}


def _check_layout(call: Call) -> None:
    if getattr(call.layer, "data_format", None) == "channels_first":
        raise Untraced("its channels come first")


def _positions(call: Call) -> int:
    positions = [size for size in call.in_shape[1:-1] if size is not None]
    if len(positions) < len(call.in_shape) - 2:
        raise Untraced("the size of the feature map is not known")
    return prod(positions)


def _apply_activation(call: Call, made: np.ndarray) -> None:
    if not _elementwise(call.layer.activation):
        name = _name(call.layer.activation)
        call.slots.freeze(made, f"its activation {name} mixes channels, or is not known")


def _elementwise(activation: Any) -> bool:
    """Whether it is one of Keras' own functions that take each number by itself."""
    import keras

    name = _name(activation)
    return activation is None or (name in ELEMENTWISE and getattr(keras.activations, name, None) is activation)


def _name(activation: Any) -> str:
    return str(getattr(activation, "__name__", type(activation).__name__))


# fmt: off
ELEMENTWISE = (
    "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "sigmoid", "hard_sigmoid",
    "hard_silu", "tanh", "softplus", "softsign", "exponential", "mish", "celu", "log_sigmoid", "hard_tanh",
    "hard_shrink", "soft_shrink", "tanh_shrink", "threshold", "squareplus", "sparse_plus",
)
PASSING = (
    "ActivityRegularization", "AveragePooling1D", "AveragePooling2D", "Cropping1D", "Cropping2D", "Dropout",
    "ELU", "GaussianDropout", "GaussianNoise", "GlobalAveragePooling1D", "GlobalAveragePooling2D",
    "GlobalMaxPooling1D", "GlobalMaxPooling2D", "Identity", "LeakyReLU", "MaxPooling1D", "MaxPooling2D", "ReLU",
    "Resizing", "SpatialDropout1D", "SpatialDropout2D", "UpSampling1D", "UpSampling2D", "ZeroPadding1D",
    "ZeroPadding2D",
)
PASSING_OPS = (
    "ops.Absolute", "ops.Clip", "ops.Elu", "ops.Exp", "ops.Gelu", "ops.HardSigmoid", "ops.HardSilu",
    "ops.LeakyRelu", "ops.Negative", "ops.Relu", "ops.Relu6", "ops.Sigmoid", "ops.Silu", "ops.Softplus",
    "ops.Sqrt", "ops.Square", "ops.Tanh",
)
# fmt: on
MERGING = ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")
BINARY = tuple(
    f"ops.{name}" for name in ("Add", "Divide", "Maximum", "Minimum", "Multiply", "Subtract", "TrueDivide")
)

RULES: Mapping[str, Callable[[Call], np.ndarray]] = {
    **dict.fromkeys((*PASSING, *PASSING_OPS), _pass),
    **dict.fromkeys(MERGING, _joined),
    **dict.fromkeys(BINARY, _binary),
    "Activation": _activation,
    "BatchNormalization": _batch_normalization,
    "Concatenate": _concatenate,
    "Conv1D": _convolution,
    "Conv2D": _convolution,
    "Conv2DTranspose": _transposed,
    "Dense": _dense,
    "DepthwiseConv2D": _depthwise,
    "Flatten": _flatten,
    "PReLU": _prelu,
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "SeparableConv2D": _separable,
}

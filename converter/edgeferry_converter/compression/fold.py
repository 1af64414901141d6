"""BatchNormalization multiplied into the layer before it, as every interpreter does before it runs a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeferry_converter.compression.unfolding import unfolded
from edgeferry_converter.errors import ModelError

__all__ = [
    "KERNEL_AXES",
    "copy_layer",
    "fold_batch_norm",
    "outputs_of",
    "producer",
    "rebuilt",
    "unfoldable",
    "users",
]

# Layers with a kernel, and which of its axes number the output channels.
KERNEL_AXES = {"Conv2D": (3,), "DepthwiseConv2D": (2, 3), "Conv2DTranspose": (2,), "Dense": (1,)}
# What a SeparableConv2D leaves to its two halves.
_SPATIAL = ("strides", "padding", "dilation_rate", "data_format", "depth_multiplier", "trainable", "dtype")


def fold_batch_norm(model: Any) -> Any:
    """A model that computes the same without the BatchNormalization layers that follow a kernel.

    With s = gamma / sqrt(variance + epsilon), the kernel becomes kernel * s and the bias
    (bias - mean) * s + beta; source: Jacob et al. 2018, arXiv:1712.05877, section 3.2.  A SeparableConv2D becomes
    a DepthwiseConv2D NAME_depthwise and a pointwise Conv2D NAME, folded or not.

    Args:
        model: functional or Sequential; models inside are unfolded.  It is not changed.

    Returns:
        A functional model of layers of its own, not compiled, with the model's and the layers' names.  What
        ``unfoldable`` names is still in it.

    Raises:
        ModelError: the model is a subclass of keras.Model, or a layer cannot be copied.
    """
    split = _split_separable(unfolded(model))
    folded = {norm.name: layer for norm, layer, reason in _norms(split) if not reason}
    biased = {layer.name for layer in folded.values()}

    def make(layer: Any) -> Any:
        return copy_layer(layer, **({"use_bias": True} if layer.name in biased else {}))

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        return args[0] if layer.name in folded else layer(*args, **kwargs)

    kernels = {layer.name: _folded_weights(layer, split.get_layer(norm)) for norm, layer in folded.items()}
    return rebuilt(split, make, call, lambda layer: kernels.get(layer.name))


def unfoldable(model: Any) -> dict[str, str]:
    """BatchNormalization layers that ``fold_batch_norm`` leaves, and why."""
    return {norm.name: reason for norm, _, reason in _norms(_split_separable(unfolded(model))) if reason}


def users(model: Any) -> dict[int, list[Any]]:
    """The operations that take each tensor of a functional model, by ``id`` of the tensor, in the graph's order.

    The model's own outputs count as a use by None.
    """
    found: dict[int, list[Any]] = {}
    for node in _nodes(model):
        for tensor in node.input_tensors:
            found.setdefault(id(tensor), []).append(node.operation)
    for tensor in model.outputs:
        found.setdefault(id(tensor), []).append(None)
    return found


def outputs_of(model: Any) -> dict[str, list[Any]]:
    """The tensors each operation of a functional model makes: more than one where it is called several times."""
    made: dict[str, list[Any]] = {}
    for node in _nodes(model):
        made.setdefault(node.operation.name, []).extend(node.outputs)
    return made


def producer(tensor: Any) -> Any:
    """The operation a tensor comes from."""
    return tensor._keras_history.operation


def copy_layer(layer: Any, **changes: Any) -> Any:
    """The same layer without its weights; an operation that has none is itself.

    Raises:
        ModelError: a layer of the user's own does not say how to make it again.
    """
    import keras

    if not isinstance(layer, keras.Layer):
        return layer
    if isinstance(layer, keras.layers.Lambda):  # its configuration is code, which Keras does not load unasked
        return keras.layers.Lambda(layer.function, layer._output_shape, arguments=layer.arguments, name=layer.name)
    try:
        return type(layer).from_config({**layer.get_config(), **changes})
    except Exception as error:  # the layer's own code runs here
        raise ModelError(
            f"{layer.name}: the layer ({type(layer).__name__}) cannot be made a second time: {error}",
            "Give its class a get_config() that returns the arguments of its __init__.",
        ) from error


def rebuilt(
    model: Any,
    make: Callable[[Any], Any],
    call: Callable[..., Any],
    weights: Callable[[Any], list[np.ndarray] | None] = lambda layer: None,
    enter: Callable[[Any], Any] = lambda tensor: tensor,
) -> Any:
    """A functional model with its operations exchanged and its calls redirected.

    Args:
        model: functional.
        make: the operation that stands for one of the model's.
        call: runs it on symbolic tensors; it may return something else instead.
        weights: what the new operation shall hold instead of the old one's weights; None keeps them.
        enter: what the operations see of an input.
    """
    import keras

    made: dict[int, Any] = {}

    def once(operation: Any) -> Any:
        if id(operation) not in made:
            made[id(operation)] = make(operation)
        return made[id(operation)]

    inputs = keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name), model.input
    )
    entered = keras.tree.map_structure(enter, inputs)
    outputs = model._run_through_graph(entered, operation_fn=once, call_fn=call)
    new = keras.Model(_bare(inputs), _bare(outputs), name=model.name)
    for layer in model.layers:
        copy = made.get(id(layer))
        if copy is not None and copy.weights:
            given = weights(layer)
            copy.set_weights(layer.get_weights() if given is None else given)
    return new


def _bare(structure: Any) -> Any:
    """A Sequential's list of one tensor as that tensor, which is how it is called."""
    return structure[0] if isinstance(structure, (list, tuple)) and len(structure) == 1 else structure


def _nodes(model: Any) -> list[Any]:
    """Calls in the model's graph, inputs left out; a layer's own list would hold those of other models too."""
    depths = sorted(model._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in model._nodes_by_depth[depth] if not node.is_input]


def _norms(model: Any) -> list[tuple[Any, Any, str]]:
    """Each BatchNormalization with the layer before it, and why the two cannot become one: "" if they can."""
    used, made = users(model), outputs_of(model)
    found = []
    for node in _nodes(model):
        if type(node.operation).__name__ == "BatchNormalization":
            (tensor,) = node.input_tensors
            before = producer(tensor)
            reason = _obstacle(node.operation, before, used[id(tensor)], made)
            found.append((node.operation, before, reason))
    return found


def _obstacle(norm: Any, before: Any, consumers: list[Any], made: dict[str, list[Any]]) -> str:
    kind = type(before).__name__
    axis = norm.axis[0] if isinstance(norm.axis, (list, tuple)) else norm.axis
    obstacles = {
        f"it follows {before.name}, a {kind}, which has no kernel": kind not in KERNEL_AXES,
        f"its axis {axis} is not the channels'": axis not in (-1, len(norm.input.shape) - 1),
        f"the channels of {before.name} come first": getattr(before, "data_format", "") == "channels_first",
        f"the activation of {before.name} lies between": getattr(before, "activation", None) is not None
        and before.activation.__name__ != "linear",
        f"{before.name} is used by other layers too": len(consumers) != 1,
        f"{before.name} or {norm.name} is called several times": max(
            len(made.get(layer.name, ())) for layer in (before, norm)
        )
        > 1,
    }
    return next((text for text, true in obstacles.items() if true), "")


def _folded_weights(layer: Any, norm: Any) -> list[np.ndarray]:
    kernel = np.asarray(layer.kernel, np.float64)
    bias = np.asarray(layer.bias, np.float64) if layer.use_bias else 0.0
    gamma = np.asarray(norm.gamma, np.float64) if norm.scale else 1.0
    beta = np.asarray(norm.beta, np.float64) if norm.center else 0.0
    mean, variance = (np.asarray(moment, np.float64) for moment in (norm.moving_mean, norm.moving_variance))
    scale = gamma / np.sqrt(variance + norm.epsilon)
    axes = KERNEL_AXES[type(layer).__name__]
    shape = [size if axis in axes else 1 for axis, size in enumerate(kernel.shape)]
    folded = [kernel * scale.reshape(shape), (bias - mean) * scale + beta]
    return [part.astype(np.float32) for part in folded]


def _split_separable(model: Any) -> Any:
    """The model with DepthwiseConv2D and Conv2D for each SeparableConv2D; itself where there is none."""
    import keras

    separable = {layer.name: layer for layer in model.layers if type(layer).__name__ == "SeparableConv2D"}
    if not separable:
        return model
    depthwise: dict[str, Any] = {}

    def make(layer: Any) -> Any:
        if layer.name not in separable:
            return copy_layer(layer)
        config = layer.get_config()
        depthwise[layer.name] = keras.layers.DepthwiseConv2D(
            layer.kernel_size, use_bias=False, name=f"{layer.name}_depthwise", **{k: config[k] for k in _SPATIAL}
        )
        kept = {key: config[key] for key in ("use_bias", "activation", "data_format", "trainable", "dtype")}
        return keras.layers.Conv2D(layer.filters, 1, name=layer.name, **kept)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if layer.name in depthwise:
            return layer(depthwise[layer.name](args[0]))
        return layer(*args, **kwargs)

    new = rebuilt(model, make, call, lambda layer: layer.get_weights()[1:] if layer.name in separable else None)
    for name, layer in depthwise.items():
        layer.set_weights(separable[name].get_weights()[:1])
    return new

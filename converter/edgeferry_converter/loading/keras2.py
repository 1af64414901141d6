"""Configurations that Keras 2 wrote, put into Keras 3's words; and what has no word there."""

from __future__ import annotations

from typing import Any

__all__ = ["to_keras3", "untranslatable", "uses_hard_sigmoid"]

RENAMED = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
    "DenseV1": "Dense",
    "LSTMV1": "LSTM",
    "LSTMV2": "LSTM",
    "GRUV2": "GRU",
    "Convolution2D": "Conv2D",
    "SeparableConvolution2D": "SeparableConv2D",
    "Convolution2DTranspose": "Conv2DTranspose",
}
# Keras 2 wrote these keys into configurations of layers that never took them.
SEPARABLE = ("groups", "kernel_initializer", "kernel_regularizer", "kernel_constraint")
SUPERFLUOUS = {
    "DepthwiseConv2D": ("groups",),
    "DepthwiseConv1D": ("groups",),
    "SeparableConv1D": SEPARABLE,
    "SeparableConv2D": SEPARABLE,
    "Conv2DTranspose": ("groups",),
    "Conv1DTranspose": ("groups",),
    "Conv3DTranspose": ("groups",),
    "LSTM": ("time_major", "implementation"),
    "GRU": ("time_major", "implementation"),
    "SimpleRNN": ("time_major", "implementation"),
    "RNN": ("time_major",),
    "BatchNormalization": ("virtual_batch_size", "fused", "renorm"),
    "Embedding": ("input_length",),
    "RandomFlip": ("rng_type",),
    "RandomRotation": ("rng_type",),
    "RandomZoom": ("rng_type",),
    "RandomTranslation": ("rng_type",),
    "RandomCrop": ("rng_type",),
    "RandomContrast": ("rng_type",),
    "SpatialDropout1D": ("trainable", "noise_shape"),
    "SpatialDropout2D": ("trainable", "noise_shape"),
    "MultiHeadAttention": ("query_shape", "key_shape", "value_shape", "softmax_robust_masking"),
}
MODELS = {
    "Functional": "keras.src.models.functional",
    "Model": "keras.src.models.functional",
    "Sequential": "keras",
}
OLD_PACKAGES = ("tf_keras", "keras.engine", "keras.src.engine", "tensorflow.python.keras")
# Calls of TensorFlow functions recorded as layers; Keras 3 has nothing that runs them.
OPERATION_LAYERS = {
    "TFOpLambda": "function",
    "SlicingOpLambda": "function",
    "ClassMethod": "method_name",
    "InstanceMethod": "method_name",
    "InstanceProperty": "attr_name",
    "TensorFlowOpLayer": "node_def",
}
GONE = ("CuDNNLSTM", "CuDNNGRU", "DenseFeatures", "LocallyConnected1D", "LocallyConnected2D", "ThresholdedReLU")


def to_keras3(config: Any) -> Any:
    """A parsed model configuration in Keras 3's words; one that Keras 3 wrote comes back equal."""
    if isinstance(config, list):
        return [to_keras3(part) for part in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "Policy" and isinstance(config.get("config"), dict):
        return config["config"].get("name", "float32")
    translated = {key: to_keras3(value) for key, value in config.items()}
    if translated.get("class_name") == "Sequential" and isinstance(translated.get("config"), list):
        translated["config"] = {"name": "sequential", "layers": translated["config"]}  # as before Keras 2.3
    if isinstance(translated.get("class_name"), str) and isinstance(translated.get("config"), dict):
        _translate_layer(translated)
    return translated


def _translate_layer(layer: dict[str, Any]) -> None:
    name = layer["class_name"] = RENAMED.get(layer["class_name"], layer["class_name"])
    settings = layer["config"]
    for key in SUPERFLUOUS.get(name, ()):
        settings.pop(key, None)
    if isinstance(settings.get("layers"), list):
        _renumber_calls(settings["layers"])
    axis = settings.get("axis")
    if name == "BatchNormalization" and isinstance(axis, list) and len(axis) == 1:
        settings["axis"] = axis[0]
    shape = settings.pop("batch_input_shape", None)
    if shape and name == "InputLayer":
        settings.setdefault("batch_shape", shape)
    elif shape and "layers" not in settings:
        settings["input_shape"] = shape[1:]  # the first layer of a Sequential that has no InputLayer
    if name == "MultiHeadAttention" and set(layer.get("build_config") or ()) == {"input_shape"}:
        del layer["build_config"]  # Keras 3 would build it from one shape where it takes two
    module = layer.get("module")
    if isinstance(module, str) and module.startswith(OLD_PACKAGES):
        layer["module"] = MODELS.get(name, "keras.layers")
        layer["registered_name"] = name if name == "Functional" else None
    if name == "Model" and "layers" in settings and "input_layers" in settings:
        layer["class_name"] = "Functional"


def _renumber_calls(layers: list[Any]) -> None:
    """Keras 2 counted the making of a nested model as its first call, Keras 3 does not."""
    nested = {part["name"] for part in layers if part.get("class_name") in MODELS and "name" in part}
    for layer in layers:
        nodes = layer.get("inbound_nodes") or []
        if not any(isinstance(node, dict) for node in nodes):  # Keras 3 writes dicts
            layer["inbound_nodes"] = _renumbered(nodes, nested)


def _renumbered(part: Any, nested: set[str]) -> Any:
    """Calls are [layer, call, tensor, ...], in lists of lists or as an argument of another call."""
    if isinstance(part, dict):
        return {key: _renumbered(value, nested) for key, value in part.items()}
    if not isinstance(part, list):
        return part
    if len(part) >= 3 and part[0] in [*nested] and isinstance(part[1], int) and isinstance(part[2], int):
        part = [part[0], max(0, part[1] - 1), *part[2:]]
    return [_renumbered(value, nested) for value in part]


def uses_hard_sigmoid(config: Any) -> bool:
    """Whether an activation is Keras 2's hard_sigmoid, another function than the one Keras 3 has of that name."""
    if isinstance(config, dict):
        return any(
            (key in ("activation", "recurrent_activation") and value == "hard_sigmoid") or uses_hard_sigmoid(value)
            for key, value in config.items()
        )
    return isinstance(config, list) and any(uses_hard_sigmoid(part) for part in config)


def untranslatable(config: Any) -> list[str]:
    """Layers of a configuration that no Keras 3 can load, each with what it stands for."""
    found: list[str] = []
    pending = [config]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending += part
        elif isinstance(part, dict):
            pending += part.values()
            name = part.get("class_name")
            if name in OPERATION_LAYERS and isinstance(part.get("config"), dict):
                found.append(f"{name} ({part['config'].get(OPERATION_LAYERS[name], '?')!s:.60})")
            elif name in GONE:
                found.append(str(name))
    return sorted(set(found))

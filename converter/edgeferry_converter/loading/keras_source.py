"""A Keras model as a source: names of its tensors, answers, and the SavedModel to convert."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgeferry_converter.errors import ModelError, OptionError
from edgeferry_converter.loading.names import signature_names
from edgeferry_converter.loading.source import LoadOptions, Signature, SourceModel, TensorInfo
from edgeferry_converter.loading.tracing import SIGNATURE, traced

__all__ = ["KerasSource", "check_finite"]

FIRST_LAYERS = 4


class KerasSource(SourceModel):
    """A Keras model, from a file of its own or from a builder and weights.

    Attributes:
        keras: the keras.Model, not compiled, with one tensor or a list of them in and out.
    """

    def __init__(self, model: Any, path: Path, kind: str, sha256: str, options: LoadOptions) -> None:
        _check_backend()
        self.format = kind
        inputs, outputs = _tensors(_symbolic(model, path, options))
        self.keras = _flat(model, [t for _, t in inputs], [t for _, t in outputs])
        signature = Signature(_infos(inputs, "input"), _infos(outputs, "output"))
        super().__init__(path, sha256, SIGNATURE, {SIGNATURE: signature}, options)
        self.parameters = int(self.keras.count_params())
        self.first_layers = tuple(_first_layers(self.keras))
        names = [info.name for info in self.outputs]
        activations = [_activation(tensor) for _, tensor in outputs]
        self.last_activation = dict(zip(names, activations, strict=True))

    @contextmanager
    def saved_model(self) -> Iterator[tuple[Path, str]]:
        # The bare variables: a Keras model that is tracked itself keeps the converter from freezing them.
        variables = [variable.value for variable in self.keras.variables]
        with traced(self._call, self.inputs, self.shapes(), variables, self.path) as written:
            yield written

    def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        typed = {info.name: np.asarray(inputs[info.name], info.dtype) for info in self.inputs}
        return {name: np.asarray(value, np.float32) for name, value in self._call(typed).items()}

    def _call(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """The model by names, on arrays or while it is traced."""
        ordered = [tensors[info.name] for info in self.inputs]
        answer = self.keras(ordered[0] if len(ordered) == 1 else ordered, training=False)
        answers = answer if isinstance(answer, (list, tuple)) else [answer]
        return {info.name: value for info, value in zip(self.outputs, answers, strict=True)}


def check_finite(model: Any, path: Path) -> None:
    """Refuse a model whose weights are no numbers.

    Raises:
        ModelError: they hold NaN or infinity.
    """
    bad = [w.path for w in model.weights if not np.isfinite(np.asarray(w)).all()]
    if bad:
        raise ModelError(
            f"{path}: weights hold NaN or infinity: {', '.join(bad[:3])}",
            "The training diverged; use an earlier checkpoint.",
        )


def _check_backend() -> None:
    import keras

    if (backend := keras.backend.backend()) != "tensorflow":
        raise OptionError(
            f"Keras runs on {backend} here, only its models on TensorFlow can be converted",
            "Unset KERAS_BACKEND, or set it to tensorflow.",
        )


def _symbolic(model: Any, path: Path, options: LoadOptions) -> Any:
    """The model with symbolic tensors; a subclassed one has none until it is called."""
    import keras

    try:
        if model.inputs and model.outputs:
            return model
    except (AttributeError, ValueError):
        pass  # Keras raises either, depending on how the model was made
    if len(options.input_shapes) != 1:
        raise OptionError(
            f"{path}: the model is a subclass of keras.Model and does not say what it takes",
            "Say it with --input-shape 224,224,3.",
        )
    name, shape = options.input_shapes[0]
    shape = shape[1:] if len(shape) > 1 and shape[0] == 1 else shape
    tensor = keras.Input(shape, name=name or "input")
    try:
        return keras.Model(tensor, model(tensor), name=model.name)
    except Exception as error:  # the model's own code runs here
        raise ModelError(
            f"{path}: the model does not take an input {list(shape)}: {error}",
            "Give --input-shape what it was trained on; a model with several inputs needs keras.Input for each.",
        ) from error


def _tensors(model: Any) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """Inputs and outputs with their names: keys where the model uses dicts, else the layers they come from."""
    return _named(model, "input", model.inputs), _named(model, "output", model.outputs)


def _named(model: Any, side: str, flat: Sequence[Any]) -> list[tuple[str, Any]]:
    try:
        structure = getattr(model, side)
    except AttributeError:  # a Sequential that was never called as a layer
        structure = None
    if isinstance(structure, dict) and all(hasattr(value, "shape") for value in structure.values()):
        return list(structure.items())
    return [(tensor._keras_history.operation.name, tensor) for tensor in flat]


def _flat(model: Any, inputs: list[Any], outputs: list[Any]) -> Any:
    """The same layers with bare tensors or lists; files of Keras 2 often wrap them in lists and dicts."""
    import keras

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one_in, one_out = len(inputs) == 1, len(outputs) == 1
        return keras.Model(inputs[0] if one_in else inputs, outputs[0] if one_out else outputs, name=model.name)


def _infos(tensors: list[tuple[str, Any]], fallback: str) -> tuple[TensorInfo, ...]:
    names = signature_names([name for name, _ in tensors], fallback)
    return tuple(
        TensorInfo(name, tuple(tensor.shape), str(tensor.dtype))
        for name, (_, tensor) in zip(names, tensors, strict=True)
    )


def _first_layers(model: Any) -> list[str]:
    names: list[str] = []
    for layer in model.layers:
        kind = type(layer).__name__
        if kind == "InputLayer":
            continue
        names += _first_layers(layer) if hasattr(layer, "layers") and hasattr(layer, "inputs") else [kind]
        if len(names) >= FIRST_LAYERS:
            break
    return names[:FIRST_LAYERS]


def _activation(tensor: Any) -> str:
    """The activation an output comes from: the layer's own, or a layer that is one."""
    layer = tensor._keras_history.operation
    layers = getattr(layer, "layers", None)
    if layers:  # a nested model
        outputs = getattr(layer, "outputs", None) or []
        return _activation(outputs[0]) if len(outputs) == 1 else ""
    function = getattr(layer, "activation", None)
    if function is not None:
        return str(getattr(function, "__name__", type(function).__name__)).lower()
    kind = type(layer).__name__
    return kind.lower() if kind in ("Softmax", "Sigmoid", "ReLU", "LeakyReLU", "Tanh") else ""

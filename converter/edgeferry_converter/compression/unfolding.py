"""One flat functional model out of a Sequential one, or of models inside models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeferry_converter.errors import ModelError

__all__ = ["made_anew", "remade", "unfolded"]


def unfolded(model: Any) -> Any:
    """The same computation as one functional model.

    Without models inside it shares the layers of ``model``.  Otherwise they are copied, weights and all, under
    their own names; where two are alike, the inner one gets the name of its model in front.  What was frozen with
    ``trainable = False`` stays frozen.

    Args:
        model: a functional or Sequential keras.Model.

    Raises:
        ModelError: the model is a subclass of keras.Model, so there is no graph to follow.
    """
    flat = _functional(model)
    if flat is None:
        raise ModelError(
            f"{model.name}: the model is a subclass of keras.Model ({type(model).__name__}): "
            "what its call() does with the channels is not known",
            "Build it with the functional API; pruning by magnitude and quantisation-aware training work on its "
            "layers as it is.",
        )
    if not any(_functional(operation) is not None for operation in flat.operations):
        return flat
    return _Unfolding(flat).result()


def remade(model: Any, call: Callable[..., Any]) -> Any:
    """The graph of a functional model once more, on inputs of the same names, shapes and dtypes.

    Args:
        call: makes each call: of the operation and the arguments it was called with.
    """
    import keras

    def again(tensor: Any) -> Any:
        name = tensor._keras_history.operation.name
        return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)

    inputs = keras.tree.map_structure(again, model.input)
    outputs = model._run_through_graph(inputs, call_fn=call)
    return keras.Model(inputs, outputs, name=model.name)


def made_anew(layer: Any, changes: dict[str, Any]) -> Any:
    """A layer of the same configuration but for the changes, with new weights.

    Raises:
        ModelError: its class does not say how it is made.
    """
    try:
        return type(layer).from_config({**layer.get_config(), **changes})
    except Exception as error:  # the layer's own code runs here
        if not changes and not layer.variables:
            return layer  # a Lambda, say: Keras does not make one from a configuration, and it holds nothing
        raise ModelError(
            f"{layer.name}: the {type(layer).__name__} cannot be made anew from its configuration: {error}",
            "Give the layer's class get_config() and from_config().",
        ) from error


def _functional(operation: Any) -> Any | None:
    """The graph of an operation that is a model with one; None for anything else."""
    import keras

    if not isinstance(operation, keras.Model):
        return None
    if isinstance(operation, keras.Sequential):
        if not operation.built:
            return None
        return keras.Model(operation.inputs[0], operation.outputs[0], name=operation.name)
    graph = hasattr(operation, "_nodes_by_depth") and _plain_call(operation)
    return keras.Model(operation.input, operation.output, name=operation.name) if graph else None


def _plain_call(model: Any) -> bool:
    """Whether calling the model is walking its graph; a subclass may do something else."""
    return str(type(model).call.__module__).startswith("keras.")


class _Unfolding:
    def __init__(self, model: Any) -> None:
        self._model = model
        self._copies: dict[int, tuple[Any, Any]] = {}
        self._names = {layer.name for layer in model.layers if _functional(layer) is None}

    def result(self) -> Any:
        flat = remade(self._model, self._caller(""))
        for layer, copy in self._copies.values():
            copy.set_weights(layer.get_weights())
        return flat

    def _caller(self, prefix: str) -> Callable[..., Any]:
        """Calls the copies of a model's layers; a nested model's one by one."""

        def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
            inner = _functional(operation)
            if inner is not None:
                inputs = args[0] if args else kwargs["inputs"]
                outputs = inner._run_through_graph(inputs, call_fn=self._caller(operation.name))
                return outputs[0] if isinstance(outputs, (list, tuple)) and len(outputs) == 1 else outputs
            return self._copied(operation, prefix)(*args, **kwargs)

        return call

    def _copied(self, operation: Any, prefix: str) -> Any:
        import keras

        if not isinstance(operation, keras.Layer):
            return operation
        if id(operation) not in self._copies:
            name = self._free_name(operation.name, prefix)
            changes = {} if name == operation.name else {"name": name}
            self._copies[id(operation)] = (operation, made_anew(operation, changes))
        return self._copies[id(operation)][1]

    def _free_name(self, name: str, prefix: str) -> str:
        """Layers of the outermost model come with their names; the others must not take one of those."""
        if not prefix:
            return name
        free = name
        while free in self._names:
            free = f"{prefix}_{free}"
        self._names.add(free)
        return free

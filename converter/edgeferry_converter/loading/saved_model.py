"""SavedModels, whoever wrote them: Keras 2, Keras 3's ``model.export``, a plain tf.Module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgeferry_converter.errors import ModelError, OptionError
from edgeferry_converter.loading.checkpoint import checkpoint_prefix, finite_checkpoint
from edgeferry_converter.loading.input_shapes import text
from edgeferry_converter.loading.names import signature_names
from edgeferry_converter.loading.source import (
    LoadOptions,
    Signature,
    SourceModel,
    TensorInfo,
    first_line,
    hash_files,
)
from edgeferry_converter.loading.tracing import SIGNATURE, traced

__all__ = ["SavedModelSource", "choose_signature", "load_saved_model"]

FILE = "saved_model.pb"
# Python functions, which are not in the file at all, and operations that reach for other files.
CODE = ("PyFunc", "PyFuncStateless", "EagerPyFunc")
FILES = ("ReadFile", "WriteFile", "MatchingFiles")
ACTIVATIONS = {
    "Softmax": "softmax",
    "Sigmoid": "sigmoid",
    "Relu": "relu",
    "Tanh": "tanh",
    "LogSoftmax": "log_softmax",
}


class SavedModelSource(SourceModel):
    """A function of a SavedModel."""

    format = "saved_model"

    def __init__(
        self, loaded: Any, path: Path, key: str, signatures: dict[str, Signature], options: LoadOptions
    ) -> None:
        super().__init__(path, hash_files(_files(path)), key, signatures, options)
        self._loaded = loaded
        self._function = loaded.signatures[key] if key else None
        if self._function is not None:
            self.parameters = sum(int(np.prod(v.shape)) for v in self._function.variables)
            self._arguments = list(self._function.structured_input_signature[1])
            self._answers = sorted(self._function.structured_outputs)
            for i, info in enumerate(self.outputs):
                self.last_activation[info.name] = _activation(self._function.graph, i)

    @contextmanager
    def saved_model(self) -> Iterator[tuple[Path, str]]:
        with traced(self._call, self.inputs, self.shapes(), self._loaded, self.path) as written:
            yield written

    def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        import tensorflow as tf

        typed = {info.name: tf.constant(inputs[info.name], info.dtype) for info in self.inputs}
        try:
            answer = self._call(typed)
        except tf.errors.OpError as error:
            raise ModelError(f"{self.path}: fails when it runs: {first_line(error)}") from error
        return {name: np.asarray(value, np.float32) for name, value in answer.items()}

    def _call(self, tensors: dict[str, Any]) -> dict[str, Any]:
        if self._function is None:
            raise OptionError(f"{self.path}: no signature is chosen", "Choose one with --signature KEY.")
        given = {old: tensors[info.name] for old, info in zip(self._arguments, self.inputs, strict=True)}
        answer = self._function(**given)
        return {info.name: answer[old] for info, old in zip(self.outputs, self._answers, strict=True)}


def load_saved_model(path: Path, options: LoadOptions, listing: bool = False) -> SavedModelSource:
    """Load a SavedModel folder.

    Args:
        path: the folder.
        options: ``signature`` and ``allow_unsafe`` count here.
        listing: several signatures and none chosen is no error; the model can then only be looked at.

    Raises:
        OptionError: there are several signatures and none is chosen, or there is none of that name.
        ModelError: it is damaged, has no signature, calls Python functions, or holds NaN.
    """
    _check_operations(path, options)
    prefix = checkpoint_prefix(path)
    if prefix is not None:
        finite_checkpoint(prefix, path)
    loaded = _load(path)
    signatures = {key: _signature(loaded.signatures[key]) for key in sorted(loaded.signatures)}
    if not signatures:
        raise ModelError(
            f"{path}: is a SavedModel without signatures, so nothing says what goes in",
            "Save it with one: model.export('folder') in Keras, or tf.saved_model.save(module, 'folder',"
            " signatures=module.function); or give what builds the model with --builder module:function.",
        )
    key = choose_signature(path, signatures, options.signature, listing)
    return SavedModelSource(loaded, path, key, signatures, options)


def choose_signature(
    path: Path, signatures: dict[str, Signature], wanted: str | None, listing: bool = False
) -> str:
    """The wanted key, or the only one, or TensorFlow's usual one.

    Raises:
        OptionError: with every signature and what it takes and gives.
    """
    if wanted is None:
        if SIGNATURE in signatures:
            return SIGNATURE
        if len(signatures) == 1:
            return next(iter(signatures))
        if listing:
            return ""
    elif wanted in signatures:
        return wanted
    message = f"{path}: has no signature {wanted!r}, it has:" if wanted else f"{path}: has several signatures:"
    lines = [f"  {key}: {_shown(s.inputs)} -> {_shown(s.outputs)}" for key, s in signatures.items()]
    raise OptionError("\n".join([message, *lines]), "Choose one with --signature KEY.")


def _shown(tensors: tuple[TensorInfo, ...]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype}{text(tensor.shape)}" for tensor in tensors)


def _check_operations(path: Path, options: LoadOptions) -> None:
    """Look at the graph before TensorFlow loads it: loading runs the initialisers it names."""
    from tensorflow.core.protobuf import saved_model_pb2

    content = saved_model_pb2.SavedModel()
    try:
        content.ParseFromString((path / FILE).read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: {FILE} cannot be read: {error.strerror}", "Check its permissions.") from None
    except Exception as error:  # protobuf's DecodeError
        raise ModelError(f"{path}: {FILE} is damaged: {error}", "Copy the folder again.") from None
    if not content.meta_graphs:
        raise ModelError(f"{path}: {FILE} holds no graph", "Copy the folder again, or save the model again.")
    if options.allow_unsafe:
        return
    operations = {
        node.op
        for graph in content.meta_graphs
        for nodes in (graph.graph_def.node, *(f.node_def for f in graph.graph_def.library.function))
        for node in nodes
    }
    for names, what in ((CODE, "calls Python functions"), (FILES, "reads or writes other files")):
        if found := sorted(operations.intersection(names)):
            raise ModelError(
                f"{path}: the model {what} ({', '.join(found)}), which no board can run",
                "Export it without tf.py_function and file operations; or look at it with --allow-unsafe.",
            )


def _load(path: Path) -> Any:
    import tensorflow as tf

    try:
        return tf.saved_model.load(str(path))
    except Exception as error:  # TensorFlow's own errors, and whatever reviving its objects raises
        raise ModelError(
            f"{path}: TensorFlow cannot load the SavedModel: {first_line(error)}",
            "If it is damaged, copy the folder again; operations of one's own need their library.",
        ) from error


def _signature(function: Any) -> Signature:
    arguments = function.structured_input_signature[1]
    # TensorFlow gives the answers in no promised order.
    return Signature(
        _infos(list(arguments), arguments, "input"),
        _infos(sorted(function.structured_outputs), function.structured_outputs, "output"),
    )


def _infos(keys: list[str], specs: dict[str, Any], fallback: str) -> tuple[TensorInfo, ...]:
    names = signature_names(keys, fallback)
    return tuple(
        TensorInfo(
            name,
            () if specs[key].shape.rank is None else tuple(specs[key].shape.as_list()),
            str(specs[key].dtype.name),
        )
        for name, key in zip(names, keys, strict=True)
    )


def _activation(graph: Any, index: int) -> str:
    """The operation an output comes from, through the functions that TensorFlow wraps around each other."""
    try:
        tensor = graph.outputs[index]  # flattened, which sorts by name
        for _ in range(40):
            operation = tensor.op
            if operation.type in ("Identity", "Reshape"):
                tensor = operation.inputs[0]
            elif operation.type in ("PartitionedCall", "StatefulPartitionedCall"):
                graph = graph._get_function(operation.get_attr("f").name).graph
                tensor = graph.outputs[tensor.value_index]
            else:
                return ACTIVATIONS.get(operation.type, "")
    except (AttributeError, KeyError, IndexError, ValueError, TypeError):
        pass  # these innards are TensorFlow's own; without them it is not known
    return ""


def _files(path: Path) -> list[tuple[str, Path]]:
    return [(file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file()]

"""A function of tensors written as a SavedModel with fixed shapes, the way that freezes every variable."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeferry_converter.errors import ConversionError
from edgeferry_converter.loading.source import TensorInfo, first_line

__all__ = ["SIGNATURE", "traced"]

SIGNATURE = "serving_default"


@contextmanager
def traced(
    function: Callable[[dict[str, Any]], dict[str, Any]],
    inputs: tuple[TensorInfo, ...],
    shapes: Mapping[str, tuple[int, ...]],
    resources: Any,
    origin: Path,
) -> Iterator[tuple[Path, str]]:
    """Trace ``function`` for one shape and write it.

    TensorFlow's converter freezes the variables of a SavedModel; given a Python function it can leave them out
    without a word, and the result answers NaN.

    Args:
        function: from tensors by input name to tensors by output name.
        inputs: names and dtypes.
        shapes: by input name, all dimensions fixed.
        resources: whatever holds the variables and tables that the function reads.
        origin: the model's file, for messages.

    Yields:
        A folder that goes away afterwards, and the signature's key.

    Raises:
        ConversionError: the function cannot be traced.
    """
    import tensorflow as tf

    names = [tensor.name for tensor in inputs]
    specs = [tf.TensorSpec(shapes[tensor.name], tensor.dtype, name=tensor.name) for tensor in inputs]
    with tempfile.TemporaryDirectory(prefix="edgeferry-") as folder:
        try:
            module = tf.Module()
            module.resources = resources
            module.serve = tf.function(
                lambda *tensors: function(dict(zip(names, tensors, strict=True))), input_signature=specs
            )
            tf.saved_model.save(module, folder, signatures={SIGNATURE: module.serve})
        except Exception as error:  # tracing runs the model's own code, which may raise anything
            sizes = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise ConversionError(
                f"{origin}: the model cannot be traced for {sizes}: {first_line(error)}",
                "Check that it runs on such an input.",
            ) from error
        yield Path(folder), SIGNATURE

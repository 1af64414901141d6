"""Multiply-accumulates of operations, computed from the shapes of their tensors: work, not time."""

from __future__ import annotations

from typing import Mapping

from edgeferry_runtime.backend import Operation

__all__ = ["macs"]

# Input that holds the filter; input it is applied over, -1 for the output; sides of the filter that multiply.
_RULES = {
    "CONV_2D": (1, -1, (1, 2, 3)),
    "DEPTHWISE_CONV_2D": (1, -1, (1, 2)),
    "FULLY_CONNECTED": (1, -1, (1,)),
    "TRANSPOSE_CONV": (1, 2, (0, 1, 2)),
}
_UNKNOWN = (
    "BATCH_MATMUL", "CONV_3D", "CONV_3D_TRANSPOSE", "CUSTOM", "DELEGATE", "IF", "LSTM", "SVDF", "WHILE",
    "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "edgetpu-custom-op",
)  # fmt: skip


def macs(operation: Operation, shapes: Mapping[int, tuple[int, ...]]) -> int | None:
    """Multiply-accumulates of one run, 0 for operations that have none to speak of; None where unknown.

    Filters are [out, h, w, in] for CONV_2D, [1, h, w, out] for DEPTHWISE_CONV_2D, [out, in] for FULLY_CONNECTED,
    and TRANSPOSE_CONV applies an [out, h, w, in] filter at each place of its third input
    (tensorflow/lite/kernels).
    """
    rule = _RULES.get(operation.name)
    if rule is None:
        return None if operation.name in _UNKNOWN else 0
    place, over, sides = rule
    try:
        filters = shapes[operation.inputs[place]]
        spread = shapes[operation.outputs[0] if over < 0 else operation.inputs[over]]
        count = 1
        for side in (*spread, *(filters[i] for i in sides)):
            count *= side
        return count
    except (KeyError, IndexError):
        return None

"""Before QAT: BatchNorm's statistics as they are behind rounded kernels, which coarse levels shift."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeferry_converter.compression.qat import QatOptions, prepare
from edgeferry_converter.compression.recalibration import recalibrate
from edgeferry_converter.compression.training import Data

__all__ = ["rounded_statistics"]


def rounded_statistics(model: Any, data: Data, options: QatOptions) -> list[str]:
    """Measure BatchNormalization with rounded kernels in place, as ``recalibration.recalibrate`` does.

    Folded afterwards, they undo the shift and the scale that rounding gives each channel (Nagel et al. 2019,
    arXiv:1906.04721, section 4.2, correct the shift; of 4-bit weights the scale matters, too).

    Args:
        model: functional or Sequential; its statistics are changed in place, its kernels stay.
        data: labels are not looked at.
        options: how kernels are rounded.

    Returns:
        Names of the layers that were measured.

    Raises:
        ModelError: see ``qat.prepare``.
        TrainingError: a layer's input is NaN or infinite.
    """
    kernels = {layer.name: layer.kernel for layer in model.layers if hasattr(layer, "kernel")}
    before = {name: np.asarray(kernel) for name, kernel in kernels.items()}
    for layer in prepare(model, options).layers:
        if type(layer).__name__ == "QuantizedKernel" and layer.name in kernels:
            folded = np.asarray(layer.layer.kernel)
            rounding = np.divide(layer.quantized_kernel(), folded, out=np.zeros_like(folded), where=folded != 0)
            kernels[layer.name].assign(before[layer.name] * rounding)  # as a factor: not folded here
    try:
        return recalibrate(model, data)
    finally:
        for name, kernel in kernels.items():
            kernel.assign(before[name])

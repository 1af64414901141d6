"""Quantisation simulated in float, with gradients: what an int8 model computes, while it can still learn.

A fake-quantised number is rounded to one of 2^bits levels and stays a float.  The gradient passes straight
through where the number lies in the range and is zero outside.  Source: Jacob et al. 2018, arXiv:1712.05877,
section 3; the levels are those of TFLite's quantisation specification (weights symmetric, activations asymmetric).
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from edgeferry_converter.compression.fold import KERNEL_AXES

__all__ = ["TANH", "UNIT", "FakeQuant", "QuantizedActivation", "QuantizedKernel", "quantize_kernel"]

# Ranges the specification fixes: scale 1/256 and zero point -128, scale 1/128 and zero point 0.
UNIT = (0.0, 255 / 256)
TANH = (-1.0, 127 / 128)
UNOBSERVED = (-6.0, 6.0)
TIE = 1e-3  # of a step
NARROWEST = 1e-3  # a range of no width has no scale
# A channel of zeros takes this part of the largest channel's range, so that its int32 bias does not overflow.
WEAKEST = 2.0**-12


def quantize_kernel(kernel: Any, bits: int, axes: tuple[int, ...] | None) -> tuple[Any, Any]:
    """A kernel rounded to the 2^bits - 1 levels of a symmetric range.

    Args:
        kernel: float32 tensor.
        bits: 8 or 4.
        axes: of the channels that get a scale each, the kernel's last ones; None gives all one scale.

    Returns:
        The kernel on its levels, and the largest magnitudes: float32, [channels] or a scalar.
    """
    channels = _by_channel(kernel, axes)
    every = list(range(len(channels.shape) - (1 if axes else 0)))
    magnitude = tf.abs(channels)
    weakest = tf.maximum(tf.reduce_max(magnitude) * WEAKEST, 1e-7)
    limit = tf.stop_gradient(tf.maximum(tf.reduce_max(magnitude, axis=every), weakest))
    return tf.reshape(_narrow(channels, limit, bits), kernel.shape), limit


def _by_channel(kernel: Any, axes: tuple[int, ...] | None) -> Any:
    return tf.reshape(kernel, [*kernel.shape[: min(axes)], -1]) if axes else kernel


def _narrow(values: Any, limit: Any, bits: int) -> Any:
    if len(limit.shape):
        function = tf.quantization.fake_quant_with_min_max_vars_per_channel
    else:
        function = tf.quantization.fake_quant_with_min_max_vars
    return function(values, -limit, limit, num_bits=bits, narrow_range=True)


@keras.saving.register_keras_serializable("edgeferry")
class QuantizedKernel(keras.layers.Wrapper):  # type: ignore[misc] # Keras is not annotated
    """A layer that computes with its kernel fake-quantised; the kernel itself stays as precise as it was.

    Args:
        layer: a Conv2D, DepthwiseConv2D, Conv2DTranspose or Dense.
        bits: 8 or 4.
        per_channel: a scale for each output channel.  Dense and Conv2DTranspose always have one for all: old
            interpreters compute garbage with more (Dense), TensorFlow's fake quantisation cannot give them.
    """

    supports_jit = False

    def __init__(self, layer: Any, bits: int = 8, per_channel: bool = True, **kwargs: Any) -> None:
        super().__init__(layer, **{"name": layer.name, **kwargs})
        self.bits = bits
        self.per_channel = per_channel
        self.stored_bits = bits  # an export may spell 4 bits as 8
        axes = KERNEL_AXES[type(layer).__name__]
        self._axes = axes if per_channel and type(layer).__name__ in ("Conv2D", "DepthwiseConv2D") else None

    def build(self, inputs_shape: Any, step_shape: Any = None) -> None:
        super().build(inputs_shape)

    def call(self, inputs: Any, step: Any = None) -> Any:
        kernel, limit = self._quantized()
        values = [(self.layer.kernel, kernel)]
        if self.layer.use_bias and step is not None:
            values.append((self.layer.bias, self._int32(limit, step)))
        with keras.StatelessScope(state_mapping=values):
            return self.layer(inputs)

    def quantized_kernel(self) -> Any:
        """The kernel as it is computed with: float32 on at most 2^bits - 1 levels a scale, numpy."""
        return self._quantized()[0].numpy()

    def compute_output_shape(self, inputs_shape: Any, step_shape: Any = None) -> Any:
        return self.layer.compute_output_shape(inputs_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "bits": self.bits, "per_channel": self.per_channel}

    def _int32(self, limit: Any, step: Any) -> Any:
        """The bias as the kernels add it: a whole multiple of the input's step times the weights'."""
        bias = tf.convert_to_tensor(self.layer.bias)
        unit = step * limit / (2 ** (self.bits - 1) - 1)
        return bias + tf.stop_gradient(tf.round(bias / unit) * unit - bias)

    def _quantized(self) -> tuple[Any, Any]:
        kernel = self.layer.kernel
        if self.stored_bits == self.bits:
            return quantize_kernel(tf.convert_to_tensor(kernel), self.bits, self._axes)
        # The same levels with the same scale, as numbers of more bits.  They go in as a constant: TensorFlow's
        # converter would take the fewer bits of a fake quantisation before this one.
        with tf.init_scope():
            levels, limit = (x.numpy() for x in quantize_kernel(kernel.value, self.bits, self._axes))
        wide = tf.constant(limit * np.float32((2 ** (self.stored_bits - 1) - 1) / (2 ** (self.bits - 1) - 1)))
        stored = _narrow(_by_channel(tf.constant(levels), self._axes), wide, self.stored_bits)
        return tf.reshape(stored, kernel.shape), tf.constant(limit)


@keras.saving.register_keras_serializable("edgeferry")
class QuantizedActivation(keras.layers.Activation):  # type: ignore[misc] # Keras is not annotated
    """An activation as int8 kernels compute it: x * sigmoid(x) rounds the sigmoid, too; any other is itself.

    Args:
        split: it belongs to the layer before it, which has become linear so that what lies between is rounded.
    """

    supports_jit = False

    def __init__(self, activation: Any, split: bool = False, **kwargs: Any) -> None:
        super().__init__(activation, **kwargs)
        self.split = split

    def call(self, inputs: Any) -> Any:
        if self.activation is not keras.activations.silu:
            return super().call(inputs)
        low, high = UNIT
        return inputs * tf.quantization.fake_quant_with_min_max_args(tf.sigmoid(inputs), low, high)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "split": self.split}


@keras.saving.register_keras_serializable("edgeferry")
class FakeQuant(keras.layers.Layer):  # type: ignore[misc] # Keras is not annotated
    """An activation rounded to the 256 levels of a range for the whole tensor; the range always contains 0.

    While it trains, the range follows the batches: their mean minimum and maximum at first, then a moving average.

    Args:
        fixed: the range where TFLite's specification gives one; None observes it.  Not rounded while it trains:
            a probability of 0 has no logarithm for the loss, and no gradient.
        momentum: of the moving average.
        delay_steps: training steps that only observe and do not round.
        learned: the range is observed for ``delay_steps`` (at least one) and then trained by gradient, as
            Jain et al. 2020 do, arXiv:1903.08066.

    Call arguments:
        inputs: float32.
        average: the inputs are averages of numbers that are on the range's levels already.  They add nothing to
            the range, and ties go away from zero, as TFLite's kernels have it.

    Returns:
        The rounded inputs, and the step from level to level, a float32 scalar.
    """

    supports_jit = False

    def __init__(
        self,
        fixed: tuple[float, float] | None = None,
        momentum: float = 0.99,
        delay_steps: int = 0,
        learned: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.fixed = tuple(fixed) if fixed else None
        self.momentum = momentum
        self.delay_steps = delay_steps
        self.learned = learned
        self.exporting = False  # TensorFlow's converter wants the rounding bare
        self.watching = False  # observes though it does not train

    def build(self, input_shape: Any) -> None:
        if self.fixed:
            return
        low, high = (keras.initializers.Constant(limit) for limit in UNOBSERVED)
        self.minimum = self.add_weight(name="minimum", shape=(), initializer=low, trainable=self.learned)
        self.maximum = self.add_weight(name="maximum", shape=(), initializer=high, trainable=self.learned)
        self.steps = self.add_weight(name="steps", shape=(), dtype="int32", initializer="zeros", trainable=False)
        self.frozen = self.add_weight(name="frozen", shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, inputs: Any, training: bool = False, average: bool = False) -> tuple[Any, Any]:
        if (training or self.watching) and not average and not self.fixed:
            self._observe(inputs)
        low, high = self.range()
        step = (high - low) / 255.0
        if training and self.fixed:
            return inputs, step
        if average and not self.exporting:
            # Ties would all go up.  Level 128 from below is the one that int8 stores as 0.
            inputs += TIE * step * tf.sign(inputs - low - 128.0 * step)
        rounded = tf.quantization.fake_quant_with_min_max_vars(inputs, low, high, num_bits=8)
        if training and self.delay_steps:
            rounded = tf.where(tf.convert_to_tensor(self.steps) <= self.delay_steps, inputs, rounded)
        return rounded, step

    def range(self) -> tuple[Any, Any]:
        """Lowest and highest level, float32 scalars; 0 is a level."""
        if self.fixed:
            return tuple(tf.constant(limit, tf.float32) for limit in self.fixed)
        low = tf.minimum(tf.convert_to_tensor(self.minimum), 0.0)
        high = tf.maximum(tf.convert_to_tensor(self.maximum), low + NARROWEST)
        high = tf.maximum(high, 0.0)
        # Zero is made a level here: left to TensorFlow and its converter, ties would fall differently.
        scale = (high - low) / 255.0
        zero = tf.round(-low / scale)
        return low + tf.stop_gradient(-zero * scale - low), high + tf.stop_gradient((255.0 - zero) * scale - high)

    @property
    def observed(self) -> bool:
        """Whether the range is known."""
        return bool(self.fixed) or int(self.steps) > 0

    def freeze(self) -> None:
        """Keep the range as it is."""
        if not self.fixed:
            self.frozen.assign(1)
            self.trainable = False

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape, ()

    def get_config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("fixed", "momentum", "delay_steps", "learned")}
        return {**super().get_config(), **own}

    def _observe(self, inputs: Any) -> None:
        steps = tf.convert_to_tensor(self.steps)
        rate = tf.maximum(1.0 / (tf.cast(steps, tf.float32) + 1.0), 1.0 - self.momentum)
        last = max(self.delay_steps, 1) if self.learned else tf.int32.max
        watching = (tf.convert_to_tensor(self.frozen) == 0) & (self.watching | (steps < last))
        rate = tf.where(watching, rate, 0.0)
        values = tf.stop_gradient(inputs)
        for limit, seen in ((self.minimum, tf.reduce_min(values)), (self.maximum, tf.reduce_max(values))):
            limit.assign_add(rate * (seen - tf.convert_to_tensor(limit)))
        self.steps.assign_add(1)

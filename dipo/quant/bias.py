"""Bias on the accumulator's own grid, as integer kernels add it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dipo.quant.spec import QParams

TINY = np.finfo(np.float32).tiny
_MOST = 1 << 30
"""Largest code: kernels add the bias to an int32 accumulator, which wraps, and half of it is left to the products."""


@dataclass(frozen=True, eq=False)
class QuantizedBias:
    """An int32 bias: `values = codes * scale`, with `scale = input_scale * weight_scale`."""

    codes: NDArray[np.int32]
    """Integer codes, shape [C]."""
    qparams: QParams
    """Scale of shape [] or [C], zero point 0, and the limits of int32."""
    weight_scale: NDArray[np.float32]
    """Scale of the weight, raised for channels whose bias would not fit otherwise; shaped like the one given."""

    @property
    def values(self) -> NDArray[np.float32]:
        """The dequantized bias, in float32 as DequantizeLinear computes it; shape [C]."""
        return self.codes.astype(np.float32) * self.qparams.scale


def quantize_bias(bias: NDArray[np.float32], *, input_scale: NDArray[np.float32], weight: QParams) -> QuantizedBias:
    """Round a bias to the grid of its layer's int32 accumulator.

    `codes = round_half_even(bias / s)` with `s = input_scale * weight_scale` in float32 (Jacob et al., Quantization and
    Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2.4).

    A channel whose weights are almost zero, as folding a BatchNormalization can leave them, has so small a scale that
    its bias exceeds int32. Its weight then takes a larger scale at which the bias fits. Rounding such a weight by half
    a step, at inputs of up to 2^8 steps, changes a sum of K products by less than K * 2^-23 of the bias.

    Args:
        bias: Float bias, shape [C].
        input_scale: Scale of the layer's input, shape [].
        weight: Grid of the layer's weight; its scale has shape [] or [C], or [C / groups] for a transposed convolution,
            whose weight has the output channels of one group. A raised scale stays a power of two where all are.
    """
    weight_scale = weight.scale
    needed = np.abs(bias) / (input_scale * np.float32(_MOST))
    needed = needed.reshape(-1, weight_scale.size).max(axis=0) if weight_scale.ndim else needed.max()
    if weight.power_of_two:
        needed = np.where(needed > 0, np.exp2(np.ceil(np.log2(np.maximum(needed, TINY)))), 0).astype(np.float32)
    weight_scale = np.maximum(weight_scale, needed)
    scale = np.maximum(input_scale * weight_scale, TINY)
    if scale.ndim:
        scale = np.tile(scale, bias.size // scale.size)
    codes = np.rint(bias.astype(np.float64) / scale.astype(np.float64)).astype(np.int32)
    int32 = np.iinfo(np.int32)
    zero_point = np.zeros(scale.shape, np.int32)
    axis = 0 if scale.ndim else None
    qparams = QParams(scale=scale, zero_point=zero_point, qmin=int32.min, qmax=int32.max, axis=axis)
    return QuantizedBias(codes, qparams, weight_scale)

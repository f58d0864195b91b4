"""Bias on the accumulator's own grid, as integer kernels add it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dipo.quant.spec import QParams


@dataclass(frozen=True, eq=False)
class QuantizedBias:
    """An int32 bias: `values = codes * scale`."""

    codes: NDArray[np.int32]
    """Shape [C]."""
    qparams: QParams
    """Zero point 0, the limits of int32; the scale has shape [] or [C]."""

    @property
    def values(self) -> NDArray[np.float32]:
        """What the codes stand for, in float32 as DequantizeLinear computes it; shape [C]."""
        return self.codes.astype(np.float32) * self.qparams.scale


def quantize_bias(
    bias: NDArray[np.float32], *, input_scale: NDArray[np.float32], weight_scale: NDArray[np.float32]
) -> QuantizedBias:
    """Round a bias to the grid of its layer's int32 accumulator.

    `codes = clip(round_half_even(bias / s), -2^31, 2^31 - 1)` with `s = input_scale * weight_scale` in float32
    (Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2.4).

    A channel whose weights are next to nothing has a tiny scale, and its bias may saturate: what is then lost shows in
    `values`.

    Args:
        bias: Float bias, shape [C].
        input_scale: Scale of the layer's input, shape [].
        weight_scale: Scale of its weight, shape [] or [C]; [C / groups] for a transposed convolution, whose weight
            counts the output channels of one group.
    """
    int32 = np.iinfo(np.int32)
    # An underflow to zero would divide by zero; any positive scale saturates such a bias.
    scale = np.maximum(input_scale * weight_scale, np.finfo(np.float32).tiny)
    if scale.ndim:
        scale = np.tile(scale, bias.size // scale.size)
    rounded = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    codes = np.clip(rounded, int32.min, int32.max).astype(np.int32)
    zero_point = np.zeros(scale.shape, np.int32)
    axis = 0 if scale.ndim else None
    return QuantizedBias(codes, QParams(scale=scale, zero_point=zero_point, qmin=int32.min, qmax=int32.max, axis=axis))

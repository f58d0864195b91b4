"""What a deploy target quantizes: data that the plan and the writers follow.

There is one instance for each target, in `export/platforms`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PlatformRules:
    """One deploy target."""

    name: str
    operators: frozenset[str]
    """ONNX operators whose inputs are quantized."""
    weight_symmetric: bool | None
    """True or False where the target takes only that; None where it takes both: symmetric from 8 bits on."""
    weight_per_channel: bool
    act_symmetric: bool
    act_signed: bool
    int32_bias: bool
    """Bias stored as int32 with scale (input scale x weight scale); float otherwise."""
    fuse_residual_add: bool
    """Conv + Add + Relu is one kernel: the Conv's output before the Add stays float."""
    quantize_outputs: bool = False
    """The network's outputs are quantized too."""
    weight_narrow: bool | None = None
    """True or False where the target takes weights only without, or only with, their smallest code; None where it takes
    both: with."""
    power_of_two: bool | None = None
    """True where the target takes only scales that are powers of two; None where it takes any: any."""
    any_act_grid: bool = False
    """Activations may be signed or not and symmetric or not, whatever `act_signed` and `act_symmetric` say; these are
    then what they are where nobody asks for another."""
    int8_kernels: bool = False
    """Widths below 8 bits run on the kernels for 8: a Clip on the codes, between QuantizeLinear and DequantizeLinear,
    keeps activations inside their limits, and weights are stored less their zero point. Otherwise the Clip is on the
    numbers before QuantizeLinear, and weights are stored as they are."""

"""The part of the configuration that decides numbers: grids, ranges and algorithms."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from dipo.composition import STEPS, check_order, reconstruction_of
from dipo.errors import UserError
from dipo.section import Between, OneOf, Section, choose, options, show

WIDTHS = Between(2, 16)
NODE_SETTINGS = ("weight_bits", "act_bits", "weight_symmetric", "weight_per_channel", "weight_narrow", "weight_block")


@dataclass(frozen=True)
class AlgoConfig(Section):
    """What is done to the network after calibration."""

    name: str = "none"
    """Name in reports and in the run folder's name."""
    steps: Annotated[list[str], OneOf(tuple(STEPS))] = field(default_factory=list)
    """Steps, in their order; empty: calibrate and export."""
    unit: Annotated[str | None, OneOf(("layer", "block", "stage", "network"))] = None
    """What is reconstructed together; null: a layer by adaround, else a block."""
    iters: Annotated[int, Between(1)] = 320
    """Optimizer steps for each unit."""
    polish_iters: Annotated[int | None, Between(0)] = None
    """Of those steps, the last that cluster.schedule=parallel runs behind the quantized units before; null: 15 %."""
    polish_lr: Annotated[float, Between(0)] = 2.0
    """Factor on all learning rates in those steps: they are few, and biases and scales have all but come to rest."""
    batch_size: Annotated[int, Between(1)] = 32
    """Samples in an optimizer step."""
    loss: Annotated[str, OneOf(("error", "fisher"))] = "error"
    """What a unit's outputs are judged by: their error, or their error times the squared gradients of the network's
    likelihood (BRECQ's Fisher diagonal)."""
    loss_norm: Annotated[float, Between(1)] = 2.0
    """Exponent of the error in the loss."""
    inputs: Annotated[str, OneOf(("quantized", "float"))] = "quantized"
    """What a unit reads while it is reconstructed: what the quantized units before it give (asymmetric), or the float
    network's values (symmetric)."""
    fp_input_prob: Annotated[float | None, Between(0, 0.99)] = None
    """Probability, in steps of 1/256, that an element of an activation keeps its float value during reconstruction;
    null: 0.5 by qdrop, else 0."""
    rounding: Annotated[str, OneOf(("sigmoid", "straight_through"))] = "sigmoid"
    """How rounding is learned: up or down from each weight by a rectified sigmoid (AdaRound), or any code, with
    gradients that pass the rounding as if it were not there."""
    train_scale: bool = False
    """Train the weights' scales together with the rounding (Genie)."""
    lr_round: Annotated[float, Between(0)] = 1.5e-3
    """Learning rate of the rounding, for algo.reference_iters steps; multiplied by reference_iters / iters."""
    lr_bias: Annotated[float, Between(0)] = 1e-3
    """Learning rate of the biases, scaled like lr_round."""
    lr_act: Annotated[float, Between(0)] = 4e-4
    """Learning rate of the activation scales' logarithms, scaled like lr_round."""
    lr_scale: Annotated[float, Between(0)] = 5e-4
    """Learning rate of the weight scales' logarithms, scaled like lr_round (algo.train_scale, and tune)."""
    reference_iters: Annotated[int, Between(1)] = 2000
    """Optimizer steps for which the learning rates are quoted."""
    reg_strength: Annotated[float, Between(0)] = 0.01
    """Weight of the regulariser that drives the rounding to 0 or 1."""
    warmup: Annotated[float, Between(0, 1)] = 0.2
    """Fraction of the steps before the regulariser sets in."""
    beta_start: Annotated[float, Between(0, above=True)] = 20.0
    """Exponent of the regulariser as it sets in."""
    beta_end: Annotated[float, Between(0, above=True)] = 2.0
    """Exponent of the regulariser at the last step."""
    correct_bias: bool = True
    """Correct the biases after each unit; kept only where that lowers the error of the unit's output."""
    train_bias: bool = True
    """Train the biases together with the rounding."""
    tune_iters: Annotated[int, Between(1)] = 150
    """Optimizer steps of tune, on the whole network."""
    tune_lr: Annotated[float, Between(0)] = 1.0
    """Factor on lr_bias, lr_scale and lr_act in tune, where they are not scaled by reference_iters."""
    equalize_per_channel: bool = False
    """Equalize weights with a scale for each channel, too: they need it not, and activations get wider ranges."""
    absorb_bias: bool = True
    """Equalization moves what no activation cuts off from a layer's bias into the next one's."""
    bias_source: Annotated[str, OneOf(("auto", "data", "batchnorm"))] = "auto"
    """Where bias_correction takes a layer's mean input from: the samples, or the BatchNormalization before it; auto:
    the samples, where there are any."""
    sparsity: Annotated[float, Between(0, 0.99)] = 0.5
    """Part of a layer's weights that sparsify sets to zero (algo.sparsity_pattern=unstructured)."""
    sparsity_pattern: str = "unstructured"
    """`unstructured`, or N:M: of M weights in a row along the input channels N are kept at most."""
    sparsity_mask: Annotated[str, OneOf(("magnitude", "error"))] = "error"
    """Which weights go: the smallest, or those whose loss the others make up for best (optimal brain surgeon)."""
    sparsity_skip: list[str] = field(default_factory=list)
    """Name patterns of layers that sparsify leaves alone; the first and the last are left alone anyway."""

    def __post_init__(self) -> None:
        """Check each option, then the order of the steps."""
        super().__post_init__()
        check_order(self.steps)
        pattern = self.sparsity_pattern
        if pattern != "unstructured" and not (match := re.fullmatch(r"(\d+):(\d+)", pattern)):
            raise UserError(f"algo.sparsity_pattern {show(pattern)}: give unstructured, or N:M such as 2:4")
        if pattern != "unstructured" and match and not 0 < int(match[1]) < int(match[2]):
            raise UserError(f"algo.sparsity_pattern {show(pattern)}: of M weights 1 to M - 1 are kept, such as 2:4")

    def for_step(self, name: str) -> AlgoConfig:
        """The options with what a step takes where they leave it open."""
        step = STEPS[name]
        choosable = reconstruction_of([name]) is not None
        prob = self.fp_input_prob if choosable and self.fp_input_prob is not None else step.fp_input_prob
        unit = self.unit if choosable and self.unit is not None else step.unit
        return dataclasses.replace(self, unit=unit, fp_input_prob=prob)


@dataclass(frozen=True)
class CalibConfig(Section):
    """How a range is chosen from what was seen."""

    method: Annotated[str, OneOf(("minmax", "percentile", "mse", "kl", "octav", "batchnorm"))] = "mse"
    """Range of an activation: all that was seen, a percentile of it, the least squared error (by a search or by OCTAV's
    iteration), the least divergence of the histograms (kl); or, without samples, what BatchNorm's statistics say."""
    sigmas: Annotated[float, Between(0, above=True)] = 6.0
    """Standard deviations on either side of the mean that a range covers (calib.method=batchnorm)."""
    percentile: Annotated[float, Between(50, 100)] = 99.99
    """Per cent of the values that a range keeps (calib.method=percentile)."""
    weights: Annotated[str, OneOf(("minmax", "mse", "percentile"))] = "mse"
    """Range of a weight, or of each of its channels: its extremes, the least error, or a percentile of it."""
    weight_percentile: Annotated[float, Between(50, 100)] = 99.99
    """Per cent of the weights, or of those of each channel, that a range keeps (calib.weights=percentile)."""


@dataclass(frozen=True)
class PrecisionConfig(Section):
    """Widths and grids."""

    weight_bits: Annotated[int, WIDTHS] = 8
    """Bits of a weight."""
    act_bits: Annotated[int, WIDTHS] = 8
    """Bits of an activation."""
    weight_per_channel: bool | None = None
    """One scale for each output channel of a weight; null: the platform decides."""
    weight_symmetric: bool | None = None
    """Weights with their zero point in the middle; null: the platform decides, and where it takes both, symmetric
    from 8 bits on, asymmetric below."""
    weight_narrow: bool | None = None
    """Weights without their smallest code (-127 .. 127); null: the platform decides, and where it takes both, with."""
    weight_block: Annotated[int | None, Between(2)] = None
    """So many weights in a row along the input axis share a scale, for each output channel; the last block may be
    shorter, and a layer with no more inputs than that has a scale for each channel; null: all of a channel."""
    act_signed: bool | None = None
    """Activations with codes on both sides of zero (-128 .. 127); null: the platform decides."""
    act_symmetric: bool | None = None
    """Activations with their zero point in the middle of the codes; null: the platform decides."""
    power_of_two: bool | None = None
    """Scales that are powers of two; null: the platform decides, and where it takes others, others."""
    placement: Annotated[str, OneOf(("input", "output"))] = "input"
    """Where activations are quantized: where the target's operators read them, or also behind each of these operators
    with the activation function that it is fused with, whoever reads it."""
    first_last_bits: Annotated[int | None, WIDTHS] = 8
    """Bits in the first and the last layer, where weight_bits or act_bits are below; null: as everywhere."""
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For the nodes whose name matches a pattern (`/features/*`): weight_bits, act_bits, weight_symmetric,
    weight_per_channel, weight_narrow or weight_block (null: none)."""
    skip: list[str] = field(default_factory=list)
    """Node-name patterns of what stays float."""

    def __post_init__(self) -> None:
        """Check each option, then the overrides.

        Raises:
            UserError: An override sets something else than a width or a grid, or sets it wrongly.
        """
        super().__post_init__()
        settings = {option.name: option for option in options(PrecisionConfig) if option.name in NODE_SETTINGS}
        for pattern, values in self.overrides.items():
            key = f"precision.overrides '{pattern}'"
            if not isinstance(values, dict):
                raise UserError(f"{key} {show(values)}: give settings such as {{weight_bits:4}}")
            for name, value in values.items():
                if name not in settings:
                    raise UserError(f"{key}: unknown setting '{name}': {choose(str(name), NODE_SETTINGS)}")
                optional = name == "weight_block"
                dataclasses.replace(settings[name], key=f"{key} {name}", optional=optional).read(value)

    @property
    def title(self) -> str:
        """Such as w4a8."""
        return f"w{self.weight_bits}a{self.act_bits}"

"""The part of the configuration that decides grids and ranges."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any

from dipo.errors import UserError
from dipo.quant.range_methods import RANGE_METHODS
from dipo.section import Between, OneOf, Section, choose, options, show

WIDTHS = Between(2, 16)
NODE_SETTINGS = ("weight_bits", "act_bits", "weight_symmetric", "weight_per_channel", "weight_narrow", "weight_block")


@dataclass(frozen=True)
class CalibConfig(Section):
    """How a range is chosen from what was seen."""

    method: Annotated[str, OneOf(RANGE_METHODS)] = "mse"
    """Range of an activation: all that was seen, a percentile of it, the least squared error (by a search or by OCTAV's
    iteration), the least divergence of the histograms (kl); or, without samples, what BatchNorm's statistics say."""
    sigmas: Annotated[float, Between(0, above=True)] = 6.0
    """Standard deviations on either side of the mean that a range covers (calib.method=batchnorm)."""
    percentile: Annotated[float, Between(50, 100)] = 99.99
    """Per cent of the values that a range keeps (calib.method=percentile)."""
    headroom: Annotated[str, OneOf(("auto", "none"))] = "auto"
    """Room beyond a range for samples unlike those seen; auto: where samples are few and half of them are better
    served by it with the ranges of the other half."""
    weights: Annotated[str, OneOf(("minmax", "mse", "percentile"))] = "mse"
    """Range of a weight, or of each of its channels: its extremes, the least error, or a percentile of it."""
    weight_percentile: Annotated[float, Between(50, 100)] = 99.99
    """Per cent of the weights, or of those of each channel, that a range keeps (calib.weights=percentile)."""

    @property
    def reads_statistics(self) -> bool:
        """Whether samples must be observed for the ranges of activations."""
        return RANGE_METHODS[self.method].reads_statistics


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
        """Widths of weights and activations, such as w4a8."""
        return f"w{self.weight_bits}a{self.act_bits}"

"""Grids of weights and activations: as the user asks, else as the target has them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fnmatch import fnmatchcase

from dipo.graph.recurrent import BITS
from dipo.graph.target_spec import TargetSpec, WeightForm
from dipo.graph.weight_layout import WeightLayout
from dipo.quant.spec import QuantSpec, input_axis
from dipo.recipe import PrecisionConfig


@dataclass(frozen=True)
class LayerScheme:
    """The precision asked for one layer; None leaves a choice to the target."""

    weight_bits: int
    act_bits: int
    """Width of the layer's input."""
    weight_per_channel: bool | None
    weight_symmetric: bool | None
    weight_narrow: bool | None
    weight_block: int | None
    """Number of inputs of an output channel that share a scale; None: all of them."""


def layer_scheme(name: str, precision: PrecisionConfig, *, is_edge: bool) -> LayerScheme:
    """Return the precision asked for one layer.

    Args:
        name: Name of its node.
        precision: What is asked for all layers, and overrides for layers by pattern of their names.
        is_edge: Whether it is one of the first or last layers, which have at least `first_last_bits`.
    """
    least = precision.first_last_bits or 0 if is_edge else 0
    scheme = LayerScheme(
        weight_bits=max(precision.weight_bits, least),
        act_bits=max(precision.act_bits, least),
        weight_per_channel=precision.weight_per_channel,
        weight_symmetric=precision.weight_symmetric,
        weight_narrow=precision.weight_narrow,
        weight_block=precision.weight_block,
    )
    for pattern, settings in precision.overrides.items():
        if fnmatchcase(name, pattern):
            scheme = dataclasses.replace(scheme, **settings)
    return scheme


def weight_spec(
    layout: WeightLayout, scheme: LayerScheme, rules: TargetSpec, *, power_of_two: bool | None
) -> QuantSpec:
    """Return the grid of a layer's weight.

    Args:
        layout: The layer's operator, and the shape of its weight.
        scheme: The precision asked for.
        rules: What the target takes.
        power_of_two: Whether scales are to be powers of two; None: as the target has it.
    """
    symmetric = scheme.weight_symmetric
    if symmetric is None:
        symmetric = rules.weight_symmetric if rules.weight_symmetric is not None else scheme.weight_bits >= 8
    length = layout.shape[input_axis(layout.scale_axis)]
    block = rules.block(layout.operator, bits=scheme.weight_bits, wish=scheme.weight_block, length=length)
    # Weights with blocks are dequantized in front of a float operator, which takes any form.
    form = layout.form if block is None else WeightForm.PLAIN
    per_channel = rules.per_channel(layout.operator, form, wish=scheme.weight_per_channel)
    return QuantSpec(
        bits=scheme.weight_bits,
        signed=symmetric,
        symmetric=symmetric,
        per_channel=per_channel,
        narrow=_chosen(wish=scheme.weight_narrow, rule=rules.weight_narrow),
        power_of_two=_powers(rules, wish=power_of_two),
        block=block if per_channel else None,
    )


def recurrent_spec(rules: TargetSpec, precision: PrecisionConfig) -> QuantSpec:
    """Return the grid of recurrent operators' weights: 8 bits, symmetric, with a scale for each row or one for all."""
    per_row = rules.weight_per_channel and precision.weight_per_channel is not False
    return QuantSpec(
        bits=BITS,
        signed=True,
        symmetric=True,
        per_channel=per_row,
        narrow=_chosen(wish=precision.weight_narrow, rule=rules.weight_narrow),
        power_of_two=_powers(rules, wish=precision.power_of_two),
    )


def act_spec(rules: TargetSpec, precision: PrecisionConfig) -> QuantSpec:
    """Return the grid of activations that no layer reads: at least 8 bits, since they need no multiplier."""
    return QuantSpec(
        bits=max(precision.act_bits, 8),
        signed=_chosen(wish=precision.act_signed, rule=rules.act_signed),
        symmetric=_chosen(wish=precision.act_symmetric, rule=rules.act_symmetric),
        power_of_two=_powers(rules, wish=precision.power_of_two),
    )


def _chosen(*, wish: bool | None, rule: bool | None) -> bool:
    """Return the user's choice, else the target's, else False."""
    return bool(rule if wish is None else wish)


def _powers(rules: TargetSpec, *, wish: bool | None) -> bool:
    return _chosen(wish=wish, rule=rules.power_of_two or rules.prefers_power_of_two)

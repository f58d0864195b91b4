"""What a deploy target quantizes: data that the plan and the writers follow.

There is one instance for each target, in its file in `export/targets`.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

ALL_WIDTHS = tuple(range(2, 17))


@dataclass(frozen=True)
class TargetSpec:
    """One deploy target."""

    name: str
    operators: Set[str]
    """Operators whose inputs are quantized, by key (`graph.operators`)."""
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
    weight_widths: tuple[int, ...] = ALL_WIDTHS
    """Bits that weights may have."""
    act_widths: tuple[int, ...] = ALL_WIDTHS
    """Bits that activations may have."""
    prefers_power_of_two: bool = False
    """Scales are powers of two where nobody asks for others; `power_of_two` is then None."""
    unsigned_where_positive: bool = False
    """What is nowhere negative has codes from 0 up and zero point 0; the rest is as `act_signed` has it."""
    fixed_ranges: Set[str] = frozenset()
    """Operators whose outputs have the range of the function, not the one that was seen; it ends at 1."""
    ranges_beside: bool = False
    """The file with the ranges has those of values that stay float, too: scripts look all of them up."""
    unify_concats: bool = False
    """What a Concat joins is quantized as what it makes."""
    channel_operators: frozenset[str] | None = None
    """Layers that may have a scale for each channel; None for all."""
    weight_blocks: frozenset[str] = frozenset()
    """Layers whose channels may have a scale for each block of inputs."""
    block_bits: int = 16
    """Widest weights that may have blocks."""
    whole_blocks: bool = False
    """All blocks of a weight are of the same size."""
    weight_types: frozenset[int] = frozenset({8, 16})
    """Bits of the types in which the target reads weights from DequantizeLinear."""
    narrow_operators: frozenset[str] | None = None
    """Layers whose weights it reads in types below 8 bits, where it has some; None for all."""

    def only(self, option: str) -> bool | None:
        """Return the one value of an option of `precision` that the target takes; None where it takes both.

        Args:
            option: weight_per_channel, weight_symmetric, weight_narrow, act_signed, act_symmetric or power_of_two.
        """
        acts = None if self.any_act_grid else (self.act_signed, self.act_symmetric)
        return {
            "weight_per_channel": None if self.weight_per_channel else False,
            "weight_symmetric": self.weight_symmetric,
            "weight_narrow": self.weight_narrow,
            "act_signed": acts and acts[0],
            "act_symmetric": acts and acts[1],
            "power_of_two": self.power_of_two,
        }[option]

    def per_channel(self, op_type: str, *, wish: bool | None) -> bool:
        """Return whether layers of this operator have a scale for each channel.

        Args:
            op_type: The layers'.
            wish: Whether they should, where the target takes that; None as the target has it.
        """
        takes = self.weight_per_channel and (self.channel_operators is None or op_type in self.channel_operators)
        return takes if wish is None else takes and wish

    def block(self, op_type: str, *, bits: int, wish: int | None, length: int) -> int | None:
        """Return how many inputs of a layer share a scale; None where those of a channel all do.

        Args:
            op_type: The layer's.
            bits: Its weight's width.
            wish: How many should.
            length: The weight's inputs for each output channel.
        """
        if wish is None or op_type not in self.weight_blocks or bits > self.block_bits or length <= wish:
            return None
        return None if self.whole_blocks and length % wish else wish

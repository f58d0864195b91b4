"""The specification of a deploy target: data that the plan and the writers follow.

There is one instance for each target, in its file in `export/targets`.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from enum import Enum, auto

ALL_WIDTHS = tuple(range(2, 17))


class WeightForm(Enum):
    """The form of a weight, as far as targets tell weights of one operator apart by it."""

    PLAIN = auto()
    STACK = auto()
    """Of a matrix product: matrices for different rows of the data, with axes in front of theirs."""
    TRANSPOSED_GROUPS = auto()
    """Of a transposed convolution with groups: no axis counts the output channels of all groups."""


@dataclass(frozen=True)
class TargetSpec:
    """What a deploy target quantizes, and on which grids."""

    name: str
    operators: Set[str]
    """Keys (`graph.operators`) of the operators whose inputs are quantized."""
    weight_symmetric: bool | None
    """True or False if the target takes only that; None if it takes both, with symmetric from 8 bits as the default."""
    weight_per_channel: bool
    act_symmetric: bool
    act_signed: bool
    int32_bias: bool
    """Whether biases are stored as int32 of scale input scale x weight scale; else float."""
    fuse_residual_add: bool
    """Whether Conv + Add + Relu is one kernel, so that the Conv's output before the Add stays float."""
    ends_on_codes: bool = False
    """Whether a kernel that multiplies no matrices runs on integers only where its output is quantized too. Where not,
    its inputs stay float: it would compute with floats all the same, of values that have lost what codes lose."""
    quantize_outputs: bool = False
    """Whether the network's outputs are quantized too."""
    weight_narrow: bool | None = None
    """True if the target takes weights only without their smallest code, False if only with it; None if it takes both,
    with it as the default."""
    power_of_two: bool | None = None
    """True if the target takes only scales that are powers of two; None if it takes any."""
    any_act_grid: bool = False
    """Whether activations may be signed or not and symmetric or not; `act_signed` and `act_symmetric` are then only the
    defaults."""
    int8_kernels: bool = False
    """Whether widths below 8 bits run on kernels for 8: a Clip on the codes, between QuantizeLinear and
    DequantizeLinear, keeps activations inside their limits, and weights are stored less their zero point. Otherwise the
    Clip is on the numbers before QuantizeLinear, and weights are stored as they are."""
    weight_widths: tuple[int, ...] = ALL_WIDTHS
    """Allowed widths of weights, in bits."""
    act_widths: tuple[int, ...] = ALL_WIDTHS
    """Allowed widths of activations, in bits."""
    prefers_power_of_two: bool = False
    """Whether scales are powers of two by default; `power_of_two` is then None."""
    unsigned_where_positive: bool = False
    """Whether values that cannot be negative are unsigned with zero point 0; others follow `act_signed`."""
    fixed_ranges: Set[str] = frozenset()
    """Operators whose outputs take the range of their function, which ends at 1, instead of the observed one."""
    ranges_beside: bool = False
    """Whether the range file also has ranges of values that stay float, because scripts look all of them up."""
    unify_concats: bool = False
    """Whether the inputs of a Concat are quantized like its output."""
    channel_operators: frozenset[str] | None = None
    """Operators of layers that may have a scale for each channel; None: all."""
    one_scale: frozenset[WeightForm] = frozenset({WeightForm.STACK})
    """Forms of weights that have one scale, where others have one for each channel. ONNX Runtime, which runs
    `quantized.onnx` of every target, takes no scale for each column of a stack of matrices."""
    weight_blocks: frozenset[str] = frozenset()
    """Operators of layers that may have a scale for each block of inputs."""
    block_bits: int = 16
    """Largest width, in bits, of weights that may have blocks."""
    whole_blocks: bool = False
    """Whether all blocks of a weight must be of the same size."""
    weight_types: frozenset[int] = frozenset({8, 16})
    """Widths, in bits, of the types in which the target reads weights from DequantizeLinear."""
    recurrent_weights: bool = False
    """Whether it reads the weights of recurrent operators (LSTM, GRU, RNN), which compute in float, through
    DequantizeLinear, so that they can be stored in 8 bits."""
    narrow_operators: frozenset[str] | None = None
    """Operators of layers whose weights it reads in types below 8 bits, if it has any; None: all."""

    def only(self, option: str) -> bool | None:
        """Return the only value of an option of `precision` that the target takes; None if it takes both.

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

    def per_channel(self, op_type: str, form: WeightForm, *, wish: bool | None) -> bool:
        """Return whether layers of this operator have a scale for each channel.

        Args:
            op_type: The layers' operator.
            form: Form of their weights.
            wish: Whether they should, if the target takes that; None: as the target has it.
        """
        takes = self.weight_per_channel and (self.channel_operators is None or op_type in self.channel_operators)
        takes = takes and form not in self.one_scale
        return takes if wish is None else takes and wish

    def block(self, op_type: str, *, bits: int, wish: int | None, length: int) -> int | None:
        """Return how many inputs of a layer share a scale; None if all of a channel do.

        Args:
            op_type: The layer's operator.
            bits: Width of its weight.
            wish: Number of inputs asked for.
            length: Number of weights of an output channel.
        """
        if wish is None or op_type not in self.weight_blocks or bits > self.block_bits or length <= wish:
            return None
        return None if self.whole_blocks and length % wish else wish

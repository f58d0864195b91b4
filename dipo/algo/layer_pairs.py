"""Pairs of layers that a channel can be rescaled between: one layer's output channels are the next one's inputs.

Between the two lie only nodes that keep channels apart and commute with positive factors, and nothing else reads what
they pass on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.graph import operators
from dipo.graph.accessors import array_of, node_name
from dipo.graph.layers import Layer, layer_of, layers_of
from dipo.graph.limits import clip_limits
from dipo.graph.operators import Channels


@dataclass(frozen=True)
class Intermediate:
    """A node between the two layers."""

    node: ir.Node
    num_dims_behind: int
    """Number of dimensions after the channels in its input."""
    repeat: int
    """Consecutive elements of the channels' dimension that belong to one channel of the first layer."""

    def along(self, channels: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return numbers for each channel, shaped to broadcast against the node's input."""
        return np.repeat(channels, self.repeat).reshape(-1, *(1,) * self.num_dims_behind)


@dataclass(frozen=True)
class LayerPair:
    """Two layers and the nodes between them."""

    first: Layer
    second: Layer
    between: tuple[Intermediate, ...]
    repeat: int
    """Consecutive input channels of the second layer for each output channel of the first."""


@dataclass(frozen=True)
class Skipped:
    """A node that was left as it is, with the reason."""

    where: str
    """Name of the node."""
    reason: str


def find_layer_pairs(model: ir.Model) -> tuple[list[LayerPair], list[Skipped]]:
    """Return the pairs of all layers with their next ones, in topological order, and the layers that have no partner.

    Args:
        model: A model that `graph.load` has normalised.
    """
    results = [layer_pair_after(layer) for layer in layers_of(model)]
    return [each for each in results if isinstance(each, LayerPair)], [
        each for each in results if isinstance(each, Skipped)
    ]


def find_chains(links: list[LayerPair]) -> list[list[LayerPair]]:
    """Return the groups of pairs that are equalized together: those into and out of a depthwise layer.

    Each pair is in one chain; the layers inside a chain are depthwise.
    """
    pairs_into = {link.second: link for link in links}
    pairs_from = {link.first: link for link in links}

    def is_inside(layer: Layer) -> bool:
        # A repeated channel meets several filters: that pair is solved by itself.
        return layer.is_depthwise and layer in pairs_into and layer in pairs_from and pairs_into[layer].repeat == 1

    chains = []
    for link in links:
        if is_inside(link.first):
            continue
        chain = [link]
        while is_inside(chain[-1].second):
            chain.append(pairs_from[chain[-1].second])
        chains.append(chain)
    return chains


def layer_pair_after(layer: Layer) -> LayerPair | Skipped:
    """Return the pair of a layer and the next one, or the reason why there is none."""
    where = layer.name
    if layer.is_stack:
        return Skipped(where, "its weight is a stack of matrices")
    num_dims_behind = layer.num_spatial
    repeat = 1
    between: list[Intermediate] = []
    value = layer.output
    while True:
        readers = list(value.uses())
        if value.is_graph_output():
            return Skipped(where, "what it makes is an output of the network")
        if len(readers) != 1:
            return Skipped(where, f"what it makes is read {len(readers)} times")
        follower, index = readers[0]
        second = layer_of(follower)
        if second is not None and index == 0:
            if not _fits(layer, second, num_dims_behind, repeat):
                return Skipped(where, f"{second.name} reads its channels in another order")
            return LayerPair(layer, second, tuple(between), repeat)
        passed = Intermediate(follower, num_dims_behind, repeat)
        reason = _obstacle(passed, index)
        if reason is not None:
            return Skipped(where, f"{node_name(follower)} is {follower.op_type}: {reason}")
        between.append(passed)
        num_dims_behind, repeat = _behind(passed)
        value = follower.outputs[0]


def mean_response(layer: Layer, weight: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means [C] of a layer's output for this weight, without its bias, away from borders.

    Args:
        layer: The layer.
        weight: Shaped like the layer's own.
        mean: Means of its input channels.
    """
    filters = layer.layout.filters(weight)
    # Each number goes to as many outputs as the kernel has elements, and those are strides apart.
    spread = np.prod(layer.node.attributes.get_ints("strides", ())) if layer.op_type == "ConvTranspose" else 1
    response: NDArray[np.float64] = np.einsum("goik,gi->go", filters, mean.reshape(filters.shape[0], -1)).reshape(-1)
    return response / spread


def keeps_shifts(passed: Intermediate) -> bool:
    """Return whether f(x + c) = f(x) + c for x >= 0, c >= 0, so that an amount taken off before can be added after."""
    node = passed.node
    if node.op_type == "AveragePool":
        return not any(node.attributes.get_ints("pads", ())) and _is_explicit(node)
    return operators.of(node).keeps_shifts


def _fits(first: Layer, second: Layer, num_dims_behind: int, repeat: int) -> bool:
    if second.is_stack:
        return False
    return num_dims_behind == second.num_spatial and second.layout.num_inputs == repeat * first.num_channels


def _obstacle(passed: Intermediate, index: int) -> str | None:
    """Return the reason why channels cannot be rescaled through the node; None where they can."""
    node = passed.node
    operator = operators.of(node)
    if index != 0 and operator.operand is None:
        return "it is no function of one value"
    if sum(bool(value.name) and (bool(value.uses()) or value.is_graph_output()) for value in node.outputs) > 1:
        return "it has several outputs"
    if operator.clips and not operator.homogeneous:
        known, reason = clip_limits(node) is not None, "its limits are no constants"
    elif operator.operand is not None:
        known, reason = _is_for_channels(passed, 1 - index), "it joins two values"
    elif not operator.homogeneous or operator.channels is None:
        known, reason = False, "it does not commute with factors"
    elif operator.channels is Channels.REDUCED:
        known, reason = reduced(passed) is not None, "it does not keep the channels"
    elif operator.channels is Channels.REARRANGED:
        known, reason = rearranged(passed) is not None, "where the channels go is not known"
    else:
        return None
    return None if known else reason


def _is_for_channels(passed: Intermediate, index: int) -> bool:
    """Return whether the other operand is a constant that broadcasts along all but the channels."""
    value = passed.node.inputs[index]
    if value is None or value.const_value is None:
        return False
    shape = array_of(value).shape
    position = len(shape) - 1 - passed.num_dims_behind
    return all(size == 1 for axis, size in enumerate(shape) if axis != position)


def _behind(passed: Intermediate) -> tuple[int, int]:
    """Return `num_dims_behind` and `repeat` of the node's output."""
    channels = operators.of(passed.node).channels
    if channels is Channels.REDUCED:
        layout = reduced(passed)
    elif channels is Channels.REARRANGED:
        layout = rearranged(passed)
    else:
        return passed.num_dims_behind, passed.repeat
    assert layout is not None
    return layout


def reduced(passed: Intermediate) -> tuple[int, int] | None:
    """Return `num_dims_behind` and `repeat` after a reduction of dimensions after the channels; None for any other."""
    node, source = passed.node, passed.node.inputs[0]
    if source is None or source.shape is None:
        return None
    rank = len(source.shape)
    axes: list[int] = list(node.attributes.get_ints("axes", ()))
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        if node.inputs[1].const_value is None:
            return None
        axes = array_of(node.inputs[1]).tolist()
    channel_axis = rank - 1 - passed.num_dims_behind
    axes = [axis % rank for axis in axes]
    if not axes or min(axes) <= channel_axis:
        return None
    kept = node.attributes.get_int("keepdims", 1) != 0
    return (passed.num_dims_behind if kept else passed.num_dims_behind - len(axes)), passed.repeat


def rearranged(passed: Intermediate) -> tuple[int, int] | None:
    """Return `num_dims_behind` and `repeat` after a rearrangement; None where it does not keep the channels in order.

    A Transpose may move them; others may flatten them with all dimensions after: [n, C, ...] to [n, C * ...].
    """
    node = passed.node
    if node.op_type == "Transpose":
        perm = list(node.attributes.get_ints("perm", ()))
        old = len(perm) - 1 - passed.num_dims_behind
        return (len(perm) - 1 - perm.index(old), passed.repeat) if old in perm else None
    before = node.inputs[0].shape if node.inputs[0] is not None else None
    after = node.outputs[0].shape
    if before is None or after is None or len(before) - 2 != passed.num_dims_behind or len(after) < 2:
        return None
    channels, *sizes = before[1:]
    if not isinstance(channels, int) or not all(isinstance(size, int) for size in sizes):
        return None
    length = int(np.prod([int(str(size)) for size in sizes], dtype=np.int64))
    if after[1] != channels * length or any(size != 1 for size in after[2:]):
        return None
    return len(after) - 2, passed.repeat * length


def _is_explicit(node: ir.Node) -> bool:
    return node.attributes.get_string("auto_pad", "NOTSET") in {"NOTSET", "VALID"}

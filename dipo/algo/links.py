"""Pairs of layers that a channel can be rescaled between: one layer's output channels are the next one's inputs.

Between the two lie only nodes that keep channels apart and commute with positive factors, and nothing else reads what
they pass on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.graph.accessors import array_of, is_layer, node_name, weight_of

_Float = TypeVar("_Float", np.float32, np.float64)

_HOMOGENEOUS = frozenset({"Identity", "Dropout", "Relu", "LeakyRelu", "PRelu"})
"""f(s x) = s f(x) for s > 0, element by element."""
_POOLINGS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
REDUCTIONS = frozenset({"ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"})
REARRANGEMENTS = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose"})
"""Nodes that `rearranged` looks at."""
_RELU_LIKE = frozenset({"Relu", "LeakyRelu", "PRelu"})


@dataclass(frozen=True)
class Passed:
    """A node between the two layers."""

    node: ir.Node
    num_dims_behind: int
    """Dimensions behind the channels in what it reads."""
    repeat: int
    """Elements in a row of the channels' dimension that belong to one channel of the first layer."""

    def along(self, channels: NDArray[np.floating]) -> NDArray[np.floating]:
        """Numbers for each channel, shaped to broadcast against what the node reads."""
        return np.repeat(channels, self.repeat).reshape(-1, *(1,) * self.num_dims_behind)


@dataclass(frozen=True)
class Link:
    """Two layers and what lies between them."""

    first: ir.Node
    second: ir.Node
    between: tuple[Passed, ...]
    repeat: int
    """Input channels of the second layer, in a row, for each output channel of the first."""


@dataclass(frozen=True)
class Refusal:
    """What was left as it is."""

    where: str
    """Name of a node."""
    reason: str


def find_links(model: ir.Model) -> tuple[list[Link], list[Refusal]]:
    """The links of all layers, in topological order, and why the other layers have none behind them.

    Args:
        model: A model that `graph.load` has normalised.
    """
    found = [link_behind(node) for node in model.graph if is_layer(node)]
    return [each for each in found if isinstance(each, Link)], [each for each in found if isinstance(each, Refusal)]


def find_chains(links: list[Link]) -> list[list[Link]]:
    """Links that have to be solved together: those into and out of a depthwise layer.

    Each link is in one chain; the layers inside a chain are depthwise.
    """
    before = {link.second: link for link in links}
    behind = {link.first: link for link in links}

    def is_inside(node: ir.Node) -> bool:
        # A repeated channel meets several filters: that pair is solved by itself.
        return is_depthwise(node) and node in before and node in behind and before[node].repeat == 1

    chains = []
    for link in links:
        if is_inside(link.first):
            continue
        chain = [link]
        while is_inside(chain[-1].second):
            chain.append(behind[chain[-1].second])
        chains.append(chain)
    return chains


def link_behind(node: ir.Node) -> Link | Refusal:
    """The link from a layer to the next one."""
    where = node_name(node)
    weight = weight_of(node)
    assert weight is not None
    if array_of(weight).ndim != 2 and node.op_type == "MatMul":
        return Refusal(where, "its weight is a stack of matrices")
    num_dims_behind = num_spatial(node)
    repeat = 1
    between: list[Passed] = []
    value = node.outputs[0]
    while True:
        readers = list(value.uses())
        if value.is_graph_output():
            return Refusal(where, "what it makes is an output of the network")
        if len(readers) != 1:
            return Refusal(where, f"what it makes is read {len(readers)} times")
        follower, index = readers[0]
        if is_layer(follower) and index == 0:
            if not _fits(node, follower, num_dims_behind, repeat):
                return Refusal(where, f"{node_name(follower)} reads its channels in another order")
            return Link(node, follower, tuple(between), repeat)
        passed = Passed(follower, num_dims_behind, repeat)
        reason = _obstacle(passed, index)
        if reason is not None:
            return Refusal(where, f"{node_name(follower)} is {follower.op_type}: {reason}")
        between.append(passed)
        num_dims_behind, repeat = _behind(passed)
        value = follower.outputs[0]


def filters_of(node: ir.Node, weight: NDArray[_Float]) -> NDArray[_Float]:
    """A view of a layer's weight as [groups, outputs of a group, inputs of a group, elements of the kernel]."""
    if node.op_type in {"Gemm", "MatMul"}:
        turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
        return (weight if turned else weight.T)[None, :, :, None]
    groups = node.attributes.get_int("group", 1)
    first, second = weight.shape[:2]
    filters = weight.reshape(groups, first // groups, second, -1)
    return filters.transpose(0, 2, 1, 3) if node.op_type == "ConvTranspose" else filters


def mean_response(node: ir.Node, weight: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means [C] of what a layer with this weight makes, without its bias, away from borders.

    Args:
        node: The layer.
        weight: Shaped like its own.
        mean: Of each of its input channels.
    """
    filters = filters_of(node, weight)
    # Each number goes to as many outputs as the kernel has elements, and those are strides apart.
    spread = np.prod(node.attributes.get_ints("strides", ())) if node.op_type == "ConvTranspose" else 1
    response: NDArray[np.float64] = np.einsum("goik,gi->go", filters, mean.reshape(filters.shape[0], -1)).reshape(-1)
    return response / spread


def num_channels(node: ir.Node) -> int:
    """Output channels of a layer."""
    weight = weight_of(node)
    assert weight is not None
    groups, outputs, _, _ = filters_of(node, array_of(weight)).shape
    return int(groups * outputs)


def num_spatial(node: ir.Node) -> int:
    """Dimensions behind the channels in what a layer reads and makes."""
    weight = weight_of(node)
    assert weight is not None
    return array_of(weight).ndim - 2 if node.op_type in {"Conv", "ConvTranspose"} else 0


def is_depthwise(node: ir.Node) -> bool:
    """Whether each output channel is made of the input channel of the same number."""
    weight = weight_of(node)
    assert weight is not None and weight.shape is not None
    groups = node.attributes.get_int("group", 1)
    return node.op_type in {"Conv", "ConvTranspose"} and tuple(weight.shape[:2]) == (groups, 1) and groups > 1


def clip_limits(node: ir.Node) -> tuple[float, float] | None:
    """Limits of a Relu or Clip, infinite where there is none; None where they are no constants, or for other nodes."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip":
        return None
    limits = [node.attributes.get_float("min", -np.inf), node.attributes.get_float("max", np.inf)]
    for index, value in enumerate(node.inputs[1:3]):
        if value is None:
            continue
        if value.const_value is None:
            return None
        limits[index] = float(array_of(value).item())
    return limits[0], limits[1]


def keeps_shifts(passed: Passed) -> bool:
    """Whether f(x + c) = f(x) + c for x >= 0, c >= 0: what is taken off a channel before can be given back behind."""
    node = passed.node
    if node.op_type == "AveragePool":
        return not any(node.attributes.get_ints("pads", ())) and _is_explicit(node)
    exact = {"Identity", "Dropout", "ReduceMean", "ReduceMax", "ReduceMin", "Clip"}
    return node.op_type in exact | _POOLINGS | _RELU_LIKE | REARRANGEMENTS


def _fits(first: ir.Node, second: ir.Node, num_dims_behind: int, repeat: int) -> bool:
    weight = weight_of(second)
    assert weight is not None
    if array_of(weight).ndim != 2 and second.op_type == "MatMul":
        return False
    groups, _, inputs, _ = filters_of(second, array_of(weight)).shape
    return num_dims_behind == num_spatial(second) and groups * inputs == repeat * num_channels(first)


def _obstacle(passed: Passed, index: int) -> str | None:
    """Why channels cannot be rescaled through the node; None where they can."""
    node = passed.node
    if node.domain != "" or (index != 0 and node.op_type not in {"Add", "Mul"}):
        return "it is no function of one value"
    if sum(bool(value.name) and (bool(value.uses()) or value.is_graph_output()) for value in node.outputs) > 1:
        return "it has several outputs"
    if node.op_type in _HOMOGENEOUS | _POOLINGS:
        return None
    if node.op_type == "Clip":
        known, reason = clip_limits(node) is not None, "its limits are no constants"
    elif node.op_type in {"Add", "Mul"}:
        known, reason = _is_for_channels(passed, 1 - index), "it joins two values"
    elif node.op_type in REDUCTIONS:
        known, reason = reduced(passed) is not None, "it does not keep the channels"
    elif node.op_type in REARRANGEMENTS:
        known, reason = rearranged(passed) is not None, "where the channels go is not known"
    else:
        known, reason = False, "it does not commute with factors"
    return None if known else reason


def _is_for_channels(passed: Passed, index: int) -> bool:
    """Whether the other operand is a constant that broadcasts along all but the channels."""
    value = passed.node.inputs[index]
    if value is None or value.const_value is None:
        return False
    shape = array_of(value).shape
    position = len(shape) - 1 - passed.num_dims_behind
    return all(size == 1 for axis, size in enumerate(shape) if axis != position)


def _behind(passed: Passed) -> tuple[int, int]:
    """Dimensions behind the channels, and the repeats of each, in what the node makes."""
    node = passed.node
    if node.op_type in REDUCTIONS:
        found = reduced(passed)
    elif node.op_type in REARRANGEMENTS:
        found = rearranged(passed)
    else:
        return passed.num_dims_behind, passed.repeat
    assert found is not None
    return found


def reduced(passed: Passed) -> tuple[int, int] | None:
    """`num_dims_behind` and `repeat` behind a reduction of what lies behind the channels; None for any other."""
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


def rearranged(passed: Passed) -> tuple[int, int] | None:
    """`num_dims_behind` and `repeat` behind a rearrangement; None where it does not keep the channels in order.

    A Transpose may move them; others may unroll them with all that lies behind: [n, C, ...] to [n, C * ...].
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

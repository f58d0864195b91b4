"""Units: the runs of layers that are reconstructed together.

A cut may lie wherever a single value is live (long skips do not count), right after the activation that closes a layer
or a residual sum. The pieces between two cuts are the units, except that two patterns are kept together although a cut
could part them: a depthwise convolution and the pointwise one after it (they factorise one convolution), and the
expansion before them if the pointwise one is a linear bottleneck (an inverted residual, arXiv:1801.04381, without its
skip).

Nodes at the end of a file that no layer comes after, a detector's Sigmoids, belong to the layers that they read,
wherever these lie. A value in which samples cannot be told apart (`graph.sample_axis`) cannot be kept between units: no
cut parts it from what reads it. One that is the same for all samples is made again in each unit that reads it. Sizes,
and what is computed from them alone, belong to no unit: they are known. What ONNX Runtime computes (`graph.program`) is
a unit by itself, since gradients do not pass it.

A stage is a run of such blocks between two changes of resolution, and the network may be one unit as a whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import onnx_ir as ir

from dipo.graph import operators
from dipo.graph.accessors import name_of, node_name, sole_consumer
from dipo.graph.layers import Layer, is_layer, layer_of
from dipo.graph.operators import Kind, Operand
from dipo.graph.program import float_regions, in_order
from dipo.graph.sample_axis import SampleAxes

Cut = Callable[[Sequence[ir.Node], Set[str]], list[list[ir.Node]]]
"""Function that partitions nodes, given the values that need not be kept."""
LONG_SKIP_LAYERS = 12
"""Number of layers after which a value that is still read is a long skip (a U-Net's), which keeps no unit open."""


@dataclass(frozen=True)
class Unit:
    """A run of nodes with the values that enter and leave it."""

    index: int
    name: str
    """Name of its first layer, or of its first node if it has no layer."""
    nodes: tuple[str, ...]
    """Names of its nodes, in topological order."""
    remade: tuple[str, ...]
    """Names of nodes of other units that run before its own: they make values that are the same for all samples."""
    layers: tuple[str, ...]
    """Names of its nodes with weights; a unit without any is only passed through."""
    inputs: tuple[str, ...]
    """Names of the values that it reads and neither computes nor makes again."""
    outputs: tuple[str, ...]
    """Names of its values that later units read, or that are network outputs."""

    @property
    def only_layer(self) -> str | None:
        """Name of the layer that it begins with, if it has no other; None where layers cannot be told apart."""
        return self.layers[0] if self.layers == self.nodes[:1] else None


def find_units(model: ir.Model, *, granularity: str, samples: SampleAxes | None = None) -> list[Unit]:
    """Partition the nodes of the graph into units.

    Args:
        model: A model that `graph.load` has normalised.
        granularity: `layer` as AdaRound reconstructs, `block` as BRECQ and QDrop do, `stage`, or `network`.
        samples: Where the samples lie in each value; None: on the first axis of all.
    """
    samples = samples or SampleAxes()
    known = samples.counted.keys()
    order = [node for node in model.graph if not {value.name for value in node.outputs if value.name} <= known]
    remakable = _remakable(order, samples)
    unkept = samples.mixed | samples.same
    pieces = _uncut(_pieces(model, order, remakable, _CUTS[granularity]), unkept - remakable - known)
    made_again = [_makers(piece, order, remakable) for piece in pieces]
    inputs = [_read([*makers, *piece], known) for makers, piece in zip(made_again, pieces, strict=True)]
    handed_on = {*itertools.chain(*inputs), *(name_of(value) for value in model.graph.outputs)} - unkept
    parts = zip(pieces, made_again, inputs, strict=True)
    return [_unit(index, *part, handed_on=handed_on) for index, part in enumerate(parts)]


def _pieces(model: ir.Model, nodes: Sequence[ir.Node], remakable: Set[str], cut: Cut) -> list[list[ir.Node]]:
    """Return the pieces into which the nodes are cut, those that ONNX Runtime computes with floats by themselves."""
    regions = {node: region for region in float_regions(model) for node in region}
    pulled = _tails_pulled(nodes)
    if not regions:
        return cut(pulled, remakable)
    alone = {node for node in pulled if node not in regions}
    pieces: list[list[ir.Node]] = []
    for is_torch, groups in itertools.groupby(in_order(pulled, alone), key=lambda group: group[0] in alone):
        if is_torch:
            pieces += cut([node for group in groups for node in group], remakable)
        else:
            pieces += [list(group) for group in groups]
    return pieces


def _remakable(nodes: Sequence[ir.Node], samples: SampleAxes) -> frozenset[str]:
    """Return the values that are the same for all samples and that a unit can make again, without any layer."""
    found: set[str] = set()
    for node in nodes:
        names = {name_of(value) for value in node.outputs if value.name}
        read = {name_of(v) for v in node.inputs if v is not None and v.const_value is None}
        kept = (read & (samples.same | samples.mixed)) - found - samples.counted.keys()
        if names and names <= samples.same and not kept and not is_layer(node):
            found |= names
    return frozenset(found)


def _tails_pulled(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """Return the nodes, those that no layer comes after moved up to the last node that they read."""
    before_layer: set[ir.Node] = set()
    for node in reversed(nodes):
        below = {use.node for value in node.outputs for use in value.uses()}
        if is_layer(node) or below & before_layer:
            before_layer.add(node)
    place: dict[ir.Node, int] = {}
    for index, node in enumerate(nodes):
        read = [place[source] for v in node.inputs if v is not None and (source := v.producer()) in place]
        place[node] = index if node in before_layer else max(read, default=index)
    return sorted(nodes, key=lambda node: place[node])


def _uncut(pieces: Sequence[list[ir.Node]], values: Set[str]) -> list[list[ir.Node]]:
    """Return the pieces, joined where one of the values would be handed from one to a later one."""
    of_node = {node: index for index, piece in enumerate(pieces) for node in piece}
    joined: list[list[ir.Node]] = []
    reach = -1
    for index, piece in enumerate(pieces):
        if index <= reach:
            joined[-1] = [*joined[-1], *piece]
        else:
            joined.append(piece)
        made = (value for node in piece for value in node.outputs if value.name in values)
        reach = max([reach, *(of_node[use.node] for value in made for use in value.uses() if use.node in of_node)])
    return joined


def _unit(
    index: int, nodes: Sequence[ir.Node], remade: Sequence[ir.Node], inputs: Sequence[str], *, handed_on: Set[str]
) -> Unit:
    layers = tuple(node_name(node) for node in nodes if is_layer(node))
    made = (name_of(value) for node in nodes for value in node.outputs if value.name)
    return Unit(
        index=index,
        name=layers[0] if layers else node_name(nodes[0]),
        nodes=tuple(node_name(node) for node in nodes),
        remade=tuple(node_name(node) for node in remade),
        layers=layers,
        inputs=tuple(inputs),
        outputs=tuple(name for name in made if name in handed_on),
    )


def _read(nodes: Sequence[ir.Node], known: Set[str]) -> list[str]:
    """Return the values that the nodes read and do not compute, without those that are `known`."""
    produced = {name_of(value) for node in nodes for value in node.outputs if value.name}
    read = (name_of(v) for node in nodes for v in node.inputs if v is not None and v.const_value is None)
    return [name for name in dict.fromkeys(read) if name not in produced and name not in known]


def _makers(nodes: Sequence[ir.Node], order: Sequence[ir.Node], remakable: Set[str]) -> list[ir.Node]:
    """Return the nodes outside of a unit that make the `remakable` values that it reads, in topological order."""
    inside, makers = set(nodes), set[ir.Node]()
    waiting = list(nodes)
    while waiting:
        for value in waiting.pop().inputs:
            maker = value.producer() if value is not None and value.name in remakable else None
            if maker is not None and maker not in inside and maker not in makers:
                makers.add(maker)
                waiting.append(maker)
    return [node for node in order if node in makers] if makers else []


def _layers(nodes: Sequence[ir.Node], _: Set[str]) -> list[list[ir.Node]]:
    """Return pieces: each layer with the activations that it alone feeds, and the nodes between layers."""
    pieces: list[list[ir.Node]] = []
    taken: set[ir.Node] = set()
    between: list[ir.Node] = []
    for node in nodes:
        if node in taken:
            continue
        if not is_layer(node):
            between.append(node)
            continue
        if between:
            pieces.append(between)
            between = []
        piece = [node]
        while (follower := _sole_activation(piece[-1])) is not None:
            piece.append(follower)
        taken.update(piece)
        pieces.append(piece)
    if between:
        pieces.append(between)
    return pieces


def _sole_activation(node: ir.Node) -> ir.Node | None:
    reader = sole_consumer(node.outputs[0])
    return reader if reader is not None and _is_activation(reader) else None


def _blocks(nodes: Sequence[ir.Node], remakable: Set[str]) -> list[list[ir.Node]]:
    """Return the pieces between the cuts that the module's docstring describes; `remakable` values keep none open."""
    order = {node: index for index, node in enumerate(nodes)}
    layers_before = list(itertools.accumulate((is_layer(node) for node in nodes), initial=0))
    live: dict[ir.Value, tuple[int, bool]] = {}
    pieces: list[list[ir.Node]] = [[]]
    for index, node in enumerate(nodes):
        pieces[-1].append(node)
        entering = (value for value in node.inputs if value is not None and value.is_graph_input())
        for value in (value for value in (*entering, *node.outputs) if value.name not in remakable):
            # What is read behind these nodes lives to their end.
            last = max((order.get(use.node, len(nodes)) for use in value.uses()), default=index)
            is_long = layers_before[min(last + 1, len(nodes))] - layers_before[index + 1] > LONG_SKIP_LAYERS
            live.setdefault(value, (last, is_long))
        live = {value: (last, is_long) for value, (last, is_long) in live.items() if last > index}
        short = [value for value, (_, is_long) in live.items() if value in node.outputs or not is_long]
        if len(short) == 1 and short[0] in node.outputs and _closes(node, pieces[-1]):
            pieces.append([])
    tail = pieces.pop()
    if pieces and not any(is_layer(node) for node in tail):
        pieces[-1].extend(tail)
        return pieces
    return [*pieces, tail]


def _closes(node: ir.Node, piece: Sequence[ir.Node]) -> bool:
    """Return whether a layer or a residual sum ends here, its activation included."""
    if not any(is_layer(member) for member in piece) or _sole_activation(node) is not None:
        return False
    return not any(_is_gated(value) for value in node.outputs)


def _is_gated(value: ir.Value) -> bool:
    """Return whether the value is multiplied by its own activation, as in `x * Sigmoid(x)`: one function, two nodes."""
    readers = {use.node for use in value.uses()}
    gates = {use.node for node in readers if _is_activation(node) for use in node.outputs[0].uses()}
    return any(operators.of(node).operand is Operand.FACTOR for node in readers & gates)


def _is_activation(node: ir.Node) -> bool:
    return operators.of(node).kind is Kind.ACTIVATION


def _merge(pieces: list[list[ir.Node]]) -> list[list[ir.Node]]:
    merged: list[list[ir.Node]] = []
    for piece in pieces:
        if merged and _is_depthwise(_layers_in(merged[-1])[-1]):
            merged[-1] = [*merged[-1], *piece]
        else:
            merged.append(piece)
    result: list[list[ir.Node]] = []
    for piece in merged:
        if result and _is_expansion(result[-1]) and _is_linear_bottleneck(piece):
            result[-1] = [*result[-1], *piece]
        else:
            result.append(piece)
    return result


def _layers_in(piece: Sequence[ir.Node]) -> list[Layer]:
    return [layer for node in piece if (layer := layer_of(node)) is not None]


def _is_depthwise(layer: Layer) -> bool:
    """Return whether each output channel has one input channel, which several may share."""
    return layer.op_type == "Conv" and layer.groups > 1 and layer.shape[1] == 1


def _is_expansion(piece: Sequence[ir.Node]) -> bool:
    layers = _layers_in(piece)
    if len(layers) != 1 or layers[0].op_type != "Conv" or layers[0].groups != 1:
        return False
    out_channels, in_channels, *kernel = layers[0].shape
    return out_channels > in_channels and all(size == 1 for size in kernel)


def _is_linear_bottleneck(piece: Sequence[ir.Node]) -> bool:
    """Return whether this is a depthwise, then a pointwise convolution to fewer channels, with nothing after it."""
    layers = _layers_in(piece)
    if len(layers) != 2 or not _is_depthwise(layers[0]) or piece[-1] is not layers[1].node:
        return False
    return layers[1].shape[0] < layers[0].shape[0]


def _stages(nodes: Sequence[ir.Node], remakable: Set[str]) -> list[list[ir.Node]]:
    """Return runs of consecutive blocks whose outputs have the same resolution."""
    stages: list[list[ir.Node]] = []
    last: Sequence[ir.Node] | None = None
    for block in _merge(_blocks(nodes, remakable)):
        if last is None or _changes_resolution(last, block):
            stages.append([])
        stages[-1].extend(block)
        last = block
    return stages


def _changes_resolution(before: Sequence[ir.Node], block: Sequence[ir.Node]) -> bool:
    sizes = [_resolution(piece[-1].outputs[0]) for piece in (before, block)]
    if sizes[0] is not None and sizes[1] is not None:
        return sizes[0] != sizes[1]
    return any(operators.of(node).resizes or max(_strides(node), default=1) > 1 for node in block)


def _resolution(value: ir.Value) -> tuple[int, ...] | None:
    """Return the spatial sizes; None if they are not known."""
    if value.shape is None:
        return None
    sizes = tuple(value.shape)[2:]
    known = tuple(size for size in sizes if isinstance(size, int))
    return known if len(known) == len(sizes) else None


def _strides(node: ir.Node) -> Sequence[int]:
    attribute = node.attributes.get("strides")
    return () if attribute is None else attribute.as_ints()


_CUTS: dict[str, Cut] = {
    "layer": _layers,
    "block": lambda nodes, remakable: _merge(_blocks(nodes, remakable)),
    "stage": _stages,
    "network": lambda nodes, _: [list(nodes)],
}
"""How nodes are partitioned, by granularity."""

"""The nodes of a network, or of a part of it, bound to functions and in an order in which they can run.

Nodes that torch does not compute, be it an operator that it lacks or attributes that it cannot follow, are put together
as far as they hang together, and run in ONNX Runtime (`graph.runtime_region`).
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from dipo.errors import UserError
from dipo.graph import torch_ops
from dipo.graph.accessors import name_of, opset_of
from dipo.graph.one_by_one import of_one, one_by_one
from dipo.graph.ops.reader import TorchOp
from dipo.graph.placement import is_float
from dipo.graph.recurrent import names_of, weights_of
from dipo.graph.runtime_region import RuntimeRegion


@dataclass(frozen=True)
class Bound:
    """A node, or a region of nodes that run together, with its function."""

    nodes: tuple[ir.Node, ...]
    """The nodes, in topological order."""
    function: TorchOp
    inputs: tuple[str | None, ...]
    """Names of the values that the function takes."""
    outputs: tuple[str, ...]
    """Names of the values that it returns; empty for those that nobody can name."""

    @property
    def constants(self) -> list[ir.Value]:
        """The constants among the values that the function takes, by position; ONNX Runtime has its others itself."""
        if isinstance(of_one(self.function), RuntimeRegion):
            return [value for node in self.nodes for value in weights_of(node)]
        return [v for node in self.nodes for v in node.inputs if v is not None and v.const_value is not None]


def bind_all(model: ir.Model, nodes: Sequence[ir.Node], *, wanted: Container[str]) -> list[Bound]:
    """Bind nodes to functions.

    Args:
        model: The normalised model that they belong to.
        nodes: The nodes, in topological order.
        wanted: Names of values that are asked for, beside those that other nodes read and the network's outputs.

    Returns:
        The nodes in the order given, as far as regions allow it.
    """
    functions: dict[ir.Node, TorchOp] = {}
    for node in nodes:
        try:
            functions[node] = torch_ops.bind(node, opset_of(model))
        except UserError:
            continue
    found = []
    for group in in_order(nodes, functions):
        if group[0] in functions:
            (node,) = group
            inputs = tuple(None if value is None else name_of(value) for value in node.inputs)
            outputs = tuple(value.name or "" for value in node.outputs)
            found.append(Bound(group, one_by_one(model, functions[node], inputs, outputs), inputs, outputs))
        else:
            region = _region(model, group, wanted)
            if not region.outputs:
                continue  # it makes outputs of the file for which others stand: `compared_outputs`
            inputs = (*region.inputs, *region.weights)
            function = one_by_one(model, region, inputs, region.outputs)
            found.append(Bound(group, function, inputs, region.outputs))
    return found


def regions(model: ir.Model) -> list[tuple[ir.Node, ...]]:
    """Return the regions of a network that ONNX Runtime computes, each as its nodes."""
    in_torch = {node for node in model.graph if torch_ops.supported(node)}
    return [group for group in in_order(list(model.graph), in_torch) if group[0] not in in_torch]


def float_regions(model: ir.Model) -> list[tuple[ir.Node, ...]]:
    """Return those regions that compute floats."""
    return [group for group in regions(model) if any(is_float(value) for node in group for value in node.outputs)]


def in_order(nodes: Sequence[ir.Node], in_torch: Container[ir.Node]) -> list[tuple[ir.Node, ...]]:
    """Return nodes in an order in which they can run: each alone if torch computes it, else with its region.

    Args:
        nodes: The nodes, in topological order.
        in_torch: Those that torch computes.
    """
    if all(node in in_torch for node in nodes):
        return [(node,) for node in nodes]
    group_of = _grouped(nodes, in_torch)
    members: dict[ir.Node, list[ir.Node]] = {}
    for node in nodes:
        members.setdefault(group_of[node], []).append(node)
    place = {node: index for index, node in enumerate(nodes)}
    return [tuple(members[leader]) for leader in _sorted(members, group_of, place)]


def _grouped(nodes: Sequence[ir.Node], in_torch: Container[ir.Node]) -> dict[ir.Node, ir.Node]:
    """Return the first node of each node's group; contracted to their groups, the nodes have no cycle.

    A node's depth counts how often values have gone from torch to ONNX Runtime or back on the longest way to it.
    Neighbours in ONNX Runtime of the same depth are a group: nothing that leaves it can come back.
    """
    depth: dict[ir.Node, int] = {}
    leader: dict[ir.Node, ir.Node] = {}

    def find(node: ir.Node) -> ir.Node:
        while leader[node] is not node:
            node = leader[node]
        return node

    for node in nodes:
        above = [source for source in _sources(node) if source in depth]
        is_torch = node in in_torch
        depth[node] = max((depth[s] + ((s in in_torch) != is_torch) for s in above), default=0)
        leader[node] = node
        for source in above if not is_torch else ():
            if source not in in_torch and depth[source] == depth[node]:
                leader[find(source)] = find(node)
    return {node: find(node) for node in nodes}


def _sorted(
    members: Mapping[ir.Node, Sequence[ir.Node]], group_of: Mapping[ir.Node, ir.Node], place: Mapping[ir.Node, int]
) -> list[ir.Node]:
    """Return the groups' leaders in topological order, otherwise by their first nodes' places."""
    after: dict[ir.Node, set[ir.Node]] = {leader: set() for leader in members}
    waits: dict[ir.Node, set[ir.Node]] = {}
    for leader, group in members.items():
        waits[leader] = {group_of[s] for node in group for s in _sources(node) if s in group_of} - {leader}
        for source in waits[leader]:
            after[source].add(leader)
    ready = [(place[members[leader][0]], leader) for leader, sources in waits.items() if not sources]
    heap = [(index, position, leader) for position, (index, leader) in enumerate(ready)]
    heapq.heapify(heap)
    order = []
    while heap:
        *_, leader = heapq.heappop(heap)
        order.append(leader)
        for follower in after[leader]:
            waits[follower].discard(leader)
            if not waits[follower]:
                index = place[members[follower][0]]
                heapq.heappush(heap, (index, index, follower))
    return order


def _sources(node: ir.Node) -> Iterable[ir.Node]:
    return (source for value in node.inputs if value is not None and (source := value.producer()) is not None)


def _region(model: ir.Model, nodes: tuple[ir.Node, ...], wanted: Container[str]) -> RuntimeRegion:
    inside = set(nodes)
    made = {value for node in nodes for value in node.outputs}
    read = dict.fromkeys(
        name_of(value)
        for node in nodes
        for value in node.inputs
        if value is not None and value not in made and value.const_value is None
    )
    outputs = [
        value.name
        for node in nodes
        for value in node.outputs
        if value.name
        and (value.name in wanted or value.is_graph_output() or any(use.node not in inside for use in value.uses()))
    ]
    weights = dict.fromkeys(name for node in nodes for name in names_of(node))
    return RuntimeRegion(model, nodes, tuple(read), tuple(outputs), tuple(weights))

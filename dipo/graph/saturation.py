"""Values of which only a part counts, because they only flow into Softmaxes.

A Softmax makes zero of what lies far below the largest number of its row, however far: attention masks of -50, of -1e4
or of minus infinity mean the same. The reach that values need follows backwards through the operators in front of the
Softmax, by interval arithmetic (`Saturation`): where a sum may end at a limit, so may its operands, less the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dipo.graph import operators
from dipo.graph.accessors import array_of, name_of
from dipo.graph.operators import Saturation
from dipo.graph.placement import is_float


@dataclass(frozen=True)
class Interval:
    """The numbers from `low` to `high`; all of them without limits."""

    low: float = -math.inf
    high: float = math.inf

    @staticmethod
    def of(numbers: NDArray[np.floating]) -> Interval:
        """Return the interval of the finite numbers; all numbers where there are none."""
        finite = numbers[np.isfinite(numbers)]
        return Interval(float(finite.min()), float(finite.max())) if finite.size else Interval()

    def joined(self, other: Interval) -> Interval:
        """Return the smallest interval with both."""
        return Interval(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True, eq=False)
class SaturatedPart:
    """Nodes whose values flow into the same Softmaxes, and nowhere else."""

    softmaxes: tuple[ir.Node, ...]
    nodes: tuple[ir.Node, ...]
    """The nodes in front of these, in topological order, whose outputs are among `values`."""
    values: tuple[str, ...]
    """Names of the values that flow into the Softmaxes alone, in topological order."""

    @property
    def operands(self) -> tuple[ir.Value, ...]:
        """All float values that the nodes and the Softmaxes read, constants included."""
        read = (value for node in (*self.nodes, *self.softmaxes) for value in data_of(node))
        return tuple(dict.fromkeys(read))

    def reaches(self, rows: Mapping[str, Interval], seen: Mapping[str, Interval]) -> dict[str, Interval]:
        """Return the interval that each of `values` needs, by name.

        Args:
            rows: What counts for the Softmaxes, by name of the node.
            seen: Smallest and largest finite number of each operand, by name.
        """
        needed: dict[str, Interval] = {}
        for node in reversed((*self.nodes, *self.softmaxes)):
            if node in self.softmaxes:
                output = rows[node.name or ""]
            else:
                made = [needed[name_of(value)] for value in node.outputs if value.name in needed]
                output = made[0]
                for other in made[1:]:
                    output = output.joined(other)
            for value in data_of(node):
                if value.name in self.values:
                    own = reach_of(value, node, output, seen)
                    needed[value.name] = own.joined(needed[value.name]) if value.name in needed else own
        return needed


def saturated_parts(model: ir.Model) -> list[SaturatedPart]:
    """Return the parts of the graph whose values only flow into Softmaxes, each with all values that meet in it."""
    members = _members(model)
    parts: list[set[ir.Node]] = []
    for softmax in model.graph:
        if operators.of(softmax).saturation is Saturation.ROWS and data_of(softmax)[0].name in members:
            nodes = {softmax, *_before(softmax, members)}
            meeting = [part for part in parts if _meet(part, nodes, members)]
            parts = [*(part for part in parts if part not in meeting), nodes.union(*meeting)]
    return [_part(model, part, members) for part in parts]


def data_of(node: ir.Node) -> list[ir.Value]:
    """Return the node's inputs that hold data and may be floats, constants included."""
    inputs = node.inputs[: operators.of(node).data_inputs]
    return [value for value in inputs if value is not None and is_float(value)]


def reach_of(value: ir.Value, node: ir.Node, output: Interval, seen: Mapping[str, Interval]) -> Interval:
    """Return the interval that an input of a node needs, where its output needs no more than `output`.

    Args:
        value: The input.
        node: The node, which has a rule (`Saturation`).
        output: The interval that the node's output needs.
        seen: Intervals of the other inputs, by name.
    """
    rule = operators.of(node).saturation
    if rule not in (Saturation.SUM, Saturation.DIFFERENCE):
        return output
    others = [_seen(each, seen) for each in data_of(node) if each is not value]
    low, high = (sum(each.low for each in others), sum(each.high for each in others))
    if rule is Saturation.SUM:
        return Interval(output.low - high, output.high - low)
    if value is node.inputs[0]:
        return Interval(output.low + low, output.high + high)
    return Interval(low - output.high, high - output.low)


def constant_reach(value: ir.Value, node: ir.Node, grids: Mapping[str, Interval]) -> Interval:
    """Return the interval that a constant of a part's node needs, all numbers where a grid beside it is not known.

    Args:
        value: The constant.
        node: A node of a `SaturatedPart`.
        grids: The smallest and the largest number of each value's grid, by name.
    """
    others = (each for each in data_of(node) if each.const_value is None)
    if not all(name_of(each) in grids for each in (*others, node.outputs[0])):
        return Interval()
    return reach_of(value, node, grids[name_of(node.outputs[0])], grids)


def _seen(value: ir.Value, seen: Mapping[str, Interval]) -> Interval:
    if value.const_value is not None:
        return Interval.of(array_of(value))
    return seen[name_of(value)]


def _members(model: ir.Model) -> Set[str]:
    """Return the names of the values that flow into Softmaxes alone."""
    members: set[str] = set()
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in reversed(values):
        if not value.name or not is_float(value) or not value.uses() or value.is_graph_output():
            continue
        if all(_flows_on(value, node, members) for node in {use.node for use in value.uses()}):
            members.add(value.name)
    return members


def _flows_on(value: ir.Value, node: ir.Node, members: Set[str]) -> bool:
    rule = operators.of(node).saturation
    if rule is None or [each is value for each in node.inputs].count(True) != 1 or value not in data_of(node):
        return False
    made = (each for each in node.outputs if each.uses() or each.is_graph_output())
    return rule is Saturation.ROWS or all(each.name in members for each in made)


def _before(node: ir.Node, members: Set[str]) -> Iterator[ir.Node]:
    """Yield the nodes that make the members which flow into a node."""
    for value in data_of(node):
        above = value.producer() if value.name in members else None
        if above is not None and operators.of(above).saturation not in (None, Saturation.ROWS):
            yield above
            yield from _before(above, members)


def _meet(one: Set[ir.Node], other: Set[ir.Node], members: Set[str]) -> bool:
    """Return whether the nodes of two parts read a member in common."""
    first, second = ({value.name for node in part for value in data_of(node)} & members for part in (one, other))
    return not first.isdisjoint(second)


def _part(model: ir.Model, nodes: Set[ir.Node], members: Set[str]) -> SaturatedPart:
    ordered = [node for node in model.graph if node in nodes]
    values = [value for node in ordered for value in data_of(node) if value.name in members]
    return SaturatedPart(
        softmaxes=tuple(node for node in ordered if operators.of(node).saturation is Saturation.ROWS),
        nodes=tuple(node for node in ordered if operators.of(node).saturation is not Saturation.ROWS),
        values=tuple(name_of(value) for value in dict.fromkeys(values)),
    )

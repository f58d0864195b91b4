"""The inputs of Concats as what reads the Concat sees them: behind its grid, which is one for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch

from dipo.graph import operators
from dipo.graph.accessors import name_of, node_name
from dipo.graph.operators import Moves
from dipo.graph.placement import is_float
from dipo.graph.plan import Plan
from dipo.quant.error_sums import ErrorSums


@dataclass(frozen=True)
class JoinedInput:
    """One input of a Concat at which something is quantized."""

    concat: str
    """Name of the node."""
    value: str
    """Name of the input."""


@dataclass(frozen=True)
class Join:
    """A Concat of floats."""

    node: ir.Node
    output: str
    axis: int

    @property
    def inputs(self) -> list[ir.Value]:
        """What it joins, constants included."""
        return [value for value in self.node.inputs if value is not None]

    @property
    def made(self) -> list[ir.Value]:
        """The inputs that are computed, each once."""
        return list(dict.fromkeys(value for value in self.inputs if value.const_value is None))


def joins(model: ir.Model) -> list[Join]:
    """Return the Concats that join floats, in topological order."""
    return [
        Join(node, name_of(node.outputs[0]), node.attributes.get_int("axis", 0))
        for node in model.graph
        if operators.of(node).moves is Moves.JOINED and is_float(node.outputs[0])
    ]


def joined_inputs(join: Join, plan: Plan) -> list[JoinedInput]:
    """Return the computed inputs whose numbers are quantized, by a grid of their own or by that of the Concat."""
    quantized = plan.activations.keys() | plan.aliases.keys()
    every = join.output in quantized
    return [
        JoinedInput(node_name(join.node), name_of(value)) for value in join.made if every or name_of(value) in quantized
    ]


def values_of(found: Sequence[Join]) -> list[str]:
    """Return the names of the values that `joined_errors` reads, each once."""
    return list(dict.fromkeys(name for join in found for name in (join.output, *map(name_of, join.made))))


def joined_errors(
    join: Join, wanted: Sequence[JoinedInput], fp: Mapping[str, torch.Tensor], q: torch.Tensor
) -> dict[JoinedInput, ErrorSums]:
    """Return the errors of a batch of each wanted input; those of one that is joined twice are added.

    Args:
        join: The Concat.
        wanted: Its inputs to look at.
        fp: The float network's values by name: the Concat's output and its computed inputs.
        q: The Concat's output in the quantized network, behind its grid.
    """
    known = {each.value: each for each in wanted}
    sizes = [_size(value, fp, join.axis) for value in join.inputs]
    parts = zip(
        join.inputs,
        torch.split(fp[join.output], sizes, dim=join.axis),
        torch.split(q, sizes, dim=join.axis),
        strict=True,
    )
    errors: dict[JoinedInput, ErrorSums] = {}
    for value, expected, found in parts:
        each = known.get(name_of(value)) if value.const_value is None else None
        if each is not None:
            errors[each] = errors.get(each, ErrorSums()) + ErrorSums.between(expected, found)
    return errors


def _size(value: ir.Value, fp: Mapping[str, torch.Tensor], axis: int) -> int:
    if value.const_value is None:
        return fp[name_of(value)].shape[axis]
    return int(value.const_value.shape.numpy()[axis])

"""What counts of values in front of Softmaxes, batch by batch (`dipo.graph.saturation`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch

from dipo.graph import operators
from dipo.graph.accessors import name_of, node_name, opset_of
from dipo.graph.operators import Saturation
from dipo.graph.plan import Plan
from dipo.graph.saturation import Interval, SaturatedPart, data_of, saturated_parts

FLOAT_LEVELS = 1 << 16
"""Levels up to which a Softmax that stays float, or whose grid is not known, is taken to count."""
MASKED_ROW = 256.0
"""Distance below the largest number of all rows from which on a row's own largest number says that all of the row is
masked: with a range that long, 8 bits would tell no two numbers of the others apart that differ by less than one."""


@dataclass(frozen=True, eq=False)
class PartReaches:
    """A part, and how its values' reaches in a batch follow from that batch's values."""

    part: SaturatedPart
    levels: Mapping[str, int]
    """By name of the Softmax: number of levels of its output's grid between 0 and 1."""
    opset: int

    @staticmethod
    def of_model(model: ir.Model, plan: Plan) -> list[PartReaches]:
        """Return all parts of the network of which a value is quantized or observed."""
        wanted = {*plan.activations, *plan.observed}
        parts = [part for part in saturated_parts(model) if not wanted.isdisjoint(part.values)]
        return [
            PartReaches(part, {node_name(node): _levels(node, plan) for node in part.softmaxes}, opset_of(model))
            for part in parts
        ]

    @property
    def waits_for(self) -> frozenset[str]:
        """Names of the values that the reaches follow from, and of those that have them."""
        summed = (node for node in self.part.nodes if operators.of(node).saturation is not Saturation.PASSED)
        operands = {name_of(value) for node in summed for value in data_of(node) if value.const_value is None}
        return frozenset({*operands, *self.part.values})

    def reaches(self, values: Mapping[str, torch.Tensor]) -> dict[str, Interval]:
        """Return the interval that counts of each of the part's values, by name; `values` are those it waits for."""
        rows = {node_name(node): self._rows(node, values) for node in self.part.softmaxes}
        seen = {name: _finite(values[name]) for name in self.waits_for}
        return self.part.reaches(rows, seen)

    def _rows(self, node: ir.Node, values: Mapping[str, torch.Tensor]) -> Interval:
        source = node.inputs[0]
        assert source is not None
        name = name_of(source)
        if name not in values:
            return Interval()
        # Over one axis since opset 13, over all axes from `axis` on before.
        single = self.opset >= 13
        axis = node.attributes.get_int("axis", -1 if single else 1)
        x = values[name]
        return rows_reach(x if single else x.flatten(axis), axis if single else -1, self.levels[node_name(node)])


def rows_reach(x: torch.Tensor, axis: int, levels: int) -> Interval:
    """Return the numbers that a Softmax needs to be right, for all rows of a tensor.

    A number t below the largest of its row contributes at most exp(-t) to the row's sum of at least 1, and n of them
    n exp(-t), which is less than half of one of the output's levels from t = ln(2 n levels) on. Rows that are masked as
    a whole (`MASKED_ROW`, or minus infinity) are left out.

    Args:
        x: The input of the Softmax.
        axis: The axis along which it normalises.
        levels: Number of levels of its output's grid between 0 and 1.
    """
    if x.numel() == 0:
        return Interval()
    largest = x.amax(axis)
    finite = largest[torch.isfinite(largest)]
    if finite.numel() == 0:
        return Interval()
    counting = finite[finite >= finite.max() - MASKED_ROW]
    return Interval(low=float(counting.min()) - math.log(2 * x.shape[axis] * levels))


def _levels(node: ir.Node, plan: Plan) -> int:
    spec = plan.activations.get(name_of(node.outputs[0]))
    return FLOAT_LEVELS if spec is None else spec.num_steps + 1


def _finite(x: torch.Tensor) -> Interval:
    """Return the interval of the finite numbers of a tensor; all numbers where there are none."""
    finite = x[torch.isfinite(x)]
    return Interval(*torch.stack(torch.aminmax(finite)).tolist()) if finite.numel() else Interval()


def within(x: torch.Tensor, reach: Interval) -> torch.Tensor:
    """Return a tensor clipped to an interval, the tensor itself where that has no limits."""
    if math.isinf(reach.low) and math.isinf(reach.high):
        return x
    return x.clamp(reach.low, reach.high)

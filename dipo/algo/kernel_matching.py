"""Matching of integer kernels in a graph: the codes that a node computes between."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from dipo.graph import operators
from dipo.graph.accessors import name_of, node_name, sole_consumer
from dipo.graph.operators import IntegerKernel, Moves
from dipo.graph.ops.reader import TorchOp
from dipo.graph.plan import Plan, QuantizedModel
from dipo.quant.spec import QParams


@dataclass(frozen=True, eq=False)
class Grid:
    """The codes of a tensor with one scale."""

    scale: np.float32
    zero_point: int
    qmin: int
    qmax: int
    step: float
    """Difference of the tensor's numbers for neighbouring codes: the scale, or 1 where only kernels read it."""

    @staticmethod
    def of(qparams: QParams) -> Grid | None:
        """Return the grid; None for codes wider than 8 bits, which kernels do not take."""
        low, high = qparams.qmin, qparams.qmax
        if (low < -128 or high > 127) and (low < 0 or high > 255):
            return None
        scale = np.float32(qparams.scale)
        return Grid(scale, int(qparams.zero_point), low, high, float(scale))


@dataclass(frozen=True)
class KernelMatch:
    """A node that an integer kernel computes, and the grids of its values."""

    inputs: tuple[Grid, ...]
    """Grids of its inputs besides weights, in order."""
    sources: tuple[str, ...]
    """Names of the values that these inputs' codes come from, before operators that only move them."""
    output: Grid | None
    """Grid of its output; None where that is float."""
    value: str
    """Name of the value with its output's codes: the node's own output, or that of the activation function after it."""
    activation: str | None
    """Name of the Relu or Clip that its kernel computes too; None where there is none."""
    limits: tuple[int, int]
    """The smallest and the largest code of its output."""


def match_kernel(
    node: ir.Node,
    functions: Mapping[str, TorchOp],
    *,
    plan: Plan,
    quantized: QuantizedModel,
    quantize_outputs: bool,
) -> KernelMatch | None:
    """Return the grids that a node computes between; None where it does not compute with integers.

    As ONNX Runtime decides it: all that the node reads is codes, and all that anybody reads of what it makes, too.
    Operators that only move values may stand between the node and the quantization of its output.

    Args:
        node: Any node.
        functions: The nodes' torch functions, by name of the node.
        plan: Layers and activations that are quantized.
        quantized: Codes and scales.
        quantize_outputs: The network's outputs are quantized too; otherwise what leaves the network is no code.
    """
    operator = operators.of(node)
    if operator.integer_kernel is None:
        return None
    read = [value for value in node.inputs if value is not None and value.const_value is None]
    sources = tuple(plan.aliases.get(name_of(value), name_of(value)) for value in read)
    grids = [_grid(value, plan, quantized) for value in read]
    inputs = tuple(grid for grid in grids if grid is not None)
    if len(inputs) != len(read) or len(inputs) != operator.data_inputs:
        return None
    site = _written(node, inputs, sources, functions, plan=plan, quantized=quantized, quantize_outputs=quantize_outputs)
    gives_floats = operator.integer_kernel is IntegerKernel.CODES_OR_FLOATS
    if site is None and gives_floats and _grid(node.outputs[0], plan, quantized) is None:
        return KernelMatch(inputs, sources, None, name_of(node.outputs[0]), None, (0, 0))
    return site


def keep_integer(model: ir.Model, sites: Mapping[str, KernelMatch], *, plan: Plan) -> dict[str, KernelMatch]:
    """Return the matches with values that only kernels read kept as codes less the zero point, not turned into numbers.

    Args:
        model: The network.
        sites: The matches by name of the node.
        plan: Layers and activations that are quantized.
    """
    values = {name_of(value): value for node in model.graph for value in node.outputs if value.name}
    held = {
        site.value
        for site in sites.values()
        if site.value in plan.activations and _feeds_kernels(values[site.value], sites)
    }

    def handed_on(grid: Grid, name: str) -> Grid:
        return dataclasses.replace(grid, step=1.0) if name in held else grid

    return {
        name: dataclasses.replace(
            site,
            inputs=tuple(map(handed_on, site.inputs, site.sources)),
            output=None if site.output is None else handed_on(site.output, site.value),
        )
        for name, site in sites.items()
    }


def _feeds_kernels(value: ir.Value, sites: Mapping[str, KernelMatch]) -> bool:
    """Return whether only kernels read the value, directly or after operators that only move values."""
    readers = [use.node for use in value.uses()]
    return not value.is_graph_output() and all(
        _feeds_kernels(node.outputs[0], sites) if operators.of(node).on_codes else node_name(node) in sites
        for node in readers
    )


def _grid(value: ir.Value, plan: Plan, quantized: QuantizedModel) -> Grid | None:
    name = plan.aliases.get(name_of(value), name_of(value))
    return Grid.of(quantized.activations[name]) if name in plan.activations else None


def _written(
    node: ir.Node,
    inputs: tuple[Grid, ...],
    sources: tuple[str, ...],
    functions: Mapping[str, TorchOp],
    *,
    plan: Plan,
    quantized: QuantizedModel,
    quantize_outputs: bool,
) -> KernelMatch | None:
    value, activation = node.outputs[0], None
    reader = sole_consumer(value)
    if _grid(value, plan, quantized) is None and reader is not None and operators.of(reader).clips:
        value, activation = reader.outputs[0], node_name(reader)
    if value.is_graph_output() and not quantize_outputs:
        return None
    moved = downstream = value
    while (grid := _grid(downstream, plan, quantized)) is None:
        reader = sole_consumer(downstream)
        if reader is None or not _moves_codes(reader):
            return None
        downstream = reader.outputs[0]
        if downstream.is_graph_output() and not quantize_outputs:
            return None
    limits = (grid.qmin, grid.qmax)
    if activation is not None:
        limits = _limits(functions[activation], grid)
    if downstream is not moved and limits != (grid.qmin, grid.qmax):
        return None
    return KernelMatch(inputs, sources, grid, name_of(value), activation, limits)


def _moves_codes(node: ir.Node) -> bool:
    """Return whether the node's outputs hold nothing but codes that it reads."""
    operator = operators.of(node)
    return operator.on_codes and operator.moves is not Moves.PADDED


def _limits(activation: TorchOp, grid: Grid) -> tuple[int, int]:
    """Return the codes that the activation function's output lies between: it is monotone, and so is rounding."""
    largest = torch.finfo(torch.float32).max
    ends = activation(torch.tensor([-largest, largest]))
    assert isinstance(ends, torch.Tensor)
    codes = (ends / float(grid.scale)).round().double() + grid.zero_point
    low, high = codes.clamp(grid.qmin, grid.qmax).tolist()
    return int(low), int(high)

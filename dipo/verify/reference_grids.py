"""The grids that `quantized.onnx` gives to the tensors of `deploy.onnx`, by their names there.

A tensor's grid is that of the DequantizeLinear through which a node reads it, or of the integer operator in the node's
place: nodes keep their names. Names of tensors say nothing: a Relu may have become part of the codes' limits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from dipo.graph import operators
from dipo.graph.operators import Moves
from dipo.verify.onnx_network import Grid, Network

_FIRST = {operator.qoperator: 0 for operator in operators.OPERATORS.values() if operator.qoperator}
_FIRST |= {"QLinearConcat": 2}
"""Index at which an integer operator begins to list its inputs: codes, scale and zero point of each."""


@dataclass(frozen=True, eq=False)
class ReferenceGrid:
    """A tensor's grid, `x = (code - zero_point) * scale`; shapes [n], of a whole tensor [1]."""

    scale: NDArray[np.float64]
    zero_point: NDArray[np.float64]
    bits: int
    low: float
    """The smallest code."""
    high: float
    axis: int
    """The axis of the channels."""


def reference_grids(deployed: Network, quantized: Network) -> dict[str, list[ReferenceGrid]]:
    """Return the grids by name in `deploy.onnx`; a constant has one for each node that reads it."""
    reader = _Reader(quantized, {node.name for node in deployed.model.graph.node})
    counterparts, producers = quantized.nodes(), quantized.producers()
    found: dict[str, list[ReferenceGrid]] = {}
    for node in deployed.model.graph.node:
        for index, name in enumerate(node.input if node.name in counterparts else ()):
            if name and (held := reader.read(counterparts[node.name], index)) is not None:
                found.setdefault(name, []).append(held)
    for output in deployed.model.graph.output:
        held = reader.dequantized(producers.get(output.name))
        if held is not None:
            found.setdefault(output.name, []).append(held)
    _spread(found, deployed)
    return found


class _Reader:
    """The grids that the nodes of a quantized network read."""

    def __init__(self, network: Network, float_nodes: Set[str]) -> None:
        self._network, self._float_nodes = network, float_nodes
        self._constants, self._producers = network.constants(), network.producers()

    def read(self, node: onnx.NodeProto, index: int) -> ReferenceGrid | None:
        """Return the grid of a node's input, by its index at the float node; None where it has none."""
        first = _FIRST.get(node.op_type)
        if first is None:
            return self.dequantized(self._producers.get(node.input[index])) if index < len(node.input) else None
        at = first + 3 * index
        # A QLinearConv's bias has no grid in its list; other operators end with the grid of what they make.
        if at + 2 >= len(node.input) or (index > 1 and node.op_type != "QLinearConcat"):
            return None
        return self._held(*node.input[at : at + 3], axis=0)

    def dequantized(self, node: onnx.NodeProto | None) -> ReferenceGrid | None:
        """Return the grid of a DequantizeLinear's output; None for other nodes."""
        if node is None or node.op_type != "DequantizeLinear" or len(node.input) < 3:
            return None
        attributes = {each.name: each.i for each in node.attribute}
        return None if "block_size" in attributes else self._held(*node.input, axis=attributes.get("axis", 1))

    def _held(self, codes: str, scale: str, zero_point: str, *, axis: int) -> ReferenceGrid | None:
        if scale not in self._constants or zero_point not in self._constants:
            return None
        step, zero = (self._network.array(self._constants[name]) for name in (scale, zero_point))
        grid = Grid(codes, "", step, zero, "", stored=False)
        low, high = grid.limits
        bits = (high - low).bit_length()
        first, last = self._cut_off(codes, low, high, step, zero) if step.ndim == 0 else (low, high)
        scales, zeros = (array.astype(np.float64).reshape(-1) for array in (step, zero))
        return ReferenceGrid(scales, zeros, bits, first, last, axis)

    def _cut_off(
        self, codes: str, low: float, high: float, step: NDArray[np.float32], zero: NDArray[np.generic]
    ) -> tuple[float, float]:
        """Return the codes' limits, narrowed where the export put a Clip before the QuantizeLinear."""
        quantizer = self._producers.get(codes)
        quantizes = quantizer is not None and quantizer.op_type == "QuantizeLinear"
        clip = self._producers.get(quantizer.input[0]) if quantizer is not None and quantizes else None
        if clip is None or clip.op_type != "Clip" or clip.name in self._float_nodes:
            return low, high
        ends = [low, high]
        for index, name in enumerate(clip.input[1:]):
            if name in self._constants:
                limit = float(self._network.array(self._constants[name])) / float(step) + float(zero)
                ends[index] = min(max(round(limit), low), high)
        return ends[0], ends[1]


def _keeps(node: onnx.NodeProto) -> bool:
    """Return whether the node's input has its output's grid where it has none of its own."""
    operator = operators.of(node)
    return operator.clips or (operator.keeps_range and operator.moves in {Moves.ALL, Moves.PICKED})


def _spread(found: dict[str, list[ReferenceGrid]], deployed: Network) -> None:
    """Give a node's output grid to its input where the range is the same and no other node reads the input."""
    graph = deployed.model.graph
    read = Counter(name for node in graph.node for name in node.input)
    read.update(output.name for output in graph.output)
    constants = deployed.constants()
    for node in reversed(graph.node):
        source = node.input[0] if _keeps(node) else None
        if not source or source in found or source in constants or read[source] != 1:
            continue
        if node.output[0] in found:
            found[source] = found[node.output[0]]

"""What a layer reads in both networks, and what it should give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from dipo.algo.activation_cache import CachedActivation, Rows
from dipo.algo.network_pair import NetworkPair
from dipo.algo.weight_grids import as_columns
from dipo.algo.window_reader import WindowReader
from dipo.graph import operators
from dipo.graph.accessors import array_of, name_of, sole_consumer
from dipo.graph.layers import layer_of
from dipo.graph.operators import Operand
from dipo.graph.units import Unit


@dataclass(frozen=True)
class IntegerGrid:
    """The integers that stand for a value: value = integer * unit."""

    unit: float
    low: float
    high: float


def added_to(output: ir.Value) -> ir.Value | None:
    """Return the other value that a layer's output is added to, constants aside; None where it is not.

    Args:
        output: What the layer gives.
    """
    while (node := sole_consumer(output)) is not None and operators.of(node).operand is Operand.SUMMAND:
        others = [value for value in node.inputs if value is not None and value is not output]
        if len(others) != 1:
            return None
        if others[0].const_value is None:
            return others[0]
        output = node.outputs[0]
    return None


@dataclass(frozen=True, eq=False)
class LayerValues:
    """A layer's values in both networks."""

    pair: NetworkPair
    reader: WindowReader
    source: str
    """Name of what it reads."""
    added: str | None
    """Name of what its output is added to, where that is known in front of it."""
    before: list[ir.Node]
    """The unit's nodes in front of the layer."""
    layers: tuple[str, ...]
    """The unit's layers."""
    weight: torch.Tensor
    """The float network's weight as columns, float32 [G, D, O]."""
    bias: torch.Tensor | None
    """The float network's bias, [G, O]."""
    grid: IntegerGrid | None
    """That of the quantized input; None where it is not quantized."""

    @staticmethod
    def of(pair: NetworkPair, unit: Unit, name: str) -> LayerValues:
        """Return the values of a unit's layer."""
        node = pair.nodes[name]
        layer = layer_of(node)
        assert layer is not None and layer.input is not None, name
        nodes = pair.nodes_of(unit)
        before = nodes[: nodes.index(node)]
        other = added_to(layer.output)
        known = {name_of(value) for each in before for value in each.outputs if value.name} | pair.q.keys()
        added = (
            name_of(other) if other is not None and other.name in known and other.shape == layer.output.shape else None
        )
        bias = None if layer.bias is None else torch.tensor(array_of(layer.bias), device=pair.device)
        source = name_of(layer.input)
        grid = None
        if source in pair.activations:
            qparams = pair.activations[source]
            zero = int(qparams.zero_point)
            grid = IntegerGrid(float(qparams.scale), qparams.qmin - zero, qparams.qmax - zero)
        return LayerValues(
            pair=pair,
            reader=WindowReader.of(layer, pair.model),
            source=source,
            added=added,
            before=before,
            layers=unit.layers,
            weight=as_columns(np.asarray(layer.array, np.float32), layer.layout, pair.device),
            bias=None if bias is None else bias.view(layer.layout.groups, -1),
            grid=grid,
        )

    def input(self, captures: Mapping[str, CachedActivation], rows: Rows, *, quantized: bool) -> torch.Tensor:
        """Return the layer's input for some samples."""
        return self._value(self.source, captures, rows, quantized=quantized)

    def target(self, x: torch.Tensor, rows: Rows, chosen: torch.Tensor) -> torch.Tensor:
        """Return what the layer should give at some positions, [G, chosen, O].

        Args:
            x: Its input in the float network.
            rows: The samples.
            chosen: The positions.
        """
        target = self.reader.inputs(x, chosen) @ self.weight
        if self.bias is not None:
            target += self.bias[:, None]
        if self.added is not None:
            fp = self._value(self.added, self.pair.fp, rows, quantized=False)
            q = self._value(self.added, self.pair.q, rows, quantized=True)
            target += self.reader.outputs(fp, chosen) - self.reader.outputs(q, chosen)
        return target

    def _value(
        self, name: str, captures: Mapping[str, CachedActivation], rows: Rows, *, quantized: bool
    ) -> torch.Tensor:
        if name in captures:
            return captures[name].at(rows)
        module = self.pair.module(self.before, [name])
        hook = self.pair.hook(self.before) if quantized else None
        constants = self.pair.weights(self.layers) if quantized else {}
        value = module(self.pair.read(captures, module.inputs, rows), hook=hook, constants=constants)[name]
        return value if hook is None else hook(name, value)

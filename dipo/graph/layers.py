"""Layers: the nodes that multiply their input by a constant weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from dipo.graph import operators
from dipo.graph.accessors import array_of, node_name
from dipo.graph.target_spec import WeightForm
from dipo.graph.weight_layout import WeightLayout


@dataclass(frozen=True)
class Layer:
    """A view of a Conv, ConvTranspose, Gemm or MatMul with a constant weight."""

    node: ir.Node
    weight: ir.Value
    """The weight; after `graph.load.load` an initializer that no other node reads."""
    bias: ir.Value | None
    """Constant, [C] after `graph.load.load`; None for a MatMul, or where it is computed."""
    layout: WeightLayout

    @property
    def name(self) -> str:
        """Name of the node; never absent after `graph.load.load`."""
        return node_name(self.node)

    @property
    def op_type(self) -> str:
        """Name of the operator."""
        return self.node.op_type

    @property
    def input(self) -> ir.Value | None:
        """The value that is multiplied by the weight."""
        return self.node.inputs[0]

    @property
    def output(self) -> ir.Value:
        """The value that the layer computes."""
        return self.node.outputs[0]

    @property
    def array(self) -> NDArray[Any]:
        """The weight's numbers."""
        return array_of(self.weight)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.layout.shape

    @property
    def channel_axis(self) -> int:
        """Axis of the weight that counts output channels (of one group in a ConvTranspose)."""
        return self.layout.channel_axis

    @property
    def scale_axis(self) -> int:
        """Axis along which the weight has scales by channel."""
        return self.layout.scale_axis

    @property
    def groups(self) -> int:
        """Number of groups of a convolution; 1 for other layers."""
        return self.node.attributes.get_int("group", 1)

    @property
    def num_channels(self) -> int:
        """Number of output channels; for a MatMul by a stack of matrices, summed over the stack."""
        return self.layout.num_rows

    @property
    def num_spatial(self) -> int:
        """Number of spatial dimensions, behind the channels, of the layer's input and output."""
        return len(self.shape) - 2 if self.layout.spatial else 0

    @property
    def is_stack(self) -> bool:
        """Whether the weight is a stack of matrices."""
        return self.layout.form is WeightForm.STACK

    @property
    def is_depthwise(self) -> bool:
        """Whether each output channel is computed from the input channel of the same index alone."""
        return self.layout.spatial and self.shape[:2] == (self.groups, 1) and self.groups > 1


def layer_of(node: ir.Node) -> Layer | None:
    """Return the node as a layer; None if it does not multiply by a constant weight."""
    facts = operators.of(node).weight
    # A Gemm with transA has the channels of its input on another axis.
    if facts is None or node.attributes.get_int("transA", 0) != 0:
        return None
    weight = _constant(node, facts.port)
    if weight is None or weight.const_value is None:
        return None
    shape = tuple(int(size) for size in weight.const_value.shape.numpy())
    if len(shape) < 2:
        # A vector has no axis of output channels.
        return None
    return Layer(
        node=node,
        weight=weight,
        bias=None if facts.bias_port is None else _constant(node, facts.bias_port),
        layout=WeightLayout.of(node, shape),
    )


def _constant(node: ir.Node, port: int) -> ir.Value | None:
    value = node.inputs[port] if len(node.inputs) > port else None
    return value if value is not None and value.const_value is not None else None


def layers_of(model: ir.Model) -> Iterator[Layer]:
    """Return the layers of a model, in topological order."""
    return (layer for node in model.graph if (layer := layer_of(node)) is not None)


def is_layer(node: ir.Node) -> bool:
    """Return whether the node multiplies its input by a constant weight."""
    return layer_of(node) is not None

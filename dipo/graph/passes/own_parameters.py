"""Weights and biases of layers that no other node reads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult

from dipo.errors import UserError
from dipo.graph import operators
from dipo.graph.accessors import array_of, name_of
from dipo.graph.constants import replace_input
from dipo.graph.layers import Layer, layers_of
from dipo.graph.passes.invariants import check_biases, check_ownership
from dipo.graph.sharing import record_copy


class UntieParameters(InPlacePass):
    """Give each layer initializers of its own, since the optimizer folds nothing into shared ones."""

    def call(self, model: ir.Model) -> PassResult:
        """Copy the initializers that several nodes read, and record of what each is a copy."""
        modified = False
        for node in model.graph:
            for index, value in enumerate(node.inputs if operators.of(node).weight is not None else ()):
                if value is not None and value.is_initializer() and len(value.uses()) > 1:
                    _replace(model, node, index, f"{node.name or node.op_type}_{value.name}", array_of(value))
                    modified = True
        return PassResult(model, modified)


class OwnParameters(InPlacePass):
    """Give each layer its weight and bias as float32 initializers.

    1. No other node reads them, and they are not outputs of the network.
    2. A Conv, ConvTranspose or Gemm has a bias with one number for each output channel, zero if it had none.
    3. A Gemm has no factors: its weight and bias are multiplied by them.
    4. A MatMul by a stack of one matrix is one by the matrix, which may have a scale for each column.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Replace the parameters that differ from this form.

        Raises:
            UserError: Weights are not float32, or a bias is not one number for each channel.
        """
        for layer in layers_of(model):
            _own_weight(model, layer)
            if layer.op_type != "MatMul":
                _own_bias(model, layer)
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that layers own their parameters."""
        check_ownership(model)
        check_biases(model)


def _replace(model: ir.Model, node: ir.Node, index: int, name: str, array: NDArray[Any]) -> None:
    """Give the node a constant in place of one that other nodes may read, of which it then is a copy."""
    old = node.inputs[index]
    shared = old is not None and old.is_initializer() and len(old.uses()) > 1
    copy = replace_input(model, node, index, name, array)
    if shared and old is not None:
        record_copy(model, name_of(copy), name_of(old))


def _own_weight(model: ir.Model, layer: Layer) -> None:
    node, weight, array = layer.node, layer.weight, layer.array
    if array.dtype != np.float32:
        raise UserError(f"layer {node.name!r} has {array.dtype} weights, export the model in float32")
    alpha = _take_factor(node, "alpha")
    array = _without_leading_ones(layer, array)
    if (
        array.ndim < len(layer.shape)
        or alpha != 1
        or len(weight.uses()) > 1
        or weight.is_graph_output()
        or not weight.is_initializer()
    ):
        _replace(model, node, 1, f"{node.name}_weight", array * np.float32(alpha))


def _without_leading_ones(layer: Layer, array: NDArray[Any]) -> NDArray[Any]:
    """Return a stack of one matrix, [1, ..., K, N], as a matrix, if the product has the same shape without the ones."""
    shape = layer.input.shape if layer.input is not None else None
    alone = layer.is_stack and math.prod(array.shape[:-2]) == 1
    return array.reshape(array.shape[-2:]) if alone and shape is not None and len(shape) >= array.ndim else array


def _own_bias(model: ir.Model, layer: Layer) -> None:
    node = layer.node
    if len(node.inputs) < 3 or node.inputs[2] is None:
        _take_factor(node, "beta")
        node.resize_inputs(max(3, len(node.inputs)))
        replace_input(model, node, 2, f"{node.name}_bias", np.zeros(layer.num_channels, np.float32))
    elif layer.bias is not None:
        _reshape_bias(model, layer, layer.bias)


def _reshape_bias(model: ir.Model, layer: Layer, bias: ir.Value) -> None:
    node, channels, array = layer.node, layer.num_channels, array_of(bias)
    if array.size not in (1, channels) or (array.ndim > 1 and array.shape[-1] != array.size):
        raise UserError(
            f"{node.op_type} {node.name!r} adds a constant of shape {array.shape} to {channels} channels, export it "
            "with one number for each channel"
        )
    beta = _take_factor(node, "beta")
    single = len(bias.uses()) == 1 and bias.is_initializer() and not bias.is_graph_output()
    if beta != 1 or not single or array.shape != (channels,):
        own = np.broadcast_to(array.reshape(-1) * np.float32(beta), (channels,)).copy()
        _replace(model, node, 2, f"{node.name}_bias", own)


def _take_factor(node: ir.Node, name: str) -> float:
    """Remove Gemm's alpha or beta from the node and return it."""
    factor = node.attributes.get_float(name, 1.0) if node.op_type == "Gemm" else 1.0
    node.attributes.pop(name, None)
    return factor

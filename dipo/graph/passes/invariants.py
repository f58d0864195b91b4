"""The invariants of a normalised model, and functions that check them.

After `graph.load.load`:
  1. functions are inlined, but for those of one call that hold a node with subgraphs (`passes.enclose_subgraphs`);
     constants are folded, BatchNormalization and Pad are part of the adjacent convolution, which keeps a record of the
     former (`graph.batch_norm`);
  2. every node has a unique name; a layer keeps the one that it had in the file;
  3. every layer owns its weights: no initializer is read by two layers;
  4. every Conv, ConvTranspose and Gemm has a bias, zero if the file had none; a Gemm has no alpha or beta;
  5. the first dimension of every network input and output is the batch, and is dynamic, unless the network takes one
     sample at a time (`graph.one_by_one`) or an output does not begin with the batch; initializers are no inputs.
     The shapes of the file are recorded, and `passes.as_in_file` puts them back into a copy for what is written.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
from onnx_ir.passes import InvariantError

from dipo.graph.accessors import array_of, sole_consumer
from dipo.graph.batch_norm import batch_norm_in
from dipo.graph.layers import is_layer, layers_of
from dipo.graph.one_by_one import rows_of
from dipo.graph.opset import ENCLOSED


def check_inlined(model: ir.Model) -> None:
    """Check the cheap part of the first invariant: no function is left, and no node calls one.

    Raises:
        InvariantError: There is one.
    """
    left = [key for key in model.functions if key[0] != ENCLOSED]
    if left:
        raise InvariantError(f"functions are left: {', '.join(map(str, left))}")


def check_folded(model: ir.Model) -> None:
    """Check that constants are folded, and BatchNormalization and Pad are part of their convolution.

    Raises:
        InvariantError: There is a node that should be folded.
    """
    check_inlined(model)
    for node in model.graph:
        if node.op_type == "Constant":
            raise InvariantError(f"{node.name!r} is a constant")
        if batch_norm_in(node) is None or node.inputs[0] is None:
            continue
        source = node.inputs[0].producer()
        if source is not None and is_layer(source) and sole_consumer(node.inputs[0]) is node:
            raise InvariantError(f"{node.name!r} normalises the output of {source.name!r} alone")


def check_names(model: ir.Model) -> None:
    """Check that every node has a unique name, and every computed value a name.

    Raises:
        InvariantError: A node or a value has no name, or two nodes have the same.
    """
    counts = Counter(node.name for node in model.graph)
    for name, count in counts.items():
        if not name or count > 1:
            raise InvariantError(f"{count} nodes are named {name!r}")
    for node in model.graph:
        if any(value.name is None for value in node.outputs):
            raise InvariantError(f"an output of {node.name!r} has no name")


def check_ownership(model: ir.Model) -> None:
    """Check that a layer's weight and constant bias are initializers that no other node reads.

    Raises:
        InvariantError: One is no initializer, or is read by another node, or is an output of the network.
    """
    for layer in layers_of(model):
        for value in (layer.weight, layer.bias):
            if value is not None and not (value.is_initializer() and sole_consumer(value) is layer.node):
                raise InvariantError(f"layer {layer.name!r} does not own {value.name!r}")


def check_biases(model: ir.Model) -> None:
    """Check that every layer but a MatMul has a bias, if constant with one number for each output channel.

    Raises:
        InvariantError: A bias is missing or of another shape, or a Gemm has a factor.
    """
    for layer in layers_of(model):
        if layer.node.attributes.keys() & {"alpha", "beta"}:
            raise InvariantError(f"layer {layer.name!r} has a factor")
        if layer.op_type != "MatMul" and (len(layer.node.inputs) < 3 or layer.node.inputs[2] is None):
            raise InvariantError(f"layer {layer.name!r} has no bias")
        if layer.bias is not None and array_of(layer.bias).shape != (layer.num_channels,):
            raise InvariantError(f"layer {layer.name!r} has a bias of shape {array_of(layer.bias).shape}")


def check_batch(model: ir.Model) -> None:
    """Check that inputs and outputs begin with a dynamic dimension, and inputs are no initializers.

    Raises:
        InvariantError: One has a fixed first dimension, or is an initializer.
    """
    takes_one = rows_of(model) is not None
    for value in () if takes_one else (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None and (not len(value.shape) or isinstance(value.shape[0], int)):
            raise InvariantError(f"{value.name!r} has the shape {value.shape}")
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            raise InvariantError(f"input {value.name!r} is an initializer")


INVARIANTS = (check_folded, check_names, check_ownership, check_biases, check_batch)
"""Checks in the order of the invariants."""

"""Folding of constants, BatchNormalization and Pad, and what the optimizer leaves to be mended."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnxscript import optimizer

from dipo.graph import operators
from dipo.graph.accessors import array_of
from dipo.graph.batch_norm import BatchNorm, batch_norm_in, set_batch_norm
from dipo.graph.constants import replace_input
from dipo.graph.passes.inline import invalid


class Simplify(InPlacePass):
    """Fold constants, BatchNormalization and Pad.

    1. Values that depend on constants alone are constants, unless they are large.
    2. BatchNormalization and Pad are folded into the adjacent convolution.
    3. A layer into which BatchNormalization was folded has a record of it (`batch_norm.batch_norm_of`).
    4. Constants have names of their own.
    5. An If with a constant condition is replaced by the branch that it takes; the other one reads nothing any more.
    6. What adds a tiny number, or multiplies by almost one, stays: the optimizer takes 1e-12 for zero, which a division
       by the root of a variance of zero must not be without.
    7. A Split has its sizes, and a Reshape no `allowzero`, where the optimizer made it in a form that is newer than the
       model's operator set.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Run the optimizer, and mend what it leaves.

        Raises:
            UserError: The graph is not valid.
        """
        batch_norms = _find_batch_norms(model)
        hidden = _hide_almost_neutral(model)
        try:
            optimizer.optimize(model)
        except Exception as error:
            raise invalid(error) from error
        _show_again(model, hidden)
        for node in model.graph:
            norm = batch_norms.get(node.outputs[0].name or "")
            if norm is not None and node.op_type != "BatchNormalization":
                set_batch_norm(node, norm)
        _detach_removed(model)
        _register_loose(model)
        for node in model.graph:
            if node.op_type == "Split" and "num_outputs" in node.attributes and model.opset_imports[""] < _NUM_OUTPUTS:
                _give_sizes(model, node)
            if node.op_type == "Reshape" and model.opset_imports[""] < _ALLOWZERO:
                # Its targets have no zero where it sets this, or one that an older Reshape reads the same.
                node.attributes.pop("allowzero", None)
        return PassResult(model, modified=True)


_RELATIVE, _ABSOLUTE = 1e-4, 1e-6
"""Differences from zero or one up to which constants are kept from the optimizer; it tolerates less."""


def _hide_almost_neutral(model: ir.Model) -> dict[ir.Value, ir.TensorProtocol]:
    """Let inputs of the network stand for constants that are almost zero or one, where these would change nothing.

    Returns:
        The constants, by the input that stands for each.
    """
    hidden: dict[ir.Value, ir.TensorProtocol] = {}
    for node in model.graph:
        neutral = operators.of(node).neutral
        tensors = [None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs]
        if neutral is None or all(tensor is not None for tensor in tensors):
            continue
        for port, tensor in enumerate(tensors):
            if tensor is not None and tensor.size == 1 and _is_almost(tensor, neutral):
                stand_in = ir.val(
                    f"dipo.almost_neutral_{len(hidden)}", shape=tensor.numpy().shape, type=ir.TensorType(tensor.dtype)
                )
                hidden[stand_in] = tensor
                model.graph.inputs.append(stand_in)
                node.replace_input_with(port, stand_in)
    return hidden


def _is_almost(tensor: ir.TensorProtocol, neutral: int) -> bool:
    number = float(tensor.numpy().reshape(()))
    return number != neutral and bool(np.isclose(number, neutral, rtol=_RELATIVE, atol=_ABSOLUTE))


def _show_again(model: ir.Model, hidden: dict[ir.Value, ir.TensorProtocol]) -> None:
    """Put the constants back."""
    for stand_in, tensor in hidden.items():
        for use in list(stand_in.uses()):
            name = tensor.name or f"{use.node.outputs[0].name}_operand"
            replace_input(model, use.node, use.idx, name, tensor.numpy())
        model.graph.inputs.remove(stand_in)


_ALLOWZERO = 14
"""First operator set whose Reshape may take a zero for a size."""
_NUM_OUTPUTS = 18
"""First operator set whose Split may have a number of outputs in place of their sizes."""


def _register_loose(model: ir.Model) -> None:
    """Give constants that the optimizer made under the name of another one, which then is the graph's, their own."""
    for node in model.graph:
        for port, value in enumerate(node.inputs):
            if value is None or value.const_value is None or value.producer() is not None or value.is_graph_input():
                continue
            if model.graph.initializers.get(value.name or "") is not value:
                replace_input(model, node, port, value.name or f"{node.outputs[0].name}_{port}", array_of(value))


def _detach_removed(model: ir.Model) -> None:
    """Let nodes that are no longer in the graph read nothing: those of branches that are never taken."""
    present = set(model.graph.all_nodes())
    values = (*model.graph.inputs, *model.graph.initializers.values(), *(v for node in present for v in node.outputs))
    for value in values:
        for use in value.uses():
            if use.node not in present:
                use.node.replace_input_with(use.idx, None)


def _give_sizes(model: ir.Model, node: ir.Node) -> None:
    """Give a Split of a known size, in equal parts, the sizes of these."""
    source, num = node.inputs[0], len(node.outputs)
    axis = node.attributes.get_int("axis", 0)
    size = None if source is None or source.shape is None else source.shape[axis]
    assert isinstance(size, int), node.name
    del node.attributes["num_outputs"]
    node.resize_inputs(2)
    part = -(-size // num)
    sizes = [min(part, size - part * index) for index in range(num)]
    if model.opset_imports[""] < _SIZES_ARE_INPUTS:
        node.resize_inputs(1)
        node.attributes.add(ir.AttrInt64s("split", sizes))
    else:
        replace_input(model, node, 1, f"{node.outputs[0].name}_sizes", np.array(sizes, np.int64))


_SIZES_ARE_INPUTS = 13


def _find_batch_norms(model: ir.Model) -> dict[str, BatchNorm]:
    """Return every BatchNormalization with constant parameters, by name of its output."""
    norms = {node.outputs[0].name: batch_norm_in(node) for node in model.graph}
    return {name: norm for name, norm in norms.items() if name and norm is not None}

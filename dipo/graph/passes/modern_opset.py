"""Conversion of old files to the oldest operator set that the passes and rules after it know."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from dipo.graph import operators
from dipo.graph.opset import convert_opset

OPSET = 11
"""First operator set whose Pad and Clip read their numbers from inputs, and whose Resize says how it counts positions.

The optimizer's rules expect that form; in an older one they fail, or lose the limits of a Clip. Device toolchains read
this set more widely than newer ones, so nothing is raised further than this.
"""


class ModernOpset(InPlacePass):
    """Raise the default operator set to `OPSET`, if it is older.

    1. Pad, Clip, Slice and others have the form of `OPSET`.
    2. An Upsample or an older Resize is a Resize of its name that computes the same: positions are those of the output
       over the scale (`asymmetric`), and the nearest one is the next below (above, where the output is smaller), as
       ONNX Runtime computes them. ONNX's converter leaves both at newer defaults.
    3. Names of values stay, as do those of other nodes.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Convert the model.

        Raises:
            UserError: The converter does not know a way.
        """
        if model.opset_imports[""] >= OPSET:
            return PassResult(model, modified=False)
        before = [(node.name, node.outputs[0].name) for node in model.graph if operators.of(node).interpolates]
        convert_opset(model, OPSET)
        after = [node for node in model.graph if operators.of(node).interpolates]
        # The converter keeps the order, and makes a new node with a new output of an Upsample.
        for (name, output), node in zip(before, after, strict=True):
            node.name, node.outputs[0].name = name, output
            _set_positions(node)
        return PassResult(model, modified=True)


def _set_positions(node: ir.Node) -> None:
    """Set the attributes by which a Resize of `OPSET` computes what its older form did."""
    node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))
    if node.attributes.get_string("mode", "nearest") == "nearest":
        scales = node.inputs[2] if len(node.inputs) > 2 else None
        tensor = None if scales is None else ir.convenience.get_const_tensor(scales)
        is_smaller = tensor is not None and bool((tensor.numpy() < 1).any())
        node.attributes.add(ir.AttrString("nearest_mode", "ceil" if is_smaller else "floor"))

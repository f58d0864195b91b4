"""Unique names for all nodes; a layer keeps the name that it had in the file."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from dipo.graph import operators
from dipo.graph.constants import fresh_name
from dipo.graph.passes.invariants import check_names

_KEY = "dipo.layer_names"


class RecordLayerNames(InPlacePass):
    """Record the layers' names, by name of the initializer that is their weight, for `NameNodes`.

    Folding may replace a layer by a new node, which has no name, while the weight keeps its own.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Record the names in the model's metadata, which is not written into files."""
        model.meta[_KEY] = {
            weight: node.name
            for node in model.graph
            if _is_weighted(node) and node.name and (weight := _second_input(node))
        }
        return PassResult(model, modified=False)


class NameNodes(InPlacePass):
    """Give every node a unique name.

    1. A layer has the name that it had in the file.
    2. Another node has its own name, or its operator's, followed by a number if that is taken.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Name the layers first, so that no other node takes their names."""
        layer_names: dict[str, str] = model.meta.pop(_KEY)
        kept = set(layer_names.values())
        taken: set[str] = set()
        for node in sorted(model.graph, key=lambda node: not _is_weighted(node)):
            wish = node.name or node.op_type
            if _is_weighted(node) and wish not in kept:
                wish = layer_names.get(_second_input(node) or "", wish)
            node.name = fresh_name(wish, taken)
            taken.add(node.name)
        return PassResult(model, modified=True)

    def requires(self, model: ir.Model) -> None:
        """Check that `RecordLayerNames` has run."""
        if _KEY not in model.meta:
            raise ir.passes.PreconditionError("no names of layers are recorded: run RecordLayerNames before")

    def ensures(self, model: ir.Model) -> None:
        """Check that names are unique."""
        check_names(model)


def _is_weighted(node: ir.Node) -> bool:
    """Return whether the node's operator multiplies by a weight, which need not be constant yet."""
    return operators.of(node).weight is not None


def _second_input(node: ir.Node) -> str | None:
    return node.inputs[1].name if len(node.inputs) > 1 and node.inputs[1] is not None else None

"""A name for every graph."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult


class NameGraphs(InPlacePass):
    """Name graphs that have no name: runtimes need none, but ONNX's checker calls such a file invalid.

    1. The network and the bodies of its nodes have a name.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Give the missing names."""
        nameless = [graph for graph in model.graphs() if not graph.name]
        for graph in nameless:
            graph.name = "graph"
        return PassResult(model, modified=bool(nameless))

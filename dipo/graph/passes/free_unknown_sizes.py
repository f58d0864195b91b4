"""Free sizes for those that an exporter has written as -1."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

UNKNOWN = -1
"""Size that PaddlePaddle's exporter, among others, writes where ONNX has no number or a name, as runtimes take it."""


class FreeUnknownSizes(InPlacePass):
    """Make declared sizes of -1 free ones.

    1. No value of the network or of the bodies of its nodes has a declared size of -1; each is free, by itself.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Free the sizes."""
        values = [value for value in _values(model) if value.shape is not None and UNKNOWN in value.shape.dims]
        for value in values:
            assert value.shape is not None
            value.shape = ir.Shape([None if size == UNKNOWN else size for size in value.shape])
        return PassResult(model, modified=bool(values))


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        for node in graph:
            yield from node.outputs

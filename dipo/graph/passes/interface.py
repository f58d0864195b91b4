"""What the user's file says about its inputs and outputs: recorded before anything changes it, and put back for files.

Normalisation frees a fixed batch, so that calibration and training may take any number of samples at a time. Toolchains
of devices need the sizes that the user chose, so whatever is written has them again.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import ShapeInferencePass

from dipo.graph.constants import restore_constants
from dipo.graph.passes.batch_first import input_axes, take_back
from dipo.graph.passes.infer_shapes import InferShapes

_KEY = "dipo.declared_shapes"


class RecordInterface(InPlacePass):
    """Record the shapes of inputs and outputs, by name, for `RestoreInterface`."""

    def call(self, model: ir.Model) -> PassResult:
        """Record the shapes in the graph's metadata, which is not written into files and stays with copies."""
        values = (*model.graph.inputs, *model.graph.outputs)
        model.graph.meta[_KEY] = {value.name: value.shape.copy() for value in values if value.shape is not None}
        return PassResult(model, modified=False)


class RestoreInterface(InPlacePass):
    """Give inputs and outputs the shapes that they had in the user's file.

    1. Dynamic dimensions have their names, and a batch that was fixed is fixed.
    2. In a network whose batch was fixed, the constants that contained it do so again, and shapes between inputs and
       outputs are inferred anew.
    3. Inputs have the axes that they had in the file.
    4. An output that had no shape in the file keeps the one that was inferred.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Restore what `RecordInterface` has recorded; a model without a record is left as it is."""
        take_back(model)
        declared: dict[str | None, ir.Shape] = model.graph.meta.get(_KEY, {})
        refixed = [value for value in model.graph.inputs if _is_fixed_again(value, declared.get(value.name))]
        if refixed:
            _refix(model, declared)
        values = [value for value in (*model.graph.inputs, *model.graph.outputs) if value.name in declared]
        changed = [value for value in values if value.shape != declared[value.name]]
        for value in changed:
            value.shape = declared[value.name].copy()
        return PassResult(model, modified=bool(refixed or changed))


def was_fixed(model: ir.Model) -> bool:
    """Return whether the batch of a normalised model is fixed in its file."""
    declared: dict[str | None, ir.Shape] = model.graph.meta.get(_KEY, {})
    axes = input_axes(model)
    own = [(value, axes.get(value.name or "", 0)) for value in model.graph.inputs if value.name in declared]
    return any(axis is not None and isinstance(declared[value.name][axis], int) for value, axis in own)


def _is_fixed_again(value: ir.Value, declared: ir.Shape | None) -> bool:
    """Return whether a dimension of an input is dynamic that was fixed in the file."""
    if value.shape is None or declared is None:
        return False
    return any(
        isinstance(was, int) and not isinstance(now, int) for was, now in zip(declared, value.shape, strict=True)
    )


def _refix(model: ir.Model, declared: dict[str | None, ir.Shape]) -> None:
    """Put the sizes of inputs back, and with them the constants and the shapes that depend on these."""
    for node in model.graph:
        restore_constants(model, node)
        for value in node.outputs:
            value.shape = None
    for value in model.graph.inputs:
        if value.name in declared:
            value.shape = declared[value.name].copy()
    ShapeInferencePass()(model)
    InferShapes()(model)

"""What the user's file says about its inputs and outputs: recorded before anything changes it, and put back for files.

Normalisation frees a fixed batch, so that calibration and training may take any number of samples at a time. Toolchains
of devices need the sizes that the user chose, so whatever is written has them again. Everything is worked in float32;
what is written takes and gives the types of the user's file, by a Cast behind an input and in front of an output.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import ShapeInferencePass

from dipo.graph.accessors import name_of
from dipo.graph.constants import fresh_name, restore_constants
from dipo.graph.passes.batch_first import input_axes, take_back
from dipo.graph.passes.infer_shapes import InferShapes
from dipo.graph.passes.single_precision import OTHER_FLOATS

_KEY = "dipo.declared_shapes"
_TYPES = "dipo.declared_types"


class RecordInterface(InPlacePass):
    """Record shapes of inputs and outputs, and types that are not worked with, by name, for `RestoreInterface`."""

    def call(self, model: ir.Model) -> PassResult:
        """Record them in the graph's metadata, which is not written into files and stays with copies."""
        values = (*model.graph.inputs, *model.graph.outputs)
        model.graph.meta[_KEY] = {value.name: value.shape.copy() for value in values if value.shape is not None}
        model.graph.meta[_TYPES] = {value.name: value.dtype for value in values if value.dtype in OTHER_FLOATS}
        return PassResult(model, modified=False)


class RestoreInterface(InPlacePass):
    """Give inputs and outputs the shapes that they had in the user's file.

    1. Dynamic dimensions have their names, and a batch that was fixed is fixed.
    2. In a network whose batch was fixed, the constants that contained it do so again, and shapes between inputs and
       outputs are inferred anew.
    3. Inputs have the axes that they had in the file.
    4. An output that had no shape in the file keeps the one that was inferred.
    5. Inputs and outputs have their types; the float32 that nodes read or make in their place has the name that
       `names_in_file` says.
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
        names = names_in_file(model)
        for number, value in enumerate(model.graph.inputs):
            if value.name in names:
                _cast_input(model, number, names)
        for number, value in enumerate(model.graph.outputs):
            if value.name in names:
                _cast_output(model, number, names)
        return PassResult(model, modified=bool(refixed or changed or names))


def declared_types(model: ir.Model) -> dict[str, ir.DataType]:
    """Return the types of the inputs and outputs that are no float32 in the user's file, by name."""
    types: dict[str, ir.DataType] = model.graph.meta.get(_TYPES, {})
    return types


def names_in_file(model: ir.Model) -> dict[str, str]:
    """Return the names that values of the network have in what is written, of those that have others there.

    An input or output keeps its name in a file of the user's types; the float32 behind or in front of it needs another.

    Args:
        model: The network, before `RestoreInterface`.
    """
    taken = {*model.graph.initializers, *(value.name for value in model.graph.inputs)}
    taken |= {value.name for node in model.graph for value in node.outputs}
    return {name: fresh_name(f"{name}_float32", taken) for name in declared_types(model)}


def entering(model: ir.Model) -> list[ir.Value]:
    """Return the values that enter the network: its inputs, or what a Cast of `RestoreInterface` makes of them."""
    return [
        next(iter(value.uses())).node.outputs[0] if value.dtype in OTHER_FLOATS else value
        for value in model.graph.inputs
    ]


def _cast_input(model: ir.Model, number: int, names: dict[str, str]) -> None:
    """Give an input the type of the file, and let a Cast make float32 of it."""
    value, dtype = model.graph.inputs[number], declared_types(model)[name_of(model.graph.inputs[number])]
    outer = ir.val(value.name, shape=value.shape, type=ir.TensorType(dtype))
    node, inner = _cast(model, outer, ir.DataType.FLOAT, names[name_of(value)])
    ir.convenience.replace_all_uses_with(value, inner, replace_graph_outputs=True)
    model.graph.inputs[number] = outer
    first = next(iter(model.graph), None)
    if first is None:
        model.graph.append(node)
    else:
        model.graph.insert_before(first, node)


def _cast_output(model: ir.Model, number: int, names: dict[str, str]) -> None:
    """Give an output the type of the file, which a Cast makes of the float32."""
    value, name = model.graph.outputs[number], name_of(model.graph.outputs[number])
    value.name = names[name]
    node, outer = _cast(model, value, declared_types(model)[name], name)
    model.graph.append(node)
    model.graph.outputs[number] = outer


def _cast(model: ir.Model, source: ir.Value, dtype: ir.DataType, name: str) -> tuple[ir.Node, ir.Value]:
    """Return a Cast that is not in the graph yet, and its output."""
    made = ir.Value(name=name, shape=None if source.shape is None else source.shape.copy(), type=ir.TensorType(dtype))
    node_name = fresh_name(f"{name}_Cast", {node.name for node in model.graph})
    return ir.node("Cast", [source], {"to": dtype.value}, outputs=[made], name=node_name), made


def fixed_batch(model: ir.Model) -> int | None:
    """Return the size at which the batch of a normalised model is fixed in its file; None if it is not."""
    declared: dict[str | None, ir.Shape] = model.graph.meta.get(_KEY, {})
    axes = input_axes(model)
    own = [(value, axes.get(value.name or "", 0)) for value in model.graph.inputs if value.name in declared]
    sizes = (declared[value.name][axis] for value, axis in own if axis is not None)
    return next((size for size in sizes if isinstance(size, int)), None)


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

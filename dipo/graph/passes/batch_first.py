"""Inputs that count the samples on another axis than the first, or not at all, brought to the common form."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from dipo.graph.constants import drop_unused, fresh_name
from dipo.graph.input_axes import InputAxes, find_input_axes, samples_first

_KEY = "dipo.input_axes"


class BatchFirst(InPlacePass):
    """Let every input begin with the batch, followed by a node that gives what the file's input was.

    1. An input with the batch on another axis is transposed. Of one without a batch the first row is taken: all samples
       have the same.
    2. The axes of the file are recorded (`input_axes`), and `take_back` undoes the change.
    """

    def __init__(self, *, whole: bool = False) -> None:
        """Say how inputs are read.

        Args:
            whole: Whether no input has a batch: a sample is what the file takes in a run.
        """
        super().__init__()
        self._whole = whole

    def call(self, model: ir.Model) -> PassResult:
        """Change the inputs."""
        shapes = {value.name or "": _declared(value) for value in model.graph.inputs if value.shape is not None}
        found = dict.fromkeys(shapes) if self._whole else find_input_axes(shapes)
        axes = {name: axis for name, axis in found.items() if axis != 0}
        model.graph.meta[_KEY] = axes
        taken = (
            {value.name for node in model.graph for value in node.outputs} | set(model.graph.initializers) | {*shapes}
        )
        for value in model.graph.inputs:
            if value.name in axes:
                _bring_forward(model, value, axes[value.name], fresh_name(f"{value.name}_as_in_file", taken))
        return PassResult(model, modified=bool(axes))


def input_axes(model: ir.Model) -> InputAxes:
    """Return the axis of the samples of those inputs of the file that do not begin with them."""
    found: InputAxes = model.graph.meta.get(_KEY, {})
    return found


def runs_whole(model: ir.Model) -> bool:
    """Return whether a sample is all that the file takes in a run."""
    axes = input_axes(model)
    return all(axes.get(value.name or "", 0) is None for value in model.graph.inputs)


def axes_in_file(model: ir.Model) -> dict[str, int | None]:
    """Return the axes of the samples in a file that is run whole, by the sizes that it declares."""
    shapes = {value.name or "": _declared(value)[1:] for value in model.graph.inputs if value.shape is not None}
    return find_input_axes(shapes)


def values_in_file(model: ir.Model) -> dict[str, str]:
    """Return the values that stand for inputs of the file, by the name of the input."""
    return {node.inputs[0].name or "": node.outputs[0].name or "" for node in _nodes(model) if node.inputs[0]}


def take_back(model: ir.Model) -> None:
    """Give a model's inputs the axes that they have in the file; in place."""
    for node in _nodes(model):
        source, value = node.inputs[0], node.outputs[0]
        assert source is not None
        index = node.inputs[1] if len(node.inputs) > 1 else None
        source.shape, source.type = value.shape, value.type
        ir.convenience.replace_all_uses_with(value, source, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        drop_unused(model, index)


def _nodes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if _KEY in node.meta]


def _declared(value: ir.Value) -> tuple[int | str | None, ...]:
    assert value.shape is not None
    return tuple(size if isinstance(size, int) else size.value for size in value.shape)


def _bring_forward(model: ir.Model, value: ir.Value, axis: int | None, name: str) -> None:
    assert value.shape is not None
    shape = value.shape
    if axis is None:
        index = ir.val(f"{name}_row", const_value=ir.tensor(np.array(0, np.int64), name=f"{name}_row"))
        index.shape, index.dtype = ir.Shape([]), ir.DataType.INT64
        model.graph.register_initializer(index)
        node = ir.node("Gather", [value, index], {"axis": 0}, name=name)
    else:
        order = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
        node = ir.node("Transpose", [value], {"perm": order}, name=name)
    node.meta[_KEY] = True
    made = node.outputs[0]
    made.name, made.shape, made.type = name, shape, value.type
    uses = [(use.node, use.idx) for use in value.uses() if use.node is not node]
    for reader, index_of in uses:
        reader.replace_input_with(index_of, made)
    for position, output in enumerate(model.graph.outputs):
        if output is value:
            model.graph.outputs[position] = made
    value.shape = ir.Shape(list(samples_first(_declared(value), axis)))
    model.graph.insert_before(model.graph[0], node)

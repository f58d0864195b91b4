"""Making a batch size dynamic that the exporter fixed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult
from onnx_ir.passes.common import ShapeInferencePass

from dipo.errors import UserError
from dipo.graph.batch_axis import batch_axes, reshaped_axis
from dipo.graph.constants import record_constants, replace_input, single_rows
from dipo.graph.passes.batch_first import input_axes
from dipo.graph.passes.resize_scales import exact_scales, set_scales


class FixedBatchError(UserError):
    """A network's batch cannot be freed."""

    def __init__(self, sentence: str, batch: int) -> None:
        """Say why.

        Args:
            sentence: What the user reads.
            batch: Size of the batch.
        """
        super().__init__(sentence)
        self.batch = batch


class FreeBatch(InPlacePass):
    """Make a fixed first dimension of the inputs dynamic, if only declared shapes and constants depend on it.

    1. No input or output has a fixed first dimension, if all inputs had the same one.
    2. Shapes between them are inferred anew.
    3. Nodes whose constants were replaced have a record of the former ones, for `RestoreInterface`.
    4. A constant that is joined to activations along another axis (a class token, coordinates) stands for every sample.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Free the batch of a model whose constants are folded.

        Raises:
            FixedBatchError: The graph depends on the size of the batch in some other way.
        """
        inputs = model.graph.inputs
        sizes = {
            value.shape[0] if value.shape is not None and len(value.shape) else None
            for value in inputs
            if input_axes(model).get(value.name or "", 0) is not None
        }
        batch = sizes.pop() if len(sizes) == 1 else None
        if not isinstance(batch, int):
            return PassResult(model, modified=False)
        _free_nodes(model, batch)
        declared = {value: value.shape for value in model.graph.outputs}
        for value in (*inputs, *(output for node in model.graph for output in node.outputs)):
            value.shape = ir.Shape(["batch", *value.shape[1:]]) if value.is_graph_input() and value.shape else None
        _infer_shapes(model)
        for value, shape in declared.items():
            if value.shape is not None and (not len(value.shape) or isinstance(value.shape[0], int)):
                raise FixedBatchError(
                    f"the batch is fixed at {batch} and the shape of output {value.name!r} does not follow another "
                    "one, export the model with a dynamic batch",
                    batch,
                )
            if shape is not None:
                value.shape = ir.Shape(["batch", *shape[1:]])
        return PassResult(model, modified=True)


def _infer_shapes(model: ir.Model) -> None:
    """Infer shapes, with a row for each sample of constants that are joined to activations (`ops.shape.concat`)."""
    single = [(node, port) for node in model.graph for port in single_rows(node)]
    stand_ins = []
    for index, (node, port) in enumerate(single):
        value = node.inputs[port]
        assert value is not None and value.shape is not None
        shape = ir.Shape(["batch", *value.shape[1:]])
        stand_in = ir.Input(f"dipo.samples_of_constant_{index}", shape=shape, type=value.type)
        model.graph.inputs.append(stand_in)
        node.replace_input_with(port, stand_in)
        stand_ins.append((node, port, value))
    ShapeInferencePass()(model)
    for node, port, value in stand_ins:
        node.replace_input_with(port, value)
        model.graph.inputs.pop()


def _free_nodes(model: ir.Model, batch: int) -> None:
    """Replace the constants that contain the batch size."""
    axes = batch_axes(model, batch)
    for node in model.graph:
        axis = axes.get(node.inputs[0], 0) if node.inputs and node.inputs[0] is not None else 0
        target = _freed_target(node, batch) if axis == 0 else _freed_inner_target(node, axis, batch)
        scales = _freed_scales(node)
        if target is not None or scales is not None:
            record_constants(node)
        if target is not None:
            replace_input(model, node, 1, f"{node.outputs[0].name}_shape", target)
        if scales is not None:
            set_scales(model, node, scales)


def _freed_target(node: ir.Node, batch: int) -> NDArray[np.int64] | None:
    """Return a Reshape's target with its first dimension, a multiple of the batch, made free; None if it has none."""
    target = node.inputs[1] if node.op_type == "Reshape" else None
    if target is None or target.const_value is None:
        return None
    shape = np.array(target.const_value.numpy(), np.int64)
    if not shape.size or shape[0] < 1 or shape[0] % batch:
        return None
    output = node.outputs[0].shape
    if -1 in shape and output is not None and all(isinstance(size, int) for size in output):
        shape = np.array(output.numpy(), np.int64)
    if -1 in shape and shape[0] != batch:
        return None
    shape[0] = 0 if -1 in shape else -1
    return shape


def _freed_inner_target(node: ir.Node, axis: int, batch: int) -> NDArray[np.int64] | None:
    """Return a Reshape's target with the batch, which is part of the input's `axis`, made free; None if it is free."""
    target = node.inputs[1] if node.op_type == "Reshape" else None
    source = node.inputs[0].shape if target is not None and node.inputs[0] is not None else None
    output = node.outputs[0].shape
    if target is None or target.const_value is None or source is None or output is None:
        return None
    if not (source.is_static() and output.is_static()):
        return None
    behind = reshaped_axis(source, output, axis, batch=batch)
    if behind is None or target.const_value.numpy()[behind] == -1:
        return None
    shape = np.array(output.numpy(), np.int64)
    shape[behind] = -1
    return shape


def _freed_scales(node: ir.Node) -> NDArray[np.float32] | None:
    """Return scales in place of a Resize's sizes, which contain the batch; None if they would not give these sizes."""
    sizes = node.inputs[3] if node.op_type == "Resize" and len(node.inputs) > 3 else None
    source = node.inputs[0].shape if sizes is not None and node.inputs[0] is not None else None
    if sizes is None or sizes.const_value is None or source is None or not source.is_static():
        return None
    if "axes" in node.attributes or "keep_aspect_ratio_policy" in node.attributes:
        return None
    return exact_scales(np.array(source.numpy(), np.int64), sizes.const_value.numpy())

"""A batch that the exporter fixed, made dynamic; and the giving of new constants to nodes, which that needs."""

from __future__ import annotations

import itertools
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from dipo.errors import UserError


def free_batch(model: ir.Model, path: Path) -> None:
    """Makes a fixed first dimension of the network's inputs dynamic, where only declared shapes and sizes fix it.

    Args:
        model: A model with folded constants; changed in place.
        path: Its file, for messages.

    Raises:
        UserError: The graph depends on the size of the batch in some other way.
    """
    sizes = {value.shape[0] if value.shape is not None and len(value.shape) else None for value in model.graph.inputs}
    batch = sizes.pop() if len(sizes) == 1 else None
    if not isinstance(batch, int):
        return
    for node in model.graph:
        target, scales = _freed_target(node, batch), _freed_scales(node)
        if target is not None:
            replace_input(model, node, 1, f"{node.outputs[0].name}_shape", target)
        if scales is not None:
            replace_input(model, node, 2, f"{node.outputs[0].name}_scales", scales)
            node.resize_inputs(3)
    declared = {value: value.shape for value in model.graph.outputs}
    for value in (*model.graph.inputs, *(output for node in model.graph for output in node.outputs)):
        value.shape = ir.Shape(["batch", *value.shape[1:]]) if value.is_graph_input() and value.shape else None
    ShapeInferencePass()(model)
    for value, shape in declared.items():
        if value.shape is not None and (not len(value.shape) or isinstance(value.shape[0], int)):
            raise UserError(
                f"model.path={path}: the batch is fixed at {batch} and the shape of output {value.name!r} "
                "does not follow another one, export the model with a dynamic batch"
            )
        if shape is not None:
            value.shape = ir.Shape(["batch", *shape[1:]])


def _freed_target(node: ir.Node, batch: int) -> NDArray[np.int64] | None:
    """A Reshape's target with a free first dimension, which the batch is a factor of; None where it is none."""
    target = node.inputs[1] if node.op_type == "Reshape" else None
    if target is None or target.const_value is None:
        return None
    shape = np.array(target.const_value.numpy(), np.int64)
    if not shape.size or shape[0] < 1 or shape[0] % batch:
        return None
    made = node.outputs[0].shape
    if -1 in shape and made is not None and all(isinstance(size, int) for size in made):
        shape = np.array(made.numpy(), np.int64)
    if -1 in shape and shape[0] != batch:
        return None
    shape[0] = 0 if -1 in shape else -1
    return shape


def _freed_scales(node: ir.Node) -> NDArray[np.float32] | None:
    """A Resize's scales instead of its sizes, which name the batch; None where scales would not give them."""
    sizes = node.inputs[3] if node.op_type == "Resize" and len(node.inputs) > 3 else None
    source = node.inputs[0].shape if sizes is not None and node.inputs[0] is not None else None
    if sizes is None or sizes.const_value is None or source is None or not source.is_static():
        return None
    if "axes" in node.attributes or "keep_aspect_ratio_policy" in node.attributes:
        return None
    wanted = sizes.const_value.numpy()
    scales = (wanted / source.numpy()).astype(np.float32)
    return scales if np.array_equal(np.floor(source.numpy() * scales), wanted) else None


def fresh_name(wish: str, taken: Container[str]) -> str:
    """The name itself, or with the first number behind it that nothing has taken."""
    numbered = (f"{wish}_{i}" for i in itertools.count(2))
    return next(name for name in itertools.chain((wish,), numbered) if name not in taken)


def replace_input(model: ir.Model, node: ir.Node, index: int, name: str, array: NDArray[Any]) -> None:
    """Gives the node a constant of its own; the one that it had goes where nothing else needs it."""
    old = node.inputs[index]
    made = {value.name or "" for other in model.graph for value in other.outputs}
    taken = made | {value.name or "" for value in model.graph.inputs} | set(model.graph.initializers)
    name = fresh_name(name, taken)
    shape, kind = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
    value = ir.val(name, const_value=ir.tensor(array, name=name), shape=shape, type=kind)
    model.graph.register_initializer(value)
    node.replace_input_with(index, value)
    if old is not None and old.name and old.is_initializer() and not old.uses() and not old.is_graph_output():
        del model.graph.initializers[old.name]

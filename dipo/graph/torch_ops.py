"""ONNX operators as torch functions: the table, and `bind`, which turns a node into a function of its inputs."""

from __future__ import annotations

import onnx_ir as ir
import torch
import torch.nn.functional as F

from dipo.errors import UserError
from dipo.graph.ops import elementwise, linear, normalization, pooling, resize, shape
from dipo.graph.ops.reader import Builder, NodeReader, TorchOp

OLDEST_OPSET = 7
"""Before it, operators broadcast by attributes."""

OPS: dict[str, Builder] = {
    # with weights
    "Conv": linear.conv,
    "ConvTranspose": linear.conv_transpose,
    "Gemm": linear.gemm,
    "MatMul": elementwise.plain(torch.matmul),
    # of two or more tensors
    "Add": elementwise.plain(torch.add),
    "Sub": elementwise.plain(torch.sub),
    "Mul": elementwise.plain(torch.mul),
    "Div": elementwise.plain(elementwise.divide),
    "Pow": elementwise.power,
    "Min": elementwise.variadic(torch.minimum),
    "Max": elementwise.variadic(torch.maximum),
    "Sum": elementwise.variadic(torch.add),
    "Where": elementwise.plain(torch.where),
    # activations
    "Relu": elementwise.plain(F.relu),
    "Clip": elementwise.clip,
    "LeakyRelu": elementwise.leaky_relu,
    "PRelu": elementwise.plain(elementwise.prelu),
    "Elu": elementwise.elu,
    "Sigmoid": elementwise.plain(torch.sigmoid),
    "HardSigmoid": elementwise.hard_sigmoid,
    "HardSwish": elementwise.plain(F.hardswish),
    "Tanh": elementwise.plain(torch.tanh),
    "Erf": elementwise.plain(torch.erf),
    "Gelu": elementwise.gelu,
    "Mish": elementwise.plain(F.mish),
    "Softmax": elementwise.softmax(F.softmax),
    "LogSoftmax": elementwise.softmax(F.log_softmax),
    # of one tensor
    "Abs": elementwise.plain(torch.abs),
    "Neg": elementwise.plain(torch.neg),
    "Exp": elementwise.plain(torch.exp),
    "Log": elementwise.plain(torch.log),
    "Sqrt": elementwise.plain(torch.sqrt),
    "Reciprocal": elementwise.plain(torch.reciprocal),
    "Cast": elementwise.cast,
    "Dropout": elementwise.dropout,
    "Identity": elementwise.plain(lambda x: x),
    # poolings and reductions
    "AveragePool": pooling.average_pool,
    "MaxPool": pooling.max_pool,
    "GlobalAveragePool": pooling.global_average_pool,
    "GlobalMaxPool": pooling.global_max_pool,
    "ReduceMean": pooling.reduction(torch.mean),
    "ReduceSum": pooling.reduction(torch.sum),
    "ReduceMax": pooling.reduction(torch.amax),
    "ReduceMin": pooling.reduction(torch.amin),
    # normalizations
    "BatchNormalization": normalization.batch_normalization,
    "LayerNormalization": normalization.layer_normalization,
    "InstanceNormalization": normalization.instance_normalization,
    # shapes
    "Reshape": shape.reshape,
    "Flatten": shape.flatten,
    "Transpose": shape.transpose,
    "Squeeze": shape.squeeze,
    "Unsqueeze": shape.unsqueeze,
    "Concat": shape.concat,
    "Split": shape.split,
    "Slice": shape.slice_,
    "Pad": shape.pad,
    "Expand": shape.expand,
    "Tile": shape.tile,
    "Gather": shape.gather,
    "Resize": resize.resize,
}
"""By operator of the default domain."""


def bind(node: ir.Node, opset: int) -> TorchOp:
    """Turn a node into a torch function of its inputs.

    Attributes and inputs that have to be constant (shapes, axes, pads, limits) are read now. The function takes all of
    the node's inputs by position, None for absent optional ones, and does not look at those constants again. It is
    differentiable, changes no argument, and keeps the memory format of convolutional tensors.

    Args:
        node: An operator of the default domain; its constants are initializers or Constant nodes.
        opset: Version of the default domain that the model imports.

    Returns:
        A function that returns a tensor, or a tuple of tensors for a node with several outputs (and for Split).

    Raises:
        UserError: torch does not compute this operator, or not with these attributes or inputs.
    """
    reader = NodeReader(node, opset)
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPS:
        raise reader.refusal("this operator is not computed in torch")
    if opset < OLDEST_OPSET:
        raise reader.refusal(f"opset {opset} is too old: convert the model to opset {OLDEST_OPSET} or later")
    op = OPS[node.op_type](reader)
    reader.check_all_read()
    return op


def supported(node: ir.Node, opset: int | None = None) -> bool:
    """Whether `bind` would succeed.

    Args:
        node: The node.
        opset: Version of the default domain; None takes what the node's graph imports.
    """
    if opset is None:
        opset = _imported_opset(node)
    try:
        bind(node, opset)
    except UserError:
        return False
    return True


def _imported_opset(node: ir.Node) -> int:
    assert node.graph is not None, f"node '{node.name}' belongs to no graph: name the opset"
    return node.graph.opset_imports[""]

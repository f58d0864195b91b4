"""BatchNormalization, LayerNormalization, InstanceNormalization."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dipo.graph.ops.reader import NodeReader, TorchOp


def batch_normalization(node: NodeReader) -> TorchOp:
    """BatchNormalization at inference: x [N, C, ...], the other inputs [C]."""
    epsilon = node.get_float("epsilon", 1e-5)
    node.ignore("momentum")  # for training
    if node.get_int("training_mode", 0):
        raise node.refusal("training_mode is on: export the model for inference")
    if not node.get_int("spatial", 1):
        raise node.refusal("statistics for each position (spatial = 0) are not computed in torch")
    node.require_one_output()
    return lambda x, scale, bias, mean, var: F.batch_norm(x, mean, var, scale, bias, eps=epsilon)


def layer_normalization(node: NodeReader) -> TorchOp:
    """LayerNormalization over all axes from `axis` on; outputs y and, if used, mean and 1 / standard deviation."""
    axis, epsilon = node.get_int("axis", -1), node.get_float("epsilon", 1e-5)
    if node.get_int("stash_type", 1) != 1:
        raise node.refusal("only stash_type 1 (statistics in float32) is computed in torch")
    num_outputs = node.num_outputs

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        shape = x.shape[axis:]
        bias = None if bias is None else bias.expand(shape)
        outputs = torch.native_layer_norm(x, shape, scale.expand(shape), bias, epsilon)
        return outputs[0] if num_outputs == 1 else outputs[:num_outputs]

    return run


def instance_normalization(node: NodeReader) -> TorchOp:
    """InstanceNormalization: each channel of each sample by its own statistics; scale and bias [C]."""
    epsilon = node.get_float("epsilon", 1e-5)
    return lambda x, scale, bias: F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)

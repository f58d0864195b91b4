"""Normalizations: by given statistics, by those of the input itself, and by norms."""

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
    _refuse_other_stash(node)
    num_outputs = node.num_outputs

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        shape = x.shape[axis:]
        if max(scale.dim(), 0 if bias is None else bias.dim()) > len(shape):  # of each position
            y, *statistics = torch.native_layer_norm(x, shape, None, None, epsilon)
            y = y * scale if bias is None else y * scale + bias
            return y if num_outputs == 1 else (y, *statistics)[:num_outputs]
        bias = None if bias is None else bias.expand(shape)
        outputs = torch.native_layer_norm(x, shape, scale.expand(shape), bias, epsilon)
        return outputs[0] if num_outputs == 1 else outputs[:num_outputs]

    return run


def rms_normalization(node: NodeReader) -> TorchOp:
    """RMSNormalization: x over the root of the mean of its squares over all axes from `axis` on, times a scale."""
    axis, epsilon = node.get_int("axis", -1), node.get_float("epsilon", 1e-5)
    _refuse_other_stash(node)

    def run(x: Tensor, scale: Tensor) -> Tensor:
        axes = tuple(range(axis % x.dim(), x.dim()))
        numbers = x if x.dtype == torch.float64 else x.float()
        normal = numbers * torch.rsqrt(numbers.square().mean(dim=axes, keepdim=True) + epsilon)
        return normal.to(x.dtype) * scale

    return run


def instance_normalization(node: NodeReader) -> TorchOp:
    """InstanceNormalization: each channel of each sample by its own statistics; scale and bias [C]."""
    epsilon = node.get_float("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        # torch's own function refuses a single position.
        return F.group_norm(x, x.shape[1], weight=scale, bias=bias, eps=epsilon)

    return run


def group_normalization(node: NodeReader) -> TorchOp:
    """GroupNormalization: groups of channels by their own statistics; scale and bias [C], of groups before 21."""
    groups, epsilon = node.get_int("num_groups", 1), node.get_float("epsilon", 1e-5)
    _refuse_other_stash(node)
    of_groups = node.opset < 21

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if of_groups:
            size = x.shape[1] // groups
            scale, bias = scale.repeat_interleave(size), bias.repeat_interleave(size)
        return F.group_norm(x, groups, scale, bias, epsilon)

    return run


def local_response_normalization(node: NodeReader) -> TorchOp:
    """LRN: x over (bias + alpha / size * the sum of squares of `size` channels around it) ^ beta."""
    size = node.get_int("size", 1)
    alpha, beta, bias = node.get_float("alpha", 1e-4), node.get_float("beta", 0.75), node.get_float("bias", 1.0)
    before, behind = (size - 1) // 2, size - 1 - (size - 1) // 2

    def run(x: Tensor) -> Tensor:
        squares = F.pad(x.square().transpose(1, -1), (before, behind))
        around = squares.unfold(-1, size, 1).sum(-1).transpose(1, -1)
        return x / (bias + alpha / size * around) ** beta

    return run


def lp_normalization(node: NodeReader) -> TorchOp:
    """LpNormalization: x over its norm along an axis; zero where that is zero."""
    axis, p = node.get_int("axis", -1), node.get_int("p", 2)
    if p not in (1, 2):
        raise node.refusal(f"p = {p} is not computed in torch, only 1 and 2")

    def run(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, p, dim=axis, keepdim=True)
        return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))

    return run


def mean_variance_normalization(node: NodeReader) -> TorchOp:
    """MeanVarianceNormalization: (x - mean) / (standard deviation + 1e-9) over axes."""
    axes = node.get_ints("axes") or (0, 2, 3)

    def run(x: Tensor) -> Tensor:
        centred = x - x.mean(dim=axes, keepdim=True)
        return centred / (centred.square().mean(dim=axes, keepdim=True).sqrt() + 1e-9)

    return run


def _refuse_other_stash(node: NodeReader) -> None:
    if node.get_int("stash_type", 1) != 1:
        raise node.refusal("only stash_type 1 (statistics in float32) is computed in torch")

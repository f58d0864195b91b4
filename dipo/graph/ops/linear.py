"""Conv, ConvTranspose, Gemm: the operators with weights and attributes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dipo.graph.ops.reader import NodeReader, TorchOp
from dipo.graph.ops.window import Window, by_rank, torch_pads


def conv(node: NodeReader) -> TorchOp:
    """Conv: x [N, C, ...], w [M, C / group, ...], b [M] or None."""
    kernel = kernel_of(node)
    function = by_rank(node, (F.conv1d, F.conv2d, F.conv3d), len(kernel))
    window = Window.read(node, kernel)
    strides, dilations, groups = window.strides, window.dilations, node.get_int("group", 1)
    pads = window.symmetric
    if pads is not None:
        return lambda x, w, b=None: function(x, w, b, strides, pads, dilations, groups)
    pad = window.padder()
    return lambda x, w, b=None: function(pad(x), w, b, strides, 0, dilations, groups)


def conv_transpose(node: NodeReader) -> TorchOp:
    """ConvTranspose: x [N, C, ...], w [C, M / group, ...], b [M] or None; pads cut the full output."""
    kernel = kernel_of(node)
    function = by_rank(node, (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), len(kernel))
    window = Window.read(node, kernel)
    groups = node.get_int("group", 1)
    output_padding = node.get_ints("output_padding") or (0,) * len(kernel)
    output_shape = node.get_ints("output_shape")
    follows_size = output_shape is not None or node.get_string("auto_pad", "NOTSET").startswith("SAME")
    strides, dilations, pads = window.strides, window.dilations, window.symmetric
    if pads is not None and not follows_size:
        return lambda x, w, b=None: function(x, w, b, strides, pads, output_padding, groups, dilations)

    def cut(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        y = function(x, w, None, strides, 0, output_padding, groups, dilations)
        if follows_size:
            wanted = output_shape or tuple(size * stride for size, stride in zip(x.shape[2:], strides, strict=True))
            begins, ends = _split(y.shape[2:], wanted[-len(kernel) :], begin_small=window.same_upper)
        else:
            begins, ends = window.pads_for(x.shape[2:])
        y = F.pad(y, torch_pads([-p for p in begins], [-p for p in ends]))
        return y if b is None else y + b.view(-1, *[1] * len(kernel))

    return cut


def gemm(node: NodeReader) -> TorchOp:
    """Gemm: alpha * A' @ B' + beta * C, with A' [M, K], B' [K, N] and C broadcastable to [M, N] or None."""
    alpha, beta = node.get_float("alpha", 1.0), node.get_float("beta", 1.0)
    transpose_a, transpose_b = bool(node.get_int("transA", 0)), bool(node.get_int("transB", 0))

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a = a.t() if transpose_a else a
        b = b.t() if transpose_b else b
        if c is not None:
            return torch.addmm(c, a, b, beta=beta, alpha=alpha)
        y = torch.mm(a, b)
        return y if alpha == 1.0 else y * alpha

    return run


def einsum(node: NodeReader) -> TorchOp:
    """Einsum: sums of products over the indices that an equation names."""
    equation = node.get_string("equation", "")
    return lambda *xs: torch.einsum(equation, *xs)


def kernel_of(node: NodeReader) -> tuple[int, ...]:
    """Return the spatial shape of a convolution's weight.

    Raises:
        UserError: It is not known.
    """
    kernel = node.get_ints("kernel_shape")
    if kernel is not None:
        return kernel
    shape = node.shape(1)
    if shape is None or any(size is None for size in shape):
        raise node.refusal("it has neither a kernel_shape nor weights of known shape: infer shapes first")
    return tuple(size for size in shape[2:] if size is not None)


def _split(
    sizes: Sequence[int], wanted: Sequence[int], *, begin_small: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return how much to cut at the beginning and the end so that `sizes` become `wanted`."""
    totals = [size - want for size, want in zip(sizes, wanted, strict=True)]
    small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    return (small, large) if begin_small else (large, small)

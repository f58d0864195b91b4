"""Poolings over windows or all positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dipo.graph.ops.reader import NodeReader, TorchOp
from dipo.graph.ops.window import Window, by_rank, lowest, torch_pads


def max_pool(node: NodeReader) -> TorchOp:
    """MaxPool without its second output (indices); padding never wins."""
    node.require_one_output()
    node.ignore("storage_order")  # an order of the indices
    window = _pool_window(node)
    function = by_rank(node, (F.max_pool1d, F.max_pool2d, F.max_pool3d), len(window.kernel))
    kernel, strides, dilations, ceil_mode = window.kernel, window.strides, window.dilations, window.ceil_mode
    pads = _kernel_pads(window)
    if pads is not None:
        return lambda x: function(x, kernel, strides, pads, dilations, ceil_mode)

    def padded(x: Tensor) -> Tensor:
        x = F.pad(x, torch_pads(*window.exact_pads_for(x.shape[2:])), value=lowest(x.dtype))
        return function(x, kernel, strides, 0, dilations)

    return padded


def average_pool(node: NodeReader) -> TorchOp:
    """AveragePool: the mean over a window's elements in the input, with count_include_pad also over its pads."""
    window = _pool_window(node)
    include_pad = bool(node.get_int("count_include_pad", 0))
    kernel, strides, ceil_mode = window.kernel, window.strides, window.ceil_mode
    function = by_rank(node, (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), len(kernel))
    pads = _kernel_pads(window)
    if pads is not None and set(window.dilations) == {1}:
        return lambda x: function(x, kernel, strides, pads, ceil_mode, include_pad)
    mean = _window_mean(node, window)

    def padded(x: Tensor) -> Tensor:
        sizes = x.shape[2:]
        begins, ends = window.exact_pads_for(sizes)
        counted = torch.ones_like(x[:1, :1])
        if include_pad:
            pad_begins, pad_ends = window.pads_for(sizes)
            counted = F.pad(counted, torch_pads(pad_begins, pad_ends), value=1.0)
            rest = [end - pad_end for end, pad_end in zip(ends, pad_ends, strict=True)]
            counted = F.pad(counted, torch_pads([0] * len(rest), rest))
        else:
            counted = F.pad(counted, torch_pads(begins, ends))
        return mean(F.pad(x, torch_pads(begins, ends))) / mean(counted)

    return padded


def global_average_pool(node: NodeReader) -> TorchOp:
    """GlobalAveragePool: mean over the spatial dimensions, which stay with size 1."""
    dims = tuple(range(2, node.rank(0)))
    return lambda x: x.mean(dim=dims, keepdim=True)


def global_max_pool(node: NodeReader) -> TorchOp:
    """GlobalMaxPool: maximum over the spatial dimensions, which stay with size 1."""
    dims = tuple(range(2, node.rank(0)))
    return lambda x: x.amax(dim=dims, keepdim=True)


def _pool_window(node: NodeReader) -> Window:
    kernel = node.get_ints("kernel_shape")
    if kernel is None:
        raise node.refusal("it has no kernel_shape")
    return Window.read(node, kernel, ceil_mode=bool(node.get_int("ceil_mode", 0)))


def _kernel_pads(window: Window) -> tuple[int, ...] | None:
    """Return the pads if torch's pooling takes them: symmetric and at most half the kernel; else None."""
    pads = window.symmetric
    if pads is None or any(2 * pad > size for pad, size in zip(pads, window.kernel, strict=True)):
        return None
    return pads


def _window_mean(node: NodeReader, window: Window) -> Callable[[Tensor], Tensor]:
    """Return a function for the mean of each window of an input that is already padded."""
    kernel, strides, dilations = window.kernel, window.strides, window.dilations
    if set(dilations) == {1}:
        pool = by_rank(node, (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), len(kernel))
        return lambda x: pool(x, kernel, strides)
    conv = by_rank(node, (F.conv1d, F.conv2d, F.conv3d), len(kernel))

    def dilated(x: Tensor) -> Tensor:
        planes = x.flatten(0, 1).unsqueeze(1)
        ones = torch.ones((1, 1, *kernel), dtype=x.dtype, device=x.device)
        y: Tensor = conv(planes, ones, None, strides, 0, dilations) / ones.numel()
        return y.reshape(*x.shape[:2], *y.shape[2:])

    return dilated

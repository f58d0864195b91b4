"""Poolings over windows or all positions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dipo.graph.ops.reader import NodeReader, TorchOp
from dipo.graph.ops.window import Window, by_rank, lowest, torch_pads


def max_pool(node: NodeReader) -> TorchOp:
    """MaxPool, and the places of its numbers in the whole input, if used; padding never wins."""
    by_column = bool(node.get_int("storage_order", 0))
    window = _pool_window(node)
    if node.num_outputs > 1:
        return _with_places(node, window, by_column=by_column)
    function = by_rank(node, (F.max_pool1d, F.max_pool2d, F.max_pool3d), len(window.kernel))
    kernel, strides, dilations, ceil_mode = window.kernel, window.strides, window.dilations, window.ceil_mode
    pads = _kernel_pads(window)
    if pads is not None:
        return lambda x: function(x, kernel, strides, pads, dilations, ceil_mode)

    def padded(x: Tensor) -> Tensor:
        x = F.pad(x, torch_pads(*window.exact_pads_for(x.shape[2:])), value=lowest(x.dtype))
        return function(x, kernel, strides, 0, dilations)

    return padded


def _with_places(node: NodeReader, window: Window, *, by_column: bool) -> TorchOp:
    """Return a MaxPool with two outputs."""
    function = by_rank(node, (F.max_pool1d, F.max_pool2d, F.max_pool3d), len(window.kernel))

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        sizes = x.shape[2:]
        begins, ends = window.exact_pads_for(sizes)
        padded = F.pad(x, torch_pads(begins, ends), value=lowest(x.dtype))
        y, place = function(padded, window.kernel, window.strides, 0, window.dilations, False, True)
        coordinates = [
            each - begin for each, begin in zip(torch.unravel_index(place, padded.shape[2:]), begins, strict=True)
        ]
        order = range(len(sizes) - 1, -1, -1) if by_column else range(len(sizes))
        flat = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * len(sizes))
        for axis in order:
            flat = flat * sizes[axis] + coordinates[axis]
        return y, flat

    return run


def lp_pool(node: NodeReader) -> TorchOp:
    """LpPool: the p-norm of a window's elements."""
    window, p = _pool_window(node), node.get_int("p", 2)
    mean = _window_mean(node, window)

    def run(x: Tensor) -> Tensor:
        padded = F.pad(x, torch_pads(*window.exact_pads_for(x.shape[2:])))
        return _root(mean(padded.abs() ** p) * math.prod(window.kernel), p)

    return run


def global_lp_pool(node: NodeReader) -> TorchOp:
    """GlobalLpPool: the p-norm over the spatial dimensions, which stay with size 1."""
    dims, p = tuple(range(2, node.rank(0))), node.get_int("p", 2)
    return lambda x: _root((x.abs() ** p).sum(dim=dims, keepdim=True), p)


def _root(x: Tensor, p: int) -> Tensor:
    """Return the p-th root, with no gradient where it is steepest, at 0."""
    is_zero = x == 0
    return torch.where(is_zero, torch.zeros_like(x), torch.where(is_zero, torch.ones_like(x), x) ** (1 / p))


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

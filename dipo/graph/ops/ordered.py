"""Convolutions that add their products in the order of ONNX Runtime's CPU kernels on x86.

The last bit of a float sum depends on the order of its terms, and decides the code of a sum half way between two codes.
To compare a written file with the simulation bit for bit, the simulation adds in the order of the runtime that checks
it. Elsewhere the order is torch's, whose kernels are faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, product

import torch
from torch import Tensor

from dipo.graph.ops.linear import conv, kernel_of
from dipo.graph.ops.reader import NodeReader, TorchOp
from dipo.graph.ops.window import Window

COLUMNS = 1 << 23
"""Largest number of elements of unfolded windows held in memory at a time."""


def ordered_conv(node: NodeReader) -> TorchOp:
    """Conv: x [N, C, H, W], w [M, C / group, kH, kW], b [M] or None; for other ranks the same as `conv`.

    The products of an output run over (channel, row, column) of the window, and the bias comes last. A group with one
    output channel, as in depthwise convolutions, adds rounded products in fours, then the sums of the fours. Others add
    sequentially with fused multiply-add in blocks of 128, or more if the output has less than 128 pixels, then the
    blocks.
    """
    kernel = kernel_of(node)
    if len(kernel) != 2:
        return conv(node)
    window, groups = Window.read(node, kernel), node.get_int("group", 1)
    pad = window.padder()

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        rows = w.contiguous().view(groups, w.shape[0] // groups, -1)
        add = _add_by_fours if rows.shape[1] == 1 else _add_by_blocks
        columns = _seen(pad(x[:1]).contiguous(), window)
        y = x.new_empty(len(x), len(w), *columns.shape[-2:])
        # Some images at a time: padded copies and sums of all of them at once would take several times their memory.
        size = max(1, COLUMNS // columns.numel())
        for images, made in zip(torch.split(x, size), torch.split(y, size), strict=True):
            seen = torch.unflatten(_seen(pad(images).contiguous(), window), 1, (groups, -1))
            made.copy_(add(rows, seen).flatten(1, 2))
        return y if b is None else y.add_(b.view(-1, 1, 1))

    return run


def _seen(x: Tensor, window: Window) -> Tensor:
    """Return the elements under each window, [N, C, kH, kW, oH, oW]: a view."""
    (height, width), (down, right) = window.extents, window.dilations
    seen = x.unfold(2, height, window.strides[0]).unfold(3, width, window.strides[1])
    return seen[..., ::down, ::right].permute(0, 1, 4, 5, 2, 3)


def _add_by_blocks(rows: Tensor, seen: Tensor) -> Tensor:
    """Multiply rows [G, M, K] with seen [N, G, C / G, kH, kW, oH, oW]; torch's product adds up to 192 in sequence."""
    height, width = seen.shape[-2:]
    columns = seen.reshape(*seen.shape[:2], -1, height * width)
    block, pixels = 128, 128
    while pixels > 16 and pixels // 2 >= height * width:
        block, pixels = block * 2, pixels // 2
    pairs = zip(torch.split(rows, block, dim=2), torch.split(columns, block, dim=2), strict=True)
    total = _sum(part @ values for part, values in pairs)
    return total.view(*total.shape[:3], height, width)


def _add_by_fours(rows: Tensor, seen: Tensor) -> Tensor:
    """Multiply rows with seen as `_add_by_blocks` does, for M = 1: products are added in fours."""
    places = zip(rows.unbind(2), product(*map(range, seen.shape[2:5])), strict=True)
    products = (row[..., None, None] * seen[:, :, c, i, j, None] for row, (c, i, j) in places)
    return _sum(_sum(iter(four)) for four in _fours(products))


def _sum(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms)
    for term in terms:
        total += term
    return total


def _fours(terms: Iterator[Tensor]) -> Iterator[Iterator[Tensor]]:
    for first in terms:
        yield chain([first], islice(terms, 3))

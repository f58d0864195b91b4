"""Operators that move elements: Reshape, Slice, Gather and similar."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dipo.graph.constants import single_rows
from dipo.graph.ops.reader import NodeReader, Numbers, TorchOp


def reshape(node: NodeReader) -> TorchOp:
    """Reshape; 0 keeps the input's size unless allowzero, -1 is the remaining size."""
    shape = node.require(node.ints(1), "shape")
    allow_zero = bool(node.get_int("allowzero", 0))
    if shape.known is not None and (allow_zero or 0 not in shape.known):
        constant = shape.known
        return lambda x, _shape: x.reshape(constant)

    def run(x: Tensor, *behind: Tensor | None) -> Tensor:
        sizes = shape.among(behind) or ()
        if allow_zero:
            return x.reshape(sizes)
        return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(sizes)])

    return run


def flatten(node: NodeReader) -> TorchOp:
    """Flatten to [product of the sizes before axis, product of the others]."""
    axis = node.get_int("axis", 1)
    return lambda x: x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def transpose(node: NodeReader) -> TorchOp:
    """Transpose; without perm the axes are reversed."""
    perm = node.get_ints("perm")
    if perm is None:
        return lambda x: x.permute(*range(x.dim() - 1, -1, -1))
    return lambda x: x.permute(perm)


def squeeze(node: NodeReader) -> TorchOp:
    """Squeeze the axes, or every axis of size 1 where none are named."""
    axes = node.ints(1, "axes")

    def run(x: Tensor, *behind: Tensor | None) -> Tensor:
        named = axes.among(behind)
        return x.squeeze(named) if named else x.squeeze()

    return run


def unsqueeze(node: NodeReader) -> TorchOp:
    """Unsqueeze: the axes count in the output."""
    axes = node.require(node.ints(1, "axes"), "axes")

    def run(x: Tensor, *behind: Tensor | None) -> Tensor:
        added = axes.among(behind) or ()
        rank = x.dim() + len(added)
        for axis in sorted(axis % rank for axis in added):
            x = x.unsqueeze(axis)
        return x

    return run


def concat(node: NodeReader) -> TorchOp:
    """Concat along an axis; a constant of one row stands for every sample (`graph.constants.single_rows`)."""
    axis = node.get_int("axis", 1)
    single = set(single_rows(node.node))
    if not single:
        return lambda *xs: torch.cat(xs, axis)

    def run(*xs: Tensor) -> Tensor:
        batch = max(x.shape[0] for x in xs)
        return torch.cat([x.expand(batch, *x.shape[1:]) if i in single else x for i, x in enumerate(xs)], axis)

    return run


def split(node: NodeReader) -> TorchOp:
    """Split into the given sizes, or into one part per output, of which the last ones may be smaller."""
    axis = node.get_int("axis", 0)
    sizes = node.ints(1, "split")
    num = node.get_int("num_outputs", len(node.node.outputs))

    def run(x: Tensor, *behind: Tensor | None) -> tuple[Tensor, ...]:
        given = sizes.among(behind)
        if given is None:
            size = x.shape[axis]
            part = -(-size // num)
            given = tuple(min(part, max(size - i * part, 0)) for i in range(num))
        return torch.split(x, list(given), axis)

    return run


def slice_(node: NodeReader) -> TorchOp:
    """Slice by starts, ends, axes and steps, constant or computed."""
    starts = node.require(node.ints(1, "starts"), "starts")
    ends = node.require(node.ints(2, "ends"), "ends")
    axes, steps = node.ints(3, "axes"), node.ints(4)
    if all(each.port is None for each in (starts, ends, axes, steps)):
        return _constant_slice(_cuts(starts.known or (), ends.known or (), axes.known, steps.known))

    def run(x: Tensor, *behind: Tensor | None) -> Tensor:
        cuts = _cuts(starts.among(behind) or (), ends.among(behind) or (), axes.among(behind), steps.among(behind))
        for axis, cut in cuts:
            x = _cut(x, axis, cut)
        return x

    return run


def depth_to_space(node: NodeReader) -> TorchOp:
    """DepthToSpace: [N, C * b * b, H, W] to [N, C, H * b, W * b]; in DCR mode the block axes come before C."""
    block = node.get_int("blocksize", 0)
    mode = node.choice("mode", "DCR", ("DCR", "CRD"))

    def run(x: Tensor) -> Tensor:
        num, channels, height, width = x.shape
        depth = channels // block**2
        if mode == "CRD":
            x = x.reshape(num, depth, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
        else:
            x = x.reshape(num, block, block, depth, height, width).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(num, depth, height * block, width * block)

    return run


def space_to_depth(node: NodeReader) -> TorchOp:
    """SpaceToDepth: [N, C, H, W] to [N, b * b * C, H / b, W / b]; in DCR mode the block axes come before C."""
    block = node.get_int("blocksize", 0)
    order = {"DCR": (0, 3, 5, 1, 2, 4), "CRD": (0, 1, 3, 5, 2, 4)}[node.choice("mode", "DCR", ("DCR", "CRD"))]

    def run(x: Tensor) -> Tensor:
        num, channels, height, width = x.shape
        x = x.reshape(num, channels, height // block, block, width // block, block).permute(*order)
        return x.reshape(num, block**2 * channels, height // block, width // block)

    return run


def expand(node: NodeReader) -> TorchOp:
    """Expand to the shape to which the input and the given shape broadcast."""
    shape = node.require(node.ints(1), "shape")

    def run(x: Tensor, *behind: Tensor | None) -> Tensor:
        wanted = shape.among(behind) or ()
        added = max(len(wanted) - x.dim(), 0)
        sizes = (-1 if size == 1 else size for size in wanted[added:])
        return x.expand(*wanted[:added], *[-1] * (x.dim() - len(wanted)), *sizes)

    return run


def tile(node: NodeReader) -> TorchOp:
    """Tile by repeats, one for each axis."""
    repeats = node.require(node.ints(1), "repeats")
    return lambda x, *behind: x.repeat(repeats.among(behind) or ())


def gather(node: NodeReader) -> TorchOp:
    """Gather along an axis; negative indices count from the end."""
    axis = node.get_int("axis", 0)
    known = node.known(1)
    if known is not None and known.ndim == 0:
        index = int(known)
        return lambda x, _indices: x.select(axis, index)
    return lambda x, indices: x[(*[slice(None)] * (axis % x.dim()), indices)]


def reverse_sequence(node: NodeReader) -> TorchOp:
    """ReverseSequence: the first `lengths[i]` elements of each sequence in reverse order."""
    time, batch = node.get_int("time_axis", 0), node.get_int("batch_axis", 1)

    def run(x: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(x.shape[time], device=x.device)
        lengths = lengths[:, None]
        order = torch.where(steps < lengths, lengths - 1 - steps, steps)  # [batch, time]
        order = order if batch < time else order.t()
        shape = [x.shape[axis] if axis in {time, batch} else 1 for axis in range(x.dim())]
        return x.gather(time, order.reshape(shape).expand(x.shape))

    return run


def trilu(node: NodeReader) -> TorchOp:
    """Trilu: the upper or the lower triangle of matrices, from diagonal k on."""
    function = torch.triu if node.get_int("upper", 1) else torch.tril
    k: Numbers = node.ints(1)
    return lambda x, *behind: function(x, (k.among(behind) or (0,))[0])


_Cuts = list[tuple[int, slice]]


def _cuts(starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None, steps: Sequence[int] | None) -> _Cuts:
    """Return a slice for each axis."""
    axes = axes or range(len(starts))
    steps = steps or [1] * len(starts)
    return [
        (axis, slice(_bounded(start), _bounded(end), step))
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    ]


def _constant_slice(cuts: _Cuts) -> TorchOp:
    axes = [axis for axis, _ in cuts]
    if min(axes, default=0) >= 0 and all(cut.step > 0 for _, cut in cuts):
        by_axis = dict(cuts)
        index = tuple(by_axis.get(axis, slice(None)) for axis in range(max(axes, default=-1) + 1))
        return lambda x, *_: x[index]

    def run(x: Tensor, *_: Tensor | None) -> Tensor:
        for axis, cut in cuts:
            x = _cut(x, axis, cut)
        return x

    return run


def _cut(x: Tensor, axis: int, cut: slice) -> Tensor:
    """Slice x along one axis; torch has no negative steps, so for those the flipped tensor is sliced."""
    size = x.shape[axis]
    start, stop, step = cut.indices(size)
    if step < 0:
        start = max(start, 0)  # ONNX starts at the first element where Python returns nothing
        x, start, stop, step = x.flip(axis), size - 1 - start, size - 1 - stop, -step
    return x[(*[slice(None)] * (axis % x.dim()), slice(start, stop, step))]


def _bounded(index: int) -> int:
    """Return the index limited to +-2^62: ONNX's "to the end" may be -2^63 or 2^63 - 1, of which torch warns."""
    return min(max(index, -(1 << 62)), 1 << 62)

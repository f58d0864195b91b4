"""Operators that move elements: Reshape, Slice, Pad and similar."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dipo.graph.constants import single_rows
from dipo.graph.ops.reader import NodeReader, TorchOp
from dipo.graph.ops.window import torch_pads


def reshape(node: NodeReader) -> TorchOp:
    """Reshape to a constant shape; 0 keeps the input's size unless allowzero, -1 is the remaining size."""
    shape = node.constant_ints(1)
    if shape is None:
        raise node.refusal("it has no shape")
    allow_zero = bool(node.get_int("allowzero", 0))
    if allow_zero or 0 not in shape:
        return lambda x, _shape: x.reshape(shape)
    return lambda x, _shape: x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


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
    axes = node.ints_from("axes", 1)
    if axes is None:
        return lambda x, _axes=None: x.squeeze()
    return lambda x, _axes=None: x.squeeze(axes)


def unsqueeze(node: NodeReader) -> TorchOp:
    """Unsqueeze: the axes count in the output."""
    axes = node.ints_from("axes", 1)
    if axes is None:
        raise node.refusal("it has no axes")

    def run(x: Tensor, _axes: Tensor | None = None) -> Tensor:
        rank = x.dim() + len(axes)
        for axis in sorted(axis % rank for axis in axes):
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
    """Split into the given sizes, or into one part per output, of which the last may be smaller."""
    axis = node.get_int("axis", 0)
    sizes = node.ints_from("split", 1)
    num = node.get_int("num_outputs", len(node.node.outputs))
    if sizes is not None:
        return lambda x, _sizes=None: x.split(sizes, axis)
    return lambda x, _sizes=None: x.split(-(-x.shape[axis] // num), axis)


def slice_(node: NodeReader) -> TorchOp:
    """Slice with constant starts, ends, axes and steps."""
    starts, ends = node.ints_from("starts", 1), node.ints_from("ends", 2)
    if starts is None or ends is None:
        raise node.refusal("it has no starts or no ends")
    axes = node.ints_from("axes", 3) or tuple(range(len(starts)))
    steps = node.constant_ints(4) or (1,) * len(starts)
    cuts = [
        (axis, slice(_bounded(start), _bounded(end), step))
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    ]
    if min(axes, default=0) >= 0 and min(steps, default=1) > 0:
        by_axis = dict(cuts)
        index = tuple(by_axis.get(axis, slice(None)) for axis in range(max(axes, default=-1) + 1))
        return lambda x, *_: x[index]

    def run(x: Tensor, *_: Tensor | None) -> Tensor:
        for axis, cut in cuts:
            x = _cut(x, axis, cut)
        return x

    return run


def pad(node: NodeReader) -> TorchOp:
    """Pad with a constant, by reflection, edge or wrapping; pads and value are constant, negative pads cut."""
    mode = node.choice("mode", "constant", ("constant", "reflect", "edge", "wrap"))
    pads = node.ints_from("pads", 1)
    if pads is None:
        raise node.refusal("it has no pads")
    axes = node.constant_ints(3)
    if axes is not None:
        pads = _all_axes(pads, axes, node.rank(0))
    half = len(pads) // 2
    flat = torch_pads(pads[:half], pads[half:])
    if mode == "constant":
        value = node.constant_scalar(2) if node.opset >= 11 else node.get_float("value", 0.0)
        return lambda x, *_: F.pad(x, flat, value=value)
    node.ignore("value")
    if min(pads) < 0 or half > 5 or len(flat) > 2 * (half - 2):
        raise node.refusal(f"mode '{mode}' is computed in torch for spatial axes (up to 3) and pads from 0 only")
    torch_mode = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode]
    flat += [0] * (2 * (half - 2) - len(flat))
    return lambda x, *_: F.pad(x, flat, mode=torch_mode)


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
    """Expand to the shape to which the input and the constant shape broadcast."""
    shape = node.constant_ints(1)
    if shape is None:
        raise node.refusal("it has no shape")

    def run(x: Tensor, _shape: Tensor) -> Tensor:
        added = max(len(shape) - x.dim(), 0)
        sizes = (-1 if size == 1 else size for size in shape[added:])
        return x.expand(*shape[:added], *[-1] * (x.dim() - len(shape)), *sizes)

    return run


def tile(node: NodeReader) -> TorchOp:
    """Tile by constant repeats, one for each axis."""
    repeats = node.constant_ints(1)
    if repeats is None:
        raise node.refusal("it has no repeats")
    return lambda x, _repeats: x.repeat(repeats)


def gather(node: NodeReader) -> TorchOp:
    """Gather along an axis; negative indices count from the end."""
    axis = node.get_int("axis", 0)
    known = node.known(1)
    if known is not None and known.ndim == 0:
        index = int(known)
        return lambda x, _indices: x.select(axis, index)
    return lambda x, indices: x[(*[slice(None)] * (axis % x.dim()), indices)]


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


def _all_axes(pads: tuple[int, ...], axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return the pads of some axes as a list of begins, then ends, of all axes."""
    full = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        full[axis % rank], full[axis % rank + rank] = pads[i], pads[i + len(axes)]
    return tuple(full)

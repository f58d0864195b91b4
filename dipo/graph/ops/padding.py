"""Pad in all its modes, and CenterCropPad."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dipo.graph.ops.reader import NodeReader, TorchOp
from dipo.graph.ops.window import torch_pads

_TORCH_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def pad(node: NodeReader) -> TorchOp:
    """Pad with a constant, by reflection, edge or wrapping; negative pads cut."""
    mode = node.choice("mode", "constant", ("constant", *_TORCH_MODES))
    pads, axes = node.require(node.ints(1, "pads"), "pads"), node.ints(3)
    padder = _constant(node) if mode == "constant" else _by_mode(mode)
    if mode != "constant":
        node.ignore("value")
    if pads.known is not None and axes.absent:
        known = pads.known
        return lambda x, *behind: padder(x, known, behind)

    def run(x: Tensor, *behind: Tensor | None) -> Tensor:
        given, named = pads.among(behind) or (), axes.among(behind)
        return padder(x, given if named is None else _all_axes(given, named, x.dim()), behind)

    return run


def center_crop_pad(node: NodeReader) -> TorchOp:
    """CenterCropPad: cut or pad with zeros on both sides; an odd element is cut before, or padded behind."""
    shape, axes = node.require(node.ints(1), "shape"), node.get_ints("axes")

    def run(x: Tensor, *behind: Tensor | None) -> Tensor:
        named = range(x.dim()) if axes is None else axes
        pads = [0] * (2 * x.dim())
        for axis, size in zip(named, shape.among(behind) or (), strict=True):
            total, axis = size - x.shape[axis], axis % x.dim()  # noqa: PLW2901 - the axis from the front
            before = total // 2 if total >= 0 else -(-total // 2)
            pads[axis], pads[axis + x.dim()] = before, total - before
        return F.pad(x, torch_pads(pads[: x.dim()], pads[x.dim() :]))

    return run


_Padder = Callable[[Tensor, Sequence[int], Sequence[Tensor | None]], Tensor]
"""A function of x, the pads of all its axes, begins before ends, and the node's inputs behind x."""


def _constant(node: NodeReader) -> _Padder:
    fixed = node.get_float("value", 0.0) if node.opset < 11 else None
    known = node.known(2) if node.opset >= 11 else None
    if known is not None:
        fixed = known.reshape(()).item()

    def run(x: Tensor, pads: Sequence[int], behind: Sequence[Tensor | None]) -> Tensor:
        value = fixed
        if value is None and len(behind) > 1 and behind[1] is not None:
            value = behind[1].item()
        half = len(pads) // 2
        return F.pad(x, torch_pads(pads[:half], pads[half:]), value=value)

    return run


def _by_mode(mode: str) -> _Padder:
    def run(x: Tensor, pads: Sequence[int], _behind: Sequence[Tensor | None]) -> Tensor:
        half = len(pads) // 2
        flat = torch_pads(pads[:half], pads[half:])
        spatial = 2 * (half - 2)
        small = all(max(pads[i], pads[i + half]) < x.shape[i] for i in range(half))
        if x.is_floating_point() and min(pads) >= 0 and small and 2 < half < 6 and len(flat) <= spatial:
            return F.pad(x, flat + [0] * (spatial - len(flat)), mode=_TORCH_MODES[mode])
        for axis in range(half):
            x = _along(x, axis, pads[axis], pads[axis + half], mode)
        return x

    return run


def _along(x: Tensor, axis: int, before: int, behind: int, mode: str) -> Tensor:
    """Pad one axis by elements of its own; what negative pads cut is not among them."""
    if not (before or behind):
        return x
    start = max(-before, 0)
    x = x.narrow(axis, start, x.shape[axis] - start - max(-behind, 0))
    size = x.shape[axis]
    index = torch.arange(-max(before, 0), size + max(behind, 0), device=x.device)
    if mode == "edge":
        index = index.clamp(0, size - 1)
    elif mode == "wrap":
        index = index.remainder(size)
    else:
        period = max(2 * (size - 1), 1)
        index = index.remainder(period)
        index = torch.where(index < size, index, period - index)
    return x.index_select(axis, index)


def _all_axes(pads: Sequence[int], axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Return the pads of some axes as a list of begins, then ends, of all axes."""
    full = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        full[axis % rank], full[axis % rank + rank] = pads[i], pads[i + len(axes)]
    return tuple(full)

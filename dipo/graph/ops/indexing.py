"""Operators that choose, replace or count elements by computed places."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dipo.graph.ops.reader import NodeReader, TorchOp

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def gather_elements(node: NodeReader) -> TorchOp:
    """GatherElements: for each place of `indices` the element with that index along the axis."""
    axis = node.get_int("axis", 0)
    return lambda x, indices: x.gather(axis, _from_front(indices, x.shape[axis]))


def gather_nd(node: NodeReader) -> TorchOp:
    """GatherND: slices of x at indices [..., k] into its axes behind the first `batch_dims`."""
    batch_dims = node.get_int("batch_dims", 0)

    def run(x: Tensor, indices: Tensor) -> Tensor:
        shape = indices.shape[:-1]
        batch = [
            torch.arange(size, device=x.device).reshape([-1 if axis == i else 1 for i in range(len(shape))])
            for axis, size in enumerate(shape[:batch_dims])
        ]
        return x[(*batch, *indices.long().unbind(-1))]

    return run


def scatter_elements(node: NodeReader) -> TorchOp:
    """ScatterElements, once Scatter: x with `updates` at the places of `indices` along an axis."""
    axis = node.get_int("axis", 0)
    reduction = node.choice("reduction", "none", ("none", *_REDUCTIONS))
    return lambda x, indices, updates: _scattered(x, axis, _from_front(indices, x.shape[axis]), updates, reduction)


def scatter_nd(node: NodeReader) -> TorchOp:
    """ScatterND: x with slices replaced by `updates` at indices [..., k] into its first k axes."""
    reduction = node.choice("reduction", "none", ("none", *_REDUCTIONS))

    def run(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        num = indices.shape[-1]
        rows, size = math.prod(x.shape[:num]), math.prod(x.shape[num:])
        row = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
        for axis, index in enumerate(indices.unbind(-1)):
            row = row * x.shape[axis] + _from_front(index, x.shape[axis])
        updates = updates.reshape(row.numel(), size)
        places = row.reshape(-1, 1).expand(row.numel(), size)
        return _scattered(x.reshape(rows, size), 0, places, updates, reduction).reshape(x.shape)

    return run


def tensor_scatter(node: NodeReader) -> TorchOp:
    """TensorScatter: a cache with `update` written from each sample's index on, around its end if circular."""
    axis = node.get_int("axis", -2)
    circular = node.choice("mode", "linear", ("linear", "circular")) == "circular"

    def run(cache: Tensor, update: Tensor, starts: Tensor | None = None) -> Tensor:
        shape = [1] * cache.dim()
        steps_shape = list(shape)
        steps_shape[axis] = update.shape[axis]
        places = torch.arange(update.shape[axis], device=cache.device).reshape(steps_shape)
        if starts is not None:
            places = places + starts.reshape([-1, *shape[1:]])
        places = places.remainder(cache.shape[axis]) if circular else places
        return cache.scatter(axis, places.expand(update.shape), update)

    return run


def non_zero(x: Tensor) -> Tensor:
    """NonZero: the indices of elements that are not zero, [rank, count]; a scalar counts as one axis."""
    return torch.nonzero(x.reshape(1) if x.dim() == 0 else x).t()


def one_hot(node: NodeReader) -> TorchOp:
    """OneHot: `values[1]` at each index along a new axis, otherwise `values[0]`; indices may count from the end."""
    axis, depth = node.get_int("axis", -1), node.require(node.ints(1), "depth")

    def run(indices: Tensor, *behind: Tensor | None) -> Tensor:
        (size,) = map(int, depth.among(behind) or (0,))  # it may be a float
        values = behind[1]
        assert values is not None
        shape = [1] * (indices.dim() + 1)
        shape[axis] = size
        classes = torch.arange(size, device=indices.device).reshape(shape)
        is_here = _from_front(indices, size).unsqueeze(axis) == classes
        return torch.where(is_here, values[1], values[0])

    return run


def compress(node: NodeReader) -> TorchOp:
    """Compress: the elements, or the slices along an axis, for which the condition holds."""
    axis = node.get_int("axis", 0) if "axis" in node.node.attributes else None

    def run(x: Tensor, condition: Tensor) -> Tensor:
        (places,) = torch.nonzero(condition, as_tuple=True)
        return x.reshape(-1).index_select(0, places) if axis is None else x.index_select(axis, places)

    return run


def unique(node: NodeReader) -> TorchOp:
    """Unique: the distinct elements, or slices along an axis; their first places, the place of each in them, counts."""
    axis = node.get_int("axis", 0) if "axis" in node.node.attributes else None
    in_order = bool(node.get_int("sorted", 1))

    def run(x: Tensor) -> tuple[Tensor, ...]:
        x = x.reshape(-1) if axis is None else x
        along = axis or 0
        _, inverse, counts = torch.unique(x.detach(), return_inverse=True, return_counts=True, dim=along)
        places = torch.arange(len(inverse), device=x.device)
        first = places.new_full(counts.shape, len(inverse)).scatter_reduce(0, inverse, places, "amin")
        if not in_order:
            order = torch.argsort(first)
            first, counts, inverse = first[order], counts[order], torch.argsort(order)[inverse]
        return x.index_select(along, first), first, inverse, counts

    return run


def _from_front(indices: Tensor, size: int) -> Tensor:
    """Return indices that count from the end, if negative, counted from the front."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


def _scattered(x: Tensor, axis: int, places: Tensor, updates: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCTIONS[reduction])

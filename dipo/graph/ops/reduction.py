"""Reductions over axes, and the places of extrema."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dipo.graph.ops.reader import Builder, NodeReader, Numbers, TorchOp
from dipo.graph.ops.window import highest, lowest

_Reduction = Callable[..., Tensor]
"""A function of x, the axes and `keepdim`: whether they stay, with size 1."""


def _reduction(function: _Reduction) -> Builder:
    """Return a Reduce operator; its axes are an attribute or an input, and none means all of them."""

    def build(node: NodeReader) -> TorchOp:
        axes = node.ints(1, "axes")
        keepdims = bool(node.get_int("keepdims", 1))
        nothing_to_do = bool(node.get_int("noop_with_empty_axes", 0))

        def run(x: Tensor, *behind: Tensor | None) -> Tensor:
            named = axes.among(behind)
            if not named and nothing_to_do:
                return function(x.unsqueeze(-1), (-1,), keepdim=False)  # what it does to each number alone
            return function(x, tuple(named or range(x.dim())), keepdim=keepdims)

        return run

    return build


def _mean(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(dim=axes, keepdim=keepdim)
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return torch.div(_sum(x, axes, keepdim=keepdim), count, rounding_mode="trunc").to(x.dtype)


def _sum(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    return x.sum(dim=axes, keepdim=keepdim, dtype=x.dtype)


def _max(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    empty = _of_nothing(x, axes, lowest(x.dtype), keepdim=keepdim)
    return x.amax(dim=axes, keepdim=keepdim) if empty is None else empty


def _min(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    empty = _of_nothing(x, axes, highest(x.dtype), keepdim=keepdim)
    return x.amin(dim=axes, keepdim=keepdim) if empty is None else empty


def _product(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(dim=axis, keepdim=keepdim, dtype=x.dtype)
    return x


def _norm_1(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    return _sum(x.abs(), axes, keepdim=keepdim)


def _norm_2(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    if not x.is_floating_point():
        return _sum(x.double().square(), axes, keepdim=keepdim).sqrt().to(x.dtype)
    norm: Tensor = torch.linalg.vector_norm(x, dim=axes, keepdim=keepdim)
    return norm


def _sum_of_squares(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    return _sum(x.square(), axes, keepdim=keepdim)


def _log_sum(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    return _sum(x, axes, keepdim=keepdim).log().to(x.dtype)


def _log_sum_exp(x: Tensor, axes: tuple[int, ...], *, keepdim: bool) -> Tensor:
    numbers = x if x.is_floating_point() else x.double()
    return torch.logsumexp(numbers, dim=axes, keepdim=keepdim).to(x.dtype)


def _of_nothing(x: Tensor, axes: tuple[int, ...], value: float, *, keepdim: bool) -> Tensor | None:
    """Return the extremum over axes of which one has no elements; None if none is so."""
    if all(x.shape[axis] for axis in axes):
        return None
    reduced = {axis % x.dim() for axis in axes}
    kept = [1 if axis in reduced else size for axis, size in enumerate(x.shape) if keepdim or axis not in reduced]
    return x.new_full(kept, value)


reduce_mean = _reduction(_mean)
reduce_sum = _reduction(_sum)
reduce_max = _reduction(_max)
reduce_min = _reduction(_min)
reduce_prod = _reduction(_product)
reduce_l1 = _reduction(_norm_1)
reduce_l2 = _reduction(_norm_2)
reduce_sum_square = _reduction(_sum_of_squares)
reduce_log_sum = _reduction(_log_sum)
reduce_log_sum_exp = _reduction(_log_sum_exp)


def _arg(function: Callable[..., Tensor]) -> Builder:
    """Return ArgMax or ArgMin; of equal numbers the first one counts, or the last one if so chosen."""

    def build(node: NodeReader) -> TorchOp:
        axis, keepdims = node.get_int("axis", 0), bool(node.get_int("keepdims", 1))
        if not node.get_int("select_last_index", 0):
            return lambda x: function(x, dim=axis, keepdim=keepdims)
        return lambda x: x.shape[axis] - 1 - function(x.flip(axis), dim=axis, keepdim=keepdims)

    return build


arg_max = _arg(torch.argmax)
arg_min = _arg(torch.argmin)


def top_k(node: NodeReader) -> TorchOp:
    """TopK: the k largest or smallest numbers along an axis in their order, and their places.

    Of equal numbers those with smaller places come first, which torch's own topk does not promise.
    """
    axis, largest = node.get_int("axis", -1), bool(node.get_int("largest", 1))
    if not node.get_int("sorted", 1):
        raise node.refusal("numbers in no order (sorted = 0) stand in each runtime in another one")
    count = node.ints(1) if node.opset >= 10 else Numbers((node.get_int("k", 0),))

    def run(x: Tensor, *behind: Tensor | None) -> tuple[Tensor, Tensor]:
        (k,) = count.among(behind) or (0,)
        numbers, places = torch.sort(x, dim=axis, descending=largest, stable=True)
        return numbers.narrow(axis, 0, k), places.narrow(axis, 0, k)

    return run


def _cumulative(function: Callable[..., Tensor], neutral: int) -> Builder:
    """Return CumSum or CumProd, from either end, with or without the element itself."""

    def build(node: NodeReader) -> TorchOp:
        axes = node.require(node.ints(1), "axis")
        exclusive, reverse = bool(node.get_int("exclusive", 0)), bool(node.get_int("reverse", 0))

        def run(x: Tensor, *behind: Tensor | None) -> Tensor:
            (axis,) = axes.among(behind) or (0,)
            x = x.flip(axis) if reverse else x
            y = function(x, dim=axis, dtype=x.dtype)
            if exclusive:
                first = torch.full_like(y.narrow(axis, 0, 1), neutral)
                y = torch.cat([first, y.narrow(axis, 0, y.shape[axis] - 1)], axis)
            return y.flip(axis) if reverse else y

        return run

    return build


cum_sum = _cumulative(torch.cumsum, 0)
cum_prod = _cumulative(torch.cumprod, 1)
